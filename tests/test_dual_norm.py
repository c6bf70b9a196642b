"""The dual norm against dense algebra, its definition as a supremum, and differences."""

from __future__ import annotations

import copy

import firedrake as fd
import numpy as np
import pytest
import torch
from firedrake import dx, grad, inner
from taylor import rates

from spon.fem.norms import gram
from spon.fem.solvers import LinearSolver
from spon.residual_losses import DualNorm, SquaredDualNorm

BATCH = 4
SPACES = {
    "CG 2": lambda mesh: fd.FunctionSpace(mesh, "CG", 2),
    "vector CG 1": lambda mesh: fd.VectorFunctionSpace(mesh, "CG", 1),
    "RT 1": lambda mesh: fd.FunctionSpace(mesh, "RT", 1),
    "N1curl 2": lambda mesh: fd.FunctionSpace(mesh, "N1curl", 2),
    "DG 1": lambda mesh: fd.FunctionSpace(mesh, "DG", 1),
    "mixed": lambda mesh: fd.FunctionSpace(mesh, "RT", 1) * fd.FunctionSpace(mesh, "DG", 0),
}
FITTING = [
    ("CG 2", "H1"),
    ("CG 2", "L2"),
    ("vector CG 1", "H1"),
    ("RT 1", "Hdiv"),
    ("N1curl 2", "Hcurl"),
    ("DG 1", "L2"),
    ("mixed", "L2"),
]


@pytest.fixture(scope="module")
def mesh():
    return fd.UnitSquareMesh(5, 4)


@pytest.fixture(scope="module")
def V(mesh):
    return fd.FunctionSpace(mesh, "CG", 2)


def residuals(V, seed=0):
    values = np.random.default_rng(seed).standard_normal((BATCH, V.dim()))
    return torch.from_numpy(values)


@pytest.mark.parametrize(("name", "norm"), FITTING)
def test_values_are_those_of_dense_algebra(mesh, name, norm):
    V, r = SPACES[name](mesh), None
    r = residuals(V)
    G = gram(V, norm).to_scipy().toarray()
    expected = np.einsum("bi,ij,bj->b", r, np.linalg.inv(G), r)
    squared = SquaredDualNorm(V, inner=norm, reduction="none")(r)
    np.testing.assert_allclose(squared, expected, rtol=1e-10)
    np.testing.assert_allclose(DualNorm(V, inner=norm, reduction="none")(r) ** 2, expected, 1e-10)


def test_it_is_the_largest_value_at_functions_of_norm_one(V):
    r, loss = residuals(V)[:1], DualNorm(V)
    v = residuals(V, seed=1)
    norms = torch.sqrt((v * gram(V, "H1").batch(v)).sum(1))
    assert ((v @ r[0]).abs() / norms <= loss(r)).all()
    z = loss.riesz(r)
    norm = torch.sqrt((z * gram(V, "H1").batch(z)).sum())
    torch.testing.assert_close((z * r).sum() / norm, loss(r), rtol=1e-12, atol=0)


def test_entries_at_prescribed_dofs_are_ignored(V):
    bcs = [fd.DirichletBC(V, 1.0, 1), fd.DirichletBC(V, 0, 3)]
    nodes = np.unique(np.concatenate([bc.nodes for bc in bcs]))
    free = np.setdiff1d(np.arange(V.dim()), nodes)
    r = residuals(V)
    G = gram(V, "H1").to_scipy().toarray()[np.ix_(free, free)]
    expected = np.einsum("bi,ij,bj->b", r[:, free], np.linalg.inv(G), r[:, free])
    loss = SquaredDualNorm(V, bcs, reduction="none")
    np.testing.assert_allclose(loss(r), expected, rtol=1e-10)
    changed = r.clone()
    changed[:, nodes] = torch.nan
    changed.requires_grad_()
    values = loss(changed)
    np.testing.assert_allclose(values.detach(), expected, rtol=1e-10)
    values.sum().backward()
    assert not changed.grad[:, nodes].any() and changed.grad[:, free].all()
    assert not loss.riesz(r)[:, nodes].any()


def test_in_the_energy_the_residual_is_the_error(V):
    # r = b - A x belongs to the error e = A^-1 b - x, and its dual norm is the energy of e.
    u, v = fd.TrialFunction(V), fd.TestFunction(V)
    x, _ = fd.SpatialCoordinate(V.mesh())
    a = (1 + 9 * x) * inner(grad(u), grad(v)) * dx
    bcs = fd.DirichletBC(V, 0, "on_boundary")
    b, guess = residuals(V), residuals(V, seed=1)
    guess[:, fd.DirichletBC(V, 0, "on_boundary").nodes] = 0
    A = fd.assemble(a, mat_type="aij").petscmat.convert("dense").getDenseArray()
    error = LinearSolver(a, bcs)(b) - guess
    energy = np.sqrt(np.einsum("bi,ij,bj->b", error, A, error))
    r = b - guess @ torch.from_numpy(A)
    found = DualNorm(V, bcs, inner=a, reduction="none")(r)
    np.testing.assert_allclose(found, energy, rtol=1e-10)


def test_its_condition_does_not_depend_on_the_mesh_and_that_of_the_euclidean_norm_does():
    dual, euclidean = [], []
    for n in (4, 8, 16):
        V = fd.FunctionSpace(fd.UnitSquareMesh(n, n), "CG", 1)
        u, v = fd.TrialFunction(V), fd.TestFunction(V)
        x, _ = fd.SpatialCoordinate(V.mesh())
        bcs = fd.DirichletBC(V, 0, "on_boundary")
        laplace = inner(grad(u), grad(v)) * dx
        a = fd.conditional(x < 0.5, 5, 10) * inner(grad(u), grad(v)) * dx
        free = np.setdiff1d(np.arange(V.dim()), bcs.nodes)
        A, K = (
            fd.assemble(form, mat_type="aij").petscmat.convert("dense").getDenseArray()
            for form in (a, laplace)
        )
        A, K = torch.from_numpy(A.copy()), K[np.ix_(free, free)]
        loss = SquaredDualNorm(V, bcs, inner=laplace, reduction="sum")
        hessian = loss.riesz(A) @ A  # of y -> ||A y||^2 / 2
        hessian = hessian.numpy()[np.ix_(free, free)]
        # Seen in the energy, in which a preconditioned optimiser works.
        root = np.linalg.cholesky(K)
        inverse = np.linalg.inv(root)
        dual.append(np.linalg.cond(inverse @ hessian @ inverse.T))
        euclidean.append(np.linalg.cond((A @ A).numpy()[np.ix_(free, free)]))
    # Bounded by the square of the contrast, (10 / 5)^2, on every mesh.
    assert max(dual) <= 4 + 1e-9
    assert euclidean[2] / euclidean[1] > 10


@pytest.mark.parametrize("kind", [DualNorm, SquaredDualNorm])
def test_derivatives(V, kind):
    loss = kind(V, fd.DirichletBC(V, 0, 1))
    first, second = rates(lambda r: torch.sin(loss(r)) + loss(1.1 * r) ** 3, residuals(V))
    assert first >= 1.95 and second >= 2.95


def test_the_gradient_is_twice_the_representative(V):
    loss = SquaredDualNorm(V, reduction="sum")
    r = residuals(V).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(r), r)
    torch.testing.assert_close(gradient, 2 * loss.riesz(r.detach()), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [DualNorm, SquaredDualNorm])
def test_a_zero_residual_has_a_zero_gradient_and_nan_stays(V, kind, dtype):
    loss = kind(V, reduction="none")
    r = residuals(V).to(dtype)
    r[1] = 0
    r.requires_grad_()
    values = loss(r)
    assert values.dtype == dtype and values[1] == 0
    values.sum().backward()
    assert r.grad.isfinite().all() and not r.grad[1].any() and r.grad[0].any()
    bad = r.detach().clone()
    bad[2, 7] = torch.nan
    values = loss(bad)
    assert values[2].isnan() and values[[0, 1, 3]].isfinite().all()
    assert kind(V)(bad).isnan()


def test_single_precision_agrees_with_double(V):
    r, loss = residuals(V), DualNorm(V)
    single = loss.to(torch.float32)(r.float())
    assert single.item() == pytest.approx(loss(r).item(), rel=1e-6)
    assert loss(r).dtype == torch.float64


def test_reductions_and_copies(V):
    r = residuals(V)
    each = DualNorm(V, reduction="none")(r)
    assert each.shape == (BATCH,)
    torch.testing.assert_close(DualNorm(V, reduction="sum")(r), each.sum())
    loss = DualNorm(V)
    torch.testing.assert_close(loss(r), each.mean())
    assert copy.deepcopy(loss)(r) == loss(r)
    assert not loss.state_dict() and not list(loss.parameters())
    assert "'H1'" in repr(loss) and "CG 2" in repr(loss)


def wrong(V):
    u, v = fd.TrialFunction(V), fd.TestFunction(V)
    other = fd.FunctionSpace(V.mesh(), "CG", 1)
    loss = DualNorm(V)
    r = residuals(V)
    mixed = SPACES["mixed"](V.mesh())
    seminorm = inner(grad(u), grad(v)) * dx
    return {
        "space": (lambda: DualNorm(3), TypeError, "FunctionSpace, got int"),
        "dual": (lambda: DualNorm(V.dual()), TypeError, "functions .primal."),
        "norm": (lambda: DualNorm(V, inner="H2"), ValueError, "Unknown norm 'H2'"),
        "smooth": (lambda: DualNorm(mixed), ValueError, "'H1' is not defined on the mixed space"),
        "kind": (lambda: DualNorm(V, inner=3), TypeError, "or a bilinear form for inner, got int"),
        "form": (
            lambda: DualNorm(V, inner=fd.TrialFunction(other) * v * dx),
            ValueError,
            "bilinear form on",
        ),
        "symmetric": (lambda: DualNorm(V, inner=u.dx(0) * v * dx), ValueError, "be symmetric"),
        "seminorm": (
            lambda: DualNorm(V, inner=seminorm),
            ValueError,
            "positive definite on the free dofs of CG 2 with 99 dofs.*lower-order term",
        ),
        "indefinite": (
            lambda: DualNorm(V, inner=seminorm - 100 * u * v * dx),
            ValueError,
            "must be positive definite",
        ),
        "condition": (
            lambda: DualNorm(V, fd.DirichletBC(other, 0, 1)),
            ValueError,
            "belongs to CG 1",
        ),
        "reduction": (lambda: DualNorm(V, reduction="max"), ValueError, "'max'.*'mean'"),
        "tensor": (lambda: loss(r.numpy()), TypeError, "tensor of residuals, got ndarray"),
        "dtype": (lambda: loss(r.long()), TypeError, "must be float32 or float64"),
        "vector": (lambda: loss(r[0]), ValueError, r"shape \(99,\), expected \(batch, 99\)"),
        "dofs": (lambda: loss(r[:, :9]), ValueError, r"\(4, 9\), expected \(batch, 99\).*CG 2"),
    }


NAMES = ["space", "dual", "norm", "smooth", "kind", "form", "symmetric", "seminorm", "indefinite"]
NAMES += ["condition", "reduction", "tensor", "dtype", "vector", "dofs"]


@pytest.mark.parametrize("name", NAMES)
def test_wrong_calls_say_what_is_wrong(V, name):
    call, kind, message = wrong(V)[name]
    with pytest.raises(kind, match=message):
        call()
