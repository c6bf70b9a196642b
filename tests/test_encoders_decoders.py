"""Encoders are exact on their space, decoders keep boundary values to the last bit."""

from functools import partial

import numpy as np
import pytest
import torch
from families import FAMILIES, discontinuous, mesh_of_cells, random_function, space
from firedrake import (
    BrokenElement,
    Cofunction,
    Constant,
    DirichletBC,
    Function,
    FunctionSpace,
    PeriodicUnitSquareMesh,
    SpatialCoordinate,
    TestFunction,
    UnitCubeMesh,
    UnitIcosahedralSphereMesh,
    UnitSquareMesh,
    VectorFunctionSpace,
    as_vector,
    assemble,
    dx,
    project,
    sin,
)

import spon
from spon import Decoder, Encoder, fem


def boundary_condition(V, tag="on_boundary"):
    """Conditions with values that vary along the boundary, on every part that can carry them."""
    x = SpatialCoordinate(fem.mesh_of(V))
    bcs = []
    for part in [V.sub(i) for i in range(len(V))] if len(V) > 1 else [V]:
        if part.ufl_element().family() in ("Discontinuous Lagrange", "DQ"):
            continue
        shape = part.value_shape
        value = (
            sin(3 * x[0]) if not shape else as_vector([sin(3 * x[i]) + i for i in range(shape[0])])
        )
        bcs.append(DirichletBC(part, value, tag))
    return bcs


@pytest.mark.parametrize(("cell", "family", "degree"), FAMILIES)
def test_encode_then_decode_is_the_identity(cell, family, degree):
    V = space(cell, family, degree)
    f = random_function(V)
    (g,) = Decoder(V).function(Encoder(V).encode(f))
    for a, b in zip(f.subfunctions, g.subfunctions, strict=True):
        np.testing.assert_allclose(b.dat.data_ro, a.dat.data_ro, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("cell", "family", "degree"), FAMILIES)
def test_encoding_the_broken_version_of_a_function_gives_the_function(cell, family, degree):
    V = space(cell, family, degree)
    if len(V) > 1 or cell == "hexahedron":
        pytest.skip("Firedrake has no broken version of this space")
    broken = FunctionSpace(V.mesh(), BrokenElement(V.ufl_element()))
    f = random_function(V)
    same = Function(broken).interpolate(f)
    for encoder in (Encoder(V), Encoder(V, method="project")):
        torch.testing.assert_close(encoder.encode(same)[0], fem.to_tensor(f), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("cell", "family", "degree"), FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_boundary_dofs_are_those_that_firedrake_sets(cell, family, degree, dtype):
    V = space(cell, family, degree)
    bcs = boundary_condition(V)
    if not bcs:
        pytest.skip("a discontinuous space has no dofs on the boundary")
    decoder = Decoder(V, bcs).to(dtype)
    x = torch.randn(2, V.dim(), dtype=dtype, generator=torch.Generator().manual_seed(0))
    for row, got in zip(x.double(), decoder.function(x), strict=True):
        expected = fem.to_function(row, V)
        for bc in bcs:
            bc.apply(expected)
        assert torch.equal(fem.to_tensor(got), fem.to_tensor(expected))


@pytest.mark.parametrize(("cell", "family", "degree"), FAMILIES)
def test_projection_is_exact_on_the_space(cell, family, degree):
    V = space(cell, family, degree)
    if len(V) > 1:
        pytest.skip("projection of mixed spaces is that of their parts")
    f = random_function(V)
    shape = V.value_shape
    # H(div) and H(curl) elements of degree k contain no full polynomials but all constants.
    source = discontinuous(V, 0)
    g = Function(source).assign(Constant([1.5] * shape[0]) if shape else 1.5)
    got = Encoder(V, source=source, method="project").encode(g)
    expected = project(g, V, solver_parameters={"ksp_rtol": 1e-14})
    torch.testing.assert_close(got[0], fem.to_tensor(expected), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(Encoder(V, method="project").encode(f)[0], fem.to_tensor(f))


def test_projection_equals_firedrakes_on_rough_data():
    mesh = mesh_of_cells("triangle")
    V, W = FunctionSpace(mesh, "CG", 2), FunctionSpace(mesh, "DG", 3)
    f = random_function(W)
    expected = project(f, V, solver_parameters={"ksp_rtol": 1e-14, "ksp_atol": 0})
    got = Encoder(V, source=W, method="project")(fem.to_tensor([f]))
    torch.testing.assert_close(got[0], fem.to_tensor(expected), rtol=1e-10, atol=1e-11)


def test_projection_from_another_mesh_reproduces_what_both_hold():
    source = VectorFunctionSpace(UnitSquareMesh(7, 5), "CG", 2)
    V = VectorFunctionSpace(UnitSquareMesh(3, 3), "CG", 2)

    def quadratic(W):
        x = SpatialCoordinate(W.mesh())
        return Function(W).interpolate(as_vector([x[0] ** 2 - x[1], x[0] * x[1]]))

    got = Encoder(V, source=source, method="project").encode(quadratic(source))
    torch.testing.assert_close(got[0], fem.to_tensor(quadratic(V)), rtol=0, atol=1e-12)
    # The mean of x² over each cell: the quadrature must know the degree of the source.
    fine, coarse = FunctionSpace(UnitSquareMesh(4, 4), "CG", 2), UnitSquareMesh(2, 2)
    W = FunctionSpace(coarse, "DG", 0)
    square = Function(fine).interpolate(SpatialCoordinate(fine.mesh())[0] ** 2)
    means = Encoder(W, source=fine, method="project").encode(square)
    expected = assemble(SpatialCoordinate(coarse)[0] ** 2 * TestFunction(W) * dx)
    torch.testing.assert_close(means[0] / 8, fem.to_tensor(expected), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("cell", "family", "degree"),
    [p for p in FAMILIES if p.values[1] in ("CG", "Q", "vector CG", "RT")],
)
def test_points_that_determine_a_function_give_it_back(cell, family, degree):
    V = space(cell, family, degree)
    mesh = fem.mesh_of(V)
    rng = np.random.default_rng(0)
    corners = mesh.coordinates.dat.data_ro[mesh.coordinates.cell_node_map().values]
    weights = rng.dirichlet(np.ones(corners.shape[1]), size=(len(corners), 400))
    points = np.einsum("cpk,ckd->cpd", weights, corners).reshape(-1, corners.shape[2])
    c = torch.randn(2, V.dim(), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = fem.evaluation_map(V, points)(c.T).T
    got = Encoder(V, points=points)(values.reshape(2, len(points), *V.value_shape))
    torch.testing.assert_close(got, c, rtol=0, atol=1e-12)


def test_an_image_of_a_quadratic_is_fitted_exactly_on_a_domain_with_a_hole_in_the_image():
    V = FunctionSpace(UnitSquareMesh(4, 4), "CG", 2)
    encoder = Encoder(V, grid=(30, 40), box=((-0.2, 1.1), (0.0, 1.3)))
    x = -0.2 + 1.3 * (np.arange(30) + 0.5) / 30
    y = 1.3 * (np.arange(40) + 0.5) / 40
    image = torch.from_numpy(x[:, None] ** 2 - x[:, None] * y[None, :])
    image[x < 0] = torch.nan  # pixels outside the mesh are never read
    X = SpatialCoordinate(V.mesh())
    expected = Function(V).interpolate(X[0] ** 2 - X[0] * X[1])
    torch.testing.assert_close(encoder(image[None])[0], fem.to_tensor(expected), rtol=0, atol=1e-11)


def test_smoothing_makes_few_points_enough_and_keeps_constants():
    V = space("triangle", "CG", 2)
    points = np.random.default_rng(0).uniform(0.1, 0.7, (12, 2))
    with pytest.raises(ValueError, match="do not determine"):
        Encoder(V, points=points)
    encoder = Encoder(V, points=points, smoothing=1e-6)
    got = encoder(torch.full((1, 12), 2.5, dtype=torch.float64))
    torch.testing.assert_close(got, torch.full_like(got, 2.5), rtol=0, atol=1e-9)


def test_encoders_are_differentiable():
    V, W = space("triangle", "CG", 2), space("triangle", "DG", 2)
    points = np.random.default_rng(0).uniform(0.0, 0.8, (400, 2)) * [1.25, 1.0]
    x = torch.randn(2, W.dim(), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Encoder(V, source=W, method="project"), x)
    C = FunctionSpace(V.mesh(), "CG", 1)
    y = torch.randn(2, 400, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Encoder(C, points=points), y)


def test_boundary_values_for_each_sample():
    V = space("triangle", "CG", 2)
    decoder = Decoder(V, DirichletBC(V, 0, (1, 3)))
    x = torch.randn(3, V.dim(), dtype=torch.float64, requires_grad=True)
    g = torch.randn(3, V.dim(), dtype=torch.float64, requires_grad=True)
    y = decoder(x, g)
    on = decoder.constrained
    assert torch.equal(y[:, on], g[:, on])
    assert torch.equal(y[:, ~on], x[:, ~on])
    y.sum().backward()
    assert torch.equal(g.grad, on.expand(3, -1).double())
    assert torch.equal(x.grad, (~on).expand(3, -1).double())


def test_a_decoder_moves_to_another_mesh_with_its_conditions():
    mesh, fine = UnitSquareMesh(4, 4), UnitSquareMesh(9, 9)
    U = VectorFunctionSpace(mesh, "CG", 2)
    x = SpatialCoordinate(mesh)
    held = Function(U).interpolate(as_vector([x[0], x[1] ** 2]))
    bcs = [
        DirichletBC(U, Constant((1.0, 2.0)), 1),
        DirichletBC(U.sub(1), sin(x[0]), 3),
        DirichletBC(U, held, 2),
    ]
    moved = Decoder(U, bcs).on(fine)
    W = moved.space
    y = SpatialCoordinate(fine)
    written_out = [
        DirichletBC(W, Constant((1.0, 2.0)), 1),
        DirichletBC(W.sub(1), sin(y[0]), 3),
        DirichletBC(W, as_vector([y[0], y[1] ** 2]), 2),
    ]
    expected = Decoder(W, written_out)
    assert torch.equal(moved.constrained, expected.constrained)
    torch.testing.assert_close(moved.values, expected.values, rtol=0, atol=1e-12)
    by_rule = Decoder(U, lambda V: DirichletBC(V, SpatialCoordinate(V.mesh()), 4)).on(fine)
    again = Decoder(W, DirichletBC(W, y, 4))
    torch.testing.assert_close(by_rule.values, again.values, rtol=0, atol=0)


def RT(V):
    return FunctionSpace(V.mesh(), "RT", 1)


class Pin(DirichletBC):
    """The usual way to hold one node."""

    nodes = property(lambda self: np.array([0], dtype=np.int32))


def pin(V):
    return Pin(V, 1.0, "on_boundary")


def test_a_pinned_node_stays_one_node(tmp_path):
    V = FunctionSpace(UnitSquareMesh(3, 3), "CG", 1)
    fine = UnitSquareMesh(4, 4)
    decoder = Decoder(V, pin(V))
    net = spon.OperatorNetwork(spon.Encoder(V), spon.processors.Graph(2, 1), decoder)
    assert int(decoder.constrained.sum()) == 1
    assert not net.geometry.torsion.any()  # no part of the boundary is held
    with pytest.raises(ValueError, match=r"holds at nodes of its own.*bcs=lambda U"):
        net.on(fine)
    by_rule = Decoder(V, pin)
    assert int(by_rule.on(fine).constrained.sum()) == 1
    net.save(tmp_path / "net.spon")
    for mesh, more in ((V.mesh(), {}), (fine, {"same_mesh": False})):
        with pytest.raises(ValueError, match=r"holds at nodes of its own.*bcs= at loading"):
            spon.load(tmp_path / "net.spon", mesh, **more)
        loaded = spon.load(tmp_path / "net.spon", mesh, bcs=pin, **more)
        assert int(loaded.decoder.constrained.sum()) == 1


def wrong_calls():
    def dg_condition(V):
        D = FunctionSpace(V.mesh(), "DG", 0)
        return Decoder(D, DirichletBC(D, 0, 1))

    yield lambda V: Encoder(3), TypeError, "Firedrake FunctionSpace, got int"
    yield lambda V: Encoder(V.dual()), TypeError, r"primal.*not loads or residuals \(dual\)"
    yield lambda V: Encoder(V).encode(Cofunction(V.dual())), TypeError, "Riesz map"
    yield lambda V: Encoder(V, method="guess"), ValueError, "interpolate.*got 'guess'"
    yield lambda V: Encoder(V, source=V, points=[[0, 0]]), ValueError, "source and points"
    yield lambda V: Encoder(V, grid=(4, 4)), ValueError, "both grid .* and box"
    yield lambda V: Encoder(V, grid=(4, 4), box=((0, 1),)), ValueError, r"box of shape \(2, 2\)"
    yield lambda V: Encoder(V, grid=(0, 4), box=((0, 1),) * 2), ValueError, "counts pixels"
    yield lambda V: Encoder(V, grid=(4.5, 4), box=((0, 1),) * 2), ValueError, "counts pixels"
    yield lambda V: Encoder(V, smoothing=1.0), ValueError, "Smoothing belongs to data at points"
    yield lambda V: Encoder(V, points=[[0.1, 0.1]], smoothing=-1), ValueError, ">= 0, got -1"
    yield lambda V: Encoder(V, points=[[0.1, 0.1]] * 50), ValueError, "50 points do not determine"
    yield (
        lambda V: Encoder(V)(torch.zeros(2, 3)),
        ValueError,
        r"shape \(2, 3\) for an encoder into CG 1",
    )
    yield (
        lambda V: Encoder(V).encode(Function(VectorFunctionSpace(V.mesh(), "CG", 1))),
        ValueError,
        "value shape",
    )
    yield lambda V: Decoder(V, 3), TypeError, "DirichletBC.*got int"
    yield lambda V: Decoder(V, [3]), TypeError, "found a int"
    yield lambda V: Decoder(V, DirichletBC(V, 0, 77)), ValueError, "no boundary tag 77; its tags"
    yield dg_condition, ValueError, "constrains no dof of DG 0.*this element has no dofs"

    def held(mesh, tag, V):
        closed = FunctionSpace(mesh, "CG", 1)
        return Decoder(closed, DirichletBC(closed, 0, tag))

    for mesh, tag in (
        (PeriodicUnitSquareMesh(3, 3), "on_boundary"),
        (PeriodicUnitSquareMesh(3, 3), 1),
        (UnitIcosahedralSphereMesh(1), "on_boundary"),
    ):
        yield partial(held, mesh, tag), ValueError, "the mesh has no facets there"
    flow = {"divergence_free": True}
    yield (
        lambda V: Decoder(RT(V), Pin(RT(V), [0.0, 0.0], 1), **flow),
        ValueError,
        "say nothing of a potential",
    )
    yield (
        lambda V: Decoder(FunctionSpace(V.mesh(), "CG", 2), DirichletBC(V, 0, 1)),
        ValueError,
        "belongs to CG 1 with .* the decoder to CG 2",
    )
    yield (
        lambda V: Decoder(V, DirichletBC(V, Function(V).assign(np.nan), 1)),
        ValueError,
        "NaN or infinite on",
    )
    yield lambda V: Decoder(V)(torch.zeros(2, 3)), ValueError, r"output of shape \(2, 3\)"
    yield (
        lambda V: Decoder(V)(torch.ones(2, V.dim(), dtype=torch.int64)),
        TypeError,
        "output of torch.int64 .* floating point",
    )
    yield lambda V: Decoder(V)(np.zeros((2, V.dim()))), TypeError, "output as a ndarray"
    yield (
        lambda V: Decoder(V, DirichletBC(V, 0, 1))(torch.zeros(2, V.dim()), [0.0]),
        TypeError,
        "boundary data as a list",
    )
    yield (
        lambda V: Decoder(V)(torch.zeros(2, V.dim()), torch.zeros(2, V.dim())),
        ValueError,
        "decoder without boundary conditions",
    )
    yield (
        lambda V: Decoder(V, DirichletBC(V, 0, 1)).on(UnitCubeMesh(1, 1, 1)),
        ValueError,
        "triangle cells, this mesh has tetrahedron",
    )


@pytest.mark.parametrize(("call", "error", "message"), list(wrong_calls()))
@pytest.mark.filterwarnings("ignore")
def test_wrong_calls_say_what_was_given(call, error, message):
    with pytest.raises(error, match=message):
        call(space("triangle", "CG", 1))
