"""One network, trained on three parts and asked about a fourth: heat in plates of any shape.

    -div(k grad u) = 1   in the part,   u = 0 on its boundary.

The conductivity k = exp(g) is lognormal. Samples are made on Cook's membrane, on an L-profile and
on a plate with three holes, each with its own mesh; a network learns from all of them at once. Its
weights know no mesh: `Elliptic` learns the law between inputs and coefficients, and solves with it.
So `net.on(mesh)` answers on a plate with seven holes, too, which it has never seen, and keeps the
boundary values there.
"""

import sys
from pathlib import Path

import torch
from firedrake import *

import spon

QUICK = "--quick" in sys.argv  # a minute's worth, for the tests
ROOT = Path(__file__).resolve().parent
OUT = ROOT / "output" / ("one_network_three_meshes_quick" if QUICK else "one_network_three_meshes")
OUT.mkdir(parents=True, exist_ok=True)


def heated(name):
    """The problem on one of the meshes, scaled to unit area, and a sampler of conductivities."""
    part = spon.fem.read_mesh(ROOT.parent / "meshes" / f"{name}.msh")
    part.coordinates.dat.data[:] /= sqrt(assemble(Constant(1.0) * dx(part)))
    K, U = FunctionSpace(part, "DG", 0), FunctionSpace(part, "CG", 2)
    log_k, u, v = Function(K, name="log conductivity"), Function(U), TestFunction(U)
    equation = exp(log_k) * inner(grad(TrialFunction(U)), grad(v)) * dx
    cold = DirichletBC(U, 0.0, "on_boundary")
    direct = {"ksp_type": "preonly", "pc_type": "cholesky", "pc_factor_mat_solver_type": "mumps"}
    heat = LinearVariationalProblem(equation, v * dx, u, bcs=cold)
    solver = LinearVariationalSolver(heat, solver_parameters=direct)
    problem = spon.Problem({"log_k": log_k}, {"u": u}, solver.solve)
    return problem, {"log_k": spon.samplers.GaussianRandomField(K, length=0.2)}, cold


parts = {name: heated(name) for name in ("cook", "lprofile", "holes", "plate_quads")}
*seen, fourth = parts
samples, unseen = {}, {}
for number, (name, (problem, sampler, _)) in enumerate(parts.items()):
    sizes = (20, 10) if QUICK else (200, 40)
    if name in seen:
        samples[name] = spon.generate(problem, sampler, sizes[0], OUT / f"{name}.h5", seed=number)
    file = OUT / f"{name}_unseen.h5"
    unseen[name] = spon.generate(problem, sampler, sizes[1], file, seed=100 + number)

# The network is put together on one of the meshes; a list of data sets takes it to theirs.
torch.manual_seed(0)
K, U = samples["cook"].space("log_k"), samples["cook"].space("u")
decoder = spon.Decoder(U, bcs=parts["cook"][2])
net = spon.OperatorNetwork(spon.Encoder(K), spon.processors.Elliptic(), decoder)
spon.fit(
    net,
    list(samples.values()),
    loss=spon.losses.RelativeError(U, "L2"),
    epochs=2 if QUICK else 8,
    batch_size=12,
    lr=4e-3,
    checkpoint=OUT / "training.pt",
    log=OUT / "training.csv",
)
net.save(OUT / "one_network.spon")

# Each sample on its own mesh, also for shapes that were not trained on.
errors = spon.evaluate(net, list(unseen.values())).split([len(data) for data in unseen.values()])
for name, error in zip(unseen, errors, strict=True):
    kind = "trained on this shape" if name in seen else "a shape it has never seen"
    print(f"{name} ({kind}): mean error {error.mean():.2%}, worst {error.max():.2%}")
for name, data in unseen.items():
    here, K, U = net.on(data.mesh()), data.space("log_k"), data.space("u")
    log_k = spon.fem.to_function(data.inputs["log_k"][0], K)
    reference, prediction = spon.fem.to_function(data.outputs["u"][0], U), here(log_k)
    picture = OUT / f"{name}.png"
    spon.plotting.compare(reference, prediction, picture, input=log_k, title=f"Heat: {name}")

result = spon.report(here, data, parts[fourth][0], repeats=1)
result.save(OUT / "report.json")
print(f"{fourth}:\n{result}")
for f, what in ((log_k, "log_k"), (reference, "finite_elements"), (prediction, "network")):
    f.rename(what)
spon.fem.write_vtk(OUT / f"{fourth}.pvd", log_k, reference, prediction)
print(f"pictures, VTK, network and training curve are in {OUT}")
