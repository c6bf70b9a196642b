"""Learned functionals of the inputs times learned functions of the place."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from spon.processors.base import (
    Basis,
    Field,
    Geometry,
    GeometryRequest,
    Processor,
    Spectrum,
    register,
)
from spon.processors.chebyshev import chebyshev, largest_eigenvalue
from spon.processors.checks import check_choice, check_integer
from spon.processors.places import Waves
from spon.processors.pointwise import pointwise

__all__ = ["DeepONet", "MultiONet"]

_TRUNKS = ("coordinates", "modes")
_POLYNOMIALS = 6


@register
class DeepONet(Processor):
    """A branch network for coefficients times a trunk of functions: sum_k b_k(inputs) t_k(x).

    The branch sees the inputs through integrals over the domain, w_j(x) g(inputs(x), x), where
    the weights w_j are learned functions of the place and g is the inputs themselves and
    `channels` learned functions of their values. Integrals are the same on every mesh up to the
    error of the quadrature, values at dofs are not. A perceptron with a linear map beside it makes
    coefficients of the integrals.

    The trunk is a network of the place (``trunk="coordinates"``), or functions of the Laplacian
    applied to such a network (``trunk="modes"``): combinations of the first eigenfunctions, each
    the sum of one that vanishes where the decoder's conditions hold and one with a natural
    boundary. The place is the position, the torsion function of the domain, and waves.

    Outputs lie in one space of `functions` dimensions, whatever the inputs are: that is its limit.
    It makes the network cheap: between the integrals and the product with the trunk nothing
    depends on the number of dofs.

    Parameters
    ----------
    functions : int, optional
        Functions of the trunk.
    functionals : int, optional
        Weights of the integrals; each is applied to every input component and to `channels`.
    channels : int, optional
        Learned functions of the values of the inputs at a point; 0 if the operator is linear.
    width, depth : int, optional
        Of the hidden layers of the branch, of the trunk and of the weights of the integrals.
    trunk : {"coordinates", "modes"}, optional
    modes : int, optional
        Eigenfunctions in each family, for ``trunk="modes"``.
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
    Lu, Jin, Pang, Zhang and Karniadakis (2021), *Learning nonlinear operators via DeepONet*,
    equation 2, with integrals in place of values at sensors.

    Coefficients in eigenfunctions would be functionals as well, but a network cannot have them for
    its input: the sign of an eigenfunction, and the choice within a multiple eigenvalue, are
    another matter on each mesh. Functions of the Laplacian do not depend on them.
    """

    name: ClassVar[str] = "deeponet"
    mesh_independent: ClassVar[bool] = True

    def __init__(
        self,
        functions: int = 64,
        functionals: int = 64,
        channels: int = 8,
        width: int = 64,
        depth: int = 2,
        trunk: str = "coordinates",
        modes: int = 100,
        frequencies: int = 6,
        degree: int | None = None,
    ) -> None:
        super().__init__()
        self.functions = check_integer("functions", functions)
        self.functionals = check_integer("functionals", functionals)
        self.channels = check_integer("channels", channels, least=0)
        self.width = check_integer("width", width)
        self.depth = check_integer("depth", depth)
        self.trunk = check_choice("trunk", trunk, _TRUNKS)
        self.modes = check_integer("modes", modes, least=2)
        self.frequencies = check_integer("frequencies", frequencies, least=0)
        self.degree = None if degree is None else check_integer("degree", degree)

    def config(self) -> dict[str, Any]:
        """Constructor arguments, JSON-able."""
        return {
            "functions": self.functions,
            "functionals": self.functionals,
            "channels": self.channels,
            "width": self.width,
            "depth": self.depth,
            "trunk": self.trunk,
            "modes": self.modes,
            "frequencies": self.frequencies,
            "degree": self.degree,
        }

    def request(self) -> GeometryRequest:
        """Nodes, and eigenfunctions for a trunk of modes."""
        return GeometryRequest(degree=self.degree, modes=self.modes if self._with_modes else 0)

    @property
    def _with_modes(self) -> bool:
        return self.trunk == "modes"

    def _products(self) -> int:
        """How many inner products of branch and trunk there are."""
        return 1

    def configure(self, inputs: Sequence[Field], output: Field) -> None:
        """Create the weights."""
        total, gdim = sum(field.channels for field in inputs), output.gdim
        products = self._products()
        self.waves = Waves(gdim, self.frequencies)

        def network(inputs: int, outputs: int, reads: int) -> _Perceptron:
            return _Perceptron(inputs, self.width, self.depth, outputs, reads)

        if self.channels:
            self.lift = pointwise(total + gdim + 1, 2 * self.channels, self.channels)
        self.weight = network(self.waves.count, self.functionals, 1)
        moments = self.functionals * (total + self.channels)
        self.branch = network(moments, self.functions * output.channels, products)
        families = 2 if self._with_modes else 1
        self.place = network(self.waves.count, families * self.functions, products)
        if self._with_modes:
            largest = largest_eigenvalue(self.modes, gdim)
            self.filters = nn.ModuleList(_Filter(self.functions, largest) for _ in range(products))

    def forward(self, xs: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """Map input coefficients (dim_i, batch) to output coefficients (dim_out, batch)."""
        places = self.waves(geometry.features())
        inputs = geometry.lift(xs)
        # One product for all layers: (nodes, layers * functions) times (..., batch * channels).
        functions = torch.cat(self._trunk(places, geometry), dim=1)
        branches = torch.stack(self.branch(self._moments(inputs, places, geometry)), dim=1)
        batch, terms = inputs.shape[1], functions.shape[1]
        coefficients = branches.reshape(batch, terms, -1).transpose(0, 1).reshape(terms, -1)
        scale = 1.0 / (branches.shape[1] * math.sqrt(self.functions))
        out = scale * (functions @ coefficients)
        return geometry.coefficients(out.reshape(geometry.nodes, batch, -1))

    def _moments(self, inputs: Tensor, places: Tensor, geometry: Geometry) -> Tensor:
        """Integrals of the inputs and of functions of them, (batch, functionals * fields)."""
        nodes, batch, _ = inputs.shape
        fields = inputs
        if self.channels:
            features = geometry.features()[:, None].expand(-1, batch, -1)
            fields = torch.cat([inputs, self.lift(torch.cat([inputs, features], -1))], dim=-1)
        weight = self.weight(places)[0] * geometry.weights[:, None]
        moments = weight.T @ fields.reshape(nodes, -1)
        return moments.reshape(self.functionals, batch, -1).transpose(0, 1).flatten(1)

    def _trunk(self, places: Tensor, geometry: Geometry) -> list[Tensor]:
        """Functions at the nodes, (nodes, functions) for each inner product."""
        functions = self.place(places)
        if not self._with_modes:
            return functions
        if geometry.basis is None:
            raise ValueError("This geometry holds no eigenfunctions: build it from `request()`.")
        basis = geometry.basis
        return [f(x, basis) for f, x in zip(self.filters, functions, strict=True)]


@register
class MultiONet(DeepONet):
    """A `DeepONet` that multiplies branch and trunk after each hidden layer.

    The output is the mean of the inner products over the layers, each of them read by a linear map
    of its own: shallow layers give smooth functions of the place and nearly linear ones of
    the inputs, deep ones the rest. Parameters are those of `DeepONet`; `depth` is the number of
    products.

    Notes
    -----
    Zang and Koutsourelakis (2025), *DGenNO: a novel physics-aware neural operator for solving
    forward and inverse PDE problems*, where the features themselves are multiplied.
    """

    name: ClassVar[str] = "multionet"

    def _products(self) -> int:
        return self.depth


class _Perceptron(nn.Module):
    """Hidden layers, the last of which are read by linear maps, each with one of the input."""

    def __init__(self, inputs: int, width: int, depth: int, outputs: int, reads: int) -> None:
        super().__init__()
        widths = [inputs] + [width] * depth
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.heads = nn.ModuleList(nn.Linear(width, outputs) for _ in range(reads))
        self.direct = nn.ModuleList(nn.Linear(inputs, outputs, bias=False) for _ in range(reads))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(rows, inputs) to (rows, outputs) for each layer that is read."""
        layers, y = [], x
        for layer in self.hidden:
            y = gelu(layer(y))
            layers.append(y)
        last = layers[-len(self.heads) :]
        return [
            head(y) + direct(x)
            for head, direct, y in zip(self.heads, self.direct, last, strict=True)
        ]


class _Filter(nn.Module):
    """Functions of the Laplacian, one for each field: what a network of the place has in modes."""

    def __init__(self, functions: int, largest: float) -> None:
        super().__init__()
        weight = 0.1 * torch.randn(2, _POLYNOMIALS, functions)
        weight[:, 0] += 1.0
        self.weight = nn.Parameter(weight)
        self.largest = largest

    def forward(self, x: Tensor, basis: Basis) -> Tensor:
        """(nodes, 2 * functions) to (nodes, functions)."""
        one, two = x.chunk(2, dim=1)
        # Nothing vanishes anywhere if there is no constrained family: then both are the same.
        constrained = basis.free if basis.constrained is None else basis.constrained
        vanishing = self._filtered(one, self.weight[0], constrained)
        return vanishing + self._filtered(two, self.weight[1], basis.free)

    def _filtered(self, x: Tensor, weight: Tensor, spectrum: Spectrum) -> Tensor:
        terms = chebyshev(spectrum.eigenvalues, len(weight), self.largest)
        function = (terms @ weight) * spectrum.window[:, None]
        return spectrum.synthesis @ (function * (spectrum.analysis @ x))
