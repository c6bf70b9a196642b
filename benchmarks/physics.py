"""Training without solutions: conditioning of the loss, and error against training with labels.

Nonlinear Darcy flow -div((1 + p^2) exp(g) grad p) = 1 on the plate with holes, g a Gaussian random
field of standard deviation 0.5. One network (`Spectral`, the same seed and weights at the start) is
trained with 1,000 solutions (5,000 steps), and without any: on the residual in the dual norm, for
6,000 steps on 4,000 inputs that are never solved; and, for a few epochs each, in the dual and in
the Euclidean norm. The labels get their best of two losses.

    python benchmarks/physics.py [--quick] [--part conditioning|training]
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import arguments, write
from firedrake import (
    Constant,
    DirichletBC,
    Function,
    FunctionSpace,
    NonlinearVariationalProblem,
    NonlinearVariationalSolver,
    TestFunction,
    TrialFunction,
    UnitSquareMesh,
    dx,
    exp,
    grad,
    inner,
)
from scipy.linalg import eigvalsh

import spon

MESHES = Path(__file__).resolve().parent.parent / "meshes"


def plate():
    """The plate with holes, its left and right end named."""
    return spon.fem.read_mesh(MESHES / "plate.msh", required_tags=("left", "right"))


# ---- conditioning ----------------------------------------------------------------------------


def conditioning(quick):
    """Condition numbers of the quadratic losses |A x|^2 and r^T G^-1 r, a in {5, 10}."""
    meshes = {f"square, {n} x {n}": UnitSquareMesh(n, n) for n in (8, 16, 32)}
    if not quick:
        meshes["plate with holes"] = plate()
    rows = []
    for name, mesh in meshes.items():
        V, K = FunctionSpace(mesh, "CG", 1), FunctionSpace(mesh, "DG", 0)
        a, u, v = Function(K), TrialFunction(V), TestFunction(V)
        a.dat.data[:] = np.random.default_rng(0).choice([5.0, 10.0], K.dim())
        free = np.ones(V.dim(), dtype=bool)
        where = (1, 2) if "plate" in name else "on_boundary"
        free[DirichletBC(V, 0, where).nodes] = False
        A, G = (
            spon.fem.sparse_map(w * inner(grad(u), grad(v)) * dx).to_scipy()[free][:, free]
            for w in (a, Constant(1.0))
        )
        A, G = A.toarray(), G.toarray()
        # In coordinates in which the energy is the Euclidean norm the dual loss is (G^-1 A)^2.
        dual = eigvalsh(A, G) ** 2
        euclidean = np.linalg.eigvalsh(A) ** 2
        rows.append(
            {"part": "conditioning", "mesh": name, "dofs": V.dim(),
             "dual": float(dual[-1] / dual[0]), "euclidean": float(euclidean[-1] / euclidean[0])}
        )  # fmt: skip
        print(f"{name:20s} dual {rows[-1]['dual']:.3f}, Euclidean {rows[-1]['euclidean']:.3g}")
    return rows


# ---- training --------------------------------------------------------------------------------


class EuclideanResidual(torch.nn.Module):
    """What not to do: the Euclidean norm of the free entries of the residual."""

    takes_inputs = True

    def __init__(self, form, prescribed):
        super().__init__()
        self.form, self.prescribed = form, prescribed

    def per_sample(self, prediction, inputs):
        residual = torch.where(self.prescribed, 0.0, self.form(prediction, *inputs))
        return residual.square().sum(1).sqrt()

    def first_step(self, start, inputs):
        return None


def training(quick):
    """Errors with 1,000 labels and without any."""
    mesh = plate()
    K, U = FunctionSpace(mesh, "DG", 0), FunctionSpace(mesh, "CG", 1)
    g, p, q = Function(K), Function(U), TestFunction(U)
    ends = [DirichletBC(U, 1.0, 1), DirichletBC(U, 0.0, 2)]
    equation = (1 + p**2) * exp(g) * inner(grad(p), grad(q)) * dx(degree=2)
    equation -= Constant(1.0) * q * dx
    options = {"snes_rtol": 1e-10, "ksp_type": "preonly", "pc_type": "lu",
               "pc_factor_mat_solver_type": "mumps"}  # fmt: skip
    newton = NonlinearVariationalSolver(
        NonlinearVariationalProblem(equation, p, ends), solver_parameters=options
    )
    problem = spon.Problem({"g": g}, {"p": p}, newton.solve)
    field = spon.samplers.GaussianRandomField(K, length=0.25, std=0.5)
    count, unlabelled, unseen = (40, 80, 10) if quick else (1000, 4000, 100)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        labels = spon.generate(problem, {"g": field}, count, Path(folder) / "train.h5", seed=0)
        seconds = time.perf_counter() - start
        tests = spon.generate(problem, {"g": field}, unseen, Path(folder) / "unseen.h5", seed=1)
    inputs = spon.Dataset.from_arrays({"g": field.draw(unlabelled)}, {}, {"g": K})
    residual = spon.fem.torch_form(equation, [p, g])
    norm = spon.losses.DualNorm(U, ends, inner(grad(TrialFunction(U)), grad(q)) * dx)
    dual = spon.losses.Residual(residual, norm)
    euclidean = EuclideanResidual(residual, norm.prescribed)
    long, short, few = (2, 1, 1) if quick else (40, 12, 4)
    runs = {
        "1,000 labels, L2": (labels, spon.losses.RelativeError(U, "L2"), long),
        "1,000 labels, H1": (labels, spon.losses.RelativeError(U, "H1"), long),
        "no labels, dual norm": (inputs, dual, short),
        "no labels, dual norm, few epochs": (inputs[:count], dual, few),
        "no labels, Euclidean norm, few epochs": (inputs[:count], euclidean, few),
    }
    rows = []
    for name, (data, loss, epochs) in runs.items():
        torch.manual_seed(0)
        net = spon.OperatorNetwork(
            spon.Encoder(K), spon.processors.Spectral(points=600), spon.Decoder(U, bcs=ends)
        )
        if "Euclidean" in name:  # the scale that the dual norm knows
            some = inputs.inputs["g"][:64].float()
            zero = net.decoder(torch.zeros(64, U.dim()))
            net.calibrate([some], dual.first_step(zero, [some]))
        start = time.perf_counter()
        spon.fit(net, data, loss=loss, epochs=epochs, batch_size=8, lr=4e-3, validation=None)
        taken = time.perf_counter() - start
        errors = {
            n: spon.evaluate(net, tests, spon.losses.RelativeError(U, n)) for n in ("L2", "H1")
        }
        rows.append(
            {"part": "training", "run": name, "samples": len(data), "epochs": epochs,
             "seconds": taken, "label_seconds": seconds if data is labels else 0.0,
             **{f"{n}_mean": float(e.mean()) for n, e in errors.items()},
             **{f"{n}_worst": float(e.max()) for n, e in errors.items()}}
        )  # fmt: skip
        r = rows[-1]
        print(
            f"{name:40s} L2 {r['L2_mean']:.2%} (worst {r['L2_worst']:.2%}), H1 {r['H1_mean']:.2%}, "
            f"{taken:.0f} s",
            flush=True,
        )
    return rows


def main():
    """Run the parts and write the JSON."""
    options = arguments(__doc__, "--part")
    torch.set_num_threads(1)
    parts = {"conditioning": conditioning, "training": training}
    chosen = [options.part] if options.part else list(parts)
    results = [row for part in chosen for row in parts[part](options.quick)]
    if not options.part or options.output:
        write("physics", results, {"parts": chosen}, options.output, options.quick)


if __name__ == "__main__":
    main()
