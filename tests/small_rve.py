"""A small RVE with two materials, for tests of what stands on RVEs."""

from __future__ import annotations

from functools import cache
from typing import Any

from dense_rve import DenseRVE
from firedrake import (
    Function,
    FunctionSpace,
    PeriodicUnitSquareMesh,
    RelabeledMesh,
    SpatialCoordinate,
    conditional,
)

from fe_ol.materials import LinearElastic, NonlinearElastic
from fe_ol.snapshots import Snapshots

MATRIX = {"K": 4780.0, "a1": 50.0, "a2": 0.06}
INCLUSION = {"K": 43452.381, "G": 29918.0328}


def small_rve(n: int = 4) -> Any:
    """A stiff rectangle off the centre of a unit cell of n x n squares: no symmetries."""
    mesh = PeriodicUnitSquareMesh(n, n, quadrilateral=True)
    x, y = SpatialCoordinate(mesh)
    inside = Function(FunctionSpace(mesh, "DG", 0))
    inside.interpolate(conditional(x < 0.5, conditional(y < 0.76, 1.0, 0.0), 0.0))
    outside = Function(inside.function_space()).interpolate(1 - inside)
    tagged = RelabeledMesh(mesh, [outside, inside], [1, 2])
    return DenseRVE(tagged, {1: NonlinearElastic(**MATRIX), 2: LinearElastic(**INCLUSION)})


@cache
def shared_rve() -> Any:
    """`small_rve()`, made once."""
    return small_rve()


@cache
def shared_snapshots() -> Snapshots:
    """Forty snapshots of it."""
    return Snapshots.sample(shared_rve(), 40, seed=3, progress=False)
