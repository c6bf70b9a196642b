"""Factorisations of constant matrices: against dense solves, with and without pivots."""

from concurrent.futures import ThreadPoolExecutor

import firedrake as fd
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from firedrake.petsc import PETSc

from spon.fem import SingularMatrixError
from spon.fem.direct import Direct, definite, saddle
from spon.fem.maps import sparse_map
from spon.fem.one_factor import PivotingFactor
from spon.sparse import InverseMap


def laplacian(n):
    """The seven-point scheme with Dirichlet conditions."""
    line = sp.diags([-1.0, 2.0, -1.0], [-1, 0, 1], shape=(n, n))
    return sp.csr_matrix(sp.kronsum(sp.kronsum(line, line), line))


def matrices():
    mesh = fd.UnitCubeMesh(2, 3, 2)
    V, W = fd.FunctionSpace(mesh, "RT", 1), fd.FunctionSpace(mesh, "DG", 0)
    u, v, w = fd.TrialFunction(V), fd.TestFunction(V), fd.TestFunction(W)
    mass = sparse_map(fd.inner(u, v) * fd.dx).to_scipy()
    down = sparse_map(fd.div(u) * w * fd.dx).to_scipy()
    turned = mass + 0.1 * sp.triu(mass, 1)
    yield "definite", mass, Direct
    yield "unsymmetric", turned, Direct
    yield "unsymmetric, pivots", turned, saddle
    yield "saddle point", sp.bmat([[mass, down.T], [down, None]]), saddle
    yield "saddle point, pivots found to be needed", sp.bmat([[mass, down.T], [down, None]]), Direct
    # Of the divergence alone: all but singular, and what it is wanted for.
    yield "all but singular", down.T @ down + 1e-9 * mass, definite


CASES = {name: (matrix, kind) for name, matrix, kind in matrices()}


@pytest.mark.parametrize("name", CASES)
def test_solves_are_those_of_dense_matrices(name):
    matrix, kind = CASES[name]
    dense, rng = matrix.toarray(), np.random.default_rng(0)
    factor = kind(matrix)
    for shape in ((len(dense),), (len(dense), 1), (len(dense), 20)):
        b = rng.standard_normal(shape)
        for side, A in (("N", dense), ("T", dense.T)):
            x = factor.solve(b, side)
            assert x.shape == shape and np.isfinite(x).all()
            # Backward stable, whatever the condition.
            assert np.abs(A @ x - b).max() < 1e-12 * (np.abs(A) @ np.abs(x) + np.abs(b)).max()
            if name != "all but singular":
                np.testing.assert_allclose(x, np.linalg.solve(A, b), rtol=1e-9, atol=1e-10)


def test_memory_that_pivots_need_is_found(monkeypatch):
    """MUMPS goes beyond its estimate where many pivots are put off, and PETSc says nothing."""
    mesh = fd.UnitCubeMesh(2, 2, 2)
    V, W = fd.FunctionSpace(mesh, "BDM", 2), fd.FunctionSpace(mesh, "DG", 1)
    u, v, w = fd.TrialFunction(V), fd.TestFunction(V), fd.TestFunction(W)
    mass = sparse_map(fd.inner(u, v) * fd.dx).to_scipy()
    down = sparse_map(fd.div(u) * w * fd.dx).to_scipy()
    matrix = down.T @ down + 1e-9 * mass
    b = np.random.default_rng(0).standard_normal(matrix.shape[0])
    asked, set_up = [], PivotingFactor._set_up
    monkeypatch.setattr(
        PivotingFactor, "_set_up", lambda self, more: asked.append(more) or set_up(self, more)
    )
    x = saddle(matrix).solve(b)
    assert np.isfinite(x).all() and len(asked) == 2
    assert np.abs(matrix @ x - b).max() < 1e-12 * (abs(matrix) @ np.abs(x)).max()


def test_entries_given_twice_are_added():
    twice = sp.coo_matrix(([1.0, 2.0, 4.0], ([0, 0, 1], [0, 0, 1])), shape=(2, 2))
    np.testing.assert_allclose(Direct(twice).solve(np.array([3.0, 4.0])), [1.0, 1.0])


def test_singular_saddle_points_are_refused():
    ones = np.ones((3, 2))
    matrix = sp.bmat([[sp.eye(3), ones], [ones.T, None]])
    with pytest.raises(ValueError, match="is singular and cannot be inverted"):
        InverseMap(matrix, factorise=saddle)


@pytest.mark.parametrize("kind", [saddle, definite])
def test_options_for_others_do_not_matter(kind):
    """A user who compresses MUMPS' factors means other solves."""
    matrix, options = laplacian(20), PETSc.Options()
    given = {"mat_mumps_icntl_35": 2, "mat_mumps_cntl_7": 0.1, "mat_mumps_icntl_31": 1}
    for key, value in given.items():
        options[key] = value
    try:
        b = np.random.default_rng(0).standard_normal((matrix.shape[0], 2))
        x = kind(matrix).solve(b)
        assert all(options.hasName(key) for key in given)
    finally:
        for key in given:
            options.delValue(key)
    assert np.abs(matrix @ x - b).max() < 1e-13 * (abs(matrix) @ np.abs(x)).max()


@pytest.mark.parametrize("columns", [1, 3])
def test_threads_share_a_factorisation(columns):
    matrix = laplacian(12)
    factor = saddle(matrix)

    def work(seed):
        rng, worst = np.random.default_rng(seed), 0.0
        for _ in range(40):
            b = rng.standard_normal((matrix.shape[0], columns))
            worst = max(worst, np.abs(matrix @ factor.solve(b) - b).max())
        return worst

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(work, range(4))) < 1e-10


def test_right_hand_sides_of_any_layout():
    matrix, rng = CASES["definite"][0], np.random.default_rng(0)
    n = matrix.shape[0]
    b = rng.standard_normal((n, 4))
    given = [b[::-1], b[:, ::-1], np.asfortranarray(b), b[:, :0], b.astype(np.float32), b[:, None]]
    for kind in (Direct, saddle):
        factor = kind(matrix)
        for right in given:
            x = factor.solve(right)
            assert x.shape == right.shape
            flat = right.reshape(n, -1) if right.size else right
            np.testing.assert_allclose(matrix @ x.reshape(flat.shape), flat, atol=1e-10)


def test_singular_matrices_are_refused():
    for matrix in (sp.csr_matrix((3, 3)), sp.csr_matrix(np.ones((3, 3)))):
        with pytest.raises(SingularMatrixError):
            Direct(matrix)
        with pytest.raises(ValueError, match="is singular and cannot be inverted"):
            InverseMap(matrix, factorise=Direct)


@pytest.mark.parametrize("name", ["definite", "unsymmetric", "saddle point"])
def test_an_inverse_is_differentiable(name):
    matrix, kind = CASES[name]
    inverse = InverseMap(matrix, factorise=kind)
    generator = torch.Generator().manual_seed(0)
    b, c = torch.randn(2, len(matrix.toarray()), 3, generator=generator, dtype=torch.float64)
    b.requires_grad_()
    (gradient,) = torch.autograd.grad((inverse(b) * c).sum(), b)
    dense = torch.from_numpy(matrix.toarray())
    torch.testing.assert_close(gradient, torch.linalg.solve(dense.T, c), rtol=1e-9, atol=1e-9)
