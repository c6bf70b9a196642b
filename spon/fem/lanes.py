"""Factorisations of up to eight matrices of one pattern, side by side in the vector registers."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from spon.fem.lu_kernels import LANES, call

if TYPE_CHECKING:
    from spon.fem.factor import SparseLU

__all__ = ["Lanes", "in_lanes"]


class Lanes:
    """LU without pivoting of some matrices, or L D L^T if all of them are symmetric.

    Parameters
    ----------
    lu : SparseLU
        The pattern.
    values : Tensor, shape (count, nnz)
        At most eight matrices.
    symmetric : bool
        Whether all of them are.
    reuse : Lanes, optional
        Whose memory is overwritten, if it is of the right size.
    """

    def __init__(
        self, lu: SparseLU, values: Tensor, symmetric: bool, reuse: Lanes | None = None
    ) -> None:
        self._lu, self.count, self._symmetric = lu, len(values), symmetric
        self._width = LANES if self.count > LANES // 2 else LANES // 2
        n, (lp, lc), (up, uc) = lu.unknowns, lu.lower, lu.upper
        sizes = [self._width * k for k in ([] if symmetric else [len(lc)]) + [len(uc), n]]
        old = [] if reuse is None else reuse.entries
        # Tensors, because their memory begins at the border of a vector register.
        self.entries: list[Tensor] = (
            old
            if [len(x) for x in old] == sizes
            else [torch.empty(k, dtype=torch.float64) for k in sizes]
        )
        stride, matrix = ctypes.c_int64(values.stride(0)), (lu.rows, lu.cols, lu.source, values)
        if symmetric:
            first, starts, columns = lu.blocks
            call(
                f"factor_symmetric_{self._width}", self.count, stride, *matrix, len(first) - 1,
                first, starts, columns, up, uc, *self.entries, lu.scratch(4 * self._width),
                np.empty(n, np.int32),
            )  # fmt: skip
        else:
            call(
                f"factor_{self._width}", n, self.count, stride, *matrix, lp, lc, up, uc,
                *self.entries, lu.scratch(self._width),
            )  # fmt: skip

    def solve(self, b: Tensor, x: Tensor, transposed: bool = False) -> None:
        """Solve each system for its row of `b`, of shape (count, size), and write rows of `x`."""
        lu, size = self._lu, ctypes.c_int64(self._lu.size)
        scratch = lu.scratch(self._width)
        if self._symmetric:
            call(
                f"solve_symmetric_{self._width}", lu.unknowns, len(b), size, lu.dof, lu.place,
                *lu.upper, *self.entries, b, x, scratch,
            )  # fmt: skip
        else:
            call(
                f"solve_{self._width}", lu.unknowns, len(b), size, int(transposed), lu.dof,
                lu.place, *lu.lower, *lu.upper, *self.entries, b, x, scratch,
            )  # fmt: skip


def in_lanes(
    lu: SparseLU, values: Tensor, symmetric: bool, reuse: Sequence[Lanes] = ()
) -> list[Lanes]:
    """Factorise the matrices of a batch, of shape (batch, nnz)."""
    parts = values.split(LANES) if len(values) else ()
    before = [*reuse[: len(parts)], *[None] * (len(parts) - len(reuse))]
    return [Lanes(lu, part, symmetric, old) for part, old in zip(parts, before, strict=True)]
