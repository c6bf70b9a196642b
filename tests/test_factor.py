"""Factorisations of batches of sparse matrices, against dense solves and explicit forms."""

import firedrake as fd
import numpy as np
import pytest
import scipy.sparse as sp
import torch

import spon
from spon.fem import SingularMatrixError, factor, iterative_factor
from spon.fem.factor import SparseLU
from spon.fem.geometry import build_geometry
from spon.processors import GeometryRequest


def stiffness(mesh, count, symmetric=True, shift=1.0, seed=0):
    """Matrices of one pattern with random coefficients, on the free dofs of one side."""
    space, cells = fd.FunctionSpace(mesh, "CG", 1), fd.FunctionSpace(mesh, "DG", 0)
    u, v = fd.TrialFunction(space), fd.TestFunction(space)
    random, rows = np.random.default_rng(seed), []
    a = fd.Function(cells)
    wind = fd.as_vector([3.0, -2.0, 1.0][: mesh.geometric_dimension])
    form = (fd.inner(a * fd.grad(u), fd.grad(v)) + fd.Constant(shift) * u * v) * fd.dx
    if not symmetric:
        form += fd.dot(wind, fd.grad(u)) * v * fd.dx
    for _ in range(count):
        a.dat.data[:] = np.exp(random.standard_normal(cells.dim()))
        rows.append(fd.assemble(form).M.handle.getValuesCSR())
    pointers, columns, _ = rows[0]
    free = np.setdiff1d(np.arange(space.dim()), fd.DirichletBC(space, 0, 1).nodes)
    values = torch.from_numpy(np.stack([row[2] for row in rows]))
    return SparseLU(pointers, columns, free), values


def expected(lu, values, b):
    """Dense solves on the free dofs."""
    x = np.zeros_like(b.numpy())
    for i, row in enumerate(values.numpy()):
        dense = sp.csr_matrix((row, lu.columns, lu.pointers)).toarray()[np.ix_(lu.free, lu.free)]
        x[i, lu.free] = np.linalg.solve(dense, b.numpy()[i, lu.free])
    return torch.from_numpy(x)


def loads(lu, count):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, lu.size, generator=generator, dtype=torch.float64)


MESHES = {
    "one unknown": lambda: fd.IntervalMesh(1, 1.0),
    "interval": lambda: fd.IntervalMesh(9, 1.0),
    "triangles": lambda: fd.UnitSquareMesh(9, 7),
    "tetrahedra": lambda: fd.UnitCubeMesh(4, 4, 3),
}


@pytest.mark.parametrize("mesh", list(MESHES))
@pytest.mark.parametrize("count", [1, 4, 5, 8, 11])
@pytest.mark.parametrize("symmetric", [True, False])
def test_solves_with_a_batch_are_those_of_dense_matrices(mesh, count, symmetric):
    lu, values = stiffness(MESHES[mesh](), count, symmetric)
    factors, b = lu.factor_each(values), loads(lu, count)
    held = {part._symmetric for part in factors.lanes}
    assert held == {symmetric or lu.unknowns == 1}
    for transposed in (False, True):
        matrices = values if not transposed else transpose(lu, values)
        found = factors.solve(b, transposed)
        torch.testing.assert_close(found, expected(lu, matrices, b), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(lu.solve_each(values, b), factors.solve(b), rtol=0, atol=0)


def transpose(lu, values):
    """Entries of the transposes; the pattern is symmetric."""
    rows = [sp.csr_matrix((row, lu.columns, lu.pointers)).T.tocsr().data for row in values.numpy()]
    return torch.from_numpy(np.stack(rows))


@pytest.mark.parametrize("waste", [-1.0, 1.0, 1.1, 4.0])
def test_rows_eliminated_together_change_nothing(waste, monkeypatch):
    # -1 takes each row that has columns by itself, 4 four rows whatever they have in common.
    monkeypatch.setattr(factor, "_WASTE", waste)
    lu, values = stiffness(fd.UnitCubeMesh(5, 4, 4), 3)
    sizes = np.diff(lu.blocks[0])
    assert sizes.sum() == lu.unknowns and set(sizes) <= {1, 2, 4}
    assert waste != -1.0 or (sizes[np.diff(lu.blocks[1]) > 0] == 1).all()
    assert waste != 4.0 or (sizes[:-2] == 4).all()
    b = loads(lu, 3)
    torch.testing.assert_close(
        lu.factor_each(values).solve(b), expected(lu, values, b), rtol=1e-11, atol=1e-12
    )


def test_symmetric_matrices_need_half_the_memory():
    lu, values = stiffness(fd.UnitSquareMesh(9, 7), 8)
    factors = lu.factor_each(values)
    assert sum(len(x) for x in factors.lanes[0].entries) == 8 * ((lu.fill + lu.unknowns) // 2)


def test_indefinite_symmetric_matrices_are_solved():
    lu, values = stiffness(fd.UnitSquareMesh(9, 7), 5, shift=-40.0)
    b = loads(lu, 5)
    torch.testing.assert_close(
        lu.factor_each(values).solve(b), expected(lu, values, b), rtol=1e-9, atol=1e-10
    )


def test_singular_matrices_of_a_batch_are_named_whatever_the_portion():
    lu, values = stiffness(fd.UnitSquareMesh(4, 4), 11)
    values[[2, 9]] = 0.0
    with pytest.raises(SingularMatrixError) as error:
        lu.solve_each(values, loads(lu, 11))
    assert error.value.samples in ([2], [9])
    with pytest.raises(SingularMatrixError) as error:
        lu.factor_each(values)
    assert error.value.samples == [2, 9]


@pytest.fixture
def iterations(monkeypatch):
    """Take iterations for every definite matrix."""
    monkeypatch.setattr(factor, "_ITERATE_FROM", -1.0)


@pytest.mark.parametrize("mesh", list(MESHES))
def test_iterations_solve_to_round_off(mesh, iterations):
    lu, values = stiffness(MESHES[mesh](), 3)
    factors, b = lu.factor_each(values, definite=True), loads(lu, 3)
    assert not factors.lanes
    torch.testing.assert_close(factors.solve(b), expected(lu, values, b), rtol=1e-10, atol=1e-11)
    again = lu.factor_each(values, definite=True).solve(b)
    assert torch.equal(again, factors.solve(b))


def test_many_unknowns_in_three_dimensions_are_iterated(monkeypatch):
    lu, values = stiffness(fd.UnitCubeMesh(24, 24, 24), 1)
    factors, b = lu.factor_each(values, definite=True), loads(lu, 1)
    assert not factors.lanes
    found = factors.solve(b)
    monkeypatch.setattr(factor, "_ITERATE_FROM", np.inf)
    direct = lu.factor_each(values, definite=True)
    assert direct.lanes
    torch.testing.assert_close(found, direct.solve(b), rtol=1e-9, atol=1e-10)


def test_where_iterations_stop_short_mumps_takes_over(iterations, monkeypatch):
    monkeypatch.setattr(iterative_factor, "_MAX_ITERATIONS", 1)
    lu, values = stiffness(fd.UnitSquareMesh(9, 7), 3)
    factors, b = lu.factor_each(values, definite=True), loads(lu, 3)
    torch.testing.assert_close(factors.solve(b), expected(lu, values, b), rtol=1e-11, atol=1e-12)


def test_iterations_refuse_a_singular_matrix(iterations):
    mesh = fd.UnitSquareMesh(6, 6)
    lu, values = stiffness(mesh, 2, shift=0.0)
    whole = SparseLU(lu.pointers, lu.columns)  # no condition: constants are in the kernel
    with pytest.raises(SingularMatrixError):
        whole.factor_each(values, definite=True).solve(loads(whole, 2))


def test_gradients_of_iterations(iterations):
    space = fd.FunctionSpace(fd.UnitCubeMesh(2, 2, 2), "CG", 1)
    bcs = [fd.DirichletBC(space, 0.0, 1)]
    points = build_geometry(GeometryRequest(elliptic=True), [], space, bcs).points
    generator = torch.Generator().manual_seed(0)
    coefficients = torch.rand(7, len(points), 2, generator=generator, dtype=torch.float64)
    coefficients[[0, 3, 5]] += 3.0
    load = torch.randn(space.dim(), 2, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        points.solve, (coefficients.requires_grad_(), load.requires_grad_()), atol=1e-7
    )


def test_a_network_in_three_dimensions_learns_alike(iterations, monkeypatch):
    # The same network with factorisations and with iterations: outputs and gradients agree.
    space = fd.FunctionSpace(fd.UnitCubeMesh(3, 3, 3), "CG", 1)
    torch.manual_seed(0)
    net = spon.OperatorNetwork(
        spon.Encoder(space),
        spon.processors.Elliptic(channels=4),
        spon.Decoder(space, bcs=fd.DirichletBC(space, 0, 1)),
    ).double()
    x = torch.randn(3, space.dim(), dtype=torch.float64)
    found = []
    for start in (-1.0, np.inf):
        monkeypatch.setattr(factor, "_ITERATE_FROM", start)
        net.zero_grad()
        y = net(x)
        y.square().sum().backward()
        found.append(
            [y.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]
        )
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10 * float(other.abs().max()))
