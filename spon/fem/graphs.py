"""Graphs for message passing: of nodes that share a cell, and of the nodes of a lattice."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from spon.processors.levels import Graph
from spon.sparse import SparseMap

__all__ = ["cell_graph", "matrix_graph", "on_held_pieces"]

# Nodes that are coupled by less, relative to the strongest coupling of both, share no edge. Corners
# of a cube have 1/16; nodes two cells apart, which functions on a mesh across the lattice couple,
# have less.
_FAINT = 1.0 / 32.0


def cell_graph(
    points: NDArray[np.float64],
    node_of: NDArray[np.integer],
    cell_of: NDArray[np.integer],
    volumes: NDArray[np.float64],
) -> Graph:
    """Edges between nodes that share a cell, weighted by the volumes of the cells that they share.

    Parameters
    ----------
    points : array, shape (dofs, gdim)
        Nodes of each cell by itself, in units of the domain's length. Vectors are taken inside a
        cell: on a periodic mesh the nodes themselves may lie far apart.
    node_of, cell_of : int array, shape (dofs,)
        The node and the cell that each of them belongs to.
    volumes : array, shape (cells,)

    Returns
    -------
    Graph
    """
    nodes = int(node_of.max()) + 1
    in_cell = np.argsort(cell_of, kind="stable").reshape(len(volumes), -1)
    i, j = np.nonzero(~np.eye(in_cell.shape[1], dtype=bool))
    one, two = in_cell[:, i].ravel(), in_cell[:, j].ravel()
    pairs = node_of[one].astype(np.int64) * nodes + node_of[two]
    pairs, first, edge = np.unique(pairs, return_index=True, return_inverse=True)
    receiver, sender = np.divmod(pairs, nodes)
    weight = np.bincount(edge, weights=volumes[cell_of[one]]).astype(np.float64)
    return _graph(nodes, receiver, sender, weight, points[two[first]] - points[one[first]])


def on_held_pieces(matrix: sp.csr_matrix, fixed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which nodes lie on pieces of the domain where a node is fixed.

    On the other pieces the Laplacian is singular, and a factorisation may not notice.

    Parameters
    ----------
    matrix : csr_matrix, shape (nodes, nodes)
        Its entries join nodes.
    fixed : bool array, shape (nodes,)

    Returns
    -------
    bool array, shape (nodes,)
    """
    count, piece = connected_components(matrix, directed=False)
    held = np.zeros(count, dtype=bool)
    held[piece[fixed]] = True
    return np.asarray(held[piece])


def matrix_graph(mass: sp.csr_matrix, positions: NDArray[np.float64]) -> Graph:
    """Edges between nodes that a mass matrix couples, weighted by how much it does.

    For piecewise linear functions on simplices these are the edges and, up to a factor, the weights
    of `cell_graph`.

    Parameters
    ----------
    mass : csr_matrix, shape (nodes, nodes)
    positions : array, shape (nodes, gdim)
        In units of the domain's length.

    Returns
    -------
    Graph
    """
    entries = sp.coo_matrix(mass)
    apart = entries.row != entries.col
    receiver, sender = entries.row[apart].astype(np.int64), entries.col[apart].astype(np.int64)
    # Negative ones, next to the small supports of functions of degree 2, are close to zero.
    weight = np.abs(entries.data[apart])
    strongest = np.zeros(len(positions))
    np.maximum.at(strongest, receiver, weight)
    keep = weight > _FAINT * np.minimum(strongest[receiver], strongest[sender])
    receiver, sender, weight = receiver[keep], sender[keep], weight[keep]
    return _graph(len(positions), receiver, sender, weight, positions[sender] - positions[receiver])


def _graph(
    nodes: int,
    receiver: NDArray[np.int64],
    sender: NDArray[np.int64],
    weight: NDArray[np.float64],
    step: NDArray[np.float64],
) -> Graph:
    edges = len(weight)
    order = np.arange(edges)
    distance = np.linalg.norm(step, axis=1)
    to_node = sp.csr_matrix((weight, (receiver, order)), shape=(nodes, edges))
    mean = sp.csr_matrix(sp.diags(1.0 / np.asarray(to_node.sum(axis=1)).ravel()) @ to_node)
    size = (mean @ distance)[receiver]
    features = np.column_stack([step / size[:, None], distance / size, distance])
    senders = sp.csr_matrix((np.ones(edges), (order, sender)), shape=(edges, nodes))
    return Graph(torch.from_numpy(features), SparseMap(senders), SparseMap(mean))
