"""Functions on triangles fine enough to draw: plain arrays for any plotting library."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import firedrake as fd
import numpy as np
from finat.ufl import FiniteElement
from firedrake.adjoint import stop_annotating
from numpy.typing import NDArray
from scipy.spatial import Delaunay
from ufl import H1

from spon.fem.spaces import require_serial

__all__ = ["Triangulation", "triangulate"]

BUDGET = 60_000  # triangles: more cannot be told apart in a picture
_FAMILIES = {"triangle": "DG", "tetrahedron": "DG", "quadrilateral": "DQ", "hexahedron": "DQ"}

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Triangulation:
    """A mesh of dimension 2, or the surface of one of dimension 3, in small triangles.

    Points on an edge between two cells are listed once for each cell, so that jumps stay.

    Attributes
    ----------
    points : array, shape (points, geometric dimension)
    triangles : integer array, shape (triangles, 3)
    outline : integer array, shape (segments, 2)
        Segments of the boundary; none in 3D.
    edges : integer array, shape (segments, 2)
        Segments of the edges of all cells, in 3D of the facets on the surface.
    values : list of array, shape (points,) or (points, components)
        One for each function.
    continuous : list of bool
        Whether the function's element lies in H1, one for each function.
    """

    points: Array
    triangles: Indices
    outline: Indices
    edges: Indices
    values: list[Array]
    continuous: list[bool]


def triangulate(*functions: Any, degree: int | None = None) -> Triangulation:
    """Evaluate functions on a triangulation of their mesh.

    Each cell is cut into ``degree**2`` triangles (twice as many for a quadrilateral), at whose
    corners the functions are evaluated: exactly, whatever their element.

    Parameters
    ----------
    *functions : firedrake.Function
        Scalar or vector functions on one mesh of triangles, quadrilaterals, tetrahedra or
        hexahedra.
    degree : int, optional
        Number of parts of each edge. By default it follows from the functions' degrees.

    Returns
    -------
    Triangulation

    Raises
    ------
    TypeError
        If something else than functions is given.
    ValueError
        If they live on several meshes, are tensors or mixed, or `degree` is less than 1.
    NotImplementedError
        If the mesh is distributed over several processes, or has another kind of cells.
    """
    mesh = _common_mesh(functions)
    cell = mesh.ufl_cell()
    if degree is None:
        degree = _drawing_degree(mesh, functions)
    elif degree < 1:
        raise ValueError(f"degree is the number of parts of each edge: expected >= 1, got {degree}")
    element = FiniteElement(_FAMILIES[cell.cellname], cell, degree, variant="equispaced")
    V = fd.FunctionSpace(mesh, element)
    corners = fd.FunctionSpace(mesh, "CG", 1)
    reference = _Reference(_nodes_of(V), _nodes_of(corners))

    inside, interior = reference.facets_of(corners.cell_node_list)
    surface = mesh.topological_dimension == 3
    if surface:
        triangles = reference.on_facets(inside, V.cell_node_list, reference.facet_triangles)
        edges = reference.on_facets(inside, V.cell_node_list, reference.facet_edges)
        outline = np.zeros((0, 2), dtype=np.int64)
    else:
        triangles = V.cell_node_list[:, _cut(reference.nodes)].reshape(-1, 3)
        outline = reference.on_facets(inside, V.cell_node_list, reference.facet_segments)
        rest = reference.on_facets(interior, V.cell_node_list, reference.facet_segments)
        edges = np.concatenate([outline, rest])

    with stop_annotating():
        points = _evaluate(mesh.coordinates, mesh, element)
        values = [_evaluate(f, mesh, element) for f in functions]
    if surface:
        used, triangles = np.unique(triangles, return_inverse=True)
        triangles = triangles.reshape(-1, 3)
        edges = np.searchsorted(used, edges)
        points, values = points[used], [value[used] for value in values]
    continuous = [f.function_space().ufl_element() in H1 for f in functions]
    return Triangulation(points, triangles.astype(np.int64), outline, edges, values, continuous)


def _common_mesh(functions: tuple[Any, ...]) -> Any:
    if not functions:
        raise ValueError("expected at least one function to draw")
    meshes = []
    for f in functions:
        if not isinstance(f, fd.Function):
            hint = ": spon.fem.to_function(x, V) makes one" if hasattr(f, "detach") else ""
            raise TypeError(f"expected Firedrake Functions, got {type(f).__name__}{hint}")
        space = f.function_space()
        if len(space) > 1:
            raise ValueError(
                f"{f.name()!r} is a function of a mixed space; draw its parts, f.subfunctions"
            )
        if len(f.ufl_shape) > 1:
            raise ValueError(
                f"{f.name()!r} is a tensor of shape {f.ufl_shape}; draw a component or an "
                "invariant of it: Function(V).interpolate(sqrt(inner(f, f)))"
            )
        meshes.append(space.mesh())
    mesh = meshes[0].unique() if hasattr(meshes[0], "unique") else meshes[0]
    if any(other != meshes[0] for other in meshes):
        raise ValueError("the functions live on several meshes; interpolate them onto one")
    require_serial(mesh, "drawing")
    if mesh.ufl_cell().cellname not in _FAMILIES:
        raise NotImplementedError(
            f"drawing on {mesh.ufl_cell().cellname} cells; expected {', '.join(_FAMILIES)}"
        )
    return mesh


def _drawing_degree(mesh: Any, functions: tuple[Any, ...]) -> int:
    """One part where the function is linear on a cell, otherwise two for each degree."""
    degree = 0
    for f in (*functions, mesh.coordinates):
        # one number for each direction on some cubes
        degree = max(degree, int(np.max(f.function_space().ufl_element().embedded_superdegree)))
    wanted = 1 if degree <= 1 else min(2 * degree, 8)
    cells = mesh.num_cells()
    if mesh.topological_dimension == 3:
        cells = max(mesh.exterior_facets.facet_cell.shape[0], 1)
    return int(max(1, min(wanted, (BUDGET / cells) ** 0.5)))


def _nodes_of(V: Any) -> Array:
    """Places of the nodes of a Lagrange space on the reference cell, (nodes, dimension)."""
    return np.asarray(V.finat_element.dual_basis[1].points, dtype=np.float64)


def _evaluate(f: Any, mesh: Any, element: Any) -> Array:
    if f.ufl_shape:
        V = fd.VectorFunctionSpace(mesh, element, dim=f.ufl_shape[0])
        # a vector of one component comes back without its axis
        return np.array(fd.Function(V).interpolate(f).dat.data_ro).reshape(-1, f.ufl_shape[0])
    return np.array(fd.Function(fd.FunctionSpace(mesh, element)).interpolate(f).dat.data_ro)


def _cut(nodes: Array) -> Indices:
    """Triangles between points of a plane lattice, (triangles, 3)."""
    triangles = Delaunay(nodes).simplices.astype(np.int64)
    a, b, c = (nodes[triangles[:, k]] for k in range(3))
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    return triangles[np.abs(area) > 1e-9]


class _Reference:
    """Where the nodes of a reference cell lie on its facets.

    A facet is where one of some linear functions vanishes: x_i = 0 and sum(x) = 1 on a simplex,
    x_i = 0 and x_i = 1 on a cube.
    """

    def __init__(self, nodes: Array, corners: Array) -> None:
        self.nodes = nodes
        dim = nodes.shape[1]
        simplex = len(corners) == dim + 1
        unit, zero = np.eye(dim), np.zeros(dim)
        self._normals = np.concatenate([unit, -np.ones((1, dim)) if simplex else -unit])
        self._shifts = np.concatenate([zero, np.ones(1 if simplex else dim)])
        self._on = np.abs(nodes @ self._normals.T + self._shifts) < 1e-9
        corner_on = np.abs(corners @ self._normals.T + self._shifts) < 1e-9
        self._corners = np.stack([np.flatnonzero(on) for on in corner_on.T])

    def facets_of(self, cell_corners: Indices) -> tuple[Indices, Indices]:
        """Boundary facets and, each once, interior facets, as (cell, facet of the cell)."""
        corners = np.sort(cell_corners[:, self._corners], axis=2)
        cells, facets, _ = corners.shape
        flat = corners.reshape(cells * facets, -1)
        _, first, count = np.unique(flat, axis=0, return_index=True, return_counts=True)
        pairs = np.stack([first // facets, first % facets], axis=1)
        return pairs[count == 1], pairs[count > 1]

    def on_facets(self, pairs: Indices, cell_nodes: Indices, pattern: Any) -> Indices:
        """Apply a pattern of local nodes, one for each facet of a cell, to many facets."""
        parts = []
        for facet in range(len(self._normals)):
            local = pattern(facet)
            nodes = cell_nodes[pairs[pairs[:, 1] == facet, 0]]
            parts.append(nodes[:, local].reshape(-1, local.shape[1]))
        return np.concatenate(parts).astype(np.int64)

    def facet_segments(self, facet: int) -> Indices:
        """The nodes of an edge of a plane cell, as segments."""
        return self._segments(self._on[:, facet])

    def facet_edges(self, facet: int) -> Indices:
        """The edges around a facet of a cell in space, as segments."""
        others = [k for k in range(len(self._normals)) if k != facet]
        sides = [self._on[:, facet] & self._on[:, k] for k in others]
        return np.concatenate([self._segments(on) for on in sides if on.sum() > 1])

    def facet_triangles(self, facet: int) -> Indices:
        """The nodes of a facet of a cell in space, as triangles."""
        nodes = np.flatnonzero(self._on[:, facet])
        places = self.nodes[nodes]
        spread = np.ptp(places, axis=0)
        # leave out one coordinate: the constant one, or any on the slanted facet
        kept = next(list(k) for k in combinations(range(3), 2) if (spread[list(k)] > 0).all())
        return nodes[_cut(places[:, kept])]

    def _segments(self, on: NDArray[np.bool_]) -> Indices:
        nodes = np.flatnonzero(on)
        places = self.nodes[nodes]
        # no edge of a reference cell is normal to (1, 3, 8), so this sorts along any of them
        order = nodes[np.argsort(places @ np.array([1.0, 3.0, 8.0])[: places.shape[1]])]
        return np.stack([order[:-1], order[1:]], axis=1)
