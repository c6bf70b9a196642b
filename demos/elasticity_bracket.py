"""Linear elasticity of a bracket: from the load to the displacement.

A mounting bracket in plane strain hangs on three wall bolts and carries a random load: a traction
on the top of its arm. We learn the map from the traction (a vector CG 1 field whose values on
the arm count) to the displacement in vector CG 2, which is zero at the bolts by construction.
"""

import sys
from pathlib import Path

import torch
from firedrake import *

import spon

QUICK = "--quick" in sys.argv  # a minute's worth, for the tests
ROOT = Path(__file__).resolve().parent
OUT = ROOT / "output" / ("elasticity_bracket_quick" if QUICK else "elasticity_bracket")
OUT.mkdir(parents=True, exist_ok=True)

path = ROOT.parent / "meshes" / "bracket.msh"
bracket = spon.fem.read_mesh(path, required_tags=("clamped", "loaded"))
(_, clamped), (_, loaded) = (spon.fem.mesh_tags(path)[name] for name in ("clamped", "loaded"))
T, U = VectorFunctionSpace(bracket, "CG", 1), VectorFunctionSpace(bracket, "CG", 2)
t, u, v = Function(T, name="traction"), Function(U, name="displacement"), TestFunction(U)
bolts = DirichletBC(U, Constant((0.0, 0.0)), clamped)

E_modulus, nu = 200.0, 0.3
mu, lam = E_modulus / (2 * (1 + nu)), E_modulus * nu / ((1 + nu) * (1 - 2 * nu))


def stress(w):
    """Hooke's law."""
    return 2 * mu * sym(grad(w)) + lam * div(w) * Identity(2)


elasticity = LinearVariationalProblem(
    inner(stress(TrialFunction(U)), sym(grad(v))) * dx,
    inner(t, v) * ds(loaded),
    u,
    bcs=bolts,
    constant_jacobian=True,
)
solver = LinearVariationalSolver(
    elasticity,
    solver_parameters={
        "ksp_type": "preonly",
        "pc_type": "cholesky",
        "pc_factor_mat_solver_type": "mumps",
    },
)
problem = spon.Problem({"t": t}, {"u": u}, solver.solve)
sampler = {"t": spon.samplers.RandomBoundaryData(T, loaded, length=0.3)}
samples = spon.generate(problem, sampler, 40 if QUICK else 800, OUT / "train.h5", seed=0)
unseen = spon.generate(problem, sampler, 10 if QUICK else 100, OUT / "unseen.h5", seed=1)

torch.manual_seed(0)
net = spon.OperatorNetwork(
    spon.Encoder(T), spon.processors.Spectral(points=600), spon.Decoder(U, bcs=bolts)
)
spon.fit(
    net,
    samples,
    loss=spon.losses.RelativeError(U, "L2"),
    epochs=2 if QUICK else 12,
    checkpoint=OUT / "training.pt",
    log=OUT / "training.csv",
    plot=OUT / "training.png",
)
net.save(OUT / "elasticity_bracket.spon")

result = spon.report(net, unseen, problem)
result.save(OUT / "report.json")
print(result)
traction = spon.fem.to_function(unseen.inputs["t"][0], T)
reference = spon.fem.to_function(unseen.outputs["u"][0], U)
prediction = net(traction)
spon.plotting.compare(
    reference, prediction, OUT / "displacement.png", input=traction, title="Bracket"
)
for g, name in ((traction, "traction"), (reference, "finite_elements"), (prediction, "network")):
    g.rename(name)
spon.fem.write_vtk(OUT / "displacement.pvd", traction, reference, prediction)
print(f"picture, VTK, network and training curve are in {OUT}")
