"""Factorisations of batches of sparse matrices, against dense solves and explicit forms."""

import firedrake as fd
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from firedrake.petsc import PETSc

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


def test_a_load_that_is_not_finite_leaves_the_others_alone(iterations):
    lu, values = stiffness(fd.UnitSquareMesh(9, 7), 3)
    b = loads(lu, 3)
    right = expected(lu, values, b)
    b[1, lu.free[3]] = np.nan
    found = lu.factor_each(values, definite=True).solve(b)
    assert found[1].isnan().all()
    torch.testing.assert_close(found[[0, 2]], right[[0, 2]], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("size", [0.0, 1e-250, 1e250])
def test_iterations_do_not_see_the_size_of_a_load(size, iterations):
    lu, values = stiffness(fd.UnitSquareMesh(9, 7), 1)
    b = loads(lu, 1)
    found = lu.factor_each(values, definite=True).solve(size * b)
    right = size * expected(lu, values, b)
    torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-11 * size)


def test_iterations_name_the_matrices_that_they_refuse(iterations):
    lu, values = stiffness(fd.UnitSquareMesh(6, 6), 11, shift=0.0)
    whole = SparseLU(lu.pointers, lu.columns)
    diagonal = torch.from_numpy(lu.columns == np.repeat(range(lu.size), np.diff(lu.pointers)))
    regular = values + 0.1 * diagonal
    for i in (2, 9):
        regular[i] = values[i]  # constants are in the kernel
    for b in (loads(whole, 11), loads(whole, 11) - loads(whole, 11).mean(1, keepdim=True)):
        with pytest.raises(SingularMatrixError) as error:
            whole.factor_each(regular, definite=True).solve(b)
        assert error.value.samples == [2, 9]
        with pytest.raises(SingularMatrixError) as error:
            whole.solve_each(regular, b, definite=True)
        assert error.value.samples == [2]


def test_iterations_refuse_what_is_singular_to_working_precision(iterations):
    lu, values = stiffness(fd.UnitSquareMesh(6, 6), 1, shift=1e-14)
    whole = SparseLU(lu.pointers, lu.columns)
    for seed in range(6):
        b = torch.from_numpy(np.random.default_rng(seed).standard_normal((1, whole.size)))
        with pytest.raises(SingularMatrixError):
            whole.factor_each(values, definite=True).solve(b)


def test_extreme_tensors_are_iterated(caplog):
    # Contrasts of ten million from block to block and stretched by twenty: the bounds of Elliptic.
    space = fd.FunctionSpace(fd.UnitCubeMesh(21, 21, 21), "CG", 1)
    x = fd.SpatialCoordinate(space.mesh())
    waves = fd.sin(4 * fd.pi * x[0] + 0.1) * fd.sin(4 * fd.pi * x[1] + 0.1)
    block = fd.conditional(fd.lt(waves * fd.sin(4 * fd.pi * x[2] + 0.1), 0), -8.0, 8.0)
    low = fd.as_matrix([[4.5, 0, 0], [6.7, 0.22, 0], [0.33, -0.33, 0.22]])
    u, v = fd.TrialFunction(space), fd.TestFunction(space)
    form = fd.exp(block) * fd.dot(low.T * fd.grad(u), low.T * fd.grad(v)) * fd.dx(degree=0)
    pointers, columns, values = fd.assemble(form).M.handle.getValuesCSR()
    free = np.setdiff1d(np.arange(space.dim()), fd.DirichletBC(space, 0, 1).nodes)
    lu, values = SparseLU(pointers, columns, free), torch.from_numpy(values)[None]
    b = torch.from_numpy(fd.assemble(v * fd.dx).dat.data_ro.copy())[None]
    with caplog.at_level("INFO", "spon"):
        found = lu.factor_each(values, definite=True).solve(b)
    assert not caplog.records
    exact = lu.factor_each(values).solve(b)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-8 * float(exact.abs().max()))


def test_what_takes_over_is_logged(iterations, monkeypatch, caplog):
    monkeypatch.setattr(iterative_factor, "_MAX_ITERATIONS", 1)
    lu, values = stiffness(fd.UnitSquareMesh(9, 7), 1)
    with caplog.at_level("INFO", "spon"):
        lu.factor_each(values, definite=True).solve(loads(lu, 1))
    assert "MUMPS" in caplog.text and f"{lu.unknowns} unknowns" in caplog.text


def test_options_for_other_solvers_are_not_meant_for_the_iterations(iterations, monkeypatch):
    lu, values = stiffness(fd.UnitCubeMesh(8, 8, 8), 1)
    b, options = loads(lu, 1), PETSc.Options()
    before = lu.factor_each(values, definite=True).solve(b)
    given = {"mg_levels_ksp_type": "richardson", "mg_coarse_ksp_type": "gmres", "ksp_max_it": 1}
    for key, value in given.items():
        options[key] = value
    try:
        assert torch.equal(lu.factor_each(values, definite=True).solve(b), before)
    finally:
        for key in given:
            options.delValue(key)
    assert not PETSc.Options("spon_multigrid_").getAll()


def test_no_matrix_at_all():
    lu, values = stiffness(fd.UnitSquareMesh(4, 4), 2)
    for some in (lu.factor_each(values[:0]), lu.factor_each(values[:0], definite=True)):
        assert some.solve(loads(lu, 2)[:0]).shape == (0, lu.size)
    assert lu.solve_each(values[:0], loads(lu, 2)[:0]).shape == (0, lu.size)


def test_memory_of_more_matrices_serves_fewer():
    lu, values = stiffness(fd.UnitSquareMesh(5, 5), 12)
    b = loads(lu, 3)
    found = lu.factor_each(values[:3], reuse=lu.factor_each(values)).solve(b)
    torch.testing.assert_close(found, expected(lu, values[:3], b), rtol=1e-11, atol=1e-12)


def test_a_penalty_hides_no_asymmetry():
    space = fd.FunctionSpace(fd.UnitSquareMesh(8, 8), "CG", 1)
    u, v = fd.TrialFunction(space), fd.TestFunction(space)
    form = (fd.inner(fd.grad(u), fd.grad(v)) + fd.Constant(2e-4) * u.dx(0) * v) * fd.dx
    form += fd.Constant(1e12) * u * v * fd.ds(1)
    pointers, columns, values = fd.assemble(form).M.handle.getValuesCSR()
    lu, values = SparseLU(pointers, columns), torch.from_numpy(values)[None]
    b = loads(lu, 1)
    for transposed in (False, True):
        exact = expected(lu, transpose(lu, values) if transposed else values, b)
        for factors in (lu.factor_each(values), lu.factor(values[0])):
            found = factors.solve(b, transposed)
            torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_forms_that_are_symmetric_are_found_so(degree):
    space = fd.VectorFunctionSpace(fd.UnitSquareMesh(5, 4), "CG", degree)
    u, v = fd.TrialFunction(space), fd.TestFunction(space)
    a = fd.Function(fd.FunctionSpace(space.mesh(), "DG", 0))
    a.dat.data[:] = np.exp(np.random.default_rng(0).standard_normal(len(a.dat.data)))
    form = a * fd.inner(fd.sym(fd.grad(u)), fd.sym(fd.grad(v))) * fd.dx
    form += a * fd.div(u) * fd.div(v) * fd.dx
    free = np.setdiff1d(
        np.arange(space.dim()).reshape(-1, 2), 2 * fd.DirichletBC(space, 0, 1).nodes
    )
    matrix = fd.assemble(form, mat_type="aij").M.handle
    pointers, columns, values = matrix.getValuesCSR()
    lu = SparseLU(pointers, columns, free)
    (part,) = lu.factor_each(torch.from_numpy(values)[None], check=False).lanes
    assert part._symmetric


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
