"""Projections keep what potentials keep, reach all of it, and make no error larger."""

from __future__ import annotations

import copy

import pytest
import torch
from firedrake import (
    DirichletBC,
    FacetNormal,
    Function,
    FunctionSpace,
    PeriodicUnitSquareMesh,
    SpatialCoordinate,
    as_vector,
    assemble,
    curl,
    div,
    ds,
    dx,
    inner,
    sin,
)
from promises import cellwise, domain, full_rank, kernel_dimension, large, zero_traces

import spon
from spon import Decoder, fem

DTYPES = [(torch.float32, 1e-6), (torch.float64, 1e-12)]
FLUXES = [("two holes", "RT", 1), ("square", "BDM", 2), ("box", "RT", 1), ("box", "BDM", 1)]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("name", "family", "degree"), FLUXES)
def test_the_divergence_vanishes_in_each_cell(name, family, degree, dtype, tolerance):
    U = FunctionSpace(domain(name), family, degree)
    decoder = Decoder(U, zero_traces(U, (1, 2)), divergence_free=True, through="projection")
    assert decoder.latent is U
    for u in decoder.function(large(decoder, dtype)):
        assert cellwise(div(u), u) < tolerance
        normal = inner(u, FacetNormal(U.mesh()))
        assert assemble(normal**2 * ds((1, 2))) < tolerance**2 * assemble(inner(u, u) * dx)


@pytest.mark.parametrize("degree", [1, 2])
def test_the_curl_vanishes_in_each_cell(degree):
    U = FunctionSpace(domain("annulus"), "N1curl", degree)
    decoder = Decoder(U, curl_free=True, through="projection")
    for u in decoder.function(large(decoder, torch.float64)):
        assert cellwise(curl(u), u) < 1e-12


@pytest.mark.parametrize("tags", [(), 1, "on_boundary"])
@pytest.mark.parametrize("name", ["square", "annulus", "two holes", "box with a cavity"])
def test_every_field_of_the_kind_is_reached(name, tags):
    U = FunctionSpace(domain(name), "RT", 1)
    bcs = zero_traces(U, tags)
    decoder = Decoder(U, bcs, divergence_free=True, through="projection")
    assert full_rank(decoder) == kernel_dimension(U, div, bcs)
    assert decoder.unreached == 0


def test_constant_flows_around_a_period_are_reached():
    U = FunctionSpace(PeriodicUnitSquareMesh(3, 3), "RT", 1)
    decoder = Decoder(U, divergence_free=True, through="projection")
    assert full_rank(decoder) == kernel_dimension(U, div, ())
    flow = fem.to_tensor(Function(U).project(as_vector((1.0, 2.0))))
    torch.testing.assert_close(decoder(flow[None])[0], flow, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["RT", "BDM"])
def test_no_error_grows(family):
    """What keeps the promise stays as it is, and whatever is near comes nearer."""
    mesh = domain("two holes")
    U = FunctionSpace(mesh, family, 2)
    x = SpatialCoordinate(mesh)
    walls = DirichletBC(U, as_vector((sin(x[1]), 0.3 * x[0])), (1, 3))
    decoder = Decoder(U, walls, divergence=sin(x[0]), through="projection")
    (truth,) = decoder.function(large(decoder, torch.float64, 1.0)[:1])
    exact = fem.to_tensor(truth)
    torch.testing.assert_close(decoder(exact[None])[0], exact, rtol=0, atol=1e-10)
    noise = large(decoder, torch.float64, 0.1)
    # What a network gives is right on the walls, too.
    near = torch.where(decoder.constrained, exact, exact + noise)
    for before, after in zip(near, decoder(near), strict=True):
        errors = []
        for coefficients in (before, after):
            error = fem.to_function(coefficients - exact, U)
            errors.append(assemble(inner(error, error) * dx))
        assert 0 < errors[1] < 0.9 * errors[0]


def test_gradients_are_right():
    U = FunctionSpace(domain("annulus"), "RT", 1)
    decoder = Decoder(
        U, zero_traces(U, 1), divergence_free=True, through="projection", flux={2: 1.0}
    )
    x = large(decoder, torch.float64, 1.0).requires_grad_()
    assert torch.autograd.gradcheck(decoder, (x,))


def test_files_copies_and_meshes(tmp_path):
    mesh = domain("square")
    F, U = FunctionSpace(mesh, "DG", 0), FunctionSpace(mesh, "RT", 1)
    decoder = Decoder(U, zero_traces(U, 1), divergence_free=True, through="projection")
    processor = spon.processors.Spectral(channels=4, layers=1, modes=8)
    net = spon.OperatorNetwork(spon.Encoder(F), processor, decoder, torch.float64)
    f = torch.rand(2, F.dim(), dtype=torch.float64)
    net.calibrate([f], torch.rand(2, U.dim(), dtype=torch.float64))
    net.save(tmp_path / "net.spon")
    for other in (spon.load(tmp_path / "net.spon", mesh), copy.deepcopy(net)):
        assert other.decoder.promises.through == "projection"
        torch.testing.assert_close(other(f), net(f), rtol=1e-12, atol=1e-14)
    moved = net.on(domain("annulus"))
    (u,) = moved.decoder.function(moved(torch.rand(1, moved.encoders[0].space.dim()).double()))
    assert cellwise(div(u), u) < 1e-12
    assert "through" not in decoder.promised and "divergence_free" in decoder.promised


def test_what_is_refused():
    U = FunctionSpace(domain("box"), "N1curl", 1)
    with pytest.raises(ValueError, match="Curls in 3D are not projected"):
        Decoder(U, curl_free=True, through="projection")
    V = FunctionSpace(domain("square"), "CG", 1)
    with pytest.raises(ValueError, match="none is promised"):
        Decoder(V, mean=1.0, through="projection")
    with pytest.raises(ValueError, match="through must be one of"):
        Decoder(V, through="magic", mean=1.0)
