"""Finite groups of affine maps of a mesh, acting on nodal fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from firedrake import Function, FunctionSpace, SpatialCoordinate, VectorFunctionSpace
from scipy.spatial import cKDTree

from spon.fem.bernstein import scalar_version
from spon.fem.spaces import mesh_of, name_of

__all__ = ["group_average", "require_invariant_box"]

_TOLERANCE = 1e-8


def group_average(U: Any, maps: Sequence[tuple[Any, Any]]) -> sp.csr_matrix:
    """Mean of ``u -> Q u(g^-1 .)`` over the maps ``g(x) = A x + b`` of a group.

    Vectors turn with the map, Q = A, scalars stay.

    Parameters
    ----------
    U : FunctionSpace
        Scalar or vector valued CG or DG on simplices.
    maps : sequence of (A, b), shapes (gdim, gdim) and (gdim,)
        All maps of the group; the identity may be left out.

    Returns
    -------
    CSR matrix, shape (U.dim(), U.dim())

    Raises
    ------
    ValueError
        If the maps are no group, are no isometries, or do not map the mesh onto itself.
    """
    mesh = mesh_of(U)
    gdim = int(mesh.geometric_dimension)
    if len(U) > 1 or U.value_shape not in ((), (gdim,)):
        raise ValueError(f"symmetry is for scalars and vectors of CG or DG, not {name_of(U)}.")
    V = scalar_version(U, "symmetry")
    group = _closed(maps, gdim)
    nodes, vertices = _nodes(V), mesh.coordinates.dat.data_ro.reshape(-1, gdim)
    cells = FunctionSpace(mesh, "DG", 0)
    centres = _nodes(cells)
    size = float(np.ptp(vertices, axis=0).max())
    total = sp.csr_matrix((U.dim(), U.dim()))
    for A, b in group:
        for points in (vertices, centres):
            _permutation(points, A, b, size)
        image = _permutation(nodes, A, b, size)
        # The value at the image of a node is that at the node, turned.
        moved = sp.csr_matrix(
            (np.ones(len(nodes)), (image, np.arange(len(nodes)))), shape=(len(nodes),) * 2
        )
        total = total + (sp.kron(moved, sp.csr_matrix(A)) if U.value_shape else moved)
    return sp.csr_matrix(total / len(group))


def require_invariant_box(
    maps: Sequence[tuple[Any, Any]], bounds: tuple[float | None, float | None]
) -> None:
    """Refuse bounds of each component that a map of vectors does not leave as they are.

    Parameters
    ----------
    maps : sequence of (A, b)
        Isometries.
    bounds : tuple of (float or None, float or None)

    Raises
    ------
    ValueError
        If a map permutes the components in no way that keeps the bounds.
    """
    lower, upper = bounds
    balanced = lower is not None and upper is not None and lower == -upper
    for A, _ in maps:
        entries = np.asarray(A, dtype=np.float64)
        mixes = not np.allclose(np.abs(entries), np.abs(entries).round(), atol=_TOLERANCE)
        if mixes or (not balanced and (entries < -_TOLERANCE).any()):
            hint = (
                "only permutations of the components keep them"
                if mixes
                else "it changes signs, which needs bounds (-c, c)"
            )
            raise ValueError(
                f"The bounds ({lower}, {upper}) of each component are not invariant under the map "
                f"A = {entries.tolist()} of symmetry=: {hint}. Leave the map or the bounds out."
            )


def _closed(maps: Sequence[tuple[Any, Any]], gdim: int) -> list[tuple[np.ndarray, np.ndarray]]:
    group = [(np.eye(gdim), np.zeros(gdim))]

    def find(A: np.ndarray, b: np.ndarray) -> bool:
        return any(
            np.allclose(A, C, atol=_TOLERANCE) and np.allclose(b, d, atol=_TOLERANCE)
            for C, d in group
        )

    for given in maps:
        A, b = (np.asarray(part, dtype=np.float64) for part in given)
        if A.shape != (gdim, gdim) or b.shape != (gdim,):
            raise ValueError(
                f"A map of symmetry is (A, b) of shapes ({gdim}, {gdim}) and ({gdim},), got "
                f"{A.shape} and {b.shape}."
            )
        if not np.allclose(A @ A.T, np.eye(gdim), atol=_TOLERANCE):
            raise ValueError(f"A map of symmetry is no rotation or reflection: A = {A.tolist()}.")
        if not find(A, b):
            group.append((A, b))
    for A, b in group:
        for C, d in group:
            if not find(A @ C, A @ d + b):
                raise ValueError(
                    f"The maps of symmetry= are no group: A = {A.tolist()}, b = {b.tolist()} after "
                    f"A = {C.tolist()}, b = {d.tolist()} is not among them. Give all products."
                )
    return group


def _nodes(V: Any) -> np.ndarray:
    mesh = mesh_of(V)
    space = VectorFunctionSpace(mesh, V.ufl_element())
    x = Function(space).interpolate(SpatialCoordinate(mesh))
    return np.asarray(x.dat.data_ro.reshape(V.dim(), -1))


def _permutation(points: np.ndarray, A: np.ndarray, b: np.ndarray, size: float) -> np.ndarray:
    """Which point each point is mapped to."""
    images = points @ A.T + b
    distance, image = cKDTree(points).query(images)
    if distance.max() > _TOLERANCE * size or len(np.unique(image)) != len(points):
        raise ValueError(
            f"The mesh is not invariant under the map A = {A.tolist()}, b = {b.tolist()} of "
            f"symmetry=: a point is mapped {distance.max():.3g} away from the nearest one. Mesh a "
            "part of the domain and reflect it, or leave the map out."
        )
    return np.asarray(image)
