"""Sparse factorisations: analyse a pattern once, factorise many matrices, solve many columns.

In the manner of lineax: ``state = lu.factor(values)``, ``state.solve(b)`` and
``state.solve(b, transposed=True)``, one factorisation for the system and for its adjoint.

The loops of `spon.fem.lu_kernels` solve for a batch several times faster than MUMPS, UMFPACK,
CHOLMOD and PETSc's LU, which were all tried: these go through the factor once for each column, or
through dense blocks that are too small in 2D to pay.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from firedrake.petsc import DEFAULT_DIRECT_SOLVER_PARAMETERS, PETSc
from torch import Tensor

from spon.fem.lu_kernels import LANES, call

__all__ = ["Factor", "Factors", "SingularMatrixError", "SparseLU"]

# Beyond these numbers of operations dense blocks decide, which MUMPS has and the loops here have
# not: for one matrix, whose solves are many and still quicker here, and for each of a batch.
_ONE_OPERATIONS = 2e10
_EACH_OPERATIONS = 5e8
_BACKWARD_ERROR = 1e-11
_FORWARD_ERROR = 1e-3


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


class SparseLU:
    """What the factorisations of all matrices of one sparsity pattern have in common.

    Unknowns are eliminated in the order of a nested dissection and without pivoting, which is
    stable for the matrices of most elliptic problems. Each factorisation is tested on a random
    vector; where pivots are needed (saddle points), or the fill is large (many unknowns in 3D),
    Firedrake's direct solver (MUMPS) takes over.

    Parameters
    ----------
    pointers : int array, shape (n + 1,)
    columns : int array, shape (nnz,)
        The pattern as CSR.
    free : int array, optional
        The dofs that are unknowns; rows and columns of the others are left out. All by default.

    Attributes
    ----------
    size : int
        Number of dofs, also of those that are no unknowns.
    unknowns : int
    fill : int
        Number of entries of L and U together.
    """

    def __init__(self, pointers: Any, columns: Any, free: Any = None) -> None:
        self.pointers = np.ascontiguousarray(pointers, np.int32)
        self.columns = np.ascontiguousarray(columns, np.int32)
        self.size = len(self.pointers) - 1
        self.free = np.arange(self.size) if free is None else np.asarray(free)
        self.unknowns = len(self.free)
        if self.unknowns == 0:
            raise ValueError(
                f"All {self.size} dofs are prescribed by boundary conditions: nothing is left to "
                "solve for."
            )
        self._is_free = np.zeros(self.size, bool)
        self._is_free[self.free] = True
        self._analyse()
        self.pivoting = self.operations > _ONE_OPERATIONS
        probe = np.zeros((1, self.size))
        probe[0, self.free] = np.random.default_rng(0).uniform(0.5, 1.5, self.unknowns)
        self._probe = torch.from_numpy(probe)

    def _analyse(self) -> None:
        """Order the unknowns and find the pattern of the factors."""
        numbers = np.arange(1, len(self.columns) + 1, dtype=np.float64)
        shape = (self.size, self.size)
        whole = sp.csr_matrix((numbers, self.columns, self.pointers), shape=shape)
        block = whole[self.free][:, self.free].tocsr()
        pattern = block + block.T
        pattern.sort_indices()
        graph = PETSc.Mat().createAIJ(
            pattern.shape,
            csr=(pattern.indptr.astype(np.int32), pattern.indices.astype(np.int32), pattern.data),
            comm=PETSc.COMM_SELF,
        )
        order = graph.getOrdering("nd")[0].getIndices()
        graph.destroy()
        # In the order of the dofs, and each one's place in the order of the elimination.
        self._dof = self.free.astype(np.int32)
        self._place = np.argsort(order).astype(np.int32)
        ordered = block[order][:, order].tocsr()
        # Where each entry comes from; entries of the pattern alone come from nowhere.
        self._source = ordered.data.astype(np.int32) - 1
        self._rows, self._cols = _int32(ordered)
        n = self.unknowns
        p, c = _int32(pattern[order][:, order].tocsr())
        parent, mark = np.empty(n, np.int32), np.empty(n, np.int32)
        call("elimination_tree", n, p, c, parent, mark)
        starts = np.empty(n + 1, np.int64)
        mark[:] = -1
        count = call("row_pattern", n, p, c, parent, mark, starts, None)
        self.fill, self.operations = 2 * count + n, np.inf
        if count < np.iinfo(np.int32).max:
            found = np.empty(count, np.int32)
            mark[:] = -1
            call("row_pattern", n, p, c, parent, mark, starts, found)
            lower = sp.csr_matrix((np.ones(count, np.int8), found, starts), shape=(n, n))
            upper = lower.T.tocsr()  # transposing sorts the columns of a row
            self._lower, self._upper = _int32(upper.T.tocsr()), _int32(upper)
            self.operations = 2.0 * float((np.diff(upper.indptr).astype(float) ** 2).sum())

    def factor(self, values: Tensor, symmetric: bool | None = None) -> Factor:
        """Factorise one matrix.

        Parameters
        ----------
        values : Tensor, shape (nnz,)
            float64 on the CPU, in the order of the pattern.
        symmetric : bool, optional
            Whether the matrix is symmetric, if that is known.

        Raises
        ------
        SingularMatrixError
        """
        rows = values[None].contiguous()
        if not self.pivoting:
            state = _StaticFactor(
                self, rows, self.is_symmetric(rows[0]) if symmetric is None else symmetric
            )
            stable, regular = self._judge(rows, state)
            if stable.all() and regular.all():
                return state
        pivoted = _PivotingFactor(self, rows[0])
        if not self._judge(rows, pivoted)[1].all():
            raise SingularMatrixError(self.unknowns)
        self.pivoting = True
        return pivoted

    def factor_each(
        self, values: Tensor, check: bool = True, reuse: Factors | None = None
    ) -> Factors:
        """Factorise the matrices of a batch.

        Parameters
        ----------
        values : Tensor, shape (batch, nnz)
            float64 on the CPU.
        check : bool, optional
            False leaves out the test of each factorisation: for matrices near to tested ones.
        reuse : Factors, optional
            Factors of as many matrices whose memory is overwritten.

        Raises
        ------
        SingularMatrixError
            Names the samples.
        """
        values = values.contiguous()
        whole = self.pivoting or self.operations > _EACH_OPERATIONS
        state = Factors(self, values, reuse, static=not whole)
        if whole:
            state.pivot(values, range(len(values)))
        if not check:
            return state
        stable, regular = self._judge(values, state)
        if not whole and not (stable & regular).all():
            state.pivot(values, np.flatnonzero(~(stable & regular)).tolist())
            stable, regular = self._judge(values, state)
            # Once pivots were needed, they will be needed again.
            self.pivoting = bool(regular.all())
        if not regular.all():
            raise SingularMatrixError(self.unknowns, np.flatnonzero(~regular).tolist(), len(values))
        return state

    def multiply(self, values: Tensor, x: Tensor, transposed: bool = False) -> Tensor:
        """Apply the whole matrices, of shape (1 or batch, nnz), to x of shape (batch, size)."""
        x, y = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        step = ctypes.c_int64(0 if len(values) == 1 else values.stride(0))
        call(
            "multiply", self.size, len(x), step, int(transposed),
            self.pointers, self.columns, values, x, y,
        )  # fmt: skip
        return y

    def _judge(self, values: Tensor, state: Factor | Factors) -> tuple[np.ndarray, np.ndarray]:
        """Whether each factorisation is stable, and whether its matrix is regular."""
        z = self._probe.expand(len(values), -1)
        b = self.multiply(values, z)
        x = state.solve(b)
        residual = (self.multiply(values, x) - b)[:, self.free].abs().amax(1)
        scale = values.abs().amax(1) * x.abs().amax(1) + b.abs().amax(1)
        error = (x - z).abs().amax(1)
        # Asked in this direction, NaN and infinity are neither stable nor regular.
        return (residual <= _BACKWARD_ERROR * scale).numpy(), (error <= _FORWARD_ERROR).numpy()

    def is_symmetric(self, values: Tensor, tolerance: float = 1e-14) -> bool:
        """Whether the matrix of the unknowns is symmetric up to round-off."""
        block = self._block(values)
        return bool(abs(block - block.T).max() <= tolerance * abs(block).max())

    def _block(self, values: Tensor) -> Any:
        """The matrix of the unknowns."""
        shape = (self.size, self.size)
        whole = sp.csr_matrix((values.numpy(), self.columns, self.pointers), shape=shape)
        return whole[self.free][:, self.free].tocsr()

    def _scratch(self, width: int) -> Tensor:
        return torch.empty(self.unknowns * width, dtype=torch.float64)


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


class _StaticFactor(Factor):
    def __init__(self, lu: SparseLU, values: Tensor, symmetric: bool) -> None:
        self._lu, self._symmetric = lu, symmetric
        n, (lp, lc), (up, uc) = lu.unknowns, lu._lower, lu._upper
        self._entries = (_doubles(len(lc)), _doubles(len(uc)), _doubles(n))
        call(
            "factor_one", n, lu._rows, lu._cols, lu._source, values,
            lp, lc, up, uc, *self._entries, lu._scratch(1),
        )  # fmt: skip
        self.positive = bool((self._entries[2] > 0).all())

    def solve(self, b: Tensor, transposed: bool = False) -> Tensor:
        lu, x = self._lu, torch.zeros_like(b, memory_format=torch.contiguous_format)
        # The solve with the transpose of the factors writes more, and takes half as long again.
        transposed = transposed and not self._symmetric
        call(
            "solve_one", lu.unknowns, len(b), *map(ctypes.c_int64, (lu.size, *b.stride())),
            int(transposed), lu._dof, lu._place, *lu._lower, *lu._upper, *self._entries, b, x,
            lu._scratch(4 * LANES if len(b) > LANES else LANES),
        )  # fmt: skip
        return x


class _PivotingFactor(Factor):
    """Firedrake's direct solver through PETSc."""

    def __init__(self, lu: SparseLU, values: Tensor) -> None:
        self._lu = lu
        block = lu._block(values)
        matrix = PETSc.Mat().createAIJ(
            block.shape, csr=(*_int32(block), block.data), comm=PETSc.COMM_SELF
        )
        pc = PETSc.PC().create(comm=PETSc.COMM_SELF)
        pc.setOperators(matrix)
        pc.setType("lu")
        pc.setFactorSolverType(DEFAULT_DIRECT_SOLVER_PARAMETERS["mat_solver_type"])
        # The pivots decide about memory that MUMPS sets aside beforehand, as a percentage.
        pc.setFactorSetUpSolverType()
        if pc.getFactorSolverType() == "mumps":
            pc.getFactorMatrix().setMumpsIcntl(14, 200)
        try:
            pc.setUp()
        except PETSc.Error as error:
            raise SingularMatrixError(lu.unknowns) from error
        self._pc, self._factor = pc, pc.getFactorMatrix()
        self._b, self._x = matrix.createVecs()

    def solve(self, b: Tensor, transposed: bool = False) -> Tensor:
        free, x = self._lu.free, torch.zeros_like(b, memory_format=torch.contiguous_format)
        rows, solution = b.numpy(), x.numpy()
        run = self._factor.solveTranspose if transposed else self._factor.solve
        for i in range(len(rows)):
            self._b.array_w[:] = rows[i, free]
            run(self._b, self._x)
            solution[i, free] = self._x.array_r
        return x


class Factors:
    """The factorisations of the matrices of a batch; `SparseLU.factor_each` makes them."""

    def __init__(
        self, lu: SparseLU, values: Tensor, reuse: Factors | None = None, static: bool = True
    ) -> None:
        self._lu, self.count = lu, len(values)
        self._pivoted: dict[int, _PivotingFactor] = {}
        self._blocks: list[tuple[Tensor, Tensor, Tensor]] = []
        if not static:
            return
        n, (lp, lc), (up, uc) = lu.unknowns, lu._lower, lu._upper
        sizes = [LANES * k for k in (len(lc), len(uc), n)]
        stride, scratch = ctypes.c_int64(values.stride(0)), lu._scratch(LANES)
        for start in range(0, self.count, LANES):
            if reuse is not None and reuse._blocks:
                entries = reuse._blocks[start // LANES]
            else:
                entries = (_doubles(sizes[0]), _doubles(sizes[1]), _doubles(sizes[2]))
            rows = values[start : start + LANES]
            call(
                "factor_lanes", n, len(rows), stride, lu._rows, lu._cols, lu._source, rows,
                lp, lc, up, uc, *entries, scratch,
            )  # fmt: skip
            self._blocks.append(entries)

    def pivot(self, values: Tensor, samples: Any) -> None:
        """Factorise some of the matrices again, with pivots."""
        singular = []
        for i in samples:
            try:
                self._pivoted[i] = _PivotingFactor(self._lu, values[i])
            except SingularMatrixError:
                singular.append(i)
        if singular:
            raise SingularMatrixError(self._lu.unknowns, singular, self.count)

    def solve(self, b: Tensor, transposed: bool = False) -> Tensor:
        """Solve each system for its row of `b`, of shape (batch, size); see `Factor.solve`."""
        lu, b = self._lu, b.contiguous()
        x, scratch = torch.zeros_like(b), lu._scratch(LANES)
        for start, entries in zip(range(0, self.count, LANES), self._blocks, strict=False):
            rows = b[start : start + LANES]
            call(
                "solve_lanes", lu.unknowns, len(rows), ctypes.c_int64(lu.size), int(transposed),
                lu._dof, lu._place, *lu._lower, *lu._upper, *entries, rows, x[start:], scratch,
            )  # fmt: skip
        for i, factor in self._pivoted.items():
            x[i] = factor.solve(b[i : i + 1], transposed)[0]
        return x


def _doubles(count: int) -> Tensor:
    # Tensors, because their memory begins at the border of a vector register.
    return torch.empty(count, dtype=torch.float64)


def _int32(matrix: Any) -> tuple[np.ndarray, np.ndarray]:
    return matrix.indptr.astype(np.int32), matrix.indices.astype(np.int32)


def _listed(samples: Sequence[int]) -> str:
    names = ", ".join(map(str, samples[:5])) + (", ..." if len(samples) > 5 else "")
    return f"sample{'s' if len(samples) > 1 else ''} {names}"
