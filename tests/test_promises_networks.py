"""Networks keep their promises through training, files, other meshes and copies."""

import copy

import pytest
import torch
from firedrake import (
    Constant,
    DirichletBC,
    FacetNormal,
    Function,
    FunctionSpace,
    SpatialCoordinate,
    UnitSquareMesh,
    as_vector,
    assemble,
    div,
    ds,
    dx,
    inner,
    sin,
)
from promises import cellwise
from ufl.domain import extract_unique_domain

import spon
from spon import Decoder, Encoder, OperatorNetwork, fem


def channel(mesh, **more):
    U = FunctionSpace(mesh, "RT", 1)
    y = SpatialCoordinate(mesh)[1]
    bcs = [
        DirichletBC(U, as_vector([y * (1 - y), 0]), 1),
        DirichletBC(U, Constant((0.0, 0.0)), (3, 4)),
    ]
    moment = [(lambda v: v[0] * SpatialCoordinate(extract_unique_domain(v))[1] * dx, 0.1)]
    given = {"divergence": 0.2, "integrals": moment} | more
    return Decoder(U, bcs, **given)


def bounded(mesh):
    V = FunctionSpace(mesh, "CG", 2)
    return Decoder(V, DirichletBC(V, 0.5, 1), bounds=(0, 1), mean=0.4)


PROCESSORS = {
    "mlp": lambda: spon.processors.MLP(hidden=(8,)),
    "spectral": lambda: spon.processors.Spectral(modes=12, channels=8, layers=1),
    "graph": lambda: spon.processors.Graph(channels=8, rounds=1),
}


def network(decoder, kind, dtype=torch.float32):
    torch.manual_seed(0)
    F = FunctionSpace(fem.mesh_of(decoder.space), "DG", 0)
    return OperatorNetwork(Encoder(F), PROCESSORS[kind](), decoder, dtype=dtype)


def kept(decoder, u):
    """How far a function is from the promises of `channel` and `bounded`."""
    mesh = fem.mesh_of(decoder.space)
    boundary = fem.boundary_violation(u, decoder.bcs)
    if decoder.promises.bounds is not None:
        low, high = u.dat.data_ro.min(), u.dat.data_ro.max()
        return max(boundary, abs(float(assemble(u * dx)) - 0.4), -low, high - 1)
    y = SpatialCoordinate(mesh)[1]
    moment = abs(float(assemble(u[0] * y * dx)) - 0.1)
    return max(boundary, cellwise(div(u) - 0.2, u), moment)


@pytest.mark.parametrize("kind", list(PROCESSORS))
@pytest.mark.parametrize("make", [channel, bounded])
def test_training_files_copies_and_meshes(make, kind, tmp_path):
    mesh = UnitSquareMesh(4, 4)
    net = network(make(mesh), kind)
    F, U = net.encoders[0].space, net.decoder.space
    f = torch.rand(6, F.dim())
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    net.calibrate([f], 0.3 + torch.rand(6, U.dim()))
    start = [p.detach().clone() for p in net.parameters()]
    for _ in range(5):
        optimiser.zero_grad()
        (net(f) - 0.3).square().mean().backward()
        optimiser.step()
    assert any(not torch.equal(a, b) for a, b in zip(start, net.parameters(), strict=True))
    (g,) = fem.to_function(f[:1].double(), F)
    u = net(g)
    assert kept(net.decoder, u) < 1e-11
    net.save(tmp_path / "net.spon")
    loaded = spon.load(tmp_path / "net.spon", mesh)
    for other in (loaded, copy.deepcopy(net), copy.deepcopy(net).to(torch.float64).to(net.dtype)):
        torch.testing.assert_close(other(f), net(f), rtol=1e-5, atol=1e-6)
        assert kept(other.decoder, other(g)) < 1e-11
    if not net.processor.mesh_independent:
        return
    fine = UnitSquareMesh(6, 6)
    moved = net.on(fine)
    h = Function(FunctionSpace(fine, "DG", 0)).assign(0.5)
    assert moved.decoder.space.dim() > U.dim()
    assert kept(moved.decoder, moved(h)) < 1e-11
    if make is channel:
        with pytest.raises(ValueError, match="belongs to one mesh"):
            loaded.on(fine)
        y = SpatialCoordinate(fine)[1]
        promises = {"integrals": [(lambda v: v[0] * y * dx, 0.1)]}

        def bcs(W):
            z = SpatialCoordinate(W.mesh())[1]
            walls = DirichletBC(W, Constant((0.0, 0.0)), (3, 4))
            return [DirichletBC(W, as_vector([z * (1 - z), 0]), 1), walls]

        with pytest.raises(ValueError, match="promises integrals as coefficients"):
            spon.load(tmp_path / "net.spon", fine, bcs, same_mesh=False)
        again = spon.load(tmp_path / "net.spon", fine, bcs, same_mesh=False, promises=promises)
        assert kept(again.decoder, again(h)) < 1e-11


def test_a_network_learns_a_flow_and_keeps_it_free_of_divergence():
    mesh = UnitSquareMesh(5, 5)
    U = FunctionSpace(mesh, "RT", 1)
    x = SpatialCoordinate(mesh)
    decoder = Decoder(U, DirichletBC(U, Constant((0, 0)), (3, 4)), divergence_free=True)
    net = network(decoder, "spectral")
    F = net.encoders[0].space
    amplitudes = torch.linspace(0.5, 2, 8)
    inputs = torch.stack([torch.full((F.dim(),), float(a)) for a in amplitudes])
    target = fem.to_tensor(Function(U).interpolate(as_vector([1 + 0 * x[0], 0])))
    outputs = amplitudes[:, None] * target.float()
    net.calibrate([inputs], outputs)
    assert 0.01 < float(net.output_norm.scale[0]) < 100
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(150):
        optimiser.zero_grad()
        loss = (net(inputs) - outputs).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    # A uniform flow between walls is no curl of a potential that vanishes on both.
    assert losses[-1] < 0.05 * losses[0]
    for u in fem.to_function(net(inputs).detach().double(), U):
        assert cellwise(div(u), u) < 1e-6


def test_values_for_each_sample_pass_through_a_network():
    mesh = UnitSquareMesh(4, 4)
    U, n = FunctionSpace(mesh, "RT", 1), FacetNormal(mesh)
    walls = DirichletBC(U, Constant((0.0, 0.0)), (3, 4))
    net = network(Decoder(U, walls, divergence=0.0, flux={1: -0.5}), "graph")
    F, W = net.encoders[0].space, net.decoder.divergence_space
    f = [Function(F).assign(c) for c in (1.0, 2.0)]
    x = SpatialCoordinate(mesh)
    source = [Function(W).interpolate(sin(c * x[0])) for c in (1, 2)]
    flux = {1: torch.tensor([-0.25, -1.0], dtype=torch.float64)}
    us = net(f, flux=flux, divergence=source)
    for u, q, s in zip(us, flux[1], source, strict=True):
        assert assemble(inner(u, n) * ds(1)) == pytest.approx(float(q), abs=1e-12)
        assert cellwise(div(u) - s, u) < 1e-12
    y = net(torch.ones(2, F.dim()), flux={1: flux[1].float()}, divergence=fem.to_tensor(source))
    assert y.dtype == torch.float32


def test_a_divergence_moves_to_another_mesh():
    mesh, fine = UnitSquareMesh(3, 3), UnitSquareMesh(5, 5)
    U = FunctionSpace(mesh, "RT", 1)
    x, y = SpatialCoordinate(mesh), SpatialCoordinate(fine)
    held = Function(FunctionSpace(mesh, "CG", 1)).interpolate(x[0])
    for divergence in (3.0, x[0], held, lambda W: SpatialCoordinate(W.mesh())[0]):
        decoder = Decoder(U, divergence=divergence).on(fine)
        (u,) = decoder.function(torch.randn(1, decoder.latent.dim()).double())
        wanted = Function(decoder.divergence_space)
        if divergence == 3.0:
            wanted.assign(3.0)
        else:
            wanted.project(y[0])
        assert cellwise(div(u) - wanted, u) < (0.1 if divergence is held else 1e-8)


def test_fit_and_report_take_networks_with_promises_and_tell_them_apart(tmp_path):
    mesh = UnitSquareMesh(4, 4)
    U = FunctionSpace(mesh, "RT", 1)
    walls = DirichletBC(U, Constant((0.0, 0.0)), (3, 4))

    def net_with(**promises):
        return network(Decoder(U, walls, **promises), "mlp")

    net = net_with(divergence=0.5)
    F = net.encoders[0].space
    decoder = Decoder(U, walls, divergence=0.5)
    generator = torch.Generator().manual_seed(0)
    y = decoder(torch.randn(12, decoder.latent.dim(), generator=generator).double())
    f = torch.rand(12, F.dim(), generator=generator).double()
    data = spon.Dataset.from_arrays(inputs={"f": f}, outputs={"u": y}, spaces={"f": F, "u": U})
    options = {"checkpoint": tmp_path / "run.pt", "progress": False}
    spon.fit(net, data, epochs=2, **options)
    assert spon.report(net, data, repeats=1).boundary_violation == 0
    for u in fem.to_function(net(f[:2].float()).detach().double(), U):
        assert cellwise(div(u) - 0.5, u) < 1e-6
    with pytest.raises(ValueError, match="divergence"):
        spon.fit(net_with(divergence=0.6), data, epochs=4, **options)
