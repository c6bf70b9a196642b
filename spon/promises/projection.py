"""The nearest field that keeps a promise."""

from __future__ import annotations

import torch
from torch import Tensor

from spon.promises.base import InDouble
from spon.promises.particular import Particular
from spon.sparse import SparseMap

__all__ = ["Projection"]


class Projection(InDouble):
    """L2 projection onto the fields without divergence (or curl) and without traces.

    A field without them is nearer, in L2, to the projection than to what was projected: where the
    truth keeps the promise, the L2 error of a prediction does not grow by it.

    Parameters
    ----------
    saddle : Particular
        Its factorisation serves here, too.
    mass : SparseMap, shape (dim, dim)
    """

    def __init__(self, saddle: Particular, mass: SparseMap) -> None:
        super().__init__()
        self.saddle, self.mass = saddle, mass

    def forward(self, x: Tensor) -> Tensor:
        """Project, (batch, dim) to (batch, dim)."""
        free, lu, system = self.saddle._free, self.saddle.inverse, self.saddle.system
        moments = self.mass.batch(x).T[free]
        rest = moments.new_zeros(lu.size - len(free), moments.shape[1])
        right = torch.cat([moments, rest])
        y = lu(right)
        y = y + lu(right - system(y))
        return torch.zeros_like(x).index_copy(1, free, y[: len(free)].T)
