"""`torch_form` against `assemble`: values, derivatives, shapes, and how it refuses."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import zoo
from families import mesh_of_cells, random_function, space
from firedrake import (
    CircleManifoldMesh,
    Cofunction,
    Constant,
    Function,
    FunctionSpace,
    RelabeledMesh,
    SpatialCoordinate,
    TestFunction,
    TrialFunction,
    UnitSquareMesh,
    VectorFunctionSpace,
    action,
    adjoint,
    assemble,
    cell_avg,
    conditional,
    derivative,
    dot,
    ds,
    dx,
    exp,
    grad,
    inner,
    interpolate,
    replace,
    sin,
)
from memory import least_growth
from taylor import rates

from spon import fem
from spon.fem import torch_form

CASES = [
    pytest.param(case.name, backend, id=f"{case.name}-{backend}")
    for case in zoo.CASES
    for backend in case.backends
]
NAMES = [case.name for case in zoo.CASES]


def assembled(form):
    """Entries of an assembled 0-form or 1-form."""
    result = assemble(form)
    return np.atleast_1d(result) if np.isscalar(result) else zoo.vector(result)


def rows(inputs, count=2, seed=7, spread=0.1):
    """Coefficients of the inputs and small changes of them, (count, dim) for each input."""
    rng = torch.Generator().manual_seed(seed)
    result = []
    for f in inputs:
        x = torch.from_numpy(zoo.vector(f))
        scale = spread * x.abs().max()
        changes = torch.randn(count, len(x), generator=rng, dtype=torch.float64) * scale
        changes[0] = 0
        result.append(x + changes)
    return result


def fill(f, x):
    """Overwrite a Function or a Constant."""
    if isinstance(f, Constant):
        f.assign(x.numpy().reshape(f.ufl_shape) if f.ufl_shape else float(x[0]))
        return
    start = 0
    for part in f.subfunctions:
        target = part.dat.data_wo
        target[...] = x[start : start + target.size].numpy().reshape(target.shape)
        start += target.size


def at_rows(inputs, xs, evaluate):
    """What `evaluate` gives for each row; the inputs are left as they were."""
    before = [torch.from_numpy(zoo.vector(f)) for f in inputs]
    results = []
    for row in range(len(xs[0])):
        for f, x in zip(inputs, xs, strict=True):
            fill(f, x[row])
        results.append(evaluate())
    for f, x in zip(inputs, before, strict=True):
        fill(f, x)
    return np.stack(results)


def close(a, b, tolerance):
    a, b = np.asarray(a), np.asarray(b)
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_values_are_those_of_assemble(name, backend):
    form, inputs = zoo.build(name)
    xs = rows(inputs)
    values = torch_form(form, inputs, backend)(*xs)
    expected = at_rows(inputs, xs, lambda: assembled(form))
    close(values, expected if form.arguments() else expected[:, 0], 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_first_derivatives_are_those_of_assembled_jacobians(name):
    form, inputs = zoo.build(name)
    xs = [x.requires_grad_() for x in rows(inputs)]
    weights = None
    if form.arguments():
        V = form.arguments()[0].function_space()
        weights = random_function(V, 11)
        w = torch.from_numpy(zoo.vector(weights))
    values = [torch_form(form, inputs, b)(*xs) for b in zoo.BOTH]
    found = [
        torch.autograd.grad((y @ w).sum() if weights is not None else y.sum(), xs) for y in values
    ]
    plain = [x.detach() for x in xs]
    for number, f in enumerate(inputs):
        if isinstance(f, Constant):
            expected = constant_gradient(form, f, weights)
        elif weights is None:
            expected = derivative(form, f)
        else:
            expected = action(adjoint(derivative(form, f)), weights)
        reference = at_rows(inputs, plain, lambda e=expected: assembled(e))
        for gradients in found:
            close(gradients[number], reference, 1e-11)


def constant_gradient(form, constant, weights):
    """The derivative of a form by a scalar constant, as a 0-form."""
    if weights is not None:
        form = replace(form, {form.arguments()[0]: weights})
    return derivative(form, constant, Constant(1.0))


@pytest.mark.parametrize("name", [case.name for case in zoo.CASES if case.smooth])
def test_taylor_rates_in_the_torch_backend(name):
    check_taylor(*zoo.build(name), "torch")


@pytest.mark.parametrize(
    "name",
    [
        "poisson",
        "navier_stokes",
        "neo_hookean_energy_2d",
        "heat_step",
        "mixed_darcy",
        "upwind_flux",
    ],
)
def test_taylor_rates_in_the_native_backend(name):
    check_taylor(*zoo.build(name), "native")


def check_taylor(form, inputs, backend):
    """Both rates for each input, the operator called for three batches before each backward."""
    operator = torch_form(form, inputs, backend)
    batches = [rows(inputs, count=2, seed=s, spread=0.05) for s in (1, 2, 3)]
    rng = torch.Generator().manual_seed(5)
    sample = operator(*batches[0])
    weight = torch.randn(sample.shape, generator=rng, dtype=torch.float64)

    def value(x, number):
        total = 0.0
        for batch in batches:
            changed = [x if i == number else b for i, b in enumerate(batch)]
            y = operator(*changed)
            total = total + (weight * y).sum() + 0.5 * (y**2).sum() / sample.abs().max()
        return total

    for number in range(len(inputs)):
        first, second = rates(lambda x, n=number: value(x, n), batches[0][number])
        assert first >= 1.95, f"input {number}: first rate {first}"
        assert second >= 2.95, f"input {number}: second rate {second}"


@pytest.mark.parametrize("backend", zoo.BOTH)
def test_gradients_are_right_when_one_operator_is_called_again_before_backward(backend):
    form, inputs = zoo.build("heat_step")
    operator = torch_form(form, inputs, backend)
    xs = rows(inputs, count=3)
    samples = [x.clone().requires_grad_() for x in xs[0]]
    total = sum((operator(x, *(o[i] for o in xs[1:])) ** 2).sum() for i, x in enumerate(samples))
    together = torch.autograd.grad(total, samples)
    for i, gradient in enumerate(together):
        alone = xs[0][i].clone().requires_grad_()
        (operator(alone, *(o[i] for o in xs[1:])) ** 2).sum().backward()
        torch.testing.assert_close(gradient, alone.grad, rtol=1e-13, atol=0)


@pytest.mark.parametrize("backend", zoo.BOTH)
def test_the_coordinates_are_an_input(backend):
    mesh = mesh_of_cells("triangle")
    V = FunctionSpace(mesh, "CG", 2)
    u, v = random_function(V), TestFunction(V)
    x = SpatialCoordinate(mesh)
    form = (inner(grad(u), grad(v)) + sin(x[0]) * u**2 * v) * dx(degree=4) + x[1] * v * ds(degree=3)
    operator = torch_form(form, [u, mesh], backend)
    X = fem.to_tensor(mesh.coordinates)[None].clone().requires_grad_()
    y = operator(fem.to_tensor([u]), X)
    close(y[0].detach(), assembled(form), 1e-12)
    w = random_function(V, 3)
    (gradient,) = torch.autograd.grad((y @ fem.to_tensor(w)).sum(), X)
    direction = TestFunction(mesh.coordinates.function_space())
    expected = assembled(derivative(replace(form, {v: w}), x, direction))
    close(gradient[0], expected, 1e-11)
    values = fem.to_tensor([u, u])
    moved = X.detach() + 1e-2 * torch.randn(2, X.shape[1], dtype=torch.float64,
                                            generator=torch.Generator().manual_seed(0))  # fmt: skip
    first, second = rates(lambda z: (operator(values, z) ** 2).sum(), moved)
    assert first >= 1.95 and second >= 2.95


@pytest.mark.parametrize("backend", zoo.BOTH)
def test_derivatives_use_the_quadrature_of_the_form(backend):
    # Firedrake estimates a higher degree for the derivative of exp(k) than for exp(k).
    mesh = mesh_of_cells("triangle")
    V, K = FunctionSpace(mesh, "CG", 1), FunctionSpace(mesh, "DG", 1)
    u, k, v = random_function(V), random_function(K, 1), TestFunction(V)
    operator = torch_form(exp(k) * inner(grad(u), grad(v)) * dx, [u, k], backend)
    xs = [fem.to_tensor([f]) for f in (u, k)]
    first, _ = rates(lambda z: (operator(xs[0], z) ** 2).sum(), xs[1])
    assert first >= 1.95


@pytest.mark.parametrize("backend", zoo.BOTH)
def test_torch_func(backend):
    form, inputs = zoo.build("neo_hookean_energy_2d")
    energy = torch_form(form, inputs, backend)
    (u,) = inputs
    x = torch.from_numpy(zoo.vector(u))
    hessian = torch.func.hessian(energy)(x)
    expected = assemble(derivative(derivative(form, u), u)).petscmat[:, :]
    close(hessian, expected, 1e-11)
    residual, (u,) = zoo.build("neo_hookean_residual_2d")
    operator = torch_form(residual, u, backend)
    x = torch.from_numpy(zoo.vector(u))
    expected = assemble(derivative(residual, u)).petscmat[:, :]
    close(torch.func.jacfwd(operator)(x), expected, 1e-11)
    close(torch.func.jacrev(operator)(x), expected, 1e-11)
    batch = torch.stack([x, 0.5 * x, -0.5 * x])
    mapped = torch.func.vmap(lambda z: operator(z), in_dims=1)(batch.T)
    torch.testing.assert_close(mapped, operator(batch), rtol=1e-12, atol=1e-13)
    direction = torch.linspace(0, 1, len(x), dtype=torch.float64)
    y, tangent = torch.func.jvp(operator, (x,), (direction,))
    close(tangent, expected @ direction.numpy(), 1e-11)
    close(y, operator(x), 1e-14)


@pytest.mark.parametrize("backend", zoo.BOTH)
@pytest.mark.parametrize("name", ["saturating_law", "neo_hookean_energy_3d", "upwind_flux"])
def test_single_precision(name, backend):
    form, inputs = zoo.build(name)
    operator = torch_form(form, inputs, backend)
    xs = [x.requires_grad_() for x in rows(inputs)]
    single = [x.detach().float().requires_grad_() for x in xs]
    y, z = operator(*xs), operator(*single)
    assert z.dtype == torch.float32
    close(z.detach().double(), y.detach(), 2e-5)
    w = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad((z * w.float()).sum(), single)
    for a, b in zip(gradients, torch.autograd.grad((y * w).sum(), xs), strict=True):
        close(a.double(), b, 2e-4)


@pytest.mark.parametrize("backend", zoo.BOTH)
def test_batches_and_single_vectors(backend):
    form, inputs = zoo.build("heat_step")
    operator = torch_form(form, inputs, backend)
    u, old, dt = rows(inputs, count=70)  # more than one chunk of cells would hold
    whole = operator(u, old, dt[0])
    assert whole.shape == u.shape
    torch.testing.assert_close(whole[5], operator(u[5], old[5], dt[0]))
    torch.testing.assert_close(operator(u[5], old[:1], dt[0])[0], operator(u[5], old[0], dt[0]))
    shared = dt[0].clone().requires_grad_()
    operator(u, old, shared).sum().backward()
    assert shared.grad.shape == (1,)
    energy, (displacement,) = zoo.build("neo_hookean_energy_2d")
    functional = torch_form(energy, displacement, backend)
    x = torch.from_numpy(zoo.vector(displacement))
    assert functional(x).shape == ()
    assert functional(x[None]).shape == (1,)


@pytest.mark.parametrize("backend", zoo.BOTH)
def test_what_is_no_input_keeps_its_value(backend):
    mesh = UnitSquareMesh(2, 2)
    V = FunctionSpace(mesh, "CG", 1)
    u, k, c, v = Function(V).assign(1.0), Function(V).assign(2.0), Constant(3.0), TestFunction(V)
    operator = torch_form(c * k * u * v * dx, u, backend)
    ones = torch.ones(V.dim(), dtype=torch.float64)
    assert float(operator(ones).sum()) == pytest.approx(6.0)
    k.assign(0.0)
    c.assign(0.0)
    u.assign(9.0)
    mesh.coordinates.dat.data[...] *= 2
    assert float(operator(ones).sum()) == pytest.approx(6.0)
    x = ones.clone().requires_grad_()
    operator(x).sum().backward()
    assert float(x.grad.sum()) == pytest.approx(6.0)
    assert u.dat.data_ro[0] == 9.0


@pytest.mark.parametrize("backend", zoo.BOTH)
def test_a_derivative_that_vanishes(backend):
    V = space("triangle", "CG", 1)
    f, v = random_function(V), TestFunction(V)
    operator = torch_form(f * v * dx, f, backend)
    x = fem.to_tensor([f]).requires_grad_()
    (g,) = torch.autograd.grad(operator(x).sum(), x, create_graph=True)
    (h,) = torch.autograd.grad(g.sum(), x, allow_unused=True)
    assert h is None or not h.any()


@pytest.mark.parametrize("backend", zoo.BOTH)
def test_components_as_coefficients(backend):
    mesh = mesh_of_cells("triangle")
    V, W = FunctionSpace(mesh, "CG", 1), VectorFunctionSpace(mesh, "CG", 1)
    f, g, v = random_function(V), random_function(W, 1), TestFunction(V)
    for i in range(2):
        form = f * exp(g.sub(i)) * v * dx(degree=4)
        for inputs in ([f], [f, g.sub(i)]):
            xs = [torch.from_numpy(zoo.vector(x.copy(deepcopy=True))) for x in inputs[:1]]
            xs += [torch.from_numpy(np.array(g.dat.data_ro[:, i]))] * (len(inputs) - 1)
            operator = torch_form(form, inputs, backend)
            close(operator(*xs), assembled(f * exp(g[i]) * v * dx(degree=4)), 1e-12)
            first, _ = rates(lambda z, o=operator, r=xs: (o(*r[:-1], z) ** 2).sum(), xs[-1])
            assert first >= 1.95
    with pytest.raises(ValueError, match="shares its values with an input"):
        torch_form(f * g[1] * g.sub(0) * v * dx, g, backend)
    with pytest.raises(ValueError, match="shares its values with an input"):
        torch_form(f * Function(V, val=f.dat, name="twin") * v * dx, f, backend)


@pytest.mark.parametrize("backend", zoo.BOTH)
@pytest.mark.parametrize("shape", [(2,), (2, 2)])
def test_constants_of_any_shape_are_inputs(backend, shape):
    mesh = mesh_of_cells("triangle")
    V = FunctionSpace(mesh, "CG", 1)
    u, v = random_function(V), TestFunction(V)
    c = Constant(np.arange(1.0, 1 + np.prod(shape)).reshape(shape))
    flux = dot(c, grad(u)) if len(shape) == 2 else inner(c, grad(u)) * c
    form = inner(flux, grad(v)) * (1 + u**2) * dx(degree=4)
    operator = torch_form(form, [u, c], backend)
    xs = fem.to_tensor([u, u]), torch.from_numpy(zoo.vector(c)).expand(2, -1)
    close(operator(*xs)[0], assembled(form), 1e-12)
    first, second = rates(lambda z: (operator(xs[0], z) ** 2).sum(), xs[1])
    assert first >= 1.95 and second >= 2.95


@pytest.mark.parametrize("backend", zoo.BOTH)
def test_quadrature_spaces_on_a_part_of_the_domain(backend):
    mesh = UnitSquareMesh(3, 3)
    right = Function(FunctionSpace(mesh, "DG", 0)).interpolate(
        conditional(SpatialCoordinate(mesh)[0] > 0.5, 1, 0)
    )
    mesh = RelabeledMesh(mesh, [right], [7])
    V, Q = FunctionSpace(mesh, "CG", 1), FunctionSpace(mesh, "Quadrature", 2)
    f, q, v = random_function(V), random_function(Q, 1), TestFunction(V)
    for form in (
        q * f * v * dx(7) + exp(5 * f) * v * dx,
        q * f * v * dx(7) + exp(5 * f) * v * ds(1),
    ):
        close(torch_form(form, f, backend)(fem.to_tensor(f)), assembled(form), 1e-12)


def test_calls_from_several_threads_do_not_mix():
    form, (u,) = zoo.build("neo_hookean_residual_2d")
    operator = torch_form(form, u, "torch")
    x = torch.from_numpy(zoo.vector(u))
    batches = [x * torch.linspace(0, s, 8, dtype=torch.float64)[:, None] for s in (0.5, 1.0)]
    expected = [operator(b) for b in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: (i % 2, operator(batches[i % 2])), range(200)))
    assert all(torch.equal(y, expected[i]) for i, y in found)


@pytest.mark.parametrize("backend", zoo.BOTH)
def test_an_empty_batch(backend):
    form, (u,) = zoo.build("neo_hookean_residual_2d")
    x = torch.zeros(0, u.function_space().dim(), dtype=torch.float64)
    assert torch_form(form, u, backend)(x).shape == x.shape


def test_a_surface_whose_cells_have_no_orientation():
    mesh = CircleManifoldMesh(5)
    V = FunctionSpace(mesh, "CG", 1)
    u, v = random_function(V), TestFunction(V)
    form = (inner(grad(u), grad(v)) + u**3 * v) * dx(degree=4)
    close(torch_form(form, u, "torch")(fem.to_tensor(u)), assembled(form), 1e-12)


@pytest.mark.parametrize("backend", zoo.BOTH)
def test_memory_stays_flat(backend):
    V = FunctionSpace(UnitSquareMesh(20, 20), "CG", 1)
    u, v = random_function(V), TestFunction(V)
    operator = torch_form((1 + u**2) * inner(grad(u), grad(v)) * dx, u, backend)
    x = torch.randn(8, V.dim(), dtype=torch.float64, requires_grad=True)

    def step():
        (operator(x) ** 2).sum().backward()
        x.grad = None

    grown, _ = least_growth(step, 100)
    assert grown < 1e6  # one leaked batch a call would be 2.8e6


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda V, u, v: torch_form(3, u), TypeError, "Expected a UFL form, got int"),
        (
            lambda V, u, v: torch_form(Cofunction(V.dual()), u),
            TypeError,
            "got Cofunction: assemble it",
        ),
        (
            lambda V, u, v: torch_form(u * TrialFunction(V) * v * dx, u),
            ValueError,
            "this one has 2: spon.fem.sparse_map takes bilinear forms",
        ),
        (
            lambda V, u, v: torch_form(u * v * dx, Function(V, name="other")),
            ValueError,
            r"'other' in CG 1.*does not occur in the form, whose coefficients are: 'given' in CG 1",
        ),
        (
            lambda V, u, v: torch_form(u * v * dx, [u, Constant(1.0)]),
            ValueError,
            "Input 1, a Constant, does not occur",
        ),
        (lambda V, u, v: torch_form(u * v * dx, [u, u]), ValueError, "given twice"),
        (lambda V, u, v: torch_form(u * v * dx, ["u"]), TypeError, "Input 0 is a str"),
        (lambda V, u, v: torch_form(u * v * dx, u, "jax"), ValueError, "Unknown backend 'jax'"),
        (
            lambda V, u, v: torch_form(u * v * dx, UnitSquareMesh(1, 1)),
            ValueError,
            "a mesh on which the form has no integral",
        ),
        (
            lambda V, u, v: torch_form(interpolate(u**2, V) * v * dx, u),
            NotImplementedError,
            "The form contains Interpolate",
        ),
        (
            lambda V, u, v: torch_form(cell_avg(u) * v * dx, u, "torch"),
            NotImplementedError,
            "cannot translate CellAvg",
        ),
        (
            lambda V, u, v: torch_form(
                (f := Function(FunctionSpace(V.mesh(), "Argyris", 5))) * v * dx, f, "torch"
            ),
            NotImplementedError,
            "does not evaluate Argyris 5",
        ),
        (
            lambda V, u, v: torch_form(u * v * dx, u)(torch.zeros(2, 3)),
            ValueError,
            r"shape \(2, 3\) for input 0 \('given' in CG 1\): expected \(batch, 12\) or \(12,\)",
        ),
        (
            lambda V, u, v: torch_form(u * v * dx, u)(torch.zeros(12, dtype=torch.int64)),
            TypeError,
            "Expected float32 or float64 for input 0",
        ),
        (lambda V, u, v: torch_form(u * v * dx, u)(u), TypeError, "got Function: spon.fem.to_ten"),
        (lambda V, u, v: torch_form(u * v * dx, u)(), ValueError, "1 inputs .* got 0 tensors"),
        (
            lambda V, u, v: torch_form(u * (w := Function(V)) * v * dx, [u, w])(
                torch.zeros(2, 12), torch.zeros(3, 12)
            ),
            ValueError,
            r"different batch sizes: \[2, 3\]",
        ),
        (
            lambda V, u, v: torch_form(u * (w := Function(V)) * v * dx, [u, w])(
                torch.zeros(2, 12), torch.zeros(2, 12).double()
            ),
            TypeError,
            "bring all inputs to one dtype and device",
        ),
    ],
)
def test_wrong_calls_say_what_was_given(call, error, message):
    V = space("triangle", "CG", 1)
    with pytest.raises(error, match=message):
        call(V, Function(V, name="given"), TestFunction(V))
