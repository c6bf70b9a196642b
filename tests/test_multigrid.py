"""Multigrid cycles: PETSc's cycle, levels of every kind, conditions, other meshes, training."""

import itertools

import firedrake as fd
import numpy as np
import pytest
import torch
from layers import column, graded_changes, processed, relative, smooth

import spon
from spon.fem.geometry import build_geometry
from spon.processors import GeometryRequest, Multigrid
from spon.processors.multigrid import VCycle

OMEGA = 0.61


def levels_of(space, kind, bcs=()):
    return build_geometry(GeometryRequest(levels=kind), [], space, bcs).hierarchy


def poisson_cycle(gdim, steps):
    """A = K, S = omega diag(K)^-1 for one channel."""
    cycle = VCycle(1, gdim, levels=2, pre=steps, post=steps, stencil=True).double()

    def weight(change, limit):
        return change / (1.0 - (change / limit) ** 2) ** 0.5

    with torch.no_grad():
        cycle.operator.zero_()
        cycle.operator[0, 0] = weight(-1.0 / 20.0, 2.0)  # takes the lower-order term away
        cycle.smoother.zero_()
        cycle.smoother[0, 0] = weight(OMEGA - 0.7, 0.5)
    return cycle


def petsc_options(steps, prefix=""):
    smoother = {
        "ksp_type": "richardson",
        "ksp_richardson_scale": OMEGA,
        "ksp_norm_type": "none",
        "ksp_convergence_test": "skip",
        "ksp_max_it": steps,
        "pc_type": "jacobi",
    }
    return {
        "ksp_type": "preonly",
        "pc_type": "mg",
        "mg_levels": smoother,
        "mg_coarse": {**smoother, "ksp_max_it": 2 * steps},
    }


HIERARCHIES = {
    "triangles": lambda: fd.MeshHierarchy(fd.UnitSquareMesh(3, 2), 3),
    "disk": lambda: fd.MeshHierarchy(fd.UnitDiskMesh(1), 2),
    "quadrilaterals": lambda: fd.MeshHierarchy(fd.UnitSquareMesh(3, 2, quadrilateral=True), 2),
    "tetrahedra": lambda: fd.MeshHierarchy(fd.UnitCubeMesh(2, 2, 2), 2),
}


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("kind", list(HIERARCHIES))
def test_a_cycle_is_the_cycle_of_petsc(kind, steps):
    mesh = HIERARCHIES[kind]()[-1]
    space = fd.FunctionSpace(mesh, "CG", 1)
    bc = fd.DirichletBC(space, 0.0, "on_boundary")
    u, v = fd.TrialFunction(space), fd.TestFunction(space)
    f = fd.Function(space)
    f.dat.data[:] = np.random.default_rng(0).standard_normal(f.dat.data_ro.shape)
    expected = fd.Function(space)
    # Firedrake assembles on every mesh of the hierarchy and transfers with its own kernels.
    a, load = fd.inner(fd.grad(u), fd.grad(v)) * fd.dx, f * v * fd.dx
    fd.solve(a == load, expected, bcs=bc, solver_parameters=petsc_options(steps))
    hierarchy = levels_of(space, "meshes", [bc])
    assert len(hierarchy) == len(HIERARCHIES[kind]())
    b = column(fd.assemble(load).riesz_representation("l2"))[:, :, None]
    volume = fd.assemble(fd.Constant(1.0) * fd.dx(domain=mesh))
    gdim = mesh.geometric_dimension
    with torch.no_grad():
        found = poisson_cycle(gdim, steps)(b, hierarchy)[:, :, 0]
    # The hierarchy has no units: its stiffness is that of the mesh times length^2 / volume.
    found = found * volume ** (2.0 / gdim - 1.0)
    exact = column(expected)
    assert float((found - exact).abs().max() / exact.abs().max()) < 1e-10


def test_lower_degrees_are_levels_as_in_firedrakes_p_multigrid():
    mesh = fd.MeshHierarchy(fd.UnitSquareMesh(3, 2), 1)[-1]
    space = fd.FunctionSpace(mesh, "CG", 2)
    bc = fd.DirichletBC(space, 0.0, "on_boundary")
    hierarchy = levels_of(space, "meshes", [bc])
    assert [level.nodes for level in hierarchy.levels] == [117, 35, 12]
    u, v = fd.TrialFunction(space), fd.TestFunction(space)
    f = fd.Function(space)
    f.dat.data[:] = np.random.default_rng(0).standard_normal(f.dat.data_ro.shape)
    expected = fd.Function(space)
    inner = petsc_options(1)
    a, load = fd.inner(fd.grad(u), fd.grad(v)) * fd.dx, f * v * fd.dx
    options = {
        "mat_type": "aij",
        "ksp_type": "preonly",
        "pc_type": "python",
        "pc_python_type": "firedrake.PMGPC",
        "pmg_mg_levels": inner["mg_levels"],
        "pmg_mg_coarse": {**inner, "mat_type": "aij"},
    }
    fd.solve(a == load, expected, bcs=bc, solver_parameters=options)
    b = column(fd.assemble(load).riesz_representation("l2"))[:, :, None]
    with torch.no_grad():
        found = poisson_cycle(2, 1)(b, hierarchy)[:, :, 0]
    exact = column(expected)
    assert float((found - exact).abs().max() / exact.abs().max()) < 1e-10


def random_network(space, bcs=(), seed=0, source=None, size=0.05, **options):
    """A network in double precision, every weight moved away from its start."""
    torch.manual_seed(seed)
    small = {"channels": 4, "layers": 2, "width": 4, "levels": 4, "smoother": "stencil"}
    processor = Multigrid(**{**small, **options})
    encoder = spon.Encoder(space if source is None else source)
    net = spon.OperatorNetwork(encoder, processor, spon.Decoder(space, bcs), torch.float64)
    with torch.no_grad():
        for weight in processor.parameters():
            weight += size * torch.randn_like(weight)
    return net


@pytest.mark.parametrize("coarse", ["auto", "meshes", "lattice"])
@pytest.mark.parametrize("degree", [1, 2])
def test_refinement_halves_the_change_of_the_output(coarse, degree):
    meshes = fd.MeshHierarchy(fd.UnitSquareMesh(4, 4), 4)
    space = fd.FunctionSpace(meshes[1], "CG", degree)
    net = random_network(space, fd.DirichletBC(space, 0.0, 1), coarse=coarse)
    outputs = [
        processed(net.on(mesh), smooth(fd.FunctionSpace(mesh, "CG", degree)))
        for mesh in list(meshes)[1:]
    ]
    changes = [relative(a, b) for a, b in itertools.pairwise(outputs)]
    assert changes[0] > 1e-4  # the weights do something
    assert changes[-1] < 0.02
    assert changes[2] < 0.6 * changes[1] and changes[2] < 0.3 * changes[0]


def test_a_locally_refined_mesh_gives_the_same_output():
    changes = graded_changes(random_network)
    assert changes[-1] < 0.05
    assert changes[-1] < 0.4 * changes[0]


def white_noise(mesh):
    """Piecewise constant on 8 x 8 squares, whatever the mesh."""
    space = fd.FunctionSpace(mesh, "DG", 0)
    x, y = fd.SpatialCoordinate(mesh)
    centres = [fd.Function(space).interpolate(t).dat.data_ro for t in (x, y)]
    cells = [np.floor(8 * c).astype(int) for c in centres]
    f = fd.Function(space)
    f.dat.data[:] = np.random.default_rng(1).standard_normal((8, 8))[tuple(cells)]
    return f


def test_rough_inputs_give_bounded_outputs():
    sizes, raw = {"field": [], "nodes": []}, []
    for n in (16, 32, 64):
        mesh = fd.UnitSquareMesh(n, n)
        space, cells = fd.FunctionSpace(mesh, "CG", 1), fd.FunctionSpace(mesh, "DG", 0)
        net = random_network(space, fd.DirichletBC(space, 0.0, 1), source=cells)
        noise = fd.Function(cells)
        noise.dat.data[:] = np.random.default_rng(n).standard_normal(cells.dim())
        zero = processed(net, fd.Function(cells))
        for name, f in (("field", white_noise(mesh)), ("nodes", noise)):
            sizes[name].append(fd.norm(processed(net, f) - zero))
        # What the property excludes: a raw stencil of the same field.
        level = net.geometry.hierarchy.levels[0]
        lifted = net.geometry.lift([column(noise)])
        stencil = level.forms(lifted)[level.nodes : 2 * level.nodes, 0, 0] / net.geometry.weights
        raw.append(float(stencil.square().mean().sqrt()))
    assert raw[-1] > 10 * raw[0]
    assert max(sizes["field"]) < 1.5 * min(sizes["field"])
    assert max(sizes["nodes"]) < 1.5 * min(sizes["nodes"])


def test_wrong_options_say_what_was_expected():
    with pytest.raises(ValueError, match="coarse must be one of 'auto', 'meshes', 'lattice'"):
        Multigrid(coarse="amg")
    with pytest.raises(ValueError, match="pre must be at least 1"):
        Multigrid(pre=0)
    space = fd.FunctionSpace(fd.UnitSquareMesh(2, 2), "CG", 1)
    processor = random_network(space).processor
    empty = build_geometry(GeometryRequest(), [space], space)
    with pytest.raises(ValueError, match="holds no levels"):
        processor([torch.zeros(9, 1, dtype=torch.float64)], empty)


@pytest.mark.parametrize("kind", ["meshes", "lattice", "auto"])
def test_corrections_vanish_on_the_constrained_boundary_on_every_level(kind):
    mesh = fd.MeshHierarchy(fd.UnitDiskMesh(1) if kind != "meshes" else fd.UnitSquareMesh(3, 3), 2)
    space = fd.FunctionSpace(mesh[-1], "CG", 1)
    bc = fd.DirichletBC(space, 0.0, "on_boundary")
    hierarchy = levels_of(space, kind, [bc])
    assert len(hierarchy) > 2
    cycle = VCycle(4, 2, levels=3, pre=1, post=1, stencil=True).double()
    with torch.no_grad():
        for weight in cycle.parameters():
            weight.normal_(0.0, 0.1)
    whole = np.eye(space.dim())
    for i, level in enumerate(hierarchy.levels):
        below = type(hierarchy)(list(hierarchy.levels)[i:])
        fixed = level.fixed.bool()
        # Some coarse levels are fixed altogether, or not at all.
        below.constrained = True
        with torch.no_grad():
            out = cycle(torch.randn(level.nodes, 2, 4, dtype=torch.float64), below)
        assert out[fixed][:, :, :2].abs().max() == 0.0
        assert out[fixed][:, :, 2:].abs().max() > 0.0
        # No function of a coarse level that is free there reaches the boundary of the mesh.
        reach = np.abs(whole[bc.nodes]).sum(axis=0)
        assert reach[~fixed.numpy()].max(initial=0.0) == 0.0
        if level.prolongation is not None:
            whole = whole @ level.prolongation.to_scipy()


def test_meshes_that_are_not_nested_are_levels():
    meshes = [fd.UnitDiskMesh(2), fd.UnitDiskMesh(3)]
    turn = meshes[0].coordinates.dat.data_ro @ np.array([[0.8, 0.6], [-0.6, 0.8]])
    meshes[0].coordinates.dat.data[:] = turn
    fine = fd.NonNestedHierarchy(*meshes)[-1]
    space = fd.FunctionSpace(fine, "CG", 1)
    hierarchy = levels_of(space, "meshes")
    assert [level.nodes for level in hierarchy.levels] == [m.num_vertices() for m in meshes[::-1]]
    p = hierarchy.levels[0].prolongation.to_scipy()
    assert np.abs(p.sum(axis=1) - 1.0).max() < 1e-10
    coarse, found = fd.SpatialCoordinate(meshes[0]), []
    for i in range(2):
        x = fd.Function(fd.FunctionSpace(meshes[0], "CG", 1)).interpolate(coarse[i])
        y = fd.Function(space).interpolate(fd.SpatialCoordinate(fine)[i])
        found.append(np.abs(p @ x.dat.data_ro - y.dat.data_ro))
    # Exact inside, at worst a nearest node where the polygon of the coarse mesh cuts off a sliver.
    assert np.median(np.maximum(*found)) < 1e-10 and np.max(found) < 0.25


def test_without_a_hierarchy_the_message_says_how_to_get_one():
    for degree in (1, 2):
        space = fd.FunctionSpace(fd.UnitSquareMesh(4, 4), "CG", degree)
        with pytest.raises(ValueError, match=r"MeshHierarchy\(mesh, n\).*coarse='lattice'"):
            levels_of(space, "meshes")
    wrong = fd.NonNestedHierarchy(fd.UnitSquareMesh(8, 8), fd.UnitSquareMesh(2, 2))[-1]
    with pytest.raises(ValueError, match="from coarse to fine"):
        levels_of(fd.FunctionSpace(wrong, "CG", 1), "meshes")
    for kind, degree in itertools.product(("auto", "lattice"), (1, 2)):
        periodic = fd.FunctionSpace(fd.PeriodicUnitSquareMesh(4, 4), "CG", degree)
        with pytest.raises(ValueError, match="refine a coarse periodic mesh"):
            levels_of(periodic, kind)
    refined = fd.MeshHierarchy(fd.PeriodicUnitSquareMesh(4, 4), 1)[-1]
    for degree in (1, 2):
        assert len(levels_of(fd.FunctionSpace(refined, "CG", degree), "auto")) == 1 + degree


def test_any_weights_leave_a_cycle_bounded_under_refinement():
    sizes = []
    for n in (8, 16, 32, 64):
        space = fd.FunctionSpace(fd.UnitSquareMesh(n, n), "CG", 1)
        hierarchy = levels_of(space, "lattice", [fd.DirichletBC(space, 0.0, 1)])
        torch.manual_seed(1)
        cycle = VCycle(4, 2, levels=3, pre=1, post=1, stencil=True).double()
        with torch.no_grad():
            for weight in cycle.parameters():
                weight.normal_(0.0, 10.0)
            f = column(smooth(space))[:, :, None].expand(-1, 1, 4)
            mass = hierarchy.levels[0].forms(f)[: space.dim()]
            sizes.append(float(cycle(mass, hierarchy).square().mean().sqrt()))
    assert max(sizes) < 2.0 * sizes[0]


@pytest.mark.parametrize("gdim", [1, 2])
def test_thin_domains_have_lattices(gdim):
    mesh = fd.UnitIntervalMesh(20) if gdim == 1 else fd.RectangleMesh(30, 3, 10.0, 1.0)
    space = fd.FunctionSpace(mesh, "CG", 1)
    hierarchy = levels_of(space, "lattice", [fd.DirichletBC(space, 0.0, 1)])
    counts = [level.nodes for level in hierarchy.levels]
    assert len(counts) > 2 and all(fine > coarse for fine, coarse in itertools.pairwise(counts))
    assert all(bool(torch.isfinite(level.scaling).all()) for level in hierarchy.levels)


def test_lattices_do_not_depend_on_the_mesh():
    coarse = []
    for mesh in (
        fd.UnitSquareMesh(32, 32),
        fd.UnitSquareMesh(27, 27, diagonal="crossed"),
        fd.UnitSquareMesh(54, 54, diagonal="crossed"),
    ):
        level = levels_of(fd.FunctionSpace(mesh, "CG", 1), "lattice").levels[-2]
        assert level.nodes == 25  # four cells each way
        coarse.append(level.forms.to_scipy().toarray())
    one, two = (np.abs(coarse[0] - c).max() / np.abs(coarse[0]).max() for c in coarse[1:])
    assert one < 0.1 and two < 0.6 * one


def test_a_file_and_another_mesh_keep_the_network(tmp_path):
    meshes = fd.MeshHierarchy(fd.UnitSquareMesh(4, 4), 2)
    space = fd.FunctionSpace(meshes[1], "CG", 1)
    net = random_network(space, fd.DirichletBC(space, 0.0, 1), coarse="meshes", smoother="diagonal")
    net.save(tmp_path / "net.spon")
    again = spon.load(tmp_path / "net.spon", meshes[1])
    x = torch.randn(3, space.dim(), dtype=torch.float64)
    assert torch.equal(again(x), net(x))
    assert again.processor.config() == net.processor.config()
    assert [len(net.on(mesh).geometry.hierarchy) for mesh in meshes] == [1, 2, 3]
    single = net.on(meshes[2]).to(torch.float32)
    assert len(single.geometry.hierarchy) == 3
    assert single(torch.randn(2, 289)).dtype == torch.float32
    with pytest.raises(ValueError, match="belongs to no hierarchy"):
        net.on(fd.UnitSquareMesh(8, 8))


def test_a_dual_vector_where_values_are_due_is_refused():
    space = fd.FunctionSpace(fd.UnitSquareMesh(4, 4), "CG", 1)
    net = random_network(space)
    load = fd.assemble(fd.TestFunction(space) * fd.dx)
    with pytest.raises(TypeError, match="not loads or residuals"):
        net(load)


def trained_error(whole):
    """Relative error for unseen loads of 100 samples of the Poisson equation, 200 steps of Adam."""
    mesh = fd.UnitSquareMesh(12, 12)
    space = fd.FunctionSpace(mesh, "CG", 1)
    bc = fd.DirichletBC(space, 0.0, "on_boundary")
    u, v = fd.TrialFunction(space), fd.TestFunction(space)
    mass = spon.fem.sparse_map(u * v * fd.dx)
    solve = spon.fem.LinearSolver(fd.inner(fd.grad(u), fd.grad(v)) * fd.dx, bc)
    generator = torch.Generator().manual_seed(0)
    f = torch.randn(120, space.dim(), generator=generator, dtype=torch.float64)
    exact = solve(mass.batch(f))
    f, exact = f.float(), (exact / exact.std()).float()
    torch.manual_seed(0)
    processor = Multigrid(channels=4, layers=1, width=2, levels=3, smoother="stencil")
    decoder = spon.Decoder(space, bc)
    net = spon.OperatorNetwork(spon.Encoder(space), processor, decoder, torch.float32)
    if not whole:
        net.geometry.hierarchy.levels[0].prolongation = None
    net.calibrate([f[:100]], exact[:100])
    optimiser = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-2, total_steps=200)

    def error(batch):
        return ((net(f[batch]) - exact[batch]).norm(dim=1) / exact[batch].norm(dim=1)).mean()

    for step in range(200):
        optimiser.zero_grad()
        error(slice(20 * (step % 5), 20 * (step % 5) + 20)).backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        return float(error(slice(100, 120)))


def test_training_learns_the_poisson_equation_and_needs_the_coarse_levels():
    assert trained_error(whole=True) < 0.05
    assert trained_error(whole=False) > 0.08
