"""A surrogate beyond its box: alone, clamped, guarded, and guarded again after it has learned.

The perforated plate (``meshes/holes.msh``), drawn out in five steps until the strain at its holes
is twice as large as any in the snapshots of its cell (RVE1 of the EquiNO benchmark, +-0.02). Errors
are against full FE² at the end, which Newton's method finds from the guarded answer (cells are
elastic, so that the end does not depend on the path), and against the cells at the 100 points whose
strains reach farthest.

    python benchmarks/guarded.py [--quick]
"""

from __future__ import annotations

import copy
import time

import numpy as np
import torch
from common import arguments, write
from fe2 import holes, space_of
from firedrake import errornorm, norm
from surrogates import MODES, cell

import fe_ol

RADIUS, PULL, STEPS, TOLERANCE = 0.02, 0.024, 5, 1e-2


def run(material, space, start=None, steps=STEPS):
    """The plate with a material: the problem, its result and seconds."""
    problem = fe_ol.MacroProblem(space, material, **holes(space, PULL), tolerance=1e-9)
    begin = time.perf_counter()
    if start is None:
        result = problem.solve(steps, progress=False)
    else:
        result = problem.solve([1.0], start=start, progress=False)
    return problem, result, time.perf_counter() - begin


def main():
    """Run all policies."""
    args = arguments(__doc__.splitlines()[0])
    torch.set_num_threads(1)
    quick = args.quick
    rve, space = cell(3 if quick else 1), space_of("holes")
    options = {"modes": 8, "epochs": 300, "samples": 1000} if quick else {"modes": MODES}
    tolerance, steps = (0.05, 2) if quick else (TOLERANCE, STEPS)
    snapshots = fe_ol.Snapshots.sample(
        rve, 30 if quick else 100, radius=RADIUS, seed=0, progress=False
    )
    surrogate = fe_ol.EquiNO.fit(rve, snapshots, progress=False, **options)
    corrected = copy.copy(surrogate)
    corrected.correction_steps = 1

    def guard(of, policy, **more):
        return fe_ol.Guarded(of, rve, tolerance=tolerance, policy=policy, **more)

    learning = guard(surrogate, "learn", snapshots=snapshots, fit_options=options)
    materials = {
        "EquiNO alone": surrogate,
        "clamped": guard(surrogate, "clamp", limit=1.0),
        "guarded": guard(surrogate, "fallback"),
        "guarded, one correction step": guard(corrected, "fallback"),
        "learning, first run": learning,
        "learning, second run": learning,
    }
    rows, states = [], {}
    for name, material in materials.items():
        if name == "learning, second run":
            learning.learn()
        if material is learning:
            learning.report.clear()
        try:
            problem, result, seconds = run(material, space, steps=steps)
        except fe_ol.LoadStepError as error:
            rows.append({"material": name, "failure": str(error)})
            print(f"{name}: {error}", flush=True)
            continue
        states[name] = result[-1]
        row = {
            "material": name,
            "seconds": seconds,
            "iterations": result.iterations,
            "cutbacks": result.cutbacks,
        }
        report = getattr(material, "report", None)
        if report is not None:
            last = report.steps[-1]
            row |= {
                "share_of_points": report.share,
                "share_of_points_at_the_end": last.count / last.points,
                "solves": report.solves,
                "rve_seconds": sum(s.seconds for s in report.steps),
                "fit_seconds": list(report.fits),
            }
            print(report)
        rows.append(row)
        print(f"{name}: {seconds:.1f} s, {result.iterations}", flush=True)
    # Full FE², from the guarded answer; quick runs take the guarded answer for it.
    if quick:
        truth, exact = problem, states["guarded"]
    else:
        truth, result, seconds = run(rve, space, start=states["guarded"].displacement)
        exact = result[-1]
        print(result, f"\nFE²: {seconds:.0f} s", flush=True)
    strain = torch.from_numpy(truth.strain().dat.data_ro.copy())
    reach = float(strain.abs().max()) / RADIUS
    hardest = strain[strain.abs().amax(1).topk(10 if quick else 100).indices]
    true_stress = rve(hardest).stress
    for row in rows:
        if "failure" in row:
            continue
        state, material = states[row["material"]], materials[row["material"]]
        row["displacement_error"] = errornorm(exact.displacement, state.displacement) / norm(
            exact.displacement
        )
        row["reaction_error"] = max(
            float(np.linalg.norm(exact.reactions[t] - state.reactions[t]))
            / float(np.linalg.norm(exact.reactions[t]))
            for t in exact.reactions
        )
        if row["material"] != "learning, first run":  # what it was is gone
            stress = material(hardest).stress
            row["largest_stress_error"] = float(
                ((stress - true_stress).norm(dim=1) / true_stress.norm(dim=1)).max()
            )
        print(row, flush=True)
    settings = {
        "radius": RADIUS, "tolerance": tolerance, "reach": reach, "points": len(strain),
        "micro_dofs": int(rve.space.dim()),
    }  # fmt: skip
    write("guarded", rows, settings, args.output, quick)


if __name__ == "__main__":
    main()
