"""Layers that are functions of the Laplacian of the mesh.

A layer turns nodal values into coefficients of the first eigenfunctions, multiplies them by a
learned matrix-valued function of the eigenvalue, and goes back; the gradient of the low-pass part
and a pointwise map are added. All of that is bounded in L2, whatever the mesh, and a function of
the Laplacian is an operator on the domain: refine the mesh and the layer converges.
"""

from __future__ import annotations

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
from spon.processors.least_squares import fit_weights, one_by_one
from spon.processors.pointwise import pointwise, silent

__all__ = ["Spectral"]

_BASES = ("auto", "scalar", "vector")


@register
class Spectral(Processor):
    """Functions of the Laplacian, mixed with pointwise networks.

    Inputs are lifted to `channels` latent fields by a pointwise network that also sees positions
    and the torsion function of the domain. Then `layers` residual layers, a pointwise network that
    reads the output, and a linear path from input to output through functions of the Laplacian
    alone, which learns constant-coefficient problems in a few steps (its weights start at zero).

    The eigenfunctions are those with a natural boundary together with those that vanish where the
    decoder's conditions hold. For a vector-valued output the latter are eigenfunctions of an
    elasticity operator, which couples the components.

    Parameters
    ----------
    channels : int, optional
        Latent fields; a multiple of the dimension where the basis is a vector basis.
    layers : int, optional
        Residual layers.
    modes : int, optional
        Eigenfunctions in each family.
    polynomials : int, optional
        Terms of the learned functions: Chebyshev polynomials in the logarithm of the eigenvalue.
    points : int, optional
        The layers before the last work on means over about so many patches of nodes, and cost the
        same on every finer mesh; 0 (default) lets them work on the nodes. Worth it on meshes with
        many more nodes. Rough inputs look smoother in patches: weights that were trained with
        patches belong on meshes that are fine enough to form them, and the other way round.
    basis : {"auto", "scalar", "vector"}, optional
        Kind of the eigenfunctions that vanish on the boundary. "auto" takes vector fields if the
        output has as many components as the mesh has coordinates.
    degree : int, optional
        Degree of the latent continuous space; that of the output, but at most 2, if not given.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it should be.

    Notes
    -----
    Weights as polynomials of the eigenvalue make the layer a spectral graph convolution
    (Defferrard, Bresson and Vandergheynst 2016, eq. 4) on the domain instead of on a graph.
    """

    name: ClassVar[str] = "spectral"
    mesh_independent: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True

    def __init__(
        self,
        channels: int = 24,
        layers: int = 4,
        modes: int = 100,
        polynomials: int = 10,
        points: int = 0,
        basis: str = "auto",
        degree: int | None = None,
    ) -> None:
        super().__init__()
        self.channels = check_integer("channels", channels)
        self.layers = check_integer("layers", layers)
        self.modes = check_integer("modes", modes, least=2)
        self.polynomials = check_integer("polynomials", polynomials)
        self.points = check_integer("points", points, least=0)
        self.basis = check_choice("basis", basis, _BASES)
        self.degree = None if degree is None else check_integer("degree", degree)
        self._vector = False

    def config(self) -> dict[str, Any]:
        """Constructor arguments, JSON-able."""
        return {
            "channels": self.channels,
            "layers": self.layers,
            "modes": self.modes,
            "polynomials": self.polynomials,
            "points": self.points,
            "basis": self.basis,
            "degree": self.degree,
        }

    def request(self) -> GeometryRequest:
        """Nodes, eigenfunctions and patches."""
        return GeometryRequest(
            degree=self.degree, modes=self.modes, vector=self._vector, points=self.points
        )

    def configure(self, inputs: Sequence[Field], output: Field) -> None:
        """Create the weights.

        Raises
        ------
        ValueError
            If a vector basis does not fit the output or the number of channels.
        """
        gdim = output.gdim
        self._vector = self._wants_vectors(output)
        group = gdim if self._vector else 1
        if self.channels % group:
            raise ValueError(
                f"A vector basis in {gdim} dimensions groups the channels by {gdim}: make "
                f"channels={self.channels} a multiple of {gdim}, or set basis='scalar'."
            )
        largest = largest_eigenvalue(self.modes, gdim)
        components = [field.channels for field in inputs]
        c, hidden = self.channels, 2 * self.channels
        self.lift = pointwise(sum(components) + gdim + 1, hidden, c)
        self.hidden = nn.ModuleList(
            _Layer(c, group, gdim, self.polynomials, largest) for _ in range(self.layers)
        )
        self.read = pointwise(c, hidden, output.channels)
        self.linear = _LinearPath(components, output.channels, group, self.polynomials, largest)

    def fit_linear(self, xs: Sequence[Tensor], y: Tensor, geometry: Geometry, rows: Tensor) -> None:
        """Fit the linear path to samples; see `Processor.fit_linear`."""
        basis = geometry.basis
        if basis is None:
            raise ValueError("This geometry holds no eigenfunctions: build it from `request()`.")
        inputs = geometry.lift(xs)

        def apply(which: Tensor) -> Tensor:
            return geometry.coefficients(self.linear(inputs[:, which], basis))

        weights = list(self.linear.parameters())
        if fit_weights(weights, one_by_one(weights, apply), y, rows):
            silent(self.read)

    def _wants_vectors(self, output: Field) -> bool:
        fits = output.gdim > 1 and output.channels == output.gdim
        if self.basis == "vector" and not fits:
            raise ValueError(
                f"basis='vector' needs an output with {output.gdim} components (and more than "
                f"one), this one has {output.channels}: use basis='scalar' or 'auto'."
            )
        return fits and self.basis != "scalar"

    def forward(self, xs: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """Map input coefficients (dim_i, batch) to output coefficients (dim_out, batch)."""
        if geometry.basis is None:
            raise ValueError("This geometry holds no eigenfunctions: build it from `request()`.")
        inputs = geometry.lift(xs)
        features = geometry.features()[:, None].expand(-1, inputs.shape[1], -1)
        fine = self.lift(torch.cat([inputs, features], dim=-1))
        if geometry.patches is None or geometry.patch_basis is None:
            inner, latent = geometry.basis, fine
        else:
            inner, latent = geometry.patch_basis, geometry.patches(fine)
        *before, last = self.hidden
        for layer in before:
            latent = latent + gelu(layer(latent, inner, latent, inner))
        # Coefficients know nothing of the points they came from: read them at the nodes.
        fine = latent if inner is geometry.basis else fine
        fine = fine + gelu(last(latent, inner, fine, geometry.basis))
        return geometry.coefficients(self.read(fine) + self.linear(inputs, geometry.basis))


class _Layer(nn.Module):
    """A linear map: functions of the Laplacian, gradients of the low-pass part, pointwise map.

    Parameters
    ----------
    channels : int
        Fields in and out.
    group : int
        Components of a vector field, which the constrained family treats as one; or 1.
    gdim : int
        Number of partial derivatives.
    polynomials : int
        Terms of the functions of the eigenvalue.
    largest : float
        About the largest eigenvalue.
    """

    def __init__(
        self, channels: int, group: int, gdim: int, polynomials: int, largest: float
    ) -> None:
        super().__init__()
        fields = channels // group
        self.constrained = _Function(polynomials, fields, fields, largest, 1.0 / (3 * fields))
        self.free = _Function(polynomials, channels, channels, largest, 1.0 / (3 * channels))
        scale = 1.0 / (3.0 * math.sqrt(channels))
        self.gradient = nn.Parameter(scale * torch.randn(gdim, channels, channels))
        # The gradient of a mode grows like the root of its eigenvalue: at most one after this.
        self.unit = 1.0 / math.sqrt(largest)
        self.pointwise = nn.Linear(channels, channels)
        self.group = group

    def forward(self, x: Tensor, source: Basis, y: Tensor, target: Basis) -> Tensor:
        """From values `x` at the points of one basis to the points of another.

        Parameters
        ----------
        x : Tensor, shape (points of source, batch, channels)
        source : Basis
        y : Tensor, shape (points of target, batch, channels)
            Values for the pointwise map.
        target : Basis
            The same eigenfunctions at other points.

        Returns
        -------
        Tensor, shape (points of target, batch, channels)
        """
        out = self.pointwise(y)
        low = _analyse(source.free, x, 1)
        function = self.free(source.free)
        if source.constrained is not None and target.constrained is not None:
            modes = _analyse(source.constrained, x, self.group)
            modes = torch.bmm(modes, self.constrained(source.constrained))
            out = out + _synthesise(target.constrained.synthesis, [modes], self.group)
        else:
            # Nothing vanishes anywhere: both families are the same, and so are their functions.
            function = function + self.constrained(source.free)
        smooth = low * (source.free.window * self.unit)[:, None, None]
        parts = [torch.bmm(low, function), *(smooth @ g for g in self.gradient)]
        return out + _synthesise(target.free.table, parts, 1)


class _LinearPath(nn.Module):
    """An affine map from inputs to output: functions of the Laplacian and of its inverse.

    They act on the inputs and on the function one, since inputs come without their mean.
    """

    def __init__(
        self,
        components: Sequence[int],
        outputs: int,
        group: int,
        polynomials: int,
        largest: float,
    ) -> None:
        super().__init__()
        self.components, self.group = list(components), group
        total = sum(components) + 1
        self.free = _Function(polynomials, total, outputs, largest, 0.0, inverse=True)
        # Vector modes see the inputs that are vector fields, scalar modes every component.
        fields = total if group == 1 else sum(c == group for c in components)
        self.constrained = None
        if fields:
            self.constrained = _Function(
                polynomials, fields, outputs // group, largest, 0.0, inverse=True
            )

    def forward(self, inputs: Tensor, basis: Basis) -> Tensor:
        """(nodes, batch, inputs) to (nodes, batch, outputs)."""
        function = self.free(basis.free)
        inputs = torch.cat([inputs, torch.ones_like(inputs[..., :1])], dim=-1)
        out: Tensor | None = None
        if self.constrained is not None:
            if basis.constrained is None:
                function = function + self.constrained(basis.free)
            else:
                modes = _analyse(basis.constrained, self._fields(inputs), self.group)
                modes = torch.bmm(modes, self.constrained(basis.constrained))
                out = _synthesise(basis.constrained.synthesis, [modes], self.group)
        modes = torch.bmm(_analyse(basis.free, inputs, 1), function)
        free = _synthesise(basis.free.synthesis, [modes], 1)
        return free if out is None else out + free

    def _fields(self, inputs: Tensor) -> Tensor:
        """The vector fields among the inputs, first components first."""
        if self.group == 1:
            return inputs
        parts = inputs.split([*self.components, 1], dim=-1)
        vectors = [part for part in parts if part.shape[-1] == self.group]
        return torch.stack(vectors, dim=-1).flatten(2)


class _Function(nn.Module):
    """A matrix-valued function of the eigenvalue: Chebyshev polynomials in log(1 + lambda).

    With `inverse`, the same polynomials over 1 + lambda come on top: solution operators decay like
    the inverse of the Laplacian, over many orders of magnitude.
    """

    _ORDER_ONE = 20.0  # about the first eigenvalue of a fixed membrane of unit area

    def __init__(
        self,
        polynomials: int,
        inputs: int,
        outputs: int,
        largest: float,
        scale: float,
        inverse: bool = False,
    ) -> None:
        super().__init__()
        terms = 2 * polynomials if inverse else polynomials
        self.weight = nn.Parameter(scale * torch.randn(terms, inputs, outputs))
        self.polynomials, self.inverse, self.largest = polynomials, inverse, largest

    def forward(self, spectrum: Spectrum) -> Tensor:
        """Values at the eigenvalues, shape (modes, inputs, outputs)."""
        eigenvalues = spectrum.eigenvalues
        terms = chebyshev(eigenvalues, self.polynomials, self.largest) * spectrum.window[:, None]
        if self.inverse:
            decay = self._ORDER_ONE / (1.0 + eigenvalues)
            terms = torch.cat([terms, terms * decay[:, None]], dim=1)
        return torch.einsum("kj,jab->kab", terms, self.weight)


def _analyse(spectrum: Spectrum, x: Tensor, group: int) -> Tensor:
    """Values (points, batch, channels) to coefficients (modes, batch, channels / group)."""
    points, batch, channels = x.shape
    meshes = spectrum.analysis.shape[:-2]
    own = points // math.prod(meshes)
    if group > 1:
        # Channels are ordered by component, then by field; the modes have components first.
        x = x.reshape(-1, own, batch, group, channels // group).permute(0, 3, 1, 2, 4)
    columns = x.reshape(*meshes, group * own, -1)
    return (spectrum.analysis @ columns).reshape(-1, batch, channels // group)


def _synthesise(table: Tensor, coefficients: Sequence[Tensor], group: int) -> Tensor:
    """Coefficients of functions, or of these and derivatives, to values at the points.

    Parameters
    ----------
    table : Tensor, shape (group * points, kinds * modes)
        Or (meshes, group * points, kinds * modes) for meshes side by side.
    coefficients : sequence of Tensor, shapes (modes, batch, fields)
        One for each kind.
    group : int

    Returns
    -------
    Tensor, shape (points, batch, group * fields)
    """
    batch, fields = coefficients[0].shape[1:]
    meshes = table.shape[:-2]
    parts = [c.reshape(*meshes, -1, batch * fields) for c in coefficients]
    columns = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)
    x = table @ columns
    if group == 1:
        return x.reshape(-1, batch, fields)
    x = x.reshape(math.prod(meshes), group, -1, batch, fields).permute(0, 2, 3, 1, 4)
    return x.reshape(-1, batch, group * fields)
