"""Layers that solve elliptic problems whose coefficients and loads are learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, softplus

from spon.processors.base import Field, Geometry, GeometryRequest, Processor, register
from spon.processors.checks import check_integer
from spon.processors.messages import Round
from spon.processors.points import Points
from spon.processors.pointwise import pointwise, silent

__all__ = ["Elliptic"]

_ORDER_ONE = 20.0  # about the first eigenvalue of a fixed membrane of unit area
_LARGEST = 8.0  # logarithms of coefficients stay below it: a contrast of about ten million
_STRETCH = 1.5  # the same for the factors of the directions: squared, twenty to one twentieth
_REACTION = 1e-2  # least reaction where no condition makes a problem regular


@register
class Elliptic(Processor):
    """Solves of elliptic problems with learned coefficients, mixed with pointwise networks.

    Inputs are lifted to `channels` latent fields by a pointwise network that also sees positions
    and the torsion function of the domain, followed by `rounds` rounds of message passing between
    nodes that share a cell. In each of `layers` layers a pointwise network turns the latent fields
    and the inputs at the quadrature points into the coefficients of `solves` problems

        -div(A grad w) + c w = f - div(g),

    with a symmetric positive definite tensor A, c >= 0, and w = 0 where the decoder's conditions
    hold; these are solved exactly, and the solutions join the latent fields. The output is a
    combination of the last solutions, with factors that a pointwise network reads from the latent
    fields, plus what it reads from these directly.

    The inputs enter as they are at the quadrature points, so that coefficients that jump from cell
    to cell keep their jumps: this is the processor for problems with rough coefficients. The
    problem behind the data is within its reach if it is of that form: then it is a solver that
    learns the law between inputs and coefficients (also an effective law, where the data come from
    a finer grid), at the cost of `layers` times `solves` solves for each sample.

    Parameters
    ----------
    channels : int, optional
        Latent fields.
    layers : int, optional
        Layers, one after the other. More than one is for problems with coefficients that depend
        on the solution.
    solves : int, optional
        Problems in each layer.
    rounds : int, optional
        Rounds of message passing before the first layer; 0 for coefficients that depend on the
        inputs at the same point alone.
    degree : int, optional
        Degree of the solutions; that of the output, but at most 2, if not given. The latent fields
        are of degree one, whatever it is. Coefficients that are known at the vertices only, and
        jump between them, are resolved better by a higher degree than that of the output.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it should be.

    Notes
    -----
    Solutions depend continuously on coefficients and loads, in the norms of the energy, whatever
    the mesh. Every sample has its own matrices, which are factorised at each call; where factors
    would fill up (above some 8,000 unknowns in three dimensions, half a million in two), conjugate
    gradients with algebraic multigrid solve instead: they reduce the residual by 1e-12 in the norm
    of the preconditioner. MUMPS solves what does not converge.
    """

    name: ClassVar[str] = "elliptic"
    mesh_independent: ClassVar[bool] = True

    def __init__(
        self,
        channels: int = 24,
        layers: int = 1,
        solves: int = 2,
        rounds: int = 2,
        degree: int | None = None,
    ) -> None:
        super().__init__()
        self.channels = check_integer("channels", channels)
        self.layers = check_integer("layers", layers)
        self.solves = check_integer("solves", solves)
        self.rounds = check_integer("rounds", rounds, least=0)
        self.degree = None if degree is None else check_integer("degree", degree)

    def config(self) -> dict[str, Any]:
        """Constructor arguments, JSON-able."""
        return {
            "channels": self.channels,
            "layers": self.layers,
            "solves": self.solves,
            "rounds": self.rounds,
            "degree": self.degree,
        }

    def request(self) -> GeometryRequest:
        """Nodes, quadrature points, and edges for the messages."""
        return GeometryRequest(
            degree=1, edges=self.rounds > 0, elliptic=True, solutions=self.degree
        )

    def configure(self, inputs: Sequence[Field], output: Field) -> None:
        """Create the weights."""
        total = sum(field.channels for field in inputs)
        c, gdim, out = self.channels, output.gdim, output.channels
        self.lift = pointwise(total + gdim + 1, 2 * c, c)
        self.local = nn.ModuleList(Round(c, gdim + 2) for _ in range(self.rounds))
        self.hidden = nn.ModuleList(_Layer(c, total, self.solves, gdim) for _ in range(self.layers))
        self.factors = nn.Linear(c, self.solves * out)
        self.read = silent(pointwise(c, 2 * c, out))
        nn.init.zeros_(self.factors.weight)
        nn.init.constant_(self.factors.bias, 1.0 / self.solves)

    def forward(self, xs: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """Map input coefficients (dim_i, batch) to output coefficients (dim_out, batch)."""
        points = geometry.points
        if points is None or (self.rounds and geometry.graph is None):
            raise ValueError(
                "This geometry holds no quadrature points or no edges: build it from `request()`."
            )
        inputs = geometry.lift(xs)
        features = geometry.features()[:, None].expand(-1, inputs.shape[1], -1)
        latent = self.lift(torch.cat([inputs, features], dim=-1))
        for step in self.local:
            latent = step(latent, geometry.graph)
        raw = points.lift(xs)
        for layer in self.hidden:
            solutions, latent = layer(latent, raw, points)
        factors = points.up(self.factors(latent)).unflatten(-1, (self.solves, -1))
        solved = points.coefficients((solutions[..., None] * factors).sum(-2))
        return solved + geometry.coefficients(self.read(latent))


class _Layer(nn.Module):
    """Coefficients and loads from fields at the points, solves, and a residual update."""

    def __init__(self, channels: int, inputs: int, solves: int, gdim: int) -> None:
        super().__init__()
        self.solves, self.gdim = solves, gdim
        # Logarithm of the scale, triangular factor, reaction, source, flux.
        self.triangle = gdim * (gdim + 1) // 2
        count = solves * (1 + self.triangle + 2 + gdim)
        last = nn.Linear(2 * channels, count)
        self.law = nn.Sequential(nn.Linear(channels + inputs, 2 * channels), nn.GELU(), last)
        self.linear = nn.Linear(inputs, count, bias=False)
        with torch.no_grad():
            # Nearly a membrane under a constant load: hardly any reaction, a source of one.
            last.weight *= 0.1
            start = last.bias.zero_().view(solves, -1)
            start[:, 1 + self.triangle] = -6.0
            start[:, 2 + self.triangle] = 1.0
            self.linear.weight.zero_()
        self.update = pointwise(channels + solves, 2 * channels, channels)

    def forward(self, latent: Tensor, raw: Tensor, points: Points) -> tuple[Tensor, Tensor]:
        """Solutions (unknowns, batch, solves) and new latent fields (nodes, batch, channels)."""
        law = self.law(torch.cat([points.values(latent), raw], dim=-1)) + self.linear(raw)
        law = law.unflatten(-1, (self.solves, -1))
        log, factor, reaction, source, flux = law.split([1, self.triangle, 1, 1, self.gdim], dim=-1)
        reaction = softplus(reaction)
        if not points.solve.constrained:
            reaction = reaction + _REACTION
        tensor = self._tensor(log[..., 0], factor)
        coefficients = torch.stack([*tensor, reaction[..., 0]])
        load = points.load(source[..., 0], flux.movedim(-1, 0))
        solutions = _ORDER_ONE * points.solve(coefficients, load)
        new = gelu(self.update(torch.cat([latent, points.down(solutions)], dim=-1)))
        return solutions, latent + new

    def _tensor(self, log: Tensor, factor: Tensor) -> list[Tensor]:
        """The upper triangle of exp(log) L L^T, where L = D T with a positive diagonal D and a unit
        lower triangular T.

        All of it is bounded: what a factorisation cannot take is out of reach.
        """
        scale = torch.exp(log.clamp(-_LARGEST, _LARGEST))
        rows = iter(factor.clamp(-_STRETCH, _STRETCH).unbind(-1))
        lower: list[list[Tensor]] = []
        for i in range(self.gdim):
            entries = [next(rows) for _ in range(i + 1)]
            size = torch.exp(entries[i])
            lower.append([*(size * entry for entry in entries[:i]), size])
        out = []
        for i in range(self.gdim):
            for j in range(i, self.gdim):
                products = [lower[i][k] * lower[j][k] for k in range(i + 1)]
                out.append(scale * torch.stack(products).sum(0))
        return out
