"""Flow around holes that loses no drop: a network whose flux is divergence-free, and one without.

The plate with seven holes again, a lognormal permeability k, pressure 1 at the left end and 0 at
the right one, walls elsewhere. This time the answer is the flux u = -k grad p in RT 1, found with
its pressure by the mixed method: div u = 0 in each cell and u.n = 0 on each wall.

Two networks learn the map from k to u from the same samples. One has the walls' condition only, and
water comes from nothing. The decoder of the other one promises more: it takes the nearest flux that
loses no drop, whatever the weights are. As the true flux loses none, the step takes no prediction
further from it in L2; which of the two networks ends nearer to it is up to training, too.
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from firedrake import *

import spon
from spon.fem.maps import points_inside

matplotlib.use("Agg")
import matplotlib.pyplot as plt

QUICK = "--quick" in sys.argv  # a minute's worth, for the tests
ROOT = Path(__file__).resolve().parent
OUT = ROOT / "output" / ("flow_around_holes_quick" if QUICK else "flow_around_holes")
OUT.mkdir(parents=True, exist_ok=True)

# Tags: 1 left, 2 right, 3 bottom, 4 top, 5 holes.
plate = spon.fem.read_mesh(ROOT.parent / "meshes" / "plate.msh", required_tags=("left", "right"))
K, U, Q = (FunctionSpace(plate, *element) for element in (("DG", 0), ("RT", 1), ("DG", 0)))
log_k, u, W, closed = Function(K), Function(U), U * Q, (as_vector((0.0, 0.0)), (3, 4, 5))
(f, p), (v, q), w = TrialFunctions(W), TestFunctions(W), Function(W)
equation = (exp(-log_k) * inner(f, v) - p * div(v) - div(f) * q) * dx
ends = -inner(v, FacetNormal(plate)) * ds(1)
flow = LinearVariationalProblem(equation, ends, w, bcs=DirichletBC(W.sub(0), *closed))
direct = {"pc_factor_mat_solver_type": "mumps", "mat_mumps_icntl_14": 200}
direct |= {"mat_type": "aij", "ksp_type": "preonly", "pc_type": "lu"}
solver = LinearVariationalSolver(flow, solver_parameters=direct)


def solve():
    """Flux of the present permeability."""
    solver.solve()
    u.assign(w.subfunctions[0])


problem = spon.Problem({"log_k": log_k}, {"u": u}, solve)
sampler = {"log_k": spon.samplers.GaussianRandomField(K, length=0.3, std=0.7)}
samples = spon.generate(problem, sampler, 40 if QUICK else 600, OUT / "train.h5", seed=0)
unseen = spon.generate(problem, sampler, 10 if QUICK else 100, OUT / "unseen.h5", seed=1)

# How much flows out of each cell, against its edge and the size of the flux.
outflow = spon.fem.sparse_map(div(TrialFunction(U)) * TestFunction(Q) * dx)
edge = torch.from_numpy(np.sqrt(assemble(TestFunction(Q) * dx).dat.data_ro))
flows = {"finite elements": spon.fem.to_function(unseen.outputs["u"][0], U)}
promises = {"divergence_free": True, "through": "projection"}
for name, promised in (("without promise", {}), ("divergence-free", promises)):
    torch.manual_seed(0)
    decoder = spon.Decoder(U, bcs=DirichletBC(U, *closed), **promised)
    net = spon.OperatorNetwork(spon.Encoder(K), spon.processors.Spectral(points=600), decoder)
    settings = {"epochs": 2 if QUICK else 30, "batch_size": 8, "lr": 4e-3}
    settings |= {"checkpoint": OUT / f"{name}.pt", "log": OUT / f"{name}.csv"}
    spon.fit(net, samples, loss=spon.losses.RelativeError(U, "L2"), **settings)
    net.save(OUT / f"{name}.spon")
    result = spon.report(net, unseen, problem)
    result.save(OUT / "report.json")  # that of the last one stays
    print(f"{name}: {result}")
    found = [net(spon.fem.to_function(x, K)) for x in unseen.inputs["log_k"][:10]]
    lost = [(outflow(spon.fem.to_tensor(x)) / edge).abs().max() / norm(x) for x in found]
    print(f"{name}: largest outflow of a cell {float(max(lost)):.1e}")
    flows[name] = found[0]

# Streamlines of one sample.
x, y = np.linspace(0.004, 1.996, 250), np.linspace(0.004, 0.996, 125)
grid = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
inside = points_inside(plate, grid)
at_points = spon.fem.evaluation_map(U, grid[inside])
figure, axes = plt.subplots(3, 1, figsize=(8, 12), layout="constrained")
for axis, (name, flux) in zip(axes, flows.items(), strict=True):
    field = np.full((len(grid), 2), np.nan)
    field[inside] = at_points(spon.fem.to_tensor(flux)).reshape(-1, 2).numpy()
    a, b = (field[:, i].reshape(len(y), len(x)) for i in range(2))
    lines = axis.streamplot(x, y, a, b, color=np.hypot(a, b), density=1.6, linewidth=0.8)
    figure.colorbar(lines.lines, ax=axis, label="flux")
    axis.set(title=name, aspect="equal")
    flux.rename(name.replace(" ", "_").replace("-", "_"))
figure.savefig(OUT / "streamlines.png", dpi=120)
spon.fem.write_vtk(OUT / "flow.pvd", *flows.values())
print(f"streamlines, VTK and networks are in {OUT}")
