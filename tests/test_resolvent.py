"""Resolvents: the boundary value problems they solve, bounds, transfer between meshes."""

import itertools

import firedrake as fd
import layers
import numpy as np
import pytest
import torch
from layers import (
    check_file_and_mesh,
    column,
    graded_changes,
    processed,
    relative,
    rough_sizes,
    smooth,
)

from spon.fem.geometry import build_geometry
from spon.fem.resolvents import FactorMap
from spon.processors import GeometryRequest, Resolvent


def resolvents_of(space, alphas, bcs=()):
    return build_geometry(GeometryRequest(alphas=alphas), [], space, bcs).resolvents


@pytest.mark.parametrize("dimension", [2, 3])
def test_a_resolvent_solves_the_boundary_value_problem(dimension):
    if dimension == 2:
        mesh = fd.RectangleMesh(7, 5, 3.0, 2.0)
    else:
        mesh = fd.BoxMesh(3, 3, 2, 3.0, 2.0, 1.0)
    space = fd.FunctionSpace(mesh, "CG", 2 if dimension == 2 else 1)
    bc = fd.DirichletBC(space, 0.0, (1, 4))
    f = fd.Function(space)
    f.dat.data[:] = np.random.default_rng(0).standard_normal(space.dim())
    alphas = (2.0, 0.03)
    resolvents = resolvents_of(space, alphas, [bc])
    u, v = fd.TrialFunction(space), fd.TestFunction(space)
    for i, alpha in enumerate(alphas):
        square = alpha * 6.0 ** (2 / dimension)  # of the domain's length
        a = (u * v + square * fd.inner(fd.grad(u), fd.grad(v))) * fd.dx
        for family, bcs in ((resolvents.free, []), (resolvents.constrained, [bc])):
            expected = fd.Function(space)
            fd.solve(a == f * v * fd.dx, expected, bcs=bcs)
            found = family[i](resolvents.mass(column(f)))
            assert float((found - column(expected)).abs().max()) < 1e-11
            if bcs:
                assert found[bc.nodes].abs().max() == 0.0


def test_solves_go_through_the_gradient_and_keep_the_dtype():
    space = fd.FunctionSpace(fd.UnitSquareMesh(2, 2), "CG", 1)
    bc = fd.DirichletBC(space, 0.0, 1)
    solve = resolvents_of(space, (0.1,), [bc]).constrained[0]
    assert isinstance(solve, FactorMap)
    b = torch.randn(9, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(solve, b) and torch.autograd.gradgradcheck(solve, b)
    # Columns are independent.
    assert torch.allclose(solve(b)[:, 1, 2], solve(b[:, 1, 2]), atol=1e-14)
    single = solve(b.detach().float())
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), solve(b.detach()), atol=1e-5)
    with pytest.raises(ValueError, match="for a system of 9 nodes"):
        solve(torch.zeros(2, 9))


def test_resolvents_and_their_gradients_are_bounded():
    for n in (8, 32):
        space = fd.FunctionSpace(fd.UnitSquareMesh(n, n), "CG", 1)
        alphas = (1.0, 0.01, 1e-4)
        resolvents = resolvents_of(space, alphas, [fd.DirichletBC(space, 0.0, 1)])
        noise = torch.randn(space.dim(), 20, dtype=torch.float64)

        def norm(x, mass=resolvents.mass):
            return (x * mass(x)).sum(0).sqrt()

        load = resolvents.mass(noise)
        for i, alpha in enumerate(alphas):
            assert (norm(resolvents.constrained[i](load)) <= norm(noise)).all()
            smooth = resolvents.free[i](load)
            assert (norm(smooth) <= norm(noise)).all()
            slopes = alpha**0.5 * resolvents.gradient(smooth)
            for slope in slopes.reshape(2, *smooth.shape):
                # At most one half for the exact gradient; the recovered one is a mean of it.
                assert (norm(slope) <= 0.5 * norm(noise)).all()


def random_network(space, bcs=(), source=None, **options):
    processor = Resolvent(**{"channels": 6, "layers": 2, "alphas": 4, "width": 2, **options})
    return layers.random_network(processor, space, bcs, source)


@pytest.mark.parametrize("degree", [1, 2])
def test_refinement_halves_the_change_of_the_output(degree):
    meshes = [fd.UnitSquareMesh(n, n) for n in (8, 16, 32, 64)]
    spaces = [fd.FunctionSpace(mesh, "CG", degree) for mesh in meshes]
    net = random_network(spaces[0], fd.DirichletBC(spaces[0], 0.0, 1))
    outputs = [processed(net.on(V.mesh()), smooth(V)) for V in spaces]
    changes = [relative(a, b) for a, b in itertools.pairwise(outputs)]
    assert changes[0] > 1e-6
    assert changes[-1] < 0.02
    assert changes[2] < 0.6 * changes[1] and changes[2] < 0.3 * changes[0]


def test_a_locally_refined_mesh_gives_the_same_output():
    changes = graded_changes(random_network)
    assert changes[-1] < 0.05
    assert changes[-1] < 0.4 * changes[0]


def test_rough_inputs_give_bounded_outputs():
    sizes = rough_sizes(random_network)
    # Means of more and more independent values: they do not grow.
    assert max(sizes) < 1.2 * sizes[0]


def test_a_file_and_another_mesh_keep_the_network(tmp_path):
    check_file_and_mesh(random_network, tmp_path / "net.spon")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"largest": 1.0, "smallest": 2.0}, ValueError, "0 < smallest <= largest"),
        ({"smallest": 0.0}, ValueError, "0 < smallest <= largest"),
        ({"largest": "1"}, TypeError, "largest must be a number"),
        ({"alphas": 0}, ValueError, "alphas must be at least 1"),
    ],
)
def test_wrong_options_say_what_was_expected(options, error, message):
    with pytest.raises(error, match=message):
        Resolvent(**options)
