"""Functions that a group of maps of the mesh leaves as they are."""

import copy

import numpy as np
import pytest
import torch
from firedrake import (
    COMM_WORLD,
    BoxMesh,
    Constant,
    DirichletBC,
    Function,
    FunctionSpace,
    Mesh,
    SpatialCoordinate,
    UnitSquareMesh,
    VectorFunctionSpace,
    assemble,
    dx,
)
from firedrake.mesh import plex_from_cell_list
from promises import large

from spon import Decoder, fem

TURN = np.array([[0.0, -1.0], [1.0, 0.0]])


def rotations():
    """By quarter turns about the centre of the unit square."""
    centre = np.array([0.5, 0.5])
    powers = [np.linalg.matrix_power(TURN, k) for k in range(4)]
    return [(A, centre - A @ centre) for A in powers]


def reflections(gdim=2):
    A = np.eye(gdim)
    A[0, 0] = -1
    return [(A, np.array([1.0] + [0.0] * (gdim - 1)))]


def mesh_and_group(name):
    if name == "rotations":
        return UnitSquareMesh(4, 4, diagonal="crossed"), rotations()
    if name == "reflections":
        return UnitSquareMesh(4, 3, diagonal="crossed"), reflections()
    box = BoxMesh(2, 2, 2, 1, 1, 1)
    # Through the centre, Kuhn's tetrahedra go over into each other.
    return box, [(-np.eye(3), np.ones(3))]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("name", ["rotations", "reflections", "inversion in a box"])
@pytest.mark.parametrize(("family", "degree"), [("CG", 1), ("CG", 3), ("DG", 0), ("DG", 2)])
@pytest.mark.parametrize("make", [FunctionSpace, VectorFunctionSpace])
def test_functions_are_invariant_at_random_points(make, family, degree, name, dtype, tolerance):
    mesh, group = mesh_and_group(name)
    U = make(mesh, family, degree)
    decoder = Decoder(U, symmetry=group).to(dtype)
    fs = fem.to_function(decoder(large(decoder, dtype)).double(), U)
    points = np.random.default_rng(0).uniform(0.02, 0.98, (60, mesh.geometric_dimension))
    for A, b in group:
        for f in fs:
            here = fem.evaluation_map(U, points)(fem.to_tensor(f)).numpy()
            there = fem.evaluation_map(U, points @ A.T + b)(fem.to_tensor(f)).numpy()
            here, there = (v.reshape(len(points), -1) for v in (here, there))
            wanted = here @ A.T if U.value_shape else here
            np.testing.assert_allclose(there, wanted, rtol=0, atol=10 * tolerance * abs(here).max())
            assert abs(here).max() > 1


def test_symmetry_goes_together_with_traces_means_and_bounds():
    mesh, group = mesh_and_group("rotations")
    V = FunctionSpace(mesh, "CG", 2)
    average = Decoder(V, symmetry=group)
    bc = DirichletBC(V, 0.5, "on_boundary")
    x = SpatialCoordinate(mesh)
    for more in (
        {"mean": 0.4, "bounds": (0, 1)},
        {"mean": 0.4, "integrals": [(lambda v: v * x[0] ** 2 * dx, 0.2)]},
    ):
        decoder = Decoder(V, bc, symmetry=group, **more)
        z = large(decoder, torch.float64)
        u = decoder(z)
        torch.testing.assert_close(average(u), u, rtol=0, atol=1e-12 * float(u.abs().max()))
        for f in fem.to_function(u, V):
            assert abs(assemble(f * dx) - 0.4) < 1e-12 * float(u.abs().max())
            assert fem.boundary_violation(f, [bc]) == 0
            if "integrals" in more:
                assert abs(assemble(f * x[0] ** 2 * dx) - 0.2) < 1e-12 * float(u.abs().max())
        again = copy.deepcopy(decoder)
        assert torch.equal(again(z), u)
        assert torch.autograd.gradcheck(decoder, torch.randn(1, V.dim()).double().requires_grad_())


@pytest.mark.parametrize("name", ["rotations", "reflections"])
def test_vectors_in_an_invariant_box_are_symmetric(name):
    mesh, group = mesh_and_group(name)
    U = VectorFunctionSpace(mesh, "CG", 2)
    average = Decoder(U, symmetry=group)
    decoder = Decoder(U, symmetry=group, bounds=(-2, 2), mean=(0, 0))
    u = decoder(large(decoder, torch.float64))
    assert 1 < float(u.abs().max()) < 2 + 1e-12
    torch.testing.assert_close(average(u), u, rtol=0, atol=1e-12)


def hexagon_and_group():
    """Six triangles around a point, and the rotations by sixty degrees."""
    angles = np.pi / 3 * np.arange(6)
    corners = np.column_stack([np.cos(angles), np.sin(angles)])
    cells = [[0, 1 + i, 1 + (i + 1) % 6] for i in range(6)]
    plex = plex_from_cell_list(2, cells, np.vstack([[0, 0], corners]), COMM_WORLD)
    turns = [np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in angles]
    return Mesh(plex, reorder=False), [(A, np.zeros(2)) for A in turns]


def refusals():
    mesh, group = mesh_and_group("rotations")
    V = FunctionSpace(mesh, "CG", 1)
    yield lambda: Decoder(V, symmetry=group[:2]), "are no group"
    yield lambda: Decoder(V, symmetry=[(2 * np.eye(2), np.zeros(2))]), "no rotation or reflection"
    yield lambda: Decoder(V, symmetry=[(np.eye(3), np.zeros(3))]), r"shapes \(2, 2\)"
    skewed = FunctionSpace(UnitSquareMesh(4, 4), "CG", 1)
    yield lambda: Decoder(skewed, symmetry=group), "mesh is not invariant"
    long = FunctionSpace(UnitSquareMesh(4, 3), "CG", 1)
    yield lambda: Decoder(long, symmetry=group), "mesh is not invariant"
    yield lambda: Decoder(V, DirichletBC(V, 1.0, 1), symmetry=group), "conditions are not invariant"
    U = VectorFunctionSpace(mesh, "CG", 1)
    yield lambda: Decoder(U, symmetry=group, mean=(1, 0)), "cannot be attained"
    far = {"symmetry": group, "bounds": (-1, 1)}
    yield lambda: Decoder(U, **far, mean=(0.3, 0)), r"mean \[0.3, 0.0\] is not symmetric"
    free = Decoder(U, **far, mean=(0, 0))
    z = torch.zeros(1, U.dim()).double()
    yield lambda: free(z, mean=torch.tensor([[0.3, 0.0]])), "mean .* is not symmetric"
    yield lambda: Decoder(U, symmetry=group, bounds=(0, 1)), r"needs bounds \(-c, c\)"
    yield lambda: Decoder(U, symmetry=group, bounds=(0, None)), r"needs bounds \(-c, c\)"
    hexagon, sixth = hexagon_and_group()
    H = VectorFunctionSpace(hexagon, "CG", 1)
    yield lambda: Decoder(H, symmetry=sixth, bounds=(-1, 1)), "only permutations"
    R = FunctionSpace(mesh, "RT", 1)
    yield lambda: Decoder(R, symmetry=group, divergence_free=True), "not together with a known"
    yield lambda: Decoder(R, symmetry=group), "symmetry is a promise for CG and DG.*got RT 1"
    d = Decoder(V, DirichletBC(V, 1.0, "on_boundary"), symmetry=group)
    x = SpatialCoordinate(mesh)
    g = fem.to_tensor([Function(V).interpolate(x[0])])
    yield lambda: d(torch.zeros(1, V.dim()).double(), g), "boundary data are not symmetric"


@pytest.mark.parametrize(("call", "message"), list(refusals()))
def test_what_cannot_hold_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_zero_mean_that_the_group_forces_may_be_promised():
    mesh, group = mesh_and_group("rotations")
    U = VectorFunctionSpace(mesh, "CG", 1)
    bc = DirichletBC(U, Constant((0.0, 0.0)), "on_boundary")
    decoder = Decoder(U, bc, symmetry=group, mean=(0, 0))
    (f, _) = decoder.function(large(decoder, torch.float64, 1.0))
    assert abs(assemble(f[0] * dx)) < 1e-14
