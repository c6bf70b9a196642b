"""How stiff are the fibres? Found from displacements that were measured at the outside of a part.

A membrane of a fibre composite is clamped at the left and sheared at the right; displacements of
its outside are measured with one per cent of noise; the fibres' shear modulus is not known. A
surrogate stands for the cells and follows their laws where these change; gradients come from the
adjoint problem. The data are computed with the cells themselves (full FE²).
"""

import json
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from firedrake import *
from firedrake.pyplot import triplot
from scipy.optimize import minimize

import fe_ol
import spon

matplotlib.use("Agg")
import matplotlib.pyplot as plt

QUICK = "--quick" in sys.argv  # a minute's worth, for the tests
ROOT = Path(__file__).resolve().parent
OUT = ROOT / "output" / ("fibre_stiffness_quick" if QUICK else "fibre_stiffness")
OUT.mkdir(parents=True, exist_ok=True)

# A cell whose fibres have the modulus G, and a surrogate of it with modes of cells of three moduli.
mesh = spon.fem.read_mesh(ROOT.parent / "meshes" / ("rve3.msh" if QUICK else "rve1.msh"))
G = torch.tensor(1500.0, dtype=torch.float64, requires_grad=True)  # MPa


def cell(modulus):
    matrix = fe_ol.NonlinearElastic(K=4780.0, a1=50.0, a2=0.06)
    return fe_ol.RVE(mesh, {1: matrix, 2: fe_ol.LinearElastic(K=6000.0, G=modulus)}, family="S")


each = [fe_ol.Snapshots.sample(cell(g), 8 if QUICK else 40, seed=int(g)) for g in (1e3, 2e3, 4e3)]
snapshots = fe_ol.Snapshots.joined(each)
rve = cell(G)
surrogate = fe_ol.ReducedSolve.fit(rve, snapshots, modes=12 if QUICK else 24)

# Cook's membrane of a few elements, and the displacements of its free outside.
membrane = UnitSquareMesh(*((2, 2) if QUICK else (6, 6)), quadrilateral=True)
x, y = SpatialCoordinate(membrane)
membrane.coordinates.interpolate(as_vector([48 * x, 44 * x + (44 - 28 * x) * y]))
V = VectorFunctionSpace(membrane, "CG", 1)
clamped = DirichletBC(V, 0, 1)
seen = torch.from_numpy(np.setdiff1d(DirichletBC(V, 0, (2, 3, 4)).nodes, clamped.nodes).astype(int))


def displacements(material, modulus):
    with torch.no_grad():
        G.fill_(1e3 * modulus)
    problem = fe_ol.MacroProblem(V, material, bcs=clamped, tractions={2: (0.0, 15.0)})
    return problem.solve_torch(1).reshape(-1, 2)[seen]


start, true = 1.5, 2.6  # GPa
measured = displacements(rve, true).detach()
noise = 0.01 * measured.square().mean().sqrt()
measured += noise * torch.randn(measured.shape, generator=torch.Generator().manual_seed(0))


def misfit(modulus, material):
    """Half the squared distance to the data in units of the noise, and its derivative."""
    value = ((displacements(material, modulus) - measured) / noise).square().sum() / 2
    (slope,) = torch.autograd.grad(value, G)
    return float(value.detach()), 1e3 * float(slope)


answer = minimize(
    lambda g: misfit(g[0], surrogate), [start], jac=True, method="L-BFGS-B", bounds=[(1.0, 4.0)]
)
found = answer.x[0]
# How well the data determine it (Gauss and Newton): the noise over the displacements' derivative.
ends = [displacements(surrogate, found + h).detach() for h in (0.01, -0.01)]
deviation = float(noise / ((ends[0] - ends[1]) / 0.02).norm())
# The cells themselves agree: where the minimum of their misfit is, by its slope.
off = abs(misfit(found, rve)[1]) * deviation**2
print(f"G = {found:.3f} +- {deviation:.3f} GPa; true: {true}; full FE2 is off by {off:.1g}")
(OUT / "report.json").write_text(json.dumps({"G": found, "deviation": deviation, "off": off}))

moduli = np.sort([*np.linspace(1.1, 3.8, 15), *np.linspace(found - 0.2, found + 0.2, 15)])
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
left.semilogy(moduli, [misfit(g, surrogate)[0] for g in moduli], label="through the surrogate")
left.axvspan(found - deviation, found + deviation, alpha=0.3, label="found, with standard error")
left.axvline(true, color="k", ls=":", label="true")
left.set(xlabel="shear modulus of the fibres, GPa", ylabel="misfit")
left.legend(loc="upper right")
triplot(membrane, axes=right)
points, computed = membrane.coordinates.dat.data_ro[seen], displacements(surrogate, found).detach()
right.plot(*(points + measured.numpy()).T, "r+", label="measured")
right.plot(*(points + computed.numpy()).T, "ko", mfc="none", label="computed with what was found")
right.set(aspect="equal", title="nodes of the outside, displaced")
right.legend(*(x[-2:] for x in right.get_legend_handles_labels()), loc="lower right")
figure.savefig(OUT / "stiffness.png", dpi=120)
