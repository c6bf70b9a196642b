"""Matrices of a bilinear form for a batch of inputs, on one sparsity pattern.

Firedrake's compiled kernels compute the element matrices of each sample; what is left is to sum
them into the entries of the pattern, a list of positions that is made once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from firedrake import TrialFunction
from firedrake.assemble import ParloopBuilder, _FormHandler, _make_global_kernel, get_assembler
from pyop2 import op2
from torch import Tensor
from tsfc.kernel_args import OutputKernelArg

from spon.fem.forms import TorchForm
from spon.fem.lu_kernels import call
from spon.fem.native_forms import _Call, _places, _rows
from spon.fem.snapshot import Snapshot
from spon.fem.spaces import mesh_of, name_of

__all__ = ["BatchMatrix", "jacobian"]

_BYTES = 8


class BatchMatrix:
    """The matrices of a two-form for rows of coefficients.

    Parameters
    ----------
    form : ufl.Form
        With two arguments on one space of a serial mesh.
    inputs : sequence of Function
        What the rows stand for.
    snapshot : Snapshot
        The values of everything else.

    Attributes
    ----------
    pointers, columns : int arrays, shapes (dim + 1,) and (nnz,)
        The pattern as CSR; entries on the diagonal are always there.

    Raises
    ------
    NotImplementedError
        On an extruded mesh, or for spaces of type Real.
    """

    def __init__(self, form: Any, inputs: Sequence[Any], snapshot: Snapshot) -> None:
        test, trial = (argument.function_space() for argument in form.arguments())
        for V in (*test.subspaces, *trial.subspaces):
            if V.ufl_element().family() == "Real" or mesh_of(V).extruded:
                what = "an extruded mesh" if mesh_of(V).extruded else "a space of type Real"
                raise NotImplementedError(
                    f"Matrices that depend on the inputs are not available for {name_of(V)} on "
                    f"{what}: wrap a Firedrake solver with spon.fem.fem_operator instead."
                )
        self.size = int(test.dim())
        places, loops = _places(inputs), _element_loops(form)
        self._calls = [_Call(snapshot, loop.parloop, (None,), None, places) for loop in loops]
        self._offsets = np.cumsum([0, *(loop.length for loop in loops)])
        self._make_pattern(loops)
        self._alive = (snapshot, form, inputs)

    def _make_pattern(self, loops: Sequence[_Elements]) -> None:
        diagonal = np.arange(self.size)
        rows = np.concatenate([diagonal, *(loop.rows for loop in loops)])
        cols = np.concatenate([diagonal, *(loop.cols for loop in loops)])
        places = [
            loop.places + start for loop, start in zip(loops, self._offsets[:-1], strict=True)
        ]
        keys, entry = np.unique(rows.astype(np.int64) * self.size + cols, return_inverse=True)
        counts = np.bincount(keys // self.size, minlength=self.size)
        self.pointers = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        self.columns = (keys % self.size).astype(np.int32)
        # For each entry of the pattern the element entries that add up to it.
        entry = entry[self.size :]
        order = np.argsort(entry, kind="stable")
        self._parts = np.concatenate(places)[order].astype(np.int32)
        shares = np.bincount(entry, minlength=len(keys))
        self._shares = np.concatenate([[0], np.cumsum(shares)]).astype(np.int32)

    def values(self, xs: Sequence[Tensor], batch: int) -> Tensor:
        """Assemble for each row.

        Parameters
        ----------
        xs : sequence of Tensor, shapes (batch, dim of the input)
        batch : int
            Number of rows.

        Returns
        -------
        Tensor, shape (batch, nnz)
            float64 on the CPU.
        """
        rows = [_rows(x) for x in xs]
        starts = [x.data_ptr() for x in rows]
        steps = [x.stride(0) * _BYTES if len(x) > 1 else 0 for x in rows]
        out = torch.empty(batch, len(self.columns), dtype=torch.float64)
        # One sample after the other: its element matrices are still in the cache when summed.
        elements = torch.empty(int(self._offsets[-1]), dtype=torch.float64)
        base = elements.data_ptr()
        for i in range(batch):
            elements.zero_()
            now = [start + i * step for start, step in zip(starts, steps, strict=True)]
            for loop, offset in zip(self._calls, self._offsets, strict=False):
                loop.run(1, now, steps, base + int(offset) * _BYTES, 0)
            call("sum_parts", len(self.columns), self._shares, self._parts, elements, out[i])
        return out


def jacobian(residual: TorchForm) -> BatchMatrix:
    """The matrices dR/du of a 1-form R(u, inputs; v), as a function of u and the inputs."""
    u, functions = residual._slots[0], [slot.function for slot in residual._slots]
    direction = TrialFunction(u.function.function_space())
    form = residual._form.derivative(u.variable, direction).form()
    if form.empty():
        raise ValueError(f"The residual does not depend on {u.name}: there is nothing to solve.")
    return BatchMatrix(form, functions, residual._snapshot)


class _Elements(ParloopBuilder):
    """A loop that leaves the element matrices side by side instead of adding them to a matrix."""

    def __init__(self, form: Any, local: Any, subdomain: Any, all_ids: Any) -> None:
        super().__init__(form, (), local, subdomain, all_ids, diagonal=False)
        spaces = _FormHandler.index_function_spaces(form, self._indices)
        dofs = [self._dofs(V, *where) for V, where in zip(spaces, self._blocks(form), strict=True)]
        entities = self._iterset
        subset = isinstance(entities, op2.Subset)
        whole = entities.superset if subset else entities
        chosen = np.asarray(entities.indices) if subset else np.arange(entities.size)
        m, k = (d.shape[1] for d in dofs)
        self._shape = (m, k)
        self.length = whole.total_size * m * k
        self.rows = np.repeat(dofs[0][chosen], k, axis=1).reshape(-1)
        self.cols = np.tile(dofs[1][chosen], (1, m)).reshape(-1)
        self.places = (chosen[:, None] * (m * k) + np.arange(m * k)).reshape(-1)
        self._tensor = op2.Dat(op2.DataSet(whole, (m, k)), dtype=np.float64)
        arguments = [self._argument(argument) for argument in self._kinfo.arguments]
        kernel = _make_global_kernel(form, local, subdomain, all_ids, diagonal=False, unroll=False)
        changed = op2.GlobalKernel(
            kernel.local_kernel,
            [op2.DatKernelArg((m, k)), *kernel.arguments[1:]],
            subset=kernel._subset,
        )
        self.parloop = op2.Parloop(changed, entities, arguments)

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, OutputKernelArg):
            return op2.DatParloopArg(self._tensor)
        return self._as_parloop_arg(argument)

    def _blocks(self, form: Any) -> list[tuple[int]]:
        starts = []
        for argument, index in zip(form.arguments(), self._indices, strict=True):
            parts = argument.function_space().subspaces
            starts.append((sum(int(V.dim()) for V in parts[: index or 0]),))
        return starts

    def _dofs(self, V: Any, start: int) -> np.ndarray:
        nodes, block = self._get_map(V).values_with_halo, V.block_size
        dofs: np.ndarray = start + nodes[:, :, None] * block + np.arange(block)
        return dofs.reshape(len(nodes), -1)


def _element_loops(form: Any) -> list[_Elements]:
    assembler = get_assembler(form, mat_type="aij")
    return [
        _Elements(
            assembler._form,
            local,
            subdomain,
            assembler.all_integer_subdomain_ids[local.indices][local.kinfo.domain_number],
        )
        for local, subdomain in assembler.local_kernels
    ]
