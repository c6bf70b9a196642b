"""What every processor promises: independence of mesh and numbering, gradients, round trips."""

import itertools
import json

import firedrake as fd
import numpy as np
import pytest
import torch

from spon import processors
from spon.fem.geometry import build_geometry
from spon.processors import MLP, Field, Graph, Resolvent, Spectral
from spon.processors.base import Processor

ONET = {"functions": 5, "functionals": 4, "channels": 2, "width": 6, "modes": 12, "frequencies": 1}
SMALL = {
    "attention": {"channels": 6, "layers": 2, "tokens": 4, "heads": 2, "frequencies": 1},
    "deeponet": {**ONET, "trunk": "modes"},
    "mlp": {"hidden": [8]},
    "elliptic": {"channels": 4, "layers": 2, "solves": 2, "rounds": 1},
    "graph": {"channels": 8, "rounds": 2},
    "graph_multigrid": {"channels": [8, 6], "rounds": [2, 1], "layers": 2},
    "multionet": ONET,
    "multigrid": {"channels": 4, "layers": 2, "width": 3, "levels": 3, "smoother": "stencil"},
    "resolvent": {"channels": 6, "layers": 2, "alphas": 3, "width": 2},
    "spectral": {"channels": 6, "layers": 2, "modes": 12, "polynomials": 4, "points": 0},
}
VARIANTS = {
    "patches": ("spectral", {**SMALL["spectral"], "points": 60}),
    "coordinates": ("deeponet", ONET),
}
INDEPENDENT = {name: config for name, config in SMALL.items() if name != "mlp"}
INDEPENDENT |= {name: config for name, (_, config) in VARIANTS.items()}


def make(name, config, spaces, output, seed=0):
    """A processor with random weights in double precision, also where they start at zero."""
    processor = processors.create(VARIANTS.get(name, (name, None))[0], config)
    processor.configure([field(space) for space in spaces], field(output))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in processor.parameters():
            weight.normal_(0.0, 0.3, generator=generator)
    return processor.double()


def field(space):
    gdim = space.subspaces[0].mesh().geometric_dimension
    return Field(space.dim(), space.value_size, gdim)


def random_inputs(spaces, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(space.dim(), batch, generator=generator, dtype=torch.float64)
        for space in spaces
    ]


def column(function):
    return torch.from_numpy(function.dat.data_ro.reshape(-1, 1).copy())


def smooth_problem(mesh, vector=False):
    """Inputs and output of a network on a mesh, with smooth inputs as columns."""
    x, y = fd.SpatialCoordinate(mesh)
    f = fd.Function(fd.FunctionSpace(mesh, "CG", 1)).interpolate(fd.sin(3 * x) * fd.exp(y))
    a = fd.Function(fd.FunctionSpace(mesh, "RT", 2)).interpolate(fd.as_vector([fd.cos(y), x * y]))
    output = (fd.VectorFunctionSpace if vector else fd.FunctionSpace)(mesh, "CG", 1)
    spaces = [f.function_space(), a.function_space()]
    bcs = [fd.DirichletBC(output, 0.0, 1)]
    return spaces, output, bcs, [column(f), column(a)]


def result(processor, mesh, vector=False):
    """What a processor makes of the smooth inputs, a Firedrake function."""
    spaces, output, bcs, xs = smooth_problem(mesh, vector)
    geometry = build_geometry(processor.request(), spaces, output, bcs)
    with torch.no_grad():
        y = processor(xs, geometry)
    u = fd.Function(output)
    u.dat.data[:] = y.numpy().reshape(u.dat.data_ro.shape)
    return u


def distance(u, v):
    """L2 distance of functions on the unit square over the deviation of the second from its mean.

    The first is interpolated to the mesh of the second.
    """
    w = fd.Function(v.function_space()).interpolate(u)
    one = fd.Function(v.function_space()).assign(1.0)
    mean = [fd.assemble(c * fd.dx) for c in (v if v.function_space().value_size > 1 else [v])]
    one.dat.data[:] *= np.squeeze(mean)
    return fd.norm(v - w) / fd.norm(v - one)


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("name", list(INDEPENDENT))
def test_uniform_refinement_halves_the_change_of_the_output(name, vector):
    meshes = [fd.UnitSquareMesh(n, n) for n in (8, 16, 32, 64)]
    spaces, output, _, _ = smooth_problem(meshes[0], vector)
    processor = make(name, INDEPENDENT[name], spaces, output)
    with torch.no_grad():
        for weight in processor.parameters():
            weight.mul_(0.5)
    outputs = [result(processor, mesh, vector) for mesh in meshes]
    changes = [distance(a, b) for a, b in itertools.pairwise(outputs)]
    assert changes[2] < 0.05
    # From first to last the mesh size falls by four: first order or better.
    assert changes[2] < 0.3 * changes[0]


@pytest.mark.parametrize("name", list(INDEPENDENT))
def test_a_graded_mesh_gives_the_same_output(name):
    changes = []
    for n in (12, 24, 48):
        even, graded = fd.UnitSquareMesh(n, n), fd.UnitSquareMesh(n, n)
        x = graded.coordinates.dat.data
        # Moves inner nodes only: the domain stays, cells differ in size by a factor of two.
        x += 0.08 * (np.sin(np.pi * x[:, :1]) * np.sin(np.pi * x[:, 1:]))
        spaces, output, _, _ = smooth_problem(even)
        # How near to zero random weights bring an output is chance: the middle one of three.
        found = []
        for seed in range(3):
            processor = make(name, INDEPENDENT[name], spaces, output, seed)
            with torch.no_grad():
                for weight in processor.parameters():
                    weight.mul_(0.5)
            found.append(distance(result(processor, graded), result(processor, even)))
        changes.append(sorted(found)[1])
    assert changes[-1] < 0.1
    assert changes[-1] < 0.55 * changes[0]


@pytest.mark.parametrize("name", list(INDEPENDENT))
def test_renumbering_of_the_nodes_changes_nothing(name):
    outputs = []
    for reorder in (False, True):
        mesh = fd.UnitSquareMesh(9, 7, reorder=reorder)
        spaces, output, _, _ = smooth_problem(mesh)
        u = result(make(name, INDEPENDENT[name], spaces, output), mesh)
        x = mesh.coordinates.dat.data_ro.round(9)
        outputs.append((np.lexsort(x.T), u.dat.data_ro))
    (one, u), (two, v) = outputs
    assert not np.array_equal(one, two)  # the numberings do differ
    assert np.abs(u[one] - v[two]).max() < 1e-12 * max(1.0, np.abs(u).max())


@pytest.mark.parametrize("name", list(INDEPENDENT))
def test_scale_and_place_of_the_domain_do_not_matter(name):
    outputs = []
    for scale, shift in ((1.0, 0.0), (1000.0, 7.0)):
        mesh = fd.UnitSquareMesh(8, 8)
        space = fd.FunctionSpace(mesh, "CG", 1)
        x = column(fd.Function(space).interpolate(fd.sin(5 * fd.SpatialCoordinate(mesh)[0])))
        mesh.coordinates.dat.data[:] = scale * mesh.coordinates.dat.data_ro + shift
        processor = make(name, INDEPENDENT[name], [space], space)
        bcs = [fd.DirichletBC(space, 0.0, 2)]
        geometry = build_geometry(processor.request(), [space], space, bcs)
        outputs.append(processor([x], geometry).detach())
    assert torch.allclose(*outputs, rtol=1e-8, atol=1e-8 * float(outputs[0].abs().max()))


@pytest.mark.parametrize("name", list(INDEPENDENT))
def test_the_number_of_weights_does_not_depend_on_the_mesh(name):
    counts = set()
    for n in (4, 9):
        spaces, output, _, _ = smooth_problem(fd.UnitSquareMesh(n, n))
        processor = make(name, INDEPENDENT[name], spaces, output)
        counts.add(sum(weight.numel() for weight in processor.parameters()))
        assert processor.mesh_independent
    assert len(counts) == 1
    assert not MLP.mesh_independent


MESHES = {
    "triangle": lambda: fd.UnitSquareMesh(3, 3),
    "quadrilateral": lambda: fd.UnitSquareMesh(3, 3, quadrilateral=True),
    "tetrahedron": lambda: fd.UnitCubeMesh(2, 2, 2),
    "hexahedron": lambda: fd.UnitCubeMesh(2, 2, 2, hexahedral=True),
}
FLUX = {"triangle": "RT", "quadrilateral": "RTCF", "tetrahedron": "N1curl", "hexahedron": None}


@pytest.mark.parametrize("cell", list(MESHES))
@pytest.mark.parametrize("name", list(SMALL))
def test_every_family_runs_on_every_cell_with_every_kind_of_space(name, cell):
    mesh = MESHES[cell]()
    cg, dg = fd.FunctionSpace(mesh, "CG", 2), fd.FunctionSpace(mesh, "DG", 0)
    vector = fd.VectorFunctionSpace(mesh, "CG", 1)
    flux = vector if FLUX[cell] is None else fd.FunctionSpace(mesh, FLUX[cell], 1)
    tensor = fd.TensorFunctionSpace(mesh, "DG", 0)
    for inputs, output, conditions in (
        ([dg], cg, True),
        ([cg, tensor], vector, True),
        ([flux, dg], vector * fd.FunctionSpace(mesh, "CG", 1), False),
        ([vector * dg], flux, False),
        ([flux], dg, False),
    ):
        bcs = [fd.DirichletBC(output, 0.0, 1)] if conditions else []
        config = SMALL[name]
        processor = make(name, config, inputs, output)
        geometry = build_geometry(processor.request(), inputs, output, bcs)
        y = processor(random_inputs(inputs, batch=3), geometry)
        assert y.shape == (output.dim(), 3)
        assert torch.isfinite(y).all()
        # Every sample by itself: a batch is no more than its samples.
        x = [x[:, 1:2] for x in random_inputs(inputs, batch=3)]
        assert torch.allclose(processor(x, geometry), y[:, 1:2], rtol=1e-10, atol=1e-10)


def small_problem(name, config=None, vector=False):
    mesh = fd.UnitSquareMesh(3, 2)
    inputs = [fd.FunctionSpace(mesh, "DG", 0), fd.VectorFunctionSpace(mesh, "CG", 1)]
    output = (fd.VectorFunctionSpace if vector else fd.FunctionSpace)(mesh, "CG", 1)
    processor = make(name, config or SMALL[name], inputs, output)
    bcs = [fd.DirichletBC(output, 0.0, 1)]
    return processor, build_geometry(processor.request(), inputs, output, bcs), inputs


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("name", list(SMALL))
def test_gradient_in_the_inputs(name, vector):
    processor, geometry, inputs = small_problem(name, vector=vector)
    xs = [x.requires_grad_() for x in random_inputs(inputs, batch=1)]
    assert torch.autograd.gradcheck(
        lambda *xs: processor(xs, geometry), xs, eps=1e-6, atol=1e-7, rtol=1e-6
    )


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("name", list(SMALL))
def test_gradient_in_the_weights(name, vector):
    processor, geometry, inputs = small_problem(name, vector=vector)
    xs, weights = random_inputs(inputs), list(processor.parameters())
    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in weights]

    def loss(step):
        values = {
            name: w + step * d
            for (name, w), d in zip(processor.named_parameters(), direction, strict=True)
        }
        return torch.func.functional_call(processor, values, (xs, geometry)).square().mean()

    gradient = torch.autograd.grad(loss(0.0), weights)
    slope = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
    h = 1e-6
    with torch.no_grad():
        difference = (loss(h) - loss(-h)) / (2 * h)
    assert float(slope) == pytest.approx(float(difference), rel=1e-6)


@pytest.mark.parametrize("conditions", [True, False])
@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("name", list(SMALL))
def test_every_weight_matters(name, vector, conditions):
    processor, geometry, inputs = small_problem(name, vector=vector)
    if not conditions:
        mesh = inputs[0].mesh()
        output = (fd.VectorFunctionSpace if vector else fd.FunctionSpace)(mesh, "CG", 1)
        geometry = build_geometry(processor.request(), inputs, output)
    processor(random_inputs(inputs), geometry).square().sum().backward()
    for label, weight in processor.named_parameters():
        assert weight.grad is not None, label
        assert weight.grad.abs().max() > 0.0, label


@pytest.mark.parametrize("name", list(SMALL))
def test_config_and_state_make_an_equal_processor(name):
    processor, geometry, inputs = small_problem(name)
    other = processors.create(name, processor.config())
    output = Field(geometry.read.shape[0] or 12, 1, 2)
    other.configure([field(space) for space in inputs], output)
    other.double().load_state_dict(processor.state_dict())
    xs = random_inputs(inputs)
    assert other.request() == processor.request()
    assert torch.equal(other(xs, geometry), processor(xs, geometry))


def test_linear_path_solves_the_poisson_equation():
    mesh = fd.UnitSquareMesh(24, 24)
    space = fd.FunctionSpace(mesh, "CG", 1)
    bcs = [fd.DirichletBC(space, 0.0, "on_boundary")]
    processor = Spectral(channels=4, layers=1, modes=60, points=0)
    processor.configure([field(space)], field(space))
    processor.double()
    with torch.no_grad():
        for weight in processor.parameters():
            weight.zero_()
        # Fit the weights of the path to the solution operator: lambda -> 1 / lambda.
        function = processor.linear.constrained
        geometry = build_geometry(processor.request(), [space], space, bcs)
        spectrum = geometry.basis.constrained
        identity = torch.eye(20, dtype=torch.float64)
        # The second input is the function one.
        function.weight.data = torch.stack([identity, 0.0 * identity], dim=1)
        terms = function(spectrum)[:, 0, :]
        target = spectrum.window / spectrum.eigenvalues
        fit = torch.linalg.lstsq(terms, target[:, None], driver="gelsd").solution
        function.weight.data = torch.stack([fit, 0.0 * fit], dim=1)
        assert (terms @ fit - target[:, None]).abs().max() < 1e-5 * target.max()
    x, y = fd.SpatialCoordinate(mesh)
    load = fd.Function(space).interpolate(fd.sin(2 * fd.pi * x) * y * (1 - y))
    u, v = fd.TrialFunction(space), fd.TestFunction(space)
    solution = fd.Function(space)
    fd.solve(fd.inner(fd.grad(u), fd.grad(v)) * fd.dx == load * v * fd.dx, solution, bcs=bcs)
    with torch.no_grad():
        found = processor([column(load)], geometry)
    error = (found - column(solution)).norm() / column(solution).norm()
    assert float(error) < 5e-3


def test_training_reduces_the_error_of_a_nonlinear_map():
    mesh = fd.UnitSquareMesh(6, 6)
    space = fd.FunctionSpace(mesh, "CG", 1)
    torch.manual_seed(0)
    processor = Spectral(channels=8, layers=2, modes=16, points=0)
    processor.configure([field(space)], field(space))
    geometry = build_geometry(processor.request(), [space], space).float()
    spectrum = geometry.basis.free
    x = spectrum.synthesis @ torch.randn(16, 64)
    target = spectrum.synthesis @ (spectrum.analysis @ x.square())
    optimiser = torch.optim.Adam(processor.parameters(), lr=5e-3)
    for _ in range(150):
        optimiser.zero_grad()
        loss = (processor([x], geometry) - target).norm() / target.norm()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.3


@pytest.mark.parametrize(
    ("make_bad", "error", "message"),
    [
        (lambda: Spectral(channels=0), ValueError, "channels must be at least 1, got 0"),
        (lambda: Spectral(modes=2.5), TypeError, "modes must be an integer, got 2.5"),
        (lambda: Spectral(basis="cosine"), ValueError, "one of 'auto', 'scalar', 'vector'"),
        (lambda: Graph(rounds=True), TypeError, "rounds must be an integer, got True"),
        (lambda: Graph(rounds=np.True_), TypeError, "rounds must be an integer"),
        (lambda: Spectral(modes=np.float64(9)), TypeError, "modes must be an integer"),
        (lambda: MLP(hidden=64), TypeError, "hidden must be a sequence of integers, got 64"),
        (
            lambda: MLP(hidden=np.array(64)),
            TypeError,
            "hidden must be a sequence of integers, got 64",
        ),
        (
            lambda: MLP(hidden=np.array([8.0])),
            TypeError,
            r"hidden\[0\] must be an integer, got 8.0",
        ),
        (lambda: MLP(hidden=[64, -1]), ValueError, r"hidden\[1\] must be at least 1"),
        (lambda: MLP(activation="sine"), ValueError, "one of 'gelu', 'relu', 'silu', 'tanh'"),
        (
            lambda: processors.create("fourier", {}),
            ValueError,
            "known are attention, deeponet, elliptic, graph, graph_multigrid",
        ),
        (lambda: processors.create("mlp", {"width": 3}), ValueError, "cannot be built from"),
        (
            lambda: Spectral(channels=7).configure([Field(9, 1, 2)], Field(18, 2, 2)),
            ValueError,
            "make channels=7 a multiple of 2",
        ),
        (
            lambda: Spectral(basis="vector").configure([Field(9, 1, 2)], Field(9, 1, 2)),
            ValueError,
            "basis='vector' needs an output with 2 components",
        ),
    ],
)
def test_wrong_calls_say_what_was_expected(make_bad, error, message):
    with pytest.raises(error, match=message):
        make_bad()


@pytest.mark.parametrize(
    ("processor", "plain"),
    [
        (lambda: Spectral(channels=np.int64(8), degree=np.int8(1)), {"channels": 8, "degree": 1}),
        (lambda: MLP(hidden=np.array([8, 4])), {"hidden": [8, 4]}),
        (lambda: MLP(hidden=(np.int32(8), 4)), {"hidden": [8, 4]}),
        (
            lambda: Resolvent(largest=np.float32(8), smallest=np.int64(1)),
            {"largest": 8.0, "smallest": 1.0},
        ),
    ],
)
def test_numbers_of_numpy_are_taken_and_kept_as_plain_ones(processor, plain):
    config = json.loads(json.dumps(processor().config()))
    assert {name: config[name] for name in plain} == plain


def test_geometry_of_another_family_or_another_number_of_inputs_is_refused():
    graph, geometry, inputs = small_problem("graph")
    spectral, _, _ = small_problem("spectral")
    xs = random_inputs(inputs)
    with pytest.raises(ValueError, match="holds no eigenfunctions"):
        spectral(xs, geometry)
    with pytest.raises(ValueError, match="Got 1 inputs for a geometry of 2"):
        graph(xs[:1], geometry)
    with pytest.raises(ValueError, match="holds no edges"):
        graph(xs, small_problem("spectral")[1])


def test_a_name_is_given_only_once():
    class Impostor(MLP):
        pass

    with pytest.raises(ValueError, match="belongs to MLP already"):
        processors.register(Impostor)
    assert issubclass(Impostor, Processor)
