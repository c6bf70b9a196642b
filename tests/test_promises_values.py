"""Means, fluxes, integrals and symmetric tensors, alone and together."""

import numpy as np
import pytest
import torch
from firedrake import (
    Constant,
    DirichletBC,
    FacetNormal,
    Function,
    FunctionSpace,
    SpatialCoordinate,
    TensorFunctionSpace,
    TestFunction,
    UnitCubeMesh,
    UnitSquareMesh,
    VectorFunctionSpace,
    as_vector,
    assemble,
    conditional,
    curl,
    div,
    ds,
    dx,
    inner,
    sin,
)
from promises import cellwise, large, zero_traces

import spon
from spon import Decoder, fem

DTYPES = [(torch.float64, 1e-12), (torch.float32, 1e-6)]
SCALARS = [("CG", 1), ("CG", 3), ("DG", 0), ("DG", 2)]
VECTORS = [("RT", 1), ("BDM", 2), ("N1curl", 2), ("vector CG", 2), ("vector DG", 1)]


def mesh_of(dimension):
    return UnitSquareMesh(4, 3) if dimension == 2 else UnitCubeMesh(2, 2, 2)


def space(mesh, family, degree):
    if family.startswith("vector"):
        return VectorFunctionSpace(mesh, family.split()[1], degree)
    return FunctionSpace(mesh, family, degree)


def norm(u):
    return float(assemble(inner(u, u) * dx)) ** 0.5


def conditions(U):
    broken = "Discontinuous" in str(U.ufl_element().family()) or "DG" in str(U.ufl_element())
    return [] if broken else [DirichletBC(U, Function(U).assign(1.0), 1)]


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("family", "degree"), SCALARS + VECTORS)
def test_means_fluxes_and_integrals(family, degree, dtype, tolerance, dimension):
    mesh = mesh_of(dimension)
    U, x, n = space(mesh, family, degree), SpatialCoordinate(mesh), FacetNormal(mesh)
    vector = bool(U.value_shape)
    mean = np.arange(1.0, dimension + 1) if vector else 0.7

    def through(v):
        return inner(v, n) if vector else v

    def weighted(v):
        return (inner(v, x) if vector else v * sin(5 * x[0])) * dx

    decoder = Decoder(
        U, conditions(U), mean=mean, flux={2: 0.3, (3, 4): -1.0}, integrals=[(weighted, 2.0)]
    ).to(dtype)
    given = {
        "mean": torch.tensor(np.stack([mean, 2 * mean]), dtype=dtype),
        "flux": {2: torch.tensor([0.1, 0.2], dtype=dtype)},
        "integrals": torch.tensor([[1.0], [3.0]], dtype=dtype),
    }
    z = large(decoder, dtype)
    wanted = [(mean, 0.3, 2.0)] * 2, [(mean, 0.1, 1.0), (2 * mean, 0.2, 3.0)]
    for us, targets in zip((decoder(z), decoder(z, **given)), wanted, strict=True):
        for u, (m, q, w) in zip(fem.to_function(us.double(), U), targets, strict=True):
            size = 10 * norm(u)
            means = [assemble(u[i] * dx) for i in range(dimension)] if vector else assemble(u * dx)
            np.testing.assert_allclose(means, m, rtol=0, atol=tolerance * size)
            assert abs(assemble(through(u) * ds(2)) - q) < tolerance * size
            assert abs(assemble(through(u) * ds((3, 4))) + 1) < tolerance * size
            assert abs(assemble(weighted(u)) - w) < tolerance * size
            assert fem.boundary_violation(u, decoder.bcs) < 1e-6 * (dtype == torch.float32) + 1e-300


def test_the_correction_is_the_smallest():
    """It is orthogonal to all fields that keep the promises and have zero integrals."""
    mesh = UnitSquareMesh(4, 4)
    for U, kind in (
        (FunctionSpace(mesh, "RT", 2), {"divergence_free": True}),
        (FunctionSpace(mesh, "CG", 2), {}),
    ):
        bcs = [DirichletBC(U, Function(U), (3, 4))]
        plain, kept = Decoder(U, bcs, **kind), Decoder(U, bcs, flux={1: 0.0}, **kind)
        z = large(plain, torch.float64, 1.0)
        change = fem.to_function(kept(z) - plain(z), U)[0]
        other = fem.to_function(kept(z), U)[1]
        assert norm(change) > 1e-3
        assert abs(assemble(inner(change, other) * dx)) < 1e-12 * norm(change) * norm(other)


def test_everything_at_once_for_a_flow():
    mesh = UnitSquareMesh(4, 4)
    U, x, n = FunctionSpace(mesh, "BDM", 2), SpatialCoordinate(mesh), FacetNormal(mesh)
    bcs = [
        DirichletBC(U, as_vector([x[1] * (1 - x[1]), 0]), 1),
        DirichletBC(U, Constant((0.0, 0.0)), 3),
    ]

    def moment(v):
        return (v[0] * x[1] - v[1] * x[0]) * dx

    decoder = Decoder(
        U, bcs, divergence=sin(x[0]), flux={2: 0.4}, mean=(0.2, 0.1), integrals=[(moment, 0.5)]
    )
    z = large(decoder, torch.float64)
    f = Function(decoder.divergence_space).project(sin(x[0]), solver_parameters={"ksp_rtol": 1e-15})
    for u in decoder.function(z):
        assert cellwise(div(u) - f, u) < 1e-12
        assert fem.boundary_violation(u, decoder.bcs) == 0
        tolerance = 1e-12 * 10 * norm(u)
        assert abs(assemble(inner(u, n) * ds(2)) - 0.4) < tolerance
        assert abs(assemble(u[0] * dx) - 0.2) < tolerance
        assert abs(assemble(u[1] * dx) - 0.1) < tolerance
        assert abs(assemble(moment(u)) - 0.5) < tolerance
    w = torch.randn(2, decoder.latent.dim()).double().requires_grad_()
    assert torch.autograd.gradcheck(decoder, w)


@pytest.mark.parametrize("dimension", [2, 3])
def test_circulations_of_curl_free_fields_with_a_mean(dimension):
    mesh = mesh_of(dimension)
    U = FunctionSpace(mesh, "N1curl", 2)
    mean = np.arange(1.0, dimension + 1)
    decoder = Decoder(U, zero_traces(U, 1), curl_free=True, mean=mean)
    for u in decoder.function(large(decoder, torch.float64)):
        assert cellwise(curl(u), u) < 1e-12
        means = [assemble(u[i] * dx) for i in range(dimension)]
        np.testing.assert_allclose(means, mean, rtol=0, atol=1e-11 * norm(u))
        assert fem.boundary_violation(u, decoder.bcs) == 0


def test_tensors_are_symmetric_with_a_mean():
    U = TensorFunctionSpace(UnitSquareMesh(3, 3), "CG", 2)
    wanted = np.array([[1.0, 0.2], [0.2, -1.0]])
    decoder = Decoder(U, DirichletBC(U, Constant(wanted), 1), symmetric=True, mean=wanted)
    for u in decoder.function(large(decoder, torch.float64)):
        assert norm(u - u.T) < 1e-14 * norm(u)
        for i in range(2):
            for j in range(2):
                assert abs(assemble(u[i, j] * dx) - wanted[i, j]) < 1e-11 * norm(u)
        assert fem.boundary_violation(u, decoder.bcs) == 0


def test_a_number_stands_for_all_samples():
    mesh = UnitSquareMesh(3, 3)
    U, n = FunctionSpace(mesh, "RT", 1), FacetNormal(mesh)
    decoder = Decoder(U, zero_traces(U, (3, 4)), flux={1: 0.0, 2: 0.0}, mean=(0.0, 0.0))
    z = large(decoder, torch.float64, 1.0)
    mean = torch.tensor([[0.1, 0.0], [0.2, 0.0]], dtype=torch.float64)
    for q in (-0.5, torch.tensor(-0.5), np.float64(-0.5)):
        us = decoder.function(z, flux={1: q, 2: torch.tensor([0.3, 0.4])}, mean=mean)
        for u, out, m in zip(us, (0.3, 0.4), (0.1, 0.2), strict=True):
            assert assemble(inner(u, n) * ds(1)) == pytest.approx(-0.5, abs=1e-12)
            assert assemble(inner(u, n) * ds(2)) == pytest.approx(out, abs=1e-7)  # of float32
            assert assemble(u[0] * dx) == pytest.approx(m, abs=1e-12)
    V = FunctionSpace(mesh, "CG", 2)
    for given, names in (({}, {"mean": 0.7}), ({"bounds": (0, 1)}, {"mean": torch.tensor(0.7)})):
        decoder = Decoder(V, mean=0.5, **given)
        for u in decoder.function(large(decoder, torch.float64, 1.0), **names):
            assert assemble(u * dx) == pytest.approx(0.7, abs=1e-7)
    decoder = Decoder(V, integrals=[(lambda v: v * ds, 1.0)])
    for u in decoder.function(large(decoder, torch.float64, 1.0), integrals=2.0):
        assert assemble(u * ds) == pytest.approx(2.0, abs=1e-12)


@pytest.mark.parametrize("make", [torch.Tensor.float, torch.Tensor.numpy])
def test_fluxes_in_single_precision_balance_to_its_rounding(make):
    U = FunctionSpace(UnitSquareMesh(4, 4), "RT", 1)
    decoder = Decoder(U, divergence_free=True, flux=dict.fromkeys((1, 2, 3, 4), 0.0))
    q = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    values = [*q, -q.sum(0)]
    fluxes = {tag: make(v) for tag, v in enumerate(values, 1)}
    z = large(decoder, torch.float32, 1.0)[:1].expand(8, -1)
    n = FacetNormal(U.mesh())
    for i, u in enumerate(decoder.function(z, flux=fluxes)):
        for tag, value in enumerate(values, 1):
            assert assemble(inner(u, n) * ds(tag)) == pytest.approx(float(value[i]), abs=1e-6)
    off = fluxes | {4: fluxes[4] + 1e-3}
    with pytest.raises(ValueError, match="cannot be attained"):
        decoder(z, flux=off)
    in_double = {tag: torch.tensor(v.tolist(), dtype=torch.float64) for tag, v in fluxes.items()}
    with pytest.raises(ValueError, match="cannot be attained"):
        decoder(z, flux=in_double)


def test_numbers_for_each_sample_are_doubles():
    V = FunctionSpace(UnitSquareMesh(3, 3), "CG", 1)
    decoder = Decoder(V, mean=0.5)
    z = large(decoder, torch.float64, 1.0)
    for mean in (0.1, [0.1, 0.1]):
        for u in decoder.function(z, mean=mean):
            assert assemble(u * dx) == pytest.approx(0.1, abs=1e-14)


def changing():
    """Decoders, and what changes afterwards in what they were given."""
    mesh = UnitSquareMesh(2, 2)
    V, U = FunctionSpace(mesh, "CG", 1), FunctionSpace(mesh, "RT", 1)
    W, Z = FunctionSpace(mesh, "DG", 0), VectorFunctionSpace(mesh, "CG", 1)
    x = SpatialCoordinate(mesh)
    c = [Constant(1.0) for _ in range(4)]
    yield lambda: Decoder(V, DirichletBC(V, c[0] * x[0], 2)), lambda: c[0].assign(5.0)
    pair = (c[1] * x[0], 0.0)
    yield lambda: Decoder(Z, DirichletBC(Z, pair, 2)), lambda: c[1].assign(5.0)
    yield lambda: Decoder(U, divergence=c[2]), lambda: c[2].assign(2.0)
    yield lambda: Decoder(U, divergence=c[3] * x[0]), lambda: c[3].assign(2.0)
    f = Function(W).assign(1.0)
    yield lambda: Decoder(U, divergence=f), lambda: f.assign(2.0)
    means = np.array([1.0, 2.0])
    yield lambda: Decoder(Z, mean=means), lambda: means.fill(7.0)
    A = np.array([[-1.0, 0.0], [0.0, -1.0]])
    yield lambda: Decoder(V, symmetry=[(A, (1, 1))]), lambda: A.fill(7.0)


@pytest.mark.parametrize(("make", "change"), list(changing()))
def test_what_changes_later_changes_no_promise(make, change, tmp_path):
    decoder, fine = make(), UnitSquareMesh(3, 3)
    V = FunctionSpace(decoder.space.mesh(), "CG", 1)
    net = spon.OperatorNetwork(spon.Encoder(V), spon.processors.Graph(2, 1), decoder)
    before = decoder.on(fine)
    z, zf = (large(d, torch.float64, 1.0) for d in (decoder, before))
    change()
    after, promised = decoder.on(fine), decoder.promised
    assert (after.promised, after(zf).tolist()) == (before.promised, before(zf).tolist())
    net.save(tmp_path / "net.spon")
    loaded = spon.load(tmp_path / "net.spon", V.mesh()).decoder
    assert loaded.promised == promised
    torch.testing.assert_close(loaded(z), decoder(z), rtol=0, atol=1e-12)


@pytest.mark.parametrize("offset", [1e4, 1e5, 5e5])
def test_moments_are_kept_far_from_the_origin(offset):
    """There the first moment is the integral times the offset, but for a small difference."""
    mesh = UnitSquareMesh(4, 4)
    mesh.coordinates.dat.data[:] += offset
    x = SpatialCoordinate(mesh)
    V = FunctionSpace(mesh, "CG", 1)
    moments = [(lambda v: v * dx, 1.0), (lambda v: v * x[0] * dx, offset + 0.7)]
    decoder = Decoder(V, integrals=moments)
    for u in decoder.function(large(decoder, torch.float64, 1.0)):
        assert assemble(u * dx) == pytest.approx(1.0, abs=1e-12)
        assert assemble((x[0] - offset) * u * dx) == pytest.approx(0.7, abs=1e-14 * offset)
    U, n = FunctionSpace(mesh, "RT", 2), FacetNormal(mesh)
    flows = [(lambda v: v[0] * dx, 1.0), (lambda v: v[0] * x[1] * dx, offset + 0.7)]
    decoder = Decoder(U, zero_traces(U, (3, 4)), divergence_free=True, integrals=flows)
    for u in decoder.function(large(decoder, torch.float64, 1.0)):
        assert assemble((x[1] - offset) * u[0] * dx) == pytest.approx(0.7, abs=1e-13 * offset)
        assert assemble(inner(u, n) * ds(2)) == pytest.approx(1.0, abs=1e-14 * offset)
        assert cellwise(div(u), u) < 1e-12


def refusals():
    mesh = UnitSquareMesh(2, 2)
    V, U = FunctionSpace(mesh, "CG", 1), FunctionSpace(mesh, "RT", 1)
    T = TensorFunctionSpace(mesh, "CG", 1)
    x = SpatialCoordinate(mesh)
    yield lambda: Decoder(V, mean=(1, 2)), ValueError, r"mean of shape \(2,\)"
    yield lambda: Decoder(V, mean=float("nan")), ValueError, "NaN"
    yield lambda: Decoder(V, flux={9: 1.0}), ValueError, "boundary tag 9; the mesh has"
    closed = DirichletBC(V, 1.0, "on_boundary")
    yield lambda: Decoder(V, closed, flux={1: 3.0}), ValueError, "flux through 1 cannot be attained"
    big = {"flux": {1: 1.001}, "integrals": [(lambda v: 1e8 * v * dx, 1e8)]}
    yield lambda: Decoder(V, closed, **big), ValueError, "the flux through 1 cannot .* by 0.001"
    twice = [(lambda v: v * dx, 1.0), (lambda v: 2 * v * dx, 5.0)]
    yield lambda: Decoder(V, integrals=twice), ValueError, r"integral 0 \+ integral 1 cannot"
    yield lambda: Decoder(V, integrals=[(3, 1.0)]), TypeError, "pairs .functional, value."
    w = TestFunction(U)
    other = [(inner(w, x) * dx, 1.0)]
    yield lambda: Decoder(V, integrals=other), ValueError, "test function of another space"
    yield (
        lambda: Decoder(V, integrals=[(lambda v: conditional(x[0] > 5, 1.0, 0.0) * v * dx, 1.0)]),
        ValueError,
        "is zero",
    )
    yield lambda: Decoder(V, symmetric=True), ValueError, "needs square tensors"
    skew = DirichletBC(T, Constant(((1, 2), (3, 4))), 1)
    yield lambda: Decoder(T, skew, symmetric=True), ValueError, "conditions are not symmetric"
    spin = np.array([[0, 1.0], [-1, 0]])
    yield lambda: Decoder(T, symmetric=True, mean=spin), ValueError, "cannot be attained"
    skewed = {"symmetric": True, "bounds": (0, 2), "mean": [[1, 0.5], [0.2, 1]]}
    yield lambda: Decoder(T, **skewed), ValueError, "mean .* is not symmetric"
    d, z = Decoder(V, mean=1.0), torch.zeros(2, V.dim())
    yield lambda: d(z, flux={1: torch.zeros(2)}), ValueError, "flux for each sample"
    yield (
        lambda: d(z, mean=torch.zeros(3)),
        ValueError,
        r"mean of shape \(3,\) for 2 samples: expected \(2,\), or a number",
    )
    W = VectorFunctionSpace(mesh, "CG", 1)
    both, zs = Decoder(W, mean=(0, 0)), torch.zeros(2, W.dim())
    yield lambda: both(zs, mean=1.0), ValueError, r"shape \(\) for 2 samples: expected \(2, 2\)."
    nan = float("nan")
    yield lambda: d(z, mean=torch.tensor([0.0, nan])), ValueError, "in mean: .* sample 1"
    yield lambda: Decoder(V, flux={1: nan}), ValueError, "NaN"
    q = Decoder(V, flux={1: 0.0})
    yield lambda: q(z, flux={1: nan}), ValueError, "NaN or infinity in flux 1"
    yield lambda: q(z, flux=0.5), ValueError, "as a mapping of the promised tags"
    yield lambda: Decoder(V, through="proj"), ValueError, "through must be one of"
    yield lambda: Decoder(V, through="projection"), ValueError, "none is promised: leave it out"
    yield lambda: Decoder(V, flux=[1.0]), TypeError, "flux must be a mapping.* got list"
    yield lambda: Decoder(V, flux=0.0), TypeError, "flux must be a mapping.* got float"
    yield lambda: Decoder(V, flux={1: "a"}), TypeError, "flux through 1 must be a number, got 'a'"
    recipe = [lambda v: v * dx]
    yield lambda: Decoder(V, integrals=recipe), TypeError, r"pairs .* function as integrals\[0\]"
    yield lambda: Decoder(V, integrals=recipe[0]), TypeError, "pairs .* into a list"
    yield lambda: Decoder(V, integrals=[(recipe[0], None)]), TypeError, "integral 0 must be a num"
    yield lambda: Decoder(V, symmetry=[(np.eye(2),)]), TypeError, "tuple of 1 as symmetry"
    yield lambda: d(z, integrals=torch.zeros(2, 1)), ValueError, "no such promise"
    yield lambda: d(z, speed=1), TypeError, "Unknown values for each sample: speed"
    yield lambda: Decoder(V)(z, mean=torch.zeros(2)), ValueError, "decoder without promises"
    yield lambda: d(torch.zeros(2, 3)), ValueError, r"output of shape \(2, 3\)"


@pytest.mark.parametrize(("call", "error", "message"), list(refusals()))
def test_what_cannot_hold_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_promises_that_others_make_already_are_no_contradiction():
    mesh = UnitSquareMesh(3, 3)
    U = FunctionSpace(mesh, "RT", 1)
    n = FacetNormal(mesh)
    decoder = Decoder(U, zero_traces(U, (3, 4)), divergence_free=True, flux={1: -0.5, 2: 0.5})
    (u, _) = decoder.function(large(decoder, torch.float64, 1.0))
    assert assemble(inner(u, n) * ds(2)) == pytest.approx(0.5, abs=1e-12)


def test_boundary_data_are_looked_at_where_the_decoder_is(monkeypatch):
    V = FunctionSpace(UnitSquareMesh(2, 2), "CG", 1)
    decoder = Decoder(V, DirichletBC(V, 0.0, 1), mean=0.5).to("meta")  # stands for a GPU
    devices = []

    def noted(values, what, where):
        devices.extend([values.device.type, where.device.type])
        raise InterruptedError

    monkeypatch.setattr("spon.decoders.require_finite", noted)
    with pytest.raises(InterruptedError):
        decoder(torch.zeros(2, V.dim(), device="meta"), torch.zeros(2, V.dim()))
    assert devices == ["meta", "meta"]


@pytest.mark.parametrize("mean", ["a", [1.0, [2.0]], torch.tensor(1.0, requires_grad=True)])
def test_a_mean_that_is_no_number_is_refused_by_name(mean):
    V = FunctionSpace(UnitSquareMesh(2, 2), "CG", 1)
    with pytest.raises(TypeError, match="mean= takes numbers"):
        Decoder(V, mean=mean)
