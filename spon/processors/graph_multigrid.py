"""Message passing over the levels of a hierarchy: much on coarse levels, little on fine ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spon.processors.base import Field, Geometry, GeometryRequest, Processor, register
from spon.processors.checks import check_choice, check_integer, check_widths
from spon.processors.levels import Level
from spon.processors.messages import Round
from spon.processors.pointwise import pointwise

__all__ = ["GraphMultigrid"]

_SOURCES = ("auto", "meshes", "lattice")


@register
class GraphMultigrid(Processor):
    """Message passing on the graphs of a multigrid hierarchy.

    A pointwise network encodes the values of all inputs at a node together with its position and
    the torsion function. Each of `layers` cycles visits the levels from the finest to the coarsest
    and back: messages are exchanged on a level, weighted means of the fields go to the next
    coarser one, and what has changed there is added after prolongation. A pointwise network
    decodes. Coarse graphs are small and see across the domain, so that the many channels and
    rounds are there, and fine levels do with few.

    Weights belong to a level counted from the coarsest one. All levels finer than the last of
    `channels` take the weights of that one. What they add vanishes with the differences between
    neighbours, so that the output converges as the mesh is refined, one more level at a time.

    Parameters
    ----------
    channels : sequence of int, optional
        Latent values at a node: on the coarsest level, the next finer one, ...
    rounds : sequence of int, optional
        Rounds of messages on these levels, before and again after the coarse correction; on the
        coarsest level once.
    layers : int, optional
        Cycles, each with its own weights.
    coarse : {"auto", "meshes", "lattice"}, optional
        Where coarse levels come from, as for `Multigrid`. The coarsest level takes the same weights
        whatever its mesh size, so train and evaluate on hierarchies with the same coarsest mesh, or
        on lattices, whose coarsest has two cells along the longest side of the domain.
    degree : int, optional
        Degree of the latent continuous space; that of the output, but at most 2, if not given.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it should be.

    Notes
    -----
    Bouziani and Boulle (2024), *Structure-preserving operator learning*, multigrid variant, with
    the full approximation scheme: coarse levels see means of the fields, primal vectors, and send
    changes back.
    """

    name: ClassVar[str] = "graph_multigrid"
    mesh_independent: ClassVar[bool] = True

    def __init__(
        self,
        channels: Sequence[int] = (32, 32, 24, 16),
        rounds: Sequence[int] = (2, 2, 1, 1),
        layers: int = 2,
        coarse: str = "auto",
        degree: int | None = None,
    ) -> None:
        super().__init__()
        self.channels = check_widths("channels", channels)
        self.rounds = check_widths("rounds", rounds)
        if not self.channels or len(self.channels) != len(self.rounds):
            raise ValueError(
                f"Got {len(self.channels)} numbers of channels and {len(self.rounds)} of rounds: "
                "give one of each for each kind of level, at least one."
            )
        self.layers = check_integer("layers", layers)
        self.coarse = check_choice("coarse", coarse, _SOURCES)
        self.degree = None if degree is None else check_integer("degree", degree)

    def config(self) -> dict[str, Any]:
        """Constructor arguments, JSON-able."""
        return {
            "channels": self.channels,
            "rounds": self.rounds,
            "layers": self.layers,
            "coarse": self.coarse,
            "degree": self.degree,
        }

    def request(self) -> GeometryRequest:
        """Nodes, levels and their graphs."""
        return GeometryRequest(degree=self.degree, edges=True, levels=self.coarse)

    def configure(self, inputs: Sequence[Field], output: Field) -> None:
        """Create the weights."""
        c, gdim = self.channels[-1], output.gdim
        features = sum(field.channels for field in inputs) + gdim + 1
        self.encode = pointwise(features, 2 * c, c)
        self.hidden = nn.ModuleList(
            _Cycle(self.channels, self.rounds, gdim + 2) for _ in range(self.layers)
        )
        self.decode = pointwise(c, 2 * c, output.channels)

    def forward(self, xs: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """Map input coefficients (dim_i, batch) to output coefficients (dim_out, batch)."""
        hierarchy = geometry.hierarchy
        if hierarchy is None or hierarchy.levels[0].graph is None:
            raise ValueError(
                "This geometry holds no levels with graphs: build it from `request()`."
            )
        inputs = geometry.lift(xs)
        features = geometry.features()[:, None].expand(-1, inputs.shape[1], -1)
        latent = self.encode(torch.cat([inputs, features], dim=-1))
        for cycle in self.hidden:
            latent = cycle(latent, list(hierarchy.levels))
        return geometry.coefficients(self.decode(latent))


class _Cycle(nn.Module):
    """Down and up again: (nodes, batch, channels of the last kind) to the same.

    The finest level is always of the last kind, the others are counted from the coarsest one.
    """

    def __init__(self, channels: Sequence[int], rounds: Sequence[int], features: int) -> None:
        super().__init__()
        self.last = len(channels) - 1

        def steps(kind: int) -> nn.ModuleList:
            driven = kind == self.last
            return nn.ModuleList(
                Round(channels[kind], features, driven) for _ in range(rounds[kind])
            )

        self.before = nn.ModuleList(steps(kind) for kind in range(len(channels)))
        # The coarsest level has nothing to come back from; with several kinds it is the first.
        self.after = nn.ModuleList(steps(kind) for kind in range(min(1, self.last), len(channels)))
        self.down = nn.ModuleList(nn.Linear(fine, c) for c, fine in pairwise(channels))
        self.up = nn.ModuleList(nn.Linear(c, fine, bias=False) for c, fine in pairwise(channels))

    def forward(self, x: Tensor, levels: Sequence[Level]) -> Tensor:
        """Change values on the first of the levels, the finest."""
        return self._visit(x, levels, self.last)

    def _visit(self, x: Tensor, levels: Sequence[Level], kind: int) -> Tensor:
        here, coarser = levels[0], levels[1:]
        x = self._exchanged(x, self.before[kind], here)
        if here.average is None or here.prolongation is None:
            return x
        # Kinds that this hierarchy has no level for are passed through.
        below = min(len(coarser) - 1, self.last)
        means = here.average(x)
        for between in range(kind - 1, below - 1, -1):
            means = self.down[between](means)
        change = self._visit(means, coarser, below) - means
        for between in range(below, kind):
            change = self.up[between](change)
        x = x + here.prolongation(change)
        return self._exchanged(x, self.after[max(kind - 1, 0)], here)

    @staticmethod
    def _exchanged(x: Tensor, rounds: Any, level: Level) -> Tensor:
        for step in rounds:
            x = step(x, level.graph)
        return x
