"""Bounds hold between the nodes too, and functions well inside are not touched."""

import copy
import itertools
import json
from math import factorial

import numpy as np
import pytest
import safetensors.torch
import torch
from families import mesh_of_cells
from firedrake import (
    Constant,
    DirichletBC,
    Function,
    FunctionSpace,
    SpatialCoordinate,
    UnitIntervalMesh,
    UnitSquareMesh,
    VectorFunctionSpace,
    assemble,
    ds,
    dx,
    sin,
)

import spon
from spon import Decoder, fem
from spon.promises import soft_clip

SPACES = [
    (cell, family, degree)
    for cell in ("triangle", "tetrahedron")
    for family in ("CG", "DG")
    for degree in (1, 2, 3, 4)
]
SPACES += [("triangle", "DG", 0)]


def values_in_cells(f, points):
    """Values at barycentric points of every cell, shape (cells, points), tabulated by FIAT."""
    V = f.function_space()
    element = V.finat_element.fiat_equivalent
    order = (0,) * (points.shape[1] - 1)
    table = element.tabulate(0, points[:, 1:])[order]
    return f.dat.data_ro[V.cell_node_list] @ table


def barycentric(cell, n=1000):
    rng = np.random.default_rng(0)
    corners = 3 if cell == "triangle" else 4
    inside = rng.dirichlet(np.ones(corners), size=n)
    edges = inside.copy()
    edges[:, 0] = 0
    edges /= edges.sum(axis=1, keepdims=True)
    return np.concatenate([inside, edges, np.eye(corners)])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize(("cell", "family", "degree"), SPACES)
def test_bounds_hold_at_a_thousand_points_of_each_cell(cell, family, degree, dtype, tolerance):
    V = FunctionSpace(mesh_of_cells(cell), family, degree)
    points = barycentric(cell)
    generator = torch.Generator().manual_seed(0)
    for lower, upper in ((0.0, 1.0), (-2.0, None), (None, 3.0)):
        decoder = Decoder(V, bounds=(lower, upper)).to(dtype)
        for amplitude in (1.0, 1e6):
            x = amplitude * torch.randn(1, V.dim(), generator=generator, dtype=dtype)
            (f,) = fem.to_function(decoder(x).double(), V)
            v = values_in_cells(f, points)
            size = max(1.0, np.abs(v).max())
            if lower is not None:
                assert v.min() >= lower - tolerance * size
                assert amplitude == 1 or v.min() < lower + 0.05  # the bound is felt
            if upper is not None:
                assert v.max() <= upper + tolerance * size
                assert amplitude == 1 or v.max() > upper - 0.05


@pytest.mark.parametrize(("cell", "family", "degree"), SPACES)
def test_functions_well_inside_come_back_unchanged(cell, family, degree):
    V = FunctionSpace(mesh_of_cells(cell), family, degree)
    x = SpatialCoordinate(V.mesh())
    f = Function(V).interpolate(0.5 + 0.3 * sin(4 * x[0]) * x[1])
    (g,) = Decoder(V, bounds=(0, 1)).function(fem.to_tensor([f]))
    np.testing.assert_allclose(g.dat.data_ro, f.dat.data_ro, rtol=0, atol=1e-14)
    (h,) = Decoder(V, bounds=(0, 1), mean=float(mean(f))).function(fem.to_tensor([f]))
    np.testing.assert_allclose(h.dat.data_ro, f.dat.data_ro, rtol=0, atol=1e-12)


def mean(f):
    mesh = f.function_space().mesh()
    return assemble(f * dx) / assemble(Constant(1.0) * dx(domain=mesh))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("degree", [1, 2, 3, 4])
@pytest.mark.parametrize("cell", ["triangle", "tetrahedron"])
def test_bounds_mean_and_traces_together(cell, degree, dtype, tolerance):
    V = FunctionSpace(mesh_of_cells(cell), "CG", degree)
    x = SpatialCoordinate(V.mesh())
    points = barycentric(cell)
    bcs = [DirichletBC(V, 0.9 * x[1], 1), DirichletBC(V, 1.0, 2)]
    generator = torch.Generator().manual_seed(0)
    for m, bounds in ((0.5, (0, 1)), (0.4, (0, 1)), (0.7, (0, None)), (0.3, (None, 1))):
        decoder = Decoder(V, bcs, bounds=bounds, mean=m).to(dtype)
        z = 10 * torch.randn(2, V.dim(), generator=generator, dtype=dtype)
        for f in fem.to_function(decoder(z).double(), V):
            v = values_in_cells(f, points)
            size = np.abs(v).max()
            assert mean(f) == pytest.approx(m, abs=tolerance * size)
            assert bounds[0] is None or v.min() >= bounds[0] - tolerance * size
            assert bounds[1] is None or v.max() <= bounds[1] + tolerance * size
            assert assemble((f - 1) ** 2 * ds(2)) <= tolerance**2
        f, g = decoder.function(z, mean=torch.tensor([0.45, 0.55], dtype=torch.float64))
        assert mean(f) == pytest.approx(0.45, abs=1e-12) and mean(g) == pytest.approx(0.55)


def test_vectors_are_bounded_by_component():
    V = VectorFunctionSpace(mesh_of_cells("triangle"), "CG", 2)
    decoder = Decoder(V, DirichletBC(V.sub(0), 0.5, 1), bounds=(-1, 1), mean=(0.1, -0.2))
    z = 100 * torch.randn(1, V.dim(), generator=torch.Generator().manual_seed(0)).double()
    (f,) = decoder.function(z)
    for i, m in enumerate((0.1, -0.2)):
        component = Function(FunctionSpace(V.mesh(), "CG", 2)).interpolate(f[i])
        v = values_in_cells(component, barycentric("triangle"))
        assert -1 - 1e-12 <= v.min() < v.max() <= 1 + 1e-12
        assert mean(component) == pytest.approx(m, abs=1e-12)


@pytest.mark.parametrize("degree", [2, 3, 4])
@pytest.mark.parametrize("cell", ["triangle", "tetrahedron"])
def test_the_change_of_basis_gives_bernstein_coefficients(cell, degree):
    """Evaluated by the Bernstein polynomials' own formula, in the coefficients' own places."""
    V = FunctionSpace(mesh_of_cells(cell), "CG", degree)
    bounds = Decoder(V, bounds=(0, 1)).kept.pipeline.bounds
    x = torch.randn(V.dim(), generator=torch.Generator().manual_seed(0)).double()
    b = bounds.to_bernstein(x[:, None])[:, 0].numpy()[V.cell_node_list]
    (f,) = fem.to_function(x[None], V)
    points = barycentric(cell, 50)
    wanted = values_in_cells(f, points)
    corners = points.shape[1]
    alphas = [a for a in itertools.product(range(degree + 1), repeat=corners) if sum(a) == degree]
    table = np.array(
        [
            factorial(degree) / np.prod([factorial(i) for i in a]) * np.prod(points**a, axis=1)
            for a in alphas
        ]
    )
    # The same polynomial, whatever the order: coefficients found by a fit are those of the map.
    found = np.linalg.lstsq(table.T, wanted.T, rcond=None)[0].T
    np.testing.assert_allclose(np.sort(found, axis=1), np.sort(b, axis=1), rtol=0, atol=1e-9)


def test_gradients_are_right_and_reach_values_far_outside():
    V = FunctionSpace(mesh_of_cells("triangle"), "CG", 2)
    bc = DirichletBC(V, 0.5, 1)
    z = torch.randn(2, V.dim(), generator=torch.Generator().manual_seed(0)).double()
    z.requires_grad_()
    for given in ({}, {"mean": 0.4}):
        assert torch.autograd.gradcheck(Decoder(V, bc, bounds=(0, 1), **given), z)
    x = torch.tensor([-5.0, -0.01, 0.5, 1.2, 30.0], dtype=torch.float64, requires_grad=True)
    y = soft_clip(x, 0.0, 1.0, 0.05)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert (slope > 1e-7).all() and slope[2] == 1
    assert (y > 0).all() and (y < 1).all()


@pytest.mark.parametrize("bounds", [(0.0, None), (None, 0.0), (273.0, None), (None, -5.0)])
@pytest.mark.parametrize("degree", [1, 2])
def test_the_margin_of_one_bound_is_of_the_size_of_the_data(bounds, degree):
    V = FunctionSpace(mesh_of_cells("triangle"), "CG", degree)
    x = SpatialCoordinate(V.mesh())
    bound = bounds[0] if bounds[1] is None else bounds[1]
    inwards = 1.0 if bounds[1] is None else -1.0
    f = fem.to_tensor([Function(V).interpolate(1e-6 * inwards * (1 + 0.3 * sin(4 * x[0])))]) + bound
    z = bound + 1e-6 * torch.randn(3, V.dim(), generator=torch.Generator().manual_seed(0)).double()
    decoder = Decoder(V, bounds=bounds)
    decoder.calibrate(f)
    # The size of the distance from the bound, by Firedrake's own quadrature.
    (g,) = fem.to_function(f, V)
    area = assemble(Constant(1.0) * dx(domain=V.mesh()))
    size = (assemble((g - bound) ** 2 * dx) / area) ** 0.5
    assert float(decoder.bounds.margin.value) == pytest.approx(0.05 * size, rel=0.02)
    moved = decoder.on(mesh_of_cells("triangle"))
    for bent in (decoder, moved, copy.deepcopy(decoder).to(torch.float32)):
        u = bent(f) - bound
        torch.testing.assert_close(u, f - bound, rtol=0, atol=1e-12 * max(1.0, abs(bound)))
        out = inwards * (bent(1e6 * (z - bound) + bound) - bound)
        points = barycentric("triangle", 50)
        for h in fem.to_function(inwards * (bent(z) - bound), V):
            assert values_in_cells(h, points).min() > -1e-14 * max(1.0, abs(bound))
        assert out.max() > 1e-3


def test_a_network_with_one_bound_learns_small_fields(tmp_path):
    mesh = mesh_of_cells("triangle")
    V = FunctionSpace(mesh, "CG", 1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, V.dim(), generator=generator)
    y = 1e-4 * (1 + 0.3 * torch.rand(8, V.dim(), generator=generator))
    data = spon.Dataset.from_arrays({"f": x}, {"u": y}, {"f": V, "u": V})
    options = {"progress": False, "validation": None, "checkpoint": tmp_path / "run.pt"}

    def fresh():
        torch.manual_seed(0)
        decoder = Decoder(V, bounds=(0, None))
        return spon.OperatorNetwork(spon.Encoder(V), spon.processors.Graph(4, 1), decoder)

    net = fresh()
    fine = net.on(UnitSquareMesh(5, 5))
    spon.fit(net, data, epochs=2, **options)
    assert spon.evaluate(net, data).mean() < 0.2
    margin = net.decoder.bounds.margin
    assert 0.04e-4 < float(margin.value) < 0.07e-4
    # Copies on other meshes, files, and a run that goes on have it too.
    assert fine.decoder.bounds.margin.value is margin.value
    net.save(tmp_path / "net.spon")
    loaded = spon.load(tmp_path / "net.spon", mesh)
    assert torch.equal(loaded(x), net(x))
    resumed = fresh()
    spon.fit(resumed, data, epochs=2, **options)
    assert torch.equal(resumed(x), net(x))
    other = spon.load(tmp_path / "net.spon", mesh, promises={"bounds": (0, 1)})
    assert float(other.decoder.bounds.margin.value) == 0.05


def test_networks_from_before_margins_were_stored_keep_theirs(tmp_path):
    mesh = mesh_of_cells("triangle")
    V = FunctionSpace(mesh, "CG", 1)
    x = torch.randn(4, V.dim(), generator=torch.Generator().manual_seed(0))
    data = spon.Dataset.from_arrays({"f": x}, {"u": 1e-4 * x.abs()}, {"f": V, "u": V})
    options = {"progress": False, "validation": None, "checkpoint": tmp_path / "run.pt"}

    def fresh():
        decoder = Decoder(V, bounds=(0, None))
        return spon.OperatorNetwork(spon.Encoder(V), spon.processors.Graph(4, 1), decoder)

    net = fresh()
    spon.fit(net, data, epochs=1, **options)
    net.decoder.bounds.margin.value.fill_(0.05)
    net.save(tmp_path / "net.spon")
    with safetensors.safe_open(tmp_path / "net.spon", framework="pt") as file:
        header = json.loads(file.metadata()["spon"])
        tensors = {k: file.get_tensor(k) for k in file.keys() if "margin" not in k}  # noqa: SIM118
    old = tmp_path / "old.spon"
    metadata = {"spon": json.dumps(header | {"format": 2})}
    safetensors.torch.save_file(tensors, old, metadata=metadata)
    loaded = spon.load(old, mesh)
    assert torch.equal(loaded(x), net(x))
    state = torch.load(tmp_path / "run.pt", weights_only=True)
    for weights in (state["weights"], state["state"]["best"]):
        (late,) = [name for name in weights if "margin" in name]
        del weights[late]
    torch.save(state, tmp_path / "run.pt")
    resumed = fresh()
    spon.fit(resumed, data, epochs=1, **options)
    assert float(resumed.decoder.bounds.margin.value) == 0.05


@pytest.mark.parametrize("degree", [1, 2, 4])
@pytest.mark.parametrize("bounds", [(293.15, 400.0), (293.15, None), (None, 293.15)])
def test_data_in_single_precision_may_lie_at_a_bound(bounds, degree):
    V = FunctionSpace(mesh_of_cells("triangle"), "CG", degree)
    decoder = Decoder(V, DirichletBC(V, 293.15, "on_boundary"), bounds=bounds)
    z, on = torch.zeros(2, V.dim()), decoder.constrained
    for value in (293.15, float(np.nextafter(np.float32(293.15), np.float32(400.0)))):
        held = torch.full((2, V.dim()), value)  # a number in single precision
        assert torch.allclose(decoder(z, held)[:, on], held[:, on], rtol=2e-7, atol=0)
        lower, upper = bounds
        for f in decoder.function(z, held):
            values = f.dat.data_ro[on.numpy()]
            assert lower is None or values.min() >= lower
            assert upper is None or values.max() <= upper


def test_a_mean_in_single_precision_may_lie_at_a_bound():
    # Among them some that single precision rounds up, and some that it rounds down.
    V = FunctionSpace(UnitSquareMesh(3, 3), "CG", 2)
    for bound in (0.1, 0.3, 0.7, 0.9):
        decoder = Decoder(V, bounds=(bound, bound + 1.0), mean=bound + 0.5)
        upper = torch.tensor([bound + 1.0], dtype=torch.float32)
        for mean in (torch.tensor([bound], dtype=torch.float32), upper):
            u = decoder(torch.randn(1, V.dim()), mean=mean).double()
            torch.testing.assert_close(u, mean.double().expand_as(u), rtol=1e-6, atol=0)
        with pytest.raises(ValueError, match="contradicts the bounds"):
            decoder(torch.randn(1, V.dim()), mean=upper + 1e-5)
        with pytest.raises(ValueError, match="contradicts the bounds"):
            decoder(torch.randn(1, V.dim()).double(), mean=upper.double() + 1e-7)


def test_a_training_set_in_single_precision_may_lie_at_a_bound():
    V = FunctionSpace(mesh_of_cells("triangle"), "CG", 1)
    u = torch.full((4, V.dim()), 293.15, dtype=torch.float64)
    data = spon.Dataset.from_arrays({"f": u}, {"u": u}, {"f": V, "u": V}, boundary=u)
    decoder = Decoder(V, DirichletBC(V, 293.15, "on_boundary"), bounds=(293.15, 400.0))
    net = spon.OperatorNetwork(spon.Encoder(V), spon.processors.Graph(4, 1), decoder)
    spon.fit(net, data, epochs=1, progress=False, validation=None)


def test_traces_leave_a_bound_by_round_off_only_and_functions_do_not():
    V = FunctionSpace(mesh_of_cells("triangle"), "CG", 2)
    decoder = Decoder(V, DirichletBC(V, 0.1 + 0.2, 1), bounds=(None, 0.3))
    z = torch.zeros(1, V.dim()).double()
    assert 0.1 + 0.2 > 0.3 >= float(decoder(z).max())
    (f,) = decoder.function(z)
    assert f.dat.data_ro.max() <= 0.3
    with pytest.raises(ValueError, match="boundary values contradict"):
        Decoder(V, DirichletBC(V, 1 + 4e-8, 1), bounds=(0, 1))
    x = SpatialCoordinate(V.mesh())
    Decoder(V, DirichletBC(V, sin(2 * np.pi * x[0]) / 7, 2), bounds=(0, None))


def refusals():
    V = FunctionSpace(mesh_of_cells("triangle"), "CG", 2)
    x = SpatialCoordinate(V.mesh())
    yield lambda: Decoder(V, bounds=(1, 0)), "ascending order"
    yield lambda: Decoder(V, bounds=(None, None)), "promises nothing"
    yield lambda: Decoder(V, bounds=(0, 1), flux={1: 1.0}), "not with flux="
    yield lambda: Decoder(V, DirichletBC(V, 2.0, 1), bounds=(0, 1)), "boundary values contradict"
    # Between 0 and 1 at the nodes, below zero between them.
    dip = DirichletBC(V, 20 * (x[1] - 0.2) ** 2 - 0.3, 1)
    yield lambda: Decoder(V, dip, bounds=(-0.3, 30)), "Bernstein coefficient"
    yield lambda: Decoder(V, bounds=(0, 1), mean=1.5), "mean .1.5. contradicts the bounds"
    bc = DirichletBC(V, 1.0, "on_boundary")
    yield lambda: Decoder(V, bc, bounds=(0, 1), mean=0.01), "with the prescribed boundary values"
    d = Decoder(V, DirichletBC(V, 0.5, 1), bounds=(0, 1))
    z, g = torch.zeros(1, V.dim()).double(), torch.full((1, V.dim()), 3.0).double()
    yield lambda: d(z, g), "boundary values contradict"
    nan = float("nan")
    yield lambda: Decoder(V, bounds=(0, 1), mean=nan), "NaN or infinity in the mean"
    yield lambda: d(z, g * nan), "NaN or infinity in the boundary data: the first is sample 0"
    m = Decoder(V, bounds=(0, 1), mean=0.5)
    yield lambda: m(z, mean=torch.tensor([nan])), "NaN or infinity in mean"
    yield lambda: m.calibrate(z * nan), "NaN or infinity in the data"
    Q = FunctionSpace(mesh_of_cells("quadrilateral"), "Q", 1)
    yield (
        lambda: Decoder(Q, bounds=(0, 1)),
        "bounds is a promise for CG and DG.*got Q 1",
    )


@pytest.mark.parametrize("bounds", [0.0, (0,), (0, 1, 2), ([0], [1]), ("a", 1), "ab"])
def test_bounds_are_a_pair_of_numbers(bounds):
    V = FunctionSpace(mesh_of_cells("triangle"), "CG", 1)
    with pytest.raises(TypeError, match=r"bounds must be a pair \(lower, upper\) of numbers"):
        Decoder(V, bounds=bounds)


@pytest.mark.parametrize(("call", "message"), list(refusals()))
def test_what_cannot_hold_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("bounds", [(0, None), (None, 2), (0, 1)])
def test_a_mean_of_prescribed_values_alone(bounds):
    V = FunctionSpace(UnitIntervalMesh(1), "CG", 1)
    z = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    ends = DirichletBC(V, 0.5, "on_boundary")
    u = Decoder(V, ends, bounds=bounds, mean=0.5)(z)
    assert u.tolist() == [[0.5, 0.5]]
    (gradient,) = torch.autograd.grad(u.sum(), z)
    assert gradient.tolist() == [[0.0, 0.0]]
    held = torch.full((1, 2), 0.5, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        Decoder(V, ends, bounds=bounds, mean=0.5)(z, held).sum(), held
    )
    assert gradient.isfinite().all()
    with pytest.raises(ValueError, match="leave no value free"):
        Decoder(V, ends, bounds=bounds, mean=0.7)(z)
