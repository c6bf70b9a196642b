"""Divergence-free and curl-free fields: in each cell, with traces, and all that there are."""

import numpy as np
import pytest
import torch
from firedrake import (
    Constant,
    DirichletBC,
    FacetNormal,
    Function,
    FunctionSpace,
    Mesh,
    PeriodicUnitSquareMesh,
    SpatialCoordinate,
    UnitCubeMesh,
    UnitSquareMesh,
    UnitTetrahedronMesh,
    UnitTriangleMesh,
    as_vector,
    assemble,
    conditional,
    curl,
    div,
    ds,
    dx,
    inner,
    project,
    sin,
)
from promises import DOMAINS, cellwise, domain, full_rank, kernel_dimension, large, zero_traces

from spon import Decoder, fem
from spon.fem.fields import Kernel

FLUXES = [
    *(("square", f, k) for f in ("RT", "BDM") for k in (1, 2, 3)),
    *(("quads", "RTCF", k) for k in (1, 2)),
    *(("box", f, k) for f, k in (("RT", 1), ("RT", 2), ("BDM", 1), ("BDM", 2))),
]
CIRCULATIONS = [
    *(("square", f, k) for f in ("N1curl", "N2curl") for k in (1, 2)),
    *(("quads", "RTCE", k) for k in (1, 2)),
    *(("box", f, k) for f in ("N1curl", "N2curl") for k in (1, 2)),
]
DTYPES = [(torch.float64, 1e-12), (torch.float32, 1e-6)]


def space(cell, family, degree):
    mesh = UnitSquareMesh(3, 4, quadrilateral=True) if cell == "quads" else domain(cell)
    return FunctionSpace(mesh, family, degree)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("cell", "family", "degree"), FLUXES)
def test_the_divergence_vanishes_in_each_cell(cell, family, degree, dtype, tolerance):
    U = space(cell, family, degree)
    for tags in ((), (1, 2), "on_boundary"):
        decoder = Decoder(U, zero_traces(U, tags), divergence_free=True).to(dtype)
        for u in fem.to_function(decoder(large(decoder, dtype)).double(), U):
            assert assemble(inner(u, u) * dx) > 1
            assert cellwise(div(u), u) < tolerance
            n = FacetNormal(U.mesh())
            if tags:
                where = ds if tags == "on_boundary" else ds(tags)
                through = assemble(inner(u, n) ** 2 * where)
                assert through < (tolerance**2) * assemble(inner(u, u) * ds)
                assert fem.boundary_violation(u, decoder.bcs) == 0


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("cell", "family", "degree"), CIRCULATIONS)
def test_the_curl_vanishes_in_each_cell(cell, family, degree, dtype, tolerance):
    U = space(cell, family, degree)
    for tags in ((), (1, 2), "on_boundary"):
        decoder = Decoder(U, zero_traces(U, tags), curl_free=True).to(dtype)
        for u in fem.to_function(decoder(large(decoder, dtype)).double(), U):
            if full_rank(decoder.double()):
                assert assemble(inner(u, u) * dx) > 1
                assert cellwise(curl(u), u) < tolerance


@pytest.mark.parametrize("tags", [(), 1, (1, 2), "on_boundary"])
@pytest.mark.parametrize("name", DOMAINS)
@pytest.mark.parametrize("family", ["RT", "BDM", "N1curl"])
def test_every_field_of_the_kind_is_reached(name, family, tags):
    U = FunctionSpace(domain(name), family, 1)
    bcs = zero_traces(U, tags)
    kind = {"curl_free": True} if family == "N1curl" else {"divergence_free": True}
    decoder = Decoder(U, bcs, **kind)
    derivative = curl if family == "N1curl" else div
    assert full_rank(decoder) == kernel_dimension(U, derivative, bcs)
    assert decoder.unreached == 0


@pytest.mark.parametrize("through", ["potential", "projection"])
@pytest.mark.parametrize("name", ["two squares", "two boxes"])
def test_each_piece_of_a_mesh_keeps_its_divergence(name, through):
    U = FunctionSpace(domain(name), "RT", 2)
    x = SpatialCoordinate(U.mesh())
    left = conditional(x[0] < 1.5, 1.0, 0.0)
    right = 1 - left
    closed = zero_traces(U, "on_boundary")
    given = {"through": through}
    with pytest.raises(ValueError, match=r"each connected piece.*differ by 1"):
        Decoder(U, closed, divergence=left - right, **given)
    # The right one has an open end, the left one has none.
    sides = zero_traces(U, tuple(range(3, 2 * len(x) + 2)))
    inflow = DirichletBC(U, as_vector([1.0] + [0.0] * (len(x) - 1)), 1)
    with pytest.raises(ValueError, match=r"each connected piece.*differ by 1"):
        Decoder(U, [inflow, *sides], divergence_free=True, **given)
    open_end = [inflow, *sides], sin(x[0]) * right - left
    for bcs, f in (open_end, (closed, (x[0] - 0.5) * left + (x[0] - 2.5) * right)):
        decoder = Decoder(U, bcs, divergence=f, **given)
        f = project(f, decoder.divergence_space, solver_parameters={"ksp_rtol": 1e-15})
        for u in decoder.function(large(decoder, torch.float64)):
            assert cellwise(div(u) - f, u) < 1e-12
            assert fem.boundary_violation(u, decoder.bcs) == 0


def test_bodies_that_touch_in_a_point_are_pieces():
    U = FunctionSpace(domain("two squares at a corner"), "RT", 1)
    x = SpatialCoordinate(U.mesh())
    with pytest.raises(ValueError, match="each connected piece"):
        Decoder(U, zero_traces(U, "on_boundary"), divergence=conditional(x[0] < 1, 1.0, -1.0))


def test_holes_with_walls_of_their_own_are_reached():
    U = FunctionSpace(domain("two holes"), "RT", 1)
    for tags in (5, (1, 5), (1, 2, 5)):
        bcs = zero_traces(U, tags)
        assert full_rank(Decoder(U, bcs, divergence_free=True)) == kernel_dimension(U, div, bcs)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("family", ["RT", "BDM"])
def test_traces_that_vary_along_the_boundary_and_from_sample_to_sample(family, dtype, tolerance):
    mesh = UnitSquareMesh(4, 4)
    U = FunctionSpace(mesh, family, 2)
    x = SpatialCoordinate(mesh)
    walls = DirichletBC(U, Constant((0.0, 0.0)), (3, 4))
    profile = as_vector([x[1] * (1 - x[1]), 0])
    decoder = Decoder(U, [DirichletBC(U, profile, (1, 2)), walls], divergence_free=True).to(dtype)
    z = large(decoder, dtype)
    (a, _), n = fem.to_function(decoder(z).double(), U), FacetNormal(mesh)
    inflow = -float(assemble(inner(a, n) * ds(1)))
    # The trace of the interpolant of the profile, whose integral is exact.
    size = float(assemble(inner(a, a) * dx)) ** 0.5
    assert abs(inflow - 1 / 6) < tolerance * size
    assert cellwise(div(a), a) < tolerance
    steady = [Function(U).interpolate(Constant((c, 0))) for c in (2.0, -3.0)]
    g = fem.to_tensor(steady).to(dtype)
    other = decoder(z, g)
    assert torch.equal(other[:, decoder.constrained], g[:, decoder.constrained])
    for u in fem.to_function(other.double(), U):
        assert cellwise(div(u), u) < tolerance


def test_tangential_traces_of_a_gradient_are_kept_in_three_dimensions_too():
    for mesh in (UnitSquareMesh(3, 3), UnitCubeMesh(2, 2, 2)):
        U = FunctionSpace(mesh, "N1curl", 2)
        x = SpatialCoordinate(mesh)
        field = Function(U).interpolate(as_vector([2 * x[0] - x[1], -x[0], 0][: len(x)]))
        decoder = Decoder(U, DirichletBC(U, field, "on_boundary"), curl_free=True)
        u, v = decoder.function(large(decoder, torch.float64))
        assert cellwise(curl(u), u) < 1e-12
        assert fem.boundary_violation(u, decoder.bcs) == 0
        assert assemble(inner(u - v, u - v) * dx) > 1
        traces = fem.to_tensor([field, field]).to(torch.bfloat16)
        with pytest.raises(ValueError, match=r"tangential traces.*contradict"):
            decoder(torch.zeros(2, decoder.latent.dim()), traces)  # rounded too much
        turn = as_vector([-x[1], x[0], 0][: len(x)])
        with pytest.raises(ValueError, match=r"tangential traces.*contradict"):
            Decoder(U, DirichletBC(U, turn, "on_boundary"), curl_free=True)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("cell", "family", "degree"), FLUXES)
def test_a_divergence_is_kept_in_each_cell(cell, family, degree, dtype, tolerance):
    U = space(cell, family, degree)
    x = SpatialCoordinate(U.mesh())
    for tags in ((), (1, 2)):
        decoder = Decoder(U, zero_traces(U, tags), divergence=sin(x[0])).to(dtype)
        z, W = large(decoder, dtype), decoder.divergence_space
        f = project(sin(x[0]), W, solver_parameters={"ksp_rtol": 1e-15})
        for u in fem.to_function(decoder(z).double(), U):
            assert cellwise(div(u) - f, u) < tolerance
        # For each sample.
        fs = torch.randn(2, W.dim(), dtype=dtype, generator=torch.Generator().manual_seed(1))
        us = fem.to_function(decoder(z, divergence=fs).double(), U)
        for u, g in zip(us, fem.to_function(fs.double(), W), strict=True):
            assert cellwise(div(u) - g, u) < tolerance
        small = fem.to_function(decoder(0 * z, divergence=fs).double(), U)[0]
        assert cellwise(div(small) - fem.to_function(fs.double(), W)[0], small) < 10 * tolerance


@pytest.mark.parametrize("name", ["square", "box"])
def test_gradients_by_tangential_traces_are_right(name):
    U = FunctionSpace(domain(name), "N1curl", 1)
    plain, decoder = (Decoder(U, zero_traces(U, t), curl_free=True) for t in ((), 1))
    fields = plain(torch.randn(2, plain.latent.dim()).double())
    z = torch.randn(2, decoder.latent.dim()).double().requires_grad_()
    amounts = torch.randn(2, 1).double().requires_grad_()
    # Traces must stay those of gradients, for differences too.
    assert torch.autograd.gradcheck(lambda z, a: decoder(z, a * fields), (z, amounts))


@pytest.mark.parametrize("name", ["annulus", "box"])
def test_gradients_are_right(name):
    U = FunctionSpace(domain(name), "RT", 1)
    decoder = Decoder(U, zero_traces(U, (1, 2)), divergence=0.0, flux={3: 0.4})
    g = torch.randn(2, U.dim()).double().requires_grad_()
    f = torch.randn(2, decoder.divergence_space.dim()).double().requires_grad_()
    z = torch.randn(2, decoder.latent.dim()).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z, g, f: decoder(z, g, divergence=f), (z, g, f))


def test_a_periodic_square_has_its_two_constant_flows():
    mesh = PeriodicUnitSquareMesh(3, 3)
    for family, derivative, kind in (("RT", div, "divergence_free"), ("N1curl", curl, "curl_free")):
        U = FunctionSpace(mesh, family, 1)
        decoder = Decoder(U, **{kind: True})
        assert decoder.unreached == 0
        assert full_rank(decoder) == kernel_dimension(U, derivative, [])


def test_channel_flows_take_the_flux_that_they_are_given():
    mesh = UnitSquareMesh(4, 4)
    U, n = FunctionSpace(mesh, "BDM", 1), FacetNormal(mesh)
    decoder = Decoder(U, zero_traces(U, (3, 4)), divergence_free=True, flux={1: -0.5})
    z = large(decoder, torch.float64)
    for u in decoder.function(z):
        assert assemble(inner(u, n) * ds(1)) == pytest.approx(-0.5, abs=1e-9)
        assert assemble(inner(u, n) * ds(2)) == pytest.approx(0.5, abs=1e-9)
        assert cellwise(div(u), u) < 1e-12
    q = torch.tensor([0.1, 0.7], dtype=torch.float64)
    for u, given in zip(decoder.function(z, flux={1: q}), q, strict=True):
        assert assemble(inner(u, n) * ds(1)) == pytest.approx(float(given), abs=1e-9)
        assert cellwise(div(u), u) < 1e-12


def refusals():
    mesh = UnitSquareMesh(2, 2)
    U = FunctionSpace(mesh, "RT", 1)
    x = SpatialCoordinate(mesh)
    free = {"divergence_free": True}
    source = DirichletBC(U, x, "on_boundary")
    yield lambda: Decoder(U, source, **free), "normal traces contradict.*Leave a part"
    closed = DirichletBC(U, Constant((0, 0)), "on_boundary")
    yield lambda: Decoder(U, closed, divergence=1.0), "normal traces contradict.*differ by 1"
    walls = DirichletBC(U, Constant((0, 0)), (3, 4))
    yield lambda: Decoder(U, walls, flux={1: 1.0, 2: 1.0}, **free), "flux through 1.*through 2.*can"
    yield lambda: Decoder(U, walls, flux={3: 1.0}, **free), "flux through 3 cannot be attained"
    yield lambda: Decoder(U, divergence=1.0, **free), "contradict each other"
    yield lambda: Decoder(U, curl_free=True, **free), "choose one"
    yield lambda: Decoder(U, curl_free=True), r"needs an H\(curl\) space.*got RT 1"
    V = FunctionSpace(mesh, "CG", 1)
    yield lambda: Decoder(V, **free), r"needs an H\(div\) space.*got CG 1"
    yield lambda: Decoder(U, bounds=(0, 1), **free), "bounds contradict divergence_free"
    d = Decoder(U, closed, **free)
    g = fem.to_tensor([project(x, U)])
    z = torch.zeros(1, d.latent.dim()).double()
    yield lambda: d(z, g), "normal traces contradict"
    yield lambda: d(z, divergence=torch.zeros(1, 8)), "promises none.*divergence=0.0"
    open_ = Decoder(U, divergence=0.0)
    yield lambda: open_(z, divergence=torch.zeros(1, 3)), r"shape \(1, 3\): expected \(1, 8\)"
    elsewhere = Function(FunctionSpace(UnitSquareMesh(2, 2), "DG", 0))
    yield lambda: open_(z, divergence=elsewhere), "divergence in DG 0 .* on another mesh: expected"
    vertices = Function(FunctionSpace(mesh, "CG", 1))
    yield lambda: open_(z, divergence=[vertices]), "divergence in CG 1 .* expected .* DG 0"
    nan = float("nan")
    yield lambda: Decoder(U, divergence=nan), "NaN or infinity in the divergence"
    yield lambda: Decoder(U, divergence=torch.full((8,), nan)), "NaN or infinity in the divergence"
    yield lambda: open_(z, divergence=torch.full((1, 8), nan)), "the divergence: .* sample 0"
    astray = torch.cat([g, g * nan])
    yield lambda: d(z.expand(2, -1), astray * 0), "the boundary data: .* sample 1"


@pytest.mark.parametrize(("call", "message"), list(refusals()))
def test_what_cannot_hold_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_smooth_potentials_lose_nothing_in_single_precision():
    U = FunctionSpace(UnitSquareMesh(32, 32), "RT", 1)
    decoder = Decoder(U, divergence_free=True).to(torch.float32)
    x = SpatialCoordinate(U.mesh())
    p = fem.to_tensor([Function(decoder.latent).interpolate(10 + sin(x[0]))]).float()
    (u,) = fem.to_function(decoder(p).double(), U)
    assert cellwise(div(u), u) < 1e-6
    assert np.isfinite(float(assemble(inner(u, u) * dx)))


@pytest.mark.parametrize(("family", "promise"), [
    ("RT", "divergence_free"), ("BDM", "divergence_free"),
    ("N1curl", "curl_free"), ("N2curl", "curl_free"),
])  # fmt: skip
def test_a_single_cell_has_no_harmonic_fields(family, promise):
    for mesh in (UnitTetrahedronMesh(), UnitTriangleMesh()):
        decoder = Decoder(FunctionSpace(mesh, family, 1), **{promise: True})
        assert decoder.latent.ufl_element().family() in ("Lagrange", "Nedelec 1st kind H(curl)")


@pytest.mark.parametrize("stretch", [1e-3, 1e3])
def test_harmonic_fields_of_a_stretched_domain(stretch):
    stretched = Function(domain("box with a tunnel").coordinates)
    stretched.dat.data[:, 0] *= stretch
    mesh = Mesh(stretched)
    for family, walls, count in (("N1curl", (), 1), ("RT", "on_boundary", 1), ("RT", (), 0)):
        U = FunctionSpace(mesh, family, 1)
        kernel = Kernel(U, zero_traces(U, walls), divergence=family == "RT")
        assert kernel.harmonic.shape[1] == count
