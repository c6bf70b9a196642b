"""Integrals as compiled loops against `assemble`, and torch where there is no compiler."""

import numpy as np
import pytest
import torch
import zoo
from firedrake import Constant, Function, FunctionSpace, TestFunction, UnitSquareMesh, dx, exp
from memory import least_growth
from test_forms import assembled, at_rows, close, rows

from spon import quadrature
from spon.fem import quadrature_forms, torch_form

NAMES = [case.name for case in zoo.CASES if "torch" in case.backends]


@pytest.fixture
def always(monkeypatch):
    """Compile however little work there is."""
    monkeypatch.setattr(quadrature, "LEAST_WORK", 0)


@pytest.fixture
def libraries(monkeypatch):
    """What the compiler gave."""
    given, compiler = [], quadrature_forms._compiled

    def compiled(code):
        given.append(compiler(code))
        return given[-1]

    monkeypatch.setattr(quadrature_forms, "_compiled", compiled)
    return given


def gradients(form, xs):
    xs = [x.clone().requires_grad_() for x in xs]
    values = form(*xs)
    weights = torch.linspace(-1, 1, values.numel(), dtype=values.dtype).view(values.shape)
    return torch.autograd.grad((values * weights).sum(), xs)


@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_assemble(name, always, libraries):
    form, inputs = zoo.build(name)
    # One sample in the last group of a double's sixteen.
    xs = rows(inputs, count=17)
    values = torch_form(form, inputs, "torch")(*xs)
    expected = at_rows(inputs, xs, lambda: assembled(form))
    close(values, expected if form.arguments() else expected[:, 0], 1e-12)
    assert libraries and all(library is not None for library in libraries)


@pytest.mark.parametrize("name", ["glass", "navier_stokes", "robin_and_neumann"])
def test_gradients_are_those_of_the_native_backend(name, always, libraries):
    form, inputs = zoo.build(name)
    xs = rows(inputs, count=9)
    found = gradients(torch_form(form, inputs, "torch"), xs)
    for a, b in zip(found, gradients(torch_form(form, inputs), xs), strict=True):
        close(a, b, 1e-11)
    single = gradients(torch_form(form, inputs, "torch"), [x.float() for x in xs])
    for a, b in zip(single, found, strict=True):
        close(a, b, 1e-4)
    assert libraries and all(library is not None for library in libraries)


def test_a_number_of_threads_changes_no_bit(always):
    form, inputs = zoo.build("glass")
    xs = rows(inputs, count=50)
    f = torch_form(form, inputs, "torch")
    before, threads = f(*xs), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(f(*xs), before)
    finally:
        torch.set_num_threads(threads)


def test_memory_stays_flat(always):
    form, inputs = zoo.build("glass")
    xs = rows(inputs, count=9)
    f = torch_form(form, inputs, "torch")
    grown, objects = least_growth(lambda: f(*xs), 500)
    assert grown < 1e5
    assert objects < 8


def test_little_work_is_left_to_torch(libraries):
    form, inputs = zoo.build("poisson")
    torch_form(form, inputs, "torch")(*rows(inputs, count=9))
    assert not libraries


def test_torch_serves_where_nothing_can_be_compiled(always, monkeypatch):
    def without(*args, **kwargs):
        raise OSError("no compiler")

    monkeypatch.setattr(quadrature_forms, "load", without)
    form, inputs = zoo.build("glass")
    xs = rows(inputs, count=9)
    values = torch_form(form, inputs, "torch")(*xs)
    close(values, torch_form(form, inputs)(*xs), 1e-12)


def test_a_bad_sample_leaves_the_others_alone(always):
    V = FunctionSpace(UnitSquareMesh(4, 4), "CG", 2)
    u, v, k = Function(V), TestFunction(V), Constant(2.0)
    f = torch_form(exp(k * u) * v * dx(degree=4), u, "torch")
    x = torch.randn(20, V.dim(), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    clean = f(x)
    x[19, 3] = np.nan
    values = f(x)
    assert torch.equal(values[:19], clean[:19])
    assert values[19].isnan().any()
