"""Attention among a fixed number of tokens that the nodes of a mesh share out among themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

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
    shares itself out among `tokens` tokens, by a learned function of its place; a token is the
    mean of the fields over the domain with these shares as weights; tokens act on each other by
    attention and by a learned matrix; and every node takes back from the tokens in the shares that
    it gave. A residual pointwise network follows. A pointwise network reads the output.

    Means are weighted by the volumes of the nodes, so that a layer is an operator on functions:
    refine the mesh and it converges. Its cost is linear in the number of nodes, and what happens
    among tokens does not depend on it. What is smaller than the part of the domain that a token
    stands for (about a `tokens`-th) passes through the pointwise networks alone.

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
    geometries*, section 3.1, with integrals in place of sums over the points of a mesh, and with
    shares that depend on the place instead of the fields, as in Wang and Wang (2024), *Latent
    neural operator*: they are the same for all samples, so that a layer is a few large matrix
    products. A token that owns next to nothing of the domain fades to zero.
    """

    name: ClassVar[str] = "attention"
    mesh_independent: ClassVar[bool] = True

    def __init__(
        self,
        channels: int = 16,
        layers: int = 3,
        tokens: int = 64,
        heads: int = 2,
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
        self.lift = nn.Linear(total, 2 * c)
        self.place = nn.Linear(self.waves.count, 2 * c, bias=False)
        self.mix = nn.Linear(2 * c, c)
        self.hidden = nn.ModuleList(
            _Layer(c, self.tokens, self.heads, self.waves.count) for _ in range(self.layers)
        )
        self.read = pointwise(c, 2 * c, output.channels)

    def forward(self, xs: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """Map input coefficients (dim_i, batch) to output coefficients (dim_out, batch)."""
        places = self.waves(geometry.features())
        # A pointwise network of both; what the place adds is the same for all samples.
        latent = self.lift(geometry.lift(xs)) + self.place(places)[:, None]
        latent = self.mix(gelu(latent))
        for layer in self.hidden:
            latent = layer(latent, places, geometry.weights)
        return geometry.coefficients(self.read(latent))


class _Layer(nn.Module):
    """Nodes to tokens, attention, tokens to nodes, and a pointwise network; residual.

    Nothing is normalised: the size of a field is half of what a linear problem is about.
    """

    def __init__(self, channels: int, tokens: int, heads: int, places: int) -> None:
        super().__init__()
        self.heads = heads
        self.assign = pointwise(places, 2 * channels, heads * tokens)
        self.values = nn.Linear(channels, channels)
        self.attend = _Attend(channels // heads, tokens, heads)
        self.join = nn.Linear(channels, channels)
        self.pointwise = pointwise(channels, 2 * channels, channels)

    def forward(self, x: Tensor, places: Tensor, weights: Tensor) -> Tensor:
        """(nodes, batch, channels) to the same."""
        # (heads, nodes, tokens), the same for all samples: both ways are one product for a head.
        scores = self.assign(places).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        shares = torch.softmax(scores, dim=-1)
        weighted = (shares * weights[:, None]).transpose(1, 2)
        means = weighted / (weighted.sum(dim=-1, keepdim=True) + _FLOOR)
        values = self.values(x).unflatten(-1, (self.heads, -1)).permute(2, 0, 1, 3)
        tokens = (means @ values.flatten(2)).reshape(self.heads, -1, *values.shape[2:])
        back = (shares @ self.attend(tokens).flatten(2)).reshape(values.shape)
        x = x + self.join(back.permute(1, 2, 0, 3).flatten(2))
        out: Tensor = x + self.pointwise(x)
        return out


class _Attend(nn.Module):
    """Attention and a fixed matrix among tokens, (heads, tokens, batch, channels) to the same.

    Attention is a mean, with weights that depend on the values; the matrix, one for each head, is
    how places act on each other whatever the values are, as a Green's function does.
    """

    def __init__(self, channels: int, tokens: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Linear(channels, channels)
        # A bias of the keys would add the same to all scores of a query: softmax does not see it.
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels)
        self.fixed = nn.Parameter(torch.randn(heads, tokens, tokens) / (3.0 * math.sqrt(tokens)))
        self.scale = 1.0 / math.sqrt(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Every token takes from all tokens of its head; residual."""
        y = x.transpose(1, 2)
        scores = self.scale * self.query(y) @ self.key(y).transpose(-1, -2)
        y = y + torch.softmax(scores, dim=-1) @ self.value(y)
        x = y.transpose(1, 2)
        return x + (self.fixed @ x.flatten(2)).reshape(x.shape)
