"""Nonlinear solves of batches against Firedrake, manufactured solutions and Taylor's formula."""

from __future__ import annotations

import firedrake as fd
import numpy as np
import pytest
import torch
from firedrake import dx, grad, inner
from memory import least_growth
from processes import run_script
from taylor import rates

from spon.fem.solvers import NonlinearSolver
from spon.fem.spaces import to_function, to_tensor

BATCH = 3
# Options that Newton's method of the library does not know ask for PETSc's SNES.
ENGINES = {
    "newton": None,
    "snes": {"ksp_type": "preonly", "pc_type": "lu", "snes_rtol": 1e-12},
}


def uniform(*shape, seed=0, low=0.0, high=1.0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(low, high, shape))


def copies(*xs):
    return [x.detach().clone().requires_grad_() for x in xs]


class Diffusion:
    """Nonlinear diffusion and reaction with a coefficient, a source and a constant."""

    def __init__(self, n=5, degree=2):
        self.mesh = fd.UnitSquareMesh(n, n - 1)
        x, y = fd.SpatialCoordinate(self.mesh)
        V = self.V = fd.FunctionSpace(self.mesh, "CG", degree)
        K = fd.FunctionSpace(self.mesh, "DG", 0)
        v, self.u = fd.TestFunction(V), fd.Function(V, name="u")
        self.k, self.f, self.c = fd.Function(K, name="k"), fd.Function(V, name="f"), fd.Constant(1)
        u, k = self.u, self.k
        self.F = (1 + k * u**2) * inner(grad(u), grad(v)) * dx
        self.F += self.c * u**3 * v * dx - 10 * self.f * v * dx
        g = fd.Function(V).interpolate(fd.sin(3 * x) + y)
        self.bcs = [fd.DirichletBC(V, g, 1), fd.DirichletBC(V, 2.0, 3)]
        self.kappa = uniform(BATCH, K.dim(), low=0.5)
        self.source = uniform(BATCH, V.dim(), seed=1, low=-1.0)
        self.constant = uniform(BATCH, 1, seed=2, low=0.5)
        self.boundary = uniform(BATCH, V.dim(), seed=3, low=-1.0)
        self.inputs = [self.k, self.f, self.c]
        self.values = [self.kappa, self.source, self.constant]

    def firedrake(self, i, bcs=None):
        self.k.assign(to_function(self.kappa[i], self.k.function_space()))
        self.f.assign(to_function(self.source[i], self.V))
        self.c.assign(float(self.constant[i]))
        w = fd.Function(self.V)
        F = fd.replace(self.F, {self.u: w})
        bcs = self.bcs if bcs is None else bcs
        fd.solve(F == 0, w, bcs, solver_parameters={"snes_rtol": 1e-13})
        return to_tensor(w)


class Block:
    """A neo-Hookean block that is pressed together."""

    def __init__(self):
        self.mesh = fd.UnitSquareMesh(4, 4)
        V = self.V = fd.VectorFunctionSpace(self.mesh, "CG", 1)
        self.u, v = fd.Function(V), fd.TestFunction(V)
        F = fd.Identity(2) + grad(self.u)
        J = fd.det(F)
        energy = (inner(F, F) - 2 - 2 * fd.ln(J)) * dx + 2 * fd.ln(J) ** 2 * dx
        self.F = fd.derivative(energy, self.u, v)
        self.bcs = [fd.DirichletBC(V, (0, 0), 3), fd.DirichletBC(V, (0, 0), 4)]
        self.top = self.bcs[1].nodes

    def pressed(self, *by):
        boundary = torch.zeros(len(by), self.V.dim(), dtype=torch.float64)
        for row, amount in zip(boundary, by, strict=True):
            row.view(-1, 2)[self.top, 1] = -amount
        return boundary


@pytest.fixture(scope="module")
def diffusion():
    return Diffusion()


@pytest.fixture(scope="module")
def block():
    return Block()


def solver_of(problem, engine="newton", **options):
    return NonlinearSolver(
        problem.F, problem.u, problem.inputs, problem.bcs, ENGINES[engine], **options
    )


@pytest.mark.parametrize("engine", list(ENGINES))
def test_conditions_with_their_own_nodes_hold_there_only(engine):
    class Pin(fd.DirichletBC):
        nodes = property(lambda self: np.array([0], dtype=np.int32))

    p = Diffusion()
    solver = NonlinearSolver(p.F, p.u, p.inputs, [Pin(p.V, 0.5, "on_boundary")], ENGINES[engine])
    found = solver(*p.values)
    expected = p.firedrake(0, [Pin(p.V, 0.5, "on_boundary")])
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("engine", ENGINES)
def test_solutions_agree_with_firedrake(diffusion, engine):
    solver = solver_of(diffusion, engine)
    x = solver(*diffusion.values)
    inside = solver(*diffusion.values, boundary=diffusion.boundary)
    for i in range(BATCH):
        torch.testing.assert_close(x[i], diffusion.firedrake(i), rtol=0, atol=1e-11)
        g = to_function(diffusion.boundary[i], diffusion.V)
        expected = diffusion.firedrake(i, fd.DirichletBC(diffusion.V, g, (1, 3)))
        torch.testing.assert_close(inside[i], expected, rtol=0, atol=1e-11)
    nodes = np.unique(np.concatenate([bc.nodes for bc in diffusion.bcs]))
    assert torch.equal(inside[:, nodes], diffusion.boundary[:, nodes])


def test_a_manufactured_solution_converges_at_the_order_of_the_element():
    errors = []
    for n in (4, 8, 16):
        mesh = fd.UnitSquareMesh(n, n)
        V = fd.FunctionSpace(mesh, "CG", 2)
        x, y = fd.SpatialCoordinate(mesh)
        u, v, f = fd.Function(V), fd.TestFunction(V), fd.Function(fd.FunctionSpace(mesh, "CG", 5))
        exact = fd.sin(fd.pi * x) * y * (1 - y)
        f.interpolate(-fd.div((1 + exact**2) * grad(exact)))
        F = (1 + u**2) * inner(grad(u), grad(v)) * dx - f * v * dx
        solver = NonlinearSolver(F, u, f, fd.DirichletBC(V, 0, "on_boundary"))
        found = to_function(solver(to_tensor(f)), V)
        errors.append(fd.errornorm(exact, found))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (orders > 2.9).all(), orders


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_agree_with_pyadjoint(diffusion, engine):
    from firedrake.adjoint import Control, ReducedFunctional, continue_annotation, pause_annotation
    from pyadjoint.tape import Tape, set_working_tape

    source = copies(diffusion.source)[0]
    (
        solver_of(diffusion, engine)(diffusion.kappa, source, diffusion.constant) ** 3
    ).sum().backward()
    with set_working_tape(Tape()):
        diffusion.firedrake(1)
        f = diffusion.f.copy(deepcopy=True)
        continue_annotation()
        try:
            w = fd.Function(diffusion.V)
            F = fd.replace(diffusion.F, {diffusion.u: w, diffusion.f: f})
            fd.solve(F == 0, w, diffusion.bcs, solver_parameters={"snes_rtol": 1e-13})
            weights = uniform(diffusion.V.dim(), seed=9)
            chosen = to_function(weights, diffusion.V.dual())
            functional = ReducedFunctional(fd.assemble(fd.action(chosen, w)), Control(f))
        finally:
            pause_annotation()
        expected = to_tensor(functional.derivative())
    f = copies(diffusion.source)[0]
    x = solver_of(diffusion, engine)(diffusion.kappa, f, diffusion.constant)
    (x[1] * weights).sum().backward()
    torch.testing.assert_close(f.grad[1], expected, rtol=1e-8, atol=1e-10)
    assert not f.grad[0].any()
    assert source.grad.abs().max() > 0


def check_taylor(solver, inputs, scale=5e-3):
    weights = uniform(*solver(*inputs).shape, seed=9, low=-1.0)
    for i in range(len(inputs)):

        def value(x, i=i):
            first = solver(*inputs[:i], x, *inputs[i + 1 :])
            second = solver(*inputs[:i], 1.01 * x, *inputs[i + 1 :])
            return (weights * torch.sin(first)).sum() + 0.1 * (second**3).sum()

        first, second = rates(value, inputs[i], scale)
        assert first >= 1.95 and second >= 2.95, (i, first, second)


@pytest.mark.parametrize("engine", ENGINES)
def test_first_and_second_derivatives(diffusion, engine):
    solver = solver_of(diffusion, engine)
    check_taylor(
        lambda k, f, c, g: solver(k, f, c, boundary=g), [*diffusion.values, diffusion.boundary]
    )


def test_derivatives_with_respect_to_the_coordinates(diffusion):
    p = diffusion
    solver = NonlinearSolver(p.F, p.u, [p.mesh, p.f], p.bcs)
    nodes = to_tensor(p.mesh.coordinates) + 0.02 * uniform(BATCH, 2 * 30, seed=7)
    check_taylor(solver, [nodes, p.source])


def test_derivatives_of_a_pressed_block(block):
    solver = NonlinearSolver(block.F, block.u, (), block.bcs)
    check_taylor(lambda g: solver(boundary=g), [block.pressed(0.02, 0.05)])


def test_several_calls_before_one_backward_pass(diffusion):
    solver = solver_of(diffusion)
    together = [copies(*(x * (1 + 0.2 * i) for x in diffusion.values)) for i in range(3)]
    sum((solver(*xs) ** 3).sum() for xs in together).backward()
    for xs in together:
        alone = copies(*xs)
        (solver(*alone) ** 3).sum().backward()
        for x, y in zip(xs, alone, strict=True):
            torch.testing.assert_close(x.grad, y.grad, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_good_guess_saves_iterations_and_changes_nothing(diffusion, engine):
    solver = solver_of(diffusion, engine)
    x = solver(*diffusion.values)
    cold = solver.report.iterations
    near = solver(*diffusion.values, guess=x + 1e-3 * uniform(BATCH, diffusion.V.dim(), seed=5))
    assert (2 * solver.report.iterations <= cold).all()
    torch.testing.assert_close(near, x, rtol=0, atol=1e-11)
    solver(*diffusion.values, guess=x)
    assert (solver.report.iterations <= 1).all() and solver.report.converged.all()


def test_a_batch_of_many_is_the_same_as_one_after_the_other(diffusion):
    source = uniform(70, diffusion.V.dim(), seed=6, low=-3.0)
    solver = NonlinearSolver(diffusion.F, diffusion.u, diffusion.f, diffusion.bcs)
    x = solver(source)
    assert solver.report.iterations.unique().numel() > 1
    for i in (0, 33, 69):
        torch.testing.assert_close(solver(source[i]), x[i], rtol=0, atol=1e-13)


def test_a_mixed_problem_with_pivots():
    mesh = fd.UnitSquareMesh(5, 4)
    Z = fd.VectorFunctionSpace(mesh, "CG", 2) * fd.FunctionSpace(mesh, "CG", 1)
    z, (v, q) = fd.Function(Z), fd.TestFunctions(Z)
    u, p = fd.split(z)
    nu = fd.Constant(0.1)
    F = nu * inner(grad(u), grad(v)) * dx + inner(fd.dot(grad(u), u), v) * dx
    F += -p * fd.div(v) * dx - q * fd.div(u) * dx
    y = fd.SpatialCoordinate(mesh)[1]
    inflow = fd.as_vector([y * (1 - y), 0])
    bcs = [fd.DirichletBC(Z.sub(0), inflow, 1), fd.DirichletBC(Z.sub(0), (0, 0), (3, 4))]
    solver = NonlinearSolver(F, z, nu, bcs)
    values = torch.tensor([[0.1], [0.05]], dtype=torch.float64)
    found = solver(values)
    for i in range(2):
        nu.assign(float(values[i]))
        w = fd.Function(Z)
        fd.solve(fd.replace(F, {z: w}) == 0, w, bcs, solver_parameters={"snes_rtol": 1e-13})
        torch.testing.assert_close(found[i], to_tensor(w), rtol=0, atol=1e-10)
    check_taylor(solver, [values])


def test_failures_are_raised_masked_or_stepped(block):
    # The lower rows of cells cannot take what the upper one is pressed by in one step.
    pressed = block.pressed(0.05, 0.6)
    message = (
        r"1 of 2 samples did not converge \(1\).*residual is NaN.*\"load_stepping\" or \"mask\""
    )
    with pytest.raises(fd.ConvergenceError, match=message):
        NonlinearSolver(block.F, block.u, (), block.bcs)(boundary=pressed)

    masking = NonlinearSolver(block.F, block.u, (), block.bcs, on_failure="mask")
    g = pressed.clone().requires_grad_()
    x = masking(boundary=g)
    assert x[1].isnan().all() and x[0].isfinite().all()
    assert masking.report.converged.tolist() == [True, False] and masking.report.failed == [1]
    (x[0] ** 2).sum().backward()
    alone = block.pressed(0.05).requires_grad_()
    (masking(boundary=alone) ** 2).sum().backward()
    torch.testing.assert_close(g.grad[0], alone.grad[0], rtol=1e-10, atol=1e-13)
    assert not g.grad[1].any()

    stepping = NonlinearSolver(block.F, block.u, (), block.bcs, on_failure="load_stepping")
    y = stepping(boundary=pressed)
    assert stepping.report.load_steps[0] == 0 and stepping.report.load_steps[1] > 1
    torch.testing.assert_close(y[0], x[0].detach(), rtol=0, atol=1e-12)
    # The block pressed by Firedrake, in steps of our own.
    w = fd.Function(block.V)
    amount = fd.Constant(0.0)
    bcs = [block.bcs[0], fd.DirichletBC(block.V, fd.as_vector([0, -amount]), 4)]
    problem = fd.NonlinearVariationalProblem(fd.replace(block.F, {block.u: w}), w, bcs)
    solver = fd.NonlinearVariationalSolver(problem, solver_parameters={"snes_rtol": 1e-12})
    for value in np.linspace(0.015, 0.6, 40):
        amount.assign(value)
        solver.solve()
    torch.testing.assert_close(y[1], to_tensor(w), rtol=0, atol=1e-10)


def test_a_failed_sample_does_not_disturb_second_derivatives(block):
    masking = NonlinearSolver(block.F, block.u, (), block.bcs, on_failure="mask")
    products = []
    for pressed in (block.pressed(0.05, 0.6), block.pressed(0.05)):
        g = pressed.requires_grad_()
        (first,) = torch.autograd.grad((masking(boundary=g)[0] ** 3).sum(), g, create_graph=True)
        (second,) = torch.autograd.grad((first * torch.cos(g)).sum(), g)
        products.append(second)
    torch.testing.assert_close(products[0][0], products[1][0], rtol=1e-9, atol=1e-12)
    assert products[0].isfinite().all()


def test_load_stepping_gives_up_with_a_reason(block):
    stepping = NonlinearSolver(block.F, block.u, (), block.bcs, on_failure="load_stepping")
    with pytest.raises(fd.ConvergenceError, match=r"load stepping stopped at \d+\.\d%.*guess="):
        stepping(boundary=block.pressed(1.2))


def test_options_of_petsc_are_honoured(diffusion):
    p = diffusion
    few = NonlinearSolver(p.F, p.u, p.inputs, p.bcs, {"snes_max_it": 1})
    with pytest.raises(fd.ConvergenceError, match=r"3 of 3 samples.*snes_max_it = 1 iterations"):
        few(*p.values)
    few = NonlinearSolver(p.F, p.u, p.inputs, p.bcs, {"snes_max_it": 1, "pc_type": "lu"})
    with pytest.raises(fd.ConvergenceError, match="SNES DIVERGED_MAX_IT"):
        few(*p.values)
    loose = NonlinearSolver(p.F, p.u, p.inputs, p.bcs, {"snes_rtol": 1e-2})
    loose(*p.values)
    exact = solver_of(p)
    exact(*p.values)
    assert (loose.report.iterations < exact.report.iterations).all()
    full = NonlinearSolver(p.F, p.u, p.inputs, p.bcs, {"snes_linesearch_type": "basic"})
    torch.testing.assert_close(full(*p.values), exact(*p.values), rtol=0, atol=1e-9)


def test_a_singular_tangent_is_a_failure_of_the_sample():
    mesh = fd.UnitSquareMesh(3, 3)
    V = fd.FunctionSpace(mesh, "CG", 1)
    u, v, f = fd.Function(V), fd.TestFunction(V), fd.Function(V)
    F = u**2 * v * dx - f * v * dx
    solver = NonlinearSolver(F, u, f)
    ones = torch.ones(V.dim(), dtype=torch.float64)
    with pytest.raises(fd.ConvergenceError, match="the tangent is singular"):
        solver(ones)
    torch.testing.assert_close(solver(4 * ones, guess=ones), 2 * ones, rtol=0, atol=1e-11)


def test_the_problem_of_the_user_is_not_changed(diffusion):
    p = diffusion
    before = [to_tensor(f) for f in (p.u, p.k, p.f, p.mesh.coordinates)]
    moved = to_tensor(p.mesh.coordinates) * 1.1
    for options in ENGINES.values():
        NonlinearSolver(p.F, p.u, [p.mesh, p.f], p.bcs, options)(moved, p.source)
    for f, x in zip((p.u, p.k, p.f, p.mesh.coordinates), before, strict=True):
        assert torch.equal(to_tensor(f), x)


def test_single_precision_and_single_samples(diffusion):
    solver = solver_of(diffusion)
    x = solver(*diffusion.values)
    single = solver(*(v.float() for v in diffusion.values))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), x, rtol=1e-5, atol=1e-5)
    one = solver(*(v[1] for v in diffusion.values))
    torch.testing.assert_close(one, x[1], rtol=0, atol=1e-12)


def test_memory_stays_flat():
    small = Diffusion(3, 1)
    solver = solver_of(small)
    xs = copies(*small.values)

    grown, _ = least_growth(lambda: solver(*xs).sum().backward(), 150)
    assert grown < 5e5


def test_samples_that_fail_do_not_poison_the_gradients_of_the_others():
    mesh = fd.UnitSquareMesh(3, 3)
    V = fd.FunctionSpace(mesh, "CG", 1)
    w, f, v, c = fd.Function(V), fd.Function(V), fd.TestFunction(V), fd.Constant(1.0)
    form = (1 + w**2) * inner(grad(w), grad(v)) * dx - c * fd.sqrt(f) * v * dx
    bc = fd.DirichletBC(V, 0, "on_boundary")
    solver = NonlinearSolver(form, w, [f, c], bc, on_failure="mask")
    good = torch.ones(1, V.dim(), dtype=torch.float64)
    gradients = []
    for sources in (good, torch.cat([good, -good])):
        x = sources.clone().requires_grad_()
        t = torch.ones(1, dtype=torch.float64, requires_grad=True)
        y = solver(x, t)
        loss = (y[solver.report.converged] ** 2).sum()
        first = torch.autograd.grad(loss, (x, t), create_graph=True)
        second = torch.autograd.grad((first[1] ** 2).sum(), t)
        gradients.append((first[0][0].detach(), first[1].detach(), second[0]))
        assert not first[0][1:].any()
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)


def test_snes_keeps_constants_and_coordinates_as_they_were():
    mesh = fd.UnitSquareMesh(3, 3)
    V = fd.FunctionSpace(mesh, "CG", 1)
    w, f, v, k = fd.Function(V), fd.Function(V), fd.TestFunction(V), fd.Constant(3.0)
    form = k * (1 + w**2) * inner(grad(w), grad(v)) * dx - f * v * dx
    bc = fd.DirichletBC(V, 0, "on_boundary")
    options = {"ksp_type": "preonly", "pc_type": "lu", "mat_type": "aij", "snes_rtol": 1e-12}
    solver = NonlinearSolver(form, w, [f], bc, solver_parameters=options)
    x = torch.ones(1, V.dim(), dtype=torch.float64)
    before = solver(x)
    k.assign(30.0)
    mesh.coordinates.dat.data[:] *= 2
    torch.testing.assert_close(solver(x), before, rtol=1e-9, atol=1e-12)
    assert mesh.coordinates.dat.data_ro.max() == 2.0


ENSEMBLE = """
import torch
from firedrake import *
from spon.fem.solvers import LinearSolver, NonlinearSolver, SingularMatrixError

ensemble = Ensemble(COMM_WORLD, 1)
mesh = UnitSquareMesh(4, 4, comm=ensemble.comm)
V = FunctionSpace(mesh, "CG", 1)
u, w, v, f, k = TrialFunction(V), Function(V), TestFunction(V), Function(V), Function(V)
bcs = DirichletBC(V, 0, 1)
torch.manual_seed(0)
x = torch.rand(5, V.dim(), dtype=torch.float64, requires_grad=True)


def derivatives(solver, x):
    y = solver(x)
    (first,) = torch.autograd.grad((y[y.isfinite()] ** 3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad((first**2).sum(), x)
    return y.nan_to_num(-1.0), first, second


F = (1 + w**2) * inner(grad(w), grad(v)) * dx - f * v * dx
a = (1 + k) * inner(grad(u), grad(v)) * dx
for make in (
    lambda **how: NonlinearSolver(F, w, f, bcs, {"snes_max_it": 3}, on_failure="mask", **how),
    lambda **how: LinearSolver(a, bcs, k, v * dx, **how),
):
    # The last sample needs more iterations than are allowed.
    values = x * torch.tensor([1, 1, 1, 1, 300.0])[:, None]
    for count in (5, 1):
        one, all = make(), make(ensemble=ensemble)
        for p, q in zip(derivatives(one, values[-count:]), derivatives(all, values[-count:])):
            assert torch.allclose(p, q, rtol=1e-12, atol=1e-14), (p - q).abs().max()
        if isinstance(one, NonlinearSolver):
            assert one.report.reasons == all.report.reasons
            assert torch.equal(one.report.iterations, all.report.iterations)
singular = torch.ones_like(x)
singular[0] = 0
a = inner(grad(u), grad(v)) * dx + k * u * v * dx
try:
    LinearSolver(a, None, k, v * dx, ensemble=ensemble)(singular)
except SingularMatrixError as error:
    assert error.samples == [0] and "of a batch of 5" in str(error)
    print("together")
"""


@pytest.mark.parallel
def test_samples_are_spread_over_the_processes_of_an_ensemble(tmp_path):
    assert run_script(ENSEMBLE, tmp_path).count("together") == 2


def wrong(p):
    V, F, u = p.V, p.F, p.u
    v = fd.TestFunction(V)
    solver = solver_of(p)
    nan = p.boundary.clone()
    nan[1, 0] = torch.nan
    trial = fd.TrialFunction(V)
    return {
        "unknown": (
            lambda: NonlinearSolver(F, trial),
            TypeError,
            "Function for the unknown u, got",
        ),
        "equation": (lambda: NonlinearSolver(F == 0, u), TypeError, "UFL form for F.*action"),
        "rank": (
            lambda: NonlinearSolver(trial * v * dx, u),
            ValueError,
            "one test function of the space of u",
        ),
        "absent": (
            lambda: NonlinearSolver(p.f * v * dx, u),
            ValueError,
            "u does not occur in F.*LinearSolver",
        ),
        "policy": (
            lambda: solver_of(p, on_failure="ignore"),
            ValueError,
            "'ignore': choose one of",
        ),
        "itself": (lambda: NonlinearSolver(F, u, [u]), ValueError, "also an input.*guess="),
        "stepping": (
            lambda: solver_of(p, "snes", on_failure="load_stepping"),
            ValueError,
            "ask for SNES: leave out all but the tolerances",
        ),
        "ensemble": (
            lambda: solver_of(p, ensemble=3),
            TypeError,
            "a Firedrake Ensemble, got int",
        ),
        "foreign": (
            lambda: NonlinearSolver(F, u, [fd.Function(V)]),
            ValueError,
            "does not occur in the form",
        ),
        "count": (lambda: solver(p.kappa), ValueError, "takes 3 tensors.*'k' in DG 0"),
        "guess": (
            lambda: solver(*p.values, guess=p.kappa),
            ValueError,
            r"shape \(3, 40\) for guess: expected \(batch, 99\)",
        ),
        "nan": (
            lambda: solver(*p.values, boundary=nan),
            ValueError,
            "NaN or infinity in boundary, in 1 of 3 samples; the first is sample 1",
        ),
        "batch": (
            lambda: solver(*p.values, guess=p.boundary[:2]),
            ValueError,
            "batch of 2 for guess, and of 3",
        ),
    }


NAMES = ["unknown", "equation", "rank", "absent", "policy", "itself", "stepping", "foreign"]
NAMES += ["ensemble"]
NAMES += ["count", "guess", "nan", "batch"]


@pytest.mark.parametrize("name", NAMES)
def test_wrong_calls_say_what_is_wrong(diffusion, name):
    call, kind, message = wrong(diffusion)[name]
    with pytest.raises(kind, match=message):
        call()
