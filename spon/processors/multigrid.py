"""Layers whose maps between channels are multigrid cycles with learned operators and smoothers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from spon.processors.base import Field, Geometry, GeometryRequest, Processor, register
from spon.processors.checks import check_choice, check_integer
from spon.processors.least_squares import fit_weights, one_by_one
from spon.processors.levels import Hierarchy, Level
from spon.processors.pointwise import pointwise, silent

__all__ = ["Multigrid", "VCycle"]

_SOURCES = ("auto", "meshes", "lattice")
_ORDER_ONE = 20.0  # about the first eigenvalue of a fixed membrane of unit area
_DAMPING = 0.7
# How far weights can go from a smoother that converges. The norm of a change of the smoother or of
# the stiffness of one half leaves one half of either.
_LIMIT = 0.5
_SHIFT_LIMIT = 2.0


@register
class Multigrid(Processor):
    """V-cycles over the levels of a hierarchy, mixed with pointwise networks.

    Inputs are lifted to `channels` latent fields by a pointwise network that also sees positions
    and the torsion function of the domain. Each of `layers` residual layers turns the fields into
    `width` loads and applies one V-cycle to them, whose operators and smoothers on each level are
    learned combinations of fixed matrices and couple the loads; the results are mixed into the
    channels, and a pointwise map is added. A pointwise network reads the output. On top comes a
    linear path from input to output through V-cycles alone (its weights start at zero), which
    learns problems with constant coefficients in a few steps.

    Before training every cycle is one of -Laplace + c, so that information crosses the domain at
    once. Half of what a cycle computes vanishes on the constrained boundary on each level, the
    other half has a natural boundary.

    Parameters
    ----------
    channels : int, optional
        Latent fields.
    layers : int, optional
        Residual layers.
    width : int, optional
        Fields in the cycle of a layer, which decide what it costs.
    levels : int, optional
        Sets of weights: for mesh sizes of the domain's length, of half, a quarter ... of it; those
        of a level are interpolated between them, and levels that are finer yet take the last. A
        hierarchy may have more levels, or fewer.
    pre, post : int, optional
        Smoothing steps before and after the coarse correction.
    cycles : int, optional
        V-cycles of the linear path, one after the other with the same weights.
    smoother : {"diagonal", "stencil"}, optional
        "diagonal" (default) smooths with learned multiples of the inverse diagonal, mixed between
        fields; "stencil" with learned stencils on top, for half as many products again.
    coarse : {"auto", "meshes", "lattice"}, optional
        Where coarse levels come from. "meshes": lower degrees on the mesh, then the coarser meshes
        of the ``MeshHierarchy`` or ``NonNestedHierarchy`` that the output's mesh belongs to.
        "lattice": multilinear functions on nested lattices over the box around the domain, for
        any mesh that is not periodic; they do not depend on the mesh, so that outputs on different
        meshes of one domain are closest. "auto" (default): meshes where a hierarchy is known,
        then lattices below the coarsest.
    degree : int, optional
        Degree of the latent continuous space; that of the output, but at most 2, if not given.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it should be.

    Notes
    -----
    He, Liu and Xu (2024), *MgNO: Efficient parameterization of linear operators via multigrid*,
    algorithm 1, on finite elements: A = sum_k K_k Theta_k with K_k the mass, the stiffness and the
    derivative matrices, S = diag(K)^-1 (Theta_0 + sum_k Theta_k C_k) with the same matrices C_k
    made dimensionless by the lumped mass and the local mesh size, or Theta_0 alone. Cycles that
    start from zero need no injection of values. Their layer is gelu(cycle(u) + pointwise(u)), here
    it is added to u.

    Smoothing steps that amplify would do so on each level, and the finer the mesh, the more levels.
    The norms of the changes from a smoother that converges are limited therefore, whatever the
    weights are.
    """

    name: ClassVar[str] = "multigrid"
    mesh_independent: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True

    def __init__(
        self,
        channels: int = 16,
        layers: int = 3,
        width: int = 8,
        levels: int = 5,
        pre: int = 1,
        post: int = 1,
        cycles: int = 3,
        smoother: str = "diagonal",
        coarse: str = "auto",
        degree: int | None = None,
    ) -> None:
        super().__init__()
        self.channels = check_integer("channels", channels)
        self.layers = check_integer("layers", layers)
        self.width = check_integer("width", width)
        self.levels = check_integer("levels", levels)
        self.pre = check_integer("pre", pre)
        self.post = check_integer("post", post, least=0)
        self.cycles = check_integer("cycles", cycles)
        self.smoother = check_choice("smoother", smoother, ("stencil", "diagonal"))
        self.coarse = check_choice("coarse", coarse, _SOURCES)
        self.degree = None if degree is None else check_integer("degree", degree)

    def config(self) -> dict[str, Any]:
        """Constructor arguments, JSON-able."""
        return {
            "channels": self.channels,
            "layers": self.layers,
            "width": self.width,
            "levels": self.levels,
            "pre": self.pre,
            "post": self.post,
            "cycles": self.cycles,
            "smoother": self.smoother,
            "coarse": self.coarse,
            "degree": self.degree,
        }

    def request(self) -> GeometryRequest:
        """Nodes and levels."""
        return GeometryRequest(degree=self.degree, levels=self.coarse)

    def configure(self, inputs: Sequence[Field], output: Field) -> None:
        """Create the weights."""
        total = sum(field.channels for field in inputs)
        c, gdim, out = self.channels, output.gdim, output.channels

        def cycle(channels: int) -> VCycle:
            steps, stencil = (self.pre, self.post), self.smoother == "stencil"
            return VCycle(channels, gdim, self.levels, *steps, stencil)

        self.lift = pointwise(total + gdim + 1, 2 * c, c)
        self.hidden = nn.ModuleList(
            _Layer(c, self.width, gdim, cycle(self.width)) for _ in range(self.layers)
        )
        self.read = pointwise(c, 2 * c, out)
        # Two fields for each component of the output: one for each kind of boundary.
        # The inputs come without their mean: they and the function one make an affine path.
        self.load = _Load(total + 1, 2 * out, gdim, 0.0)
        self.linear = cycle(2 * out)
        with torch.no_grad():
            for change in (self.linear.operator, self.linear.smoother):
                change.zero_()
        self.join = nn.Linear(2 * out, out, bias=False)
        with torch.no_grad():
            self.join.weight.copy_(torch.eye(out).repeat(1, 2))

    def forward(self, xs: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """Map input coefficients (dim_i, batch) to output coefficients (dim_out, batch)."""
        hierarchy = geometry.hierarchy
        if hierarchy is None:
            raise ValueError("This geometry holds no levels: build it from `request()`.")
        inputs = geometry.lift(xs)
        features = geometry.features()[:, None].expand(-1, inputs.shape[1], -1)
        latent = self.lift(torch.cat([inputs, features], dim=-1))
        for layer in self.hidden:
            latent = latent + gelu(layer(latent, hierarchy))
        return geometry.coefficients(self.read(latent) + self._affine(inputs, hierarchy))

    def _affine(self, inputs: Tensor, hierarchy: Hierarchy) -> Tensor:
        """V-cycles of loads of the inputs and of the function one, (nodes, batch, outputs)."""
        inputs = torch.cat([inputs, torch.ones_like(inputs[..., :1])], dim=-1)
        load = self.load(inputs, hierarchy.levels[0])
        out: Tensor = self.join(self.linear(load, hierarchy, self.cycles))
        return out

    def fit_linear(self, xs: Sequence[Tensor], y: Tensor, geometry: Geometry, rows: Tensor) -> None:
        """Fit the loads of the affine path to samples; see `Processor.fit_linear`."""
        hierarchy = geometry.hierarchy
        if hierarchy is None:
            raise ValueError("This geometry holds no levels: build it from `request()`.")
        inputs = geometry.lift(xs)

        def apply(which: Tensor) -> Tensor:
            return geometry.coefficients(self._affine(inputs[:, which], hierarchy))

        weights = [self.load.weight]
        if fit_weights(weights, one_by_one(weights, apply), y, rows):
            silent(self.read)


class VCycle(nn.Module):
    """A V-cycle for learned operators with learned smoothers: dual to primal vectors.

    Parameters
    ----------
    channels : int
        The first half of them, rounded up, vanish on the constrained boundary.
    gdim : int
        Number of partial derivatives.
    levels : int
        Sets of weights.
    pre, post : int
        Smoothing steps before and after the coarse correction, on the coarsest level one after
        the other.
    stencil : bool
        Whether the smoother has stencils, or is a multiple of the diagonal.

    Attributes
    ----------
    operator : Parameter, shape (levels, terms, channels, channels)
        Change of the operator from -Laplace + c: factors of mass, stiffness and derivatives.
    smoother : Parameter, shape (levels, 1 + terms, channels, channels) or (levels, 1, ...)
        Change from a damped Jacobi method: factors of the residual and of its stencils. The
        changes that act are these over sqrt(1 + |change|^2 / limit^2) on each level.
    """

    def __init__(
        self, channels: int, gdim: int, levels: int, pre: int, post: int, stencil: bool
    ) -> None:
        super().__init__()
        terms = 2 + gdim
        self.pre, self.post, self.stencil = pre, post, stencil
        self.operator = nn.Parameter(torch.zeros(levels, terms, channels, channels))
        count = 1 + terms if stencil else 1
        self.smoother = nn.Parameter(torch.zeros(levels, count, channels, channels))
        spread = 0.1 / channels
        with torch.no_grad():
            self.operator[0].normal_(0.0, spread)
            self.smoother[0].normal_(0.0, spread)
        constrained = (torch.arange(channels) < (channels + 1) // 2).to(torch.get_default_dtype())
        self.register_buffer("constrained", constrained, persistent=False)
        self.register_buffer("units", _units(gdim), persistent=False)

    constrained: Tensor
    units: Tensor

    def forward(self, load: Tensor, hierarchy: Hierarchy, cycles: int = 1) -> Tensor:
        """Apply cycles from zero.

        Parameters
        ----------
        load : Tensor, shape (nodes, batch, channels)
            Dual.
        hierarchy : Hierarchy
        cycles : int, optional

        Returns
        -------
        Tensor, shape (nodes, batch, channels)
            Primal, zero on the constrained boundary in the constrained channels.
        """
        shares = hierarchy.shares(len(self.operator)).to(self.operator)
        change = torch.tensordot(shares, self.operator, dims=1)
        shift, rest = change.split([1, len(self.units) - 1], dim=-3)
        change = torch.cat([_limited(shift, _SHIFT_LIMIT), _limited(rest, _LIMIT)], dim=-3)
        operators = (change + self._laplacian(hierarchy)) * self.units[:, None, None]
        change = torch.tensordot(shares, self.smoother, dims=1)
        smoothers = _limited(change, _LIMIT) + self._jacobi()
        steps = [
            _Step(level, a, s, self._mask(level, hierarchy.constrained))
            for level, a, s in zip(hierarchy.levels, operators, smoothers, strict=True)
        ]
        load = steps[0].masked(load)
        out = self._cycle(steps, load)
        for _ in range(cycles - 1):
            out = out + self._cycle(steps, steps[0].residual(load, out))
        return out

    def _cycle(self, steps: Sequence[_Step], load: Tensor) -> Tensor:
        here, coarser = steps[0], steps[1:]
        u = here.smooth(load)
        for _ in range(self.pre - 1):
            u = u + here.smooth(here.residual(load, u))
        level = here.level
        if level.prolongation is not None and level.restriction is not None:
            below = coarser[0].masked(level.restriction(here.residual(load, u)))
            u = u + here.masked(level.prolongation(self._cycle(coarser, below)))
        for _ in range(self.post):
            u = u + here.smooth(here.residual(load, u))
        return u

    def _laplacian(self, hierarchy: Hierarchy) -> Tensor:
        """Factors of -Laplace + c, shape (terms, channels, channels): small c where u = 0 holds."""
        identity = torch.eye(len(self.constrained)).to(self.operator)
        natural = 1.0 - self.constrained * float(hierarchy.constrained)
        shift = natural + (1.0 - natural) / _ORDER_ONE
        nothing = torch.zeros_like(identity)
        gradient = [nothing] * (len(self.units) - 2)
        return torch.stack([identity * shift, identity, *gradient])

    def _jacobi(self) -> Tensor:
        start = torch.zeros_like(self.smoother[0])
        start[0] = _DAMPING * torch.eye(len(self.constrained)).to(start)
        return start

    def _mask(self, level: Any, constrained: bool) -> Tensor | None:
        return 1.0 - level.fixed[:, None, None] * self.constrained if constrained else None


class _Step:
    """A level with its weights, for the time of one cycle."""

    def __init__(self, level: Any, operator: Tensor, smoother: Tensor, mask: Tensor | None) -> None:
        self.level: Level = level
        self.operator, self.smoother, self.mask = operator, smoother, mask
        scaling = self.level.scaling[:, None, None]
        self.scaling = scaling if mask is None else scaling * mask

    def masked(self, x: Tensor) -> Tensor:
        """Zero where the constrained channels are fixed."""
        return x if self.mask is None else x * self.mask

    def residual(self, load: Tensor, u: Tensor) -> Tensor:
        """Load minus operator, dual."""
        return self.masked(load - _mixed(self.level.forms(u), self.operator, u.shape[0]))

    def smooth(self, r: Tensor) -> Tensor:
        """A residual to a correction, dual to primal."""
        count = self.smoother.shape[-3] - 1
        damping, stencils = self.smoother.split([1, count], dim=-3)
        out = _mixed(r, damping, r.shape[0])
        if count:
            out = out + _mixed(self.level.stencils(r), stencils, r.shape[0])
        return out * self.scaling


class _Load(nn.Module):
    """A learned map from values to loads: mass, stiffness and derivatives, primal to dual."""

    units: Tensor

    def __init__(self, inputs: int, channels: int, gdim: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(scale * torch.randn(2 + gdim, inputs, channels))
        self.register_buffer("units", _units(gdim), persistent=False)

    def forward(self, u: Tensor, level: Any) -> Tensor:
        """(nodes, batch, inputs) to (nodes, batch, channels)."""
        return _mixed(level.forms(u), self.weight * self.units[:, None, None], u.shape[0])


class _Layer(nn.Module):
    """Load, V-cycle and a pointwise map: values to values."""

    def __init__(self, channels: int, width: int, gdim: int, cycle: VCycle) -> None:
        super().__init__()
        self.load = _Load(channels, width, gdim, 0.5 / channels**0.5)
        self.cycle = cycle
        self.join = nn.Linear(width, channels, bias=False)
        self.pointwise = nn.Linear(channels, channels)

    def forward(self, u: Tensor, hierarchy: Hierarchy) -> Tensor:
        """(nodes, batch, channels) to the same."""
        smooth = self.cycle(self.load(u, hierarchy.levels[0]), hierarchy)
        out: Tensor = self.join(smooth) + self.pointwise(u)
        return out


def _units(gdim: int) -> Tensor:
    """Sizes at which mass, stiffness and derivatives weigh alike on smooth functions."""
    return torch.tensor([_ORDER_ONE, 1.0] + gdim * [math.sqrt(_ORDER_ONE)])


def _limited(change: Tensor, limit: float) -> Tensor:
    """Scaled so that its norm on each level, (levels, ..., terms, in, out), is below the limit."""
    square = change.flatten(-3).square().sum(dim=-1) / limit**2
    return change * torch.rsqrt(1.0 + square)[..., None, None, None]


def _mixed(stacked: Tensor, weights: Tensor, nodes: int) -> Tensor:
    """Channels mixed term by term and summed, (terms * nodes, batch, in) to (nodes, batch, out).

    The weights have the shape (terms, in, out), or (meshes, terms, in, out) where meshes lie side
    by side, each with as many nodes.
    """
    terms, channels, outputs = weights.shape[-3:]
    meshes = weights.shape[:-3]
    # Unbound, not indexed: the gradient of each index would be a whole tensor of zeros.
    parts = stacked.reshape(terms, *meshes, -1, channels).unbind()
    matrices = weights.unbind(-3)
    add = torch.baddbmm if meshes else torch.addmm
    out = parts[0] @ matrices[0]
    for part, matrix in zip(parts[1:], matrices[1:], strict=True):
        out = add(out, part, matrix)
    return out.reshape(nodes, -1, outputs)
