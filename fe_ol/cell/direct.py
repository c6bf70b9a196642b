"""Sparse direct solutions with stiffness matrices of one pattern."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from firedrake.petsc import PETSc
from torch import Tensor

from spon.fem.factor import SingularMatrixError

__all__ = ["DirectSolver"]

# Refinement with the factor of a matrix near by: how far, and when it is given up.
_REFINED = 1e-13
_REFINEMENTS = 8
_GAIN = 0.3


class DirectSolver:
    """One factorisation at a time, of matrices that share their pattern.

    MUMPS orders the unknowns once. Its Cholesky-like factorisation (LDL^T) of a symmetric matrix
    takes 0.6 of the time of LU, and some 0.6 of what the loops of `spon.fem.factor`, CHOLMOD,
    UMFPACK and PETSc's own took for 20,000 unknowns in the plane at best.

    Parameters
    ----------
    pointers, columns : int arrays
        The pattern as CSR, symmetric.
    free : int array
        Dofs that are unknowns.
    constraint : Tensor, shape (k, dofs), optional
        Linear functionals of the solution that vanish, by Lagrange multipliers.
    """

    def __init__(
        self, pointers: Any, columns: Any, free: Any, constraint: Tensor | None = None
    ) -> None:
        self.size = dofs = len(pointers) - 1
        numbers = np.arange(1, len(columns) + 1, dtype=np.float64)
        self._whole = sp.csr_matrix((numbers, columns, pointers), shape=(dofs, dofs))
        block = self._whole[free][:, free].tocsr()
        self._source = block.data.astype(np.int64) - 1
        self._free = np.asarray(free)
        self._extra = 0
        if constraint is not None:
            border = sp.csr_matrix(constraint.numpy()[:, free])
            border.data[np.abs(border.data) <= 1e-14 * np.abs(border.data).max()] = 0.0
            border.eliminate_zeros()
            self._extra = len(constraint)
            # The source 0 of an entry of the border is none.
            marks = sp.csr_matrix(
                (np.full(border.nnz, -1.0), border.indices, border.indptr), shape=border.shape
            )
            block = sp.bmat([[block, marks.T], [marks, None]], format="csr")
            values = sp.bmat(
                [[sp.csr_matrix((len(free), len(free))), border.T], [border, None]], format="csr"
            )
            block.sort_indices()
            values.sort_indices()
            self._is_border = block.data < 0
            self._border_values = values.data
            self._source = block.data[~self._is_border].astype(np.int64) - 1
        self._pattern = block.indptr.astype(np.int32), block.indices.astype(np.int32)
        self._data = np.zeros(len(block.indices))
        if self._extra:
            self._data[self._is_border] = self._border_values
        self._engines: dict[bool, tuple[Any, Any]] = {}
        self._factor: Any = None

    @property
    def ready(self) -> bool:
        """Whether there is a factorisation."""
        return self._factor is not None

    def factor(self, values: Tensor, symmetric: bool) -> None:
        """Factorise, and forget the last factorisation.

        Parameters
        ----------
        values : Tensor, shape (nnz,)
        symmetric : bool

        Raises
        ------
        spon.fem.SingularMatrixError
        """
        if self._extra:
            self._data[~self._is_border] = values.numpy()[self._source]
        else:
            np.take(values.numpy(), self._source, out=self._data)
        self._factor = None
        matrix, pc = self._engine(symmetric)
        matrix.setValuesCSR(*self._pattern, self._data)
        matrix.assemble()
        try:
            pc.setUp()
        except PETSc.Error as error:
            raise SingularMatrixError(len(self._free)) from error
        if pc.getFailedReason() != PETSc.PC.FailedReason.NOERROR:
            # PETSc remembers a failure: the next matrix gets a new object.
            self._engines.pop(symmetric)
            raise SingularMatrixError(len(self._free))
        self._factor = pc.getFactorMatrix()

    def solve(self, b: Tensor) -> Tensor:
        """Solve for each row.

        Parameters
        ----------
        b : Tensor, shape (k, dofs)

        Returns
        -------
        Tensor, shape (k, dofs)
            Zero at the dofs that are no unknowns.
        """
        unknowns, k = len(self._free) + self._extra, len(b)
        right = PETSc.Mat().createDense((unknowns, k), comm=PETSc.COMM_SELF)
        right.setUp()
        columns = np.zeros((unknowns, k), order="F")
        columns[: len(self._free)] = b.numpy()[:, self._free].T
        right.getDenseArray()[:] = columns
        right.assemble()
        solution = right.duplicate()
        self._factor.matSolve(right, solution)
        x = torch.zeros_like(b)
        x[:, self._free] = torch.from_numpy(solution.getDenseArray()[: len(self._free)].T.copy())
        right.destroy()
        solution.destroy()
        if not torch.isfinite(x).all():
            raise SingularMatrixError(len(self._free))
        return x

    def multiply(self, values: Tensor, x: Tensor) -> Tensor:
        """Apply the whole matrix to each row of `x`, of shape (k, dofs)."""
        self._whole.data = values.numpy()
        return torch.from_numpy(np.ascontiguousarray((self._whole @ x.numpy().T).T))

    def solve_near(self, values: Tensor, b: Tensor, project: Any, symmetric: bool) -> Tensor:
        """Solve with a matrix that is near to the factorised one, by iterative refinement.

        Parameters
        ----------
        values : Tensor, shape (nnz,)
            The matrix; it is factorised if refinement does not help.
        b : Tensor, shape (k, dofs)
        project : callable
            Takes rows of residuals to their part that counts.
        symmetric : bool

        Returns
        -------
        Tensor, shape (k, dofs)
        """
        if self.ready:
            x, size, last = self.solve(b), b.norm(dim=1), np.inf
            for _ in range(_REFINEMENTS):
                residual = project(b - self.multiply(values, x))
                residual[:, self._fixed()] = 0.0
                off = float((residual.norm(dim=1) / size.clamp_min(1e-300)).max())
                if off <= _REFINED:
                    return x
                if not off <= _GAIN * last:
                    # Round-off is no reason to factorise again.
                    if off <= 1e2 * _REFINED:
                        return x
                    break
                x, last = x + self.solve(residual), off
        self.factor(values, symmetric)
        return self.solve(b)

    def _fixed(self) -> np.ndarray:
        return np.setdiff1d(np.arange(self._whole.shape[0]), self._free)

    def _engine(self, symmetric: bool) -> tuple[Any, Any]:
        if symmetric not in self._engines:
            n = len(self._pattern[0]) - 1
            matrix = PETSc.Mat().createAIJ(
                (n, n), csr=(*self._pattern, self._data), comm=PETSc.COMM_SELF
            )
            pc = PETSc.PC().create(comm=PETSc.COMM_SELF)
            pc.setOperators(matrix)
            if symmetric:
                matrix.setOption(PETSc.Mat.Option.SYMMETRIC, True)
                matrix.setOption(PETSc.Mat.Option.SYMMETRY_ETERNAL, True)
            pc.setType("cholesky" if symmetric else "lu")
            pc.setFactorSolverType("mumps")
            pc.setFactorSetUpSolverType()
            # Pivots decide about memory that MUMPS sets aside beforehand, as a percentage.
            pc.getFactorMatrix().setMumpsIcntl(14, 100)
            self._engines[symmetric] = matrix, pc
        return self._engines[symmetric]
