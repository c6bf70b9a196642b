"""Linear paths fitted in closed form: linear problems are solved before training begins."""

import copy

import firedrake as fd
import pytest
import torch

import spon
from spon.processors import MLP, Multigrid, Resolvent, Spectral
from spon.processors.least_squares import fit_weights, one_by_one

MAKE = {
    "spectral": (lambda: Spectral(channels=4, layers=1, modes=100), 1.5e-2),
    "resolvent": (lambda: Resolvent(channels=4, layers=1), 1e-4),
    "multigrid": (lambda: Multigrid(channels=4, layers=1), 2e-2),
}


def poisson(count, mean=3.0):
    """Sources with a mean, and solutions that vanish on two sides only."""
    space = fd.FunctionSpace(fd.UnitSquareMesh(16, 16), "CG", 1)
    bc = fd.DirichletBC(space, 0.0, (1, 4))
    f = fd.Function(space)
    u, v = fd.TrialFunction(space), fd.TestFunction(space)
    form = fd.inner(fd.grad(u), fd.grad(v)) * fd.dx
    solve = spon.fem.LinearSolver(form, bc, inputs=[f], L=f * v * fd.dx)
    x = mean + spon.samplers.GaussianRandomField(space, length=0.2).draw(count, seed=0)
    return space, bc, x, solve(x)


def error(net, x, y):
    with torch.no_grad():
        return float(((net(x) - y).norm(dim=1) / y.norm(dim=1)).mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(MAKE))
def test_the_poisson_equation_is_solved_without_training(name, dtype):
    space, bc, x, y = poisson(60)
    x, y = x.to(dtype), y.to(dtype)
    torch.manual_seed(0)
    make, bound = MAKE[name]
    net = spon.OperatorNetwork(spon.Encoder(space), make(), spon.Decoder(space, bc), dtype)
    net.calibrate([x[:40]], y[:40])
    assert error(net, x[40:], y[40:]) > 0.5
    net.fit_linear([x[:40]], y[:40])
    assert error(net, x[40:], y[40:]) < bound
    # The path has no say about the mesh.
    finer = fd.FunctionSpace(fd.UnitSquareMesh(24, 24), "CG", 1)
    moved = net.on(finer.mesh())
    values = fd.Function(space)
    values.dat.data[:] = x[50].double().numpy()
    there = moved(fd.Function(finer).interpolate(values))
    here = fd.Function(finer).interpolate(net(values))
    assert fd.norm(there - here) < 0.05 * fd.norm(here)


def test_the_displacement_of_an_elastic_body_is_linear_in_its_loads():
    mesh = fd.RectangleMesh(16, 8, 2.0, 1.0)
    space = fd.VectorFunctionSpace(mesh, "CG", 1)
    bc = fd.DirichletBC(space, 0.0, 1)
    f = fd.Function(space)
    u, v = fd.TrialFunction(space), fd.TestFunction(space)
    form = (2 * fd.inner(fd.sym(fd.grad(u)), fd.sym(fd.grad(v))) + fd.div(u) * fd.div(v)) * fd.dx
    solve = spon.fem.LinearSolver(form, bc, inputs=[f], L=fd.inner(f, v) * fd.dx)
    x = spon.samplers.GaussianRandomField(space, length=0.5).draw(60, seed=0)
    y = solve(x)
    torch.manual_seed(0)
    net = spon.OperatorNetwork(
        spon.Encoder(space), Spectral(channels=4, layers=1), spon.Decoder(space, bc), torch.float64
    )
    net.calibrate([x[:40]], y[:40])
    net.fit_linear([x[:40]], y[:40])
    # Their operator is that of the modes up to two coefficients.
    assert error(net, x[40:], y[40:]) < 5e-3


def test_training_begins_there():
    space, bc, x, y = poisson(40)
    data = spon.Dataset.from_arrays({"f": x}, {"u": y}, {"f": space, "u": space})
    torch.manual_seed(0)
    net = spon.OperatorNetwork(
        spon.Encoder(space), Resolvent(channels=4, layers=1), spon.Decoder(space, bc)
    )
    history = spon.fit(net, data, epochs=1, lr=1e-5, progress=False)
    assert history.validation[0] < 1e-2


def test_processors_without_a_linear_path_stay_as_they_are():
    space, bc, x, y = poisson(8)
    net = spon.OperatorNetwork(spon.Encoder(space), MLP(), spon.Decoder(space, bc), torch.float64)
    net.calibrate([x], y)
    before = [p.clone() for p in net.parameters()]
    net.fit_linear([x], y)
    assert all(torch.equal(p, q) for p, q in zip(before, net.parameters(), strict=True))
    with pytest.raises(ValueError, match="8 outputs"):
        net.fit_linear([x[:3]], y)


@pytest.mark.parametrize("name", list(MAKE))
def test_samples_that_are_zero_do_not_count(name):
    space, bc, x, y = poisson(40)
    x, y = x.float(), y.float()
    y[[3, 30]] = 0.0
    torch.manual_seed(0)
    make, bound = MAKE[name]
    net = spon.OperatorNetwork(spon.Encoder(space), make(), spon.Decoder(space, bc))
    data = spon.Dataset.from_arrays({"f": x}, {"u": y}, {"f": space, "u": space})
    loss = spon.losses.SquaredError(space)
    spon.fit(net, data, loss, epochs=1, lr=1e-9, weight_decay=0.0, validation=None, progress=False)
    good = y.norm(dim=1) > 0
    assert error(net, x[good], y[good]) < bound


def test_weights_stay_where_no_sample_counts():
    def columns(which):
        raise AssertionError("Nothing is looked at where no sample counts.")

    weight = torch.nn.Parameter(torch.ones(2))
    assert not fit_weights([weight], columns, torch.zeros(3, 4), torch.tensor([True, True, False]))
    assert torch.equal(weight, torch.ones(2))


def test_data_that_do_not_fit_are_refused():
    space, bc, x, y = poisson(4)
    make, _ = MAKE["resolvent"]
    net = spon.OperatorNetwork(spon.Encoder(space), make(), spon.Decoder(space, bc), torch.float64)
    net.calibrate([x], y)
    bad = x.clone()
    bad[2, 5] = float("inf")
    for inputs, output, message in (
        ([x], y[:, :7], r"the output of shape \(n, 289\) with n >= 1, got \(4, 7\)"),
        ([x], y[:, 0], r"the output of shape \(n, 289\) with n >= 1, got \(4,\)"),
        ([x[:, :7]], y, r"input 0 of shape \(n, 289\) with n >= 1, got \(4, 7\)"),
        ([x[:0]], y[:0], r"n >= 1, got \(0, 289\)"),
        ([x], bad, "NaN or infinity in the output, in 1 of 4 samples, the first is number 2"),
        ([bad], y, "NaN or infinity in input 0, in 1 of 4 samples"),
        ([x, x], y, "takes 1 inputs"),
    ):
        with pytest.raises(ValueError, match=message):
            net.fit_linear(inputs, output)


def test_weights_are_those_of_least_squares():
    generator = torch.Generator().manual_seed(0)
    design = torch.randn(6, 4, 20, generator=generator, dtype=torch.float64)
    truth = torch.randn(6, generator=generator, dtype=torch.float64)
    weights = [torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(2))]
    weights = [torch.nn.Parameter(w.double()) for w in weights]

    def apply(which):
        values = torch.cat([w.flatten() for w in weights])
        return torch.einsum("p,pds->ds", values, design[:, :, which])

    target = torch.einsum("p,pds->ds", truth, design)
    rows = torch.tensor([True, False, True, True])
    fit_weights(weights, one_by_one(weights, apply), target, rows, batch=7)
    found = torch.cat([w.detach().flatten() for w in weights])
    assert float((found - truth).abs().max()) < 1e-6

    # Where something is left over, it may be a little more than least squares leave.
    noisy = target + 0.05 * torch.randn(4, 20, generator=generator, dtype=torch.float64)
    fit_weights(weights, one_by_one(weights, apply), noisy, rows, batch=7)
    scale = 1.0 / noisy[rows].norm(dim=0)
    flat, wanted = (design[:, rows] * scale).reshape(6, -1).T, (noisy[rows] * scale).flatten()
    best = torch.linalg.lstsq(flat, wanted[:, None]).solution[:, 0]
    found = torch.cat([w.detach().flatten() for w in weights])
    left, least = (flat @ found - wanted).norm(), (flat @ best - wanted).norm()
    assert float(least) <= float(left) <= 1.02 * float(least)
    assert float(found.norm()) < float(best.norm())


def test_too_many_weights_leave_a_network_as_it_is():
    space, bc, x, y = poisson(4)
    torch.manual_seed(0)
    processor = Spectral(channels=4, layers=1, polynomials=200)
    net = spon.OperatorNetwork(
        spon.Encoder(space), processor, spon.Decoder(space, bc), torch.float64
    )
    net.calibrate([x], y)
    before = net(x)
    net.fit_linear([x], y)
    assert torch.equal(net(x), before) and bool((before[:, ~net.decoder.constrained] != 0).any())


def test_a_map_that_is_far_from_linear_leaves_a_network_as_it_is():
    space, bc, x, y = poisson(40)
    torch.manual_seed(0)
    net = spon.OperatorNetwork(
        spon.Encoder(space), Resolvent(channels=4, layers=1), spon.Decoder(space, bc), torch.float64
    )
    net.calibrate([x], y.square())
    before = {name: weight.clone() for name, weight in net.state_dict().items()}
    net.fit_linear([x], y * x.mean(dim=1, keepdim=True).sin() * x[:, 40:41])
    assert all(torch.equal(weight, before[name]) for name, weight in net.state_dict().items())


def made_of(space, bc, processor):
    return spon.OperatorNetwork(spon.Encoder(space), processor, spon.Decoder(space, bc))


def tried(net, data):
    """What a training that changes nothing but its start makes of the weights."""
    spon.fit(net, data, epochs=1, lr=1e-12, weight_decay=0.0, validation=None, progress=False)
    return net


@pytest.mark.parametrize("name", list(MAKE))
def test_weights_that_are_not_fresh_stay(name):
    space, bc, x, y = poisson(20)
    data = spon.Dataset.from_arrays({"f": x}, {"u": y}, {"f": space, "u": space})
    torch.manual_seed(0)
    first = made_of(space, bc, MAKE[name][0]())
    assert first.fresh and made_of(space, bc, first.processor).fresh
    first.double()
    assert first.fresh and copy.deepcopy(first).fresh
    with torch.no_grad():  # as a training does
        for weight in first.processor.parameters():
            weight += 0.01 * torch.randn_like(weight)
    before = [p.float() for p in first.processor.parameters()]
    again = made_of(space, bc, first.processor)
    loaded = made_of(space, bc, MAKE[name][0]())
    loaded.processor.load_state_dict(first.processor.state_dict())
    for net in (again, loaded):
        assert not net.fresh
        after = tried(net, data).processor.parameters()
        for p, q in zip(before, after, strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-9)
    # Whoever asks for it has it.
    again.fit_linear([x], y)
    assert not again.processor.read[-1].weight.any()


def test_a_file_tells_whether_the_weights_are_fresh(tmp_path):
    space, bc, x, y = poisson(20)
    torch.manual_seed(0)
    net = made_of(space, bc, MAKE["resolvent"][0]())
    net.save(tmp_path / "fresh.spon")
    loaded = spon.load(tmp_path / "fresh.spon", space.mesh())
    assert loaded.fresh and loaded.double().fresh
    loaded.calibrate([x], y)
    loaded.fit_linear([x], y)
    assert not loaded.fresh
    loaded.save(tmp_path / "fitted.spon")
    assert not spon.load(tmp_path / "fitted.spon", space.mesh()).fresh


@pytest.mark.parametrize("name", list(MAKE))
def test_frozen_weights_stay(name):
    space, bc, x, y = poisson(20)
    data = spon.Dataset.from_arrays({"f": x}, {"u": y}, {"f": space, "u": space})
    for part in ("read", "linear"):
        torch.manual_seed(0)
        net = made_of(space, bc, MAKE[name][0]())
        for key, weight in net.processor.named_parameters():
            weight.requires_grad_(not key.startswith(part))
        before = [p.clone() for p in net.processor.parameters()]
        tried(net, data).fit_linear([x], y)
        for p, q in zip(before, net.processor.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-9)
