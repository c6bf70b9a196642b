"""Multigrid levels below a latent space: nested meshes, lower degrees, non-nested meshes, lattices.

Coarse operators are Galerkin products P^T A P. For nested meshes and degrees they are the operators
assembled there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import firedrake as fd
import numpy as np
import scipy.sparse as sp
import torch
import ufl
from firedrake.mg.utils import get_level
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from spon.fem.graphs import matrix_graph
from spon.fem.maps import sparse_map
from spon.fem.spaces import mesh_of
from spon.processors.levels import Graph, Hierarchy, Level
from spon.sparse import SparseMap

__all__ = ["build_hierarchy"]

_NOTHING = 1e-10  # values of basis functions below it are round-off


@dataclass
class _Operators:
    """Matrices of one level, without units, and which nodes are fixed."""

    mass: sp.csr_matrix
    stiffness: sp.csr_matrix
    derivatives: list[sp.csr_matrix]
    lumped: NDArray[np.float64]
    fixed: NDArray[np.bool_]

    def coarser(self, p: sp.csr_matrix) -> _Operators:
        """Galerkin products with a prolongation, (nodes, coarse nodes)."""

        def galerkin(a: sp.csr_matrix) -> sp.csr_matrix:
            return sp.csr_matrix(p.T @ a @ p)

        return _Operators(
            galerkin(self.mass),
            galerkin(self.stiffness),
            [galerkin(g) for g in self.derivatives],
            abs(p).T @ self.lumped,
            # A correction vanishes on the constrained boundary if no function that reaches it is
            # in it.
            abs(p).T @ self.fixed.astype(float) > 0.0,
        )

    def average(self, p: sp.csr_matrix) -> sp.csr_matrix:
        """Values here to weighted means on the next coarser level, (coarse nodes, nodes).

        A Riesz map, the restriction, and a Riesz map back, both with lumped masses. Constants stay
        what they are, and nothing is amplified.
        """
        dual = abs(p).T @ sp.diags(self.lumped)
        return sp.csr_matrix(sp.diags(1.0 / np.asarray(dual.sum(axis=1)).ravel()) @ dual)

    def level(self, prolongation: sp.csr_matrix | None, graph: Graph | None) -> Level:
        diagonal = self.stiffness.diagonal()
        scaling = 1.0 / diagonal
        square = self.lumped * scaling  # the local mesh size, squared, over four on regular meshes
        inverse = sp.diags(1.0 / self.lumped)
        slopes = sp.diags(np.sqrt(square) / self.lumped)
        stencils = [self.mass @ inverse, self.stiffness @ sp.diags(scaling)]
        stencils += [g @ slopes for g in self.derivatives]
        mean = float(self.lumped @ square / self.lumped.sum())
        return Level(
            forms=SparseMap(sp.vstack([self.mass, self.stiffness, *self.derivatives])),
            stencils=SparseMap(sp.vstack(stencils)),
            scaling=torch.from_numpy(scaling),
            fixed=torch.from_numpy(self.fixed.astype(np.float64)),
            size=-0.5 * float(np.log2(4.0 * mean)),
            prolongation=None if prolongation is None else SparseMap(prolongation),
            average=None if prolongation is None else SparseMap(self.average(prolongation)),
            graph=graph,
        )


def build_hierarchy(
    kind: str,
    space: Any,
    weights: NDArray[np.float64],
    positions: NDArray[np.float64],
    fixed: NDArray[np.bool_],
    length: float,
    graph: Callable[[Any], Graph] | None = None,
) -> Hierarchy:
    """Build the levels below a continuous scalar space.

    Parameters
    ----------
    kind : {"auto", "meshes", "lattice"}
        ``"meshes"``: lower degrees, then the coarser meshes of the hierarchy that the mesh belongs
        to (``MeshHierarchy`` or ``NonNestedHierarchy``). ``"lattice"``: multilinear functions on
        lattices over the box around the domain, restricted to the nodes, each lattice twice as
        coarse as the last. ``"auto"``: meshes as far as they are known, then lattices if the mesh
        is not periodic; lower degrees alone are no hierarchy there.
    space : FunctionSpace
        Scalar, continuous, with nodal values as dofs.
    weights : array, shape (nodes,)
        Shares of the volume, sum one.
    positions : array, shape (nodes, gdim)
        In units of `length`.
    fixed : bool array, shape (nodes,)
        Nodes on the constrained boundary.
    length : float
        Length of the domain.
    graph : callable, optional
        From a space on a mesh to the graph of its nodes. If it is given, every level has a graph;
        that of a lattice is the one of its mass matrix.

    Returns
    -------
    Hierarchy

    Raises
    ------
    ValueError
        If there is nothing to build coarse levels from.
    """
    meshes = _coarser_meshes(mesh_of(space)) if kind != "lattice" else []
    degree = int(np.max(space.ufl_element().embedded_superdegree))
    if kind == "meshes" and get_level(mesh_of(space))[0] is None:
        raise ValueError(
            f"The mesh of {space} belongs to no hierarchy. Refine a coarse mesh with "
            "MeshHierarchy(mesh, n), or collect meshes of the same domain, coarse ones first, in "
            "NonNestedHierarchy(*meshes), and use the finest; or build coarse levels on lattices "
            "with coarse='lattice'."
        )
    operators = _finest(space, weights, fixed, length)
    at = None if graph is None else graph(space)
    found: list[Level] = []
    if kind != "lattice":
        for p, coarse in _between(space, degree, meshes):
            found.append(operators.level(p, at))
            operators, space = operators.coarser(p), coarse
            positions = _positions(coarse) / length
            at = None if graph is None else graph(space)
    if kind != "meshes" and _lattices_fit(mesh_of(space), kind, meshes):
        for p, points in _lattices(positions, mesh_of(space)):
            found.append(operators.level(p, at))
            operators = operators.coarser(p)
            at = None if graph is None else matrix_graph(operators.mass, points)
    found.append(operators.level(None, at))
    return Hierarchy(found)


def _finest(
    space: Any, weights: NDArray[np.float64], fixed: NDArray[np.bool_], length: float
) -> _Operators:
    u, v = fd.TrialFunction(space), fd.TestFunction(space)
    mass = sparse_map(u * v * fd.dx).to_scipy()
    stiffness = sparse_map(fd.inner(fd.grad(u), fd.grad(v)) * fd.dx).to_scipy()
    gdim = int(mesh_of(space).geometric_dimension)
    derivatives = [sparse_map(fd.grad(u)[i] * v * fd.dx).to_scipy() for i in range(gdim)]
    volume = mass.sum()
    return _Operators(
        sp.csr_matrix(mass / volume),
        sp.csr_matrix(stiffness * (length**2 / volume)),
        [sp.csr_matrix(g * (length / volume)) for g in derivatives],
        weights,
        fixed,
    )


def _coarser_meshes(mesh: Any) -> list[Any]:
    """The coarser meshes of the hierarchy of a mesh, the finest of them first."""
    hierarchy, level = get_level(mesh)
    if hierarchy is None:
        return []
    return [m for m in hierarchy.meshes if get_level(m)[1] < level][::-1]


def _between(space: Any, degree: int, meshes: Sequence[Any]) -> list[tuple[sp.csr_matrix, Any]]:
    """Prolongations into each space of the chain, and the spaces that they come from."""
    chain = [space]
    while degree > 1:
        degree //= 2
        chain.append(fd.FunctionSpace(mesh_of(space), "CG", degree))
    chain += [fd.FunctionSpace(mesh, "CG", 1) for mesh in meshes]
    steps = []
    for fine, coarse in itertools.pairwise(chain):
        steps.append((_interpolation(coarse, fine), coarse))
    return steps


def _interpolation(coarse: Any, fine: Any) -> sp.csr_matrix:
    """Values of coarse functions at fine nodes, (fine nodes, coarse nodes)."""
    if mesh_of(coarse) is mesh_of(fine):
        form = fd.interpolate(fd.TrialFunction(coarse), fine)
    else:
        form = fd.interpolate(fd.TrialFunction(coarse), fine, allow_missing_dofs=True)
    p = _rounded(sparse_map(form).to_scipy())
    outside = np.flatnonzero(np.diff(p.indptr) == 0)
    if len(outside):
        # Nodes on a curved boundary that the coarse mesh cuts off.
        _, nearest = cKDTree(_positions(coarse)).query(_positions(fine)[outside])
        ones = np.ones(len(outside))
        p = sp.csr_matrix(p + sp.csr_matrix((ones, (outside, nearest)), shape=p.shape))
    used = np.asarray(abs(p).max(axis=0).todense()).ravel() > 0.0
    if not used.all():
        raise ValueError(
            f"{int((~used).sum())} of {len(used)} nodes of a coarse mesh of the hierarchy reach "
            "no node of the next finer mesh: order the meshes of NonNestedHierarchy from coarse "
            "to fine, all of the same domain."
        )
    return p


def _positions(space: Any) -> NDArray[np.float64]:
    mesh = mesh_of(space)
    vectors = fd.VectorFunctionSpace(mesh, space.ufl_element())
    x = fd.Function(vectors).interpolate(fd.SpatialCoordinate(mesh))
    points: NDArray[np.float64] = x.dat.data_ro.reshape(space.dim(), -1).copy()
    return points


def _lattices_fit(mesh: Any, kind: str, meshes: Sequence[Any]) -> bool:
    """Whether a lattice knows which points are neighbours: not on a periodic mesh."""
    if mesh.coordinates.function_space().ufl_element() in ufl.H1:
        return True
    if kind == "auto" and meshes:
        return False
    raise ValueError(
        f"The mesh {mesh} is periodic, and a lattice does not know which sides belong together: "
        "refine a coarse periodic mesh with MeshHierarchy(mesh, n) and use the finest mesh."
    )


def _lattices(
    points: NDArray[np.float64], mesh: Any
) -> list[tuple[sp.csr_matrix, NDArray[np.float64]]]:
    """Lattices over the box around the nodes, the finest first: prolongations and nodes.

    The lattices depend on the domain, not on its mesh, so that a network on another mesh of the
    domain sees the same coarse levels.
    """
    low = points.min(axis=0)
    extent = points.max(axis=0) - low
    # A mesh of the surface of a body may be flat in one direction.
    extent = np.maximum(extent, 1e-6 * extent.max())
    nodes = len(points)
    # The spacing of the finest lattice is about twice that of the nodes.
    across = extent.max() * nodes ** (1.0 / int(mesh.topological_dimension))
    finest = int(np.floor(np.log2(max(across, 1.0)) - 0.6))
    maps: list[tuple[sp.csr_matrix, NDArray[np.float64]]] = []
    for depth in range(finest, 0, -1):
        # Powers of two in each direction make the lattices nested.
        counts = 2 ** np.maximum(np.rint(depth + np.log2(extent / extent.max())), 0).astype(int)
        p, nodes_there = _hats((points - low) / extent, counts)
        if maps or p.shape[1] < p.shape[0]:
            points = low + extent * nodes_there
            maps.append((p, points))
    return maps


def _hats(
    points: NDArray[np.float64], counts: NDArray[np.int64]
) -> tuple[sp.csr_matrix, NDArray[np.float64]]:
    """Multilinear functions of a lattice on the unit box, at points: (points, used nodes)."""
    t = points * counts
    cell = np.clip(np.floor(t), 0, counts - 1).astype(np.int64)
    t = t - cell
    corners = np.stack(np.meshgrid(*[[0, 1]] * len(counts), indexing="ij"), -1)
    rows, labels, values = [], [], []
    for corner in corners.reshape(-1, len(counts)):
        rows.append(np.arange(len(points)))
        labels.append(np.ravel_multi_index(tuple((cell + corner).T), tuple(counts + 1)))
        values.append(np.where(corner == 1, t, 1.0 - t).prod(axis=1))
    shape = (len(points), int((counts + 1).prod()))
    p = sp.csr_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(labels))), shape
    )
    p = _rounded(p)
    used = np.unique(p.indices)
    where = np.column_stack(np.unravel_index(used, tuple(counts + 1))) / counts
    return sp.csr_matrix(p[:, used]), where


def _rounded(p: sp.csr_matrix) -> sp.csr_matrix:
    """Drop round-off, and take it off values that are one."""
    p.data[np.abs(p.data) < _NOTHING] = 0.0
    p.data[np.abs(p.data - 1.0) < _NOTHING] = 1.0
    p.eliminate_zeros()
    return p
