"""Attention among a fixed number of tokens that the nodes of a mesh share out among themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spon.processors.base import Field, Geometry, GeometryRequest, Processor, register
from spon.processors.checks import check_integer
from spon.processors.places import Waves
from spon.processors.pointwise import pointwise

__all__ = ["Attention"]

_FLOOR = 1e-5  # share of the domain below which a token fades instead of standing for noise


@register
class Attention(Processor):
    """Attention among latent tokens, means over the domain, mixed with pointwise networks.

    Inputs are lifted to `channels` latent fields by a pointwise network that also sees positions,
    the torsion function of the domain and waves. In each of `layers` residual layers every node
    assigns itself to `tokens` tokens, softly, by a learned function of its fields; a token is the
    mean of the fields over the domain with its assignment as weight; the tokens attend to each
    other; and every node takes back from the tokens in the shares that it gave. A residual
    pointwise network follows. A pointwise network reads the output.

    Means are weighted by the volumes of the nodes, so that a layer is an operator on functions:
    refine the mesh and it converges. Its cost is linear in the number of nodes, and the attention
    itself does not depend on it.

    Parameters
    ----------
    channels : int, optional
        Latent fields; a multiple of `heads`.
    layers : int, optional
        Residual layers.
    tokens : int, optional
        Tokens of each head.
    heads : int, optional
        Groups of channels, each with assignments and attention of its own.
    frequencies : int, optional
        Waves: half-waves over the domain's length, at most.
    degree : int, optional
        Degree of the latent continuous space; that of the output, but at most 2, if not given.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it should be.

    Notes
    -----
    Wu, Luo, Wang, Wang and Long (2024), *Transolver: a fast transformer solver for PDEs on general
    geometries*, section 3.1, with integrals in place of sums over the points of a mesh. A token
    that owns next to nothing of the domain fades to zero.
    """

    name: ClassVar[str] = "attention"
    mesh_independent: ClassVar[bool] = True

    def __init__(
        self,
        channels: int = 32,
        layers: int = 3,
        tokens: int = 32,
        heads: int = 4,
        frequencies: int = 4,
        degree: int | None = None,
    ) -> None:
        super().__init__()
        self.channels = check_integer("channels", channels)
        self.layers = check_integer("layers", layers)
        self.tokens = check_integer("tokens", tokens, least=2)
        self.heads = check_integer("heads", heads)
        self.frequencies = check_integer("frequencies", frequencies, least=0)
        self.degree = None if degree is None else check_integer("degree", degree)
        if channels % heads:
            raise ValueError(f"channels={channels} must be a multiple of heads={heads}.")

    def config(self) -> dict[str, Any]:
        """Constructor arguments, JSON-able."""
        return {
            "channels": self.channels,
            "layers": self.layers,
            "tokens": self.tokens,
            "heads": self.heads,
            "frequencies": self.frequencies,
            "degree": self.degree,
        }

    def request(self) -> GeometryRequest:
        """Nodes."""
        return GeometryRequest(degree=self.degree)

    def configure(self, inputs: Sequence[Field], output: Field) -> None:
        """Create the weights."""
        c, total = self.channels, sum(field.channels for field in inputs)
        self.waves = Waves(output.gdim, self.frequencies)
        self.lift = pointwise(total + self.waves.count, 2 * c, c)
        self.hidden = nn.ModuleList(_Layer(c, self.tokens, self.heads) for _ in range(self.layers))
        self.read = pointwise(c, 2 * c, output.channels)

    def forward(self, xs: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """Map input coefficients (dim_i, batch) to output coefficients (dim_out, batch)."""
        # Samples first in here: a product of matrices for each of them.
        inputs = geometry.lift(xs).transpose(0, 1)
        places = self.waves(geometry.features()).expand(len(inputs), -1, -1)
        latent = self.lift(torch.cat([inputs, places], dim=-1))
        for layer in self.hidden:
            latent = layer(latent, geometry.weights)
        return geometry.coefficients(self.read(latent).transpose(0, 1))


class _Layer(nn.Module):
    """Nodes to tokens, attention, tokens to nodes, and a pointwise network; residual."""

    def __init__(self, channels: int, tokens: int, heads: int) -> None:
        super().__init__()
        self.tokens, self.heads = tokens, heads
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.assign = nn.Linear(channels, heads * tokens)
        self.values = nn.Linear(channels, channels)
        self.attend = _Attend(channels // heads)
        self.join = nn.Linear(channels, channels)
        self.pointwise = pointwise(channels, 2 * channels, channels)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """(batch, nodes, channels) to the same."""
        y = self.norms[0](x)
        shares = torch.softmax(self._by_head(self.assign(y)), dim=-1)
        weighted = (shares * weights[:, None]).transpose(-1, -2)
        total = weighted.sum(dim=-1, keepdim=True)
        tokens = weighted @ self._by_head(self.values(y)) / (total + _FLOOR)
        back = shares @ self.attend(tokens)
        x = x + self.join(back.transpose(1, 2).flatten(2))
        out: Tensor = x + self.pointwise(self.norms[1](x))
        return out

    def _by_head(self, x: Tensor) -> Tensor:
        """(batch, nodes, heads * k) to (batch, heads, nodes, k)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class _Attend(nn.Module):
    """Scaled dot-product attention, (batch, heads, tokens, channels) to the same, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Linear(channels, channels)
        # A bias of the keys would add the same to all scores of a query: softmax does not see it.
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels)
        self.scale = 1.0 / math.sqrt(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Every token takes from all tokens."""
        scores = self.scale * self.query(x) @ self.key(x).transpose(-1, -2)
        out: Tensor = x + torch.softmax(scores, dim=-1) @ self.value(x)
        return out
