"""A pyadjoint tape as a torch function: right gradients under reuse, for a batch, twice."""

from functools import cache

import numpy as np
import pytest
import torch
from firedrake import (
    Cofunction,
    Constant,
    DirichletBC,
    Function,
    FunctionSpace,
    LinearVariationalProblem,
    LinearVariationalSolver,
    TestFunction,
    TrialFunction,
    UnitSquareMesh,
    VectorFunctionSpace,
    assemble,
    dx,
    grad,
    inner,
    solve,
)
from firedrake.adjoint import Control, ReducedFunctional, Tape, set_working_tape
from firedrake.ml.pytorch import fem_operator as firedrake_fem_operator
from memory import least_growth
from pyadjoint import AdjFloat, continue_annotation, get_working_tape, pause_annotation
from pyadjoint.tape import annotate_tape
from pyop2.types.dat import Dat
from taylor import rates

from spon.fem import to_function, to_tensor
from spon.fem.tape import fem_operator

TIGHT = {"snes_rtol": 1e-14, "snes_atol": 1e-13, "ksp_type": "preonly", "pc_type": "lu"}


pytestmark = pytest.mark.filterwarnings("ignore:Expr.ufl_domains:DeprecationWarning")


@pytest.fixture(autouse=True)
def _annotation_is_left_off():
    yield
    assert not annotate_tape()
    pause_annotation()


@cache
def space():
    return FunctionSpace(UnitSquareMesh(5, 4), "CG", 1)


@cache
def recorded(kind):
    """Reduced functionals of each kind of value, with several kinds of controls."""
    V = space()
    R = FunctionSpace(V.mesh(), "R", 0)
    v = TestFunction(V)
    with set_working_tape(Tape()):
        continue_annotation()
        f, c = Function(V).assign(1.0), Function(R).assign(2.0)
        if kind == "Cofunction":  # a nonlinear residual
            J = assemble(inner(grad(f), grad(v)) * dx + c * f**3 * v * dx)
            controls = [f, c]
        elif kind == "load":  # from a Cofunction to the solution of a linear problem
            load, u, du = Cofunction(V.dual()), Function(V), TrialFunction(V)
            a = inner(grad(du), grad(v)) * dx + du * v * dx
            LinearVariationalSolver(LinearVariationalProblem(a, load, u)).solve()
            controls, J = [load], u
        else:  # the solution of a nonlinear problem, and a functional of it
            u = Function(V)
            bc = DirichletBC(V, 0.0, "on_boundary")
            F = c * (1 + u**2) * inner(grad(u), grad(v)) * dx - f * v * dx
            solve(F == 0, u, bc, solver_parameters=TIGHT)
            controls, J = [f, c], u
            if kind == "float":
                factor = AdjFloat(1.5)
                J = factor * factor * assemble((u - 0.1) ** 2 * dx + 0.1 * f**3 * dx)
                controls = [f, c, factor]
        pause_annotation()
        return ReducedFunctional(J, [Control(x) for x in controls])


def inputs(functional, batch=3, seed=0):
    rng = torch.Generator().manual_seed(seed)
    shapes = [
        () if isinstance(c.control, AdjFloat) else (c.control.function_space().dim(),)
        for c in functional.controls
    ]
    return [1 + torch.rand((batch, *s), generator=rng, dtype=torch.float64) for s in shapes]


@pytest.mark.parametrize(("make", "wrong"), [(firedrake_fem_operator, True), (fem_operator, False)])
def test_several_calls_before_the_backward_pass(make, wrong):
    """Sum of squares of a nonlinear residual at three inputs; Firedrake's is wrong by percents."""
    functional = recorded("Cofunction")
    operator = make(functional)
    xs = [x[None].requires_grad_() for x in inputs(functional)[0]]
    c = torch.full((1, 1), 2.0, dtype=torch.float64)
    sum((operator(x, c) ** 2).sum() for x in xs).backward()
    errors = []
    for x in xs:
        # Independent of torch: the adjoint of the residual at x, applied to twice the residual.
        r = functional([to_function(x[0], space()), to_function(c[0], c_space())])
        twice = to_function(2 * to_tensor(r), space())
        exact = to_tensor(functional.derivative(adj_input=twice)[0])
        errors.append(float((x.grad[0] - exact).norm() / exact.norm()))
    assert (max(errors) > 1e-2) if wrong else (max(errors) < 1e-13)


def c_space():
    return FunctionSpace(space().mesh(), "R", 0)


@pytest.mark.parametrize(
    ("kind", "which"),
    [
        *(("float", i) for i in range(3)),
        *(("Function", i) for i in range(2)),
        *(("Cofunction", i) for i in range(2)),
    ],
)
def test_taylor_remainders_of_a_batch_with_several_calls(kind, which):
    functional = recorded(kind)
    operator, xs = fem_operator(functional), inputs(functional)
    weight = torch.linspace(0.5, 1.5, operator(*xs).numel(), dtype=torch.float64)

    def value(x):
        given = [x if i == which else y for i, y in enumerate(xs)]
        first, second = operator(*given), operator(*(1.1 * y for y in given))
        return weight @ (first**2 + torch.sin(second)).reshape(-1)

    first, second = rates(value, xs[which], scale=2e-2)
    assert first >= 1.95
    assert second >= 2.95


def test_from_a_load_to_a_solution():
    """The map is linear: its tangent is itself, and its adjoint is its transpose."""
    operator = fem_operator(recorded("load"))
    loads = torch.randn(3, space().dim(), dtype=torch.float64, requires_grad=True)
    y, tangent = torch.func.jvp(operator, (loads,), (loads,))
    torch.testing.assert_close(y, tangent)
    other = torch.randn(3, space().dim(), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(operator(loads), loads, other, create_graph=True)
    torch.testing.assert_close(gradient, operator(other))  # the problem is symmetric
    with pytest.raises(NotImplementedError, match="Firedrake has no second derivative"):
        gradient.sum().backward()


def test_the_hessian_is_that_of_the_tape():
    functional = recorded("float")
    operator = fem_operator(functional)
    xs = [x[:1].requires_grad_() for x in inputs(functional)]
    directions = [torch.randn_like(x) for x in xs]
    gradients = torch.autograd.grad(operator(*xs).sum(), xs, create_graph=True)
    products = torch.autograd.grad(
        sum((g * d).sum() for g, d in zip(gradients, directions, strict=True)), xs
    )
    spaces = [space(), c_space()]
    dots = [to_function(d[0], V) for d, V in zip(directions, spaces, strict=False)]
    functional([*(to_function(x[0], V) for x, V in zip(xs, spaces, strict=False)), xs[2].item()])
    functional.derivative()
    exact = functional.hessian([*dots, AdjFloat(directions[2].item())])
    for product, h in zip(products[:2], exact, strict=False):
        torch.testing.assert_close(product[0], to_tensor(h), rtol=1e-9, atol=1e-12)
    assert products[2].item() == pytest.approx(float(exact[2]))


@pytest.mark.parametrize("kind", ["float", "Function", "Cofunction"])
def test_forward_mode_agrees_with_the_adjoint(kind):
    functional = recorded(kind)
    operator, xs = fem_operator(functional), inputs(functional, batch=2)
    directions = tuple(torch.randn_like(x) for x in xs)
    y, tangent = torch.func.jvp(operator, tuple(xs), directions)
    seed = torch.randn_like(y)
    gradients = torch.func.vjp(operator, *xs)[1](seed)
    backward = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    torch.testing.assert_close((seed * tangent).sum(), backward)


def test_batch_axes():
    functional = recorded("Function")
    operator, (f, c) = fem_operator(functional), inputs(functional)
    n = space().dim()
    assert operator(f, c).shape == (3, n)
    assert operator(f[0], c[0]).shape == (n,)
    assert operator(f[:0], c[0]).shape == (0, n)
    torch.testing.assert_close(operator(f, c)[1], operator(f[1], c[1]))
    shared = c[0].clone().requires_grad_()
    separate = c[:1].expand(3, 1).clone().requires_grad_()
    operator(f, shared).square().sum().backward()
    operator(f, separate).square().sum().backward()
    torch.testing.assert_close(shared.grad, separate.grad.sum(0))
    scalar = fem_operator(recorded("float"))
    xs = inputs(recorded("float"))
    assert scalar(*xs).shape == (3,)
    assert scalar(*(x[0] for x in xs)).shape == ()


def test_the_tape_runs_only_when_it_is_stale():
    functional = recorded("Cofunction")
    operator, (f, c) = fem_operator(functional), inputs(functional)
    f.requires_grad_()

    def runs(action):
        before = functional.tape.recompute_count
        result = action()
        return functional.tape.recompute_count - before, result

    count, y = runs(lambda: operator(f[:1], c[:1]))
    assert count == 1
    assert runs(lambda: y.sum().backward())[0] == 0
    count, y = runs(lambda: operator(f, c))
    assert count == 3
    assert runs(lambda: y.sum().backward())[0] == 2
    # Another user of the tape, or of the controls, is noticed.
    exact, f.grad = f.grad.clone(), None
    operator(f[:1], c[:1]).sum().backward()
    exact, f.grad = f.grad.clone(), None
    y = operator(f[:1], c[:1])
    functional([Function(space()), Function(c_space())])
    assert runs(lambda: y.sum().backward())[0] == 1
    torch.testing.assert_close(f.grad, exact)
    f.grad = None
    y = operator(f[:1], c[:1])
    functional.controls[0].update(Function(space()).assign(5.0))
    assert runs(lambda: y.sum().backward())[0] == 1
    torch.testing.assert_close(f.grad, exact)


def test_a_failed_run_is_forgotten():
    functional = recorded("Function")
    operator, (f, c) = fem_operator(functional), inputs(functional)
    f = f[:1].requires_grad_()
    y = operator(f, c[:1])
    expected = torch.autograd.grad(y.square().sum(), f, retain_graph=True)[0]
    with pytest.raises(Exception, match="failed to converge"):
        operator(f.detach() * 1e9, 0.0 * c[:1])
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), f)[0], expected)


@pytest.mark.parametrize("kind", ["float", "Function"])
def test_the_scale_of_a_functional(kind):
    plain = recorded(kind)
    scaled = ReducedFunctional(plain.functional, plain.controls, scale=-2.0, tape=plain.tape)
    xs = [x.requires_grad_() for x in inputs(plain, batch=2)]
    for factor, functional in ((1.0, plain), (-0.5, scaled)):
        y = factor * fem_operator(functional)(*xs)
        g = torch.autograd.grad(y.sum(), xs[0], create_graph=True)[0]
        h = torch.autograd.grad(g.square().sum(), xs[0])[0]
        if functional is plain:
            exact = y, g, h
    for a, b in zip(exact, (y, g, h), strict=True):
        torch.testing.assert_close(a, b)
    assert scaled.scale == -2.0


def test_single_precision_is_converted():
    functional = recorded("Function")
    operator, (f, c) = fem_operator(functional), inputs(functional)
    small = f.float().requires_grad_()
    y = operator(small, c.float())
    assert y.dtype == torch.float32
    y.square().sum().backward()
    assert small.grad.dtype == torch.float32
    large = f.float().double().requires_grad_()
    operator(large, c.float().double()).square().sum().backward()
    torch.testing.assert_close(small.grad.double(), large.grad, rtol=1e-5, atol=1e-8)
    assert operator(small, c).dtype == torch.float64


def test_in_a_training_loop():
    functional = recorded("Function")
    operator, (f, c) = fem_operator(functional), inputs(functional, batch=8)
    with torch.no_grad():
        target = operator(f, 2.0 + 0 * c)
    assert not target.requires_grad
    unknown = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(f, target), batch_size=3, shuffle=True
    )
    optimiser = torch.optim.Adam([unknown], lr=0.15)
    for _ in range(15):
        for x, y in loader:
            optimiser.zero_grad()
            loss = (operator(x, unknown) / y.mean() - y / y.mean()).square().mean()
            loss.backward()
            optimiser.step()
    assert unknown.item() == pytest.approx(2.0, rel=5e-2)


def test_annotation_tape_and_memory_are_left_as_they_were():
    functional = recorded("Cofunction")
    operator, (f, c) = fem_operator(functional), inputs(functional, batch=2)
    f.requires_grad_()
    blocks = len(functional.tape.get_blocks())

    def step():
        f.grad = None
        gradient = torch.autograd.grad(operator(f, c).square().sum(), f, create_graph=True)[0]
        gradient.square().sum().backward()

    mine = Tape()
    with set_working_tape(mine):
        continue_annotation()
        step()
        assert annotate_tape()
        assert get_working_tape() is mine
        pause_annotation()
    assert not mine.get_blocks()
    grown, objects = least_growth(step, 8)
    assert grown < 5e5
    assert objects < 8
    assert len(functional.tape.get_blocks()) == blocks


def test_no_kernel_is_made_for_each_value_of_a_residual(monkeypatch):
    functional = recorded("Cofunction")
    operator, xs = fem_operator(functional), inputs(functional, batch=2)
    expected = operator(*xs)

    def made(*args):
        raise AssertionError("pyadjoint scales the value, pyop2 makes a kernel for it and leaks")

    # It takes longer than the assembly, and 0.9 kB of each are never freed.
    monkeypatch.setattr(Dat, "_iop_kernel", made)
    assert torch.equal(operator(*xs), expected)


def unused(kind):
    V = space()
    with set_working_tape(Tape()):
        continue_annotation()
        f = Function(V).assign(1.0)
        c = Constant(2.0) if kind is Constant else Function(V).assign(1.0)
        J = assemble(c * f**2 * dx) if kind is Constant else assemble(f**2 * dx)
        pause_annotation()
        return fem_operator(ReducedFunctional(J, [Control(f), Control(c)]))


def differentiated_constant():
    V = space()
    with set_working_tape(Tape()):
        continue_annotation()
        f, g, c = Function(V).assign(1.0), Function(V), Constant(2.0)
        g.assign(c * f)
        J = assemble(g**2 * dx)
        pause_annotation()
        S = fem_operator(ReducedFunctional(J, Control(c)))
    x = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    y = S(x)
    torch.testing.assert_close(y.detach(), torch.tensor([4.0, 9.0], dtype=torch.float64))
    y.sum().backward()


def vector_control():
    V = VectorFunctionSpace(UnitSquareMesh(2, 2), "DG", 1)
    with set_working_tape(Tape()):
        continue_annotation()
        f = Function(V)
        J = assemble(inner(f, f) * dx)
        pause_annotation()
        S = fem_operator(ReducedFunctional(J, Control(f)))
    S(torch.zeros(2, 7, dtype=torch.float64))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda S, f, c: fem_operator(S), TypeError, "pyadjoint ReducedFunctional, got FEMOper"),
        (lambda S, f, c: S(f), TypeError, "Got 1 inputs for 2 controls.*CG 1 with 30 dofs"),
        (lambda S, f, c: S(f.numpy(), c), TypeError, "control 0: Function in CG 1.*got ndarray"),
        (lambda S, f, c: S(f.long(), c), TypeError, "expected a real floating.*got torch.int64"),
        (
            lambda S, f, c: S(f[:, 1:], c),
            ValueError,
            r"CG 1 with 30 dofs: got a tensor of shape \(3, 29\), expected \(30,\) or \(batch, 30",
        ),
        (lambda S, f, c: S(f[None], c), ValueError, r"got a tensor of shape \(1, 3, 30\)"),
        (lambda S, f, c: S(f, c[:2]), ValueError, r"different batch sizes: \[2, 3\]"),
        (lambda S, f, c: S(f / 0 * 0, c), ValueError, "control 0.*holds NaN or infinity"),
        (lambda S, f, c: vector_control(), ValueError, r"vector\(2,\) DG 1 with 48 dofs: got"),
        (lambda S, f, c: unused(Function), ValueError, "does not occur on the tape.*annotation"),
        (lambda S, f, c: unused(Constant), ValueError, 'does not record Constants.*"R", 0'),
        (lambda S, f, c: differentiated_constant(), NotImplementedError, 'control 0.*"R", 0'),
    ],
)
def test_wrong_calls_say_what_was_given(call, error, message):
    functional = recorded("Function")
    with pytest.raises(error, match=message):
        call(fem_operator(functional), *inputs(functional))


def test_controls_and_functionals_of_other_kinds_are_refused():
    V = space()
    with set_working_tape(Tape()):
        continue_annotation()
        g = Function(V).assign(1.0)
        bc = DirichletBC(V, g, 1)
        u, v = Function(V), TestFunction(V)
        solve(inner(grad(u), grad(v)) * dx + u * v * dx == 0, u, bc)
        pause_annotation()
        with pytest.raises(TypeError, match="control 0 is a DirichletBC"):
            fem_operator(ReducedFunctional(u, Control(bc)))


def test_third_derivatives_are_refused():
    functional = recorded("Cofunction")
    operator, (f, c) = fem_operator(functional), inputs(functional, batch=1)
    f.requires_grad_()
    g = torch.autograd.grad(operator(f, c).square().sum(), f, create_graph=True)[0]
    h = torch.autograd.grad(g.square().sum(), f, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        h.sum().backward()


def test_the_operator_describes_itself():
    text = repr(fem_operator(recorded("float")))
    assert "control 0: Function in CG 1 with 30 dofs" in text
    assert "control 2: AdjFloat of shape ()" in text
    assert np.char.count(text, "->") == 1
