"""Sparse factorisations: analyse a pattern once, factorise many matrices, solve many columns.

In the manner of lineax: ``state = lu.factor(values)``, ``state.solve(b)`` and
``state.solve(b, transposed=True)``, one factorisation for the system and for its adjoint.

The loops of `spon.fem.lu_kernels` solve for a batch several times faster than MUMPS, UMFPACK,
CHOLMOD and PETSc's LU, which were all tried: these go through the factor once for each column, or
through dense blocks that are too small in 2D to pay.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from spon.fem.iterative_factor import MultigridFactor
from spon.fem.lanes import Lanes, in_lanes
from spon.fem.lu_kernels import LANES, call
from spon.fem.one_factor import (
    Factor,
    PivotingFactor,
    SingularMatrixError,
    StaticFactor,
    int32,
    petsc_matrix,
)

__all__ = ["Factor", "Factors", "SingularMatrixError", "SparseLU", "solve_definite"]

# Beyond these numbers of operations dense blocks decide, which MUMPS has and the loops here have
# not: for one matrix, whose solves are many and still quicker here, or symmetric ones, and for each
# of a batch of others.
_ONE_OPERATIONS = 2e10
_EACH_OPERATIONS = 5e8
# Operations for each unknown from which iterations are quicker: about 8,000 unknowns in three
# dimensions.
_ITERATE_FROM = 1e5
_BACKWARD_ERROR = 1e-11
_FORWARD_ERROR = 1e-3
_WASTE = 1.5  # products that rows of a block may have, for one that they need


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
    dof, place : int array, shape (unknowns,)
        The unknowns in the order of the dofs, and the place of each in that of the elimination.
    source, rows, cols : int array
        The matrix of the unknowns as CSR, in the order of the elimination, and from where in the
        pattern each entry comes.
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
        # Rows, columns, and the entries of the pattern that are between unknowns.
        self._between = (*int32(block), block.data.astype(np.int64) - 1)
        pattern = block + block.T
        pattern.sort_indices()
        graph = petsc_matrix(pattern)
        order = graph.getOrdering("nd")[0].getIndices()
        graph.destroy()
        # In the order of the dofs, and each one's place in the order of the elimination.
        self.dof = self.free.astype(np.int32)
        self.place = np.argsort(order).astype(np.int32)
        ordered = block[order][:, order].tocsr()
        ordered.sort_indices()
        # Where each entry comes from; entries of the pattern alone come from nowhere.
        self.source = ordered.data.astype(np.int32) - 1
        self.rows, self.cols = int32(ordered)
        n = self.unknowns
        p, c = int32(pattern[order][:, order].tocsr())
        parent, mark = np.empty(n, np.int32), np.empty(n, np.int32)
        call("elimination_tree", n, p, c, parent, mark)
        self._tree = (p, c, parent)
        below = np.zeros(n, np.int32)
        count = self._rows_of_lower(np.empty(n + 1, np.int64), None, below)
        self.fill = 2 * count + n
        self.operations = 2.0 * float((below.astype(float) ** 2).sum())
        if count >= np.iinfo(np.int32).max:  # more than the loops can number
            self.operations = np.inf

    def _rows_of_lower(self, starts: Any, columns: Any, below: Any = None) -> int:
        n, mark = self.unknowns, np.full(self.unknowns, -1, np.int32)
        return int(call("row_pattern", n, *self._tree, mark, starts, columns, below))

    @property
    def iterates(self) -> bool:
        """Whether definite matrices are better not factorised."""
        return self.operations > min(_ITERATE_FROM * self.unknowns, _ONE_OPERATIONS)

    # Where others factorise there are many entries, of which nobody asks.
    @cached_property
    def upper(self) -> tuple[np.ndarray, np.ndarray]:
        """Pattern of U without the diagonal, as CSR."""
        n = self.unknowns
        starts, found = np.empty(n + 1, np.int64), np.empty(self.fill // 2, np.int32)
        self._rows_of_lower(starts, found)
        lower = sp.csr_matrix((np.ones(len(found), np.int8), found, starts), shape=(n, n))
        return int32(lower.T.tocsr())

    @cached_property
    def lower(self) -> tuple[np.ndarray, np.ndarray]:
        """Pattern of L without the diagonal, as CSR."""
        pointers, columns = self.upper
        n, ones = self.unknowns, np.ones(len(columns), np.int8)
        # Transposing sorts the columns of a row.
        return int32(sp.csr_matrix((ones, columns, pointers), shape=(n, n)).T.tocsr())

    @cached_property
    def blocks(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of L that are eliminated together, and their columns."""
        n, (pointers, columns) = self.unknowns, self.lower
        first, starts = np.empty(n + 1, np.int32), np.empty(n + 1, np.int32)
        found, mark = np.empty(len(columns), np.int32), np.full(n, -1, np.int32)
        count = call(
            "row_blocks", n, pointers, columns, ctypes.c_double(_WASTE), first, starts, found, mark
        )
        used = slice(0, count + 1)
        return first[used].copy(), starts[used].copy(), found[: starts[count]].copy()

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
        symmetric = self.is_symmetric(rows[0]) if symmetric is None else symmetric
        if not self.pivoting:
            state = StaticFactor(self, rows, symmetric)
            stable, regular = self._judge(rows, state)
            if stable.all() and regular.all():
                return state
        pivoted = PivotingFactor(self, rows[0], symmetric)
        if not self._judge(rows, pivoted)[1].all():
            raise SingularMatrixError(self.unknowns)
        self.pivoting = True
        return pivoted

    def factor_each(
        self,
        values: Tensor,
        check: bool = True,
        reuse: Factors | None = None,
        definite: bool = False,
    ) -> Factors:
        """Factorise the matrices of a batch.

        Symmetric matrices, which are found out, take half the time and half the memory.

        Parameters
        ----------
        values : Tensor, shape (batch, nnz)
            float64 on the CPU.
        check : bool, optional
            False leaves out the test of each factorisation: for matrices near to tested ones.
        reuse : Factors, optional
            Factors of other matrices, whose memory is overwritten.
        definite : bool, optional
            True says that all of them are symmetric and positive definite. Where factors would fill
            up (many unknowns in 3D) their solves are iterations then, see `MultigridFactor`.

        Raises
        ------
        SingularMatrixError
            Names the samples.
        """
        values = values.contiguous()
        if definite and self.iterates:
            return self._single(values, MultigridFactor)
        symmetric = definite or self.is_symmetric(values)
        pivoting = partial(PivotingFactor, symmetric=symmetric)
        whole = self.pivoting or (not symmetric and self.operations > _EACH_OPERATIONS)
        if whole:
            state = self._single(values, pivoting)
        else:
            old = [] if reuse is None else reuse.lanes
            state = Factors(len(values), in_lanes(self, values, symmetric, old))
        if not check:
            return state
        stable, regular = self._judge(values, state)
        if not whole and not (stable & regular).all():
            samples = np.flatnonzero(~(stable & regular)).tolist()
            state = self._single(values, pivoting, state, samples)
            stable, regular = self._judge(values, state)
            # Once pivots were needed, they will be needed again.
            self.pivoting = bool(regular.all())
        if not regular.all():
            raise SingularMatrixError(self.unknowns, np.flatnonzero(~regular).tolist(), len(values))
        return state

    def solve_each(self, values: Tensor, b: Tensor, definite: bool = False) -> Tensor:
        """Solve one system with each matrix of a batch; no more than eight factors are kept.

        Parameters
        ----------
        values : Tensor, shape (batch, nnz)
        b : Tensor, shape (batch, size)
        definite : bool, optional
            As for `factor_each`.

        Returns
        -------
        Tensor, shape (batch, size)

        Raises
        ------
        SingularMatrixError
            Names the samples.
        """
        x, factors = torch.empty_like(b, memory_format=torch.contiguous_format), None
        for start in range(0, len(values), LANES):
            part = slice(start, start + LANES)
            # What cannot be used again goes before the next is made.
            factors = factors if factors is not None and factors.lanes else None
            try:
                factors = self.factor_each(values[part], reuse=factors, definite=definite)
                x[part] = factors.solve(b[part])
            except SingularMatrixError as error:
                samples = [start + i for i in error.samples]
                raise SingularMatrixError(self.unknowns, samples, len(values)) from error
        return x

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

    def is_stable(self, values: Tensor, state: Factor) -> bool:
        """Whether solutions with the factor of a matrix, (nnz,), leave no residual."""
        return bool(self._judge(values[None], state)[0].all())

    def is_symmetric(self, values: Tensor, tolerance: float = 1e-14) -> bool:
        """Whether matrices, of shape (..., nnz), are symmetric on the unknowns.

        Up to round-off of their assembly, against the largest entry of each row.
        """
        rows = values.reshape(-1, len(self.columns)).contiguous()
        return bool(
            call(
                "symmetric", self.size, len(rows), ctypes.c_int64(rows.stride(0)),
                ctypes.c_double(tolerance), self.pointers, self.columns, self._mirror,
                self._is_free, rows,
            )
        )  # fmt: skip

    @cached_property
    def _mirror(self) -> np.ndarray:
        """Place of the transposed entry of each entry of the pattern, -1 where there is none."""
        rows = np.repeat(np.arange(self.size, dtype=np.int64), np.diff(self.pointers))
        key, mirrored = rows * self.size + self.columns, self.columns * np.int64(self.size) + rows
        order = np.argsort(key)
        at = np.searchsorted(key[order], mirrored).clip(max=len(key) - 1)
        found = order[at]
        return np.where(key[found] == mirrored, found, -1).astype(np.int32)

    def block(self, values: Tensor) -> sp.csr_matrix:
        """The matrix of the unknowns."""
        pointers, columns, entries = self._between
        shape = (self.unknowns, self.unknowns)
        return sp.csr_matrix((values.numpy()[entries], columns, pointers), shape=shape)

    def _single(
        self,
        values: Tensor,
        kind: Callable[[SparseLU, Tensor], Factor],
        found: Factors | None = None,
        samples: Sequence[int] | None = None,
    ) -> Factors:
        """Factorise each matrix by itself, or some of those that lanes hold already."""
        singular: list[int] = []
        single: dict[int, Factor] = {}
        for i in range(len(values)) if samples is None else samples:
            try:
                single[i] = kind(self, values[i])
            except SingularMatrixError:
                singular.append(i)
        if singular:
            raise SingularMatrixError(self.unknowns, singular, len(values))
        return Factors(len(values), [] if found is None else found.lanes, single)

    def scratch(self, width: int) -> Tensor:
        """Memory for so many vectors of unknowns."""
        return torch.empty(self.unknowns * width, dtype=torch.float64)


class Factors:
    """The factorisations of the matrices of a batch; `SparseLU.factor_each` makes them.

    Parameters
    ----------
    count : int
        How many.
    lanes : sequence of Lanes
        Of the first matrices, the next ...; may be empty.
    single : mapping from int to Factor, optional
        Of matrices by themselves, in place of what the lanes hold.
    """

    def __init__(
        self, count: int, lanes: Sequence[Lanes], single: Mapping[int, Factor] | None = None
    ) -> None:
        self.count, self.lanes, self._single = count, lanes, single or {}

    def solve(self, b: Tensor, transposed: bool = False) -> Tensor:
        """Solve each system for its row of `b`, of shape (batch, size); see `Factor.solve`.

        Raises
        ------
        SingularMatrixError
            If iterations meet a matrix that has no inverse; names the samples.
        """
        b = b.contiguous()
        x, start = torch.zeros_like(b), 0
        for part in self.lanes:
            stop = start + part.count
            part.solve(b[start:stop], x[start:stop], transposed)
            start = stop
        singular = []
        for i, factor in self._single.items():
            try:
                x[i] = factor.solve(b[i : i + 1], transposed)[0]
            except SingularMatrixError as error:
                singular.append((i, error))
        if singular:
            first = singular[0][1]
            samples = [i for i, _ in singular]
            raise SingularMatrixError(first.size, samples, self.count) from first
        return x


def solve_definite(matrix: sp.csr_matrix, load: np.ndarray) -> np.ndarray:
    """Solve once with a symmetric positive definite matrix.

    Parameters
    ----------
    matrix : csr_matrix, shape (n, n)
    load : array, shape (n,) or (n, m)

    Returns
    -------
    array of the shape of `load`

    Raises
    ------
    SingularMatrixError
    """
    lu, values = SparseLU(matrix.indptr, matrix.indices), torch.from_numpy(matrix.data)
    factor = MultigridFactor(lu, values) if lu.iterates else lu.factor(values, symmetric=True)
    columns = torch.from_numpy(load.reshape(len(load), -1))
    result: np.ndarray = factor.solve(columns.T).T.numpy().reshape(load.shape)
    return result
