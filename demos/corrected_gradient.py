"""The corrected gradient: one operator, called several times before the backward pass.

Four temperatures u_1 to u_4 on a plate shall have small residuals r(u) of

    -div((1 + u^2) grad u) + u = f,      loss = |r(u_1)|^2 + ... + |r(u_4)|^2.

The residual is on a pyadjoint tape, and torch calls it once for each temperature before it asks for
the gradient. Firedrake's own operator then differentiates at the values that the tape saw last,
those of u_4, for all four. `spon.fem.fem_operator` remembers the inputs of each call and runs the
tape again where it is stale; it also takes all four as a batch. A Taylor test tells a gradient from
a wrong one: what is left of the loss after its linear part shrinks with the square of the step.
"""

import json
import sys
from pathlib import Path

import matplotlib
import torch
from firedrake import *
from firedrake.adjoint import *
from firedrake.ml.pytorch import fem_operator as firedrakes_operator

import spon

matplotlib.use("Agg")
import matplotlib.pyplot as plt

QUICK = "--quick" in sys.argv  # a minute's worth, for the tests
ROOT = Path(__file__).resolve().parent
OUT = ROOT / "output" / ("corrected_gradient_quick" if QUICK else "corrected_gradient")
OUT.mkdir(parents=True, exist_ok=True)

plate = spon.fem.read_mesh(ROOT.parent / "meshes" / "plate.msh")
V = FunctionSpace(plate, "CG", 1)
u, v, x = Function(V), TestFunction(V), SpatialCoordinate(plate)
f = Function(V).interpolate(10 * sin(4 * x[0]) * x[1])

# The residual on the tape, and two ways to hand it to torch.
continue_annotation()
r = assemble((1 + u**2) * inner(grad(u), grad(v)) * dx + (u - f) * v * dx)
pause_annotation()
functional = ReducedFunctional(r, Control(u))
theirs, ours = firedrakes_operator(functional), spon.fem.fem_operator(functional)


def loss_theirs(us):
    return sum((theirs(one[None]) ** 2).sum() for one in us)


def loss_ours(us):
    return (ours(us) ** 2).sum()  # one call for the batch


# Smooth random temperatures, and the Taylor test along a smooth random direction.
prior = spon.samplers.GaussianRandomField(V, length=0.3)
us, direction = (prior.draw(4, seed=seed) for seed in (0, 1))
us *= torch.tensor([[0.5], [1.0], [1.5], [2.0]], dtype=us.dtype)
steps = [0.1 / 2**i for i in range(4 if QUICK else 8)]
remainders, gradients, orders = {}, {}, {}
for name, loss in (("Firedrake's", loss_theirs), ("spon's", loss_ours)):
    at = us.clone().requires_grad_()
    value = loss(at)
    value.backward()
    gradients[name] = at.grad
    slope = (at.grad * direction).sum()
    with torch.no_grad():
        rest = [abs(loss_ours(us + h * direction) - value - h * slope).item() for h in steps]
    remainders[name] = rest
    orders[name] = float(torch.log2(torch.tensor(rest[-2] / rest[-1])))
    print(f"{name} operator: the remainder shrinks with order {orders[name]:.2f}")

# How wrong for each temperature? One call and one backward pass at a time is right for both.
alone = []
for one in us:
    at = one[None].clone().requires_grad_()
    (theirs(at) ** 2).sum().backward()
    alone.append(at.grad[0])
alone = torch.stack(alone)
errors = {n: ((g - alone).norm(dim=1) / alone.norm(dim=1)).tolist() for n, g in gradients.items()}
for name, per_call in errors.items():
    print(f"{name} gradient is off by", ", ".join(f"{100 * e:.0f} %" for e in per_call))
(OUT / "report.json").write_text(json.dumps({"orders": orders, "errors": errors}))

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
for k, (name, rest) in enumerate(remainders.items()):
    left.loglog(steps, rest, "o-", label=f"{name} gradient, order {orders[name]:.1f}")
    places = [i + 0.4 * (k - 0.5) for i in range(1, 5)]
    bars = right.bar(places, [100 * e for e in errors[name]], 0.4, label=f"{name} gradient")
    right.bar_label(bars, fmt="%.0f")
left.set(xlabel="step", ylabel="rest of the loss after its linear part", title="Taylor test")
right.set(xticks=range(1, 5), xlabel="temperature", ylabel="error of the gradient in %")
right.set_title("against one call at a time")
right.margins(y=0.15)
for axes in (left, right):
    axes.legend(frameon=False)
figure.savefig(OUT / "gradient.png", dpi=150)
