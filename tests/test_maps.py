"""`sparse_map` against Firedrake's own application and assembly, and its adjoint."""

import numpy as np
import pytest
import torch
from families import FAMILIES, discontinuous, mesh_of_cells, random_function, space
from firedrake import (
    Cofunction,
    Constant,
    DirichletBC,
    Function,
    FunctionSpace,
    PointEvaluator,
    RectangleMesh,
    SpatialCoordinate,
    TestFunction,
    TrialFunction,
    UnitSquareMesh,
    VectorFunctionSpace,
    VertexOnlyMesh,
    action,
    as_vector,
    assemble,
    div,
    ds,
    dx,
    grad,
    inner,
    interpolate,
    jump,
)
from firedrake import dS as interior_facets

from spon import fem


def close(a, b):
    scale = max(float(b.abs().max()), 1e-300)
    assert float((a - b).abs().max()) <= 1e-12 * scale


@pytest.mark.parametrize(("cell", "family", "degree"), FAMILIES)
def test_mass_acts_like_the_assembled_one_form(cell, family, degree):
    V = space(cell, family, degree)
    u, v, f = TrialFunction(V), TestFunction(V), random_function(V)
    mass = fem.sparse_map(inner(u, v) * dx)
    close(mass(fem.to_tensor(f)), fem.to_tensor(assemble(inner(f, v) * dx)))


def test_mean_squares_of_constants_beside_a_field():
    mesh = RectangleMesh(3, 2, 3.0, 2.0)
    V, R = FunctionSpace(mesh, "CG", 1), VectorFunctionSpace(mesh, "R", 0, dim=2)
    f, c = Function(V * R).subfunctions
    f.interpolate(SpatialCoordinate(mesh)[0])
    c.assign(Constant((2.0, -5.0)))
    for part, mass in zip((f, c), fem.mean_mass(V * R), strict=True):
        x = torch.from_numpy(part.dat.data_ro.flatten())
        expected = assemble(inner(part, part) * dx) / 6.0
        assert float(x @ mass(x)) == pytest.approx(expected, rel=1e-12)
    (mass,) = fem.mean_mass(R)
    assert torch.equal(mass(x), x)


@pytest.mark.parametrize(("cell", "family", "degree"), FAMILIES)
def test_interpolation_acts_like_firedrake_and_so_does_its_adjoint(cell, family, degree):
    V = space(cell, family, degree)
    if len(V) > 1:
        W = V
        source = random_function(V)
    else:
        W = discontinuous(V, 1)
        source = random_function(V)
    a = fem.sparse_map(interpolate(TrialFunction(V), W))
    expected = assemble(interpolate(source, W))
    close(a(fem.to_tensor(source)), fem.to_tensor(expected))
    if len(V) > 1:
        return
    dual = Cofunction(W.dual())
    dual.dat.data_wo[...] = np.random.default_rng(1).standard_normal(dual.dat.data_ro.shape)
    adjoint = assemble(interpolate(TestFunction(V), dual))
    close(a.T(fem.to_tensor(dual)), fem.to_tensor(adjoint))


@pytest.mark.parametrize(("cell", "family", "degree"), FAMILIES)
def test_interpolation_of_what_jumps_between_cells(cell, family, degree):
    W = space(cell, family, degree)
    if len(W) > 1:
        pytest.skip("the parts of mixed spaces are tested by themselves")
    V = discontinuous(W, 1)
    form = interpolate(TrialFunction(V), W)
    if cell == "hexahedron" and degree > 2:
        with pytest.raises(NotImplementedError, match="Neighbouring cells disagree"):
            fem.sparse_map(form)
        return
    f = random_function(V)
    close(fem.sparse_map(form)(fem.to_tensor(f)), fem.to_tensor(assemble(interpolate(f, W))))


@pytest.mark.parametrize(("cell", "family", "degree"), FAMILIES)
def test_adjointness_as_a_dot_product(cell, family, degree):
    V = space(cell, family, degree)
    u, v = TrialFunction(V), TestFunction(V)
    x = SpatialCoordinate(fem.mesh_of(V))
    a = fem.sparse_map((1 + x[0]) * inner(u, v) * dx)
    rng = torch.Generator().manual_seed(0)
    p = torch.randn(V.dim(), 2, generator=rng, dtype=torch.float64)
    q = torch.randn(V.dim(), 2, generator=rng, dtype=torch.float64)
    left, right = (a(p) * q).sum(), (p * a.T(q)).sum()
    assert abs(left - right) <= 1e-12 * abs(a(p) * q).sum()


def derivative_cases():
    mesh = mesh_of_cells("triangle")
    V = FunctionSpace(mesh, "CG", 2)
    R = FunctionSpace(mesh, "RT", 2)
    other = FunctionSpace(UnitSquareMesh(9, 7), "CG", 3)
    inside = FunctionSpace(UnitSquareMesh(2, 2, name="inner"), "CG", 1)
    inside.mesh().coordinates.dat.data[...] *= 0.5
    cloud = VertexOnlyMesh(mesh, [[0.1, 0.2], [0.7, 0.3], [0.5, 0.5]])
    quadrature = VectorFunctionSpace(mesh, "Quadrature", 4)
    yield "gradient", V, lambda u: grad(u), VectorFunctionSpace(mesh, "DG", 1)
    yield "curl into RT", V, lambda u: as_vector([-u.dx(1), u.dx(0)]), R
    yield "divergence", R, lambda u: div(u), FunctionSpace(mesh, "DG", 1)
    yield "gradient at quadrature points", V, lambda u: grad(u), quadrature
    yield "values at quadrature points", R, lambda u: u, quadrature
    yield "gradient into CG", V, lambda u: grad(u), VectorFunctionSpace(mesh, "CG", 1)
    yield "gradient into N1curl", V, lambda u: grad(u), FunctionSpace(mesh, "N1curl", 2)
    yield "RT into CG", R, lambda u: u, VectorFunctionSpace(mesh, "CG", 2)
    yield "finer mesh", inside, lambda u: u, FunctionSpace(inside.mesh(), "CG", 2)
    yield "other mesh", other, lambda u: u, inside
    yield "vertex-only mesh", V, lambda u: u, FunctionSpace(cloud, "DG", 0)


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c[0].replace(" ", "_")) for c in derivative_cases()]
)
def test_interpolated_expressions(case):
    _, V, expression, W = case
    f = random_function(V)
    a = fem.sparse_map(interpolate(expression(TrialFunction(V)), W))
    close(a(fem.to_tensor(f)), fem.to_tensor(assemble(interpolate(expression(f), W))))


@pytest.mark.parametrize("case", ["facets", "mixed", "boundary", "coefficient"])
def test_forms_of_every_kind_of_integral(case):
    mesh = mesh_of_cells("triangle")
    V = FunctionSpace(mesh, "DG", 1)
    W = space("triangle", "RT x DG", 1)
    weight = Function(V).interpolate(1 + SpatialCoordinate(mesh)[0])
    u, v = TrialFunction(V), TestFunction(V)
    s, t = TrialFunction(W), TestFunction(W)
    form = {
        "facets": inner(jump(u), jump(v)) * interior_facets,
        "mixed": inner(s[2], t[2]) * dx - inner(div(as_vector([t[0], t[1]])), s[2]) * dx,
        "boundary": Constant(3.0) * u * v * ds((1, 3)),
        "coefficient": weight * inner(grad(u), grad(v)) * dx,
    }[case]
    f = random_function(W if case == "mixed" else V)
    close(fem.sparse_map(form)(fem.to_tensor(f)), fem.to_tensor(assemble(action(form, f))))


def test_values_at_points_keep_the_order_of_the_points():
    for V in (
        space("triangle", "CG", 2),
        space("triangle", "RT", 2),
        space("tetrahedron", "CG", 2),
    ):
        d = fem.mesh_of(V).geometric_dimension
        points = np.random.default_rng(0).uniform(0.05, 0.5, (30, d))
        f = random_function(V)
        values = fem.evaluation_map(V, points)(fem.to_tensor(f)).numpy()
        expected = PointEvaluator(fem.mesh_of(V), points).evaluate(f)
        np.testing.assert_allclose(values, np.asarray(expected).ravel(), atol=1e-12)


def test_the_cache_knows_mesh_motion_and_coefficient_values():
    mesh = UnitSquareMesh(2, 2)
    V = FunctionSpace(mesh, "CG", 1)
    a, c = Function(V).assign(1.0), Constant(1.0)
    form = c * a * TrialFunction(V) * TestFunction(V) * dx
    first = fem.sparse_map(form)
    again = fem.sparse_map(c * a * TrialFunction(V) * TestFunction(V) * dx)
    assert again._forward_values.data_ptr() == first._forward_values.data_ptr()
    again.float()
    assert fem.sparse_map(form).dtype == first.dtype == torch.float64
    held = a.dat.data
    held[:] = 7.0
    assert fem.sparse_map(form).to_scipy().sum() == pytest.approx(7.0)
    held[:] = 8.0  # written through an array held earlier
    assert fem.sparse_map(form).to_scipy().sum() == pytest.approx(8.0)
    a.assign(2.0)
    assert fem.sparse_map(form).to_scipy().sum() == pytest.approx(2.0)
    c.assign(3.0)
    assert fem.sparse_map(form).to_scipy().sum() == pytest.approx(6.0)
    mesh.coordinates.dat.data[...] *= 2
    assert fem.sparse_map(form).to_scipy().sum() == pytest.approx(24.0)
    other = FunctionSpace(UnitSquareMesh(2, 2), "CG", 1)
    b = Function(other).assign(5.0)
    assert fem.sparse_map(
        c * b * TrialFunction(other) * TestFunction(other) * dx
    ).to_scipy().sum() == pytest.approx(15.0)


def test_round_off_entries_are_dropped_and_small_ones_kept():
    V = space("triangle", "CG", 1)
    identity = fem.interpolation_map(V, V)
    assert identity.nnz == V.dim()
    W = V * V
    (u, p), (v, q) = TrialFunction(W), TestFunction(W)
    scaled = fem.sparse_map(u * v * dx + 1e-30 * p * q * dx).to_scipy()
    plain = fem.sparse_map(TrialFunction(V) * TestFunction(V) * dx)
    assert scaled.nnz == 2 * plain.nnz


def test_assembled_matrices_with_conditions_are_taken_as_they_are():
    V = space("triangle", "CG", 1)
    u, v = TrialFunction(V), TestFunction(V)
    bc = DirichletBC(V, 0, "on_boundary")
    a = assemble(inner(grad(u), grad(v)) * dx, bcs=bc)
    dense = fem.sparse_map(a).to_scipy().toarray()
    np.testing.assert_array_equal(dense[bc.nodes][:, bc.nodes], np.eye(len(bc.nodes)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda V: fem.sparse_map(3), TypeError, "UFL form with two arguments.*got int"),
        (lambda V: fem.sparse_map(TestFunction(V) * dx), TypeError, "this one has 1"),
        (
            lambda V: fem.sparse_map(
                TrialFunction(FunctionSpace(V.mesh(), "R", 0)) * TestFunction(V) * dx
            ),
            NotImplementedError,
            "no sparse storage",
        ),
        (
            lambda V: fem.interpolation_map(V, VectorFunctionSpace(V.mesh(), "CG", 1)),
            ValueError,
            r"value shape \(\) \(CG 1\) into vector\(2,\) CG 1 of value shape \(2,\)",
        ),
        (lambda V: fem.evaluation_map(V, [1.0, 2.0]), ValueError, r"shape \(n_points, 2\)"),
        (lambda V: fem.evaluation_map(V, [[0.1, np.nan]]), ValueError, "NaN"),
        (
            lambda V: fem.evaluation_map(V, [[0.1, 0.1], [9.0, 9.0]]),
            ValueError,
            r"1 of 2 points lie outside the mesh, the first is \[9.0, 9.0\]",
        ),
        (
            lambda V: fem.interpolation_map(
                FunctionSpace(RectangleMesh(9, 9, 0.2, 0.2), "CG", 1), V
            ),
            ValueError,
            "nodes of CG 1 lie outside the mesh of CG 1",
        ),
        (
            lambda V: fem.evaluation_map(V * V, [[0.1, 0.1]]),
            ValueError,
            "scalar and vector spaces",
        ),
    ],
)
def test_wrong_calls_say_what_was_given(call, error, message):
    with pytest.raises(error, match=message):
        call(space("triangle", "CG", 1))
