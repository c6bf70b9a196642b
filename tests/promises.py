"""Domains with holes, and measures of what a field promises by Firedrake's own forms."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from firedrake import (
    And,
    BoxMesh,
    DirichletBC,
    Function,
    FunctionSpace,
    RectangleMesh,
    RelabeledMesh,
    SpatialCoordinate,
    Submesh,
    TestFunction,
    TrialFunction,
    VectorFunctionSpace,
    assemble,
    conditional,
    dx,
    inner,
)
from firedrake.mesh import MeshGeometry

__all__ = ["DOMAINS", "cellwise", "domain", "full_rank", "kernel_dimension", "large", "zero_traces"]

_HOLES: dict[str, tuple[tuple[int, ...], list[tuple[int, ...]]]] = {
    "square": ((3, 3), []),
    "annulus": ((3, 3), [(1, 1)]),
    "two holes": ((5, 3), [(1, 1), (3, 1)]),
    "box": ((2, 2, 2), []),
    "box with a cavity": ((3, 3, 3), [(1, 1, 1)]),
    "box with a tunnel": ((3, 3, 1), [(1, 1, 0)]),
    "two squares": ((3, 1), [(1, 0)]),
    "two bodies, one with a hole": ((5, 3), [(1, 1), *((3, i) for i in range(3))]),
    "two squares at a corner": ((2, 2), [(1, 0), (0, 1)]),
    "two boxes": ((3, 1, 1), [(1, 0, 0)]),
}
DOMAINS = list(_HOLES)


@cache
def domain(name: str) -> MeshGeometry:
    """A mesh of unit cells, some of them cut out; the rim of holes has the last tag."""
    shape, holes = _HOLES[name]
    make = RectangleMesh if len(shape) == 2 else BoxMesh
    mesh = make(*shape, *map(float, shape))
    if not holes:
        return mesh
    x = SpatialCoordinate(mesh)
    V = FunctionSpace(mesh, "DG", 0)
    inside = 0.0
    for hole in holes:
        within = conditional(x[0] > -1.0, 1.0, 0.0)
        for i, a in enumerate(hole):
            within = within * conditional(And(x[i] > a, x[i] < a + 1), 1.0, 0.0)
        inside = inside + within
    rest = Function(V).interpolate(1.0 - inside)
    marked = RelabeledMesh(mesh, [rest], [77])
    return Submesh(marked, len(shape), 77)


def zero_traces(U: Any, tags: Any) -> list[Any]:
    """No normal (tangential) component on some of the boundary."""
    return [DirichletBC(U, [0.0] * U.value_shape[0], tags)] if tags else []


def kernel_dimension(U: Any, derivative: Any, bcs: Any) -> int:
    """Dimension of the fields without derivative and traces, by dense linear algebra."""
    scalar = len(derivative(TestFunction(U)).ufl_shape) == 0
    W = (FunctionSpace if scalar else VectorFunctionSpace)(
        U.mesh(), "DG" if U.mesh().ufl_cell().is_simplex else "DQ", U.ufl_element().degree()
    )
    a = inner(derivative(TrialFunction(U)), TestFunction(W)) * dx
    rows = [np.asarray(assemble(a).petscmat[:, :])]
    for bc in bcs:
        rows.append(np.eye(U.dim())[bc.nodes])
    return U.dim() - int(np.linalg.matrix_rank(np.vstack(rows)))


def full_rank(decoder: Any) -> int:
    """Rank of the linear map of a decoder whose data are all zero."""
    x = torch.eye(decoder.latent.dim(), dtype=torch.float64)
    return int(np.linalg.matrix_rank(decoder(x).numpy()))


def cellwise(expression: Any, u: Any) -> float:
    """Largest L2 norm of an expression over a cell, relative to the largest of u over h."""
    mesh = u.function_space().mesh()
    V = FunctionSpace(mesh, "DG" if mesh.ufl_cell().is_simplex else "DQ", 0)
    v = TestFunction(V)
    wrong = assemble(inner(expression, expression) * v * dx).dat.data_ro
    size = assemble(inner(u, u) * v * dx).dat.data_ro
    h = assemble(v * dx).dat.data_ro ** (1.0 / mesh.geometric_dimension)
    return float(np.sqrt(wrong.max()) / np.sqrt((size / h**2).max()))


def large(decoder: Any, dtype: torch.dtype, amplitude: float = 1e3) -> torch.Tensor:
    """What a wild network might say."""
    generator = torch.Generator().manual_seed(0)
    return amplitude * torch.randn(2, decoder.latent.dim(), generator=generator, dtype=dtype)
