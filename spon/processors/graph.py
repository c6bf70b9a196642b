"""Encode, process, decode: message passing between nodes that share a cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spon.processors.base import Field, Geometry, GeometryRequest, Processor, register
from spon.processors.base import Graph as GraphGeometry
from spon.processors.checks import check_integer

__all__ = ["Graph", "Round"]


@register
class Graph(Processor):
    """Message passing on the graph of latent nodes that share a cell.

    A pointwise network encodes the values of all inputs at a node together with its position;
    `rounds` residual rounds exchange messages along the edges; a pointwise network decodes. A
    message depends on both ends and on the edge: its vector over the local mesh size, that
    vector's length, and the physical length. Messages are averaged with the volumes of the cells
    that hold the edge, so that the weights serve on any mesh. Every block is a residual network
    with layer normalisation.

    A round reaches one cell further: on a fine mesh, far ends of the domain do not see each other.
    Solution operators of elliptic problems need that; `Spectral` has it.

    Parameters
    ----------
    channels : int, optional
        Latent values at a node.
    rounds : int, optional
        Rounds of message passing, each with its own weights.
    degree : int, optional
        Degree of the latent continuous space; that of the output, but at most 2, if not given.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it should be.

    Notes
    -----
    Pfaff, Fortunato, Sanchez-Gonzalez and Battaglia (2021), *Learning mesh-based simulation with
    graph networks*, section 3, without edge states, with means of differences in place of sums.
    """

    name: ClassVar[str] = "graph"
    mesh_independent: ClassVar[bool] = True

    def __init__(self, channels: int = 32, rounds: int = 6, degree: int | None = None) -> None:
        super().__init__()
        self.channels = check_integer("channels", channels)
        self.rounds = check_integer("rounds", rounds)
        self.degree = None if degree is None else check_integer("degree", degree)

    def config(self) -> dict[str, Any]:
        """Constructor arguments, JSON-able."""
        return {"channels": self.channels, "rounds": self.rounds, "degree": self.degree}

    def request(self) -> GeometryRequest:
        """Nodes and edges."""
        return GeometryRequest(degree=self.degree, edges=True)

    def configure(self, inputs: Sequence[Field], output: Field) -> None:
        """Create the weights."""
        c, gdim = self.channels, output.gdim
        features = sum(field.channels for field in inputs) + gdim + 1
        self.encode = nn.Sequential(nn.Linear(features, c), nn.GELU(), nn.Linear(c, c))
        self.process = nn.ModuleList(Round(c, gdim + 2) for _ in range(self.rounds))
        self.decode = nn.Sequential(nn.Linear(c, c), nn.GELU(), nn.Linear(c, output.channels))

    def forward(self, xs: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """Map input coefficients (dim_i, batch) to output coefficients (dim_out, batch)."""
        if geometry.graph is None:
            raise ValueError("This geometry holds no edges: build it from `request()`.")
        inputs = geometry.lift(xs)
        features = geometry.features()[:, None].expand(-1, inputs.shape[1], -1)
        latent = self.encode(torch.cat([inputs, features], dim=-1))
        for step in self.process:
            latent = step(latent, geometry.graph)
        return geometry.coefficients(self.decode(latent))


class Round(nn.Module):
    """One exchange of messages: (nodes, batch, channels) to the same, residual.

    A message is by how much the sender's state differs from the receiver's, weighed channel by
    channel with a learned function of the edge. Differences, because a mean of anything else
    depends on the shape of the star of edges around a node even as the mesh is refined, at the
    boundary above all.
    """

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.state = nn.Sequential(nn.Linear(channels, channels), nn.GELU())
        self.edge = nn.Sequential(
            nn.Linear(features, channels), nn.GELU(), nn.Linear(channels, channels)
        )
        self.update = nn.Sequential(
            nn.Linear(2 * channels, channels), nn.GELU(), nn.Linear(channels, channels)
        )

    def forward(self, x: Tensor, graph: GraphGeometry) -> Tensor:
        """Send, average, update."""
        y = self.norm(x)
        state, weight = self.state(y), self.edge(graph.features)
        received = graph.mean(graph.senders(state) * weight[:, None])
        message = received - graph.mean(weight)[:, None] * state
        update: Tensor = self.update(torch.cat([y, message], dim=-1))
        return x + update
