"""The losses against Firedrake's own norms, and their gradients against differences."""

from __future__ import annotations

import firedrake as fd
import numpy as np
import pytest
import torch

from spon.fem.norms import fitting_norms, gram
from spon.losses import AbsoluteError, RelativeError, SquaredError, SquaredRelativeError

MESHES = {
    "triangle": lambda: fd.UnitSquareMesh(3, 2),
    "quadrilateral": lambda: fd.UnitSquareMesh(3, 2, quadrilateral=True),
    "tetrahedron": lambda: fd.UnitCubeMesh(2, 1, 1),
    "hexahedron": lambda: fd.UnitCubeMesh(2, 1, 1, hexahedral=True),
}
SPACES = [
    ("triangle", "CG 1", "L2 H1"),
    ("triangle", "CG 2", "L2 H1"),
    ("triangle", "CG 4", "L2 H1"),
    ("triangle", "DG 0", "L2"),
    ("triangle", "DG 3", "L2"),
    ("triangle", "vector CG 2", "L2 H1 Hdiv Hcurl"),
    ("triangle", "vector DG 1", "L2"),
    ("triangle", "RT 2", "L2 Hdiv"),
    ("triangle", "BDM 1", "L2 Hdiv"),
    ("triangle", "N1curl 2", "L2 Hcurl"),
    ("triangle", "mixed", "L2"),
    ("quadrilateral", "CG 3", "L2 H1"),
    ("quadrilateral", "DQ 2", "L2"),
    ("quadrilateral", "RTCF 1", "L2 Hdiv"),
    ("tetrahedron", "CG 2", "L2 H1"),
    ("tetrahedron", "vector CG 1", "L2 H1 Hdiv Hcurl"),
    ("tetrahedron", "RT 1", "L2 Hdiv"),
    ("tetrahedron", "N1curl 1", "L2 Hcurl"),
    ("hexahedron", "CG 2", "L2 H1"),
    ("hexahedron", "DQ 1", "L2"),
]
PAIRS = [(cell, name, norm) for cell, name, norms in SPACES for norm in norms.split()]


def make_space(cell, name):
    mesh = MESHES[cell]()
    if name == "mixed":
        return fd.FunctionSpace(mesh, "RT", 1) * fd.FunctionSpace(mesh, "DG", 0)
    *kind, family, degree = name.split()
    return (fd.VectorFunctionSpace if kind else fd.FunctionSpace)(mesh, family, int(degree))


def coefficients(function):
    return np.concatenate([part.dat.data_ro.ravel() for part in function.subfunctions])


def random_functions(V, n, seed):
    generator = np.random.default_rng(seed)
    functions = [fd.Function(V) for _ in range(n)]
    for part in (part for f in functions for part in f.subfunctions):
        part.dat.data[:] = generator.standard_normal(part.dat.data.shape)
    values = torch.from_numpy(np.stack([coefficients(f) for f in functions]))
    return functions, values


@pytest.fixture(scope="module")
def square():
    return fd.FunctionSpace(fd.UnitSquareMesh(3, 3), "CG", 2)


@pytest.mark.parametrize(("cell", "name", "norm"), PAIRS)
def test_errors_are_those_of_firedrake(cell, name, norm):
    V = make_space(cell, name)
    u, x = random_functions(V, 3, seed=0)
    v, y = random_functions(V, 3, seed=1)
    error = np.array([fd.norm(a - b, norm) for a, b in zip(u, v, strict=True)])
    scale = np.array([fd.norm(b, norm) for b in v])
    expected = {
        AbsoluteError: error,
        SquaredError: error**2,
        RelativeError: error / scale,
        SquaredRelativeError: (error / scale) ** 2,
    }
    for kind, values in expected.items():
        loss = kind(V, norm)
        np.testing.assert_allclose(loss.per_sample(x, y).numpy(), values, rtol=1e-12)
        assert loss(x, y).item() == pytest.approx(values.mean(), rel=1e-12)


@pytest.mark.parametrize(("cell", "name", "norms"), SPACES)
def test_only_fitting_norms_are_offered(cell, name, norms):
    V = make_space(cell, name)
    assert fitting_norms(V) == tuple(norms.split())
    for norm in {"L2", "H1", "Hdiv", "Hcurl"} - set(norms.split()):
        with pytest.raises(ValueError, match=f"{norm}.*what fits is|What fits is") as refusal:
            gram(V, norm)
        assert all(repr(fitting) in str(refusal.value) for fitting in norms.split())


def test_continuity_is_judged_by_both_directions_of_an_extruded_mesh():
    mesh = fd.ExtrudedMesh(fd.UnitSquareMesh(1, 1, quadrilateral=True), 2)
    assert fitting_norms(fd.FunctionSpace(mesh, "CG", 1)) == ("L2", "H1")
    assert fitting_norms(fd.FunctionSpace(mesh, "CG", 1, vfamily="DG", vdegree=0)) == ("L2",)


def test_l2_on_a_mixed_space_is_the_sum_over_its_components():
    V = make_space("triangle", "mixed")
    (f,), x = random_functions(V, 1, seed=2)
    expected = sum(fd.norm(part) ** 2 for part in f.subfunctions)
    value = SquaredError(V)(x, torch.zeros_like(x)).item()
    assert value == pytest.approx(expected, rel=1e-12)


def test_constants_are_functions_like_others():
    mesh = fd.RectangleMesh(3, 2, 3.0, 2.0)
    V, R = fd.FunctionSpace(mesh, "CG", 1), fd.VectorFunctionSpace(mesh, "R", 0, dim=2)
    for space in (R, V * R):
        (f,), x = random_functions(space, 1, seed=2)
        expected = sum(fd.norm(part) ** 2 for part in f.subfunctions)
        value = SquaredError(space)(x, torch.zeros_like(x)).item()
        assert value == pytest.approx(expected, rel=1e-12)


def test_a_quadrature_space_is_summed_with_its_own_weights():
    mesh = fd.UnitSquareMesh(2, 2)
    V = fd.FunctionSpace(mesh, fd.FiniteElement("Quadrature", "triangle", degree=4))
    x = torch.ones(1, V.dim(), dtype=torch.float64)
    assert SquaredError(V)(x, 0 * x).item() == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("kind", [AbsoluteError, SquaredError, RelativeError, SquaredRelativeError])
def test_gradient_agrees_with_central_differences(square, kind):
    _, x = random_functions(square, 4, seed=3)
    _, y = random_functions(square, 4, seed=4)
    _, d = random_functions(square, 4, seed=5)
    loss, step = kind(square, "H1"), 1e-5
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x, y), x)
    with torch.no_grad():
        difference = (loss(x + step * d, y) - loss(x - step * d, y)) / (2 * step)
    assert (gradient * d).sum().item() == pytest.approx(difference.item(), rel=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [AbsoluteError, SquaredError, RelativeError, SquaredRelativeError])
def test_gradient_is_finite_where_the_error_is_zero(square, kind, dtype):
    _, y = random_functions(square, 2, seed=6)
    y = y.to(dtype)
    x = y.clone()
    x[1] += 1
    x.requires_grad_()
    value = kind(square)(x, y)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(x.grad).all()
    assert (x.grad[0] == 0).all()
    assert x.grad[1].abs().max() > 0


@pytest.mark.parametrize("kind", [AbsoluteError, SquaredError, RelativeError, SquaredRelativeError])
def test_a_prediction_of_nan_is_not_perfect(square, kind):
    _, y = random_functions(square, 2, seed=6)
    x = y.clone()
    x[1, 3] = torch.nan
    errors = kind(square).per_sample(x, y)
    assert errors[0] == 0 and errors[1].isnan()
    assert kind(square)(x, y).isnan()


def test_single_precision_agrees_with_double_and_leaves_it_exact(square):
    _, x = random_functions(square, 5, seed=7)
    _, y = random_functions(square, 5, seed=8)
    loss = RelativeError(square, "H1")
    double = loss(x, y)
    single = loss.to(torch.float32)(x.float(), y.float())
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(double.item(), rel=1e-5)
    assert torch.equal(loss(x, y), double)


def test_reductions(square):
    _, x = random_functions(square, 3, seed=9)
    _, y = random_functions(square, 3, seed=10)
    each = RelativeError(square, reduction="none")(x, y)
    assert each.shape == (3,)
    assert torch.equal(RelativeError(square, reduction="sum")(x, y), each.sum())
    assert torch.equal(RelativeError(square)(x, y), each.mean())


def test_a_floor_replaces_small_norms_alone(square):
    x = torch.ones(3, square.dim(), dtype=torch.float64)
    y = torch.stack([0 * x[0], 1e-6 * x[0], 2 * x[0]])
    # Constants on the unit square: the L2 norm of c is |c|.
    values = RelativeError(square, floor=1e-2).per_sample(x, y)
    np.testing.assert_allclose(values.numpy(), [100.0, (1 - 1e-6) * 100.0, 0.5], rtol=1e-12)


def test_a_loss_is_geometry_and_not_a_weight(square):
    loss = RelativeError(square, "H1")
    assert not loss.state_dict()
    assert not list(loss.parameters())
    assert "H1" in repr(loss)
    assert "CG 2" in repr(loss)


def test_the_loss_can_be_differentiated_twice(square):
    _, x = random_functions(square, 2, seed=11)
    _, y = random_functions(square, 2, seed=12)
    loss = SquaredError(square)
    _, product = torch.autograd.functional.hvp(lambda v: loss(v, y), x, x)
    # A quadratic form q(v - y) averaged over two samples: its Hessian times x is G x.
    torch.testing.assert_close(product, gram(square).batch(x), rtol=1e-12, atol=1e-14)


def wrong_calls(V):
    x = torch.zeros(4, V.dim(), dtype=torch.float64)
    loss = RelativeError(V)
    dual = V.dual()
    return {
        "norm": (lambda: RelativeError(V, "H2"), ValueError, r"Unknown norm 'H2'.*'Hcurl'"),
        "smooth": (lambda: RelativeError(V, "Hdiv"), ValueError, "'Hdiv' does not fit.*'H1'"),
        "space": (lambda: RelativeError(3), TypeError, "function space, got int"),
        "dual": (lambda: SquaredError(dual), TypeError, "primal space, got the dual.*V.dual()"),
        "reduction": (lambda: RelativeError(V, reduction="max"), ValueError, "'max'.*'mean'"),
        "floor": (lambda: RelativeError(V, floor=0.0), ValueError, "must be positive, got 0.0"),
        "batch": (lambda: loss(x, x[:2]), ValueError, r"\(4, 49\).*\(2, 49\).*\(batch, 49\)"),
        "vector": (lambda: loss(x[0], x[0]), ValueError, r"shape \(49,\).*\(batch, 49\)"),
        "dofs": (lambda: loss(x[:, :9], x[:, :9]), ValueError, "9 coeff.*CG 2.*has 49"),
        "dtype": (lambda: loss(x.float(), x), TypeError, "float32 and the target torch.float64"),
        "integer": (lambda: loss(x.long(), x.long()), TypeError, "both must be float32 or"),
        "zero": (lambda: loss(x, x), ValueError, "target 0 of a batch of 4 is zero.*floor="),
    }


WRONG = ("norm", "smooth", "space", "dual", "reduction", "floor")
WRONG += ("batch", "vector", "dofs", "dtype", "integer", "zero")


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_say_what_is_wrong(square, name):
    call, kind, message = wrong_calls(square)[name]
    with pytest.raises(kind, match=message):
        call()
