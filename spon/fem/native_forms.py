"""Native execution of a form: Firedrake's compiled kernels, called for each row of a batch.

PyOP2 compiles a form into C functions that loop over cells or facets and take pointers. After the
first assembly nothing of Firedrake is needed to call them again: for each sample the pointers of
the inputs are exchanged, which costs microseconds instead of the tenth of a millisecond of an
assembly through the library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from firedrake.assemble import OneFormAssembler, ZeroFormAssembler
from pyop2.global_kernel import compile_global_kernel
from torch import Tensor

from spon.fem.snapshot import Snapshot

__all__ = ["NativeEvaluator"]

_BYTES = 8  # Firedrake's scalars are float64


class NativeEvaluator:
    """A 0-form or 1-form whose inputs are given as rows of tensors.

    Parameters
    ----------
    form : ufl.Form
        With no or one argument, on a serial mesh.
    inputs : sequence of Function
        What the rows stand for; their own values are not used and not changed.
    snapshot : Snapshot
        The values of everything else.
    """

    def __init__(self, form: Any, inputs: Sequence[Any], snapshot: Snapshot) -> None:
        arguments = form.arguments()
        self.size = int(arguments[0].function_space().dim()) if arguments else 1
        assembler = OneFormAssembler(form) if arguments else ZeroFormAssembler(form)
        tensor = assembler.allocate()
        rows = arguments[0].function_space() if arguments else None
        places = _places(inputs)
        self._calls = [
            _Call(snapshot, parloop, local.indices, rows, places)
            for (local, _), parloop in zip(
                assembler.local_kernels, assembler.parloops(tensor), strict=True
            )
        ]
        self._alive = (assembler, tensor, form, snapshot)

    def __call__(self, xs: Sequence[Tensor], batch: int) -> Tensor:
        """Assemble for each row.

        Parameters
        ----------
        xs : sequence of Tensor, shapes (batch, dim of the input)
        batch : int
            Number of rows; needed where there are no inputs.

        Returns
        -------
        Tensor, shape (batch, size)
            float64 on the CPU.
        """
        rows = [_rows(x) for x in xs]
        out = torch.zeros(batch, self.size, dtype=torch.float64)
        starts = [x.data_ptr() for x in rows]
        steps = [x.stride(0) * _BYTES if len(x) > 1 else 0 for x in rows]
        for call in self._calls:
            call.run(batch, starts, steps, out.data_ptr(), self.size * _BYTES)
        return out


class _Call:
    """One compiled kernel with the places where pointers change from row to row."""

    def __init__(
        self,
        snapshot: Snapshot,
        parloop: Any,
        indices: tuple[int | None, ...],
        rows: Any,
        places: dict[int, tuple[int, int]],
    ) -> None:
        self._function = compile_global_kernel(parloop.global_kernel, parloop.comm)
        size = parloop.iterset.size
        self._arguments = [0, size, *parloop.arglist]
        self._inputs: list[tuple[int, int, int]] = []
        self._outputs: list[tuple[int, int]] = []
        position = 2 + len(parloop.iterset._kernel_args_)
        for number, argument in enumerate(parloop.arguments):
            for part, data in enumerate(_parts(argument)):
                if number == 0:
                    block = part if not indices or indices[0] is None else indices[0]
                    self._outputs.append((position, _block_start(rows, block) * _BYTES))
                elif data is not None and data.dtype == np.float64:
                    address = data._data.ctypes.data
                    if address in places:
                        which, start = places[address]
                        self._inputs.append((position, which, start * _BYTES))
                    else:
                        self._arguments[position] = snapshot.array(data).ctypes.data
                position += 1
        self._alive = parloop

    def run(
        self, batch: int, starts: Sequence[int], steps: Sequence[int], out: int, step: int
    ) -> None:
        arguments, function = self._arguments, self._function
        for row in range(batch):
            for position, which, start in self._inputs:
                arguments[position] = starts[which] + row * steps[which] + start
            for position, start in self._outputs:
                arguments[position] = out + row * step + start
            function(*arguments)


def _parts(argument: Any) -> tuple[Any, ...]:
    """The data behind each pointer that an argument of a loop becomes."""
    count = len(argument._kernel_args_)
    data: Any = getattr(argument, "data", None)
    if not hasattr(data, "dtype"):
        return (None,) * count
    parts = tuple(data) if count > 1 else (data,)
    return tuple(part if hasattr(part, "_data") else None for part in parts)


def _places(inputs: Sequence[Any]) -> dict[int, tuple[int, int]]:
    """Which input, and which of its dofs, the data at an address belong to."""
    places = {}
    for number, f in enumerate(inputs):
        start = 0
        for part in f.subfunctions:
            places[part.dat._data.ctypes.data] = (number, start)
            start += part.function_space().dim()
    return places


def _block_start(V: Any, block: int) -> int:
    return 0 if V is None else sum(int(part.dim()) for part in V.subspaces[:block])


def _rows(x: Tensor) -> Tensor:
    """The tensor as float64 on the CPU with its rows contiguous; expanded rows stay shared."""
    x = x.detach().to("cpu", torch.float64)
    if x.shape[0] > 1 and x.stride(0) == 0:
        return x[:1].contiguous().expand_as(x)
    return x.contiguous()
