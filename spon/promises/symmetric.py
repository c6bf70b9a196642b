"""Symmetric tensors, and fields that a group of maps leaves as they are."""

from __future__ import annotations

from torch import Tensor

from spon.promises.base import InDouble
from spon.sparse import SparseMap

__all__ = ["GroupAverage", "Symmetric"]


class Symmetric(InDouble):
    """The symmetric part of tensor-valued nodal fields.

    Parameters
    ----------
    size : int
        Rows of the tensor.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Symmetrise, (batch, dim) to (batch, dim)."""
        t = x.reshape(len(x), -1, self.size, self.size)
        return (0.5 * (t + t.transpose(-1, -2))).reshape(x.shape)


class GroupAverage(InDouble):
    """The mean over a group: the field that its maps leave as it is, nearest in L2.

    Parameters
    ----------
    average : SparseMap, shape (dim, dim)
        Mean of the matrices of the group.
    """

    def __init__(self, average: SparseMap) -> None:
        super().__init__()
        self.average = average

    def forward(self, x: Tensor) -> Tensor:
        """Average, (batch, dim) to (batch, dim)."""
        return self.average.batch(x)
