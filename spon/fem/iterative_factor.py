"""Conjugate gradients with algebraic multigrid, in the place of a factorisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from firedrake.petsc import PETSc
from torch import Tensor

from spon.fem.one_factor import Factor, PivotingFactor, SingularMatrixError, int32

if TYPE_CHECKING:
    from spon.fem.factor import SparseLU

__all__ = ["MultigridFactor"]

_RTOL = 1e-12
_MAX_ITERATIONS = 300
_RESIDUAL = 1e-8


class MultigridFactor(Factor):
    """A symmetric positive definite matrix; each solve iterates.

    Conjugate gradients, preconditioned by PETSc's algebraic multigrid by aggregation, reduce the
    preconditioned residual by 1e-12, in the norm that does not depend on the mesh. Time and memory
    are linear in the number of unknowns, also in three dimensions. Where they do not converge (a
    matrix that is nearly singular, or a contrast that the aggregates miss), MUMPS takes over.

    Parameters
    ----------
    lu : SparseLU
        The pattern.
    values : Tensor, shape (nnz,)
    """

    def __init__(self, lu: SparseLU, values: Tensor) -> None:
        self._lu, self._values = lu, values
        self._direct: PivotingFactor | None = None
        block = lu.block(values)
        matrix = PETSc.Mat().createAIJ(
            block.shape, csr=(*int32(block), block.data), comm=PETSc.COMM_SELF
        )
        matrix.setOption(PETSc.Mat.Option.SPD, True)
        self._ksp = PETSc.KSP().create(comm=PETSc.COMM_SELF)
        self._ksp.setOperators(matrix)
        self._ksp.setType("cg")
        self._ksp.setNormType(PETSc.KSP.NormType.NATURAL)
        self._ksp.setTolerances(rtol=_RTOL, atol=0.0, max_it=_MAX_ITERATIONS)
        self._ksp.getPC().setType("gamg")
        self._b, self._x = matrix.createVecs()

    def solve(self, b: Tensor, transposed: bool = False) -> Tensor:
        """Solve for each row; see `Factor.solve`.

        Raises
        ------
        SingularMatrixError
            If neither the iteration nor MUMPS solves a system.
        """
        free, x = self._lu.free, torch.zeros_like(b, memory_format=torch.contiguous_format)
        for i, row in enumerate(b):
            if self._direct is None:
                self._b.array_w[:] = row.numpy()[free]
                self._x.set(0.0)
                self._ksp.solve(self._b, self._x)
                if self._ksp.getConvergedReason() > 0:
                    x[i].numpy()[free] = self._x.array_r
                    continue
                self._direct = PivotingFactor(self._lu, self._values)
            x[i] = self._direct.solve(row[None])[0]
            self._judge(row, x[i])
        return x

    def _judge(self, b: Tensor, x: Tensor) -> None:
        residual = (self._lu.multiply(self._values[None], x[None])[0] - b)[self._lu.free]
        # Asked in this direction, NaN is refused, too.
        if not residual.abs().max() <= _RESIDUAL * b[self._lu.free].abs().max():
            raise SingularMatrixError(self._lu.unknowns)
