"""The network that acts on the values at each node alone."""

from __future__ import annotations

from torch import nn

__all__ = ["pointwise"]


def pointwise(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """A perceptron of one hidden layer, on the last axis."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))
