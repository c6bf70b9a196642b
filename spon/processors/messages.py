"""Messages along the edges of a graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spon.processors.levels import Graph

__all__ = ["Round"]


class Round(nn.Module):
    """One exchange of messages: (nodes, batch, channels) to the same, residual.

    A message is by how much the sender's state differs from the receiver's, weighed channel by
    channel with a learned function of the edge. Differences, because a mean of anything else
    depends on the shape of the star of edges around a node even as the mesh is refined, at the
    boundary above all.

    Parameters
    ----------
    channels : int
    features : int
        Of an edge.
    driven : bool, optional
        Whether a node changes only as far as its neighbours differ from it, which on smooth fields
        is in proportion to the mesh size. By default it also changes as in a pointwise network.
    """

    def __init__(self, channels: int, features: int, driven: bool = False) -> None:
        super().__init__()
        self.driven = driven
        self.norm = nn.LayerNorm(channels)
        self.state = nn.Sequential(nn.Linear(channels, channels), nn.GELU())
        self.edge = nn.Sequential(
            nn.Linear(features, channels), nn.GELU(), nn.Linear(channels, channels)
        )
        self.update = nn.Sequential(
            nn.Linear(2 * channels, channels),
            nn.GELU(),
            nn.Linear(channels, channels, bias=not driven),
        )

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        """Send, average, update."""
        y = self.norm(x)
        state, weight = self.state(y), self.edge(graph.features)
        received = graph.mean(graph.senders(state) * weight[:, None])
        message = received - graph.mean(weight)[:, None] * state
        hidden = self.update[:2](torch.cat([y, message], dim=-1))
        if self.driven:
            hidden = hidden - self.update[:2](torch.cat([y, torch.zeros_like(y)], dim=-1))
        update: Tensor = self.update[2](hidden)
        return x + update
