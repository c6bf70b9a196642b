"""Change of basis between Lagrange and Bernstein polynomials on simplices."""

from __future__ import annotations

import itertools
from math import factorial
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.optimize import linear_sum_assignment

from spon.fem.elements import element_to_json, space_from_element
from spon.fem.spaces import mesh_of, name_of

__all__ = ["bernstein_maps", "scalar_version"]

_ROUND_OFF = 1e-13


def scalar_version(U: Any, promise: str = "bounds") -> Any:
    """The scalar space of which `U` has copies.

    Raises
    ------
    ValueError
        If `U` is not CG or DG of degree 1 to 4 on simplices (DG 0 too).
    """
    element = U.ufl_element()
    family = element.family() if len(U) == 1 else "mixed"
    degree = element.degree() if len(U) == 1 else None
    cell = mesh_of(U).ufl_cell().cellname
    known = family in ("Lagrange", "Discontinuous Lagrange") and degree in range(5)
    if not known or cell not in ("interval", "triangle", "tetrahedron"):
        raise ValueError(
            f"{promise} is a promise for CG and DG of degree 1 to 4 on triangles and tetrahedra "
            f"(and DG 0); got {name_of(U)} on {cell} cells. Choose such a space."
        )
    if not U.value_shape:
        return U
    return space_from_element(mesh_of(U), element_to_json(element.sub_elements[0]))


def bernstein_maps(V: Any) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Lagrange coefficients to Bernstein coefficients, and back.

    The coefficient that belongs to a facet depends on the values on that facet only, so that
    continuity and traces carry over.

    Parameters
    ----------
    V : FunctionSpace
        Scalar, from `scalar_version`.

    Returns
    -------
    to_bernstein, from_bernstein : CSR matrices, shape (V.dim(), V.dim())
    """
    element = V.finat_element.fiat_equivalent
    points = np.array([next(iter(n.get_point_dict())) for n in element.dual_basis()])
    points = np.column_stack([1 - points.sum(axis=1), points])  # barycentric
    degree = int(V.ufl_element().degree())
    indices = [
        a for a in itertools.product(range(degree + 1), repeat=points.shape[1]) if sum(a) == degree
    ]
    alphas = np.array(indices)
    table = np.ones((len(points), len(alphas)))
    for j, a in enumerate(indices):
        count = factorial(degree) / np.prod([factorial(i) for i in a])
        table[:, j] = count * np.prod(points ** alphas[j], axis=1)
    table = table[:, _partners(points, alphas / max(degree, 1), V)]
    inverse = np.linalg.inv(table)
    return _spread(inverse, V), _spread(table, V)


def _partners(points: np.ndarray, domain: np.ndarray, V: Any) -> np.ndarray:
    """Which Bernstein polynomial stands at the place of each node, on the same facets."""
    cost = np.linalg.norm(points[:, None] - domain[None], axis=2)
    if V.ufl_element().family() == "Lagrange":
        same = (np.abs(points) < 1e-10)[:, None] == (domain == 0)[None]
        cost = cost + 100.0 * ~same.all(axis=2)
    return linear_sum_assignment(cost)[1]


def _spread(local: np.ndarray, V: Any) -> sp.csr_matrix:
    """The same matrix on each cell, as one on the dofs; a row is taken from one cell."""
    local = np.where(np.abs(local) < _ROUND_OFF * np.abs(local).max(), 0.0, local)
    cells = V.cell_node_list
    n = cells.shape[1]
    dofs, first = np.unique(cells, return_index=True)
    columns = cells[first // n]
    rows = np.broadcast_to(dofs[:, None], columns.shape)
    matrix = sp.csr_matrix(
        (local[first % n].ravel(), (rows.ravel(), columns.ravel())), shape=(V.dim(), V.dim())
    )
    matrix.eliminate_zeros()
    return matrix
