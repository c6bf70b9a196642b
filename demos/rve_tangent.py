"""A representative volume element, from its mesh to the tangent of the material that it is.

Three stiff discs lie in a soft matrix whose shear stress saturates. A macroscopic strain E is the
mean of the cell's strain; the displacement is E x and a periodic fluctuation that brings the cell
into equilibrium. The homogenised stress is the mean stress, and its derivative by E, the tangent,
follows from the factorised stiffness matrix. We stretch and shear the cell, look at it, compare
the tangent with differences, and pull the cell in one direction with no stress in the others.
"""

import json
import sys
from pathlib import Path

import matplotlib
import torch
from firedrake import *

import fe_ol
import spon
from spon.fem.triangulation import triangulate

matplotlib.use("Agg")
import matplotlib.pyplot as plt

QUICK = "--quick" in sys.argv  # a minute's worth, for the tests
ROOT = Path(__file__).resolve().parent
OUT = ROOT / "output" / ("rve_tangent_quick" if QUICK else "rve_tangent")
OUT.mkdir(parents=True, exist_ok=True)

# The cell: opposite sides of its mesh are one, and the tags of the cells say which law holds where.
mesh = spon.fem.read_mesh(ROOT.parent / "meshes" / "rve3.msh")
matrix = fe_ol.NonlinearElastic(K=4780.0, a1=50.0, a2=0.06)  # MPa
discs = fe_ol.LinearElastic.from_young(E=73000.0, nu=0.22)
rve = fe_ol.RVE(mesh, {1: matrix, 2: discs}, family="S")
print(rve)

# As a material: strain (E_xx, E_yy, 2 E_xy) in, stress and tangent out.
E = torch.tensor([0.02, -0.01, 0.03], dtype=torch.float64)
response = rve(E)
print("stress in MPa:", [round(s, 2) for s in response.stress.tolist()])
print("tangent in MPa:", response.tangent.round(decimals=1).tolist())

# The tangent is no difference quotient, but agrees with one.
h, units = 1e-6, torch.eye(3, dtype=torch.float64)
up, down = (rve(E + sign * h * units, tangent=False).stress for sign in (1, -1))
error = float(((up - down).T / (2 * h) - response.tangent).norm() / response.tangent.norm())
print(f"tangent against central differences: {error:.1e}")

# The fields. The mean of the local work is the work of the means (Hill and Mandel).
solution = rve.solve(E)
hill_mandel = float(rve.hill_mandel(solution))
u = rve.displacement(solution)
mises = rve.field(rve.von_mises(solution), "von Mises stress")
sigma = rve.field(solution.stress[0], "stress (xx, yy, xy)")
spon.fem.write_vtk(OUT / "cell.pvd", u, mises, sigma)

# Stresses can be prescribed too: a tensile test, with what the macroscopic strain then is.
pull = torch.linspace(0, 0.04, 3 if QUICK else 21, dtype=torch.float64).tolist()
tensile = rve.solve([[e, None, None] for e in pull], stress=[None, 0.0, 0.0], tangent=False)
contraction = -tensile.macro_strain[-1, 1] / tensile.macro_strain[-1, 0]
print(f"pulled by 4 %: contraction {float(contraction):.3f} of the elongation")

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
shape = triangulate(mises, u, degree=4)
stress, moved = shape.values
x, y = (shape.points + 8 * moved).T  # deformations eight times too large
colours = left.tripcolor(x, y, shape.triangles, stress, shading="gouraud", vmax=80)
for segment in shape.edges:
    left.plot(x[segment], y[segment], color="white", linewidth=0.15)
left.set(title="deformed cell (8 times)", aspect="equal", xticks=[], yticks=[])
figure.colorbar(colours, ax=left, label="von Mises stress in MPa", extend="max")
right.plot([100 * e for e in pull], tensile.macro_stress[:, 0], "o-")
right.set(xlabel="elongation in %", ylabel="stress in MPa", title="tensile test of the cell")
figure.savefig(OUT / "cell.png", dpi=150)

report = {"tangent_error": error, "hill_mandel": hill_mandel, "stress": response.stress.tolist()}
(OUT / "report.json").write_text(json.dumps(report))
print(f"picture and VTK are in {OUT}")
