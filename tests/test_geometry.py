"""The geometry a processor sees: compared with Firedrake and with analytic solutions."""

import firedrake as fd
import numpy as np
import pytest
import torch

from spon import Encoder
from spon.fem.geometry import build_geometry
from spon.processors.base import GeometryRequest


def cell_mesh(cell, n=3):
    if cell == "triangle":
        return fd.UnitSquareMesh(n, n)
    if cell == "quadrilateral":
        return fd.UnitSquareMesh(n, n, quadrilateral=True)
    if cell == "tetrahedron":
        return fd.UnitCubeMesh(n - 1, n - 1, n - 1)
    return fd.UnitCubeMesh(n - 1, n - 1, n - 1, hexahedral=True)


def coefficients(function):
    """Dofs as a column, parts of a mixed function one after the other."""
    parts = [part.dat.data_ro.ravel() for part in function.subfunctions]
    return torch.from_numpy(np.concatenate(parts))[:, None]


def nodal_values(mesh, degree, expression, size):
    """Values of an expression at the latent nodes, (nodes, size), by Firedrake."""
    shape = () if size == 1 else (size,)
    element = fd.FunctionSpace(mesh, "CG", degree).ufl_element()
    space = (
        fd.FunctionSpace(mesh, element)
        if not shape
        else fd.VectorFunctionSpace(mesh, element, dim=size)
    )
    return fd.Function(space).interpolate(expression).dat.data_ro.reshape(-1, size)


SCALAR = [("CG", 1), ("CG", 2), ("CG", 4), ("DG", 1), ("DG", 3)]
VECTOR = {
    "triangle": [("RT", 2), ("BDM", 1), ("N1curl", 2)],
    "quadrilateral": [("RTCF", 2), ("RTCE", 2)],
    "tetrahedron": [("RT", 2), ("BDM", 1), ("N1curl", 2)],
    "hexahedron": [],
}


@pytest.mark.filterwarnings("ignore:Discontinuous Lagrange element requested:UserWarning")
@pytest.mark.parametrize("cell", list(VECTOR))
def test_lift_gives_the_values_of_linear_functions(cell):
    mesh = cell_mesh(cell)
    x = fd.SpatialCoordinate(mesh)
    d = mesh.geometric_dimension
    scalar = 1 + 2 * x[0] - 3 * x[1]
    # Rows of a constant matrix times x plus a constant: in every space of the lists.
    vector = fd.as_vector([2 + x[0] - (i + 1) * x[d - 1] for i in range(d)])
    output = fd.FunctionSpace(mesh, "CG", 2)
    cases = [(fd.FunctionSpace(mesh, *e), scalar, 1) for e in SCALAR]
    cases += [(fd.VectorFunctionSpace(mesh, "CG", 2), vector, d)]
    cases += [(fd.FunctionSpace(mesh, *e), vector, d) for e in VECTOR[cell]]
    spaces = [space for space, _, _ in cases]
    geometry = build_geometry(GeometryRequest(), spaces, output)
    for lift, (space, expression, size) in zip(geometry.lifts, cases, strict=True):
        function = fd.Function(space).interpolate(expression)
        values = lift(coefficients(function)).reshape(-1, size).numpy()
        expected = nodal_values(mesh, 2, expression, size)
        assert np.abs(values - expected).max() < 1e-12, space.ufl_element()


def test_lift_of_piecewise_constants_is_the_volume_weighted_mean():
    mesh = fd.UnitIntervalMesh(2)
    mesh.coordinates.dat.data[:] = np.array([0.0, 0.2, 1.0])[
        np.argsort(np.argsort(mesh.coordinates.dat.data_ro))
    ]
    space, output = fd.FunctionSpace(mesh, "DG", 0), fd.FunctionSpace(mesh, "CG", 1)
    x = fd.SpatialCoordinate(mesh)[0]
    step = fd.Function(space).interpolate(fd.conditional(x < 0.2, 10.0, 0.0))
    geometry = build_geometry(GeometryRequest(), [space], output)
    values = geometry.lift([coefficients(step)]).ravel().sort().values
    assert torch.allclose(values, torch.tensor([0.0, 2.0, 10.0], dtype=torch.float64))


def test_mixed_and_tensor_spaces_keep_the_order_of_components():
    mesh = cell_mesh("triangle")
    x, y = fd.SpatialCoordinate(mesh)
    vector = fd.VectorFunctionSpace(mesh, "CG", 1)
    tensor = fd.TensorFunctionSpace(mesh, "CG", 1)
    mixed = fd.FunctionSpace(mesh, "CG", 2) * vector * fd.FunctionSpace(mesh, "Real", 0)
    f = fd.Function(mixed)
    f.subfunctions[0].interpolate(x)
    f.subfunctions[1].interpolate(fd.as_vector([y, x + y]))
    f.subfunctions[2].assign(7.0)
    t = fd.Function(tensor).interpolate(fd.as_matrix([[x, y], [2 * x, 3 * y]]))
    geometry = build_geometry(GeometryRequest(degree=1), [mixed, tensor], mixed)
    values = geometry.lift([coefficients(f), coefficients(t)])[:, 0].numpy()
    expected = [nodal_values(mesh, 1, e, 1) for e in (x, y, x + y, fd.Constant(7.0))]
    expected += [nodal_values(mesh, 1, e, 1) for e in (x, y, 2 * x, 3 * y)]
    assert np.abs(values - np.hstack(expected)).max() < 1e-12
    # Linear functions survive the way into the space, too.
    back = geometry.coefficients(torch.from_numpy(values[:, None, :4].copy()))
    assert torch.allclose(back, coefficients(f), atol=1e-12)


@pytest.mark.parametrize(
    "element", [("CG", 1), ("CG", 2), ("CG", 4), ("DG", 0), ("RT", 1), ("N1curl", 2), ("BDM", 1)]
)
def test_read_is_the_interpolation_into_the_output_space(element):
    mesh = cell_mesh("triangle", 4)
    space = fd.FunctionSpace(mesh, *element)
    geometry = build_geometry(GeometryRequest(), [], space)
    x, y = fd.SpatialCoordinate(mesh)
    degree = 2 if element not in (("CG", 1), ("DG", 0), ("RT", 1), ("BDM", 1)) else 1
    source = fd.FunctionSpace(mesh, "CG", degree)
    if space.value_shape:
        source = fd.VectorFunctionSpace(mesh, "CG", degree)
        f = fd.Function(source).interpolate(fd.as_vector([fd.sin(x + y), x * y]))
    else:
        f = fd.Function(source).interpolate(fd.sin(x + y))
    values = torch.from_numpy(f.dat.data_ro.reshape(-1, 1, space.value_size).copy())
    expected = fd.Function(space).interpolate(f)
    assert torch.allclose(geometry.coefficients(values), coefficients(expected), atol=1e-13)


@pytest.mark.parametrize("cell", list(VECTOR))
@pytest.mark.parametrize("degree", [1, 2])
def test_weights_are_positive_and_integrate_linear_functions(cell, degree):
    mesh = cell_mesh(cell)
    geometry = build_geometry(GeometryRequest(), [], fd.FunctionSpace(mesh, "CG", degree))
    assert (geometry.weights > 0).all()
    assert float(geometry.weights.sum()) == pytest.approx(1.0, abs=1e-13)
    # Positions are relative to the centroid, in units of the domain's length.
    assert (geometry.weights @ geometry.positions).abs().max() < 1e-13
    assert float(geometry.positions.amax() - geometry.positions.amin()) == pytest.approx(1.0)


def test_eigenvalues_of_the_square_and_orthonormality():
    mesh = fd.RectangleMesh(16, 16, 3.0, 3.0)
    space = fd.FunctionSpace(mesh, "CG", 2)
    bc = fd.DirichletBC(space, 0.0, "on_boundary")
    basis = build_geometry(GeometryRequest(modes=12), [], space, [bc]).basis
    i, j = np.meshgrid(np.arange(9), np.arange(9))
    for spectrum, first in ((basis.constrained, 1), (basis.free, 0)):
        exact = np.sort(np.pi**2 * (i**2 + j**2)[first:, first:].ravel())[:12]
        assert np.abs(spectrum.eigenvalues.numpy() - exact).max() < 2e-3 * exact[-1]
        identity = spectrum.analysis @ spectrum.synthesis
        assert (identity - torch.eye(12, dtype=torch.float64)).abs().max() < 1e-10
    assert basis.constrained.synthesis[bc.nodes].abs().max() == 0.0
    # sqrt(2) cos(pi x) and the like: the mean square of their gradient is the eigenvalue.
    weights = build_geometry(GeometryRequest(), [], space).weights
    gradient = basis.free.gradient.reshape(len(weights), 2, 12)
    energy = torch.einsum("n,ndk->k", weights, gradient**2)
    assert torch.allclose(energy[1:6], basis.free.eigenvalues[1:6], rtol=0.05)


def test_krylov_and_dense_eigenpairs_agree(monkeypatch):
    mesh = fd.UnitSquareMesh(12, 9)
    space = fd.FunctionSpace(mesh, "CG", 1)
    bc = fd.DirichletBC(space, 0.0, 1)
    dense = build_geometry(GeometryRequest(modes=9), [], space, [bc]).basis
    monkeypatch.setattr("spon.fem.eigen._DENSE", 10)
    krylov = build_geometry(GeometryRequest(modes=9), [], space, [bc]).basis
    for a, b in ((dense.constrained, krylov.constrained), (dense.free, krylov.free)):
        assert torch.allclose(a.eigenvalues, b.eigenvalues, atol=1e-9)
        # Functions of the operator agree, whatever the signs of the eigenfunctions.
        one, two = (s.synthesis @ (s.window[:, None] * s.analysis) for s in (a, b))
        assert (one - two).abs().max() < 1e-9


@pytest.mark.parametrize(("cell", "rigid"), [("triangle", 3), ("tetrahedron", 6)])
def test_vector_modes_know_rigid_motions(cell, rigid):
    mesh = cell_mesh(cell, 4)
    space = fd.VectorFunctionSpace(mesh, "CG", 1)
    request = GeometryRequest(modes=rigid + 3, vector=True)
    spectrum = build_geometry(request, [], space).basis.constrained
    assert spectrum.eigenvalues[:rigid].max() < 1e-9
    assert spectrum.eigenvalues[rigid] > 1.0


def test_vector_modes_obey_conditions_on_single_components():
    mesh = fd.UnitSquareMesh(5, 5)
    space = fd.VectorFunctionSpace(mesh, "CG", 1)
    bcs = [fd.DirichletBC(space.sub(0), 0.0, 1), fd.DirichletBC(space, fd.Constant((0, 0)), 3)]
    spectrum = build_geometry(
        GeometryRequest(modes=9, vector=True), [], space, bcs
    ).basis.constrained
    values = spectrum.synthesis.reshape(2, -1, 9)
    roller, clamp = bcs[0].nodes, bcs[1].nodes
    slides = np.setdiff1d(roller, clamp)
    assert values[0, roller].abs().max() == 0.0
    assert values[:, clamp].abs().max() == 0.0
    assert values[1, slides].abs().max() > 0.1


def test_torsion_function_is_the_solution_of_the_torsion_problem():
    mesh = fd.UnitSquareMesh(8, 8)
    space = fd.FunctionSpace(mesh, "CG", 2)
    bcs = [fd.DirichletBC(space, 0.0, (1, 3))]
    u, v = fd.TrialFunction(space), fd.TestFunction(space)
    solution = fd.Function(space)
    fd.solve(fd.inner(fd.grad(u), fd.grad(v)) * fd.dx == v * fd.dx, solution, bcs=bcs)
    geometry = build_geometry(GeometryRequest(), [], space, bcs)
    expected = torch.from_numpy(solution.dat.data_ro / solution.dat.data_ro.max())
    assert torch.allclose(geometry.torsion, expected, atol=1e-10)
    assert build_geometry(GeometryRequest(), [], space).torsion.abs().max() == 0.0


def two_squares(n=4):
    """A domain of two pieces; the left one has the tag 1, the right one the tag 2."""
    mesh = fd.RectangleMesh(3 * n, n, 3.0, 1.0)
    x = fd.SpatialCoordinate(mesh)
    inside = fd.conditional(fd.And(x[0] > 1, x[0] < 2), 0.0, 1.0)
    pieces = fd.Function(fd.FunctionSpace(mesh, "DG", 0)).interpolate(inside)
    return fd.Submesh(fd.RelabeledMesh(mesh, [pieces], [77]), 2, 77)


@pytest.mark.parametrize("degree", [1, 2])
def test_a_piece_without_conditions_has_no_torsion(degree):
    space = fd.FunctionSpace(two_squares(), "CG", degree)
    bcs = [fd.DirichletBC(space, 0.0, 1)]
    torsion = build_geometry(GeometryRequest(), [], space, bcs).torsion
    x = fd.Function(space).interpolate(fd.SpatialCoordinate(space.mesh())[0]).dat.data_ro
    assert float(torsion[torch.from_numpy(x > 1.5)].abs().max()) == 0.0
    assert float(torsion.max()) == 1.0
    # Held at x = 0 alone; of degree two.
    expected = torch.from_numpy(np.where(x < 1.5, 1 - (1 - x) ** 2, 0.0))
    assert torch.allclose(torsion, expected, atol=1e-10 if degree == 2 else 0.1)


@pytest.mark.parametrize("degree", [1, 2])
def test_graph_joins_nodes_that_share_a_cell(degree):
    mesh = cell_mesh("triangle")
    space = fd.FunctionSpace(mesh, "CG", degree)
    geometry = build_geometry(GeometryRequest(edges=True), [], space)
    graph = geometry.graph
    sender, receiver = graph.senders.to_scipy().indices, graph.mean.T.to_scipy().indices
    found = set(zip(sender.tolist(), receiver.tolist(), strict=True))
    cells = space.cell_node_list.tolist()
    assert found == {(a, b) for cell in cells for a in cell for b in cell if a != b}
    assert len(found) == len(sender)
    # The mean of the senders' positions around a node follows from the volumes of the cells.
    ones = torch.ones(len(sender), 1, dtype=torch.float64)
    assert torch.allclose(graph.mean(ones), torch.ones(geometry.nodes, 1, dtype=torch.float64))
    step = geometry.positions[sender] - geometry.positions[receiver]
    assert torch.allclose(graph.features[:, -1], step.norm(dim=1))
    assert torch.allclose(graph.mean(graph.features[:, 2:3]), ones[: geometry.nodes])


def test_edges_of_a_periodic_mesh_are_short():
    mesh = fd.PeriodicUnitSquareMesh(6, 6)
    space = fd.FunctionSpace(mesh, "CG", 1)
    graph = build_geometry(GeometryRequest(edges=True), [], space).graph
    assert graph.features.shape[0] == 36 * 6
    assert float(graph.features[:, -1].max()) == pytest.approx(np.sqrt(2) / 6)
    # Each edge is there both ways: the vectors of all edges cancel at every node.
    assert graph.mean(graph.features[:, :2].contiguous()).abs().max() < 1e-12


def test_patches_are_means_over_neighbours():
    mesh = fd.UnitSquareMesh(20, 20)
    space = fd.FunctionSpace(mesh, "CG", 1)
    geometry = build_geometry(GeometryRequest(points=50, modes=10), [], space)
    patches = geometry.patches.to_scipy()
    assert 40 <= patches.shape[0] <= 90
    assert np.abs(patches.sum(axis=1) - 1).max() < 1e-13
    assert ((patches > 0).sum(axis=0) == 1).all()
    for row in patches:
        spread = np.ptp(geometry.positions.numpy()[row.indices], axis=0)
        assert spread.max() <= 50**-0.5
    identity = geometry.patch_basis.free.analysis @ geometry.patch_basis.free.synthesis
    assert (identity - torch.eye(10, dtype=torch.float64)).abs().max() < 0.05


def test_few_nodes_make_no_patches():
    space = fd.FunctionSpace(fd.UnitSquareMesh(3, 3), "CG", 1)
    assert build_geometry(GeometryRequest(points=1000), [], space).patches is None


def test_geometry_moves_to_single_precision_and_stays_out_of_the_state():
    space = fd.FunctionSpace(fd.UnitSquareMesh(3, 3), "CG", 1)
    request = GeometryRequest(modes=4, edges=True, points=4)
    geometry = build_geometry(request, [space], space).float()
    assert geometry.state_dict() == {}
    assert {b.dtype for b in geometry.buffers() if b.is_floating_point()} == {torch.float32}
    assert geometry.lift([torch.ones(16, 2)]).dtype == torch.float32
    again = build_geometry(request, [space], space)
    assert {b.dtype for b in again.buffers() if b.is_floating_point()} == {torch.float64}


def test_spaces_on_different_meshes_are_refused():
    one, two = fd.UnitSquareMesh(2, 2), fd.UnitSquareMesh(3, 3)
    with pytest.raises(ValueError, match="interpolate the input into a space on the output's mesh"):
        build_geometry(
            GeometryRequest(), [fd.FunctionSpace(one, "CG", 1)], fd.FunctionSpace(two, "CG", 1)
        )


def test_an_input_with_values_at_quadrature_points_is_refused():
    mesh = fd.UnitSquareMesh(2, 2)
    output = fd.FunctionSpace(mesh, "CG", 1)
    points = fd.FunctionSpace(mesh, "Quadrature", 2)
    vectors = fd.VectorFunctionSpace(mesh, "Quadrature", 2)
    for space in (points, vectors, output * points):
        for request in (GeometryRequest(), GeometryRequest(elliptic=True)):
            with pytest.raises(ValueError, match=r"input 1 .*Quadrature.*method=\"project\""):
                build_geometry(request, [output, space], output)
    # What the message says.
    cells = fd.FunctionSpace(mesh, "DG", 0)
    x = fd.Function(points).interpolate(fd.SpatialCoordinate(mesh)[0])
    found = Encoder(cells, points, method="project").encode(x)
    expected = fd.Function(cells).interpolate(fd.SpatialCoordinate(mesh)[0])
    assert torch.allclose(found[0].double(), coefficients(expected)[:, 0])
    # Processors that look at no nodes take such inputs.
    build_geometry(GeometryRequest(nodes=False), [points], output)


def test_a_fully_constrained_space_is_refused():
    space = fd.FunctionSpace(fd.UnitSquareMesh(1, 1), "CG", 1)
    bc = fd.DirichletBC(space, 0.0, "on_boundary")
    with pytest.raises(ValueError, match="refine the mesh or raise the degree"):
        build_geometry(GeometryRequest(modes=3), [], space, [bc])


def test_requests_survive_json():
    request = GeometryRequest(degree=2, modes=7, vector=True, points=9, edges=True)
    assert GeometryRequest.from_json(request.to_json()) == request
