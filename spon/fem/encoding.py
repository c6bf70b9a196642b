"""Maps that bring data into a function space: projection and least squares from points."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from firedrake import (
    FunctionSpace,
    TensorFunctionSpace,
    TestFunction,
    TrialFunction,
    VectorFunctionSpace,
    dx,
    grad,
    inner,
)
from firedrake import interpolate as ufl_interpolate
from scipy.sparse.linalg import LinearOperator, eigsh, splu
from torch import Tensor, nn

from spon.fem.direct import Direct
from spon.fem.maps import evaluation_map, sparse_map
from spon.fem.spaces import mesh_of, name_of
from spon.sparse import InverseMap, SparseMap

__all__ = ["L2Projection", "LeastSquares", "checked_grid", "grid_points"]

# Below this ratio of the smallest to the largest eigenvalue of the normal equations the data do
# not determine the function: the remaining digits would be round-off.
_RANK_TOLERANCE = 1e-13


class L2Projection(nn.Module):
    """L2 projection between function spaces, also from another mesh.

    Parameters
    ----------
    source, target : FunctionSpace
        Spaces of the same value shape. From another mesh, the source is evaluated at the
        quadrature points of the target's mesh: exact where its pieces are those of the target's
        cells, with the error of the quadrature where a cell of the target cuts them.

    Raises
    ------
    ValueError
        If the value shapes differ.
    """

    def __init__(self, source: Any, target: Any) -> None:
        super().__init__()
        if source.value_shape != target.value_shape:
            raise ValueError(
                f"Cannot project functions of value shape {source.value_shape} "
                f"({name_of(source)}) onto {name_of(target)} of "
                f"value shape {target.value_shape}."
            )
        test = TestFunction(target)
        if mesh_of(source) is mesh_of(target):
            self.moments = sparse_map(inner(TrialFunction(source), test) * dx)
        else:
            self.moments = _moments_at_points(source, target)
        mass = sparse_map(inner(TrialFunction(target), test) * dx)
        self.riesz = InverseMap(mass.to_scipy(), factorise=Direct)

    def forward(self, x: Tensor) -> Tensor:
        """Project coefficient vectors: (source.dim(), ...) to (target.dim(), ...)."""
        result: Tensor = self.riesz(self.moments(x))
        return result


class LeastSquares(nn.Module):
    """The function of a space that fits point values best, optionally smoothed.

    Minimises ``mean |u(x_i) - y_i|^2 + smoothing * |grad u|^2`` over the space.

    Parameters
    ----------
    V : FunctionSpace
        Scalar or vector valued.
    points : array, shape (n_points, geometric_dimension)
        Points inside the mesh.
    smoothing : float, optional
        Weight of the squared gradient, in units of length squared times the inverse of the
        domain's measure; zero (default) for a plain fit.

    Raises
    ------
    ValueError
        If the points do not determine a function of the space, or lie outside the mesh.
    """

    def __init__(self, V: Any, points: Any, smoothing: float = 0.0) -> None:
        super().__init__()
        if not (np.isfinite(smoothing) and smoothing >= 0):
            raise ValueError(f"The smoothing is a number >= 0, got {smoothing}.")
        self.evaluation = evaluation_map(V, points)
        self.adjoint = self.evaluation.T
        self._n_points = len(points)
        matrix = self.evaluation.to_scipy()
        normal = matrix.T @ matrix / self._n_points
        self.penalty: SparseMap | None = None
        if smoothing:
            u, v = TrialFunction(V), TestFunction(V)
            stiffness = sparse_map(inner(grad(u), grad(v)) * dx).to_scipy()
            self.penalty = SparseMap(smoothing * stiffness)
            normal = normal + smoothing * stiffness
        _check_determined(sp.csc_matrix(normal), V, self._n_points)
        self.inverse = InverseMap(normal)

    def forward(self, y: Tensor) -> Tensor:
        """Fit: point values (n_points * value_size, ...) to coefficients (V.dim(), ...)."""
        x: Tensor = self.inverse(self.adjoint(y) / self._n_points)
        # One step of refinement with the residual of the data: the normal equations square the
        # condition number, the residual does not know that.
        gradient = self.adjoint(y - self.evaluation(x)) / self._n_points
        if self.penalty is not None:
            gradient = gradient - self.penalty(x)
        return x + self.inverse(gradient)


def checked_grid(grid: Any) -> tuple[int, ...]:
    """Numbers of pixels along each axis as integers.

    Raises
    ------
    ValueError
        If one of them is not a positive integer.
    """
    if any(int(n) != n or n < 1 for n in grid):
        raise ValueError(f"The grid counts pixels along each axis, got {tuple(grid)}.")
    return tuple(int(n) for n in grid)


def grid_points(grid: Any, box: Any) -> np.ndarray:
    """Centres of the pixels of a regular image.

    Parameters
    ----------
    grid : sequence of int, shape (d,)
        Number of pixels along each coordinate axis.
    box : array, shape (d, 2)
        Lower and upper end of the image along each axis.

    Returns
    -------
    array, shape (prod(grid), d)
        In the order of an array of shape `grid` whose axes are the coordinate axes.

    Raises
    ------
    ValueError
        If the two do not fit together.
    """
    box = np.asarray(box, dtype=np.float64)
    if box.shape != (len(grid), 2) or not (box[:, 1] > box[:, 0]).all():
        raise ValueError(
            f"Expected a box of shape ({len(grid)}, 2) with lower < upper for a grid of "
            f"{tuple(grid)} pixels, got {box.tolist()}."
        )
    axes = [
        low + (high - low) * (np.arange(n) + 0.5) / n
        for n, (low, high) in zip(grid, box, strict=True)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(grid))


def _moments_at_points(source: Any, target: Any) -> SparseMap:
    degree = max(
        source.ufl_element().embedded_superdegree + target.ufl_element().embedded_superdegree,
        2 * target.ufl_element().embedded_superdegree,
    )
    mesh, shape = mesh_of(target), target.value_shape
    if not shape:
        at_points = FunctionSpace(mesh, "Quadrature", degree)
    elif len(shape) == 1:
        at_points = VectorFunctionSpace(mesh, "Quadrature", degree, dim=shape[0])
    else:
        at_points = TensorFunctionSpace(mesh, "Quadrature", degree, shape=shape)
    values = sparse_map(ufl_interpolate(TrialFunction(source), at_points))
    weights = inner(TrialFunction(at_points), TestFunction(target)) * dx(degree=degree)
    return sparse_map(weights) @ values


def _check_determined(normal: sp.csc_matrix, V: Any, n_points: int) -> None:
    n = normal.shape[0]
    largest = float(np.abs(normal).sum(axis=1).max())
    shift = _RANK_TOLERANCE * largest
    # Power iteration on the shifted inverse: the shift keeps a singular matrix invertible.
    factor = splu(normal + shift * sp.eye(n, format="csc"))
    inverse = LinearOperator((n, n), matvec=factor.solve, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(n)
    top = eigsh(inverse, k=1, v0=start, return_eigenvectors=False, tol=1e-2)
    smallest = 1.0 / float(top[0]) - shift
    if smallest < 10 * shift:
        raise ValueError(
            f"{n_points} points do not determine a function of {name_of(V)} with "
            f"{V.dim()} dofs: some functions of the space vanish at all of them. Use more points, "
            "a coarser mesh, a lower degree, or smoothing > 0."
        )
