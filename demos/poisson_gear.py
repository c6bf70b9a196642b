"""Poisson's equation on a gear: from a random source to the solution.

    -div(grad u) = f   in a spur gear with bore, key slot and six holes,   u = 0 on its boundary.

The sources are Gaussian random fields in CG 1, the solutions lie in CG 2. The network learns the
solution operator from pairs and is compared with finite elements on sources it has not seen. This
operator is linear with constant coefficients, a function of the Laplacian: `fit` finds it in closed
form, from solves with M + alpha K at several alpha, and training has nothing left to do.
"""

import sys
from pathlib import Path

import torch
from firedrake import *

import spon

QUICK = "--quick" in sys.argv  # a minute's worth, for the tests
ROOT = Path(__file__).resolve().parent
OUT = ROOT / "output" / ("poisson_gear_quick" if QUICK else "poisson_gear")
OUT.mkdir(parents=True, exist_ok=True)

gear = spon.fem.read_mesh(ROOT.parent / "meshes" / "gear.msh")
F, U = FunctionSpace(gear, "CG", 1), FunctionSpace(gear, "CG", 2)
f, u, v = Function(F, name="source"), Function(U, name="solution"), TestFunction(U)
rim = DirichletBC(U, 0.0, "on_boundary")

# The matrix is factorised once for all samples.
poisson = LinearVariationalProblem(
    inner(grad(TrialFunction(U)), grad(v)) * dx, f * v * dx, u, bcs=rim, constant_jacobian=True
)
solver = LinearVariationalSolver(
    poisson,
    solver_parameters={
        "ksp_type": "preonly",
        "pc_type": "cholesky",
        "pc_factor_mat_solver_type": "mumps",
    },
)
problem = spon.Problem({"f": f}, {"u": u}, solver.solve)
sampler = {"f": spon.samplers.GaussianRandomField(F, length=0.2)}
samples = spon.generate(problem, sampler, 40 if QUICK else 200, OUT / "train.h5", seed=0)
unseen = spon.generate(problem, sampler, 10 if QUICK else 100, OUT / "unseen.h5", seed=1)

torch.manual_seed(0)
net = spon.OperatorNetwork(spon.Encoder(F), spon.processors.Resolvent(), spon.Decoder(U, bcs=rim))
spon.fit(
    net,
    samples,
    loss=spon.losses.RelativeError(U, "L2"),
    epochs=2 if QUICK else 4,
    lr=1e-4,
    checkpoint=OUT / "training.pt",
    log=OUT / "training.csv",
    plot=OUT / "training.png",
)
net.save(OUT / "poisson_gear.spon")

result = spon.report(net, unseen, problem)
result.save(OUT / "report.json")
print(result)
source = spon.fem.to_function(unseen.inputs["f"][0], F)
reference = spon.fem.to_function(unseen.outputs["u"][0], U)
prediction = net(source)
spon.plotting.compare(reference, prediction, OUT / "solution.png", input=source, title="Poisson")
for g, name in ((source, "source"), (reference, "finite_elements"), (prediction, "network")):
    g.rename(name)
spon.fem.write_vtk(OUT / "solution.pvd", source, reference, prediction)
print(f"picture, VTK, network and training curve are in {OUT}")
