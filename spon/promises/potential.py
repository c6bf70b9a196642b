"""Fields from a potential and from the few that no potential gives."""

from __future__ import annotations

import torch
from torch import Tensor

from spon.promises.base import InDouble
from spon.sparse import SparseMap

__all__ = ["Potential"]


class Potential(InDouble):
    """``u = C x0 + H R x``: the derivative of a potential that is zero where traces are prescribed.

    Parameters
    ----------
    derivative : SparseMap, shape (dim, latent)
        The curl or the gradient, C; zero on a second field, which only R reads.
    free : Tensor of bool, shape (latent,)
        Dofs of the potential off the boundary where traces are prescribed; x0 is x there
        and zero elsewhere.
    harmonic : Tensor, shape (dim, b)
        Fields with the promised property and no potential of that kind, H: fluxes through a
        channel, around holes.
    reading : Tensor, shape (b, latent)
        How the amounts of these are read off the latent coefficients, R.
    """

    free: Tensor
    harmonic: Tensor
    reading: Tensor

    def __init__(
        self, derivative: SparseMap, free: Tensor, harmonic: Tensor, reading: Tensor
    ) -> None:
        super().__init__()
        self.derivative = derivative
        self.register_buffer("free", free, persistent=False)
        self.register_buffer("harmonic", harmonic, persistent=False)
        self.register_buffer("reading", reading, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Potentials to fields.

        Parameters
        ----------
        x : Tensor, shape (batch, latent)

        Returns
        -------
        Tensor, shape (batch, dim)
        """
        u = self.derivative.batch(torch.where(self.free, x, 0.0))
        if self.harmonic.shape[1]:
            u = u + (x @ self.reading.T) @ self.harmonic.T
        return u
