"""Layers of resolvents of the Laplacian: functions of it without eigenfunctions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from spon.processors.base import Field, Geometry, GeometryRequest, Processor, register
from spon.processors.checks import check_integer, check_range
from spon.processors.least_squares import fit_weights
from spon.processors.levels import Resolvents
from spon.processors.pointwise import pointwise, silent

__all__ = ["Resolvent"]

_ORDER_ONE = 20.0  # about the first eigenvalue of a fixed membrane of unit area


@register
class Resolvent(Processor):
    """Resolvents (M + alpha K)^-1 M at several alpha, mixed with pointwise networks.

    Inputs are lifted to `channels` latent fields by a pointwise network that also sees positions
    and the torsion function of the domain. Then `layers` residual layers, a pointwise network that
    reads the output, and a linear path from input to output through resolvents alone (its weights
    start at zero).

    A resolvent smooths over a length of sqrt(alpha). A layer mixes the channels into `width`
    fields for each alpha and each kind of boundary (values zero where the decoder's conditions
    hold, and a natural boundary), smooths these, and mixes the results and the gradients of those
    with a natural boundary, times sqrt(alpha), back into the channels. All of that is bounded in
    L2 whatever the mesh, and nothing is cut off as it is after a number of eigenfunctions.

    Parameters
    ----------
    channels : int, optional
        Latent fields.
    layers : int, optional
        Residual layers.
    alphas : int, optional
        Number of resolvents, evenly spaced in the logarithm.
    largest, smallest : float, optional
        Range of alpha, in units of the square of the domain's length ``|domain|^(1/gdim)``.
    width : int, optional
        Fields that each resolvent of a layer acts on.
    degree : int, optional
        Degree of the latent continuous space; that of the output, but at most 2, if not given.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it should be.

    Notes
    -----
    Sums of resolvents are rational functions of the Laplacian, which approximate the solution
    operators of elliptic problems and their fractional powers exponentially well in the number of
    poles (Bonito and Pasciak 2015). The matrices are factorised once; a layer costs
    ``2 * alphas * width`` solves for each sample.
    """

    name: ClassVar[str] = "resolvent"
    mesh_independent: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True

    def __init__(
        self,
        channels: int = 24,
        layers: int = 3,
        alphas: int = 5,
        largest: float = 10.0,
        smallest: float = 1e-3,
        width: int = 2,
        degree: int | None = None,
    ) -> None:
        super().__init__()
        self.channels = check_integer("channels", channels)
        self.layers = check_integer("layers", layers)
        self.alphas = check_integer("alphas", alphas)
        self.largest, self.smallest = check_range("largest", largest, "smallest", smallest)
        self.width = check_integer("width", width)
        self.degree = None if degree is None else check_integer("degree", degree)

    def config(self) -> dict[str, Any]:
        """Constructor arguments, JSON-able."""
        return {
            "channels": self.channels,
            "layers": self.layers,
            "alphas": self.alphas,
            "largest": self.largest,
            "smallest": self.smallest,
            "width": self.width,
            "degree": self.degree,
        }

    def request(self) -> GeometryRequest:
        """Nodes and resolvents."""
        ratio = self.smallest / self.largest
        last = max(self.alphas - 1, 1)
        alphas = tuple(self.largest * ratio ** (i / last) for i in range(self.alphas))
        return GeometryRequest(degree=self.degree, alphas=alphas)

    def configure(self, inputs: Sequence[Field], output: Field) -> None:
        """Create the weights."""
        total = sum(field.channels for field in inputs)
        c, gdim, out = self.channels, output.gdim, output.channels
        self.lift = pointwise(total + gdim + 1, 2 * c, c)
        self.hidden = nn.ModuleList(
            _Layer(c, self.width, self.alphas, gdim) for _ in range(self.layers)
        )
        self.read = pointwise(c, 2 * c, out)
        # The inputs come without their mean: they and the function one make an affine path.
        self.linear = nn.Parameter(torch.zeros(2, self.alphas, total + 1, out))

    def forward(self, xs: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """Map input coefficients (dim_i, batch) to output coefficients (dim_out, batch)."""
        resolvents = geometry.resolvents
        if resolvents is None:
            raise ValueError("This geometry holds no resolvents: build it from `request()`.")
        inputs = geometry.lift(xs)
        features = geometry.features()[:, None].expand(-1, inputs.shape[1], -1)
        latent = self.lift(torch.cat([inputs, features], dim=-1))
        for layer in self.hidden:
            latent = latent + gelu(layer(latent, resolvents))
        return geometry.coefficients(self.read(latent) + self._affine(inputs, resolvents))

    def _affine(self, inputs: Tensor, resolvents: Resolvents) -> Tensor:
        """Resolvents of the inputs and of the function one, (nodes, batch, outputs)."""
        weights = self.linear.flatten(0, 1)
        fields = self._smoothed(inputs, resolvents)
        return torch.stack([x @ w for x, w in zip(fields, weights, strict=True)]).sum(0)

    def _smoothed(self, inputs: Tensor, resolvents: Resolvents) -> list[Tensor]:
        """Every resolvent of the inputs and of one: with the conditions first, then without."""
        load = resolvents.mass(torch.cat([inputs, torch.ones_like(inputs[..., :1])], dim=-1))
        pairs = [_solve(resolvents, i, load, load) for i in range(self.alphas)]
        return [pair[0] for pair in pairs] + [pair[1] for pair in pairs]

    def fit_linear(self, xs: Sequence[Tensor], y: Tensor, geometry: Geometry, rows: Tensor) -> None:
        """Fit the affine path to samples; see `Processor.fit_linear`."""
        resolvents = geometry.resolvents
        if resolvents is None:
            raise ValueError("This geometry holds no resolvents: build it from `request()`.")
        inputs, outputs = geometry.lift(xs), self.linear.shape[-1]

        def columns(which: Tensor) -> Iterator[Tensor]:
            # Solved once; a weight puts one field into one component of the output.
            for fields in self._smoothed(inputs[:, which], resolvents):
                for field in fields.unbind(-1):
                    for component in torch.eye(outputs).to(field):
                        yield geometry.coefficients(field[..., None] * component)

        if fit_weights([self.linear], columns, y, rows):
            silent(self.read)


class _Layer(nn.Module):
    """A linear map: resolvents of some fields, their gradients, and a pointwise map."""

    def __init__(self, channels: int, fields: int, alphas: int, gdim: int) -> None:
        super().__init__()
        self.width = fields
        self.split = nn.Parameter(torch.randn(channels, alphas, 2 * fields) / math.sqrt(channels))
        scale = 1.0 / (3.0 * math.sqrt(alphas * fields))
        self.join = nn.Parameter(scale * torch.randn(alphas, 2 * fields, channels))
        self.gradient = nn.Parameter(scale * torch.randn(gdim, fields, channels, alphas))
        self.pointwise = nn.Linear(channels, channels)

    def forward(self, u: Tensor, resolvents: Resolvents) -> Tensor:
        """(nodes, batch, channels) to the same."""
        out: Tensor = self.pointwise(u)
        load = resolvents.mass(torch.einsum("nbc,caf->nbaf", u, self.split))
        for i, alpha in enumerate(resolvents.alphas):
            loads = load[:, :, i].split(self.width, dim=-1)
            constrained, free = _solve(resolvents, i, *loads)
            out = out + torch.cat([constrained, free], dim=-1) @ self.join[i]
            slopes = math.sqrt(alpha) * resolvents.gradient(free)
            slopes = slopes.reshape(len(self.gradient), *free.shape)
            for slope, weight in zip(slopes, self.gradient[..., i], strict=True):
                out = out + slope @ weight
        return out


def _solve(
    resolvents: Resolvents, index: int, constrained: Tensor, free: Tensor
) -> tuple[Tensor, Tensor]:
    """Solve with both kinds of boundary, scaled so that smooth functions keep their size."""
    alpha = resolvents.alphas[index]
    if resolvents.constrained is None:
        # Nothing vanishes anywhere: both kinds are the same.
        both = resolvents.free[index](torch.cat([constrained, free], dim=-1))
        one, two = both.split([constrained.shape[-1], free.shape[-1]], dim=-1)
        return one, two
    one = (1.0 + _ORDER_ONE * alpha) * resolvents.constrained[index](constrained)
    return one, resolvents.free[index](free)
