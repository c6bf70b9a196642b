"""A torch function inside a UFL form: the same form written out in UFL is what it must equal."""

from functools import cache

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from firedrake import (
    Constant,
    ConvergenceError,
    DirichletBC,
    EquationBC,
    Function,
    FunctionSpace,
    Identity,
    NonlinearVariationalProblem,
    NonlinearVariationalSolver,
    SpatialCoordinate,
    TestFunction,
    TestFunctions,
    TrialFunction,
    UnitSquareMesh,
    VectorFunctionSpace,
    action,
    as_vector,
    cos,
    derivative,
    div,
    ds,
    dx,
    exp,
    grad,
    inner,
    sin,
    split,
    sqrt,
    sym,
    tr,
)
from firedrake import assemble as firedrake_assemble
from firedrake import solve as firedrake_solve
from firedrake.adjoint import Control, ReducedFunctional, Tape, set_working_tape
from processes import run_script
from pyadjoint import continue_annotation, pause_annotation, taylor_to_dict
from pyadjoint.tape import annotate_tape
from taylor import rates
from torch import nn

import spon
from spon.fem import external as fem
from spon.fem import to_function, to_tensor
from spon.fem.external_symbols import symbols_of

TIGHT = {"snes_rtol": 1e-14, "snes_atol": 1e-12, "ksp_type": "preonly", "pc_type": "lu"}
pytestmark = pytest.mark.filterwarnings("ignore:Expr.ufl_domains:DeprecationWarning")


@pytest.fixture(autouse=True)
def _annotation_is_left_off():
    yield
    assert not annotate_tape()
    pause_annotation()


@cache
def mesh():
    return UnitSquareMesh(5, 4)


@cache
def space(degree=1):
    return FunctionSpace(mesh(), "CG", degree)


def field(V, expression):
    return Function(V).interpolate(expression)


def random_like(f, seed=0, size=1.0):
    g = Function(f.function_space())
    rng = np.random.default_rng(seed)
    g.dat.data_wo[...] = size * rng.standard_normal(g.dat.data_ro.shape)
    return g


class Conductivity(nn.Module):
    """k(w, g) = a_0 + a_1 w^2 + a_2 |g|^2, with its weights a."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([1.0, 0.5, 0.3], dtype=torch.float64))

    def forward(self, z):
        return self.a[0] + self.a[1] * z[:, 0] ** 2 + self.a[2] * (z[:, 1:] ** 2).sum(1)


# Problems with their law in torch and in UFL: (law, operands, shape), the law in UFL, the rest.


def nonlinear_diffusion():
    V = space(2)
    u, v, x = Function(V), TestFunction(V), SpatialCoordinate(mesh())
    bc = DirichletBC(V, Constant(0.5), "on_boundary")
    law = fem.external_operator(
        lambda u, g: 1 + u**2 + (g * g).sum(-1), operands=(u, grad(u)), degree=4
    )

    def residual(k):
        return k * inner(grad(u), grad(v)) * dx(degree=4) - (5 + 9 * sin(3 * x[0])) * v * dx

    return residual, law, 1 + u**2 + inner(grad(u), grad(u)), u, bc


def p_laplace():
    """A flux: vector valued, of a coefficient of position too."""
    V = space(2)
    u, v, x = Function(V), TestFunction(V), SpatialCoordinate(mesh())
    c = field(space(), 1 + x[0])
    bc = DirichletBC(V, field(V, x[1]), (1, 2))

    def flux(g, c):
        return c[:, None] * torch.sqrt(0.1 + (g * g).sum(-1, keepdim=True)) * g

    law = fem.external_operator(flux, operands=(grad(u), c), degree=3)
    exact = c * sqrt(0.1 + inner(grad(u), grad(u))) * grad(u)
    return (lambda s: inner(s, grad(v)) * dx(degree=3) - v * dx), law, exact, u, bc


def hyperelasticity():
    """A stress: tensor valued, of a tensor, for a vector field."""
    V = VectorFunctionSpace(mesh(), "CG", 2)
    u, v = Function(V), TestFunction(V)
    bcs = [DirichletBC(V, Constant((0.0, 0.0)), 1), DirichletBC(V.sub(1), 0.1, 2)]

    def stress(g):
        e = 0.5 * (g + g.mT)
        trace = e.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        return 2 * torch.exp(0.5 * trace) * e + trace * torch.eye(2, dtype=torch.float64)

    law = fem.external_operator(stress, operands=grad(u), degree=3)
    e = sym(grad(u))
    exact = 2 * exp(0.5 * tr(e)) * e + tr(e) * Identity(2)
    load = as_vector([0.3, -0.1])
    return (
        (lambda s: inner(s, grad(v)) * dx(degree=3) - inner(load, v) * ds(2)),
        law,
        exact,
        u,
        bcs,
    )


def shear_thinning_flow():
    """A viscosity in a mixed space."""
    W = VectorFunctionSpace(mesh(), "CG", 2) * FunctionSpace(mesh(), "CG", 1)
    w, (v, q), x = Function(W), TestFunctions(W), SpatialCoordinate(mesh())
    u, p = split(w)
    lid = DirichletBC(W.sub(0), field(W.sub(0), as_vector([4 * x[0] * (1 - x[0]), 0.0])), 4)
    walls = [DirichletBC(W.sub(0), Constant((0.0, 0.0)), (1, 2, 3))]
    law = fem.external_operator(
        lambda d: 0.2 + (1 + (d * d).sum((-2, -1))) ** -0.5, operands=sym(grad(u)), degree=4
    )
    exact = 0.2 + (1 + inner(sym(grad(u)), sym(grad(u)))) ** -0.5

    def residual(mu):
        viscous = 2 * mu * inner(sym(grad(u)), sym(grad(v))) * dx(degree=4)
        return viscous - p * div(v) * dx - q * div(u) * dx - 1e-2 * p * q * dx

    return residual, law, exact, w, [lid, *walls]


PROBLEMS = [nonlinear_diffusion, p_laplace, hyperelasticity, shear_thinning_flow]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_newton_is_that_of_the_form_written_out(problem):
    residual, law, exact, u, bcs = problem()
    histories, solutions = [], []
    for form in (residual(exact), residual(law)):
        u.assign(0.0)
        history = []
        if form is not None and symbols_of(form):
            solver = fem.ExternalSolver(form, u, bcs, solver_parameters=TIGHT)
            snes = solver._newton.snes
        else:
            plain = NonlinearVariationalProblem(form, u, bcs)
            solver = NonlinearVariationalSolver(plain, solver_parameters=TIGHT)
            snes = solver.snes
        snes.setMonitor(lambda _, k, norm, history=history: history.append(norm))
        solver.solve()
        histories.append(np.array(history))
        solutions.append(u.copy(deepcopy=True))
    a, b = histories
    large = a[: len(b)] > 1e-7 * a[0]
    np.testing.assert_allclose(b[: len(a)][large], a[: len(b)][large], rtol=1e-6)
    # Quadratic: the last steps square the relative residual, up to a constant.
    q = b[b > 1e-9 * b[0]] / b[0]
    assert len(q) >= 3
    assert np.log(q[-1]) < 1.6 * np.log(q[-2]) or q[-1] < 30 * q[-2] ** 2
    for s, t in zip(*(f.subfunctions for f in solutions), strict=True):
        np.testing.assert_allclose(s.dat.data_ro, t.dat.data_ro, rtol=0, atol=1e-12)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_jacobian_is_that_of_the_form_written_out(problem):
    residual, law, exact, u, bcs = problem()
    for part in u.subfunctions:
        part.assign(random_like(part, size=0.3))
    J = fem.assemble(derivative(residual(law), u), bcs=bcs).petscmat
    A = firedrake_assemble(derivative(residual(exact), u), bcs=bcs).petscmat
    assert (J - A).norm() < 1e-12 * A.norm()
    r = fem.assemble(residual(law))
    b = firedrake_assemble(residual(exact))
    for s, t in zip(r.subfunctions, b.subfunctions, strict=True):
        scale = abs(t.dat.data_ro).max()
        np.testing.assert_allclose(s.dat.data_ro, t.dat.data_ro, rtol=0, atol=1e-13 * scale)


def test_higher_derivatives_of_an_energy():
    V = space(2)
    u, v = random_like(Function(V)), TestFunction(V)
    psi = fem.external_operator(
        lambda w, g: torch.exp(0.3 * w) * (1 + (g * g).sum(-1)) ** 1.5,
        operands=(u, grad(u)),
        degree=4,
    )
    exact = exp(0.3 * u) * (1 + inner(grad(u), grad(u))) ** 1.5
    w = random_like(u, seed=1)
    for form, order in ((psi * dx, 0), (exact * dx(degree=4), 1)):
        second = derivative(derivative(form, u, v), u)
        third = derivative(action(second, w), u)
        matrices = [fem.assemble(f).petscmat for f in (second, third)]
        if order == 0:
            ours = matrices
    for a, b in zip(ours, matrices, strict=True):
        assert (a - b).norm() < 1e-12 * b.norm()


@cache
def taped(in_ufl):
    """u solves a problem with k(c u, grad u); J = int k u^2. Controls f, c, boundary value, a."""
    V, x = space(), SpatialCoordinate(mesh())
    R = FunctionSpace(mesh(), "R", 0)
    f, c = field(V, 2 + 3 * sin(3 * x[0]) * x[1]), field(V, 1 + x[0] * x[1])
    g, u, v = field(V, 0.5 + 0.1 * x[0]), Function(V), TestFunction(V)
    bc = DirichletBC(V, g, "on_boundary")
    with set_working_tape(Tape()):
        continue_annotation()
        if in_ufl:
            a = [Function(R).assign(value) for value in (1.0, 0.5, 0.3)]
            k = a[0] + a[1] * (c * u) ** 2 + a[2] * inner(grad(u), grad(u))
        else:
            k = fem.external_operator(Conductivity(), operands=(c * u, grad(u)), degree=4)
            a = [k.weights.function]
        F = k * inner(grad(u), grad(v)) * dx(degree=4) - f * v * dx
        fem.solve(F == 0, u, bc, solver_parameters=TIGHT)
        J = fem.assemble(k * u**2 * dx(degree=4))
        load = fem.assemble(k * f * v * dx(degree=4)) if not in_ufl else None
        pause_annotation()
        controls = [Control(m) for m in (f, c, g, *a)]
        functional = ReducedFunctional(J, controls)
        others = [ReducedFunctional(m, controls) for m in (u, load)] if load else []
    return functional, [f, c, g, *a], others


def _directions():
    f, c, g, a = taped(False)[1]
    return [
        random_like(m, i, s)
        for i, (m, s) in enumerate(zip((f, c, g, a), (1, 0.3, 0.03, 0.1), strict=True))
    ]


def test_the_tape_is_that_of_the_form_written_out():
    """Value, gradient, tangent and Hessian action, by functions, boundary values and weights."""
    (J, m, _), (K, n, _) = taped(False), taped(True)
    assert J(m) == pytest.approx(K(n), rel=1e-13)
    h = _directions()
    h[2].assign(0.0)  # Firedrake's own solve block forgets the boundary value's second derivative
    R = FunctionSpace(mesh(), "R", 0)
    h_ufl = [*h[:3], *(Function(R).assign(float(t)) for t in h[3].dat.data_ro)]
    ours, exact = J.derivative(), K.derivative()
    tangents = J.tlm(h), K.tlm(h_ufl)
    assert tangents[0] == pytest.approx(tangents[1], rel=1e-11)
    second, second_exact = J.hessian(h), K.hessian(h_ufl)
    for a, b in ((ours, exact), (second, second_exact)):
        for s, t in zip(a[:3], b[:3], strict=True):
            scale = abs(t.dat.data_ro).max()
            np.testing.assert_allclose(s.dat.data_ro, t.dat.data_ro, rtol=0, atol=1e-10 * scale)
        weights = [float(t.dat.data_ro[0]) for t in b[3:]]
        np.testing.assert_allclose(a[3].dat.data_ro, weights, rtol=1e-9)


@pytest.mark.parametrize("which", range(4), ids=["source", "operand", "boundary", "weights"])
def test_taylor_remainders_on_the_tape(which):
    J, m, _ = taped(False)
    h = [d if i == which else Function(d.function_space()) for i, d in enumerate(_directions())]
    found = taylor_to_dict(J, m, h)
    # Remainders of third order reach round-off soon: the largest steps count.
    assert min(found["R1"]["Rate"]) >= 1.95
    assert found["R2"]["Rate"][0] >= 2.95


@pytest.mark.parametrize("which", range(2), ids=["solution", "load"])
def test_operators_on_the_tape_as_torch_functions(which):
    """Batched, called twice before the backward pass, first and second derivatives."""
    functional = taped(False)[2][which]
    operator = spon.fem.tape.fem_operator(functional)
    xs = [torch.stack([to_tensor(m), 1.1 * to_tensor(m)]) for m in taped(False)[1]]
    weight = torch.linspace(0.5, 1.5, len(operator(*xs)[0]), dtype=torch.float64)
    for i in range(len(xs)):

        def value(x, i=i):
            given = [x if j == i else y for j, y in enumerate(xs)]
            return (operator(*given) @ weight).square().sum() + operator(*given).sum()

        first, second = rates(value, xs[i], scale=1e-2, halvings=2)
        assert first >= 1.95
        assert second >= 2.95


class Law(nn.Module):
    """A positive neural conductivity of one variable."""

    def __init__(self, width=8):
        super().__init__()
        layers = nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1)
        self.net = nn.Sequential(*layers).double()

    def forward(self, u):
        return nn.functional.softplus(self.net(u))


def test_weights_are_trained_through_the_solve():
    torch.manual_seed(0)
    V = FunctionSpace(UnitSquareMesh(8, 8), "CG", 1)
    x, u, f, v = SpatialCoordinate(V.mesh()), Function(V), Function(V), TestFunction(V)
    bc = DirichletBC(V, 0.0, 1)
    net = Law()
    k = fem.external_operator(net, operands=u, degree=4)
    F = k * inner(grad(u), grad(v)) * dx - f * v * dx
    parameters = {"snes_rtol": 1e-12}
    solution = fem.solution_operator(F == 0, u, bc, inputs=[f], solver_parameters=parameters)
    loads = to_tensor([field(V, s) for s in (1.5 + 0 * x[0], 1 + sin(6 * x[1]))])

    def value(weights):
        nn.utils.vector_to_parameters(weights, net.parameters())
        return solution(loads).square().sum() + solution(0.9 * loads[0]).sum()

    # Taylor test by the parameters that torch's optimisers see.
    start = nn.utils.parameters_to_vector(net.parameters()).detach().clone()
    direction = torch.randn_like(start)
    at = value(start)
    loads.requires_grad_()
    value(start).backward()
    gradient = torch.cat([p.grad.reshape(-1) for p in net.parameters()])
    assert loads.grad.norm() > 0
    steps = [1e-3 / 2**i for i in range(4)]
    with torch.no_grad():
        rest = [abs(value(start + h * direction) - at - h * gradient @ direction) for h in steps]
        value(start)
    rest = np.array([float(r) for r in rest])
    assert np.log2(rest[:-1] / rest[1:]).min() >= 1.95

    # Identify k(u) = 0.5 + 2 u^2 from two solutions with one per cent of noise.
    loads = loads.detach()
    data, w = [], Function(V)
    for load in loads:
        exact = (0.5 + 2 * w**2) * inner(grad(w), grad(v)) * dx(degree=4)
        firedrake_solve(exact - to_function(load, V) * v * dx == 0, w, bc)
        data.append(to_tensor(w))
    data = torch.stack(data)
    largest = float(data.max())
    data += 0.01 * data.std() * torch.randn_like(data)
    optimiser = torch.optim.LBFGS(
        net.parameters(), max_iter=60, history_size=30, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        loss = ((solution(loads) - data) ** 2).mean() / data.var()
        loss.backward()
        return loss

    optimiser.step(closure)
    values = torch.linspace(0.0, largest, 50, dtype=torch.float64)[:, None]
    with torch.no_grad():
        law, exact = net(values), 0.5 + 2 * values**2
    assert float((law - exact).norm() / exact.norm()) < 0.02


def test_a_law_at_nodes_is_interpolated():
    """-div(grad u) + I(u^3 + c u) = 1 by Newton's method in scipy."""
    V, x = space(), SpatialCoordinate(mesh())
    u, v, du = Function(V), TestFunction(V), TrialFunction(V)
    c = field(V, 1 + x[0])
    law = fem.external_operator(lambda u, c: 20 * u**3 + c * u, V, operands=(u, c))
    bc = DirichletBC(V, 0.2, 1)
    F = inner(grad(u), grad(v)) * dx + law * v * dx - v * dx
    solver = fem.ExternalSolver(F, u, bc, solver_parameters={"snes_rtol": 1e-13})
    solver.solve()
    assert solver.iterations <= 7
    K, M = (
        sp.csr_matrix(firedrake_assemble(a).petscmat.getValuesCSR()[::-1])
        for a in (inner(grad(du), grad(v)) * dx, du * v * dx)
    )
    b = to_tensor(firedrake_assemble(v * dx)).numpy()
    free = np.setdiff1d(np.arange(V.dim()), bc.nodes)
    y, cv = np.zeros(V.dim()), to_tensor(c).numpy()
    y[bc.nodes] = 0.2
    for _ in range(20):
        r = K @ y + M @ (20 * y**3 + cv * y) - b
        A = (K + M @ sp.diags(60 * y**2 + cv)).tocsc()[free][:, free]
        y[free] -= sp.linalg.spsolve(A, r[free])
    np.testing.assert_allclose(to_tensor(u).numpy(), y, atol=1e-11)


def test_a_law_at_nodes_stands_on_the_boundary():
    V = space()
    u, v = random_like(Function(V)), TestFunction(V)
    law = fem.external_operator(lambda u: u**2, V, operands=u)
    square = field(V, u**2)
    ours, exact = fem.assemble(law * v * ds), firedrake_assemble(square * v * ds)
    np.testing.assert_allclose(ours.dat.data_ro, exact.dat.data_ro, atol=1e-15)


def test_a_linear_network_in_a_solve():
    """The Jacobian is dense: numpy solves the same system."""
    torch.manual_seed(0)
    V = space()
    u, v, du = Function(V), TestFunction(V), TrialFunction(V)
    n = V.dim()
    net = nn.Linear(n, n).double()
    operator = fem.external_operator(net, V, operands=u, pointwise=False)
    F = inner(grad(u), grad(v)) * dx + operator * v * dx - v * dx
    fem.solve(F == 0, u, DirichletBC(V, 0.1, "on_boundary"), solver_parameters={"snes_rtol": 1e-12})
    K, M = (
        sp.csr_matrix(firedrake_assemble(a).petscmat.getValuesCSR()[::-1]).toarray()
        for a in (inner(grad(du), grad(v)) * dx, du * v * dx)
    )
    B, shift = net.weight.detach().numpy(), net.bias.detach().numpy()
    nodes = DirichletBC(V, 0.1, "on_boundary").nodes
    A, b = K + M @ B, to_tensor(firedrake_assemble(v * dx)).numpy() - M @ shift
    A[nodes], b[nodes] = np.eye(n)[nodes], 0.1
    np.testing.assert_allclose(to_tensor(u).numpy(), np.linalg.solve(A, b), atol=1e-9)


@pytest.mark.parametrize("kind", ["nodes", "network"])
def test_taylor_remainders_of_matrix_free_operators(kind):
    torch.manual_seed(1)
    V, x = space(), SpatialCoordinate(mesh())
    f, c = field(V, 4 * cos(2 * x[0])), field(V, 1 + x[1])
    u, v = Function(V), TestFunction(V)
    n = V.dim()
    if kind == "nodes":
        net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        operator = fem.external_operator(net, V, operands=(u, c**2))
    else:
        net = nn.Bilinear(n, n, n).double()
        with torch.no_grad():
            net.weight *= 0.1
        operator = fem.external_operator(net, V, operands=(u, c), pointwise=False)
    F = inner(grad(u), grad(v)) * dx + (1 + operator) * u * v * dx - f * v * dx
    with set_working_tape(Tape()):
        continue_annotation()
        parameters = {"snes_rtol": 1e-13, "snes_atol": 1e-13, "ksp_rtol": 1e-13}
        fem.solve(F == 0, u, DirichletBC(V, 0.3, 1), solver_parameters=parameters)
        J = fem.assemble(operator * u * dx + u**2 * ds)
        pause_annotation()
        m = [f, c, operator.weights.function]
        functional = ReducedFunctional(J, [Control(x) for x in m])
    h = [random_like(x, i, 0.3) for i, x in enumerate(m)]
    start, slopes = functional(m), functional.derivative()
    slopes = [d._ad_dot(g) for d, g in zip(h, slopes, strict=True)]
    assert functional.tlm(h) == pytest.approx(sum(slopes), rel=1e-8)
    for i, slope in enumerate(slopes):
        steps = [0.01 / 2**j for j in range(4)]
        moved = [
            [x._ad_add(h[i]._ad_mul(e)) if i == j else x for j, x in enumerate(m)] for e in steps
        ]
        rest = np.array(
            [abs(functional(y) - start - e * slope) for y, e in zip(moved, steps, strict=True)]
        )
        assert (np.log2(rest[:-1] / rest[1:]) >= 1.95).all() or rest.max() < 1e-12
    with pytest.raises(NotImplementedError, match="Second derivatives through operator networks"):
        functional.hessian(h)


def test_an_operator_network_of_spon():
    torch.manual_seed(0)
    V, U = space(), space(2)
    f, u, v = random_like(Function(V)), Function(U), TestFunction(U)
    bc = DirichletBC(U, 0.0, "on_boundary")
    net = spon.OperatorNetwork(
        spon.Encoder(V), spon.processors.MLP(), spon.Decoder(U, bc), dtype=torch.float64
    )
    operator = fem.external_operator(net, operands=f)
    assert operator.space == U
    exact = net(f)
    F = inner(grad(u), grad(v)) * dx + u * v * dx - operator * v * dx
    fem.solve(F == 0, u, bc)
    w = Function(U)
    firedrake_solve(inner(grad(w), grad(v)) * dx + w * v * dx - exact * v * dx == 0, w, bc)
    np.testing.assert_allclose(u.dat.data_ro, w.dat.data_ro, atol=1e-12)


def test_linear_equations_and_forms_without_operators():
    V = space()
    u, w, v, du = Function(V), Function(V), TestFunction(V), TrialFunction(V)
    c = random_like(u)
    k = fem.external_operator(lambda c: 2 + torch.sin(c), operands=c, degree=3)
    bc = DirichletBC(V, 1.0, 1)
    fem.solve(k * inner(grad(du), grad(v)) * dx == v * dx, u, bc)
    exact = (2 + sin(c)) * inner(grad(du), grad(v)) * dx(degree=3)
    fem.solve(exact == v * dx, w, bc)
    np.testing.assert_allclose(u.dat.data_ro, w.dat.data_ro, atol=1e-12)
    assert fem.assemble(w * dx) == firedrake_assemble(w * dx)


def test_one_solver_for_many_solves():
    V = space()
    u, f, v = Function(V), Function(V), TestFunction(V)
    g = Constant(0.0)
    k = fem.external_operator(Conductivity(), operands=(u, grad(u)), degree=4)
    solver = fem.ExternalSolver(
        k * inner(grad(u), grad(v)) * dx - f * v * dx, u, DirichletBC(V, g, 1)
    )
    for value in (1.0, 2.0):
        f.assign(value)
        g.assign(0.1 * value)
        u.assign(0.0)
        solver.solve()
        w = Function(V)
        kw = 1 + 0.5 * w**2 + 0.3 * inner(grad(w), grad(w))
        F = kw * inner(grad(w), grad(v)) * dx(degree=4) - f * v * dx
        firedrake_solve(F == 0, w, DirichletBC(V, 0.1 * value, 1))
        np.testing.assert_allclose(u.dat.data_ro, w.dat.data_ro, atol=1e-9)


def test_module_and_weights_follow_each_other():
    net = Conductivity()
    u = random_like(Function(space()))
    k = fem.external_operator(net, operands=(u, grad(u)), degree=2)

    def mean():
        return fem.assemble(k * dx)

    first = mean()
    with torch.no_grad():
        net.a[0] += 1.0
    assert mean() == pytest.approx(first + 1)
    assert k.weights.function.dat.data_ro[0] == 2.0
    k.weights.function.dat.data_wo[0] = 3.0
    assert mean() == pytest.approx(first + 2)
    assert net.a[0] == 3.0
    with torch.no_grad():
        net.a[0] += 1.0
    k.weights.function.dat.data_wo[0] = 7.0
    with pytest.raises(ValueError, match="both changed since"):
        mean()


def operator(function=lambda u: u**2, V=None, **options):
    u = random_like(Function(space()))
    options = {"operands": u, **({} if V is not None else {"degree": 4}), **options}
    return fem.external_operator(function, V, **options)


def rise(function, **options):
    return fem.assemble(operator(function, **options) * dx)


def solve_nan():
    V = space()
    u, v = Function(V), TestFunction(V)
    k = fem.external_operator(lambda u: torch.sqrt(u - 2), operands=u, degree=2)
    fem.solve((1 + k) * inner(grad(u), grad(v)) * dx - v * dx == 0, u, DirichletBC(V, 0.0, 1))


def taped_stock(form):
    with set_working_tape(Tape()):
        continue_annotation()
        try:
            firedrake_assemble(form)
        finally:
            pause_annotation()


def stock_solve():
    u = Function(space())
    k = fem.external_operator(lambda u: 1 + u**2, operands=u, degree=4)
    v = TestFunction(space())
    firedrake_solve(k * inner(grad(u), grad(v)) * dx - v * dx == 0, u)


def shape_derivative():
    u = random_like(Function(space()))
    k = fem.external_operator(lambda u: u**2, operands=u, degree=2)
    with set_working_tape(Tape()):
        continue_annotation()
        J = fem.assemble(k * dx)
        pause_annotation()
        functional = ReducedFunctional(J, Control(mesh()))
        functional.derivative()


def derivative_at_nodes():
    u, v = Function(space()), TestFunction(space())
    law = fem.external_operator(lambda u: u**2, space(), operands=u)
    fem.assemble(derivative(law * v * dx, u))


def derivative_of_network():
    u, v = Function(space()), TestFunction(space())
    law = fem.external_operator(lambda u: u**2, space(), operands=u, pointwise=False)
    fem.assemble(derivative(law * v * dx, u))


def nested():
    k = operator()
    fem.external_operator(lambda k: k, operands=k, degree=4)


def equation_bc():
    V = space()
    u, v = Function(V), TestFunction(V)
    k = fem.external_operator(lambda u: 1 + u**2, operands=u, degree=4)
    F = k * inner(grad(u), grad(v)) * dx
    fem.solve(F == 0, u, EquationBC(u * v * ds(1) == 0, u, 1))


def v1():
    return TestFunction(space())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        # what the torch function is and returns
        (lambda: operator(3), TypeError, "torch function or module, got int"),
        (lambda: rise(lambda u: u[:-1]), ValueError, "first axis must be that of the points"),
        (lambda: rise(lambda u: 1.0), ValueError, "returned a float for 2 points"),
        (
            lambda: rise(lambda u: u[:, None] * u, value_shape=()),
            ValueError,
            r"returned a tensor of shape \(240, 240\), expected \(240,\): it takes tensors of "
            r"shapes \[\(240,\)\]",
        ),
        (lambda: rise(lambda u: u.float()), TypeError, "returned torch.float32, expected float64"),
        (lambda: operator(nn.Linear(1, 1)), TypeError, "'weight' of the Linear is torch.float32"),
        (lambda: rise(lambda u: torch.log(u)), ValueError, "NaN or infinity at .* of 240 points"),
        (lambda: rise(lambda u: u - u.mean()), ValueError, "is not pointwise: the values at some"),
        (
            lambda: rise(nn.Sequential(nn.Linear(1, 1), nn.Dropout()).double()),
            ValueError,
            "is not pointwise.*dropout",
        ),
        (
            lambda: rise(lambda u: torch.ones(1, dtype=torch.float64, requires_grad=True) * u),
            TypeError,
            "make it a torch.nn.Module",
        ),
        (solve_nan, ValueError, "NaN or infinity at 120 of 120 points, first for the operands"),
        # operands and spaces
        (lambda: operator(operands="u"), TypeError, "UFL expression such as u.*got str"),
        (lambda: operator(operands=()), TypeError, "at least one operand"),
        (lambda: operator(operands=v1()), TypeError, "holds a test or trial function"),
        (nested, NotImplementedError, "compose the torch functions"),
        (lambda: operator(degree=None), ValueError, "either degree=.*got neither"),
        (lambda: operator(V=space(), degree=2), ValueError, "either degree=.*got both"),
        (
            lambda: operator(V=FunctionSpace(mesh(), "RT", 1), value_shape=(2,)),
            ValueError,
            "RT 1 has no nodes",
        ),
        (
            lambda: operator(V=space(), value_shape=(2,)),
            ValueError,
            r"values have shape \(2,\), those of CG 1 \(\)",
        ),
        (lambda: operator(V=space().dual()), TypeError, "takes functions"),
        (lambda: operator(pointwise=False), ValueError, "needs function_space="),
        (lambda: operator(V=space(), pointwise=False, degree=2), ValueError, "degree= is for"),
        (
            lambda: operator(V=space(), pointwise=False, operands=grad(Function(space()))),
            TypeError,
            "are Functions, got Grad",
        ),
        (
            lambda: rise(lambda u: u[:, :4], V=space(), pointwise=False),
            ValueError,
            r"returned a torch.float64 tensor of shape \(1, 4\).*expected .* \(1, 30\)",
        ),
        (
            lambda: rise(lambda u: u / 0 * 0, V=space(), pointwise=False),
            ValueError,
            "NaN or infinity in 30 of 30 dofs of CG 1",
        ),
        # forms and solves
        (lambda: firedrake_assemble(operator() * dx), TypeError, "use spon.fem.assemble"),
        (lambda: taped_stock(operator() * v1() * dx), TypeError, "use spon.fem.assemble"),
        (stock_solve, TypeError, "spon.fem.solve"),
        (lambda: fem.assemble(operator() * ds), NotImplementedError, "exterior_facet integral"),
        (
            lambda: fem.assemble(operator() * dx(degree=3)),
            ValueError,
            r"quadrature degrees \[3, 4\]",
        ),
        (
            lambda: fem.assemble(operator() * operator(degree=2) * dx),
            ValueError,
            r"quadrature degrees \[2, 4\]",
        ),
        (lambda: fem.solve(operator(), None), TypeError, "F == 0 or a == L, got PointSymbol"),
        (
            lambda: fem.solve(operator() * v1() * dx == 0, Function(space())),
            ValueError,
            "does not occur in the residual",
        ),
        (equation_bc, TypeError, "Only Dirichlet conditions.*got EquationBC"),
        (
            lambda: fem.assemble(operator() * v1() * dx, bcs=DirichletBC(space(), 0, 1)),
            ValueError,
            "bc.zero",
        ),
        (derivative_at_nodes, NotImplementedError, "interpolated, so its derivative is no UFL"),
        (derivative_of_network, NotImplementedError, "dense matrix and no UFL form"),
        (shape_derivative, NotImplementedError, "mesh coordinates"),
    ],
)
def test_wrong_use_says_what_was_given(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_solve_that_does_not_converge():
    V = space()
    u, v = Function(V), TestFunction(V)
    k = fem.external_operator(lambda u: 1 + u**2, operands=u, degree=4)
    F = k * inner(grad(u), grad(v)) * dx - 5 * v * dx
    bc = DirichletBC(V, 0.0, 1)
    with pytest.raises(ConvergenceError, match="DIVERGED_MAX_IT"):
        fem.solve(F == 0, u, bc, solver_parameters={"snes_max_it": 2})
    law = fem.external_operator(lambda u: torch.exp(u), V, operands=u)
    F = inner(grad(u), grad(v)) * dx - 1e3 * law * v * dx
    with pytest.raises(ConvergenceError, match="Newton's method with the operator network"):
        fem.solve(F == 0, u.assign(0.0), bc, solver_parameters={"snes_max_it": 3})


PARALLEL = """
import numpy as np, torch
from firedrake import *
from firedrake.adjoint import *
from spon.fem import external as fem
from spon.fem.tape import fem_operator

class K(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor([1.0, 0.5, 0.3], dtype=torch.float64))
    def forward(self, z):
        return self.a[0] + self.a[1] * z[:, 0] ** 2 + self.a[2] * z[:, 1:].pow(2).sum(1)

def run(mesh, kind):
    V, x = FunctionSpace(mesh, "CG", 1), SpatialCoordinate(mesh)
    f = Function(V).interpolate(3 * sin(3 * x[0]) * x[1] + 2)
    u, v, bc = Function(V), TestFunction(V), DirichletBC(V, 0.3, "on_boundary")
    with set_working_tape(Tape()):
        continue_annotation()
        if kind == "points":
            k = fem.external_operator(K(), operands=(u, grad(u)), degree=4)
        else:
            k = fem.external_operator(lambda u, f: 1 + u**2 + 0.1 * f, V, operands=(u, f))
        F = k * inner(grad(u), grad(v)) * dx - f * v * dx
        solver = fem.ExternalSolver(F, u, bc, solver_parameters={"snes_rtol": 1e-12})
        solver.solve()
        J = fem.assemble(k * u**2 * dx)
        pause_annotation()
        m, h = [f], [Function(V).interpolate(cos(5 * x[0]))]
        if kind == "points":
            m.append(k.weights.function)
            h.append(m[1].copy(deepcopy=True))
            h[1].dat.data_wo[...] = [0.1, -0.2, 0.3]
        functional = ReducedFunctional(J, [Control(c) for c in m])
        found = [functional(m), norm(u), solver.iterations]
        d = functional.derivative()
        found += [b._ad_dot(a) for a, b in zip(d, h)]
        found.append(functional.tlm(h))
        if kind == "points":
            found += [b._ad_dot(a) for a, b in zip(functional.hessian(h), h)]
        if mesh.comm.size > 1:
            try:
                fem_operator(functional)
            except NotImplementedError as error:
                assert "distributed over 2" in str(error)
            else:
                raise SystemExit("fem_operator did not refuse")
    return found

for kind in ("points", "nodes"):
    ours = run(UnitSquareMesh(6, 6), kind)
    alone = run(UnitSquareMesh(6, 6, comm=COMM_SELF), kind)
    assert np.allclose(ours, alone, rtol=1e-8), (kind, ours, alone)

# What one process raises, all raise.
mesh = UnitSquareMesh(6, 6)
V = FunctionSpace(mesh, "CG", 1)
r = Function(V)
r.dat.data_wo[...] = float(COMM_WORLD.rank)
k = fem.external_operator(lambda u: torch.sqrt(0.01 - u), operands=r, degree=1)
try:
    fem.assemble(k * dx)
except (RuntimeError, ValueError) as error:
    assert "NaN or infinity" in str(error), error
else:
    raise SystemExit("NaN on one process was not noticed")
try:
    fem.external_operator(lambda u: u, V, operands=r, pointwise=False)
except NotImplementedError as error:
    assert "distributed over 2" in str(error)
else:
    raise SystemExit("a network on a distributed mesh was not refused")
print("agrees")
"""


@pytest.mark.parallel
def test_pointwise_operators_on_a_distributed_mesh(tmp_path):
    assert run_script(PARALLEL, tmp_path).count("agrees") == 2
