"""Training without solutions: the losses against what they should be, and `fit` with them."""

import numpy as np
import pytest
import torch
from families import mesh_of_cells, random_function
from firedrake import (
    DirichletBC,
    Function,
    FunctionSpace,
    SpatialCoordinate,
    TestFunction,
    TrialFunction,
    UnitSquareMesh,
    assemble,
    derivative,
    dx,
    grad,
    inner,
    solve,
)
from taylor import rates

import spon
from spon import fem, losses


def poisson(n=6):
    """Weighted Poisson problem with values on the boundary: forms, spaces, conditions."""
    mesh = UnitSquareMesh(n, n)
    K, U = FunctionSpace(mesh, "DG", 0), FunctionSpace(mesh, "CG", 1)
    k, u, v = Function(K), Function(U), TestFunction(U)
    bcs = DirichletBC(U, 1 + SpatialCoordinate(mesh)[0], "on_boundary")
    energy = (0.5 * (1 + k**2) * inner(grad(u), grad(u)) - 8 * u) * dx
    return energy, derivative(energy, u, v), k, u, bcs


def solutions(k, u, residual, bcs, count=3):
    """Random inputs and Firedrake's solutions, as tensors."""
    xs, ys = [], []
    for seed in range(count):
        f = random_function(k.function_space(), seed)
        k.assign(f)
        solve(residual == 0, u, bcs)
        xs.append(fem.to_tensor(f))
        ys.append(fem.to_tensor(u))
    return torch.stack(xs), torch.stack(ys)


def stiffness(U):
    return inner(grad(TrialFunction(U)), grad(TestFunction(U))) * dx


@pytest.mark.parametrize("relative", [False, True])
def test_the_residual_is_zero_at_solutions_and_nowhere_else(relative):
    _, residual, k, u, bcs = poisson()
    xs, ys = solutions(k, u, residual, bcs)
    U = u.function_space()
    form = fem.torch_form(residual, [u, k])
    loss = losses.Residual(form, losses.SquaredDualNorm(U, bcs, stiffness(U)), relative)
    assert float(loss.per_sample(ys, [xs]).max()) < 1e-20
    moved = ys + torch.where(losses.SquaredDualNorm(U, bcs).prescribed, 0.0, 0.1)
    assert float(loss.per_sample(moved, [xs]).min()) > 1e-4
    start = torch.where(losses.SquaredDualNorm(U, bcs).prescribed, ys, 0.0)
    if relative:
        torch.testing.assert_close(loss.per_sample(start, [xs]), torch.ones(3).double())


def test_the_residual_is_bounded_by_the_energy_error():
    # r(u) = A (u - u*): a_min |e|^2 <= r^T G^-1 r <= a_max^2/a_min ... for 1 <= a <= a_max, in the
    # norm of G: |e|_G^2 a_min^2 <= |r|_*^2 <= a_max^2 |e|_G^2.
    _, residual, k, u, bcs = poisson()
    xs, ys = solutions(k, u, residual, bcs)
    U = u.function_space()
    norm = losses.SquaredDualNorm(U, bcs, stiffness(U))
    loss = losses.Residual(fem.torch_form(residual, [u, k]), norm)
    error = torch.randn(ys.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    error = torch.where(norm.prescribed, 0.0, error)
    values = loss.per_sample(ys + error, [xs])
    G = fem.sparse_map(stiffness(U))
    size = (error.T * G(error.T)).sum(0)
    a = 1 + xs**2
    assert (values <= a.amax(1) ** 2 * size).all()
    assert (values >= a.amin(1) ** 2 * size).all()


def test_the_energy_is_that_of_assemble_and_least_at_the_solution():
    energy, residual, k, u, bcs = poisson()
    xs, ys = solutions(k, u, residual, bcs)
    loss = losses.Energy(fem.torch_form(energy, [u, k]), scale=2.0)
    values = loss.per_sample(ys, [xs])
    fem.fill(k, xs[1].numpy())
    fem.fill(u, ys[1].numpy())
    assert float(values[1]) == pytest.approx(assemble(energy) / 2, rel=1e-13)
    inside = ~losses.SquaredDualNorm(u.function_space(), bcs).prescribed
    at = ys.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss.per_sample(at, [xs]).sum(), at)
    assert float(gradient[:, inside].abs().max()) < 1e-12


@pytest.mark.parametrize("kind", ["residual", "root", "energy"])
def test_taylor_rates(kind):
    energy, residual, k, u, bcs = poisson(4)
    U = u.function_space()
    x, y = random_function(k.function_space(), 1), random_function(U, 2)
    form = fem.torch_form(residual, [u, k])
    loss = {
        "residual": lambda: losses.Residual(form, losses.SquaredDualNorm(U, bcs)),
        "root": lambda: losses.Residual(form, losses.DualNorm(U, bcs)),
        "energy": lambda: losses.Energy(fem.torch_form(energy, [u, k])),
    }[kind]()
    inputs, prediction = fem.to_tensor([x, x]), fem.to_tensor([y, y])
    for value, at in (
        (lambda z: loss(z, [inputs]), prediction),
        (lambda z: loss(prediction, [z]), inputs),
    ):
        first, second = rates(value, at)
        assert first >= 1.95
        assert second >= 2.95


@pytest.mark.parametrize("kind", ["residual", "energy"])
def test_a_network_learns_from_inputs_alone(kind, tmp_path):
    energy, residual, k, u, bcs = poisson(4)
    K, U = k.function_space(), u.function_space()
    norm = losses.DualNorm(U, bcs, stiffness(U))
    if kind == "residual":
        loss = losses.Residual(fem.torch_form(residual, [u, k]), norm)
    else:
        loss = losses.Energy(fem.torch_form(energy, [u, k]), norm)
    rng = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(64, 1, generator=rng, dtype=torch.float64).expand(-1, K.dim())
    data = spon.Dataset.from_arrays({"k": x}, {}, {"k": K})
    path = tmp_path / "inputs.h5"
    data.save(path)
    data = spon.Dataset.load(path)
    assert data.outputs == {}
    torch.manual_seed(0)
    net = spon.OperatorNetwork(
        spon.Encoder(K), spon.processors.MLP(hidden=(32,)), spon.Decoder(U, bcs)
    )
    spon.fit(net, data, loss=loss, epochs=150, lr=1e-2, progress=False, dtype=torch.float64)
    assert net.calibrated
    unseen = 2 * torch.rand(8, 1, generator=rng, dtype=torch.float64).expand(-1, K.dim())
    expected = []
    for row in unseen:
        fem.fill(k, row.numpy())
        solve(residual == 0, u, bcs)
        expected.append(fem.to_tensor(u))
    expected = torch.stack(expected)
    with torch.no_grad():
        error = losses.RelativeError(U, "L2")(net(unseen), expected)
        mean = losses.RelativeError(U, "L2")(expected.mean(0).expand_as(expected), expected)
    assert float(error) < 0.01 < 0.04 < float(mean)


def test_the_first_step_knows_the_size_of_solutions():
    _, residual, k, u, bcs = poisson()
    xs, ys = solutions(k, u, residual, bcs)
    U = u.function_space()
    norm = losses.SquaredDualNorm(U, bcs, stiffness(U))
    loss = losses.Residual(fem.torch_form(residual, [u, k]), norm)
    start = torch.where(norm.prescribed, ys, 0.0)
    step = loss.first_step(start, [xs])
    assert (loss.per_sample(step, [xs]) < loss.per_sample(start, [xs])).all()
    ratio = (step - start).norm(dim=1) / (ys - start).norm(dim=1)
    assert (ratio > 0.2).all() and (ratio < 2).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda e, r, n: losses.Residual(e, n), ValueError, "Residual takes a residual, a 1-form"),
        (lambda e, r, n: losses.Energy(r), ValueError, "Energy takes an energy, a 0-form"),
        (lambda e, r, n: losses.Energy(3), TypeError, "got int: torch_form"),
        (lambda e, r, n: losses.Residual(r, 3), TypeError, "Expected spon.losses.DualNorm"),
        (lambda e, r, n: losses.Energy(e, scale=0), ValueError, "must be positive, got 0"),
        (
            lambda e, r, n: losses.Residual(
                r, losses.DualNorm(FunctionSpace(mesh_of_cells("triangle"), "CG", 1))
            ),
            ValueError,
            "49 entries, the dual norm is one of vectors with 12",
        ),
    ],
)
def test_wrong_losses_say_what_was_given(call, error, message):
    energy, residual, k, u, bcs = poisson()
    forms = fem.torch_form(energy, [u, k]), fem.torch_form(residual, [u, k])
    with pytest.raises(error, match=message):
        call(*forms, losses.DualNorm(u.function_space(), bcs))


def test_a_loss_that_needs_outputs_is_refused_without_them():
    _, _, k, u, _ = poisson(3)
    K, U = k.function_space(), u.function_space()
    data = spon.Dataset.from_arrays({"k": np.ones((4, K.dim()))}, {}, {"k": K})
    net = spon.OperatorNetwork(spon.Encoder(K), spon.processors.MLP(hidden=(4,)), spon.Decoder(U))
    with pytest.raises(ValueError, match="no outputs, which RelativeError compares with"):
        spon.fit(net, data, epochs=1, progress=False)
    with pytest.raises(ValueError, match="no outputs"):
        spon.evaluate(net, data)
