r"""The linear map from white noise to fields of Matern covariance, on any mesh.

The field solves the stochastic partial differential equation

.. math:: (1 - \kappa^{-2} \Delta)^{\alpha/2} u = s W, \qquad \alpha = \nu + d/2,

with white noise W (Whittle 1954; Lindgren, Rue, Lindstrom 2011, eq. 2). On the whole space its
covariance is the Matern function

.. math:: C(r) = \sigma^2 \frac{2^{1-\nu}}{\Gamma(\nu)} (\kappa r)^\nu K_\nu(\kappa r), \qquad
          \kappa = \sqrt{2 \nu} / \ell,

with the factor s from eq. 4 there. White noise tested with the basis has the mass matrix as its
covariance; its square root is put together from Cholesky factors of the cells (Croci, Giles,
Rognes, Farrell 2018), so that no global square root is needed on any mesh.

Firedrake has such operators, too (``firedrake.adjoint.AutoregressiveCovariance``), for even orders
above 1 + d/2: not for nu = 1 in two dimensions or nu = 1/2 in three, the rough fields that
coefficients are usually made of. They draw from generators of their own. The tests compare.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from firedrake import (
    DirichletBC,
    FunctionSpace,
    TestFunction,
    TrialFunction,
    ds,
    dx,
    grad,
    inner,
    interpolate,
)
from scipy.sparse.linalg import splu
from scipy.special import gammaln

from spon.fem.maps import sparse_map
from spon.fem.spaces import mesh_of

__all__ = ["Boundary", "Matern", "white_noise_factor"]

Boundary = Literal["neumann", "robin", "dirichlet"]

# Step and tolerance of the sinc quadrature for fractional powers; its error exp(-pi^2 / step) is
# 5e-5 of the field, far below what sampling can tell.
_STEP, _CUT = 1.0, 1e-4
_COLUMNS = 256


class Matern:
    """The linear map from independent normal numbers to a Matern field in a scalar CG space.

    Parameters
    ----------
    V : FunctionSpace
        Scalar CG.
    length : float
    nu : float
        Smoothness.
    boundary : {"neumann", "robin", "dirichlet"}

    Attributes
    ----------
    size, noise_size : int
        Numbers of nodes and of normal numbers for one field.
    scale : array, shape (nodes,)
        Factor that gives `apply` unit variance on the whole space.
    """

    def __init__(self, V: Any, length: float, nu: float, boundary: Boundary) -> None:
        u, v = TrialFunction(V), TestFunction(V)
        kappa = np.sqrt(2 * nu) / length
        stiffness = inner(u, v) * dx + kappa**-2 * inner(grad(u), grad(v)) * dx
        if boundary == "robin":
            stiffness += 1 / (1.42 * kappa) * inner(u, v) * ds
        self._mass = sparse_map(inner(u, v) * dx).to_scipy()
        operator = sparse_map(stiffness).to_scipy()
        self._root = white_noise_factor(V)
        fixed = DirichletBC(V, 0, "on_boundary").nodes if boundary == "dirichlet" else []
        self._free = np.setdiff1d(np.arange(V.dim()), fixed)
        if len(fixed):
            if not len(self._free):
                raise ValueError("With boundary='dirichlet' no node is left in the interior.")
            self._mass, operator = (a[self._free][:, self._free] for a in (self._mass, operator))
            self._root = self._root[self._free]
        self.size, self.noise_size = V.dim(), self._root.shape[1]

        d = mesh_of(V).topological_dimension
        alpha = nu + d / 2
        # Lindgren, Rue, Lindstrom 2011, below eq. 2: the variance for unit noise.
        log_variance = gammaln(nu) - gammaln(alpha) - d / 2 * np.log(4 * np.pi)
        self.scale = np.full(self.size, kappa ** (-d / 2) * np.exp(-log_variance / 2))

        self._whole = int(alpha / 2 + 1e-12)
        rest = alpha / 2 - self._whole
        self._solver: Any = _factorise(operator) if self._whole else None
        self._quadrature: list[tuple[float, Any]] = []
        if rest > 1e-9:
            self._quadrature = _fractional(rest, self._mass, operator)

    def apply(self, noise: np.ndarray) -> np.ndarray:
        """Fields, shape (nodes, k), of independent normal numbers, shape (noise_size, k)."""
        return self._solve(self._root @ noise)

    def _solve(self, load: np.ndarray) -> np.ndarray:
        x = load
        for step in range(self._whole):
            x = self._solver.solve(np.ascontiguousarray(x if step == 0 else self._mass @ x))
        if self._quadrature:
            load = self._mass @ x if self._whole else load
            load = np.ascontiguousarray(load)
            x = sum(weight * factor.solve(load) for weight, factor in self._quadrature)
        full = np.zeros((self.size, x.shape[1]))
        full[self._free] = x
        return full

    def unit_scale(self) -> np.ndarray:
        """One over the exact standard deviation at each node, shape (nodes,)."""
        # The covariance is S M S^T with the symmetric S of _solve: the variance of node i is the
        # mass norm of S's column i.
        variance = np.zeros(self.size)
        for start in range(0, len(self._free), _COLUMNS):
            chosen = np.arange(start, min(start + _COLUMNS, len(self._free)))
            unit = np.zeros((len(self._free), len(chosen)))
            unit[chosen, np.arange(len(chosen))] = 1.0
            columns = self._solve(unit)[self._free]
            variance[self._free[chosen]] = (columns * (self._mass @ columns)).sum(axis=0)
        return np.divide(1.0, np.sqrt(variance), out=np.zeros(self.size), where=variance > 0)


def white_noise_factor(V: Any) -> sp.csr_matrix:
    """A sparse matrix H with ``H H^T`` equal to the mass matrix of `V`.

    Built from the Cholesky factors of the mass matrices of the cells.

    Parameters
    ----------
    V : FunctionSpace
        Scalar.

    Returns
    -------
    scipy.sparse.csr_matrix, shape (V.dim(), cells * nodes per cell)
    """
    mesh, degree = mesh_of(V), V.ufl_element().degree()
    # Not V.broken_space(): Firedrake has no broken elements on hexahedra.
    family = "DG" if mesh.ufl_cell().is_simplex else "DQ"
    degree = max(degree) if isinstance(degree, tuple) else degree
    pieces = FunctionSpace(mesh, family, degree)
    mass = sparse_map(inner(TrialFunction(pieces), TestFunction(pieces)) * dx).to_scipy()
    local = pieces.cell_node_map().values
    rows, columns = (a.reshape(-1) for a in np.broadcast_arrays(local[:, :, None], local[:, None]))
    size = local.shape[1]
    blocks = np.asarray(mass[rows, columns]).reshape(-1, size, size)
    root = sp.csr_matrix((np.linalg.cholesky(blocks).reshape(-1), (rows, columns)), mass.shape)
    to_pieces = sparse_map(interpolate(TrialFunction(V), pieces)).to_scipy()
    return sp.csr_matrix(to_pieces.T @ root)


def _fractional(
    power: float, mass: sp.csr_matrix, operator: sp.csr_matrix
) -> list[tuple[float, Any]]:
    """Weights and factorisations that sum up to ``(M^-1 A)^-power M^-1``, for a spectrum above 1.

    Bonito, Pasciak 2015, eq. 37: trapezoidal rule in the logarithm of the shift.
    """
    lowest = int(np.floor(np.log(_CUT) / (2 * power * _STEP)))
    highest = int(np.ceil(-np.log(_CUT) / (2 * (1 - power) * _STEP)))
    terms = []
    for y in _STEP * np.arange(lowest, highest + 1):
        weight = 2 * _STEP * np.sin(np.pi * power) / np.pi * np.exp(2 * power * y)
        # Divided by the larger of the two coefficients, so that no entry overflows.
        size = max(1.0, np.exp(2 * y))
        shifted = mass / size + np.exp(2 * y) / size * operator
        terms.append((float(weight / size), _factorise(shifted)))
    return terms


def _factorise(matrix: sp.csr_matrix) -> Any:
    # The matrix is symmetric positive definite: no pivoting, and an ordering for symmetry.
    return splu(
        sp.csc_matrix(matrix),
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
