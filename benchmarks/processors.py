"""Every processor on two small problems: the same samples, about the same seconds of one core.

Poisson's equation with smooth random sources, and Darcy flow with a coefficient of two values, on a
square of 32 x 32 nodes; 200 solutions for training, 50 for the choice of the learning rate, 100 for
the errors. Every processor is as its constructor makes it, but for the lattices of `Multigrid` and
`GraphMultigrid`. Its linear path is fitted in closed form where it has one, which is not timed.
Then it is trained with AdamW at each of two learning rates for about the same processor time: the
number of steps is set beforehand, from the time of four of them. The same weights are then asked
on the mesh refined once, where the errors are those against the solutions there.

A few seconds are a first look: who learns most from little, not who is best in the end.

    python benchmarks/processors.py [--quick] [--only "Spectral;Graph"]
"""

from __future__ import annotations

import json
import time

import torch
from common import RESULTS, arguments, write
from firedrake import (
    Constant,
    DirichletBC,
    Function,
    FunctionSpace,
    MeshHierarchy,
    TestFunction,
    TrialFunction,
    UnitSquareMesh,
    dx,
    grad,
    inner,
    interpolate,
)

import spon
from spon import processors

TRAIN, CHOOSE, TEST = slice(0, 200), slice(200, 250), slice(250, 350)
RATES = (3e-3, 1e-2)
BATCH = 20
# Multigrid on lattices alone, so that the levels of both meshes are the same.
KINDS = {
    "Spectral": ("spectral", {}),
    "Resolvent": ("resolvent", {}),
    "Multigrid": ("multigrid", {"coarse": "lattice"}),
    "Elliptic": ("elliptic", {}),
    "Attention": ("attention", {}),
    "DeepONet": ("deeponet", {}),
    "DeepONet, trunk of modes": ("deeponet", {"trunk": "modes"}),
    "MultiONet": ("multionet", {}),
    "GraphMultigrid": ("graph_multigrid", {"coarse": "lattice"}),
    "Graph": ("graph", {}),
    "MLP": ("mlp", {}),
}


def samples(problem, meshes, count):
    """For each mesh: spaces, conditions, inputs and solutions (float32); inputs are the same."""
    coarse = FunctionSpace(meshes[0], *(("CG", 1) if problem == "poisson" else ("DG", 0)))
    options = {"length": 0.2, "smoothness": 3.0}
    if problem == "poisson":
        sampler = spon.samplers.GaussianRandomField(coarse, **options)
    else:
        sampler = spon.samplers.TwoPhase(coarse, low=3.0, high=12.0, **options)
    drawn, out = sampler.draw(count, seed=0), []
    for mesh in meshes:
        F, V = FunctionSpace(mesh, coarse.ufl_element()), FunctionSpace(mesh, "CG", 1)
        f = drawn
        if mesh is not meshes[0]:
            f = spon.fem.sparse_map(interpolate(TrialFunction(coarse), F)).batch(drawn)
        bc = DirichletBC(V, 0.0, "on_boundary")
        u, v, given = TrialFunction(V), TestFunction(V), Function(F)
        if problem == "poisson":
            a, L = inner(grad(u), grad(v)) * dx, given * v * dx
        else:
            a, L = given * inner(grad(u), grad(v)) * dx, Constant(1.0) * v * dx
        given.assign(1.0)
        exact = spon.fem.LinearSolver(a, bc, inputs=[given], L=L)(f)
        out.append((F, V, bc, f.float(), exact.float()))
    return out


def distances(mass, found, exact):
    """L2 distance of each sample over the norm of the second."""

    def norm(x):
        return (x * mass.batch(x)).sum(1).sqrt()

    return norm(found - exact) / norm(exact)


def mass_of(V):
    """The mass matrix in float32."""
    return spon.fem.sparse_map(TrialFunction(V) * TestFunction(V) * dx).to(torch.float32)


def error(net, V, f, exact):
    """Mean of the relative L2 errors."""
    with torch.no_grad():
        return float(distances(mass_of(V), net(f), exact).mean())


def apart(data):
    """How far the solutions on the two meshes are from each other."""
    (_, coarse, _, _, one), (_, fine, _, _, two) = data
    prolongation = spon.fem.sparse_map(interpolate(TrialFunction(coarse), fine)).to(torch.float32)
    return float(distances(mass_of(fine), prolongation.batch(one[TEST]), two[TEST]).mean())


def train(name, problem, rate, seconds):
    """A trained network and what it took, `problem` being the samples on one mesh."""
    F, V, bc, f, exact = problem
    torch.manual_seed(0)
    processor = processors.create(*KINDS[name])
    net = spon.OperatorNetwork(spon.Encoder(F), processor, spon.Decoder(V, bc), torch.float32)
    net.calibrate([f[TRAIN]], exact[TRAIN])
    net.fit_linear([f[TRAIN]], exact[TRAIN])
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-9)
    generator = torch.Generator().manual_seed(0)
    order, mass = torch.arange(TRAIN.stop), mass_of(V)

    def step(i):
        nonlocal order
        at = BATCH * i % TRAIN.stop
        if at == 0:
            order = torch.randperm(TRAIN.stop, generator=generator)
        batch = order[at : at + BATCH]
        optimiser.zero_grad()
        distances(mass, net(f[batch]), exact[batch]).mean().backward()
        optimiser.step()

    # So many steps as the time allows, by the time of a few with next to no learning rate.
    step(0)
    start = time.process_time()
    for i in range(1, 5):
        step(i)
    cost = (time.process_time() - start) / 4
    steps = max(10, int(seconds / cost))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    start = time.process_time()
    for i in range(steps):
        step(i)
        schedule.step()
    spent = time.process_time() - start
    return net, {"rate": rate, "steps": steps, "seconds": spent, "step_ms": 1e3 * spent / steps}


def measure(name, problem, data, seconds):
    """One row: the better of the learning rates."""
    runs = []
    for rate in RATES:
        net, row = train(name, data[0], rate, seconds)
        _, V, _, f, exact = data[0]
        chosen_by = error(net, V, f[CHOOSE], exact[CHOOSE])
        row["error"] = error(net, V, f[TEST], exact[TEST])
        runs.append((chosen_by, net, row))
        print(f"{problem} {name} {row}", flush=True)
    _, net, row = min(runs, key=lambda run: run[0])
    row["weights"] = sum(w.numel() for w in net.processor.parameters())
    row["error_refined"] = None
    if net.processor.mesh_independent:
        _, V, _, f, exact = data[1]
        row["error_refined"] = error(net.on(V.mesh()), V, f[TEST], exact[TEST])
    return {"problem": problem, "processor": name, **row}


def main():
    """Train and write."""
    args = arguments(__doc__.splitlines()[0], "--only")
    torch.set_num_threads(1)
    n, seconds = (7, 1.0) if args.quick else (31, 8.0)
    meshes = list(MeshHierarchy(UnitSquareMesh(n, n), 1))
    names = args.only.split(";") if args.only else list(KINDS)
    path = args.output or RESULTS / f"processors{'-quick' if args.quick else ''}.json"
    rows = json.loads(path.read_text())["results"] if args.only and path.exists() else []
    rows = [r for r in rows if r["processor"] not in names]
    distance = {}
    for problem in ("poisson", "darcy"):
        data = samples(problem, meshes, TEST.stop)
        distance[problem] = apart(data)
        rows += [measure(name, problem, data, seconds) for name in names]
    order = [(p, k) for p in ("poisson", "darcy") for k in KINDS]
    rows.sort(key=lambda r: order.index((r["problem"], r["processor"])))
    settings = {"nodes": (n + 1) ** 2, "seconds": seconds, "rates": RATES, "samples": TRAIN.stop}
    settings["solutions_apart"] = distance
    write("processors", rows, settings, args.output, args.quick)


if __name__ == "__main__":
    main()
