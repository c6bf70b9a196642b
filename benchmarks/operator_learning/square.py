"""Darcy flow on the unit square in spaces of any size and degree, against one reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import torch
from firedrake import (
    DirichletBC,
    Function,
    FunctionSpace,
    TestFunction,
    TrialFunction,
    UnitSquareMesh,
    dx,
    exp,
    grad,
    inner,
)
from torch import Tensor

from operator_learning.finite_elements import RelativeL2, cpu, positions, row
from operator_learning.problems import Grid, Level, Problem, Samples, pairs
from spon import fem
from spon.samplers import GaussianRandomField

__all__ = ["DarcySquare"]

_CELLS = 64  # of the mesh of the coefficients and of the reference
_PART = 10  # samples that are solved at once


@dataclass
class DarcySquare(Problem):
    """From the logarithm of the coefficient to the pressure, both in the same Lagrange space.

    The coefficients are the same functions for every space: random fields, quadratic in the cells
    of a mesh of 64 x 64, and interpolated. Networks learn the finite element solutions of their
    own space; the tests compare with cubic elements on the finest mesh and the coefficient as it
    was drawn, so that the error has a part of the space and a part of the network.
    """

    title: ClassVar[str] = "Darcy flow on the square, in spaces of different size and degree"
    reference_values: Tensor = field(default_factory=lambda: torch.empty(0))

    @classmethod
    def make(cls, name: str, quick: bool, degree: int, cells: int) -> DarcySquare:
        """Draw coefficients and solve; see `problems.make`."""
        counts = (48, 16, 16) if quick else (1000, 100, 100)
        fields, reference = _drawn(counts)
        level = _level(cells, degree)
        down = fem.interpolation_map(_drawing_space(), level.V)
        solve = _solver(level.U, level.V)
        inputs = [down.batch(k) for k in fields]
        train, held, test = (Samples(k.float(), _in_parts(solve, k).float(), level) for k in inputs)
        about = {
            "train": counts[0],
            "validation": counts[1],
            "degree": degree,
            "cells": cells,
            "coefficient": "the exponential of a Gaussian random field, length 0.25, deviation 1",
        }
        return cls(
            name, train, held, {"unseen": test}, seconds=60.0, epochs=10_000, about=about,
            reference_values=reference,
        )  # fmt: skip

    def measures(self, test: str, prediction: Tensor) -> dict[str, Tensor]:
        """Against the finite element solution, and against the reference."""
        whole = self._against_reference(prediction.double())
        return {**super().measures(test, prediction), "against_reference": whole}

    def solvers(self, quick: bool) -> list[dict[str, Any]]:
        """Our solver in this space: what it costs and what it is off by."""
        samples = self.tests["unseen"]
        _in_parts(_solver(self.level.U, self.level.V), samples.x[:2].double())  # compiles
        solve, setup = cpu(lambda: _solver(self.level.U, self.level.V))
        found, spent = cpu(lambda: _in_parts(solve, samples.x.double()))
        errors = {"error": float(self._against_reference(found).mean())}
        where = f"{self.about['cells']} x {self.about['cells']}, CG {self.about['degree']}"
        return [row("spon.fem.LinearSolver", where, self.level.U, errors, len(found), setup, spent)]

    def _against_reference(self, found: Tensor) -> Tensor:
        fine = _reference_space()
        up = fem.interpolation_map(self.level.U, fine)
        return RelativeL2(fine)(up.batch(found), self.reference_values)


@cache
def _mesh(cells: int) -> Any:
    return UnitSquareMesh(cells, cells)


def _drawing_space() -> Any:
    return FunctionSpace(_mesh(_CELLS), "CG", 2)


def _reference_space() -> Any:
    return FunctionSpace(_mesh(_CELLS), "CG", 3)


@cache
def _drawn(counts: tuple[int, ...]) -> tuple[list[Tensor], Tensor]:
    """Coefficients for training, validation and test, and the solutions of the last."""
    V = _drawing_space()
    sampler = GaussianRandomField(V, length=0.25)
    # Of each kind a seed of its own: none depends on how many there are of another.
    fields = [sampler.draw(n, seed) for seed, n in enumerate(counts)]
    return fields, _in_parts(_solver(_reference_space(), V), fields[-1])


def _solver(U: Any, V: Any) -> fem.LinearSolver:
    k, p, q = Function(V), TrialFunction(U), TestFunction(U)
    # The exponential is no polynomial: the estimated degree would cost more than it gives.
    measure = dx(degree=2 * U.ufl_element().degree() + 2)
    form = exp(k) * inner(grad(p), grad(q)) * measure
    return fem.LinearSolver(form, _zero(U), inputs=k, L=q * dx)


def _zero(U: Any) -> Any:
    return DirichletBC(U, 0.0, "on_boundary")


def _in_parts(solve: Any, k: Tensor) -> Tensor:
    """Factors of a large batch would all be kept at once."""
    return torch.cat([solve(part) for part in k.split(_PART)])


def _level(cells: int, degree: int) -> Level:
    U = FunctionSpace(_mesh(cells), "CG", degree)
    return Level(
        name="mesh",
        inputs=U.dim(),
        outputs=U.dim(),
        points=torch.from_numpy(positions(U)).float(),
        edges=pairs(U.cell_node_list),
        grid=Grid((cells * degree + 1,) * 2),
        error=RelativeL2(U),
        mesh=U.mesh(),
        V=U,
        U=U,
        rule=_zero,
    )
