"""A rubber bracket in 3D: from the load to the displacement, far beyond small strains.

The angle bracket of ``meshes/bracket3d.msh`` is clamped at the wall and carries a random traction
on the top of its base plate: a compressible neo-Hookean solid on tetrahedra, solved by Newton's
method. The displacement that the network answers with is zero at the wall by construction.
"""

import sys
from pathlib import Path

import torch
from firedrake import *

import spon

QUICK = "--quick" in sys.argv  # a minute's worth, for the tests
ROOT = Path(__file__).resolve().parent
OUT = ROOT / "output" / ("bracket_3d_quick" if QUICK else "bracket_3d")
OUT.mkdir(parents=True, exist_ok=True)

path = ROOT.parent / "meshes" / "bracket3d.msh"
bracket = spon.fem.read_mesh(path, required_tags=("clamped", "loaded"))
(_, clamped), (_, loaded) = (spon.fem.mesh_tags(path)[name] for name in ("clamped", "loaded"))
U = VectorFunctionSpace(bracket, "CG", 1)
t, u, v = Function(U, name="traction"), Function(U, name="displacement"), TestFunction(U)
wall = DirichletBC(U, Constant((0.0, 0.0, 0.0)), clamped)

# Shear modulus 1: tractions are in units of it.
lam, F = 4.0, Identity(3) + grad(u)
J = det(F)
part = Constant(1.0)
energy = (0.5 * (inner(F, F) - 3) - ln(J) + 0.5 * lam * ln(J) ** 2) * dx
equilibrium = derivative(energy, u, v) - part * inner(t, v) * ds(loaded)
newton = {"snes_rtol": 1e-8, "snes_linesearch_type": "bt", "pc_factor_mat_solver_type": "mumps"}
solver = NonlinearVariationalSolver(
    NonlinearVariationalProblem(equilibrium, u, bcs=wall),
    solver_parameters={**newton, "ksp_type": "preonly", "pc_type": "lu"},
)


def solve():
    """Displacement under the present traction, from the bracket at rest, in two steps."""
    u.assign(0.0)
    for share in (0.5, 1.0):
        part.assign(share)
        solver.solve()


problem = spon.Problem({"t": t}, {"u": u}, solve)
sampler = {"t": spon.samplers.RandomBoundaryData(U, loaded, length=0.6, std=0.0015)}
samples = spon.generate(problem, sampler, 12 if QUICK else 400, OUT / "train.h5", seed=0)
unseen = spon.generate(problem, sampler, 10 if QUICK else 50, OUT / "unseen.h5", seed=1)

torch.manual_seed(0)
net = spon.OperatorNetwork(
    spon.Encoder(U), spon.processors.Spectral(modes=120, layers=3), spon.Decoder(U, bcs=wall)
)
spon.fit(
    net,
    samples,
    loss=spon.losses.RelativeError(U, "L2"),
    epochs=2 if QUICK else 30,
    batch_size=8,
    lr=2e-3,
    checkpoint=OUT / "training.pt",
    log=OUT / "training.csv",
    plot=OUT / "training.png",
)
net.save(OUT / "bracket_3d.spon")

result = spon.report(net, unseen, problem)
result.save(OUT / "report.json")
print(result)
traction = spon.fem.to_function(unseen.inputs["t"][0], U)
reference = spon.fem.to_function(unseen.outputs["u"][0], U)
prediction = net(traction)
picture = OUT / "displacement.png"
spon.plotting.compare(reference, prediction, picture, input=traction, title="Bracket in 3D")
for g, name in ((traction, "traction"), (reference, "finite_elements"), (prediction, "network")):
    g.rename(name)
spon.fem.write_vtk(OUT / "displacement.pvd", traction, reference, prediction)
largest = max(float(x.reshape(-1, 3).norm(dim=1).max()) for x in unseen.outputs["u"])
print(f"largest displacement {largest:.2f} (the bracket is 1 long); pictures and VTK in {OUT}")
