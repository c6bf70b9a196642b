"""A network inside a solve: a conductivity that depends on the temperature, from noisy data.

In a plate with holes, held at u = 0 at its left end and heated, the temperature solves

    -div(k(u) grad u) = f.

Nobody knows the law k(u). We put a small torch network in its place, inside the UFL form, solve
with Firedrake, and train the network through the solve until the solutions agree with temperatures
that were measured with one per cent of noise under three heatings.
"""

import json
import sys
from pathlib import Path

import matplotlib
import torch
from firedrake import *
from firedrake.pyplot import tripcolor

import spon

matplotlib.use("Agg")
import matplotlib.pyplot as plt

QUICK = "--quick" in sys.argv  # a minute's worth, for the tests
ROOT = Path(__file__).resolve().parent
OUT = ROOT / "output" / ("network_in_a_solve_quick" if QUICK else "network_in_a_solve")
OUT.mkdir(parents=True, exist_ok=True)

plate = spon.fem.read_mesh(ROOT.parent / "meshes" / "plate.msh", required_tags=("left", "right"))
V = FunctionSpace(plate, "CG", 1)
u, f, v = Function(V), Function(V), TestFunction(V)
x, cold = SpatialCoordinate(plate), DirichletBC(V, 0.0, 1)


class Law(torch.nn.Module):
    """A positive function of one variable."""

    def __init__(self):
        super().__init__()
        layers = torch.nn.Linear(1, 10), torch.nn.Tanh(), torch.nn.Linear(10, 1)
        self.net = torch.nn.Sequential(*layers).double()

    def forward(self, u):
        return torch.nn.functional.softplus(self.net(u))


# The network is a coefficient of the form; Newton's method gets its derivative at every point.
torch.manual_seed(0)
law = Law()
k = spon.fem.external_operator(law, operands=u, degree=4)
equation = k * inner(grad(u), grad(v)) * dx - f * v * dx == 0
solution = spon.fem.solution_operator(equation, u, cold, inputs=[f])

# The data: the true law in plain UFL, and noise.
heatings = [0.6 + 0 * x[0], 0.5 * (1 + sin(4 * x[0])), 0.8 * exp(-4 * (x[1] - 0.5) ** 2)]
sources = spon.fem.to_tensor([Function(V).interpolate(h) for h in heatings])
w, measured = Function(V), []
for source in spon.fem.to_function(sources, V):
    F = (0.5 + 2 * w**2) * inner(grad(w), grad(v)) * dx(degree=4) - source * v * dx
    solve(F == 0, w, cold, solver_parameters={"snes_linesearch_type": "bt"})
    measured.append(spon.fem.to_tensor(w))
measured = torch.stack(measured)
largest = float(measured.max())
measured += 0.01 * measured.std() * torch.randn_like(measured)

# Training: the gradient goes through the adjoint of the solve into the weights.
temperatures = torch.linspace(0.0, largest, 100, dtype=torch.float64)[:, None]
exact, before = 0.5 + 2 * temperatures**2, law(temperatures).detach()
optimiser = torch.optim.LBFGS(
    law.parameters(), max_iter=10 if QUICK else 80, history_size=30, line_search_fn="strong_wolfe"
)


def closure():
    optimiser.zero_grad()
    loss = ((solution(sources) - measured) ** 2).mean() / measured.var()
    loss.backward()
    return loss


optimiser.step(closure)
after = law(temperatures).detach()
error = float((after - exact).norm() / exact.norm())
(OUT / "report.json").write_text(json.dumps({"law_error": error}))
print(f"relative error of the law over the range seen: {100 * error:.2g} %")

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
colours = tripcolor(spon.fem.to_function(measured[0], V), axes=left, cmap="inferno")
figure.colorbar(colours, ax=left, label="u, as measured", orientation="horizontal", aspect=40)
left.set(aspect="equal", title="temperature with noise")
left.axis("off")
right.plot(temperatures, exact, "k", lw=4, alpha=0.3, label="true law")
right.plot(temperatures, before, ":", label="network before")
right.plot(temperatures, after, label=f"network after, {100 * error:.1f} % off")
right.set(xlabel="u", ylabel="k(u)", title="conductivity")
right.legend(frameon=False)
figure.savefig(OUT / "law.png", dpi=150)
