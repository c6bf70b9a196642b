"""From a UFL two-form or an interpolation to a constant sparse map, cached."""

from __future__ import annotations

import hashlib
import itertools
import weakref
from collections import OrderedDict
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import ufl
from firedrake import (
    Constant,
    FunctionSpace,
    Interpolate,
    TestFunction,
    TrialFunction,
    VectorFunctionSpace,
    VertexOnlyMesh,
    assemble,
    dx,
    inner,
)
from firedrake import interpolate as ufl_interpolate
from firedrake.exceptions import DofNotDefinedError
from firedrake.matrix import MatrixBase
from tsfc.ufl_utils import extract_firedrake_constants, hash_expr
from ufl.algorithms import extract_coefficients

from spon.fem.elements import element_to_json, space_from_element
from spon.fem.interpolation import interpolation_matrix
from spon.fem.spaces import mesh_of, name_of, require_serial
from spon.sparse import SparseMap

__all__ = [
    "clear_cache",
    "evaluation_map",
    "interpolation_map",
    "mean_mass",
    "points_inside",
    "sparse_map",
]

_CACHE_ENTRIES = 128
_cache: OrderedDict[str, SparseMap] = OrderedDict()
_counter = itertools.count()
_tokens: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


def sparse_map(form: Any, dtype: torch.dtype = torch.float64) -> SparseMap:
    """Assemble a bilinear form or a linear interpolation into a constant sparse map.

    Parameters
    ----------
    form : ufl.Form, firedrake.Interpolate or firedrake.Matrix
        A form with a test and a trial function; ``interpolate(expr(TrialFunction(V)), W)`` with
        `W` on the same mesh, on another mesh, a Quadrature space or a space on a
        ``VertexOnlyMesh``; or a matrix that was assembled already (with boundary conditions).
    dtype : torch.dtype, optional
        float64 (default) or float32; the assembly is in float64 always.

    Returns
    -------
    SparseMap, shape (W.dim(), V.dim())
        Rows are the dofs of the test or target space, columns those of the trial space. Forms
        and interpolations come from a cache when the same one was asked for before with the same
        mesh, coordinates and coefficient values.

    Raises
    ------
    TypeError
        If `form` is none of these, or has not exactly two arguments.
    NotImplementedError
        If the mesh is distributed over several processes, or the matrix has no sparse storage
        (a form on a Real space).
    """
    if isinstance(form, MatrixBase):
        return SparseMap(_csr(form), dtype)
    if not isinstance(form, ufl.Form | ufl.Interpolate):
        raise TypeError(
            "Expected a UFL form with two arguments or interpolate(expr(TrialFunction(V)), W), got "
            f"{type(form).__name__}."
        )
    arguments = form.arguments()
    if len(arguments) != 2:
        raise TypeError(
            f"Expected a form or interpolation with two arguments, this one has {len(arguments)}: "
            "put TrialFunction(V) where the input stands and, in a form, TestFunction(W)."
        )
    for argument in arguments:
        require_serial(mesh_of(argument.function_space()), "sparse_map")
    key = f"{_key(form)}:{dtype}"
    if key not in _cache:
        is_form = isinstance(form, ufl.Form)
        matrix = (
            _csr(assemble(form, mat_type="aij")) if is_form else interpolation_matrix(form, _csr)
        )
        _cache[key] = SparseMap(matrix, dtype)
        if len(_cache) > _CACHE_ENTRIES:
            _cache.popitem(last=False)
    _cache.move_to_end(key)
    # A module of its own on the same storage: `.to(dtype)` of one user must not reach another.
    return _cache[key].T.T


def interpolation_map(source: Any, target: Any, dtype: torch.dtype = torch.float64) -> SparseMap:
    """Interpolation from one space into another, on the same mesh or on another one.

    Parameters
    ----------
    source, target : FunctionSpace
        Spaces with the same value shape.

    Returns
    -------
    SparseMap, shape (target.dim(), source.dim())

    Raises
    ------
    ValueError
        If the value shapes differ, or a node of `target` lies outside the mesh of `source`.
    """
    if source.value_shape != target.value_shape:
        raise ValueError(
            f"Cannot interpolate functions of value shape {source.value_shape} "
            f"({name_of(source)}) into {name_of(target)} of value "
            f"shape {target.value_shape}."
        )
    try:
        return sparse_map(ufl_interpolate(TrialFunction(source), target), dtype)
    except DofNotDefinedError as error:
        raise ValueError(
            f"Some nodes of {name_of(target)} lie outside the mesh of {name_of(source)}: the mesh "
            "of the source must cover that of the target."
        ) from error


def evaluation_map(V: Any, points: Any, dtype: torch.dtype = torch.float64) -> SparseMap:
    """Evaluate functions of a scalar or vector space at points.

    Parameters
    ----------
    V : FunctionSpace
        Scalar or vector valued.
    points : array, shape (n_points, geometric_dimension)
        Points inside the mesh.

    Returns
    -------
    SparseMap, shape (n_points * value_size, V.dim())
        Rows in the order of `points`, the components of a point side by side.

    Raises
    ------
    ValueError
        If `points` has another shape, holds NaN, or a point lies outside the mesh.
    """
    mesh = mesh_of(V)
    require_serial(mesh, "evaluation_map")
    points = np.asarray(points, dtype=np.float64)
    gdim = mesh.geometric_dimension
    if points.ndim != 2 or points.shape[1] != gdim or len(points) == 0:
        raise ValueError(
            f"Expected points of shape (n_points, {gdim}) for this mesh, got {points.shape}."
        )
    if not np.isfinite(points).all():
        raise ValueError("The points hold NaN or infinity.")
    if len(V.value_shape) > 1 or len(V) > 1:
        raise ValueError(
            f"Point evaluation is for scalar and vector spaces, not {name_of(V)}: "
            "evaluate its components one by one."
        )
    inside = points_inside(mesh, points)
    if not inside.all():
        raise ValueError(
            f"{int((~inside).sum())} of {len(points)} points lie outside the mesh, the first is "
            f"{points[~inside][0].tolist()}: leave them out or use a mesh that covers them."
        )
    cloud = VertexOnlyMesh(mesh, points)
    at_points = _point_space(cloud, V)
    rows = _csr(assemble(ufl_interpolate(TrialFunction(V), at_points), mat_type="aij"))
    # The vertex-only mesh sorts its points by cells: bring the rows back to the caller's order.
    given = _point_space(cloud.input_ordering, V)
    order = _csr(assemble(ufl_interpolate(TrialFunction(at_points), given), mat_type="aij"))
    return SparseMap(order @ rows, dtype)


def mean_mass(V: Any) -> list[SparseMap]:
    """Mass matrix of each part of a space, divided by the measure of the domain.

    Parameters
    ----------
    V : FunctionSpace

    Returns
    -------
    list of SparseMap, shapes (dim of the part, dim of the part)
        ``x @ M(x)`` is the mean over the domain of the square of the function's value. For a Real
        space that is the identity: its functions are the same everywhere.
    """
    mesh = mesh_of(V)
    measure = float(assemble(Constant(1.0) * dx(domain=mesh)))
    result = []
    for part in V.subspaces:
        if part.ufl_element().family() == "Real":
            result.append(SparseMap(sp.identity(part.dim(), format="csr")))
            continue
        space = space_from_element(mesh, element_to_json(part.ufl_element()))
        mass = sparse_map(inner(TrialFunction(space), TestFunction(space)) * dx)
        result.append(SparseMap(mass.to_scipy() / measure))
    return result


def points_inside(mesh: Any, points: np.ndarray) -> np.ndarray:
    """Which points lie inside a mesh.

    Parameters
    ----------
    mesh : firedrake.MeshGeometry
    points : array, shape (n_points, geometric_dimension)

    Returns
    -------
    array of bool, shape (n_points,)
    """
    require_serial(mesh, "points_inside")
    # Firedrake's own tolerance is half a cell; here outside means outside, up to round-off.
    cells, _, distances = mesh.locate_cells_ref_coords_and_dists(points)
    inside: np.ndarray = (np.asarray(cells) >= 0) & (np.asarray(distances) < 1e-8)
    return inside


def clear_cache() -> None:
    """Forget all cached maps."""
    _cache.clear()


def _point_space(cloud: Any, V: Any) -> Any:
    if not V.value_shape:
        return FunctionSpace(cloud, "DG", 0)
    return VectorFunctionSpace(cloud, "DG", 0, dim=V.value_shape[0])


def _csr(matrix: Any) -> sp.csr_matrix:
    petsc = matrix.petscmat
    try:
        rows, cols, values = petsc.getValuesCSR()
    except Exception as error:
        raise NotImplementedError(
            f"A {petsc.getType()} matrix of size {petsc.getSize()} has no sparse storage to "
            "export (spaces of type Real give such matrices)."
        ) from error
    csr = sp.csr_matrix((values, cols, rows), shape=petsc.getSize(), copy=True)
    return _without_round_off(csr)


def _without_round_off(csr: sp.csr_matrix) -> sp.csr_matrix:
    """Drop entries that are round-off both in their row and in their column."""
    size = np.abs(csr.data)
    absolute = sp.csr_matrix((size, csr.indices, csr.indptr), shape=csr.shape)
    row_max = absolute.max(axis=1).toarray().ravel()
    col_max = absolute.max(axis=0).toarray().ravel()
    row = np.repeat(np.arange(csr.shape[0]), np.diff(csr.indptr))
    limit = 4 * np.finfo(float).eps * np.minimum(row_max[row], col_max[csr.indices])
    csr.data[size <= limit] = 0.0
    csr.eliminate_zeros()
    return csr


def _key(form: Any) -> str:
    if isinstance(form, ufl.Form):
        text = [form.signature()]
        domains = form.ufl_domains()
    else:
        operand = form.ufl_operands[0]
        options = form.options if isinstance(form, Interpolate) else None
        text = [hash_expr(operand), repr(options)]
        domains = ufl.domain.extract_domains(operand)
    spaces = [argument.function_space() for argument in form.arguments()]
    for V in spaces:
        text.append(repr(element_to_json(V.ufl_element())))
    unique = (mesh for domain in domains for mesh in domain.meshes)
    for mesh in (*unique, *(mesh_of(V) for V in spaces)):
        text.append(f"{_token(mesh)}.{_values(mesh.coordinates)}")
    for coefficient in extract_coefficients(form):
        text.append(f"{_token(coefficient)}.{_values(coefficient)}")
    for constant in extract_firedrake_constants(form):
        text.append(repr(np.asarray(constant.dat.data_ro).tolist()))
    return hashlib.sha256("|".join(text).encode()).hexdigest()


def _token(thing: Any) -> int:
    """Number of an object that is never given to another object, unlike ``id``."""
    if thing not in _tokens:
        _tokens[thing] = next(_counter)
    return _tokens[thing]


def _values(f: Any) -> str:
    """Hash of the values: a version number misses what is written through an array held earlier."""
    digest = hashlib.sha256()
    for part in f.subfunctions:
        digest.update(np.ascontiguousarray(part.dat.data_ro).tobytes())
    return digest.hexdigest()
