"""What networks of the place alone see: positions, the torsion function, waves."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

__all__ = ["Waves"]


class Waves(nn.Module):
    """Positions and torsion function, with sines and cosines of the positions beside them.

    The wave vectors are pi times the integer vectors of length at most `frequencies`, one of each
    pair of opposite ones: nothing random, and nothing that a mesh has a say in. A network of the
    positions alone learns such functions late, if it ever does (Tancik et al. 2020, *Fourier
    features let networks learn high frequency functions*).

    Parameters
    ----------
    gdim : int
        Coordinates of a point.
    frequencies : int
        Half-waves over the domain's length, at most; 0 for none.

    Attributes
    ----------
    count : int
        Number of features.
    """

    vectors: Tensor

    def __init__(self, gdim: int, frequencies: int) -> None:
        super().__init__()
        span = range(-frequencies, frequencies + 1)
        zero, square = (0,) * gdim, frequencies**2
        # Of k and -k the one that comes later in the order of tuples.
        lattice = [
            k
            for k in itertools.product(span, repeat=gdim)
            if k > zero and sum(i * i for i in k) <= square
        ]
        # Integers, which no conversion of the network to another dtype rounds.
        vectors = torch.tensor(lattice, dtype=torch.int64).reshape(-1, gdim).T
        self.register_buffer("vectors", vectors, persistent=False)
        self.gdim, self.count = gdim, gdim + 1 + 2 * len(lattice)

    def forward(self, features: Tensor) -> Tensor:
        """Add the waves.

        Parameters
        ----------
        features : Tensor, shape (nodes, gdim + 1)
            What `Geometry.features` returns.

        Returns
        -------
        Tensor, shape (nodes, count)
        """
        phase = features[:, : self.gdim] @ (math.pi * self.vectors.to(features.dtype))
        return torch.cat([features, torch.sin(phase), torch.cos(phase)], dim=1)
