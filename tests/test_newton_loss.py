"""The Newton loss against exact solutions, assembled matrices and Newton's rate; `fit` with it."""

import copy

import numpy as np
import pytest
import torch
from families import random_function
from firedrake import (
    Constant,
    DirichletBC,
    Function,
    FunctionSpace,
    Identity,
    NonlinearVariationalProblem,
    NonlinearVariationalSolver,
    RectangleMesh,
    TestFunction,
    TrialFunction,
    UnitSquareMesh,
    VectorFunctionSpace,
    assemble,
    conditional,
    derivative,
    det,
    dx,
    grad,
    gt,
    inner,
    ln,
    max_value,
    norm,
    solve,
)

import spon
from spon import fem, losses


class Nonlinear:
    """Energy of -div((1 + (1 + k^2) |grad u|^2) grad u) = 8, or of the linear part alone."""

    def __init__(self, cubic=1.0, n=5):
        mesh = UnitSquareMesh(n, n)
        self.K, self.U = FunctionSpace(mesh, "DG", 0), FunctionSpace(mesh, "CG", 1)
        self.k, self.u = Function(self.K), Function(self.U)
        self.bcs = DirichletBC(self.U, 0.5, "on_boundary")
        s = inner(grad(self.u), grad(self.u))
        self.energy = (0.5 * (1 + self.k**2) * (s + cubic * s**2 / 2) - 8 * self.u) * dx
        self.form = fem.torch_form(self.energy, [self.u, self.k])

    def solved(self, count=3):
        """Inputs and Firedrake's solutions."""
        xs, ys = [], []
        v = TestFunction(self.U)
        for seed in range(count):
            self.k.assign(random_function(self.K, seed))
            self.u.assign(0.0)
            tight = {"snes_rtol": 1e-13, "snes_atol": 1e-13}
            F = derivative(self.energy, self.u, v)
            solve(F == 0, self.u, self.bcs, solver_parameters=tight)
            xs.append(fem.to_tensor(self.k))
            ys.append(fem.to_tensor(self.u))
        return torch.stack(xs), torch.stack(ys)

    def noise(self, like, seed=0):
        """Smooth displacements that vanish on the boundary."""
        mesh = self.U.mesh()
        x, y = (c / 1.0 for c in mesh.coordinates.dat.data_ro.T)
        rng, bump = np.random.default_rng(seed), x * (1 - x) * y * (1 - y)
        rows = [bump * (rng.normal() + rng.normal() * x + rng.normal() * y) for _ in like]
        return 4 * torch.from_numpy(np.stack(rows))


def error(U, y, exact, kind):
    """Relative error of one sample by Firedrake."""
    whole = fem.to_function(exact, U)
    return norm(fem.to_function(y - exact, U), kind) / norm(whole, kind)


@pytest.mark.parametrize("kind", ["H1", "L2"])
@pytest.mark.parametrize("steps", [1, 3])
def test_for_a_quadratic_energy_it_is_the_relative_error(kind, steps):
    problem = Nonlinear(cubic=0.0)
    xs, exact = problem.solved()
    loss = losses.NewtonLoss(problem.form, problem.bcs, kind, steps)
    y = exact + problem.noise(exact)
    torch.testing.assert_close(loss.target(y, [xs]), exact, rtol=0, atol=1e-12)
    values = loss.per_sample(y, [xs])
    for value, row, true in zip(values, y, exact, strict=True):
        assert float(value) == pytest.approx(error(problem.U, row, true, kind), rel=1e-9)
    assert float(loss(exact, [xs])) < 1e-12


@pytest.mark.parametrize(("steps", "rate"), [(1, 2), (2, 4)])
def test_it_estimates_the_error_at_the_rate_of_newtons_method(steps, rate):
    problem = Nonlinear()
    xs, exact = problem.solved(1)
    loss = losses.NewtonLoss(problem.form, problem.bcs, steps=steps)
    noise, missed, left = problem.noise(exact), [], []
    for scale in (0.08, 0.04, 0.02):
        y = exact + scale * noise
        missed.append(abs(float(loss(y, [xs])) - error(problem.U, y[0], exact[0], "H1")))
        left.append(error(problem.U, loss.target(y, [xs])[0], exact[0], "H1"))
    for values in (missed, left):
        assert min(np.log2(np.divide(values[:-1], values[1:]))) > rate - 0.25, values


def test_the_gradient_is_that_of_the_energy_preconditioned():
    problem = Nonlinear()
    xs, exact = problem.solved(2)
    U, u = problem.U, problem.u
    loss = losses.NewtonLoss(problem.form, problem.bcs, steps=1)
    y = (exact + 0.05 * problem.noise(exact)).requires_grad_()
    target = loss.target(y, [xs])
    # Half the squared distance, from the relative one.
    G = assemble(inner(TrialFunction(U), TestFunction(U)) * dx
                 + inner(grad(TrialFunction(U)), grad(TestFunction(U))) * dx).M.values  # fmt: skip
    size = (target * (target @ torch.from_numpy(G))).sum(1)
    half = (loss.per_sample(y, [xs]).square() * size).sum() / 2
    (gradient,) = torch.autograd.grad(half, y)
    for row, x, g in zip(y.detach(), xs, gradient, strict=True):
        fem.fill(problem.k, x.numpy())
        fem.fill(u, row.numpy())
        first = derivative(problem.energy, u, TestFunction(U))
        slope = assemble(first, bcs=DirichletBC(U, 0, "on_boundary")).dat.data_ro
        hessian = assemble(derivative(first, u, TrialFunction(U)), bcs=problem.bcs).M.values
        expected = G @ np.linalg.solve(hessian, slope)
        np.testing.assert_allclose(g.numpy(), expected, rtol=0, atol=1e-11 * abs(expected).max())


def test_steps_lead_down_from_anywhere_to_a_minimum():
    # A double well with an indefinite Hessian between the wells.
    mesh = UnitSquareMesh(3, 3)
    U = FunctionSpace(mesh, "CG", 1)
    u, tilt = Function(U), Constant(0.0)
    energy = ((u**2 - 1) ** 2 + 0.01 * inner(grad(u), grad(u)) - tilt * u) * dx
    form = fem.torch_form(energy, [u, tilt])
    loss = losses.NewtonLoss(form, steps=1)
    rng = torch.Generator().manual_seed(0)
    y = 4 * torch.rand(40, U.dim(), generator=rng, dtype=torch.float64) - 2
    y[0] = 0.01  # the top between the wells, where Newton's direction leads upwards
    x = 0.1 * torch.ones(40, 1, dtype=torch.float64)
    before = form(y, x)
    after = form(loss.target(y, [x]), x)
    assert (after < before).all()
    end = loss.target(y, [x], steps=60)
    slopes = torch.func.grad(lambda z: form(z, x).sum())(end)
    assert float(slopes.abs().max()) < 1e-10
    curvature = torch.func.hessian(lambda z: form(z[None], x[:1])[0])
    assert min(float(torch.linalg.eigvalsh(curvature(z)).min()) for z in end[:3]) > 0
    assert float(end[0].min()) > 0.9


def test_where_the_hessian_is_singular_the_gradient_leads_down():
    U = FunctionSpace(UnitSquareMesh(3, 3), "CG", 1)
    u, load = Function(U), Constant(0.0)
    form = fem.torch_form((u**4 / 4 - load * u) * dx, [u, load])
    loss = losses.NewtonLoss(form, steps=1)
    zero, x = torch.zeros(2, U.dim()).double(), torch.tensor([[1.0], [-8.0]]).double()
    step = loss.target(zero, [x])
    assert (form(step, x) < form(zero, x)).all()
    # The Riesz representative of a constant load in H1 is that constant.
    lengths = step / x
    torch.testing.assert_close(lengths, lengths[:, :1].expand_as(lengths))
    exact = torch.tensor([[1.0], [-2.0]]).double().expand_as(zero)  # u^3 = load
    torch.testing.assert_close(loss.target(zero, [x], steps=12), exact)


def test_a_prediction_without_an_energy_is_not_mistaken_for_a_solution():
    problem = Nonlinear()
    xs, exact = problem.solved(2)
    loss = losses.NewtonLoss(problem.form, problem.bcs)
    y = exact.clone()
    y[1, 12] = torch.nan
    values = loss.per_sample(y, [xs])
    assert float(values[0]) < 1e-9 and torch.isnan(values[1])
    y[1, 12] = 1e200
    assert torch.isnan(loss.per_sample(y, [xs])[1])


def test_single_precision_boundary_and_copies():
    problem = Nonlinear()
    xs, exact = problem.solved(2)
    loss = losses.NewtonLoss(problem.form, problem.bcs)
    y = exact + 0.1 * problem.noise(exact)
    y[:, 0] = 0.25  # a corner: values that the decoder gives are kept
    assert (loss.target(y, [xs])[:, 0] == 0.25).all()
    single = loss.per_sample(y.float(), [xs.float()])
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), loss.per_sample(y, [xs]), rtol=1e-4, atol=0)
    torch.testing.assert_close(copy.deepcopy(loss)(y, [xs]), loss(y, [xs]))
    assert "steps=2, norm='H1'" in repr(loss)


@pytest.mark.parametrize(
    ("call", "exception", "message"),
    [
        (lambda p, r: losses.NewtonLoss(r), ValueError, "takes an energy, a 0-form; got a residua"),
        (lambda p, r: losses.NewtonLoss("E"), TypeError, "got str: torch_form"),
        (lambda p, r: losses.NewtonLoss(p.form, steps=0), ValueError, "1 or more, got steps=0"),
        (lambda p, r: losses.NewtonLoss(p.form, steps=1.5), ValueError, "more, got steps=1.5"),
        (lambda p, r: losses.NewtonLoss(p.form, norm="H2"), ValueError, "Unknown norm 'H2'"),
        (
            lambda p, r: losses.NewtonLoss(p.form, DirichletBC(p.K, 0, 1)),
            ValueError,
            "belongs to DG 0",
        ),
        (
            lambda p, r: losses.NewtonLoss(p.form).per_sample(torch.zeros(2, 7), [torch.zeros(2)]),
            ValueError,
            r"shape \(2, 7\), expected \(batch, 36\)",
        ),
    ],
)
def test_wrong_arguments_say_what_was_given(call, exception, message):
    problem = Nonlinear()
    first = derivative(problem.energy, problem.u, TestFunction(problem.U))
    with pytest.raises(exception, match=message):
        call(problem, fem.torch_form(first, [problem.u, problem.k]))


def beam(cells=(8, 2)):
    """A neo-Hookean cantilever under a load along its axis and across."""
    mesh = RectangleMesh(*cells, 1.0, 0.25)
    B, U = VectorFunctionSpace(mesh, "DG", 0), VectorFunctionSpace(mesh, "CG", 2)
    b, u = Function(B), Function(U)
    clamped = DirichletBC(U, 0, 1)
    F = Identity(2) + grad(u)
    J, low = det(F), 0.3
    log = conditional(gt(J, low), ln(max_value(J, low)), np.log(low) + (J - low) / low)
    mu, lam = 0.4, 0.6
    density = mu / 2 * (inner(F, F) - 2 - 2 * log) + lam / 2 * log**2
    return (density - inner(b, u)) * dx(degree=4), u, b, clamped


def test_a_bent_beam_is_learned_from_its_energy():
    energy, u, b, clamped = beam()
    U, B = u.function_space(), b.function_space()
    form = fem.torch_form(energy, [u, b])
    residual = derivative(energy, u, TestFunction(U))

    def loads(count, seed, margin=0.0):
        rng, range_ = np.random.default_rng(seed), (0.01 + margin, 0.02 - margin)
        along, across = -rng.uniform(*range_, count), rng.uniform(*range_, count)
        rows = np.stack([along, across], axis=1)[:, None].repeat(B.dim() // 2, axis=1)
        return torch.from_numpy(rows.reshape(count, -1))

    data = spon.Dataset.from_arrays({"b": loads(64, 0)}, {}, {"b": B})
    torch.manual_seed(0)
    net = spon.OperatorNetwork(
        spon.Encoder(B),
        spon.processors.Spectral(channels=8, layers=2, modes=20),
        spon.Decoder(U, clamped),
    )
    loss = losses.NewtonLoss(form, clamped)
    # After 200 epochs rounding decided whether one sample was still so far off (2.7 %) that two
    # steps from it lead past the solution.
    spon.fit(net, data, loss, epochs=300, lr=3e-3, validation=None, clip=1.0, progress=False)
    net.double()
    unseen = loads(8, 1, margin=0.002)
    with torch.no_grad():
        y = net(unseen)
    # PETSc's Newton method in ten load steps is the reference.
    problem = NonlinearVariationalProblem(residual, u, clamped)
    options = {"snes_atol": 1e-12, "snes_linesearch_type": "basic", "ksp_type": "preonly",
               "pc_type": "lu"}  # fmt: skip
    newton = NonlinearVariationalSolver(problem, solver_parameters=options)
    exact = []
    for row in unseen:
        u.assign(0.0)
        for part in np.linspace(0.1, 1.0, 10):
            fem.fill(b, part * row.numpy())
            newton.solve()
        exact.append(fem.to_tensor(u))
    exact = torch.stack(exact)
    assert float(exact[:, 1::2].amax(1).min()) > 0.3  # large deflections
    errors = losses.RelativeError(U, "H1").per_sample(y, exact)
    assert float(errors.mean()) < 0.03
    assert float(loss(y, [unseen])) == pytest.approx(float(errors.mean()), rel=0.05)
    fixed = clamped.nodes
    assert float(y.reshape(8, -1, 2)[:, fixed].abs().max()) == 0.0
    # One absolute tolerance for both starts.
    options = {"snes_linesearch_type": "basic", "snes_rtol": 0.0, "snes_stol": 0.0,
               "snes_atol": 1e-11}  # fmt: skip
    solver = fem.NonlinearSolver(residual, u, b, clamped, options, on_failure="mask")
    solver(unseen)
    cold = torch.where(solver.report.converged, solver.report.iterations, 1000)
    solver(unseen, guess=y)
    assert solver.report.converged.all()
    assert (2 * solver.report.iterations <= cold).all()
