"""Poisson's equation on the unit square with random sources."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from firedrake import (
    DirichletBC,
    Function,
    FunctionSpace,
    LinearVariationalProblem,
    LinearVariationalSolver,
    TestFunction,
    TrialFunction,
    UnitSquareMesh,
    dx,
    grad,
    inner,
)
from torch import Tensor

from operator_learning.finite_elements import (
    CHOLESKY,
    RelativeL2,
    cpu,
    positions,
    row,
    solutions,
)
from operator_learning.problems import Grid, Level, Problem, Samples, pairs
from spon import fem
from spon.fem.norms import gram
from spon.samplers import GaussianRandomField
from spon.sparse import SparseMap

__all__ = ["Poisson"]

_FEW = 16  # samples that the slow solver gets; its time is scaled to all of them


@dataclass
class Poisson(Problem):
    """Source to solution, both in one space; the solution is zero on the boundary.

    The targets are finite element solutions. What these are off by is measured on the test
    samples, against solutions in a space of two degrees more on the same mesh.
    """

    title: ClassVar[str] = "Poisson's equation, random sources"
    reference_values: Tensor = field(default_factory=lambda: torch.empty(0))
    fine: Any = None

    @classmethod
    def make(cls, name: str, quick: bool, degree: int, cells: int, length: float = 0.15) -> Poisson:
        """Draw sources and solve; see `problems.make`."""
        cells = cells // 4 if quick else cells
        counts = (48, 16, 16) if quick else (1000, 100, 200)
        level = _level(cells, degree)
        sampler = GaussianRandomField(level.V, length=length)
        solve = _solver(level.U, level.V)
        # Of each kind a seed of its own: none depends on how many there are of another.
        sources = [sampler.draw(n, seed) for seed, n in enumerate(counts)]
        train, held, test = (Samples(f.float(), solve(f).float(), level) for f in sources)
        fine = FunctionSpace(level.mesh, "CG", degree + 2)
        about = {
            "train": counts[0],
            "validation": counts[1],
            "degree": degree,
            "cells": cells,
            "correlation_length": length,
        }
        return cls(
            name,
            train,
            held,
            {"unseen": test},
            seconds=300.0,
            epochs=300,
            about=about,
            reference_values=_solver(fine, level.V)(sources[2]),
            fine=fine,
        )

    def measures(self, test: str, prediction: Tensor) -> dict[str, Tensor]:
        """Against the finite element solution, and against the reference."""
        up = fem.interpolation_map(self.level.U, self.fine)
        whole = RelativeL2(self.fine)(up.batch(prediction.double()), self.reference_values)
        return {**super().measures(test, prediction), "against_reference": whole}

    def floors(self) -> dict[str, Any]:
        """Best approximation of the reference in the space of the output, and its FE solution."""
        U, W = self.level.U, self.fine
        up, mass = fem.interpolation_map(U, W), gram(W)
        projected = fem.LinearSolver(TrialFunction(U) * TestFunction(U) * dx)
        best = projected(up.T.batch(mass.batch(self.reference_values)))
        error = RelativeL2(W)
        solved = self.tests["unseen"].y.double()
        return {
            "best_approximation": float(error(up.batch(best), self.reference_values).mean()),
            "finite_elements": float(error(up.batch(solved), self.reference_values).mean()),
            "reference": f"CG {self.level.U.ufl_element().degree() + 2} on the same mesh",
        }

    def solvers(self, quick: bool) -> list[dict[str, Any]]:
        """Our solver and a plain one on meshes up to that of the networks."""
        test = self.tests["unseen"]
        cells, degree = self.about["cells"], self.about["degree"]
        rows = []
        for n in [cells // 2**k for k in range(4, -1, -1) if cells // 2**k >= 2]:
            U = self.level.U
            if n < cells:
                U = FunctionSpace(UnitSquareMesh(n, n), "CG", degree)
            for solve in (_ours, _plain):  # compiled outside the clock
                solve(U, self.level, test.x[:2].double())
            fem.clear_cache()
            ours, *clock = _ours(U, self.level, test.x.double())
            few = test.x[:_FEW].double()
            plain, *slow = _plain(U, self.level, few)
            torch.testing.assert_close(plain, ours[:_FEW], rtol=1e-6, atol=1e-9)
            errors = self._errors(ours)
            where = (f"{n} x {n}", U, errors, len(test))
            rows.append(row("spon.fem.LinearSolver", *where, *clock))
            slow[1] *= len(test) / len(few)
            rows.append(row("Firedrake, MUMPS", *where, *slow))
        return rows

    def _errors(self, found: Tensor) -> dict[str, float]:
        test = self.tests["unseen"]
        up = fem.interpolation_map(self.level.U, self.fine)
        error = RelativeL2(self.fine)
        return {
            "error": float(test.level.error(found, test.y.double()).mean()),
            "against_reference": float(error(up.batch(found), self.reference_values).mean()),
        }


def _level(cells: int, degree: int) -> Level:
    """A space on the triangulated square; its dofs are the points of a closed lattice."""
    mesh = UnitSquareMesh(cells, cells)
    U = FunctionSpace(mesh, "CG", degree)
    x, side = positions(U), cells * degree + 1
    ij = np.rint(x * (side - 1)).astype(np.int64)
    number = ij[:, 0] * side + ij[:, 1]
    to_grid = sp.csr_matrix((np.ones(U.dim()), (number, np.arange(U.dim()))))
    # A half-open grid ends where the next point would lie.
    end = side / (side - 1)
    grid = Grid(
        (side, side),
        ends=(end, end),
        to_grid=SparseMap(to_grid, torch.float32),
        from_grid=SparseMap(to_grid.T, torch.float32),
    )
    return Level(
        name="mesh",
        inputs=U.dim(),
        outputs=U.dim(),
        points=torch.from_numpy(x).float(),
        edges=pairs(U.cell_node_list),
        grid=grid,
        error=RelativeL2(U),
        mesh=mesh,
        V=U,
        U=U,
        rule=_zero_on_boundary,
    )


def _zero_on_boundary(U: Any) -> Any:
    return DirichletBC(U, 0.0, "on_boundary")


def _forms(U: Any, f: Any) -> tuple[Any, Any]:
    u, v = TrialFunction(U), TestFunction(U)
    return inner(grad(u), grad(v)) * dx, f * v * dx


def _solver(U: Any, V: Any) -> fem.LinearSolver:
    """From sources in `V` to solutions in `U`, on one mesh."""
    f = Function(V)
    a, L = _forms(U, f)
    return fem.LinearSolver(a, _zero_on_boundary(U), inputs=f, L=L)


def _ours(U: Any, level: Level, f: Tensor) -> tuple[Tensor, float, float]:
    """Solutions in U brought to the level, CPU seconds of the set-up and of the solves."""

    def set_up() -> tuple[Any, Any, Any]:
        same = level.U == U
        maps = (
            (None, None)
            if same
            else (
                fem.interpolation_map(level.V, U),
                fem.interpolation_map(U, level.U),
            )
        )
        return (_solver(U, U), *maps)

    (solve, down, up), setup = cpu(set_up)

    def run() -> Tensor:
        if down is None:
            return solve(f)
        return up.batch(solve(down.batch(f)))

    found, spent = cpu(run)
    return found, setup, spent


def _plain(U: Any, level: Level, f: Tensor) -> tuple[Tensor, float, float]:
    """The same with a `LinearVariationalSolver`, one sample after the other."""

    def set_up() -> tuple[Any, Any, Any]:
        given, u = Function(U), Function(U)
        a, L = _forms(U, given)
        problem = LinearVariationalProblem(a, L, u, _zero_on_boundary(U), constant_jacobian=True)
        solver = LinearVariationalSolver(problem, solver_parameters=CHOLESKY)
        solver.solve()  # factorises
        return solver, given, u

    (solver, given, u), setup = cpu(set_up)
    same = level.U == U
    # Transfers as matrices for this side, too: they are not what is compared.
    down = None if same else fem.interpolation_map(level.V, U)
    up = None if same else fem.interpolation_map(U, level.U)

    def run() -> Tensor:
        x = f if down is None else down.batch(f)
        found = solutions(solver, given, x, u)
        return found if up is None else up.batch(found)

    found, spent = cpu(run)
    return found, setup, spent
