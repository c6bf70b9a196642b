"""Small cells with two materials, for tests of RVEs and of what stands on them."""

from __future__ import annotations

from collections.abc import Callable
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

from fe_ol.materials import LinearElastic, NeoHookean, NonlinearElastic
from fe_ol.rve import RVE
from fe_ol.snapshots import Snapshots

MATRIX = {"K": 4780.0, "a1": 50.0, "a2": 0.06}
INCLUSION = {"K": 43452.381, "G": 29918.0328}
LAWS = {1: NonlinearElastic(**MATRIX), 2: LinearElastic(**INCLUSION)}
FINITE = {1: NeoHookean(mu=1.0, lam=3.0), 2: NeoHookean(mu=10.0, lam=30.0)}


def tagged(mesh: Any, inside: Callable[[Any], Any]) -> Any:
    """The mesh with the cell tag 2 where a UFL condition on x holds in their middle, else 1."""
    D = FunctionSpace(mesh, "DG", 0)
    two = Function(D).interpolate(conditional(inside(SpatialCoordinate(mesh)), 1.0, 0.0))
    return RelabeledMesh(mesh, [Function(D).interpolate(1 - two), two], [1, 2])


def corner(x: Any) -> Any:
    """A box off the centre of a unit cell: no symmetries."""
    right = conditional(x[0] < 0.5, x[1], 1.0)
    return right < 0.76


def small_mesh(n: int = 4) -> Any:
    """A periodic unit cell of n x n squares with `corner`."""
    return tagged(PeriodicUnitSquareMesh(n, n, quadrilateral=True), corner)


def small_rve(n: int = 4) -> RVE:
    """A stiff rectangle in a soft unit cell."""
    return RVE(small_mesh(n), LAWS)


def small_dense_rve(n: int = 4) -> DenseRVE:
    """The same in dense matrices, by code of its own."""
    return DenseRVE(small_mesh(n), LAWS)


@cache
def shared_rve() -> RVE:
    """`small_rve()`, made once."""
    return small_rve()


@cache
def shared_snapshots() -> Snapshots:
    """Forty snapshots of it."""
    return Snapshots.sample(shared_rve(), 40, seed=3, progress=False)
