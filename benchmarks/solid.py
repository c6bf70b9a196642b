"""FE-OL in three dimensions at finite strains: snapshots, EquiNO, a macroscopic problem.

The cell is a rubber with stiffer balls (``meshes/particles3d.py``, periodic, curved tetrahedra of
degree 2, more than 20,000 unknowns), both neo-Hookean; deformation gradients in a box around the
identity. The surrogates know stretches only and are turned with the body (`fe_ol.Objective`). A
cantilever of tetrahedra of degree 2, twisted and bent at its end, in five load steps.
Errors against the cell itself: on unseen deformation gradients, and at points of the cantilever.

    python benchmarks/solid.py [--quick] [--size 0.12]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import arguments, write
from firedrake import BoxMesh, DirichletBC, SpatialCoordinate, as_vector
from surrogates import relative, spread

import fe_ol
import spon
from fe_ol.snapshots import sample_strains

MESHES = Path(__file__).resolve().parent.parent / "meshes"
RADIUS = 0.06


def cell(size):
    """The cell, as fine as asked for, or that of ``meshes/``."""
    if size is None:
        mesh = spon.fem.read_mesh(MESHES / "particles3d.msh")
    else:
        sys.path.insert(0, str(MESHES))
        import particles3d

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cell.msh"
            particles3d.make(path, size)
            mesh = spon.fem.read_mesh(path)
    rubber, ball = fe_ol.NeoHookean.from_young(1.0, 0.3), fe_ol.NeoHookean.from_young(20.0, 0.3)
    return fe_ol.RVE(mesh, {1: rubber, 2: ball})


def cantilever(material):
    """A bar of length 4 and unit width, its end turned by 0.05 and moved by 0.05."""
    mesh = BoxMesh(8, 2, 2, 4.0, 1.0, 1.0)
    space = fe_ol.macro.problem_space(mesh)
    x = SpatialCoordinate(mesh)
    end = as_vector((0.0, -0.05 * (x[2] - 0.5), 0.05 * (x[1] - 0.5) - 0.05))
    bcs = [DirichletBC(space, 0, 1), DirichletBC(space, end, 2)]
    return fe_ol.MacroProblem(space, material, bcs=bcs)


def main():
    """Run the chain."""
    args = arguments(__doc__.splitlines()[0], "--size")
    torch.set_num_threads(1)
    quick = args.quick
    rve = cell(None if quick else float(args.size or 0.12))
    print(rve, flush=True)
    n, modes = (6, 4) if quick else (80, 32)
    start = time.perf_counter()
    snapshots = fe_ol.Snapshots.sample(
        rve, n, radius=RADIUS, seed=0, progress=False, stretches=True
    )
    sampling = time.perf_counter() - start
    print(f"{n} snapshots: {sampling:.0f} s", flush=True)
    test = torch.eye(3, dtype=torch.float64).flatten() + sample_strains(
        2 if quick else 10, 9, RADIUS, seed=1
    )
    start = time.perf_counter()
    truth = rve.solve(test)
    solve = (time.perf_counter() - start) / len(test)
    print(f"a solve with tangent: {solve:.1f} s, {truth.iterations.tolist()}", flush=True)
    rows, surrogates = [], {}
    options = {"epochs": 20, "samples": 200} if quick else {"samples": 3000}
    points = 16 * modes
    for name, make in (
        (
            "reduced solve",
            lambda: fe_ol.ReducedSolve.fit(rve, snapshots, modes=modes, points=points),
        ),
        (
            "EquiNO",
            lambda: fe_ol.EquiNO.fit(
                rve, snapshots, modes=modes, points=points, progress=False, **options
            ),
        ),
    ):
        start = time.perf_counter()
        surrogates[name] = make()
        seconds = time.perf_counter() - start
        rows.append(row(name, surrogates[name], rve, truth, seconds))
    surrogates["EquiNO"].correction_steps = 1
    rows.append(row("EquiNO, one correction step", surrogates["EquiNO"], rve, truth, seconds))
    surrogates["EquiNO"].correction_steps = 0
    if not quick:
        for name in ("EquiNO", "EquiNO, one correction step"):
            surrogates["EquiNO"].correction_steps = int(name != "EquiNO")
            rows.append(macro(name, surrogates["EquiNO"], rve, solve))
    settings = {
        "micro_dofs": int(rve.space.dim()), "radius": RADIUS, "snapshots": n, "modes": modes,
        "sampling_seconds": sampling, "solve_seconds": solve,
        "hill_mandel": float(rve.hill_mandel(truth).max()),
    }  # fmt: skip
    write("solid", rows, settings, args.output, quick)


def row(name, surrogate, rve, truth, seconds):
    """Errors on unseen deformation gradients."""
    strain, surrogate = truth.macro_strain, fe_ol.Objective(surrogate)
    response = surrogate(strain)
    fields = surrogate.fields(strain)
    w = rve.weights[:, None]
    off = ((fields.stress - truth.stress).square() * w).sum((1, 2)).sqrt()
    size = (truth.stress.square() * w).sum((1, 2)).sqrt()
    signs = 2.0 * torch.randint(0, 2, (len(w), 1), generator=torch.Generator().manual_seed(0)) - 1
    missing, scale = rve.divergence(fields.stress), rve.divergence(fields.stress * signs.double())
    found = {
        "part": "cell",
        "surrogate": name,
        "stress": spread(relative(response.stress, truth.macro_stress)),
        "tangent": spread(relative(response.tangent, truth.tangent)),
        "local_stress_median": float((off / size).median()),
        "equilibrium": float((missing.norm(dim=1) / scale.norm(dim=1)).max()),
        "fit_seconds": seconds,
    }
    print(found, flush=True)
    return found


def macro(name, surrogate, rve, solve):
    """The cantilever, and the cells at some of its points."""
    surrogate = fe_ol.Objective(surrogate)
    problem = cantilever(surrogate)
    problem.solve(5, progress=False)
    start = time.perf_counter()
    result = problem.solve(5, progress=False)
    seconds = time.perf_counter() - start
    print(result, flush=True)
    strain = torch.from_numpy(problem.strain().dat.data_ro.copy())
    reach = (strain - torch.eye(3, dtype=torch.float64).flatten()).abs().amax(1)
    chosen = torch.cat([torch.linspace(0, len(strain) - 1, 8).long(), reach.topk(4).indices])
    exact = rve(strain[chosen]).stress
    calls = sum(step.calls for step in result.steps)
    found = {
        "part": "cantilever",
        "surrogate": name,
        "points": len(strain),
        "largest_component": float(reach.max()),
        "seconds": seconds,
        "iterations": result.iterations,
        "residuals": [step.residuals for step in result.steps],
        "stress_at_points": spread(relative(surrogate(strain[chosen]).stress, exact)),
        "fe2_seconds_scaled": float(np.float64(solve) * len(strain) * calls),
    }
    found["times_faster"] = found["fe2_seconds_scaled"] / seconds
    print(found, flush=True)
    return found


if __name__ == "__main__":
    main()
