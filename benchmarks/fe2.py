"""FE² against FE-OL: the same three macroscopic problems with nested RVE solves and with EquiNO.

Plane strain, quadratic elements, nine points in each, ten load steps into the nonlinear range:
Cook's membrane (cell RVE1, a traction), the L-profile (RVE2) and the perforated plate (RVE3), both
with prescribed displacements.

Full FE² starts every cell from its last fluctuation, takes the factorisation of its last Newton
iteration for the tangent, and orders the unknowns once for all factorisations; or it has one
factorisation for all cells, as preconditioner of conjugate gradients, where that is faster. Errors
are against it at the end of the tenth step, which it takes in full, from FE-OL's answer to the
ninth (cells are elastic, so that the end does not depend on the path). Ten steps of it would take
hours. Their time is that of the cells' answers to the strains of the tenth step, at some of the
points, one strain after the other as in the simulation, times the number of answers that ten steps
need; for the cells of ``meshes/``, on which errors are measured, and for cells as fine as the
published ones (``--grids`` or gmsh), with an EquiNO of their own, whose stress is compared at these
points. Both sides run on one core.

    python benchmarks/fe2.py [--quick] [--only cook|lprofile|holes] [--grids FOLDER]
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import arguments, write
from firedrake import DirichletBC, errornorm, norm
from surrogates import LAWS, MODES, RADIUS, cell, relative, spread

import fe_ol
import spon

MESHES = Path(__file__).resolve().parent.parent / "meshes"
STEPS = 10


def cook(space, size):
    """Clamped at the left, sheared by a traction at the right."""
    return {"bcs": [DirichletBC(space, 0, 1)], "tractions": {2: (0.0, size)}}


def lprofile(space, size):
    """Clamped at the top, the end of the arm pushed down."""
    return {"bcs": [DirichletBC(space, 0, 1), DirichletBC(space.sub(1), -size, 2)]}


def holes(space, size):
    """Clamped at the left, drawn out to the right."""
    return {"bcs": [DirichletBC(space, 0, 1), DirichletBC(space, (size, 0), 2)]}


# Loads at which the largest strain component is about 0.035.
PROBLEMS = {
    "cook": (cook, 1, 20.0),
    "lprofile": (lprofile, 2, 0.044),
    "holes": (holes, 3, 0.02),
}


# Sizes at which the cells have about as many dofs as the published ones: 20,736, 12,672, 11,232.
FINE = {1: 0.020, 2: 0.0255, 3: 0.027}


def space_of(name):
    """Quadratic displacements on the mesh of a problem."""
    return fe_ol.macro.problem_space(spon.fem.read_mesh(MESHES / f"{name}.msh"))


def macro(name, material, space):
    """The problem `name` with a material."""
    make, _, size = PROBLEMS[name]
    return fe_ol.MacroProblem(space, material, **make(space, size), tolerance=1e-9)


class Recorded:
    """A material that keeps the strains it was asked for."""

    def __init__(self, material):
        self.material, self.strains = material, []
        self.dim, self.finite, self.history = material.dim, material.finite, material.history

    def initial_state(self, n):
        """As the material's."""
        return self.material.initial_state(n)

    def __call__(self, strain, state=None, tangent=True):
        """As the material's."""
        self.strains.append(strain.clone())
        return self.material(strain, state, tangent)


def fine_cell(k, grids):
    """A cell as fine as the published one, or None without gmsh."""
    if grids:
        return cell(k, grids)
    sys.path.insert(0, str(MESHES))
    try:
        make = importlib.import_module(f"rve{k}").make
    except (ImportError, OSError):
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fine.msh"
        make(path, FINE[k])
        mesh = spon.fem.read_mesh(path)
    return fe_ol.RVE(mesh, LAWS, family="S", quadrature_degree=5)


def answers(rve, strains, chosen):
    """Warm-started answers with tangent to the strains of a step, at some points.

    Parameters
    ----------
    rve : RVE
    strains : list of Tensor, shape (points, 3)
        Of the end of the step before, and of each evaluation in the step.
    chosen : Tensor of int
        The points.

    Returns
    -------
    seconds : list of float
        Of an answer, in each evaluation.
    stress : Tensor, shape (len(chosen), 3)
        The last.
    """
    found, seconds = rve(strains[0][chosen]), []
    for strain in strains[1:]:
        start = time.perf_counter()
        found = rve(strain[chosen], found.state)
        seconds.append((time.perf_counter() - start) / len(chosen))
    return seconds, found.stress


def best_answers(rve, strains, chosen):
    """The same by the faster of two ways, and whether that is the one with one factorisation."""
    seconds, stress = answers(rve, strains, chosen)
    reusing = fe_ol.RVE(rve.space.mesh(), LAWS, family="S", quadrature_degree=5, reuse=40)
    reused, _ = answers(reusing, strains, chosen)
    print(f"  an answer: {np.mean(seconds):.4f} s, with one factorisation {np.mean(reused):.4f} s")
    faster = bool(np.mean(reused) < np.mean(seconds))
    return (reused if faster else seconds), stress, faster


def fitted(rve, quick):
    """EquiNO of a cell, seconds of sampling and of training."""
    start = time.perf_counter()
    n, modes = (20, 8) if quick else (100, MODES)
    snapshots = fe_ol.Snapshots.sample(rve, n, radius=RADIUS, seed=0, progress=False)
    middle = time.perf_counter()
    fast = {"epochs": 100, "samples": 1000} if quick else {}
    surrogate = fe_ol.EquiNO.fit(rve, snapshots, modes=modes, progress=False, **fast)
    return surrogate, middle - start, time.perf_counter() - middle


def simulate(name, surrogate, space, quick):
    """FE-OL: the problem, its result, the median of its seconds."""
    problem = macro(name, surrogate, space)
    result, runs = problem.solve(STEPS, progress=False), []
    for _ in range(1 if quick else 5):
        start = time.perf_counter()
        result = problem.solve(STEPS, progress=False)
        runs.append(time.perf_counter() - start)
    return problem, result, float(np.median(runs))


def dgemm_speed(n=1500):
    """Floating-point operations in a second, double precision, one core."""
    a = torch.rand(n, n, dtype=torch.float64)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds)


def compare(name, quick, grids):
    """One problem."""
    _, k, _ = PROBLEMS[name]
    rve, space = cell(k), space_of(name)
    surrogate, sampling, training = fitted(rve, quick)
    problem, result, seconds = simulate(name, surrogate, space, quick)
    strain = torch.from_numpy(problem.strain().dat.data_ro.copy())
    reach, points = float(strain.abs().max()), len(strain)
    calls = sum(step.calls for step in result.steps)
    print(f"{name}: {points} points, largest strain {reach:.4f}, FE-OL {seconds:.2f} s")
    print(result, flush=True)

    recorded = Recorded(surrogate)
    macro(name, recorded, space).solve(STEPS, progress=False)
    last_step = recorded.strains[-result[-1].calls - 1 :]
    chosen = torch.linspace(0, points - 1, 4 if quick else 40).long()
    cells = []
    for what, micro in (("meshes/", rve), ("fine", None if quick else fine_cell(k, grids))):
        if micro is None:
            continue
        own, own_seconds = surrogate, seconds
        if micro is not rve:
            own = fitted(micro, quick)[0]
            own_seconds = simulate(name, own, space, quick)[2]
        each, stress, reuse = best_answers(micro, last_step, chosen)
        whole = float(np.mean(each)) * points * calls + result.other_seconds
        row = {
            "cell": what,
            "micro_dofs": int(micro.space.dim()),
            "answer_seconds": float(np.mean(each)),
            "answer_seconds_of_evaluations": each,
            "one_factorisation": reuse,
            "points_timed": len(chosen),
            "stress_error_at_points": spread(relative(own(last_step[-1][chosen]).stress, stress)),
            "fe_ol_seconds": own_seconds,
            "fe2_seconds_scaled": whole,
            "times_faster": whole / own_seconds,
        }
        cells.append(row)
        print(f"  {micro}: {row}", flush=True)
        del micro

    steps, full_seconds = [], None
    if not quick:
        full = macro(name, rve, space)
        ninth = result[STEPS - 2].displacement
        exact = full.solve([1.0], start=ninth, progress=False)
        print(exact, flush=True)
        full_seconds = exact[0].material_seconds + exact[0].other_seconds
        steps = [errors(STEPS - 1, exact[0], result[STEPS - 1])]
    # The network's own products (both signs; value and slopes), at the speed of this core's dgemm.
    weights = sum(w.numel() for w in surrogate.stress.weights)
    flops = 2 * 2 * (1 + len(surrogate.reference)) * weights
    row = {
        "problem": name,
        "cell": f"RVE{k}",
        "elements": space.mesh().unique().num_cells(),
        "points": points,
        "macro_dofs": int(space.dim()),
        "micro_dofs": int(rve.space.dim()),
        "largest_strain": reach,
        "sampling_seconds": sampling,
        "training_seconds": training,
        "fe_ol_seconds": seconds,
        "fe_ol_material_seconds": result.material_seconds,
        "fe_ol_microseconds_a_point": 1e6 * result.material_seconds / (calls * points),
        "network_flops_a_point": flops,
        "arithmetic_limit_microseconds": 1e6 * flops / dgemm_speed(),
        "evaluations": calls,
        "cells": cells,
        "fe2_seconds_of_the_last_step": full_seconds,
        "iterations_fe_ol": result.iterations,
        "residuals_fe_ol": [step.residuals for step in result.steps],
        "steps": steps,
    }
    if steps:
        print(
            f"{name}: displacement {max(r['displacement_error'] for r in steps):.4%}, reaction "
            f"{max(r['reaction_error'] for r in steps):.4%}, iterations "
            f"{steps[-1]['iterations_fe2']} and {steps[-1]['iterations_fe_ol']}",
            flush=True,
        )
    return row


def errors(i, truth, found):
    """FE-OL against FE² at a load step."""
    reactions = [
        np.linalg.norm(truth.reactions[t] - found.reactions[t]) / np.linalg.norm(truth.reactions[t])
        for t in truth.reactions
    ]
    return {
        "step": i + 1,
        "displacement_error": errornorm(truth.displacement, found.displacement)
        / norm(truth.displacement),
        "reaction_error": float(max(reactions)),
        "iterations_fe2": truth.iterations,
        "iterations_fe_ol": found.iterations,
        "residuals_fe2": truth.residuals,
        "residuals_fe_ol": found.residuals,
    }


def main():
    """Run the problems, or one of them."""
    args = arguments(__doc__.splitlines()[0], "--only", "--grids")
    torch.set_num_threads(1)
    rows = []
    for name in ("cook",) if args.quick else PROBLEMS:
        if args.only in (None, name):
            rows.append(compare(name, args.quick, args.grids))
            label = "fe2" if args.only is None else f"fe2-{args.only}"
            write(label, rows, {"load_steps": STEPS, "tolerance": 1e-9}, args.output, args.quick)


if __name__ == "__main__":
    main()
