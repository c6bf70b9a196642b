"""The network that acts on the values at each node alone."""

from __future__ import annotations

from torch import nn

__all__ = ["pointwise", "silent"]


def pointwise(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """A perceptron of one hidden layer, on the last axis."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


def silent(network: nn.Sequential) -> nn.Sequential:
    """Set the last weights to zero: what is added to the output has the first word."""
    for weight in network[-1].parameters():
        nn.init.zeros_(weight)
    return network
