"""Symmetric tensors."""

from __future__ import annotations

from torch import Tensor

from spon.promises.base import InDouble

__all__ = ["Symmetric"]


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
