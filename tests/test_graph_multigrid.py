"""Message passing over levels: graphs, means, other meshes and numbers of levels, training."""

import itertools

import firedrake as fd
import numpy as np
import pytest
import torch
from layers import graded_changes, processed, relative, smooth
from test_multigrid import white_noise

import spon
from spon.fem.geometry import build_geometry
from spon.fem.graphs import matrix_graph
from spon.processors import GeometryRequest, Graph, GraphMultigrid


def levels_of(space, kind="auto"):
    request = GraphMultigrid(coarse=kind).request()
    return build_geometry(request, [], space).hierarchy.levels


SPACES = {
    "meshes": lambda: (fd.MeshHierarchy(fd.UnitSquareMesh(3, 2), 2)[-1], 1, "meshes"),
    "degrees": lambda: (fd.MeshHierarchy(fd.UnitSquareMesh(3, 2), 1)[-1], 4, "meshes"),
    "lattice": lambda: (fd.UnitDiskMesh(3), 2, "lattice"),
    "tetrahedra": lambda: (fd.MeshHierarchy(fd.UnitCubeMesh(2, 2, 2), 1)[-1], 2, "auto"),
    "hexahedra": lambda: (fd.UnitCubeMesh(4, 4, 4, hexahedral=True), 1, "auto"),
    "periodic": lambda: (fd.MeshHierarchy(fd.PeriodicUnitSquareMesh(4, 4), 1)[-1], 1, "meshes"),
}


@pytest.mark.parametrize("name", list(SPACES))
def test_means_are_the_restriction_between_riesz_maps(name):
    mesh, degree, kind = SPACES[name]()
    space = fd.FunctionSpace(mesh, "CG", degree)
    levels = levels_of(space, kind)
    assert len(levels) > 1 and levels[-1].average is None
    for fine, coarse in itertools.pairwise(levels):
        average = fine.average.to_scipy()
        assert average.shape == (coarse.nodes, fine.nodes)
        assert average.data.min() >= 0.0
        assert np.abs(average.sum(axis=1) - 1.0).max() < 1e-12
        p = fine.prolongation.to_scipy()
        if p.data.min() < 0.0:  # degree 4 to 2
            continue
        # The first stencil is the mass matrix times the inverse of the lumped one.
        mass, scaled = (m.to_scipy()[: fine.nodes] for m in (fine.forms, fine.stencils))
        lumped = mass.diagonal() / scaled.diagonal()
        x = np.random.default_rng(0).standard_normal(fine.nodes)
        dual = p.T @ (lumped * x)
        assert np.abs(average @ x - dual / (p.T @ lumped)).max() < 1e-12


@pytest.mark.parametrize("name", list(SPACES))
def test_every_level_has_a_graph_that_joins_all_nodes(name):
    mesh, degree, kind = SPACES[name]()
    for level in levels_of(fd.FunctionSpace(mesh, "CG", degree), kind):
        mean, senders = level.graph.mean.to_scipy(), level.graph.senders.to_scipy()
        assert np.abs(mean.sum(axis=1) - 1.0).max() < 1e-12
        assert mean.data.min() > 0.0
        reach = np.eye(level.nodes)[:1]
        for _ in range(level.nodes):
            reach = (reach + reach @ (mean @ senders) > 0.0).astype(float)
        assert reach.all()
        # Steps cancel along any edge and back.
        step = level.graph.features[:, :-2].numpy()
        lengths = level.graph.features[:, -1].numpy()
        assert np.allclose(np.linalg.norm(step, axis=1), level.graph.features[:, -2])
        assert lengths.min() > 0.0 and lengths.max() < 1.5


def test_the_graph_of_the_mass_matrix_is_that_of_the_cells():
    mesh = fd.UnitDiskMesh(2)
    space = fd.FunctionSpace(mesh, "CG", 1)
    geometry = build_geometry(GeometryRequest(edges=True, levels="lattice"), [], space)
    level = geometry.hierarchy.levels[0]
    mass = level.forms.to_scipy()[: level.nodes]
    other = matrix_graph(mass, geometry.positions.numpy())

    def by_nodes(graph):
        receiver = graph.mean.to_scipy().tocoo()
        receiver = receiver.row[np.argsort(receiver.col)]
        order = np.lexsort((graph.senders.to_scipy().indices, receiver))
        return graph.features[order].numpy(), (graph.mean @ graph.senders).to_scipy().toarray()

    for a, b in zip(by_nodes(level.graph), by_nodes(other), strict=True):
        assert np.abs(a - b).max() < 1e-12


def test_the_nodes_of_a_lattice_have_their_neighbours():
    level = levels_of(fd.FunctionSpace(fd.UnitSquareMesh(31, 31), "CG", 1), "lattice")[1]
    counts = np.diff(level.graph.mean.to_scipy().indptr)
    # Corners, sides and the inside of 16 cells each way, though the mesh does not fit them.
    assert np.unique(counts, return_counts=True)[1].tolist() == [4, 60, 225]
    assert np.unique(counts).tolist() == [3, 5, 8]


def random_network(space, bcs=(), source=None, **options):
    """A network in double precision, every weight moved away from its start."""
    torch.manual_seed(0)
    processor = GraphMultigrid(**{"channels": [8, 8, 6], "rounds": [2, 1, 1], **options})
    encoder = spon.Encoder(space if source is None else source)
    net = spon.OperatorNetwork(encoder, processor, spon.Decoder(space, bcs), torch.float64)
    with torch.no_grad():
        for weight in processor.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return net


@pytest.mark.parametrize(("coarse", "degree"), [("auto", 1), ("meshes", 2), ("lattice", 1)])
def test_refinement_halves_the_change_of_the_output(coarse, degree):
    meshes = fd.MeshHierarchy(fd.UnitSquareMesh(4, 4), 4)
    space = fd.FunctionSpace(meshes[2], "CG", degree)
    net = random_network(space, fd.DirichletBC(space, 0.0, 1), coarse=coarse)
    fine = list(meshes)[2:] if degree == 1 else list(meshes)[1:4]
    nets = [net.on(mesh) for mesh in fine]
    counts = [len(one.geometry.hierarchy) for one in nets]
    # Each mesh brings one more level, with the same weights.
    assert counts == [counts[0] + i for i in range(len(counts))]
    inputs = [smooth(fd.FunctionSpace(mesh, "CG", degree)) for mesh in fine]
    outputs = [processed(one, f) for one, f in zip(nets, inputs, strict=True)]
    one, two = (relative(a, b) for a, b in itertools.pairwise(outputs))
    assert one > 1e-4  # the weights do something
    assert two < 0.6 * one and two < 0.03


def test_a_locally_refined_mesh_gives_the_same_output():
    changes = graded_changes(random_network, (12, 24, 48))
    assert changes[-1] < 0.03
    assert changes[-1] < 0.4 * changes[0]


def test_rough_inputs_give_bounded_outputs():
    sizes = []
    for n in (16, 32, 64):
        mesh = fd.UnitSquareMesh(n, n)
        cells = fd.FunctionSpace(mesh, "DG", 0)
        net = random_network(fd.FunctionSpace(mesh, "CG", 1), source=cells)
        zero = processed(net, fd.Function(cells))
        sizes.append(fd.norm(processed(net, white_noise(mesh)) - zero))
    assert max(sizes) < 1.5 * min(sizes)


def test_hierarchies_with_any_number_of_levels_share_the_weights():
    meshes = fd.MeshHierarchy(fd.UnitSquareMesh(2, 2), 4)
    space = fd.FunctionSpace(meshes[2], "CG", 1)
    net = random_network(space, coarse="meshes")
    weights = sum(weight.numel() for weight in net.processor.parameters())
    for count, mesh in enumerate(meshes, start=1):
        other = net.on(mesh)
        assert len(other.geometry.hierarchy) == count
        assert sum(weight.numel() for weight in other.processor.parameters()) == weights
        u = other(smooth(fd.FunctionSpace(mesh, "CG", 1)))
        assert np.isfinite(u.dat.data_ro).all()


def test_meshes_that_are_not_nested_are_levels():
    fine = fd.NonNestedHierarchy(fd.UnitDiskMesh(1), fd.UnitDiskMesh(3))[-1]
    space = fd.FunctionSpace(fine, "CG", 1)
    net = random_network(space, coarse="meshes")
    assert len(net.geometry.hierarchy) == 2
    assert np.isfinite(net(smooth(space)).dat.data_ro).all()


def test_a_file_keeps_a_network_with_vectors_in_three_dimensions(tmp_path):
    meshes = fd.MeshHierarchy(fd.UnitCubeMesh(2, 2, 2), 1)
    space = fd.VectorFunctionSpace(meshes[1], "CG", 1)
    net = random_network(space, fd.DirichletBC(space, 0.0, 1))
    net.save(tmp_path / "net.spon")
    again = spon.load(tmp_path / "net.spon", meshes[1])
    x = torch.randn(2, space.dim(), dtype=torch.float64)
    assert torch.equal(again(x), net(x))
    assert again.processor.config() == net.processor.config()
    assert net.to(torch.float32)(x.float()).dtype == torch.float32


def test_wrong_calls_say_what_was_expected():
    with pytest.raises(ValueError, match="coarse must be one of 'auto', 'meshes', 'lattice'"):
        GraphMultigrid(coarse="amg")
    with pytest.raises(ValueError, match="Got 2 numbers of channels and 1 of rounds"):
        GraphMultigrid(channels=[8, 4], rounds=[2])
    with pytest.raises(ValueError, match="at least one"):
        GraphMultigrid(channels=[], rounds=[])
    with pytest.raises(TypeError, match="rounds must be a sequence of integers, got 2"):
        GraphMultigrid(rounds=2)
    space = fd.FunctionSpace(fd.UnitSquareMesh(4, 4), "CG", 1)
    net = random_network(space)
    for request in (GeometryRequest(edges=True), GeometryRequest(levels="auto")):
        with pytest.raises(ValueError, match="holds no levels with graphs"):
            net.processor([torch.zeros(25, 1)], build_geometry(request, [space], space))
    with pytest.raises(TypeError, match="not loads or residuals"):
        net(fd.assemble(fd.TestFunction(space) * fd.dx))


def trained_error(processor, steps=150):
    """Relative error for unseen sources of the Poisson equation, and the number of weights."""
    mesh = fd.UnitSquareMesh(14, 14)
    space = fd.FunctionSpace(mesh, "CG", 1)
    bc = fd.DirichletBC(space, 0.0, "on_boundary")
    u, v = fd.TrialFunction(space), fd.TestFunction(space)
    mass = spon.fem.sparse_map(u * v * fd.dx)
    solve = spon.fem.LinearSolver(fd.inner(fd.grad(u), fd.grad(v)) * fd.dx, bc)
    generator = torch.Generator().manual_seed(0)
    f = torch.randn(140, space.dim(), generator=generator, dtype=torch.float64)
    exact = solve(mass.batch(f))
    f, exact = f.float(), (exact / exact.std()).float()
    torch.manual_seed(0)
    net = spon.OperatorNetwork(
        spon.Encoder(space), processor, spon.Decoder(space, bc), torch.float32
    )
    net.calibrate([f[:120]], exact[:120])
    optimiser = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps)

    def error(batch):
        return ((net(f[batch]) - exact[batch]).norm(dim=1) / exact[batch].norm(dim=1)).mean()

    for step in range(steps):
        optimiser.zero_grad()
        error(slice(20 * (step % 6), 20 * (step % 6) + 20)).backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        found = float(error(slice(120, 140)))
    return found, sum(weight.numel() for weight in processor.parameters())


def test_levels_learn_what_one_graph_does_not():
    ours, weights = trained_error(GraphMultigrid([16, 16, 12], [2, 1, 1], layers=1))
    single, as_many = trained_error(Graph(channels=20, rounds=3))
    assert abs(weights / as_many - 1.0) < 0.25
    assert ours < 0.5 * single
