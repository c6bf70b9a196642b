"""Training sets over several meshes: gradients, files, resumption, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse as sp
import torch
from firedrake import (
    Constant,
    DirichletBC,
    Function,
    FunctionSpace,
    SpatialCoordinate,
    UnitDiskMesh,
    UnitIntervalMesh,
    UnitSquareMesh,
    VectorFunctionSpace,
    assemble,
    dx,
    grad,
    inner,
    interpolate,
)
from torch.optim.optimizer import register_optimizer_step_pre_hook

import spon
from spon import fem
from spon.losses import AbsoluteError, Energy, RelativeError
from spon.processors import MLP, Graph, Multigrid, Resolvent, Spectral
from spon.processors.merging import block_diagonal, merged
from spon.sparse import SparseMap

PROCESSORS = {
    "graph": lambda: Graph(channels=6, rounds=2),
    "multigrid": lambda: Multigrid(channels=6, layers=1, width=4, levels=3, cycles=1),
    "resolvent": lambda: Resolvent(channels=6, layers=1, alphas=2),
    "spectral": lambda: Spectral(channels=6, layers=2, modes=8, polynomials=3),
}
QUIET = {"progress": False, "dtype": torch.float64}


def meshes():
    """Two squares of different size and resolution, and a disk."""
    wide = UnitSquareMesh(5, 3)
    wide.coordinates.dat.data[:, 0] *= 2.0
    return [UnitSquareMesh(4, 4), wide, UnitDiskMesh(2)]


@pytest.fixture(scope="module")
def domains():
    return meshes()


def spaces(mesh, degree=1):
    return FunctionSpace(mesh, "DG", 0), FunctionSpace(mesh, "CG", degree)


def network(mesh, kind="spectral", seed=0, tag="on_boundary"):
    F, U = spaces(mesh)
    torch.manual_seed(seed)
    bcs = DirichletBC(U, 0.5, tag)
    net = spon.OperatorNetwork(
        spon.Encoder(F), PROCESSORS[kind](), spon.Decoder(U, bcs=bcs), torch.float64
    )
    with torch.no_grad():  # so that no path of the network rests at zero
        for weight in net.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return net


def random_data(mesh, n, seed=0, scale=1.0):
    F, U = spaces(mesh)
    g = torch.Generator().manual_seed(seed)
    f = scale * torch.randn(n, F.dim(), generator=g, dtype=torch.float64) + scale
    u = torch.randn(n, U.dim(), generator=g, dtype=torch.float64) + 3.0
    return spon.Dataset.from_arrays({"f": f}, {"u": u}, {"f": F, "u": U})


def weights(net):
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def gradient(net):
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
    return torch.cat([g.reshape(-1) for g in grads])


# -- the numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize("sizes", [(3, 1, 2), (1, 1, 1)], ids=["one by one", "side by side"])
def test_the_gradient_of_a_mixed_batch_is_the_mean_over_its_samples(
    domains, kind, sizes, monkeypatch
):
    merges = []
    monkeypatch.setattr(
        "spon.merged_batches.merged", lambda parts: merges.append(len(parts)) or merged(parts)
    )
    net = network(domains[0], kind)
    sets = [random_data(m, n, seed=i) for i, (m, n) in enumerate(zip(domains, sizes, strict=True))]
    net.calibrate(sets[0].tensors()[0], sets[0].tensors()[1])
    single = []
    for mesh, data in zip(domains, sets, strict=True):
        moved = net.on(mesh)
        loss = RelativeError(moved.decoder.space, "H1")
        for i in range(len(data)):
            (f,), u, _ = data[i].tensors()
            net.zero_grad()
            loss(moved(f), u).backward()
            single.append(gradient(net))
    expected = torch.stack(single).mean(0)

    seen = []

    def watch(optimiser, args, kwargs):
        seen.append(gradient(net))

    handle = register_optimizer_step_pre_hook(watch)
    try:
        loss = RelativeError(net.decoder.space, "H1")
        spon.fit(net, sets, loss, None, epochs=1, batch_size=6, **QUIET)
    finally:
        handle.remove()
    assert len(seen) == 1
    assert merges == ([3] if sizes == (1, 1, 1) else [])
    error = (seen[0] - expected).abs().max() / expected.abs().max()
    assert error < 1e-12


def test_a_list_of_one_data_set_trains_to_the_same_bits(domains):
    one, other, data = network(domains[0]), network(domains[0]), random_data(domains[0], 14)
    arguments = {"epochs": 3, "batch_size": 4, "lbfgs": 5, "clip": 0.5, **QUIET}
    first = spon.fit(one, data, **arguments)
    second = spon.fit(other, [data], **arguments)
    assert torch.equal(weights(one), weights(other))
    assert (first.train, first.validation) == (second.train, second.validation)
    assert first.validation_samples == second.validation_samples
    assert torch.equal(spon.evaluate(one, data), spon.evaluate(other, [data]))


def test_two_data_sets_on_one_mesh_train_like_one(domains):
    one, other, data = network(domains[0]), network(domains[0]), random_data(domains[0], 14)
    arguments = {"epochs": 3, "batch_size": 4, **QUIET}
    first = spon.fit(one, data, **arguments)
    second = spon.fit(other, [data[:5], data[5:]], **arguments)
    assert first.validation_samples == second.validation_samples
    torch.testing.assert_close(weights(one), weights(other), rtol=1e-9, atol=1e-11)
    tied = spon.OperatorNetwork(
        spon.Encoder(spaces(domains[0])[0]), MLP((5,)), spon.Decoder(spaces(domains[0])[1])
    )
    spon.fit(tied, [data[:5], data[5:]], **arguments)  # its weights belong to this very mesh


def test_scales_come_from_all_data_together(domains):
    net = network(domains[0])
    sets = [
        random_data(m, n, i, 10.0**i)
        for i, (m, n) in enumerate(zip(domains, (4, 7, 3), strict=True))
    ]
    spon.fit(net, sets, validation=None, epochs=1, lr=1e-12, weight_decay=0.0, **QUIET)
    pairs = [
        (fem.to_function(values, data.space("f")), Constant(1.0) * dx(data.mesh("f")))
        for data in sets
        for values in data.inputs["f"]
    ]
    mean = np.mean([assemble(f * dx) / assemble(area) for f, area in pairs])
    squares = [assemble((f - mean) ** 2 * dx) / assemble(area) for f, area in pairs]
    for known in (net.input_norms[0], net.on(domains[1]).input_norms[0]):
        assert known.mean.item() == pytest.approx(mean, rel=1e-12)
        assert known.scale.item() == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-12)


def test_scales_and_mode_of_a_copy_follow_the_network(domains):
    net = network(domains[0])
    moved, data = net.on(domains[1]), random_data(domains[0], 8)
    spon.fit(net, data, epochs=1, **QUIET)
    assert moved.calibrated and moved.output_norm.scale == net.output_norm.scale
    assert net.on(domains[2]).training is False


@pytest.mark.parametrize("kind", ["multigrid", "resolvent", "spectral"])
def test_the_linear_path_starts_from_all_meshes(domains, kind):
    sets = [smooth_data(mesh, n, seed=n) for mesh, n in zip(domains, (5, 1, 9), strict=True)]
    F, U = spaces(domains[0])
    torch.manual_seed(0)
    decoder = spon.Decoder(U, bcs=DirichletBC(U, 0.5, "on_boundary"))
    net = spon.OperatorNetwork(spon.Encoder(F), PROCESSORS[kind](), decoder, torch.float64)
    frozen = {"epochs": 1, "lr": 1e-12, "weight_decay": 0.0, "validation": None, **QUIET}
    spon.fit(net, sets, **frozen)
    # The solution is a function of the Laplacian of the inputs, here with few terms.
    assert spon.evaluate(net, sets).max() < 0.2


def test_training_lowers_the_error_on_each_mesh_and_on_one_unseen():
    solved = [smooth_data(mesh, 40, seed=i) for i, mesh in enumerate(meshes())]
    unseen = smooth_data(UnitDiskMesh(3), 10, seed=9)
    net = network(solved[0].mesh())
    net.to(torch.float32)
    before = spon.evaluate(net, [*solved, unseen])
    spon.fit(net, solved, validation=[unseen], epochs=40, lr=1e-2, progress=False)
    after = spon.evaluate(net, [*solved, unseen])
    for rows in torch.arange(130).split([40, 40, 40, 10]):
        assert after[rows].mean() < 0.25 * before[rows].mean()


def smooth_data(mesh, n, seed):
    """The torsion function times the slope of the input: cheap, and the same map on every mesh."""
    F, U = spaces(mesh)
    rng, x = np.random.default_rng(seed), SpatialCoordinate(mesh)
    inputs, outputs = [], []
    bubble = 0.5 + fem.to_function(network(mesh).geometry.torsion, U)
    for a in rng.uniform(1.0, 2.0, n):
        inputs.append(assemble(interpolate(Constant(a) * (1 + 0.1 * x[0]), F)))
        outputs.append(assemble(interpolate(0.5 + Constant(a) * (bubble - 0.5), U)))
    return spon.Dataset.from_functions({"f": inputs}, {"u": outputs})


# -- several meshes side by side -----------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("filled", [False, True])
def test_maps_side_by_side_are_block_diagonal(parts, filled):
    rng = np.random.default_rng(0)
    shapes = [(2, 3), (4, 1), (0, 0), (2, 3)]
    matrices = [[sp.random(*s, 0.6, "csr", rng=rng) for _ in range(parts)] for s in shapes]
    rows, cols = (5, 4) if filled else (0, 0)
    made = block_diagonal(
        [SparseMap(sp.csr_matrix(sp.vstack(m))) for m in matrices], rows, cols, parts
    )

    def block(matrix, shape):
        out = np.zeros((rows or shape[0], cols or shape[1]))
        out[: shape[0], : shape[1]] = matrix.toarray()
        return out

    below = [
        scipy.linalg.block_diag(*(block(m[k], s) for m, s in zip(matrices, shapes, strict=True)))
        for k in range(parts)
    ]
    expected = np.vstack(below)
    assert made.shape == expected.shape
    np.testing.assert_array_equal(made.to_scipy().toarray(), expected)
    np.testing.assert_array_equal(made.T.to_scipy().toarray(), expected.T)
    x = torch.randn(made.shape[1], 2, dtype=torch.float64)
    torch.testing.assert_close(made(x), torch.from_numpy(expected) @ x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*PROCESSORS, "stencils", "patches", "vectors"])
def test_meshes_side_by_side_give_what_each_gives_alone(domains, name, dtype):
    """With different depths of the hierarchies, and on some meshes fewer modes than on others."""
    own = {
        "stencils": lambda: Multigrid(channels=4, layers=1, width=4, pre=2, smoother="stencil"),
        "patches": lambda: Spectral(channels=4, layers=3, modes=6, points=8),
        "vectors": lambda: Spectral(channels=4, layers=2, modes=300),
    }
    processor = {**PROCESSORS, **own}[name]()
    nets = []
    for mesh in [*domains, UnitSquareMesh(9, 9), domains[1]]:
        F = FunctionSpace(mesh, "DG", 0)
        U = (VectorFunctionSpace if name == "vectors" else FunctionSpace)(mesh, "CG", 1)
        torch.manual_seed(0)
        decoder = spon.Decoder(U, bcs=DirichletBC(U, 0.0, 1))
        nets.append(spon.OperatorNetwork([spon.Encoder(F), spon.Encoder(U)], processor, decoder))
    with torch.no_grad():
        for weight in processor.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    geometries = [net.to(dtype).geometry for net in nets]
    if name == "multigrid":
        assert len({len(g.hierarchy) for g in geometries}) > 1
    xs = [[torch.randn(e.space.dim(), 2, dtype=dtype) for e in net.encoders] for net in nets]
    alone = torch.cat([processor(x, g) for x, g in zip(xs, geometries, strict=True)])
    joined = [torch.cat(each) for each in zip(*xs, strict=True)]
    together = processor(joined, merged(geometries))
    limit = 1e-12 if dtype == torch.float64 else 1e-5
    assert (together - alone).abs().max() < limit * alone.abs().max()


# -- networks, losses and conditions of one's own ------------------------------------------------


def test_networks_with_conditions_of_their_own(domains):
    net = network(domains[0], tag=3)
    U = spaces(domains[2])[1]
    disk = net.on(domains[2], bcs=DirichletBC(U, 1.5, "on_boundary"))
    sets = [random_data(domains[0], 5), random_data(domains[2], 5)]
    with pytest.raises(ValueError, match=r"data\[1\]: .*boundary.* 3"):
        spon.fit(net, sets, epochs=1, **QUIET)
    spon.fit([net, disk], sets, epochs=1, **QUIET)
    assert disk.calibrated and not disk.training
    F = spaces(domains[2])[0]
    u = disk(fem.to_function(torch.ones(F.dim()), F))
    assert fem.boundary_violation(u, disk.decoder.bcs) == 0.0
    both = spon.evaluate([net, disk], sets)
    torch.testing.assert_close(both[5:], spon.evaluate(disk, sets[1]), rtol=0, atol=0)


def test_a_loss_for_each_mesh(domains):
    net = network(domains[0])
    sets = [random_data(m, 4, i)[:] for i, m in enumerate(domains)]
    inputs = [d.select(outputs=[]) for d in sets]

    def energy(mesh):
        F, U = spaces(mesh)
        f, u = Function(F), Function(U)
        form = (inner(grad(u), grad(u)) / 2 - f * u) * dx
        return Energy(fem.torch_form(form, [u, f]))

    losses = [energy(mesh) for mesh in domains]
    history = spon.fit(net, inputs, losses, validation=inputs[1], epochs=2, **QUIET)
    assert np.isfinite(history.validation).all()
    values = spon.evaluate(net, inputs, losses)
    moved = net.on(domains[1])
    torch.testing.assert_close(values[4:8], spon.evaluate(moved, inputs[1], losses[1]))
    with pytest.raises(ValueError, match=r"data\[1\]: The form of a Energy belongs to one mesh"):
        spon.fit(net, inputs, losses[0], epochs=1, **QUIET)
    with pytest.raises(ValueError, match="Got 3 losses for 2 data sets"):
        spon.fit(net, inputs[:2], losses, epochs=1, **QUIET)
    unseen = random_data(UnitSquareMesh(3, 3), 2).select(outputs=[])
    with pytest.raises(ValueError, match=r"validation\[0\]: The losses were given for each mesh"):
        spon.fit(net, inputs, losses, validation=[unseen], epochs=1, **QUIET)


def test_a_loss_is_moved_with_its_options(domains):
    loss = RelativeError(spaces(domains[0])[1], "H1", reduction="sum", floor=0.5)
    V = spaces(domains[2])[1]
    moved, u = loss.on(V), torch.randn(3, V.dim(), dtype=torch.float64)
    same = RelativeError(V, "H1", "sum", 0.5)
    assert torch.equal(moved(u, 1e-3 * u), same(u, 1e-3 * u))
    assert str(moved) == str(same)
    assert isinstance(AbsoluteError(V).on(V), AbsoluteError)
    with pytest.raises(ValueError, match=r"measures functions in CG 1 .* is CG 2"):
        loss.on(spaces(domains[0], 2)[1])


# -- files ---------------------------------------------------------------------------------------


class Interrupt:
    """A loss that fails at a call."""

    def __init__(self, at, loss):
        self.at, self.calls, self.loss = at, 0, loss

    def on(self, space):
        moved = Interrupt(self.at, self.loss.on(space))
        moved.per_sample = lambda p, t: self.counted(moved.loss, p, t)
        return moved

    def counted(self, loss, prediction, target):
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return loss.per_sample(prediction, target)

    def per_sample(self, prediction, target):
        return self.counted(self.loss, prediction, target)

    def __call__(self, prediction, target):
        return self.per_sample(prediction, target).mean()


@pytest.mark.parametrize("at", [40, 100])
def test_files_and_an_interrupted_run(domains, tmp_path, at):
    for i, mesh in enumerate(domains):
        random_data(mesh, 6, i).save(tmp_path / f"{i}.h5")
    sets = [spon.Dataset.load(tmp_path / f"{i}.h5") for i in range(3)]
    arguments = {"epochs": 6, "batch_size": 5, "lbfgs": 6, **QUIET}

    def run(name, at=None):
        net = network(domains[0])
        loss = Interrupt(at, RelativeError(net.decoder.space, "L2"))
        return net, spon.fit(net, sets, loss, checkpoint=tmp_path / name, **arguments)

    net, history = run("whole.pt")
    with pytest.raises(KeyboardInterrupt):
        run("parts.pt", at)
    resumed, second = run("parts.pt")
    assert torch.equal(weights(resumed), weights(net))
    assert (second.train, second.validation) == (history.train, history.validation)
    for changed, message in (([*sets[:2], sets[2][:5]], "training data"), (sets[:2], "decoder")):
        with pytest.raises(ValueError, match=message):
            spon.fit(network(domains[0]), changed, checkpoint=tmp_path / "whole.pt", **arguments)


# -- refusals ------------------------------------------------------------------------------------


def broken(domains, name):
    """A call that is refused: network, data sets, further arguments."""
    square, wide, disk = domains
    net, good = network(square), [random_data(square, 3), random_data(wide, 3)]
    F, U = spaces(wide, 2)
    f, u = torch.ones(3, F.dim()), torch.ones(3, U.dim())
    second = spon.Dataset.from_arrays({"f": f}, {"u": u}, {"f": F, "u": U})
    if name == "element":
        return net, [good[0], second], {}
    if name == "cells":
        return net, [*good, random_data(UnitSquareMesh(2, 2, quadrilateral=True), 3)], {}
    if name == "dimension":
        return net, [good[0], random_data(UnitIntervalMesh(4), 3)], {}
    if name == "tag":
        return network(square, tag=3), [good[0], random_data(disk, 3)], {}
    if name == "tied":
        net = spon.OperatorNetwork(
            spon.Encoder(spaces(square)[0]), MLP((4,)), spon.Decoder(spaces(square)[1])
        )
        return net, good, {}
    if name == "no mesh":
        lost = good[1]
        known = lost.signatures
        return net, [good[0], spon.Dataset.from_arrays(lost.inputs, lost.outputs, known)], {}
    if name == "names":
        other = spon.Dataset.from_arrays(
            {"g": good[1].inputs["f"]}, good[1].outputs,
            {"g": good[1].space("f"), "u": good[1].space("u")},
        )  # fmt: skip
        return net, [good[0], other], {}
    if name == "outputs":
        return net, [good[0], good[1].select(outputs=[])], {}
    if name == "nan":
        good[1].inputs["f"][2, 0] = torch.nan
        return net, good, {}
    if name == "no data set":
        return net, [good[0], 1], {}
    if name == "validation":
        return net, good, {"validation": [good[1], second]}
    if name == "empty":
        return net, [], {}
    if name == "strangers":
        return [net, network(wide, seed=1)], good, {}
    if name == "number":
        return [net], good, {}
    if name == "order":
        return [net.on(wide), net], good, {}
    raise KeyError(name)


REFUSED = {
    "element": (ValueError, r"^data\[1\]: .*output 'u' is CG 2 .* built for CG 1"),
    "cells": (ValueError, r"^data\[2\]: .*quadrilaterals.*triangles"),
    "dimension": (ValueError, r"^data\[1\]: .*intervals in 1D.*triangles in 2D"),
    "tag": (ValueError, r"^data\[1\]: .*boundary.*3"),
    "tied": (ValueError, r"^data\[1\]: The weights of a MLP belong to the dofs of one mesh"),
    "no mesh": (RuntimeError, r"^data\[1\]: The data set has no mesh for 'u'.*attach"),
    "names": (ValueError, r"^data\[1\]: It has the inputs \['g'\], the first .* \['f'\]"),
    "outputs": (ValueError, r"^data\[1\]: The data set has no outputs"),
    "nan": (ValueError, r"^data\[1\]: The training set holds NaN .* 'f' of sample 2"),
    "no data set": (TypeError, r"^data\[1\]: Expected a spon.Dataset as training, got int"),
    "validation": (ValueError, r"^validation\[1\]: .*output 'u' is CG 2"),
    "empty": (ValueError, "list of training sets is empty"),
    "strangers": (ValueError, r"^net\[1\] has weights of its own.*net\[0\].on"),
    "number": (ValueError, "Got 1 networks for 2 data sets"),
    "order": (ValueError, r"^data\[0\]: .*The elements agree"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_together_is_refused_by_name(domains, name):
    kind, message = REFUSED[name]
    net, sets, more = broken(domains, name)
    with pytest.raises(kind, match=message):
        spon.fit(net, sets, epochs=1, **more, **QUIET)
