"""The trunk of a DeepONet on the nodes of a cell: basis functions from places."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Trunk"]


class Trunk(nn.Module):
    """A network from the features of a place to the values of basis functions there.

    Parameters
    ----------
    features : int
    functions : int
    dim : int
        Components of each function.
    width, depth : int
        Of the hidden layers (swish).
    seed : int, optional
    """

    def __init__(
        self, features: int, functions: int, dim: int, width: int, depth: int, seed: int = 0
    ) -> None:
        super().__init__()
        self.features, self.functions, self.dim = features, functions, dim
        self.width, self.depth = width, depth
        generator = torch.Generator().manual_seed(seed)
        weights, biases = [], []
        for inner, outer in pairwise([features, *[width] * depth, functions * dim]):
            random = torch.randn(outer, inner, generator=generator, dtype=torch.float64)
            weights.append(nn.Parameter(random / math.sqrt(inner)))
            biases.append(nn.Parameter(torch.zeros(outer, dtype=torch.float64)))
        self.weights, self.biases = nn.ParameterList(weights), nn.ParameterList(biases)

    def config(self) -> dict[str, Any]:
        """Sizes as JSON-able values."""
        return {
            "features": self.features,
            "functions": self.functions,
            "dim": self.dim,
            "width": self.width,
            "depth": self.depth,
        }

    def forward(self, features: Tensor) -> Tensor:
        """Values of the functions.

        Parameters
        ----------
        features : Tensor, shape (nodes, f)

        Returns
        -------
        Tensor, shape (functions, nodes, dim)
        """
        x = features
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = nn.functional.silu(torch.addmm(bias, x, weight.T))
        values = torch.addmm(self.biases[-1], x, self.weights[-1].T)
        return values.reshape(-1, self.functions, self.dim).permute(1, 0, 2)
