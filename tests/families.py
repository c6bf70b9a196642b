"""The element families that every property is tested on."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from firedrake import (
    BoxMesh,
    Function,
    FunctionSpace,
    Mesh,
    RectangleMesh,
    SpatialCoordinate,
    VectorFunctionSpace,
    as_vector,
)

_SIMPLEX = [
    *(("CG", k) for k in (1, 2, 3, 4)),
    *(("DG", k) for k in (0, 1, 2, 3)),
    ("vector CG", 1),
    ("vector CG", 2),
    ("RT", 1),
    ("RT", 2),
    ("BDM", 1),
    ("N1curl", 1),
    ("N1curl", 2),
    ("Taylor-Hood", 2),
    ("RT x DG", 1),
]
_FAMILIES = {
    "triangle": _SIMPLEX,
    "quadrilateral": [
        *(("Q", k) for k in (1, 2, 3, 4)),
        *(("DQ", k) for k in (0, 1, 2, 3)),
        ("vector Q", 1),
        ("vector Q", 2),
        ("RTCF", 1),
        ("RTCF", 2),
        ("RTCE", 1),
        ("Taylor-Hood", 2),
    ],
    "tetrahedron": _SIMPLEX,
    # Firedrake has no H(div) and H(curl) elements on unstructured hexahedra.
    "hexahedron": [("Q", 1), ("Q", 2), ("Q", 3), ("DQ", 0), ("DQ", 1), ("vector Q", 1)],
}
FAMILIES = [
    pytest.param(cell, family, degree, id=f"{cell}-{family}-{degree}".replace(" ", "_"))
    for cell, families in _FAMILIES.items()
    for family, degree in families
]


@cache
def mesh_of_cells(cell: str, n: int = 3) -> Mesh:
    """A mesh of that cell whose coordinates are bent, so that no two cells are alike."""
    if cell in ("triangle", "quadrilateral"):
        mesh = RectangleMesh(n, n - 1, 1.0, 0.8, quadrilateral=cell == "quadrilateral")
    else:
        mesh = BoxMesh(2, 2, 1, 1.0, 0.8, 0.6, hexahedral=cell == "hexahedron")
    x = SpatialCoordinate(mesh)
    bent = [xi + 0.05 * xi * x[(i + 1) % len(x)] for i, xi in enumerate(x)]
    mesh.coordinates.assign(
        Function(mesh.coordinates.function_space()).interpolate(as_vector(bent))
    )
    return mesh


def space(cell: str, family: str, degree: int, mesh: Any = None) -> Any:
    """The function space of a family on a small mesh of that cell."""
    mesh = mesh_of_cells(cell) if mesh is None else mesh
    lagrange, broken = ("CG", "DG") if cell in ("triangle", "tetrahedron") else ("Q", "DQ")
    if family.startswith("vector"):
        return VectorFunctionSpace(mesh, family.split()[1], degree)
    if family == "Taylor-Hood":
        pressure = FunctionSpace(mesh, lagrange, degree - 1)
        return VectorFunctionSpace(mesh, lagrange, degree) * pressure
    if family == "RT x DG":
        return FunctionSpace(mesh, "RT", degree) * FunctionSpace(mesh, broken, degree - 1)
    return FunctionSpace(mesh, family, degree)


def random_function(V: Any, seed: int = 0) -> Function:
    """A function with normally distributed coefficients."""
    rng = np.random.default_rng(seed)
    f = Function(V)
    for part in f.subfunctions:
        part.dat.data_wo[...] = rng.standard_normal(part.dat.data_ro.shape)
    return f


def discontinuous(V: Any, degree: int) -> Any:
    """The discontinuous space of that degree with the values of `V`."""
    mesh, shape = V.mesh(), V.value_shape
    family = "DG" if mesh.ufl_cell().cellname in ("triangle", "tetrahedron") else "DQ"
    if shape:
        return VectorFunctionSpace(mesh, family, degree, dim=shape[0])
    return FunctionSpace(mesh, family, degree)
