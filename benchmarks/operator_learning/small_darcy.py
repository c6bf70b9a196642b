"""The small Darcy set that the package neuraloperator shipped: point values on half-open grids.

The coefficient is two-valued, the pressure vanishes on the boundary of the unit square. Grid point
(i, j) of an n x n grid is taken to lie at (i/n, j/n): rows and columns i = 0 are on the boundary,
those with i = n are missing. (It lies half a cell of a grid of 512 further in, see
`sign_fields.points`, where the pressure is up to 0.01: half a per cent of a sample.) The grid of
16 x 16 points is every other point of that of 32 x 32.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from firedrake import (
    DirichletBC,
    Function,
    FunctionSpace,
    SpatialCoordinate,
    TestFunction,
    TrialFunction,
    UnitSquareMesh,
    VectorFunctionSpace,
    dx,
    grad,
    inner,
)
from torch import Tensor

from operator_learning.finite_elements import cpu, row
from operator_learning.problems import Grid, Level, Problem, Samples, pairs
from spon import fem
from spon.sparse import SparseMap

__all__ = ["FILES", "VARIABLE", "SmallDarcy", "folder", "lattice", "relative"]

VARIABLE = "SPON_DARCY"
FILES = {"train": "darcy_train_16.npz", "16": "darcy_test_16.npz", "32": "darcy_test_32.npz"}


def folder(given: str | os.PathLike[str] | None = None) -> Path:
    """Where the set lies: the argument, else the environment variable.

    Raises
    ------
    FileNotFoundError
        If neither names a folder with its files.
    """
    place = given or os.environ.get(VARIABLE)
    if not place:
        raise FileNotFoundError(
            f"The small Darcy set is not part of this repository: give its folder by --data or the "
            f"environment variable {VARIABLE}. It holds {', '.join(FILES.values())}, made from "
            "the arrays x and y of the small Darcy files of neuraloperator 0.3.0."
        )
    path = Path(place)
    missing = [name for name in FILES.values() if not (path / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{path} does not hold {', '.join(missing)} (small Darcy set).")
    return path


@dataclass
class SmallDarcy(Problem):
    """900 samples to train on, 100 to choose settings by; 50 on either grid for reporting."""

    title: ClassVar[str] = "Small Darcy set, trained on 16 x 16"
    HELD: ClassVar[int] = 100

    @classmethod
    def make(
        cls, name: str, quick: bool, data: str | None = None, validation: int = HELD
    ) -> SmallDarcy:
        """Read the set; see `problems.make`."""
        path = folder(data)
        x, y = _read(path / FILES["train"])
        coarse = _level(16)
        levels = {"16": coarse, "32": _level(32, coarse)}
        split = len(x) - validation
        train = Samples(x[:split], y[:split], coarse)
        held = Samples(x[split:], y[split:], coarse)
        if quick:
            train, held = train[:64], held[:16]
        tests = {key: Samples(*_read(path / FILES[key]), levels[key]) for key in levels}
        about = {"train": len(train), "validation": len(held)}
        return cls(name, train, held, tests, seconds=200.0, epochs=400, about=about)

    def solvers(self, quick: bool) -> list[dict[str, Any]]:
        """Bilinear elements that know the equation, but two constants, and the same point values.

        The two constants of the set are not published with it: the ratio of the two coefficients
        and the factor of the pressure are fitted to training samples.
        """
        known = self.train[: 16 if quick else 100]
        rows = []
        for rule in _RULES:
            ratio = _fitted_ratio(known, rule)
            factor = _factor(_solve(known, ratio, 16, rule), known.y)
            for test, samples in self.tests.items():
                n = int(test)
                for cells in (n // 4, n // 2, n):
                    where = (samples, ratio, cells, rule)
                    _solve(*where)  # compiled outside the clock
                    made, setup = cpu(partial(_make_solver, _mesh(cells), rule))
                    found, spent = cpu(partial(_solve, *where, made))
                    error = self.measures(test, factor * found)["error"]
                    name = f"spon.fem.LinearSolver, Q1, {rule}"
                    mesh, U = f"{cells} x {cells}", _mesh(cells).U
                    errors = {"error": float(error.mean()), "ratio": ratio, "factor": factor}
                    found_row = row(name, mesh, U, errors, len(samples), setup, spent)
                    rows.append({**found_row, "test": test})
        return rows


def _read(path: Path) -> tuple[Tensor, Tensor]:
    with np.load(path) as file:
        x, y = (torch.from_numpy(file[key].astype(np.float32)) for key in "xy")
    return x.flatten(1), y.flatten(1)


def _level(n: int, train: Level | None = None) -> Level:
    """The n x n points, and bilinear functions on the n x n squares between them."""
    mesh = UnitSquareMesh(n, n, quadrilateral=True)
    V = FunctionSpace(mesh, "Q", 1)
    ij = lattice(mesh, n)
    # The missing row and column take the coefficient of their neighbours.
    nearest = np.minimum(ij, n - 1)
    number = ij[:, 0] * n + ij[:, 1]
    there = (ij < n).all(axis=1)
    out_of_U = np.empty(n * n, dtype=np.int64)
    out_of_U[number[there]] = np.flatnonzero(there)
    points = np.stack(np.divmod(np.arange(n * n), n), axis=1)
    corner = np.arange(n * n).reshape(n, n)
    squares = [corner[:-1, :-1], corner[1:, :-1], corner[:-1, 1:], corner[1:, 1:]]
    level = Level(
        name=str(n),
        inputs=n * n,
        outputs=n * n,
        points=torch.from_numpy(points / n).float(),
        edges=pairs(np.stack([s.ravel() for s in squares], axis=1)),
        grid=Grid((n, n)),
        error=relative,
        mesh=mesh,
        V=V,
        U=V,
        rule=_zero_on_boundary,
        into_V=torch.from_numpy(nearest[:, 0] * n + nearest[:, 1]),
        out_of_U=torch.from_numpy(out_of_U),
    )
    if train is not None:
        step = n // train.grid.shape[0]
        kept = corner[::step, ::step].ravel()
        every = sp.csr_matrix(
            (np.ones(len(kept)), (np.arange(len(kept)), kept)), shape=(len(kept), n * n)
        )
        level.restrict = SparseMap(every, torch.float32)
        level.prolong = SparseMap(_bilinear(train.grid.shape[0], n), torch.float32)
    return level


def lattice(mesh: Any, n: int) -> np.ndarray:
    """Row and column of each dof of the bilinear functions."""
    X = VectorFunctionSpace(mesh, "Q", 1)
    x = Function(X).interpolate(SpatialCoordinate(mesh)).dat.data_ro
    return np.rint(x * n).astype(np.int64)


def _zero_on_boundary(U: Any) -> Any:
    return DirichletBC(U, 0.0, "on_boundary")


def relative(prediction: Tensor, target: Tensor) -> Tensor:
    """Relative error of the grid values in the Euclidean norm, shape (batch,)."""
    return (prediction - target).norm(dim=1) / target.norm(dim=1)


def _bilinear(coarse: int, fine: int) -> sp.csr_matrix:
    """Bilinear interpolation between half-open grids; the missing row and column are zero."""
    positions = np.arange(fine) * coarse / fine
    left = np.floor(positions).astype(int)
    right = positions - left
    one = sp.csr_matrix((1 - right, (np.arange(fine), left)), shape=(fine, coarse + 1))
    one += sp.csr_matrix((right, (np.arange(fine), left + 1)), shape=(fine, coarse + 1))
    one = one.tocsc()[:, :coarse]
    return sp.kron(one, one).tocsr()


# ---- finite elements ---------------------------------------------------------------------------


# The five-point scheme with means of neighbouring coefficients is Q1 with a rule at the vertices.
_RULES: dict[str, dict[str, Any]] = {
    "Gauss quadrature": {"degree": 3},
    "vertex quadrature": {"degree": 1, "scheme": "KMV"},
}


def _solve(samples: Samples, ratio: float, cells: int, rule: str, solver: Any = None) -> Tensor:
    """Solutions with coefficients 1 and `ratio` on a mesh, as values at the points of the level."""
    n = samples.level.grid.shape[0]
    step, level = n // cells, _mesh(cells)
    solver = solver or _solver(cells, rule)
    x = samples.x.reshape(-1, n, n)[:, ::step, ::step].flatten(1).double()
    u = level.values(solver(1.0 + (ratio - 1.0) * level.coefficients(x)))
    return u if step == 1 else SparseMap(_bilinear(cells, n)).batch(u)


_mesh = cache(_level)


@cache
def _solver(cells: int, rule: str) -> fem.LinearSolver:
    return _make_solver(_mesh(cells), rule)


def _make_solver(level: Level, rule: str) -> fem.LinearSolver:
    u, v, k = TrialFunction(level.U), TestFunction(level.U), Function(level.V)
    a = k * inner(grad(u), grad(v)) * dx(**_RULES[rule])
    return fem.LinearSolver(a, level.rule(level.U), inputs=k, L=v * dx)


def _factor(found: Tensor, y: Tensor) -> float:
    return float((found * y).sum() / found.square().sum())


def _fitted_ratio(samples: Samples, rule: str) -> float:
    """The ratio of the two coefficients with which the samples are met best."""

    def error(ratio: float) -> float:
        found = _solve(samples, ratio, samples.level.grid.shape[0], rule)
        return float(relative(_factor(found, samples.y) * found, samples.y.double()).mean())

    return min(np.geomspace(5.0, 50.0, 24).tolist(), key=error)
