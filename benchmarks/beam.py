"""A hyperelastic beam under compression: a network trained on the energy, as Newton's first guess.

A neo-Hookean cantilever of length 1 and height 0.2 (plane strain, E = 1, nu = 0.3, CG 2) carries
a dead load (-p, q) for each unit of its area: p in [0.01, 0.02] along the axis, 35 to 70 % of the
buckling load, and across q = s (1 + 0.2 g), |s| in [0.008, 0.016] with a random sign, g a Gaussian
random field. The tip moves by half the length and more. A `Spectral` network learns the map from
load to displacement by `spon.losses.NewtonLoss`, from loads that are never solved. On unseen loads:
errors against the solutions, and Newton's iterations from the network's answer, with one absolute
tolerance (1e-8 of the smallest load), against the fewest of five ways that start from zero:
undamped, with backtracking, and in two, three and four equal load steps.

    python benchmarks/beam.py [--quick] [--picture FILE]
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from common import arguments, write
from firedrake import (
    DirichletBC,
    Function,
    FunctionSpace,
    Identity,
    RectangleMesh,
    TestFunction,
    VectorFunctionSpace,
    conditional,
    derivative,
    det,
    dx,
    grad,
    gt,
    inner,
    ln,
    max_value,
)

import spon
from spon import fem

HEIGHT, YOUNG, POISSON = 0.2, 1.0, 0.3
_SMALLEST = 0.3  # below this ratio of volumes the logarithm goes on as a parabola


class Beam:
    """Spaces, energy and loads.

    Parameters
    ----------
    cells : tuple of int
        Along the axis and across.
    """

    def __init__(self, cells=(30, 6)):
        mesh = RectangleMesh(*cells, 1.0, HEIGHT)
        self.B, self.U = VectorFunctionSpace(mesh, "CG", 1), VectorFunctionSpace(mesh, "CG", 2)
        self.b, self.u = Function(self.B, name="load"), Function(self.U, name="displacement")
        self.clamped = DirichletBC(self.U, 0, 1)
        self.field = spon.samplers.GaussianRandomField(
            FunctionSpace(mesh, "CG", 1), length=0.5, normalise=True
        )
        mu = YOUNG / (2 * (1 + POISSON))
        lam = YOUNG * POISSON / ((1 + POISSON) * (1 - 2 * POISSON))
        F = Identity(2) + grad(self.u)
        J, low = det(F), _SMALLEST
        beyond = np.log(low) + (J - low) / low - (J - low) ** 2 / (2 * low**2)
        log = conditional(gt(J, low), ln(max_value(J, low)), beyond)
        stored = mu / 2 * (inner(F, F) - 2 - 2 * log) + lam / 2 * log**2
        self.energy = (stored - inner(self.b, self.u)) * dx(degree=4)
        self.residual = derivative(self.energy, self.u, TestFunction(self.U))
        self.inputs = [self.b]

    def loads(self, count, seed, wider=False):
        """Coefficients of random loads, shape (count, B.dim()); `wider` by 5 to 40 % for training.

        What happens at the border of the range is then learned from both sides.
        """
        along, across, part = (
            ((0.009, 0.021), (0.007, 0.018), 0.28) if wider else ((0.01, 0.02), (0.008, 0.016), 0.2)
        )
        rng = np.random.default_rng([seed, 99])
        p = torch.from_numpy(rng.uniform(*along, count))
        s = torch.from_numpy(rng.choice([-1.0, 1.0], count) * rng.uniform(*across, count))
        loads = torch.zeros(count, self.B.dim(), dtype=torch.float64)
        loads[:, 0::2] = -p[:, None]
        loads[:, 1::2] = s[:, None] * (1 + part * self.field.draw(count, seed))
        return loads


class Newton:
    """Newton's method with one absolute tolerance, from anywhere, and its iterations."""

    def __init__(self, beam, tolerance):
        def solver(kind, most):
            return fem.NonlinearSolver(
                beam.residual, beam.u, beam.inputs, beam.clamped, on_failure="mask",
                solver_parameters={"snes_linesearch_type": kind, "snes_rtol": 0.0,
                                   "snes_stol": 0.0, "snes_atol": tolerance, "snes_max_it": most},
            )  # fmt: skip

        self.undamped, self.backtracking = solver("basic", 40), solver("bt", 200)

    def __call__(self, loads, guess=None, solver=None):
        """Solutions and iterations as floats, infinite where there is no solution."""
        solver = solver or self.undamped
        y = solver(loads, guess=guess)
        iterations = solver.report.iterations.double()
        return y, torch.where(solver.report.converged, iterations, torch.inf)

    def in_steps(self, loads, steps):
        """The load in equal steps, each from the solution before."""
        y, total = torch.zeros(len(loads), self.undamped.space.dim()).double(), 0.0
        for k in range(1, steps + 1):
            y, iterations = self(k / steps * loads, y.nan_to_num(0.0))
            total = total + iterations
        return y, total

    def from_zero(self, loads):
        """All ways from zero: solutions, and iterations by name."""
        ways = {
            "undamped": self(loads),
            "backtracking": self(loads, solver=self.backtracking),
            **{f"{n} load steps": self.in_steps(loads, n) for n in (2, 3, 4)},
        }
        solution = torch.full_like(next(iter(ways.values()))[0], torch.nan)
        for y, iterations in ways.values():
            found = torch.isfinite(iterations) & solution.isnan().any(1)
            solution[found] = y[found]
        return solution, {name: iterations for name, (_, iterations) in ways.items()}


def train(beam, quick, seed=0):
    """A network that has seen loads and the energy, and the seconds that it took."""
    torch.manual_seed(seed)
    size = {"channels": 8, "layers": 2, "modes": 20} if quick else {}
    net = spon.OperatorNetwork(
        spon.Encoder(beam.B), spon.processors.Spectral(**size), spon.Decoder(beam.U, beam.clamped)
    )
    count, epochs = (160, 2) if quick else (10_000, 6)
    data = spon.Dataset.from_arrays(
        {"load": beam.loads(count, 0, wider=True)}, {}, {"load": beam.B}
    )
    loss = spon.losses.NewtonLoss(fem.torch_form(beam.energy, [beam.u, beam.b]), beam.clamped)
    start = time.perf_counter()
    spon.fit(net, data, loss, epochs=epochs, lr=1.5e-3, clip=1.0, validation=None, seed=seed)
    return net, count, epochs, time.perf_counter() - start


def measure(beam, net, loads, solution=None):
    """Errors and iterations of a network on loads, and its answers and the solutions."""
    zero = torch.zeros(len(loads), beam.U.dim(), dtype=torch.float64)
    residual = fem.torch_form(beam.residual, [beam.u, beam.b])
    free = torch.ones(beam.U.dim(), dtype=torch.bool).reshape(-1, 2)
    free[beam.clamped.nodes] = False
    sizes = residual(zero, loads)[:, free.reshape(-1)].norm(dim=1)
    newton = Newton(beam, 1e-8 * float(sizes.min()))
    solution, ways = newton.from_zero(loads)
    if solution.isnan().any():
        raise RuntimeError("A load has no solution by any way from zero: make the loads smaller.")
    with torch.no_grad():
        answer = net(loads.to(net.dtype)).double()
    found, warm = newton(loads, answer)
    difference = (found - solution).abs().amax(1)  # another branch would be another solution
    same = difference < 1e-6
    warm = torch.where(same, warm, torch.inf)
    fewest = torch.stack(list(ways.values())).amin(0)
    seconds = {}
    for name, run in {
        "network": lambda: net(loads.to(net.dtype)),
        "from_network": lambda: newton(loads, answer),
        "undamped": lambda: newton(loads),
    }.items():
        start = time.perf_counter()
        with torch.no_grad():
            run()
        seconds[name] = 1e3 * (time.perf_counter() - start) / len(loads)
    errors = {n: spon.losses.RelativeError(beam.U, n).per_sample(answer, solution)
              for n in ("L2", "H1")}  # fmt: skip
    tip = solution.reshape(len(loads), -1, 2).abs().amax(1)
    return {
        "unseen": len(loads),
        "dofs": beam.U.dim(),
        **{f"{n}_mean": float(e.mean()) for n, e in errors.items()},
        **{f"{n}_worst": float(e.max()) for n, e in errors.items()},
        "boundary_violation": float(answer[:, ~free.reshape(-1)].abs().max()),
        "deflection_mean": float(tip[:, 1].mean()),
        "deflection_least": float(tip[:, 1].min()),
        "shortening_mean": float(tip[:, 0].mean()),
        "iterations_from_network": _whole(warm),
        "iterations_from_zero": {name: _whole(i) for name, i in ways.items()},
        "at_most_half": int((2 * warm <= fewest).sum()),
        "at_most_half_of_undamped": int((2 * warm <= ways["undamped"]).sum()),
        "ms_a_sample": seconds,
    }, answer, solution  # fmt: skip


def _whole(iterations):
    """Iterations for JSON; None where there is no solution."""
    return [int(i) if np.isfinite(i) else None for i in iterations.tolist()]


def draw(beam, answer, row, solution, path, count=4):
    """The meshes bent by the solutions, and the network's answers as outlines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    P = VectorFunctionSpace(beam.U.mesh(), "CG", 1)
    corners = fem.interpolation_map(beam.U, P)
    at, cells = P.mesh().coordinates.dat.data_ro, P.cell_node_map().values
    outline = _outline(at)
    cold = row["iterations_from_zero"].values()
    fewest = [min(i for i in ways if i is not None) for ways in zip(*cold, strict=True)]
    figure, axes = plt.subplots(1, count, figsize=(3 * count, 3.4), sharey=True)
    for k, axis in enumerate(axes):
        y, true = answer[k], solution[k]
        shape, guess = (at + corners(u).numpy().reshape(-1, 2) for u in (true, y))
        axis.triplot(shape[:, 0], shape[:, 1], cells, color="0.65", lw=0.7)
        axis.plot(*guess[outline].T, color="C3", lw=1.2)
        axis.plot(*at[outline].T, color="k", lw=0.6, ls=":")
        axis.set_title(
            f"difference {float((y - true).norm() / true.norm()):.2%}\n"
            f"{row['iterations_from_network'][k]} iterations instead of {fewest[k]}",
            fontsize=9,
        )
        axis.set_aspect("equal")
        axis.axis("off")
    figure.suptitle(
        "Newton's solution (grey mesh), the network's answer (red), the beam at rest (dotted)",
        fontsize=10, y=1.09,
    )  # fmt: skip
    figure.savefig(path, dpi=110, bbox_inches="tight")


def _outline(at):
    """The numbers of the nodes around the beam at rest, in their order."""
    x, y = at.T
    low, right = np.flatnonzero(y == y.min()), np.flatnonzero(x == x.max())
    high, left = np.flatnonzero(y == y.max()), np.flatnonzero(x == x.min())
    return np.concatenate([
        low[np.argsort(x[low])], right[np.argsort(y[right])],
        high[np.argsort(-x[high])], left[np.argsort(-y[left])],
    ])  # fmt: skip


def main():
    """Train, measure, write the JSON."""
    options = arguments(__doc__, "--picture")
    torch.set_num_threads(1)
    beam = Beam((12, 3)) if options.quick else Beam()
    net, count, epochs, seconds = train(beam, options.quick)
    row, answer, solution = measure(beam, net, beam.loads(10 if options.quick else 100, 1))
    row = {"inputs": count, "epochs": epochs, "seconds": seconds, **row}
    print(
        f"L2 {row['L2_mean']:.2%} (worst {row['L2_worst']:.2%}), H1 {row['H1_mean']:.2%} (worst "
        f"{row['H1_worst']:.2%}); at most half the iterations in {row['at_most_half']} of "
        f"{row['unseen']}"
    )
    if options.picture:
        draw(beam, answer, row, solution, Path(options.picture))
    write("beam", [row], {}, options.output, options.quick)


if __name__ == "__main__":
    main()
