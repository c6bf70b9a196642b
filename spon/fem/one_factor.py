"""The factorisation of one sparse matrix."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from firedrake.petsc import DEFAULT_DIRECT_SOLVER_PARAMETERS, PETSc
from torch import Tensor

from spon.fem.lu_kernels import LANES, call

if TYPE_CHECKING:
    from spon.fem.factor import SparseLU

__all__ = [
    "Factor",
    "PivotingFactor",
    "SingularMatrixError",
    "StaticFactor",
    "int32",
    "petsc_matrix",
]

# The pivots decide about memory that MUMPS sets aside beforehand: per cent above its estimate, and
# what it says where these are not enough, or the machine's is not (its users' guide, section 8).
_MORE_MEMORY = (200, 2000)
_TOO_LITTLE = (-8, -9, -11, -12, -14, -15, -17, -19, -20)
_NONE_LEFT = -13
_NO_MEMORY = "MUMPS found not enough memory to factorise a matrix of {} unknowns."


class SingularMatrixError(ArithmeticError):
    """A matrix has no inverse, or none of which a digit could be trusted.

    Attributes
    ----------
    samples : list of int
        Which matrices of a batch.
    size : int
        Number of unknowns.
    """

    def __init__(self, size: int, samples: Sequence[int] | None = None, count: int = 1) -> None:
        self.samples, self.size = [0] if samples is None else list(samples), size
        which = "" if samples is None else f" of {_listed(self.samples)} of a batch of {count}"
        super().__init__(
            f"The matrix{which} ({size} x {size} on the free dofs) is singular to working "
            "precision. A problem that determines its solution up to a constant, a rigid motion or "
            "a pressure level needs a Dirichlet condition, a lower-order term, or a multiplier for "
            "the mean."
        )


class Factor:
    """The factorisation of one matrix."""

    # Whether all pivots are positive: a symmetric matrix is then positive definite.
    positive = True

    def solve(self, b: Tensor, transposed: bool = False) -> Tensor:
        """Solve for each row.

        Parameters
        ----------
        b : Tensor, shape (batch, size)
            float64 on the CPU. Entries at dofs that are no unknowns are ignored.
        transposed : bool, optional
            Solve with the transpose.

        Returns
        -------
        Tensor, shape (batch, size)
            Zero at the dofs that are no unknowns.
        """
        raise NotImplementedError


class StaticFactor(Factor):
    """LU without pivoting of one matrix, for many right-hand sides.

    Parameters
    ----------
    lu : SparseLU
        The pattern.
    values : Tensor, shape (1, nnz)
    symmetric : bool
    """

    def __init__(self, lu: SparseLU, values: Tensor, symmetric: bool) -> None:
        self._lu, self._symmetric = lu, symmetric
        n, (lp, lc), (up, uc) = lu.unknowns, lu.lower, lu.upper
        self._entries = (*(torch.empty(k, dtype=torch.float64) for k in (len(lc), len(uc), n)),)
        call(
            "factor_one", n, lu.rows, lu.cols, lu.source, values,
            lp, lc, up, uc, *self._entries, lu.scratch(1),
        )  # fmt: skip
        self.positive = bool((self._entries[2] > 0).all())

    def solve(self, b: Tensor, transposed: bool = False) -> Tensor:
        """Solve for each row; see `Factor.solve`."""
        lu, x = self._lu, torch.zeros_like(b, memory_format=torch.contiguous_format)
        # The solve with the transpose of the factors writes more, and takes half as long again.
        transposed = transposed and not self._symmetric
        call(
            "solve_one", lu.unknowns, len(b), *map(ctypes.c_int64, (lu.size, *b.stride())),
            int(transposed), lu.dof, lu.place, *lu.lower, *lu.upper, *self._entries, b, x,
            lu.scratch(4 * LANES if len(b) > LANES else LANES),
        )  # fmt: skip
        return x


@contextmanager
def _without_options_of_others() -> Iterator[None]:
    """What a user tells MUMPS, such as compression, is not meant for what must be exact.

    A prefix does not keep it away: PETSc reads these options for the factor, which has none.
    """
    options = PETSc.Options()
    hidden = {k: v for k, v in options.getAll().items() if k.startswith("mat_mumps_")}
    for key in hidden:
        options.delValue(key)
    try:
        yield
    finally:
        for key, value in hidden.items():
            options[key] = value


class PivotingFactor(Factor):
    """Firedrake's direct solver through PETSc.

    Parameters
    ----------
    lu : SparseLU
        The pattern.
    values : Tensor, shape (nnz,)
    symmetric : bool, optional
        Whether the matrix is, which takes half the memory with MUMPS.
    definite : bool, optional
        Whether it is positive definite, too: no pivots are looked for.

    Raises
    ------
    SingularMatrixError
    MemoryError
    """

    def __init__(
        self, lu: SparseLU, values: Tensor, symmetric: bool = False, definite: bool = False
    ) -> None:
        self._lu = lu
        self._matrix = petsc_matrix(lu.block(values))
        self._package = DEFAULT_DIRECT_SOLVER_PARAMETERS["mat_solver_type"]
        # MUMPS takes symmetric matrices that are not definite, other packages want definite ones.
        self._symmetric = symmetric and (definite or self._package == "mumps")
        self._matrix.setOption(PETSc.Mat.Option.SYMMETRIC, self._symmetric)
        self._matrix.setOption(PETSc.Mat.Option.SPD, self._symmetric and definite)
        for more in _MORE_MEMORY:
            try:
                with _without_options_of_others():
                    enough = self._set_up(more)
            except PETSc.Error as error:
                raise SingularMatrixError(lu.unknowns) from error
            if enough:
                break
        else:
            raise MemoryError(_NO_MEMORY.format(lu.unknowns))
        self._b, self._x = self._matrix.createVecs()
        # PETSc lets other threads run during a solve.
        self._lock = threading.Lock()

    def _set_up(self, more: int) -> bool:
        """Factorise; whether the memory was enough, of which so many per cent more are there."""
        self._pc = pc = PETSc.PC().create(comm=PETSc.COMM_SELF)
        pc.setOperators(self._matrix)
        pc.setType("cholesky" if self._symmetric else "lu")
        pc.setFactorSolverType(self._package)
        pc.setFactorSetUpSolverType()
        if self._package == "mumps":
            pc.getFactorMatrix().setMumpsIcntl(14, more)
        pc.setUp()
        self._factor = pc.getFactorMatrix()
        # PETSc says nothing of what went wrong.
        state = self._factor.getMumpsInfog(1) if self._package == "mumps" else 0
        if state == _NONE_LEFT:
            raise MemoryError(_NO_MEMORY.format(self._lu.unknowns))
        if state < 0 and state not in _TOO_LITTLE:
            raise SingularMatrixError(self._lu.unknowns)
        return state >= 0

    def solve(self, b: Tensor, transposed: bool = False) -> Tensor:
        """Solve for each row; see `Factor.solve`."""
        x = torch.zeros_like(b, memory_format=torch.contiguous_format)
        free = self._lu.free
        if len(b) > 1 and (self._symmetric or not transposed):
            # Several at once take a third of the time.
            x[:, free] = self._solve_columns(b[:, free])
            return x
        for row, out in zip(b, x, strict=True):
            out[free] = self.solve_unknowns(row[free], transposed)
        return x

    def _solve_columns(self, b: Tensor) -> Tensor:
        """Solve for the unknowns alone, of shape (batch, unknowns)."""
        # Rows here are columns there.
        right, left = (
            PETSc.Mat().createDense(b.shape[::-1], array=a.numpy().T, comm=PETSc.COMM_SELF)
            for a in (b.contiguous(), torch.empty_like(b, memory_format=torch.contiguous_format))
        )
        with self._lock:
            self._factor.matSolve(right, left)
        found = torch.from_numpy(left.getDenseArray().T.copy())
        right.destroy()
        left.destroy()
        return found

    def solve_unknowns(self, b: Tensor, transposed: bool = False) -> Tensor:
        """Solve for the unknowns alone, of shape (unknowns,)."""
        transposed = transposed and not self._symmetric
        with self._lock:
            self._b.array_w[:] = b.numpy()
            (self._factor.solveTranspose if transposed else self._factor.solve)(self._b, self._x)
            return torch.from_numpy(self._x.array_r.copy())


def int32(matrix: Any) -> tuple[np.ndarray, np.ndarray]:
    """Pointers and columns of a CSR matrix."""
    return matrix.indptr.astype(np.int32), matrix.indices.astype(np.int32)


def petsc_matrix(matrix: Any) -> PETSc.Mat:
    """A CSR matrix for PETSc, on this process alone."""
    csr = (*int32(matrix), matrix.data)
    return PETSc.Mat().createAIJ(matrix.shape, csr=csr, comm=PETSc.COMM_SELF)


def _listed(samples: Sequence[int]) -> str:
    names = ", ".join(map(str, samples[:5])) + (", ..." if len(samples) > 5 else "")
    return f"sample{'s' if len(samples) > 1 else ''} {names}"
