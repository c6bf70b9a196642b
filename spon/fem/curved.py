"""A mesh with straight edges -> the same mesh with curved ones: coordinates of degree 2."""

from __future__ import annotations

from typing import Any

import firedrake as fd
import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree
from ufl import H1

from spon.fem.second_order import CORNERS, Array, Indices, complete, node_table, turned_over

__all__ = ["curved_mesh"]

_SHAPES = {
    "triangle": "triangle",
    "quadrilateral": "quad",
    "tetrahedron": "tetra",
    "hexahedron": "hexahedron",
}


def curved_mesh(mesh: Any, nodes: ArrayLike, name: str | None = None) -> Any:
    """Bend the cells of a mesh through nodes on their edges (and in their faces and inside).

    Topology, tags and the numbering of the cells stay those of `mesh`. Coordinates become a
    continuous field of degree 2, or a discontinuous one where those of `mesh` are (periodic
    meshes).

    Parameters
    ----------
    mesh : firedrake.Mesh
        Triangles, quadrilaterals, tetrahedra or hexahedra, with straight edges.
    nodes : array, shape (cells, nodes, dimension)
        Places of the nodes of *all* cells, in any order of the cells, within a cell in gmsh's
        order: corners, edges, faces, centre. Nodes 6 (triangle), 9 or 8 (quadrilateral), 10
        (tetrahedron), 27 or 20 (hexahedron). Every process gives all of them.
    name : str, optional
        Name of the new mesh; by default that of `mesh`.

    Returns
    -------
    firedrake.Mesh

    Raises
    ------
    NotImplementedError
        If the cells are of another shape, or the mesh is extruded.
    ValueError
        If there are not as many cells as the mesh has, their corners are not those of the mesh's
        cells, or a bent cell turns over.

    Notes
    -----
    Cells are matched by the mean of their corners, then corner by corner; the other nodes follow
    from the corners that they lie between. No two cells of a mesh share their corners, and no two
    nodes of a cell lie between the same corners, so that no bent place is ever searched for.
    """
    cell = mesh.ufl_cell().cellname
    if cell not in _SHAPES or mesh.extruded:
        what = "an extruded mesh" if mesh.extruded else f"{cell} cells"
        raise NotImplementedError(
            f"bending {what}: expected a mesh of triangles, quadrilaterals, tetrahedra or hexahedra"
        )
    shape, dim = _SHAPES[cell], mesh.geometric_dimension
    nodes = np.asarray(nodes, dtype=np.float64)
    if nodes.ndim != 3 or nodes.shape[2] != dim:
        raise ValueError(f"nodes: expected shape (cells, nodes, {dim}), got {nodes.shape}")
    nodes = complete(shape, nodes)
    total = mesh.comm.allreduce(mesh.cell_set.size)
    if len(nodes) != total:
        raise ValueError(f"nodes of {len(nodes)} cells for a mesh of {total} cells")
    # a surface in space has no side on which it could turn over
    bad = turned_over(shape, nodes) if mesh.topological_dimension == dim else np.zeros(0, int)
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(nodes)} cells turn over when they are bent, the first around "
            f"{nodes[bad[0]].mean(axis=0).round(4).tolist()}: their Jacobian changes its sign. "
            "Use smaller elements where the boundary curves, or gmsh's high-order optimisation"
        )

    family = "DG" if shape in ("triangle", "tetra") else "DQ"
    ends = fd.VectorFunctionSpace(mesh, family, 1, variant="equispaced")
    straight = fd.Function(ends).interpolate(fd.SpatialCoordinate(mesh))
    corners = straight.dat.data_ro_with_halos[ends.cell_node_list]
    mine, order = _matched(mesh, corners, nodes[:, : len(CORNERS[shape])])

    continuous = mesh.coordinates.function_space().ufl_element() in H1
    target = fd.VectorFunctionSpace(mesh, "CG" if continuous else family, 2, variant="equispaced")
    around = _corners_around(_places(ends), _places(target), family == "DG")
    found = node_table(shape)[2**order @ around.T]
    bent = fd.Function(target)
    bent.dat.data_with_halos[target.cell_node_list] = nodes[mine[:, None], found]
    return fd.Mesh(bent, name=mesh.name if name is None else name)


def _matched(mesh: Any, corners: Array, given: Array) -> tuple[Indices, Indices]:
    """The given cell behind each cell of this process, and which given corner each corner is."""
    _, mine = cKDTree(given.mean(axis=1)).query(corners.mean(axis=1))
    candidates = given[mine]
    distance = np.linalg.norm(corners[:, :, None] - candidates[:, None], axis=3)
    order = distance.argmin(axis=2)
    size = np.ptp(corners, axis=1).max(axis=1, initial=0.0)
    off = distance.min(axis=2).max(axis=1, initial=0.0) / size
    # a cell is a permutation of its partner's corners, and nobody else's partner
    off[(np.sort(order, axis=1) != np.arange(order.shape[1])).any(axis=1)] = np.inf
    off[np.isin(mine, np.flatnonzero(np.bincount(mine, minlength=len(given)) > 1))] = np.inf
    strangers = mesh.comm.allreduce(int((off[: mesh.cell_set.size] > 1e-6).sum()))
    if strangers:  # on every process, or the others would wait
        raise ValueError(
            f"{strangers} cells of the mesh are not among the cells given: their corners differ. "
            "Are these the nodes of this mesh, with corners first?"
        )
    return mine, order


def _places(V: Any) -> Array:
    """Places of the nodes of a Lagrange space on the reference cell, (nodes, dimension)."""
    return np.asarray(V.finat_element.dual_basis[1].points, dtype=np.float64)


def _corners_around(corners: Array, places: Array, simplex: bool) -> Indices:
    """1 where a corner (column) is one of those that a node (row) lies between, else 0."""
    if simplex:
        weights = np.linalg.solve(
            np.column_stack([corners, np.ones(len(corners))]).T,
            np.column_stack([places, np.ones(len(places))]).T,
        ).T
    else:
        weights = (1 - np.abs(places[:, None] - corners[None])).prod(axis=2)
    return (weights > 1e-9).astype(np.int64)
