"""Samplers made of Gaussian random fields: coefficients, phases, boundary data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from firedrake import (
    DirichletBC,
    FunctionSpace,
    TensorFunctionSpace,
    TrialFunction,
    VectorFunctionSpace,
    interpolate,
)
from scipy.stats import norm
from ufl import zero

from spon.fem.maps import sparse_map
from spon.fem.matern import Boundary, Matern
from spon.fem.samplers import (
    FieldSampler,
    describe_value,
    nodal_values,
    number,
    positive,
    require_points,
)
from spon.fem.spaces import mesh_of, signature

__all__ = ["GaussianRandomField", "RandomBoundaryData", "TwoPhase"]


class GaussianRandomField(FieldSampler):
    r"""Gaussian random fields with Matern covariance.

    The field is drawn in a scalar CG space of the mesh (`V` itself, where it is one) and
    interpolated into `V`; the components of a vector- or tensor-valued field are independent.

    Near the boundary the variance differs from ``std**2``: with the natural ("neumann") condition
    it is up to 2 times as large on a smooth boundary and 2^k times in a corner of k sides, within
    about one `length`; "robin" keeps it within some 10 to 20 percent; "dirichlet" makes the field
    equal to its mean there. `normalise` scales the field to ``std`` at every node, whatever the
    boundary, at the price of one solve for each node when the sampler is made (seconds at 5,000
    nodes, minutes at 50,000). Resolve the length: a mesh wider than ``length / 3`` loses variance.

    Parameters
    ----------
    V : FunctionSpace
        Any that point values can be interpolated into: CG, DG, RT, N1curl, vectors of them.
    length : float
        Correlation length, in the units of the mesh: at this distance the correlation is about
        0.5.
    std : float, optional
        Standard deviation, before `transform`.
    mean : float, UFL expression or Function, optional
        Mean value, before `transform`.
    smoothness : float, optional
        The Matern parameter nu > 0: the field has nu derivatives, roughly. The default
        ``2 - d/2`` on a mesh of dimension d (1 in 2D, 1/2 in 3D) needs one solve a sample; adding
        2 adds a solve; values between cost about 20 factorisations and solves.
    transform : "exp" or callable, optional
        Applied to the point values: "exp" gives lognormal fields; a callable takes and returns an
        array.
    boundary : {"neumann", "robin", "dirichlet"}, optional
        Boundary condition of the equation; "robin" after Roininen, Huttunen, Lasanen (2014).
    normalise : bool, optional
        Whether to scale to the exact standard deviation at every node.

    Raises
    ------
    TypeError, ValueError
        If a number is not positive, or an option is unknown.
    NotImplementedError
        For mixed spaces.
    """

    def __init__(
        self,
        V: Any,
        length: float,
        std: float = 1.0,
        mean: Any = 0.0,
        smoothness: float | None = None,
        transform: Literal["exp"] | Callable[[np.ndarray], np.ndarray] | None = None,
        boundary: Boundary = "neumann",
        normalise: bool = False,
    ) -> None:
        super().__init__(V)
        if len(V) > 1:
            raise NotImplementedError(
                "GaussianRandomField does not fill mixed spaces: sample each part in its own."
            )
        self.length, self.std = positive("length", length), positive("std", std)
        dimension = mesh_of(V).topological_dimension
        nu = max(2 - dimension / 2, 0.5) if smoothness is None else smoothness
        self.smoothness = positive("smoothness", nu)
        if boundary not in ("neumann", "robin", "dirichlet"):
            raise ValueError(
                f"boundary must be 'neumann', 'robin' or 'dirichlet', got {boundary!r}."
            )
        if transform not in (None, "exp") and not callable(transform):
            raise ValueError(f"transform must be None, 'exp' or a callable, got {transform!r}.")
        self.transform, self.boundary = transform, boundary
        scalar, self._auxiliary = _auxiliary_spaces(V)
        self._mean = nodal_values(self._auxiliary, _as_expression(mean, V))
        self._mean_given = mean
        self._to_space = None
        if self._auxiliary.ufl_element() != V.ufl_element():
            trial = TrialFunction(self._auxiliary)
            self._to_space = sparse_map(interpolate(trial, V)).to_scipy()
        self._matern = Matern(scalar, self.length, self.smoothness, boundary)
        self.normalise = bool(normalise)
        self._scale = self._matern.unit_scale() if self.normalise else self._matern.scale

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the coefficients of one sample, shape (V.dim(),)."""
        values = self._mean + self.std * self._unit(rng).reshape(-1)
        if self.transform == "exp":
            values = np.exp(values)
        elif callable(self.transform):
            values = np.asarray(self.transform(values), dtype=np.float64)
        return values if self._to_space is None else self._to_space @ values

    def _unit(self, rng: np.random.Generator) -> np.ndarray:
        components = self._auxiliary.value_size
        noise = rng.standard_normal((self._matern.noise_size, components))
        return self._scale[:, None] * self._matern.apply(noise)

    def describe(self) -> dict[str, Any]:
        """Name and settings as JSON-able values."""
        transform: Any = self.transform
        if callable(transform):
            transform = getattr(transform, "__qualname__", type(transform).__qualname__)
        return {
            "sampler": type(self).__name__,
            "length": self.length,
            "std": self.std,
            "mean": describe_value(self._mean_given, self._mean),
            "smoothness": self.smoothness,
            "transform": transform,
            "boundary": self.boundary,
            "normalise": self.normalise,
        }


class TwoPhase(FieldSampler):
    """Two-valued fields: where a Gaussian random field exceeds a threshold, `high`, else `low`.

    Parameters
    ----------
    V : FunctionSpace
        One whose dofs are values at points, usually DG 0. Values are taken dof by dof: fields in
        spaces of degree 0 are two-valued everywhere, others between their nodes are not.
    length : float
        Correlation length of the Gaussian field: the size of the patches.
    low, high : float
        The two values.
    fraction : float, optional
        Expected share of `high`, between 0 and 1.
    **options
        Further options of `GaussianRandomField` (`smoothness`, `boundary`, `normalise`). Unless
        `fraction` is 1/2, set ``normalise=True`` to have the share right near the boundary, too.

    Raises
    ------
    TypeError, ValueError
        If an option is wrong.
    NotImplementedError
        For Raviart-Thomas, Nedelec, mixed and similar spaces, whose dofs are no values at points.
    """

    def __init__(
        self,
        V: Any,
        length: float,
        low: float,
        high: float,
        fraction: float = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(V)
        require_points(V, "TwoPhase")
        forbidden = options.keys() & {"std", "mean", "transform"}
        if forbidden:
            raise TypeError(f"TwoPhase sets {sorted(forbidden)} itself.")
        self.fraction = positive("fraction", fraction)
        if self.fraction >= 1:
            raise ValueError(f"fraction must lie between 0 and 1, got {fraction}.")
        self.low, self.high = number("low", low), number("high", high)
        self._field = GaussianRandomField(V, length, **options)
        self._threshold = float(norm.isf(self.fraction))

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the coefficients of one sample, shape (V.dim(),)."""
        return np.where(self._field.sample(rng) > self._threshold, self.high, self.low)

    def describe(self) -> dict[str, Any]:
        """Name and settings as JSON-able values."""
        return {
            "sampler": "TwoPhase",
            "low": self.low,
            "high": self.high,
            "fraction": self.fraction,
            "field": self._field.describe(),
        }


class RandomBoundaryData(FieldSampler):
    """Smooth random values on a part of the boundary, zero everywhere else.

    The values are the trace of a Gaussian random field of the mesh: along the boundary, points
    that are close in space are correlated, across corners, too.

    Parameters
    ----------
    V : FunctionSpace
        The space of the solution.
    tags : int, sequence of int or str
        Boundary tags, as in ``DirichletBC``; ``"on_boundary"`` for all.
    length : float
        Correlation length.
    **options
        Further options of `GaussianRandomField`: `std`, `mean`, `smoothness`, `normalise`...

    Raises
    ------
    ValueError
        If no dof of `V` lies on the tagged boundary.
    """

    def __init__(self, V: Any, tags: Any, length: float, **options: Any) -> None:
        super().__init__(V)
        self.tags = tags
        try:
            nodes = DirichletBC(V, zero(V.value_shape), tags).nodes
        except (LookupError, ValueError) as error:
            raise ValueError(f"No boundary of the mesh has the tags {tags!r}: {error}") from error
        if len(nodes) == 0:
            raise ValueError(
                f"No dof of {signature(V).describe()} lies on the boundary tagged {tags!r}."
            )
        mask = np.zeros((V.dim() // V.block_size, V.block_size), dtype=bool)
        mask[nodes] = True
        self._mask = mask.reshape(-1)
        self._field = GaussianRandomField(V, length, **options)

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the coefficients of one sample, shape (V.dim(),)."""
        return np.where(self._mask, self._field.sample(rng), 0.0)

    def describe(self) -> dict[str, Any]:
        """Name and settings as JSON-able values."""
        tags = self.tags if isinstance(self.tags, str | int) else [_tag(t) for t in self.tags]
        return {"sampler": "RandomBoundaryData", "tags": tags, "field": self._field.describe()}


def _auxiliary_spaces(V: Any) -> tuple[Any, Any]:
    """The scalar CG space in which to solve, and the same with the values of `V`."""
    mesh, element = mesh_of(V), V.ufl_element()
    base = element
    while getattr(base, "num_sub_elements", 0) and base.family() == base.sub_elements[0].family():
        base = base.sub_elements[0]
    if base.family() in ("Lagrange", "Q"):
        scalar = FunctionSpace(mesh, base)
    else:
        degree = base.degree()
        degree = max(degree) if isinstance(degree, tuple) else degree
        scalar = FunctionSpace(mesh, "CG", min(max(degree, 1), 2))
    shape = tuple(V.value_shape)
    if shape == ():
        return scalar, scalar
    if len(shape) == 1:
        return scalar, VectorFunctionSpace(mesh, scalar.ufl_element(), dim=shape[0])
    return scalar, TensorFunctionSpace(mesh, scalar.ufl_element(), shape=shape)


def _as_expression(mean: Any, V: Any) -> Any:
    if isinstance(mean, int | float) and V.value_size > 1:
        from ufl import as_tensor

        flat = np.full(tuple(V.value_shape), float(mean))
        return as_tensor(flat.tolist())
    return mean


def _tag(tag: Any) -> Any:
    return tag if isinstance(tag, str) else int(tag)
