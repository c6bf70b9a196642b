"""Linear solves of batches against dense algebra, Firedrake's own solves and Taylor's formula."""

from __future__ import annotations

import firedrake as fd
import numpy as np
import pytest
import torch
from families import FAMILIES, mesh_of_cells, space
from firedrake import dx, grad, inner
from memory import least_growth
from processes import run_script
from taylor import rates

import spon.fem.factor
from spon.fem.factor import SparseLU
from spon.fem.solvers import LinearSolver, SingularMatrixError
from spon.fem.spaces import to_function, to_tensor

BATCH = 3


def uniform(*shape, seed=0, low=0.0, high=1.0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.uniform(low, high, shape))


def copies(*xs):
    return [x.detach().clone().requires_grad_() for x in xs]


def assert_taylor(solver, inputs, scale=5e-3):
    """Remainders of first and second order for each input, with two calls before each backward."""
    weights = uniform(*solver(*inputs).shape, seed=9, low=-1.0)
    for i in range(len(inputs)):

        def value(x, i=i):
            first = solver(*inputs[:i], x, *inputs[i + 1 :])
            second = solver(*inputs[:i], 1.01 * x, *inputs[i + 1 :])
            return (weights * torch.sin(first)).sum() + 0.1 * (second**3).sum()

        first, second = rates(value, inputs[i], scale)
        assert first >= 1.95 and second >= 2.95, (i, first, second)


def dense(a):
    matrix = fd.assemble(a, mat_type="aij").petscmat
    return torch.from_numpy(matrix.convert("dense").getDenseArray().copy())


class Problem:
    """Diffusion and reaction with a coefficient, a source and conditions of every kind."""

    def __init__(self, n=5, degree=2):
        self.mesh = fd.UnitSquareMesh(n, n - 1)
        x, y = fd.SpatialCoordinate(self.mesh)
        V = self.V = fd.FunctionSpace(self.mesh, "CG", degree)
        K = fd.FunctionSpace(self.mesh, "DG", 0)
        self.u, self.v = fd.TrialFunction(V), fd.TestFunction(V)
        self.k, self.f = fd.Function(K, name="k"), fd.Function(V, name="f")
        self.c = fd.Constant(1.0)
        g = fd.Function(V).interpolate(fd.sin(3 * x) + y)
        self.bcs = [fd.DirichletBC(V, g, 1), fd.DirichletBC(V, 2.0, 3), fd.DirichletBC(V, x * y, 2)]
        self.laplace = inner(grad(self.u), grad(self.v)) * dx
        self.a = self.k * self.laplace.integrals()[0].integrand() * dx
        self.a += self.c * self.k**2 * self.u * self.v * dx
        self.L = self.k * self.f * self.v * dx + self.v * fd.ds(4)
        self.kappa = uniform(BATCH, K.dim(), low=1.0, high=2.0)
        self.source = uniform(BATCH, V.dim(), seed=1, low=-1.0)
        self.constant = uniform(BATCH, 1, seed=2, low=0.5)
        self.boundary = uniform(BATCH, V.dim(), seed=3, low=-1.0)
        self.load = uniform(BATCH, V.dim(), seed=4, low=-1.0)

    def set(self, i):
        self.k.assign(to_function(self.kappa[i], self.k.function_space()))
        self.f.assign(to_function(self.source[i], self.V))
        self.c.assign(float(self.constant[i]))

    def firedrake(self, a, L, bcs):
        w = fd.Function(self.V)
        fd.solve(a == L, w, bcs)
        return to_tensor(w)


@pytest.fixture(scope="module")
def problem():
    return Problem()


@pytest.mark.parametrize(("cell", "family", "degree"), FAMILIES)
def test_every_family_against_dense_algebra(cell, family, degree):
    V, mesh = space(cell, family, degree), mesh_of_cells(cell)
    u, v = fd.TrialFunction(V), fd.TestFunction(V)
    coefficient = fd.Function(
        fd.FunctionSpace(mesh, "DQ" if cell in ("quadrilateral", "hexahedron") else "DG", 0)
    )
    speed = fd.as_vector([0.05] * mesh.geometric_dimension)
    # Not symmetric, and dominated by the mass, so that every family has a solution.
    a = ((1 + coefficient**2) * inner(u, v) + inner(fd.dot(grad(u), speed), v)) * dx(
        degree=2 * degree + 2
    )
    values = uniform(2, coefficient.function_space().dim())
    b, c = uniform(2, V.dim(), seed=1).requires_grad_(), uniform(2, V.dim(), seed=2)
    x = LinearSolver(a, inputs=coefficient)(b, values)
    (x * c).sum().backward()
    for i in range(2):
        coefficient.assign(to_function(values[i], coefficient.function_space()))
        A = dense(a)
        torch.testing.assert_close(x[i], torch.linalg.solve(A, b.detach()[i]), rtol=1e-8, atol=1e-9)
        adjoint = torch.linalg.solve(A.T, c[i])
        torch.testing.assert_close(b.grad[i], adjoint, rtol=1e-8, atol=1e-9)
    # The same as a constant operator: another road through the code.
    load = b.detach().clone().requires_grad_()
    one = LinearSolver(a)(load)
    (one * c).sum().backward()
    torch.testing.assert_close(one[1], x[1], rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(load.grad[1], b.grad[1], rtol=1e-8, atol=1e-9)


def test_a_constant_operator_agrees_with_firedrake(problem):
    L = problem.f * problem.v * dx + problem.v * fd.ds(4)
    x = LinearSolver(problem.laplace, problem.bcs, inputs=problem.f, L=L)(problem.source)
    by_load = LinearSolver(problem.laplace, problem.bcs)
    for i in range(BATCH):
        problem.set(i)
        expected = problem.firedrake(problem.laplace, L, problem.bcs)
        torch.testing.assert_close(x[i], expected, rtol=0, atol=1e-12)
        load = to_tensor(fd.assemble(L))
        torch.testing.assert_close(by_load(load), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["factor", "cg"])
def test_a_varying_operator_agrees_with_firedrake(problem, mode):
    solver = LinearSolver(
        problem.a, problem.bcs, [problem.k, problem.f, problem.c], problem.L, mode=mode
    )
    x = solver(problem.kappa, problem.source, problem.constant)
    tolerance = 1e-12 if mode == "factor" else 1e-9
    for i in range(BATCH):
        problem.set(i)
        expected = problem.firedrake(problem.a, problem.L, problem.bcs)
        torch.testing.assert_close(x[i], expected, rtol=0, atol=tolerance)


def test_a_load_that_is_nonlinear_in_its_inputs(problem):
    L = (1 + problem.f**3) * problem.v * dx
    x = LinearSolver(problem.laplace, problem.bcs, inputs=problem.f, L=L)(problem.source)
    problem.set(2)
    expected = problem.firedrake(problem.laplace, L, problem.bcs)
    torch.testing.assert_close(x[2], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("varying", [False, True])
def test_values_on_the_boundary_for_each_sample(problem, varying):
    if varying:
        solver = LinearSolver(problem.a, problem.bcs, [problem.k, problem.c])
        x = solver(problem.load, problem.kappa, problem.constant, boundary=problem.boundary)
        a = problem.a
    else:
        solver = LinearSolver(problem.laplace, problem.bcs)
        x = solver(problem.load, boundary=problem.boundary)
        a = problem.laplace
    nodes = np.unique(np.concatenate([bc.nodes for bc in problem.bcs]))
    assert torch.equal(x[:, nodes], problem.boundary[:, nodes])
    for i in range(BATCH):
        problem.set(i)
        g = to_function(problem.boundary[i], problem.V)
        b = to_function(problem.load[i], problem.V.dual())
        expected = problem.firedrake(a, b, fd.DirichletBC(problem.V, g, (1, 2, 3)))
        torch.testing.assert_close(x[i], expected, rtol=0, atol=1e-11)


def test_conditions_on_components_and_parts():
    mesh = fd.UnitSquareMesh(4, 3)
    V = fd.VectorFunctionSpace(mesh, "CG", 1)
    u, v = fd.TrialFunction(V), fd.TestFunction(V)
    a = inner(fd.sym(grad(u)), fd.sym(grad(v))) * dx
    bcs = [fd.DirichletBC(V.sub(0), 0.3, 1), fd.DirichletBC(V, (0.1, 0.2), 3)]
    b = uniform(V.dim())
    w = fd.Function(V)
    fd.solve(a == to_function(b, V.dual()), w, bcs)
    torch.testing.assert_close(LinearSolver(a, bcs)(b), to_tensor(w), rtol=0, atol=1e-12)


def test_saddle_points_get_pivots():
    mesh = fd.UnitSquareMesh(5, 4)
    W = fd.FunctionSpace(mesh, "RT", 1) * fd.FunctionSpace(mesh, "DG", 0)
    (s, p), (t, q) = fd.TrialFunctions(W), fd.TestFunctions(W)
    k = fd.Function(fd.FunctionSpace(mesh, "DG", 0)).assign(1.0)
    a = inner(s, t) / k * dx - fd.div(t) * p * dx - fd.div(s) * q * dx
    bcs = fd.DirichletBC(W.sub(0), fd.as_vector([0.5, 0.0]), 1)
    b, kappa = uniform(9, W.dim()), uniform(9, k.function_space().dim(), low=0.5)
    constant, varying = LinearSolver(a, bcs)(b), LinearSolver(a, bcs, k)(b, kappa)
    w = fd.Function(W)
    fd.solve(a == to_function(b[7], W.dual()), w, bcs)
    torch.testing.assert_close(constant[7], to_tensor(w), rtol=0, atol=1e-11)
    k.assign(to_function(kappa[7], k.function_space()))
    fd.solve(a == to_function(b[7], W.dual()), w, bcs)
    torch.testing.assert_close(varying[7], to_tensor(w), rtol=0, atol=1e-11)


def test_large_fill_goes_to_the_library(problem, monkeypatch):
    x = LinearSolver(problem.a, problem.bcs, [problem.k])(problem.load, problem.kappa)
    monkeypatch.setattr(spon.fem.factor, "_EACH_OPERATIONS", 0)
    solver = LinearSolver(problem.a, problem.bcs, [problem.k])
    y = solver(problem.load, problem.kappa)
    torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-12)


def calls(problem):
    f, k, c = problem.f, problem.k, problem.c
    bcs = problem.bcs
    linear = LinearSolver(problem.laplace, bcs, inputs=f, L=f * problem.v * dx)
    nonlinear = LinearSolver(problem.laplace, bcs, inputs=f, L=f**2 * problem.v * dx)
    varying = LinearSolver(problem.a, bcs, [k, f, c], problem.L)
    loaded = LinearSolver(problem.a, bcs, [k, c], mode="cg", rtol=1e-14)
    shape = LinearSolver(problem.laplace, bcs, [problem.mesh, f], f * problem.v * dx)
    source, boundary, load = problem.source, problem.boundary, problem.load
    kappa, constant = problem.kappa, problem.constant
    nodes = to_tensor(problem.mesh.coordinates) + 0.02 * uniform(BATCH, 2 * 30, seed=7)
    return {
        "constant, linear load": (lambda y, g: linear(y, boundary=g), [source, boundary]),
        "constant, nonlinear load": (nonlinear, [source]),
        "varying": (
            lambda x, y, z, g: varying(x, y, z, boundary=g),
            [kappa, source, constant, boundary],
        ),
        "conjugate gradients": (
            lambda b, x, z, g: loaded(b, x, z, boundary=g),
            [load, kappa, constant, boundary],
        ),
        "coordinates": (
            lambda x, y, g: shape(x, y, boundary=g),
            [nodes, source, boundary],
        ),
    }


@pytest.mark.parametrize(
    "name",
    [
        "constant, linear load",
        "constant, nonlinear load",
        "varying",
        "conjugate gradients",
        "coordinates",
    ],
)
def test_first_and_second_derivatives(problem, name):
    solver, inputs = calls(problem)[name]
    assert_taylor(solver, inputs)


def test_several_calls_before_one_backward_pass(problem):
    solver = LinearSolver(problem.a, problem.bcs, [problem.k, problem.f, problem.c], problem.L)
    together = [copies(problem.kappa * (1 + i), problem.source, problem.constant) for i in range(3)]
    sum((solver(*xs) ** 3).sum() for xs in together).backward()
    for xs in together:
        alone = copies(*xs)
        (solver(*alone) ** 3).sum().backward()
        for x, y in zip(xs, alone, strict=True):
            torch.testing.assert_close(x.grad, y.grad, rtol=1e-13, atol=0)


def test_transforms_of_torch_func(problem):
    solver = LinearSolver(problem.laplace, problem.bcs)
    homogeneous = solver(0 * problem.load)
    _, tangent = torch.func.jvp(solver, (problem.load,), (problem.boundary,))
    torch.testing.assert_close(tangent, solver(problem.boundary) - homogeneous, atol=1e-12, rtol=0)
    factor = solver._engine._factor
    mapped = torch.func.vmap(lambda b: spon.fem.implicit.constant_solve(b[None], factor)[0])
    direct = spon.fem.implicit.constant_solve(problem.load, factor)
    torch.testing.assert_close(mapped(problem.load), direct, atol=1e-13, rtol=0)


def test_single_precision_and_single_samples(problem):
    solver = LinearSolver(problem.a, problem.bcs, [problem.k, problem.f], problem.L)
    x = solver(problem.kappa, problem.source)
    single = solver(problem.kappa.float(), problem.source.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), x, rtol=1e-5, atol=1e-5)
    one = solver(problem.kappa[1], problem.source[1])
    assert one.shape == (problem.V.dim(),)
    torch.testing.assert_close(one, x[1], rtol=0, atol=1e-13)
    shared = problem.kappa[0].clone().requires_grad_()
    y = solver(shared, problem.source)
    torch.testing.assert_close(y[0], x[0], rtol=0, atol=1e-13)
    y.sum().backward()
    assert shared.grad.shape == shared.shape


def test_values_are_those_of_the_time_when_the_solver_was_made(problem):
    problem.set(0)
    other = fd.Function(problem.V).assign(1.0)
    L = problem.f * other * problem.v * dx
    a = problem.laplace + other * problem.k * problem.u * problem.v * dx
    solver = LinearSolver(a, problem.bcs, [problem.k, problem.f], L)
    before = solver(problem.kappa, problem.source)
    other.assign(7.0)
    assert torch.equal(solver(problem.kappa, problem.source), before)


def test_one_factorisation_serves_all(problem, monkeypatch):
    made = []
    factor = SparseLU.factor
    monkeypatch.setattr(SparseLU, "factor", lambda *a, **k: made.append(1) or factor(*a, **k))
    solver = LinearSolver(problem.laplace, problem.bcs)
    for _ in range(3):
        solver(*copies(problem.load)).sum().backward()
    assert len(made) == 1


def test_memory_stays_flat():
    small = Problem(3, 1)
    solvers = [
        LinearSolver(small.laplace, small.bcs[:1]),
        LinearSolver(small.a, small.bcs[:1], [small.k]),
        LinearSolver(small.a, small.bcs[:1], [small.k], mode="cg"),
    ]
    b, kappa = copies(small.load, small.kappa)

    def step():
        for _ in range(50):
            solvers[0](b).sum().backward()
            b.grad = None
        for solver in solvers[1:]:
            solver(b, kappa).sum().backward()

    grown, _ = least_growth(step, 50)  # 10,000 calls of the first solver in all
    assert grown < 1e6


def test_conjugate_gradients_need_a_close_reference(problem):
    inputs = [problem.k, problem.c]
    given = problem.load, problem.kappa, problem.constant
    reference = [problem.kappa[0], problem.constant[0]]
    exact = LinearSolver(problem.a, problem.bcs, inputs)(*given)
    solver = LinearSolver(problem.a, problem.bcs, inputs, mode="cg", reference=reference)
    torch.testing.assert_close(solver(*given), exact, rtol=0, atol=1e-9)
    few = LinearSolver(problem.a, problem.bcs, inputs, mode="cg", max_iterations=2)
    message = r"3 of 3 samples did not converge in 2 iterations.*reference=.*mode=\"factor\""
    with pytest.raises(fd.ConvergenceError, match=message):
        few(*given)
    negative = problem.kappa.clone()
    negative[1] *= -1
    message = "not positive definite in 1 of 3 samples; the first is sample 1"
    with pytest.raises(fd.ConvergenceError, match=message):
        solver(problem.load, negative, problem.constant)


def test_singular_matrices_are_refused(problem):
    with pytest.raises(SingularMatrixError, match=r"99 x 99 on the free.*Dirichlet condition"):
        LinearSolver(problem.laplace)
    V = fd.VectorFunctionSpace(problem.mesh, "CG", 1)
    u, v = fd.TrialFunction(V), fd.TestFunction(V)
    with pytest.raises(SingularMatrixError, match="rigid motion"):
        LinearSolver(inner(fd.sym(grad(u)), fd.sym(grad(v))) * dx)
    solver = LinearSolver(problem.laplace + problem.a, None, [problem.k])
    kappa = problem.kappa.clone()
    kappa[1] = 0
    with pytest.raises(SingularMatrixError, match="of sample 1 of a batch of 3") as refusal:
        solver(problem.load, kappa)
    assert refusal.value.samples == [1]


def wrong(problem):
    p, V, u, v = problem, problem.V, problem.u, problem.v
    solver = LinearSolver(p.a, p.bcs, [p.k, p.f], p.L)
    loaded = LinearSolver(p.laplace, p.bcs)
    nan = p.kappa.clone()
    nan[2, 5] = torch.nan
    other = fd.FunctionSpace(p.mesh, "CG", 1)
    advection = u.dx(0) * v * dx + p.k * p.laplace.integrals()[0].integrand() * dx
    cg = LinearSolver(advection, p.bcs, [p.k], mode="cg")
    g = fd.Function(V, name="g")
    return {
        "form": (lambda: LinearSolver(3), TypeError, "bilinear form for a, got int.*TrialFunction"),
        "rank": (lambda: LinearSolver(v * dx), ValueError, "this one has 1 arguments"),
        "spaces": (
            lambda: LinearSolver(fd.TrialFunction(other) * v * dx),
            ValueError,
            "test functions of a are in.*2.*trial functions in.*1",
        ),
        "L": (lambda: LinearSolver(p.laplace, L=p.laplace), ValueError, "one test function"),
        "assembled": (
            lambda: LinearSolver(p.laplace, L=fd.assemble(v * dx)),
            TypeError,
            "got Cofunction; an assembled load is the first tensor",
        ),
        "unused": (
            lambda: LinearSolver(p.laplace, p.bcs, [p.k]),
            ValueError,
            "'k' in DG 0 occurs neither in a nor in L",
        ),
        "input": (lambda: LinearSolver(p.a, p.bcs, [3]), TypeError, "Input 0 is a int"),
        "mode": (
            lambda: LinearSolver(p.a, mode="lu"),
            ValueError,
            "'lu': choose one of factor, cg",
        ),
        "condition": (
            lambda: LinearSolver(p.a, fd.DirichletBC(other, 0, 1)),
            ValueError,
            "belongs to CG 1.*the solver to CG 2",
        ),
        "dependent": (
            lambda: LinearSolver(p.laplace + g * u * v * dx, fd.DirichletBC(V, g, 1), [g]),
            ValueError,
            "depend on an input.*boundary=values",
        ),
        "count": (lambda: solver(p.kappa), ValueError, "takes 2 tensors.*'k' in DG 0.*got 1"),
        "numpy": (lambda: loaded(p.load.numpy()), TypeError, "tensor for the load, got ndarray"),
        "shape": (
            lambda: solver(p.source, p.source),
            ValueError,
            r"shape \(3, 99\) for 'k' in DG 0: expected \(batch, 40\) or \(40,\)",
        ),
        "integer": (lambda: loaded(p.load.long()), TypeError, "takes float32 or float64"),
        "dtype": (lambda: solver(p.kappa, p.source.float()), TypeError, "bring all to one dtype"),
        "batch": (lambda: solver(p.kappa, p.source[:2]), ValueError, "batch of 2 for 'f'.*of 3"),
        "nan": (
            lambda: solver(nan, p.source),
            ValueError,
            "NaN or infinity in 'k' in DG 0, in 1 of 3 samples; the first is sample 2",
        ),
        "boundary": (
            lambda: LinearSolver(p.laplace + u * v * dx)(p.load, boundary=p.boundary),
            ValueError,
            "no boundary conditions.*bcs=",
        ),
        "boundary shape": (
            lambda: loaded(p.load, boundary=p.boundary[:, :5]),
            ValueError,
            r"\(3, 5\) for boundary: expected \(batch, 99\)",
        ),
        "symmetric": (
            lambda: cg(p.load, p.kappa),
            ValueError,
            'needs a symmetric bilinear form.*mode="factor"',
        ),
    }


NAMES = ["form", "rank", "spaces", "L", "assembled", "unused", "input", "mode", "condition"]
NAMES += ["dependent", "count", "numpy", "shape", "integer", "dtype", "batch", "nan", "boundary"]
NAMES += ["symmetric", "boundary shape"]


@pytest.mark.parametrize("name", NAMES)
def test_wrong_calls_say_what_is_wrong(problem, name):
    call, kind, message = wrong(problem)[name]
    with pytest.raises(kind, match=message):
        call()


def test_nothing_left_to_solve_for_is_refused():
    V = fd.FunctionSpace(fd.UnitSquareMesh(1, 1), "CG", 1)
    a = fd.TrialFunction(V) * fd.TestFunction(V) * dx
    with pytest.raises(ValueError, match="All 4 dofs are prescribed"):
        LinearSolver(a, fd.DirichletBC(V, 0, "on_boundary"))


DISTRIBUTED = """
from firedrake import *
from spon.fem.solvers import LinearSolver, NonlinearSolver
from spon.residual_losses import DualNorm
V = FunctionSpace(UnitSquareMesh(4, 4), 'CG', 1)
u, v, w = TrialFunction(V), TestFunction(V), Function(V)
for make in (lambda: LinearSolver(u * v * dx), lambda: NonlinearSolver(w * v * dx, w),
             lambda: DualNorm(V)):
    try:
        make()
    except NotImplementedError as error:
        assert 'distributed over 2' in str(error), error
    else:
        raise SystemExit('accepted')
"""


@pytest.mark.parallel
def test_distributed_meshes_are_refused(tmp_path):
    run_script(DISTRIBUTED, tmp_path)


def test_conjugate_gradients_refuse_what_they_would_solve_wrongly(problem):
    V, k, f, v, u = problem.V, problem.k, problem.f, problem.v, problem.u
    negative = LinearSolver(-k * inner(grad(u), grad(v)) * dx, problem.bcs, k, mode="cg")
    with pytest.raises(ValueError, match="needs a positive definite operator"):
        negative(problem.load, problem.kappa)
    oblique = inner(grad(u), grad(v)) * dx + k * u.dx(0) * v * dx
    still = [torch.zeros(k.function_space().dim(), dtype=torch.float64)]
    solver = LinearSolver(oblique, problem.bcs, k, mode="cg", reference=still)
    with pytest.raises(ValueError, match="symmetric bilinear form"):
        solver(problem.load, 1e-3 * problem.kappa)
    logarithm = LinearSolver(
        k * inner(grad(u), grad(v)) * dx, problem.bcs, [k, f], fd.ln(f) * v * dx, mode="cg"
    )
    with pytest.raises(fd.ConvergenceError, match="the load is not finite"):
        logarithm(problem.kappa, -torch.ones(V.dim(), dtype=torch.float64))


def test_loads_and_operators_have_the_quadrature_of_firedrake():
    mesh = fd.UnitSquareMesh(3, 3)
    V, K = fd.FunctionSpace(mesh, "CG", 1), fd.FunctionSpace(mesh, "DG", 0)
    G = fd.FunctionSpace(mesh, "CG", 4)
    u, v, x = fd.TrialFunction(V), fd.TestFunction(V), fd.SpatialCoordinate(mesh)
    k, d, g = fd.Function(K), fd.Function(K), fd.Function(G)
    for f, seed in ((k, 0), (d, 1), (g, 2)):
        f.dat.data[:] = uniform(1, f.function_space().dim(), seed=seed)[0].numpy()
    bc = fd.DirichletBC(V, 0, "on_boundary")
    cases = [
        (inner(grad(u), grad(v)) * dx, (d + g) * fd.exp(20 * x[0]) * v * dx, [d, g]),
        (fd.exp(3 * k) * inner(grad(u), grad(v)) * dx, g * v * dx, [k, g]),
    ]
    for a, L, inputs in cases:
        w = fd.Function(V)
        fd.solve(a == L, w, bc)
        found = LinearSolver(a, bc, inputs, L)(*(to_tensor(f) for f in inputs))
        largest = float(to_tensor(w).abs().max())
        torch.testing.assert_close(found, to_tensor(w), rtol=0, atol=1e-12 * largest)


def test_conditions_must_not_depend_on_inputs(problem):
    c, x = problem.c, fd.SpatialCoordinate(problem.mesh)
    bc = fd.DirichletBC(problem.V, c * (1 + x[0]), 1)
    with pytest.raises(ValueError, match="depend on an input"):
        LinearSolver(problem.a, bc, [problem.k, c])
    moving = fd.DirichletBC(problem.V, x[0], 1)
    solver = LinearSolver(problem.laplace, moving, problem.mesh)
    nodes = to_tensor(problem.mesh.coordinates)
    with pytest.raises(ValueError, match="depend on the coordinates, which are an input"):
        solver(problem.load, nodes)


def test_a_vector_constant_is_an_input():
    mesh = fd.UnitSquareMesh(3, 3)
    V = fd.FunctionSpace(mesh, "CG", 1)
    u, v, c = fd.TrialFunction(V), fd.TestFunction(V), fd.Constant((1.0, 2.0))
    a = (1 + inner(c, c)) * inner(grad(u), grad(v)) * dx + fd.dot(c, grad(u)) * v * dx
    solver = LinearSolver(a, fd.DirichletBC(V, 0, "on_boundary"), c)
    load = uniform(2, V.dim())
    assert_taylor(lambda x: solver(load, x), [uniform(2, 2, low=0.5)])
