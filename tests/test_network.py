"""The whole network: shapes, gradients, exact boundary values, files, other meshes."""

import copy
import json

import numpy as np
import pytest
import safetensors
import torch
from families import FAMILIES, random_function, space
from firedrake import (
    Constant,
    DirichletBC,
    Function,
    FunctionSpace,
    SpatialCoordinate,
    UnitCubeMesh,
    UnitSquareMesh,
    VectorFunctionSpace,
    as_vector,
    assemble,
    dx,
    sin,
)
from test_encoders_decoders import boundary_condition

import spon
from spon import Decoder, Encoder, OperatorNetwork, fem, processors


def processor(kind):
    return {
        "mlp": lambda: processors.MLP(hidden=(8, 8)),
        "spectral": lambda: processors.Spectral(channels=6, layers=2, modes=8),
        "graph": lambda: processors.Graph(channels=4, rounds=2),
    }[kind]()


KINDS = ("mlp", "spectral", "graph")


def network(kind="mlp", n=4, dtype=torch.float64, degree=2):
    torch.manual_seed(0)
    mesh = UnitSquareMesh(n, n)
    F, U = FunctionSpace(mesh, "DG", 0), FunctionSpace(mesh, "CG", degree)
    bcs = DirichletBC(U, sin(SpatialCoordinate(mesh)[1]), (1, 2))
    net = OperatorNetwork(Encoder(F), processor(kind), Decoder(U, bcs), dtype=dtype)
    for p in net.parameters():  # no weight may stay at zero and hide a path
        torch.nn.init.normal_(p, std=0.3)
    return net, F, U


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_functions_and_tensors_give_the_same(kind, dtype):
    net, F, U = network(kind, dtype=dtype)
    fs = [random_function(F, s) for s in range(3)]
    y = net(fem.to_tensor(fs, dtype))
    assert y.shape == (3, U.dim())
    assert y.dtype == dtype
    out = net(fs)
    free = ~net.decoder.constrained
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(fem.to_tensor(out, dtype)[:, free], y[:, free], **close)
    single = net(fs[0])
    assert isinstance(single, Function)
    assert single.function_space() == U
    torch.testing.assert_close(fem.to_tensor(single), fem.to_tensor(out[0]), **close)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("cell", "family", "degree"), FAMILIES)
def test_boundary_values_are_exact_for_random_weights(cell, family, degree, kind, dtype):
    if kind != "mlp" and degree > 2:
        pytest.skip("the processor sees the same geometry as for degree 2")
    torch.manual_seed(1)
    V = space(cell, family, degree)
    bcs = boundary_condition(V, (1, 3))
    if not bcs:
        pytest.skip("a discontinuous space has no dofs on the boundary")
    net = OperatorNetwork(Encoder(V), processor(kind), Decoder(V, bcs), dtype=dtype)
    for p in net.parameters():
        torch.nn.init.normal_(p)
    out = net(random_function(V))
    expected = out.copy(deepcopy=True)
    for bc in bcs:
        bc.apply(expected)
    assert float((fem.to_tensor(out) - fem.to_tensor(expected)).abs().max()) == 0.0
    assert torch.isfinite(fem.to_tensor(out)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_whole_network_by_central_differences(kind):
    net, F, U = network(kind)
    x = fem.to_tensor([random_function(F, s) for s in range(2)]).requires_grad_()
    w = torch.randn(2, U.dim(), dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def value():
        return (net(x) * w).sum()

    variables = [x, *net.parameters()]
    gradients = torch.autograd.grad(value(), variables)
    rng = torch.Generator().manual_seed(2)
    for variable, gradient in zip(variables, gradients, strict=True):
        direction = torch.randn(variable.shape, generator=rng, dtype=torch.float64)
        exact = float((gradient * direction).sum())
        h = 1e-5
        with torch.no_grad():
            variable += h * direction
            up = float(value())
            variable -= 2 * h * direction
            down = float(value())
            variable += h * direction
        assert (up - down) / (2 * h) == pytest.approx(exact, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_several_inputs_of_several_spaces(kind):
    mesh = UnitSquareMesh(3, 3)
    spaces = [
        FunctionSpace(mesh, "DG", 0),
        VectorFunctionSpace(mesh, "CG", 1),
        FunctionSpace(mesh, "RT", 1),
    ]
    U = FunctionSpace(mesh, "CG", 1)
    net = OperatorNetwork([Encoder(V) for V in spaces], processor(kind), Decoder(U))
    out = net(*[random_function(V) for V in spaces])
    assert out.function_space() == U
    # Each input matters.
    base = fem.to_tensor(out)
    for i in range(3):
        changed = [random_function(V, seed=5 if i == j else 0) for j, V in enumerate(spaces)]
        assert not torch.equal(fem.to_tensor(net(*changed)), base)


def test_boundary_data_for_each_sample_as_functions_and_tensors():
    net, F, U = network()
    fs, gs = ([random_function(V, s) for s in range(2)] for V in (F, U))
    on = net.decoder.constrained
    y = net(fem.to_tensor(fs), boundary=fem.to_tensor(gs))
    assert torch.equal(y[:, on], fem.to_tensor(gs)[:, on])
    for out, g in zip(net(fs, boundary=gs), gs, strict=True):
        assert torch.equal(fem.to_tensor(out)[on], fem.to_tensor(g)[on])


def test_calibration_undoes_units():
    net, F, U = network("spectral")
    x, y = (
        torch.randn(20, F.dim(), dtype=torch.float64),
        torch.randn(20, U.dim(), dtype=torch.float64),
    )
    x, y = 3e6 + 1e5 * x, 1e-9 * y
    assert not net.calibrated
    net.calibrate([x], y)
    assert net.calibrated
    scaled = fem.to_function(net.input_norms[0](x), F)
    means = [assemble(f * dx) for f in scaled]
    squares = [assemble(f**2 * dx) for f in scaled]
    assert np.mean(means) == pytest.approx(0, abs=1e-9)
    assert np.mean(squares) == pytest.approx(1, rel=1e-9)
    free = ~net.decoder.constrained
    assert 1e-12 < float(net(x)[:, free].detach().abs().max()) < 1e-6


def test_scalar_parameters_are_trained():
    mesh = UnitSquareMesh(4, 4)
    V, R = FunctionSpace(mesh, "CG", 1), FunctionSpace(mesh, "R", 0)
    torch.manual_seed(0)
    f, c = 1 + torch.rand(20, V.dim()), 1e6 * (2 + torch.rand(20, 1))
    for U, y in (
        (V, 1e-3 * c * f),
        (R, 1e-3 * c * f.mean(1, keepdim=True)),
        (V * R, torch.cat([f, c], 1)),
    ):
        net = OperatorNetwork([Encoder(V), Encoder(R)], processor("spectral"), Decoder(U))
        data = spon.Dataset.from_arrays({"f": f, "c": c}, {"u": y}, {"f": V, "c": R, "u": U})
        history = spon.fit(net, data, epochs=2, progress=False)
        assert np.isfinite(history.train).all()
        assert float(net.input_norms[1].scale[0]) == pytest.approx(float(c.std()), rel=0.1)


@pytest.mark.parametrize("family", ["RT", "N1curl", "vector CG"])
def test_scales_do_not_depend_on_the_mesh(family):
    scales = []
    for n in (4, 16):
        V = space("triangle", family, 1, UnitSquareMesh(n, n))
        x = SpatialCoordinate(V.mesh())
        f = Function(V).interpolate(as_vector([1 + x[0], sin(x[1])]))
        net = OperatorNetwork(Encoder(V), processor("spectral"), Decoder(V), dtype=torch.float64)
        net.calibrate([fem.to_tensor([f])], fem.to_tensor([f]))
        scales.append(float(net.output_norm.scale[0]))
    exact = np.sqrt(7 / 3 + 0.5 - np.sin(2) / 4)
    assert scales[0] == pytest.approx(exact, rel=0.05)
    assert scales[1] == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gives_the_same_network_back(kind, tmp_path):
    net, F, U = network(kind)
    net.calibrate(
        [torch.randn(5, F.dim(), dtype=torch.float64)], torch.randn(5, U.dim(), dtype=torch.float64)
    )
    net.save(tmp_path / "net.spon")
    assert [p.name for p in tmp_path.iterdir()] == ["net.spon"]
    again = spon.load(tmp_path / "net.spon", UnitSquareMesh(4, 4))
    x = torch.randn(3, F.dim(), dtype=torch.float64)
    assert again.calibrated
    assert torch.equal(again(x), net(x))
    again.save(tmp_path / "second.spon")
    third = spon.load(tmp_path / "second.spon", UnitSquareMesh(4, 4))
    assert torch.equal(third(x), net(x))


def test_a_file_holds_encoder_options_and_component_conditions(tmp_path):
    mesh = UnitSquareMesh(3, 3)
    F, U = FunctionSpace(mesh, "CG", 1), VectorFunctionSpace(mesh, "CG", 2)
    bcs = [
        DirichletBC(U, Constant((1.0, 2.0)), 1),
        DirichletBC(U.sub(1), SpatialCoordinate(mesh)[0], 2),
    ]
    points = np.random.default_rng(0).random((60, 2))
    encoders = [
        Encoder(F, source=FunctionSpace(mesh, "DG", 1), method="project"),
        Encoder(F, points=points, smoothing=1e-3),
        Encoder(F, grid=(9, 8), box=((0, 1), (0, 1))),
    ]
    net = OperatorNetwork(encoders, processor("mlp"), Decoder(U, bcs))
    net.save(tmp_path / "net.spon")
    again = spon.load(tmp_path / "net.spon", UnitSquareMesh(3, 3))
    inputs = [torch.randn(2, *e.input_shape) for e in encoders]
    assert torch.equal(again(*inputs), net(*inputs))


@pytest.mark.parametrize("kind", ["spectral", "graph"])
def test_another_mesh_shares_the_weights(kind, tmp_path):
    net, *_ = network(kind)
    fine = UnitSquareMesh(8, 8)
    other = net.on(fine)
    assert list(map(id, other.parameters())) == list(map(id, net.parameters()))
    x = SpatialCoordinate(fine)
    fine_F = FunctionSpace(fine, "DG", 0)
    out = other(Function(fine_F).interpolate(x[0]))
    on = other.decoder.constrained
    expected = Function(other.decoder.space).interpolate(sin(x[1]))
    torch.testing.assert_close(
        fem.to_tensor(out)[on], fem.to_tensor(expected)[on], rtol=0, atol=1e-14
    )
    net.save(tmp_path / "net.spon")
    with pytest.raises(ValueError, match="same_mesh=False"):
        spon.load(tmp_path / "net.spon", fine)
    with pytest.raises(ValueError, match="vary in space"):
        spon.load(tmp_path / "net.spon", fine, same_mesh=False)
    moved = spon.load(
        tmp_path / "net.spon",
        fine,
        bcs=lambda V: DirichletBC(V, sin(SpatialCoordinate(V.mesh())[1]), (1, 2)),
        same_mesh=False,
    )
    f = Function(fine_F).interpolate(x[0] * x[1])
    assert torch.equal(fem.to_tensor(moved(f)), fem.to_tensor(other(f)))


@pytest.mark.parametrize("kind", ["spectral", "graph"])
def test_a_copy_on_another_mesh_shares_all_numbers_whatever_the_precision(kind, tmp_path):
    net, F, U = network(kind, dtype=torch.float32)
    same = UnitSquareMesh(4, 4)  # another mesh, the same cells: answers agree
    other = net.on(same)
    f, g = random_function(F, 0), Function(FunctionSpace(same, "DG", 0))
    g.dat.data[:] = f.dat.data_ro
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(6, U.dim(), generator=generator, dtype=torch.float64)
    x = 50 * torch.randn(6, F.dim(), generator=generator, dtype=torch.float64)
    data = spon.Dataset.from_arrays({"f": x}, {"u": 1e-3 * y}, {"f": F, "u": U})

    def check(dtype):
        assert net.dtype == other.dtype == dtype
        expected = fem.to_tensor(net(f))
        assert torch.equal(fem.to_tensor(other(g)), expected)
        z = x[:2].to(dtype)
        assert torch.equal(other(z), net(z))
        assert torch.equal(other.output_norm.scale, net.output_norm.scale)

    spon.fit(net, data, epochs=1, progress=False, validation=None, dtype=torch.float64)
    check(torch.float64)
    net.float()
    check(torch.float32)
    other.double()  # from the other side, too
    check(torch.float64)
    net.float()
    other.calibrate([x.float()], y.float())
    check(torch.float32)
    assert net.output_norm.scale > 0.5
    net.save(tmp_path / "net.spon")
    loaded = spon.load(tmp_path / "net.spon", F.mesh())
    loaded.output_norm.scale.fill_(7.0)
    other.load_state_dict(loaded.state_dict())
    assert net.output_norm.scale == 7.0
    assert {"input_norms.0.mean", "output_norm.scale", "output_norm.fitted"} <= set(
        net.state_dict()
    )
    twin = copy.deepcopy(net)
    twin.output_norm.scale.fill_(3.0)
    assert net.output_norm.scale == other.output_norm.scale == 7.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_copied_network_is_independent(kind):
    net, F, _ = network(kind)
    twin = copy.deepcopy(net)
    x = torch.randn(2, F.dim(), dtype=torch.float64)
    before = net(x)
    assert torch.equal(twin(x), before)
    for p in twin.parameters():
        p.data.add_(1.0)
    twin.float()
    assert torch.equal(net(x), before)
    mesh = F.mesh()
    projecting = Encoder(F, source=FunctionSpace(mesh, "CG", 1), method="project")
    points = Encoder(FunctionSpace(mesh, "CG", 1), points=np.random.default_rng(0).random((200, 2)))
    for encoder in (projecting, points):
        y = torch.randn(2, *encoder.input_shape, dtype=torch.float64)
        assert torch.equal(copy.deepcopy(encoder)(y), encoder(y))


def test_nothing_is_lost_on_the_way_through_single_precision():
    net, F, U = network("spectral")
    x = torch.randn(2, F.dim(), dtype=torch.float64)
    net.float()
    net.double()
    y = SpatialCoordinate(U.mesh())
    prescribed = fem.to_tensor(Function(U).interpolate(sin(y[1])))
    on = net.decoder.constrained
    assert float((net(x)[:, on] - prescribed[on]).detach().abs().max()) == 0.0
    encoder = Encoder(U, source=FunctionSpace(U.mesh(), "CG", 1))
    z = torch.randn(1, *encoder.input_shape, dtype=torch.float64)
    expected = encoder(z)
    assert torch.equal(encoder.float().double()(z), expected)


def test_networks_of_different_precision_share_nothing():
    mesh = UnitSquareMesh(3, 3)
    V, U = FunctionSpace(mesh, "CG", 1), FunctionSpace(mesh, "CG", 2)
    nets = [
        OperatorNetwork(Encoder(U, source=V), processor("mlp"), Decoder(U), dtype=dtype)
        for dtype in (torch.float64, torch.float32)
    ]
    for net in nets:
        assert net(torch.zeros(1, V.dim(), dtype=net.dtype)).dtype == net.dtype
        assert net(Function(V)).function_space() == U  # through the source
        assert net(Function(FunctionSpace(mesh, "DG", 1))).function_space() == U  # any space


def test_a_decoder_does_not_follow_later_changes_of_its_conditions(tmp_path):
    mesh = UnitSquareMesh(3, 3)
    U = FunctionSpace(mesh, "CG", 1)
    c, g = Constant(1.0), Function(U).assign(3.0)
    bcs = [DirichletBC(U, c, 1), DirichletBC(U, g, 2)]
    net = OperatorNetwork(Encoder(U), processor("graph"), Decoder(U, bcs))
    c.assign(2.0)
    g.assign(4.0)
    file = tmp_path / "new folder" / "net.spon"
    net.save(file)
    on = net.decoder.constrained
    assert set(net.decoder.values[on].tolist()) == {1.0, 3.0}
    loaded = spon.load(file, mesh).decoder
    assert torch.equal(loaded.values, net.decoder.values)
    moved = net.on(UnitSquareMesh(5, 5)).decoder
    assert set(moved.values[moved.constrained].tolist()) == {1.0, 3.0}
    with pytest.raises(ValueError, match="comes from a file"):
        spon.load(file, mesh).on(UnitSquareMesh(5, 5))
    again = spon.load(file, mesh).on(UnitSquareMesh(5, 5), bcs=lambda V: DirichletBC(V, 7.0, 1))
    assert set(again.decoder.values[again.decoder.constrained].tolist()) == {7.0}


def saved(tmp_path, kind="mlp"):
    net, *_ = network(kind)
    net.save(tmp_path / "net.spon")
    return tmp_path / "net.spon"


def with_header(path, **changes):
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["spon"]) | changes
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    safetensors.torch.save_file(tensors, path, metadata={"spon": json.dumps(header)})
    return path


WRONG = [
    (lambda n, F, U, p: n(), ValueError, "takes 1 inputs.*got 0"),
    (lambda n, F, U, p: n(torch.zeros(2, 3).double()), ValueError, r"shape \(2, 3\)"),
    (lambda n, F, U, p: n(torch.zeros(0, F.dim()).double()), ValueError, "empty batch"),
    (
        lambda n, F, U, p: n(torch.zeros(2, F.dim())),
        TypeError,
        "float32 tensor for a torch.float64 network",
    ),
    (
        lambda n, F, U, p: n(Function(U.mesh() and VectorFunctionSpace(U.mesh(), "CG", 1))),
        ValueError,
        "value shape",
    ),
    (
        lambda n, F, U, p: n(Function(F), boundary=Function(F)),
        ValueError,
        "functions of the output space",
    ),
    (
        lambda n, F, U, p: n.on(UnitSquareMesh(8, 8)),
        ValueError,
        "weights of a MLP belong to the dofs of one mesh",
    ),
    (
        lambda n, F, U, p: n.calibrate(
            [torch.full((2, F.dim()), torch.nan)], torch.zeros(2, U.dim())
        ),
        ValueError,
        "NaN or infinity in 2 of 2",
    ),
    (
        lambda n, F, U, p: OperatorNetwork([], n.processor, n.decoder),
        ValueError,
        "at least one encoder",
    ),
    (lambda n, F, U, p: OperatorNetwork(n.decoder, n.processor, n.decoder), TypeError, "Encoder"),
    (
        lambda n, F, U, p: OperatorNetwork(Encoder(F), torch.nn.Linear(2, 2), n.decoder),
        TypeError,
        "expected a Processor, got Linear",
    ),
    (
        lambda n, F, U, p: OperatorNetwork(
            Encoder(F), processor("mlp"), n.decoder, dtype=torch.float16
        ),
        TypeError,
        "float32 or float64, not torch.float16",
    ),
    (
        lambda n, F, U, p: OperatorNetwork(
            Encoder(FunctionSpace(U.mesh(), "CG", 1)), n.processor, n.decoder
        ),
        ValueError,
        "MLP has weights for inputs and output .* make a new processor",
    ),
    (
        lambda n, F, U, p: n([Function(F)], boundary=[Function(U), Function(U)]),
        ValueError,
        "boundary data for 2 samples and 1",
    ),
    (lambda n, F, U, p: n([Function(F)], boundary=[]), ValueError, "empty sequence of boundary"),
    (
        lambda n, F, U, p: n(
            torch.zeros(2, F.dim()).double(), boundary=torch.zeros(3, U.dim()).double()
        ),
        ValueError,
        "boundary data for 3 samples and 2",
    ),
    (lambda n, F, U, p: spon.load(saved(p), None), TypeError, "Firedrake mesh, got NoneType"),
    (lambda n, F, U, p: spon.load(p, U.mesh()), FileNotFoundError, "no network file"),
    (lambda n, F, U, p: spon.load(p / "none.spon", U.mesh()), FileNotFoundError, "no network file"),
    (
        lambda n, F, U, p: spon.load(saved(p), UnitSquareMesh(5, 5)),
        ValueError,
        r"holds a network for DG 0 on 32 triangles.*leads to DG 0 on 50",
    ),
    (
        lambda n, F, U, p: spon.load(saved(p), UnitSquareMesh(5, 5), same_mesh=False),
        ValueError,
        "belong to the dofs of that mesh",
    ),
    (
        lambda n, F, U, p: spon.load(saved(p), UnitCubeMesh(2, 2, 2)),
        ValueError,
        "tetrahedron cells in 3D",
    ),
    (
        lambda n, F, U, p: spon.load(with_header(saved(p), format=99), U.mesh()),
        ValueError,
        "has format 99",
    ),
    (
        lambda n, F, U, p: spon.load(
            with_header(saved(p), processor={"name": "oracle", "config": {}}), U.mesh()
        ),
        ValueError,
        "No processor is called 'oracle'",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG)
def test_wrong_calls_say_what_was_given(call, error, message, tmp_path):
    net, F, U = network()
    with pytest.raises(error, match=message):
        call(net, F, U, tmp_path)


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "text.spon").write_text("weights")
    with pytest.raises(ValueError, match="not a network file of spon"):
        spon.load(tmp_path / "text.spon", UnitSquareMesh(2, 2))
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "bare.spon")
    with pytest.raises(ValueError, match="not a network file of spon"):
        spon.load(tmp_path / "bare.spon", UnitSquareMesh(2, 2))
