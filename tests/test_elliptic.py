"""Solves with coefficients at quadrature points: the problems, gradients, what is learned."""

import copy

import firedrake as fd
import numpy as np
import pytest
import torch
from test_geometry import two_squares

import spon
from spon.fem.geometry import build_geometry
from spon.processors import Elliptic, GeometryRequest
from spon.processors.points import _Solve

MESHES = {
    "triangle": (lambda: fd.RectangleMesh(6, 5, 3.0, 2.0), 6.0),
    "quadrilateral": (lambda: fd.RectangleMesh(6, 5, 3.0, 2.0, quadrilateral=True), 6.0),
    "tetrahedron": (lambda: fd.BoxMesh(3, 3, 2, 3.0, 2.0, 1.0), 6.0),
    "hexahedron": (lambda: fd.BoxMesh(3, 3, 2, 3.0, 2.0, 1.0, hexahedral=True), 6.0),
}


def column(function):
    return torch.from_numpy(function.dat.data_ro.reshape(-1, 1).copy())


def noise(space, seed=0):
    f = fd.Function(space)
    f.dat.data[:] = np.random.default_rng(seed).standard_normal(f.dat.data_ro.shape)
    return f


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("cell", list(MESHES))
@pytest.mark.parametrize("conditions", [True, False])
def test_a_solve_is_that_of_the_variational_problem(cell, degree, conditions):
    make, volume = MESHES[cell]
    mesh = make()
    gdim = mesh.geometric_dimension
    space, cells = fd.FunctionSpace(mesh, "CG", degree), fd.FunctionSpace(mesh, "DG", 0)
    factors = noise(fd.TensorFunctionSpace(mesh, "DG", 0))
    bcs = [fd.DirichletBC(space, 0.0, 1)] if conditions else []
    f, c = noise(cells, 1), noise(cells, 2)
    c.dat.data[:] = 0.1 + np.abs(c.dat.data_ro)
    geometry = build_geometry(
        GeometryRequest(elliptic=True), [factors.function_space(), cells, cells], space, bcs
    )
    points = geometry.points
    assert float(points.weights.sum()) == pytest.approx(1.0) and bool((points.weights > 0).all())
    raw = points.lift([column(factors), column(f), column(c)])[:, 0]
    square = volume ** (2 / gdim)
    low = raw[:, : gdim**2].reshape(-1, gdim, gdim)
    tensor = low @ low.mT + torch.eye(gdim, dtype=torch.float64)
    upper = [tensor[:, i, j] for i in range(gdim) for j in range(i, gdim)]
    found = points.solve(torch.stack([*upper, raw[:, -1]])[..., None], points.load(raw[:, -2:-1]))

    # Without units: lengths over that of the domain.
    a = fd.dot(factors, factors.T) + fd.Identity(gdim)
    u, v = fd.TrialFunction(space), fd.TestFunction(space)
    simplex = cell in ("triangle", "tetrahedron")
    where = fd.dx(degree=2 * (degree - 1) if simplex else 2 * degree)
    form = (square * fd.inner(a * fd.grad(u), fd.grad(v)) + c * u * v) * where
    expected = fd.Function(space)
    fd.solve(form == f * v * where, expected, bcs=bcs)
    assert float((found - column(expected)).abs().max()) < 1e-11 * float(found.abs().max())


def small_points(conditions=True):
    space = fd.FunctionSpace(fd.UnitSquareMesh(2, 2), "CG", 2)
    bcs = [fd.DirichletBC(space, 0.0, 1)] if conditions else []
    return build_geometry(GeometryRequest(elliptic=True), [], space, bcs).points


def test_gradients_in_coefficients_and_loads():
    points = small_points()
    generator = torch.Generator().manual_seed(0)
    coefficients = torch.rand(4, len(points), 2, 2, generator=generator, dtype=torch.float64)
    coefficients[[0, 2]] += 2.0
    load = torch.randn(25, 2, 2, generator=generator, dtype=torch.float64)
    inputs = (coefficients.requires_grad_(), load.requires_grad_())
    assert torch.autograd.gradcheck(points.solve, inputs)
    # Columns are independent.
    part = points.solve(coefficients[..., 1, :], load[..., 1, :])
    assert torch.allclose(part, points.solve(*inputs)[..., 1, :], atol=1e-13)
    assert torch.equal(copy.deepcopy(points).solve(*inputs), points.solve(*inputs))
    with pytest.raises(ValueError, match="must agree"):
        points.solve(coefficients, load[..., 0])


def test_gradients_do_not_depend_on_where_the_module_is():
    problem = small_points().solve
    generator = torch.Generator().manual_seed(0)
    entries = torch.eye(problem._lu.size, dtype=torch.float64)[problem.rows, problem.columns]
    entries = (2.0 * entries[None]).requires_grad_()
    loads = torch.randn(1, problem._lu.size, generator=generator, dtype=torch.float64)
    loads.requires_grad_()
    gradients = []
    for device in ("cpu", "meta"):  # the latter stands for a GPU
        x = _Solve.apply(entries, loads, problem.to(device))
        gradients.append(torch.autograd.grad(x.square().sum(), (entries, loads)))
    for here, there in zip(*gradients, strict=True):
        assert torch.equal(here, there) and bool(here.any())


def test_the_load_of_a_flux_is_tested_with_gradients():
    mesh = fd.UnitSquareMesh(3, 3)
    space, vectors = fd.FunctionSpace(mesh, "CG", 2), fd.VectorFunctionSpace(mesh, "DG", 0)
    g = noise(vectors)
    geometry = build_geometry(GeometryRequest(elliptic=True), [vectors], space)
    flux = geometry.points.lift([column(g)]).permute(2, 0, 1)
    found = geometry.points.load(torch.zeros_like(flux[0]), flux)
    expected = fd.assemble(fd.inner(g, fd.grad(fd.TestFunction(space))) * fd.dx)
    assert float((found - column(expected)).abs().max()) < 1e-14


def test_without_conditions_a_singular_problem_names_the_sample():
    points = small_points(conditions=False)
    coefficients = torch.ones(4, len(points), 2, dtype=torch.float64)
    coefficients[1] = 0.0
    coefficients[3, :, 1] = 0.0
    with pytest.raises(spon.fem.SingularMatrixError, match="1 of a batch of 2"):
        points.solve(coefficients, torch.ones(25, 2, dtype=torch.float64))


def test_a_piece_without_conditions_has_a_reaction():
    mesh = two_squares()
    space = fd.FunctionSpace(mesh, "CG", 1)
    torch.manual_seed(0)
    net = spon.OperatorNetwork(
        spon.Encoder(space),
        Elliptic(channels=4),
        spon.Decoder(space, fd.DirichletBC(space, 0.0, 1)),
        torch.float64,
    )
    with torch.no_grad():
        net.processor.hidden[0].law[-1].bias.view(2, -1)[:, 4] = -1e3  # no reaction of its own
        out = net(torch.ones(1, space.dim(), dtype=torch.float64))
    assert float(out.abs().max()) < 1e4
    both = [fd.DirichletBC(space, 0.0, tag) for tag in (1, 2)]
    request = GeometryRequest(elliptic=True)
    assert build_geometry(request, [], space, both).points.solve.constrained
    assert not build_geometry(request, [], space, both[:1]).points.solve.constrained


def test_coefficients_that_went_astray_give_nan_in_their_own_column():
    points = small_points()
    coefficients = torch.ones(4, len(points), 3, dtype=torch.float64)
    coefficients[1] = 0.0
    load = torch.ones(25, 3, dtype=torch.float64)
    right = points.solve(coefficients, load)
    coefficients[0, 3, 1] = torch.nan
    coefficients[2, 5, 2] = torch.inf
    found = points.solve(coefficients.requires_grad_(), load)
    assert torch.equal(found[:, 0], right[:, 0]) and bool(found[:, 1:].isnan().all())
    found.sum().backward()
    assert not coefficients.grad[..., 1].isfinite().all()


def test_training_that_diverges_says_so():
    cells, space, bc, x, y = darcy(4, 20)
    data = spon.Dataset.from_arrays({"a": x}, {"u": y}, {"a": cells, "u": space})
    net = network(cells, space, bc)
    with pytest.raises(spon.TrainingDivergedError):
        spon.fit(net, data, epochs=40, lr=1e200, schedule="constant", progress=False)


def darcy(n, count, seed=0):
    """Logarithms of coefficients, cell by cell, and pressures under a constant source."""
    mesh = fd.UnitSquareMesh(n, n)
    cells, space = fd.FunctionSpace(mesh, "DG", 0), fd.FunctionSpace(mesh, "CG", 1)
    bc = fd.DirichletBC(space, 0.0, "on_boundary")
    log = fd.Function(cells)
    u, v = fd.TrialFunction(space), fd.TestFunction(space)
    form = fd.exp(log) * fd.inner(fd.grad(u), fd.grad(v)) * fd.dx
    solve = spon.fem.LinearSolver(form, bc, inputs=[log], L=v * fd.dx)
    rough = np.random.default_rng(seed).standard_normal((count, cells.dim()))
    x = torch.from_numpy(rough)
    return cells, space, bc, x, solve(x)


def network(cells, space, bc, dtype=torch.float64, **options):
    torch.manual_seed(0)
    processor = Elliptic(**{"channels": 6, "solves": 1, "rounds": 0, **options})
    return spon.OperatorNetwork(spon.Encoder(cells), processor, spon.Decoder(space, bc), dtype)


def test_a_known_law_gives_the_solution_of_the_problem():
    cells, space, bc, x, y = darcy(8, 3)
    net = network(cells, space, bc)
    net.calibrate([x], y)
    layer = net.processor.hidden[0]
    scale = net.input_norms[0](x)
    # The logarithm of the coefficient as the encoder scales it: x = mean + deviation * scaled.
    deviation = float((x[0, 0] - x[0, 1]) / (scale[0, 0] - scale[0, 1]))
    mean = float(x[0, 0] - deviation * scale[0, 0])
    with torch.no_grad():
        layer.law[-1].weight.zero_()
        layer.law[-1].bias[4] = -60.0  # no reaction
        layer.law[-1].bias[0] = mean
        layer.linear.weight[0, 0] = deviation
    found = net([fd_function(cells, row) for row in x])
    for u, expected in zip(found, y, strict=True):
        values = column(u)[:, 0]
        factor = float(expected.max() / values.max())
        assert float((factor * values - expected).abs().max()) < 1e-10 * float(expected.max())


def fd_function(space, row):
    f = fd.Function(space)
    f.dat.data[:] = row.numpy()
    return f


def test_a_rough_coefficient_is_learned_and_the_law_moves_to_a_finer_mesh():
    cells, space, bc, x, y = darcy(8, 80)
    net = network(cells, space, bc, torch.float32)
    net.calibrate([x.float()], y.float())
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-2, total_steps=30 * 8)
    generator = torch.Generator().manual_seed(0)

    def error(net, x, y):
        difference = net(x.float()) - y.float()
        return (difference.norm(dim=1) / y.float().norm(dim=1)).mean()

    for _ in range(30):
        for i in torch.randperm(64, generator=generator).split(8):
            optimiser.zero_grad()
            error(net, x[i], y[i]).backward()
            optimiser.step()
            schedule.step()
    cells, _, _, fine_x, fine_y = darcy(24, 16, seed=1)
    with torch.no_grad():
        assert float(error(net, x[64:], y[64:])) < 0.01
        # Seen on a mesh of nine times fewer cells only.
        assert float(error(net.on(cells.mesh()), fine_x, fine_y)) < 0.02


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"solves": 0}, ValueError, "solves must be at least 1"),
        ({"rounds": -1}, ValueError, "rounds must be at least 0"),
        ({"channels": 2.0}, TypeError, "channels must be an integer"),
    ],
)
def test_wrong_options_say_what_was_expected(options, error, message):
    with pytest.raises(error, match=message):
        Elliptic(**options)


def test_a_load_in_place_of_a_function_is_refused():
    cells, space, bc, _, _ = darcy(3, 1)
    with pytest.raises(TypeError, match="not loads or residuals"):
        network(cells, space, bc)(fd.assemble(fd.TestFunction(cells) * fd.dx))
