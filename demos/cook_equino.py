"""Cook's membrane of a fibre composite: FE² with EquiNO instead of nested finite element solves.

At each of 2,304 points of the membrane the stress is the mean stress of a cell of matrix and
fibres, which has 4,920 unknowns of its own. We solve the cell for 100 strains, make an EquiNO of
these snapshots (two small networks for the coefficients of periodic displacement modes and of
stress modes in equilibrium), and let it answer for the cells. At the end the cells are solved
after all, at some points of the membrane, to see how far off the answers were.
"""

import json
import sys
import time
from pathlib import Path

import matplotlib
import torch
from firedrake import *
from firedrake.pyplot import tripcolor

import fe_ol
import spon

matplotlib.use("Agg")
import matplotlib.pyplot as plt

QUICK = "--quick" in sys.argv  # a minute's worth, for the tests
ROOT = Path(__file__).resolve().parent
MESHES = ROOT.parent / "meshes"
OUT = ROOT / "output" / ("cook_equino_quick" if QUICK else "cook_equino")
OUT.mkdir(parents=True, exist_ok=True)

# The cell: a matrix that softens (MPa), and glass.
matrix = fe_ol.NonlinearElastic(K=4780.0, a1=50.0, a2=0.06)
fibre = fe_ol.LinearElastic(K=43452.381, G=29918.0328)
cell = spon.fem.read_mesh(MESHES / ("rve3.msh" if QUICK else "rve1.msh"))
rve = fe_ol.RVE(cell, {1: matrix, 2: fibre}, family="S")

# Offline: snapshots for strains in a box of +-0.04, and a surrogate of them.
snapshots = fe_ol.Snapshots.sample(
    rve, n=30 if QUICK else 100, radius=0.04, seed=0, path=OUT / "snapshots.h5"
)
settings = {"modes": 8, "epochs": 300, "samples": 1000} if QUICK else {"modes": 16}
surrogate = fe_ol.EquiNO.fit(rve, snapshots, **settings)
surrogate.save(OUT / "cell.fe_ol")

# Online: the membrane, clamped at the left (1) and sheared at the right (2), in ten steps.
V = VectorFunctionSpace(spon.fem.read_mesh(MESHES / "cook.msh"), "CG", 2)
membrane = fe_ol.MacroProblem(
    V, surrogate, bcs=DirichletBC(V, 0, 1), tractions={2: (0.0, 6.0 if QUICK else 20.0)}
)
start = time.perf_counter()
result = membrane.solve(load_steps=10)
seconds = time.perf_counter() - start
print(result)
membrane.plot(OUT / "membrane.png")
membrane.write_vtk(OUT / "membrane.pvd")

# Was it right? The cells themselves, at twenty points and at that of the largest strain.
strains = torch.from_numpy(membrane.strain().dat.data_ro.copy())
worst = int(strains.norm(dim=1).argmax())
chosen = torch.cat([torch.linspace(0, len(strains) - 1, 20).long(), torch.tensor([worst])])
start = time.perf_counter()
truth = rve.solve(strains[chosen])
solve = (time.perf_counter() - start) / len(chosen)
stress = surrogate(strains[chosen]).stress
errors = (stress - truth.macro_stress).norm(dim=1) / truth.macro_stress.norm(dim=1)
answers = len(strains) * sum(step.calls for step in result.steps)
print(
    f"largest strain {float(strains.abs().max()):.4f}, homogenised stress off by at most "
    f"{float(errors.max()):.3%}"
)
print(
    f"{answers:,} answers of cells in {seconds:.1f} s; nested solves would take some "
    f"{answers * solve / 3600:.1f} h"
)

# Inside the cell at the point of the largest strain: EquiNO's field and the true one.
fields = surrogate.fields(strains[worst][None])
limit = float(truth.stress[-1, :, 2].abs().max())
figure, axes = plt.subplots(1, 2, figsize=(11, 5))
for axis, name, values in (
    (axes[0], "EquiNO", fields.stress[0]),
    (axes[1], "finite elements", truth.stress[-1]),
):
    shear = rve.field(values[:, 2], "shear stress")
    colours = tripcolor(shear, axes=axis, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axis.set(title=f"shear stress, MPa: {name}", aspect="equal")
    figure.colorbar(colours, ax=axis)
figure.savefig(OUT / "cell.png", dpi=120, bbox_inches="tight")
report = {
    "points": len(strains),
    "answers": answers,
    "seconds": seconds,
    "cell_seconds": solve,
    "largest_error": float(errors.max()),
    "iterations": result.iterations,
    "largest_strain": float(strains.abs().max()),
}
(OUT / "report.json").write_text(json.dumps(report, indent=1))
print("results in", OUT)
