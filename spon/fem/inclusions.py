"""Coefficients with random inclusions: discs, balls, ellipses and ellipsoids of another value."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from firedrake import (
    Function,
    FunctionSpace,
    SpatialCoordinate,
    TestFunction,
    TrialFunction,
    VectorFunctionSpace,
    dx,
)

from spon.fem.maps import sparse_map
from spon.fem.samplers import FieldSampler, interval, require_points
from spon.fem.spaces import mesh_of

__all__ = ["PlacementError", "RandomInclusions"]

_TRIES = 1000


class PlacementError(ArithmeticError):
    """The inclusions of a sample found no place without overlap."""


class RandomInclusions(FieldSampler):
    """Piecewise constant fields: one value in random balls or ellipsoids, another outside.

    Centres are uniform over the mesh (over each cell in its reference coordinates), so that holes
    and curved outlines are respected; inclusions may stick out of the mesh. Where several overlap
    the last one counts.

    Parameters
    ----------
    V : FunctionSpace
        Scalar or vector-valued with point values as dofs (all components get the same value). With
        DG 0 a cell has the value at its centre, or, with `quadrature_degree`, the mean over the
        cell, so that volume fractions are accurate on coarse meshes, too.
    count : int or pair of int
        Number of inclusions, or the ends of the range from which it is drawn uniformly.
    radius : float or pair of float
        Radius, or the ends of its range, in the units of the mesh.
    inside, outside : float or pair of float
        Values; from a range a new value is drawn for each inclusion (for each sample, outside).
    shape : {"ball", "ellipsoid"}, optional
        "ball" is a disc in 2D. An "ellipsoid" has semi-axes drawn from `radius` independently and
        a random orientation.
    overlap : bool, optional
        Whether inclusions may overlap. If not, places are drawn until they fit (an ellipsoid takes
        the room of a ball of its largest semi-axis).
    quadrature_degree : int, optional
        Only for DG 0: take means over the cells by a quadrature of this degree.

    Raises
    ------
    TypeError, ValueError
        If an option is wrong.
    NotImplementedError
        If the dofs of `V` are no point values.
    """

    def __init__(
        self,
        V: Any,
        count: int | tuple[int, int],
        radius: float | tuple[float, float],
        inside: float | tuple[float, float],
        outside: float | tuple[float, float] = 0.0,
        shape: Literal["ball", "ellipsoid"] = "ball",
        overlap: bool = True,
        quadrature_degree: int | None = None,
    ) -> None:
        super().__init__(V)
        require_points(V, "RandomInclusions")
        low, high = interval("count", count)
        if low < 0 or int(low) != low or int(high) != high:
            raise ValueError(f"count must be integers not below 0, got {count!r}.")
        self.count = (int(low), int(high))
        self.radius = interval("radius", radius)
        if self.radius[0] <= 0:
            raise ValueError(f"radius must be positive, got {radius!r}.")
        self.inside, self.outside = interval("inside", inside), interval("outside", outside)
        if shape not in ("ball", "ellipsoid"):
            raise ValueError(f"shape must be 'ball' or 'ellipsoid', got {shape!r}.")
        self.shape, self.overlap = shape, bool(overlap)
        self.quadrature_degree = quadrature_degree
        self._points, self._average = _evaluation_points(V, quadrature_degree)
        self._corners, self._cumulated = _cells(mesh_of(V))

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the coefficients of one sample, shape (V.dim(),)."""
        values = np.full(len(self._points), rng.uniform(*self.outside))
        for centre, axes, rotation in self._place(rng):
            local = ((self._points - centre) @ rotation) / axes
            values[(local**2).sum(axis=1) <= 1.0] = rng.uniform(*self.inside)
        if self._average is not None:
            values = self._average @ values
        return np.repeat(values, self.space.block_size)

    def _place(self, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        placed: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        d, (low, high) = self._points.shape[1], self.radius
        count = int(rng.integers(self.count[0], self.count[1] + 1))
        for number in range(count):
            if self.shape == "ball":
                axes, rotation = np.full(d, rng.uniform(low, high)), np.eye(d)
            else:
                axes = rng.uniform(low, high, size=(d,))
                rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
            for _ in range(_TRIES):
                centre = self._centre(rng)
                if self.overlap or all(
                    np.linalg.norm(centre - other) >= axes.max() + reach.max()
                    for other, reach, _ in placed
                ):
                    placed.append((centre, axes, rotation))
                    break
            else:
                raise PlacementError(
                    f"inclusion {number + 1} of {count} found no place in {_TRIES} tries: use "
                    "fewer or smaller ones, or overlap=True"
                )
        return placed

    def _centre(self, rng: np.random.Generator) -> np.ndarray:
        cell = int(np.searchsorted(self._cumulated, rng.random(), side="right"))
        corners = self._corners[min(cell, len(self._corners) - 1)]
        dimension = mesh_of(self.space).topological_dimension
        if len(corners) == dimension + 1:
            weights = rng.dirichlet(np.ones(dimension + 1))
        else:
            weights = np.ones(1)
            for t in rng.random(dimension):
                weights = np.outer(weights, [1 - t, t]).reshape(-1)
        return np.asarray(weights @ corners)

    def describe(self) -> dict[str, Any]:
        """Name and settings as JSON-able values."""
        return {
            "sampler": "RandomInclusions",
            "count": list(self.count),
            "radius": list(self.radius),
            "inside": list(self.inside),
            "outside": list(self.outside),
            "shape": self.shape,
            "overlap": self.overlap,
            "quadrature_degree": self.quadrature_degree,
        }


def _evaluation_points(
    V: Any, quadrature_degree: int | None
) -> tuple[np.ndarray, sp.csr_matrix | None]:
    """Points, shape (points, gdim), and the matrix from values there to the nodes of `V`."""
    mesh = mesh_of(V)
    if quadrature_degree is None:
        element = V.ufl_element()
        element = element.sub_elements[0] if V.value_shape else element
        X = VectorFunctionSpace(mesh, element, dim=mesh.geometric_dimension)
        return _coordinates(X), None
    if V.dim() != mesh.num_cells() * V.block_size:
        raise ValueError("quadrature_degree takes means over cells and is for DG 0 only.")
    Q = FunctionSpace(mesh, "Quadrature", degree=quadrature_degree)
    X = VectorFunctionSpace(
        mesh, "Quadrature", degree=quadrature_degree, dim=mesh.geometric_dimension
    )
    P = FunctionSpace(mesh, "DG", 0)
    weights = sparse_map(
        TestFunction(P) * TrialFunction(Q) * dx(degree=quadrature_degree)
    ).to_scipy()
    volume = np.asarray(weights.sum(axis=1)).reshape(-1)
    return _coordinates(X), sp.csr_matrix(sp.diags(1 / volume) @ weights)


def _coordinates(X: Any) -> np.ndarray:
    mesh = mesh_of(X)
    points = Function(X).interpolate(SpatialCoordinate(mesh)).dat.data_ro
    return np.array(points).reshape(-1, mesh.geometric_dimension)


def _cells(mesh: Any) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the cells, shape (cells, corners, gdim), and the cumulated share of volume."""
    simplex = mesh.ufl_cell().is_simplex
    # The default variant has its nodes inside the cells.
    X = VectorFunctionSpace(mesh, "DG" if simplex else "DQ", 1, variant="equispaced")
    corners = _coordinates(X)[X.cell_node_map().values]
    P = FunctionSpace(mesh, "DG", 0)
    one = Function(P).assign(1.0)
    volumes = sparse_map(TestFunction(P) * TrialFunction(P) * dx).to_scipy() @ one.dat.data_ro
    ordered = volumes[P.cell_node_map().values[:, 0]]
    return corners, np.cumsum(ordered) / ordered.sum()
