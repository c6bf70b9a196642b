"""Cells of degree 2: which node lies between which corners. Knows nothing of Firedrake."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Array", "between", "complete", "is_straight", "node_table", "turned_over"]

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

CORNERS: dict[str, list[tuple[int, ...]]] = {
    "triangle": [(0, 0), (1, 0), (0, 1)],
    "quad": [(0, 0), (1, 0), (1, 1), (0, 1)],
    "tetra": [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)],
    "hexahedron": [(x, y, z) for z in (0, 1) for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))],
}
"""Places of the corners on the reference cell, in gmsh's order."""

_ROUND = [(0, 1), (1, 2), (2, 3), (0, 3)]
_HEX_EDGES = [(0, 1), (0, 3), (0, 4), (1, 2), (1, 5), (2, 3), (2, 6), (3, 7), (4, 5), (4, 7)]
_HEX_EDGES += [(5, 6), (6, 7)]
_HEX_FACES = [(0, 1, 2, 3), (0, 1, 4, 5), (0, 3, 4, 7), (1, 2, 5, 6), (2, 3, 6, 7), (4, 5, 6, 7)]
# The corners around each further node, in gmsh's order: edges, faces, the cell
_FURTHER: dict[str, list[tuple[int, ...]]] = {
    "triangle": [(0, 1), (1, 2), (0, 2)],
    "quad": [*_ROUND, (0, 1, 2, 3)],
    "tetra": [(0, 1), (1, 2), (0, 2), (0, 3), (2, 3), (1, 3)],
    "hexahedron": [*_HEX_EDGES, *_HEX_FACES, tuple(range(8))],
}
_SERENDIPITY = {("quad", 8), ("hexahedron", 20)}


def between(shape: str) -> list[tuple[int, ...]]:
    """The corners around each node of a full cell of degree 2, in gmsh's order.

    A corner is alone; a node on an edge has two corners around it, one on a quadrilateral's
    face four.
    """
    return [(corner,) for corner in range(len(CORNERS[shape]))] + _FURTHER[shape]


def node_table(shape: str) -> Indices:
    """Which node lies between a set of corners, (2 ** corners,); -1 where none does.

    A set is a whole number: the sum of 2 ** corner. So a node is found without comparing places,
    however strongly the cell is bent.
    """
    table = np.full(2 ** len(CORNERS[shape]), -1, dtype=np.int64)
    for node, corners in enumerate(between(shape)):
        table[sum(2**corner for corner in corners)] = node
    return table


def complete(shape: str, nodes: ArrayLike) -> Array:
    """Cells with the nodes that serendipity elements leave out.

    Parameters
    ----------
    shape : str
        ``"triangle"``, ``"quad"``, ``"tetra"`` or ``"hexahedron"``.
    nodes : array, shape (cells, nodes, dimension)
        Places in gmsh's order, of full cells or of quadrilaterals with 8 and hexahedra with 20.

    Returns
    -------
    array, shape (cells, full number of nodes, dimension)
        A node in a face is put where the serendipity element maps its centre: half the sum of
        the four edge nodes less a quarter of the corners; the centre of a hexahedron is a quarter
        of the sum of its twelve edge nodes less a quarter of the corners.

    Raises
    ------
    ValueError
        If the number of nodes fits no cell of degree 2.
    """
    nodes = np.asarray(nodes, dtype=np.float64)
    full = between(shape)
    if nodes.shape[1] == len(full):
        return nodes
    if (shape, nodes.shape[1]) not in _SERENDIPITY:
        raise ValueError(
            f"{shape} cells of degree 2 have {len(full)} nodes"
            f"{' (or 8 or 20 without those in faces)' if shape in ('quad', 'hexahedron') else ''}"
            f", not {nodes.shape[1]}"
        )
    table, added = node_table(shape), []
    for corners in full[nodes.shape[1] :]:
        edges = [table[2**a + 2**b] for a in corners for b in corners if a < b]
        on_edges = nodes[:, [edge for edge in edges if edge >= 0]].sum(axis=1)
        at_corners = nodes[:, list(corners)].sum(axis=1)
        weight = 0.5 if len(corners) == 4 else 0.25
        added.append(weight * on_edges - 0.25 * at_corners)
    return np.concatenate([nodes, np.stack(added, axis=1)], axis=1)


def is_straight(shape: str, nodes: Array, tolerance: float = 1e-8) -> bool:
    """Whether every node lies in the middle of its corners, to `tolerance` of the cell's size."""
    middle = np.stack([nodes[:, list(corners)].mean(axis=1) for corners in between(shape)], axis=1)
    corners = nodes[:, : len(CORNERS[shape])]
    size = np.ptp(corners, axis=1).max(axis=1)
    return bool((np.abs(nodes - middle).max(axis=(1, 2)) <= tolerance * size).all())


def turned_over(shape: str, nodes: Array) -> Indices:
    """Numbers of the cells whose Jacobian changes its sign or vanishes.

    It is looked at in 4 Gauss points a direction, moved into the simplex where the cell is one.

    Parameters
    ----------
    shape : str
    nodes : array, shape (cells, full number of nodes, dimension)

    Returns
    -------
    integer array
    """
    dim = len(CORNERS[shape][0])
    line = (np.polynomial.legendre.leggauss(4)[0] + 1) / 2
    points = np.array(list(product(line, repeat=dim)))
    simplex = shape in ("triangle", "tetra")
    if simplex:  # x1 = t1, x2 = (1 - x1) t2, x3 = (1 - x1 - x2) t3
        for axis in range(1, dim):
            points[:, axis] *= 1 - points[:, :axis].sum(axis=1)
    places = [np.mean([CORNERS[shape][c] for c in corners], axis=0) for corners in between(shape)]
    powers = [p for p in product(range(3), repeat=dim) if not simplex or sum(p) <= 2]
    lagrange = np.linalg.inv(np.array([[_power(x, p) for p in powers] for x in places]))
    slopes = [[[_slope(x, p, axis) for p in powers] for axis in range(dim)] for x in points]
    jacobian = np.einsum("cni,qdp,pn->cqid", nodes, np.array(slopes), lagrange, optimize=True)
    determinant = np.linalg.det(jacobian)
    bad = determinant.min(axis=1) * determinant.max(axis=1) <= 0
    return np.flatnonzero(bad)


def _power(x: Array, powers: tuple[int, ...]) -> float:
    return float(np.prod([value**n for value, n in zip(x, powers, strict=True)]))


def _slope(x: Array, powers: tuple[int, ...], axis: int) -> float:
    if powers[axis] == 0:
        return 0.0
    lower = tuple(n - (k == axis) for k, n in enumerate(powers))
    return powers[axis] * _power(x, lower)
