"""Darcy flow through a plate with holes: from the permeability to the pressure.

A plate with seven holes, 1 at the left end and 0 at the right one, closed elsewhere. The
permeability k = exp(g) is lognormal, g a Gaussian random field, and constant in each cell; the
pressure p solves

    -div(k grad p) = 0.

We make samples with Firedrake, train an operator network from k (DG 0) to p (CG 1), and compare it
with the finite element solution on samples that it has not seen. The pressure at both ends is
exact by construction, before and after training.
"""

import sys
from pathlib import Path

import torch
from firedrake import *

import spon

QUICK = "--quick" in sys.argv  # a minute's worth, for the tests
ROOT = Path(__file__).resolve().parent
OUT = ROOT / "output" / ("darcy_plate_quick" if QUICK else "darcy_plate")
OUT.mkdir(parents=True, exist_ok=True)

# The mesh and its boundary tags: 1 is the left end, 2 the right one.
plate = spon.fem.read_mesh(ROOT.parent / "meshes" / "plate.msh", required_tags=("left", "right"))
K, U = FunctionSpace(plate, "DG", 0), FunctionSpace(plate, "CG", 1)
log_k, p, q = Function(K, name="log permeability"), Function(U, name="pressure"), TestFunction(U)
ends = [DirichletBC(U, 1.0, 1), DirichletBC(U, 0.0, 2)]

# The problem as in any Firedrake script; one solver object serves all samples.
equation = exp(log_k) * inner(grad(TrialFunction(U)), grad(q)) * dx
flow = LinearVariationalProblem(equation, Constant(0.0) * q * dx, p, bcs=ends)
solver = LinearVariationalSolver(
    flow,
    solver_parameters={
        "ksp_type": "preonly",
        "pc_type": "cholesky",
        "pc_factor_mat_solver_type": "mumps",
    },
)
problem = spon.Problem({"log_k": log_k}, {"p": p}, solver.solve)

# Samples: killed and started again, this goes on where it was.
sampler = {"log_k": spon.samplers.GaussianRandomField(K, length=0.25, std=1.0)}
samples = spon.generate(problem, sampler, 40 if QUICK else 1000, OUT / "train.h5", seed=0)
unseen = spon.generate(problem, sampler, 10 if QUICK else 100, OUT / "unseen.h5", seed=1)

# The network: encoder and decoder follow from the spaces, only the processor is learned.
torch.manual_seed(0)
net = spon.OperatorNetwork(
    spon.Encoder(K),
    spon.processors.Spectral(points=600),
    spon.Decoder(U, bcs=ends),
)
spon.fit(
    net,
    samples,
    loss=spon.losses.RelativeError(U, "L2"),
    epochs=2 if QUICK else 20,
    batch_size=8,
    lr=4e-3,
    checkpoint=OUT / "training.pt",
    log=OUT / "training.csv",
    plot=OUT / "training.png",
)
net.save(OUT / "darcy_plate.spon")

# On unseen samples, beside the finite element solution.
result = spon.report(net, unseen, problem)
result.save(OUT / "report.json")
print(result)
log_k = spon.fem.to_function(unseen.inputs["log_k"][0], K)
reference = spon.fem.to_function(unseen.outputs["p"][0], U)
prediction = net(log_k)
spon.plotting.compare(reference, prediction, OUT / "pressure.png", input=log_k, title="Darcy flow")
for f, name in ((log_k, "log_k"), (reference, "finite_elements"), (prediction, "network")):
    f.rename(name)
spon.fem.write_vtk(OUT / "pressure.pvd", log_k, reference, prediction)
print(f"picture, VTK, network and training curve are in {OUT}")
