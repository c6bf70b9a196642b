"""A surrogate that is asked too much: a perforated plate is drawn out of the training box.

The surrogate of a fibre composite knows strains up to 0.02. The plate is drawn until the strain
at its holes is twice as large. `fe_ol.Guarded` estimates at each point how far off the surrogate
is, and asks the cell itself where that is too far; afterwards it learns from what the cells said,
and in a second run hardly asks any more.
"""

import json
import sys
from pathlib import Path

import torch
from firedrake import *

import fe_ol
import spon

QUICK = "--quick" in sys.argv  # a minute's worth, for the tests
ROOT = Path(__file__).resolve().parent
MESHES = ROOT.parent / "meshes"
OUT = ROOT / "output" / ("guarded_plate_quick" if QUICK else "guarded_plate")
OUT.mkdir(parents=True, exist_ok=True)

matrix = fe_ol.NonlinearElastic(K=4780.0, a1=50.0, a2=0.06)
fibre = fe_ol.LinearElastic(K=43452.381, G=29918.0328)
cell = spon.fem.read_mesh(MESHES / "rve1.msh")
rve = fe_ol.RVE(cell, {1: matrix, 2: fibre}, family="S")
snapshots = fe_ol.Snapshots.sample(
    rve, n=30 if QUICK else 100, radius=0.02, seed=0, path=OUT / "snapshots.h5"
)
settings = {"modes": 8, "epochs": 500, "samples": 2000} if QUICK else {"modes": 16}
surrogate = fe_ol.EquiNO.fit(rve, snapshots, **settings)

# The plate: clamped at the left (1), drawn out to the right (2).
V = VectorFunctionSpace(spon.fem.read_mesh(MESHES / "holes.msh"), "CG", 2)
pull = 0.024
steps = 2 if QUICK else 5


def plate(material):
    ends = [DirichletBC(V, 0, 1), DirichletBC(V, (pull, 0), 2)]
    problem = fe_ol.MacroProblem(V, material, bcs=ends)
    return problem, problem.solve(load_steps=steps)


def errors(material, strains):
    """Relative errors of a material's stress against the cell's, at some points."""
    exact = rve(strains).stress
    return (material(strains).stress - exact).norm(dim=1) / exact.norm(dim=1)


tolerance = 0.02 if QUICK else 0.01
guarded = fe_ol.Guarded(
    surrogate, rve, tolerance=tolerance, policy="learn", snapshots=snapshots, fit_options=settings
)
problem, result = plate(guarded)
print(result)
print(guarded.report)
first, share, last = guarded.report.solves, guarded.report.share, guarded.report.steps[-1]
strains = torch.from_numpy(problem.strain().dat.data_ro.copy())
reach = float(strains.abs().max()) / surrogate.radius
hardest = strains[strains.abs().amax(1).topk(40).indices]
unguarded, kept = errors(surrogate, hardest), errors(guarded, hardest)
print(
    f"strains reach {reach:.2f} times the box; at the 40 hardest points the surrogate alone is "
    f"off by {float(unguarded.max()):.2%} at most, guarded {float(kept.max()):.2%}"
)

# Where the cell was asked in the last step, and where the surrogate was trusted.
for name, values in (
    ("share of points with the cell", last.guarded),
    ("estimated error", last.estimate),
):
    field = problem.field(values, name, means=True)
    problem.plot(OUT / f"{name.replace(' ', '_')}.png", field=field)

# What was asked for becomes snapshots, and the surrogate is fitted again.
guarded.learn()
guarded.report.clear()
problem, again = plate(guarded)
print(guarded.report)
second = guarded.report.solves
print(f"the cells were solved {first:,} times in the first run, {second:,} times in the second")
problem.plot(OUT / "plate.png")
problem.write_vtk(OUT / "plate.pvd")
report = {
    "tolerance": tolerance,
    "reach": reach,
    "unguarded": float(unguarded.max()),
    "guarded": float(kept.max()),
    "share": share,
    "first": first,
    "second": second,
}
(OUT / "report.json").write_text(json.dumps(report, indent=1))
print("results in", OUT)
