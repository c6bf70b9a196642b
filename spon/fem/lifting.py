"""Coefficients in any space, mixed ones too, to values at nodes or points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

__all__ = ["interleaved", "lifted"]


def lifted(space: Any, count: int, values: Callable[[Any], sp.csr_matrix]) -> sp.csr_matrix:
    """Coefficients to values, with the channels of all parts of the space side by side.

    Parameters
    ----------
    space : FunctionSpace
        A mixed space is taken part by part; constants are the same everywhere.
    count : int
        Nodes or points.
    values : callable
        From an unmixed space to its map of shape (count * channels, dim), channels fastest.

    Returns
    -------
    csr_matrix, shape (count * channels, dim), channels fastest
    """
    if len(space) == 1:
        if space.ufl_element().family() == "Real":
            ones = np.ones((count, 1))
            return sp.kron(ones, sp.identity(int(np.prod(space.value_shape))), format="csr")
        return values(space)
    blocks = [lifted(part, count, values) for part in space.subspaces]
    rows = interleaved([block.shape[0] for block in blocks], count)
    return sp.csr_matrix(sp.block_diag(blocks, format="csr")[rows])


def interleaved(sizes: Sequence[int], count: int) -> NDArray[np.int64]:
    """Order in which blocks that follow each other have the channels of one node together.

    Parameters
    ----------
    sizes : sequence of int
        ``count * channels`` of each block, channels fastest.
    count : int
        Nodes or points.

    Returns
    -------
    array, shape (sum of sizes,)
    """
    starts = np.cumsum([0, *sizes[:-1]])
    order = [
        start + np.arange(size).reshape(count, -1)
        for start, size in zip(starts, sizes, strict=True)
    ]
    return np.concatenate(order, axis=1).ravel()
