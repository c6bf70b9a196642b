"""Conjugate gradients with algebraic multigrid, in the place of a factorisation."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from firedrake.petsc import PETSc
from torch import Tensor

from spon.fem.one_factor import Factor, PivotingFactor, SingularMatrixError, petsc_matrix

if TYPE_CHECKING:
    from spon.fem.factor import SparseLU

__all__ = ["MultigridFactor"]

_RTOL = 1e-12
_MAX_ITERATIONS = 300
# Against rounding of the products, and against the load: beyond it no digit could be trusted.
_BACKWARD_ERROR = 1e-11
_GROWTH = 1e13
_CONSTANTS = 1e-13
_PREFIX = "spon_multigrid_"
# Chebyshev's iteration on the levels, with the diagonal or with relaxation: the first is faster by
# up to a fifth, the second stands tensors that jump by many orders of magnitude.
_SMOOTHERS = ("jacobi", "sor")
_log = logging.getLogger("spon")


@contextmanager
def _smoothing(smoother: str) -> Iterator[None]:
    """Options of the levels, which PETSc reads from its database alone."""
    options, wanted = PETSc.Options(_PREFIX), {"ksp_type": "chebyshev", "pc_type": smoother}
    mine = {f"mg_levels_{key}": value for key, value in wanted.items()}
    mine = {key: value for key, value in mine.items() if not options.hasName(key)}
    for key, value in mine.items():
        options[key] = value
    try:
        yield
    finally:
        for key in mine:
            options.delValue(key)


class MultigridFactor(Factor):
    """A symmetric positive definite matrix; each solve iterates.

    Conjugate gradients, preconditioned by PETSc's algebraic multigrid by aggregation, reduce the
    norm of the residual that belongs to the preconditioner, which does not depend on the mesh, by
    1e-12. Time and memory are linear in the number of unknowns, also in three dimensions. Where
    they do not converge, with either of two smoothers, MUMPS takes over, which is logged. Options
    of PETSc for them have the prefix ``spon_multigrid_``.

    Parameters
    ----------
    lu : SparseLU
        The pattern.
    values : Tensor, shape (nnz,)

    Raises
    ------
    SingularMatrixError
        If constants are in the kernel. Of other kernels `solve` knows only where it meets them.
    """

    def __init__(self, lu: SparseLU, values: Tensor) -> None:
        self._lu, self._values = lu, values
        self._direct: PivotingFactor | None = None
        block = lu.block(values)
        ones = np.ones(lu.unknowns)
        if (abs(block @ ones) <= _CONSTANTS * (abs(block) @ ones)).all():
            raise SingularMatrixError(lu.unknowns)
        self._matrix = petsc_matrix(block)
        self._matrix.setOption(PETSc.Mat.Option.SPD, True)
        self._b, self._x = self._matrix.createVecs()
        self._lock = threading.Lock()
        self._smoothers = list(_SMOOTHERS)
        self._ksp = self._iteration(self._smoothers.pop(0))

    def _iteration(self, smoother: str) -> PETSc.KSP:
        ksp = PETSc.KSP().create(comm=PETSc.COMM_SELF)
        # What somebody tells PETSc about smoothers is not meant for these.
        ksp.setOptionsPrefix(_PREFIX)
        ksp.setOperators(self._matrix)
        ksp.setType("cg")
        ksp.setNormType(PETSc.KSP.NormType.NATURAL)
        ksp.setTolerances(rtol=_RTOL, atol=0.0, max_it=_MAX_ITERATIONS)
        ksp.getPC().setType("gamg")
        with _smoothing(smoother):
            ksp.setUp()
        return ksp

    def solve(self, b: Tensor, transposed: bool = False) -> Tensor:
        """Solve for each row; see `Factor.solve`. NaN for rows with NaN or infinity.

        Raises
        ------
        SingularMatrixError
            If neither the iteration nor MUMPS solves a system.
        """
        x = torch.zeros_like(b, memory_format=torch.contiguous_format)
        for row, out in zip(b, x, strict=True):
            load = row[self._lu.free]
            size = load.abs().max()
            if not size.isfinite():
                out.fill_(torch.nan)
            elif size > 0:
                # The norm of a tiny load underflows. PETSc lets other threads run during a solve.
                with self._lock:
                    out[self._lu.free] = size * self._solve(load / size)
        return x

    def _solve(self, b: Tensor) -> Tensor:
        while self._direct is None:
            self._b.array_w[:] = b.numpy()
            self._x.set(0.0)
            self._ksp.solve(self._b, self._x)
            x = torch.from_numpy(self._x.array_r.copy())
            reason = self._ksp.getConvergedReason()
            if reason > 0 and self._is_right(x, b):
                return x
            iterations = self._ksp.getIterationNumber()
            if self._smoothers:
                self._ksp = self._iteration(self._smoothers.pop(0))
                continue
            _log.info(
                "Conjugate gradients for %d unknowns ended after %d iterations (PETSc's reason "
                "%d): MUMPS factorises the matrix.",
                self._lu.unknowns,
                iterations,
                reason,
            )
            self._direct = PivotingFactor(self._lu, self._values, symmetric=True)
        x = self._direct.solve_unknowns(b)
        if not self._is_right(x, b):
            raise SingularMatrixError(self._lu.unknowns)
        return x

    def _is_right(self, x: Tensor, b: Tensor) -> bool:
        """Whether a solution is backward stable, and not so large that it has no digit."""
        whole = torch.zeros(1, self._lu.size, dtype=torch.float64)
        whole[0, self._lu.free] = x
        values = self._values[None]
        product = self._lu.multiply(values, whole)[0, self._lu.free]
        size = self._lu.multiply(values.abs(), whole.abs())[0, self._lu.free].max()
        wrong, load = (product - b).abs().max(), b.abs().max()
        # Asked in this direction, NaN is refused, too.
        return bool(wrong <= _BACKWARD_ERROR * (size + load) and size <= _GROWTH * load)
