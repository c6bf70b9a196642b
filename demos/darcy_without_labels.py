"""Training without solutions: nonlinear Darcy flow through a plate with holes.

The permeability a = exp(g) is a random field, the flow grows with the pressure:

    -div((1 + p^2) a grad p) = 1,    p = 1 at the left end, 0 at the right one.

No sample is solved for the training. The network sees random permeabilities only; what it gets
wrong is the residual of the weak form, measured in the dual norm of the energy space. Its
Euclidean norm would not do: minimising that is conditioned like h^-4. Newton's method solves a
hundred samples afterwards, to see how good the network is.
"""

import sys
from pathlib import Path

import torch
from firedrake import *

import spon

QUICK = "--quick" in sys.argv  # a minute's worth, for the tests
ROOT = Path(__file__).resolve().parent
OUT = ROOT / "output" / ("darcy_without_labels_quick" if QUICK else "darcy_without_labels")
OUT.mkdir(parents=True, exist_ok=True)

plate = spon.fem.read_mesh(ROOT.parent / "meshes" / "plate.msh", required_tags=("left", "right"))
K, U = FunctionSpace(plate, "DG", 0), FunctionSpace(plate, "CG", 1)
g, p, q = Function(K, name="log permeability"), Function(U, name="pressure"), TestFunction(U)
ends = [DirichletBC(U, 1.0, 1), DirichletBC(U, 0.0, 2)]

# The equation, once: Newton's method and the loss use this form.
equation = (1 + p**2) * exp(g) * inner(grad(p), grad(q)) * dx(degree=2) - Constant(1.0) * q * dx

# What the training minimises. The form is assembled by Firedrake's kernels, for whole batches.
residual = spon.fem.torch_form(equation, [p, g])
energy = inner(grad(TrialFunction(U)), grad(q)) * dx
loss = spon.losses.Residual(residual, spon.losses.DualNorm(U, ends, inner=energy))

# Inputs alone, no outputs: they cost nothing, so there are many.
field = spon.samplers.GaussianRandomField(K, length=0.25, std=0.5)
inputs = spon.Dataset.from_arrays({"g": field.draw(40 if QUICK else 4000)}, {}, {"g": K})

torch.manual_seed(0)
net = spon.OperatorNetwork(
    spon.Encoder(K), spon.processors.Spectral(points=600), spon.Decoder(U, bcs=ends)
)
spon.fit(
    net,
    inputs,
    loss=loss,
    epochs=2 if QUICK else 12,
    batch_size=8,
    lr=4e-3,
    checkpoint=OUT / "training.pt",
    log=OUT / "training.csv",
    plot=OUT / "training.png",
)
net.save(OUT / "darcy_without_labels.spon")

# Solutions, only now.
newton = NonlinearVariationalSolver(NonlinearVariationalProblem(equation, p, ends))
problem = spon.Problem({"g": g}, {"p": p}, newton.solve)
unseen = spon.generate(problem, {"g": field}, 10 if QUICK else 100, OUT / "unseen.h5", seed=1)
result = spon.report(net, unseen, problem)
result.save(OUT / "report.json")
print(result)
permeability = spon.fem.to_function(unseen.inputs["g"][0], K)
reference = spon.fem.to_function(unseen.outputs["p"][0], U)
prediction = net(permeability)
spon.plotting.compare(
    reference, prediction, OUT / "pressure.png", input=permeability, title="Trained without labels"
)
for f, name in ((permeability, "g"), (reference, "newton"), (prediction, "network")):
    f.rename(name)
spon.fem.write_vtk(OUT / "pressure.pvd", permeability, reference, prediction)
print(f"picture, VTK, network and training curve are in {OUT}")
