"""Quadrature points of a latent space, and batches of elliptic problems on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import finat.ufl
import firedrake as fd
import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from spon.fem.elements import shaped
from spon.fem.factor import SparseLU
from spon.fem.graphs import on_held_pieces
from spon.fem.lifting import lifted
from spon.fem.maps import sparse_map
from spon.fem.spaces import mesh_of
from spon.processors.points import EllipticSolve, Points
from spon.sparse import SparseMap

__all__ = ["build_points"]


def build_points(
    space: Any,
    features: Any,
    input_spaces: Sequence[Any],
    fixed: NDArray[np.bool_],
    length: float,
    read: sp.csr_matrix,
) -> Points:
    """Build quadrature points for solutions in a continuous scalar space.

    Parameters
    ----------
    space : FunctionSpace
        Of the solutions: scalar, continuous, with nodal values as dofs.
    features : FunctionSpace
        Of the latent fields, of the same kind.
    input_spaces : sequence of FunctionSpace
    fixed : bool array, shape (nodes,)
        Nodes on the constrained boundary.
    length : float
        Length of the domain.
    read : csr_matrix, shape (dim_out, unknowns * channels_out)
        Nodal values to coefficients of the output.

    Returns
    -------
    Points
        Without units.

    Raises
    ------
    ValueError
        If every node is fixed.
    """
    mesh = mesh_of(space)
    element = _points(space)
    scalars = fd.FunctionSpace(mesh, element)
    gdim, count = int(mesh.geometric_dimension), scalars.dim()
    weights = fd.assemble(fd.TestFunction(scalars) * _measure(element)).dat.data_ro.copy()
    weights /= weights.sum()
    u = fd.TrialFunction(space)
    tests = sparse_map(fd.interpolate(u, scalars)).to_scipy()
    slopes = [sparse_map(fd.interpolate(fd.grad(u)[i], scalars)).to_scipy() for i in range(gdim)]
    slopes = [sp.csr_matrix(length * slope) for slope in slopes]

    def at_points(part: Any) -> sp.csr_matrix:
        target = fd.FunctionSpace(mesh, shaped(element, part.value_shape))
        return sparse_map(fd.interpolate(fd.TrialFunction(part), target)).to_scipy()

    products = [(slopes[i], slopes[j]) for i in range(gdim) for j in range(i, gdim)]
    return Points(
        weights=torch.from_numpy(weights),
        values=_between(features, scalars),
        tests=SparseMap(tests),
        up=_between(features, space),
        down=_between(space, features),
        read=SparseMap(read),
        gradient=SparseMap(sp.vstack(slopes)),
        lifts=[SparseMap(lifted(given, count, at_points)) for given in input_spaces],
        solve=_solve(space, scalars, [*products, (tests, tests)], weights, fixed),
    )


def _between(source: Any, target: Any) -> SparseMap:
    """Values at the nodes or points of another space."""
    if source == target:
        return SparseMap(sp.identity(source.dim(), format="csr"))
    return sparse_map(fd.interpolate(fd.TrialFunction(source), target))


def _points(space: Any) -> Any:
    """Element whose dofs are values at quadrature points.

    They suffice for the stiffness matrix with constant coefficients on affine cells.
    """
    cell = mesh_of(space).ufl_cell()
    degree = int(np.max(space.ufl_element().degree()))
    if cell.cellname == "hexahedron":
        # Firedrake has no quadrature elements there; the nodes of this one are Gauss points.
        return finat.ufl.FiniteElement("DQ", cell, degree, variant="spectral")
    needed = 2 * (degree - 1) if cell.is_simplex else 2 * degree
    return finat.ufl.FiniteElement("Quadrature", cell, degree=needed, quad_scheme="default")


def _measure(element: Any) -> Any:
    return fd.dx(degree=element.degree()) if element.family() == "Quadrature" else fd.dx


def _solve(
    space: Any,
    scalars: Any,
    products: Sequence[tuple[sp.csr_matrix, sp.csr_matrix]],
    weights: NDArray[np.float64],
    fixed: NDArray[np.bool_],
) -> EllipticSolve:
    """Assembly of the matrices from coefficients at the points, and their common pattern."""
    nodes = space.dim()
    dofs = space.cell_node_map().values
    # Points of a cell, and so the dofs of the cell of each point.
    points = scalars.cell_node_map().values
    dofs = np.repeat(dofs, points.shape[1], axis=0)[np.argsort(points.ravel())]
    local = dofs.shape[1]
    pairs = dofs[:, :, None].astype(np.int64) * nodes + dofs[:, None, :]
    entries, where = np.unique(pairs, return_inverse=True)
    where = where.reshape(len(dofs), local * local)
    rows, columns = np.divmod(entries, nodes)
    pointers = np.searchsorted(rows, np.arange(nodes + 1))
    blocks = []
    for left, right in products:
        one, two = _at_dofs(left, dofs), _at_dofs(right, dofs)
        block = one[:, :, None] * two[:, None, :]
        if left is not right:
            block = block + block.transpose(0, 2, 1)
        data = (weights[:, None] * block.reshape(len(dofs), -1)).ravel()
        which = np.repeat(np.arange(len(dofs)), local * local)
        blocks.append(sp.csr_matrix((data, (where.ravel(), which)), (len(entries), len(dofs))))
    pattern = sp.csr_matrix((np.ones(len(columns)), columns, pointers), (nodes, nodes))
    lu = SparseLU(pointers, columns, np.flatnonzero(~fixed) if fixed.any() else None)
    return EllipticSolve(
        assembly=SparseMap(sp.hstack(blocks, format="csr")),
        lu=lu,
        rows=torch.from_numpy(rows),
        columns=torch.from_numpy(columns),
        constrained=bool(on_held_pieces(pattern, fixed).all()),
    )


def _at_dofs(matrix: sp.csr_matrix, dofs: NDArray[Any]) -> NDArray[np.float64]:
    """Entries of a row of (points, nodes) at the dofs of the point's cell, (points, local)."""
    which = np.repeat(np.arange(len(dofs)), dofs.shape[1])
    found = np.asarray(matrix[which, dofs.ravel()], dtype=np.float64)
    return found.reshape(dofs.shape)
