"""Branch and trunk: integrals on every mesh, boundary values, eigenfunctions' signs, training."""

import itertools
import math
from functools import partial

import firedrake as fd
import pytest
import torch
from layers import (
    check_file_and_mesh,
    column,
    graded_changes,
    processed,
    random_network,
    relative,
    rough_sizes,
    smooth,
    trained_error,
)

from spon.fem.geometry import build_geometry
from spon.processors import DeepONet, Field, Geometry, GeometryRequest, MultiONet
from spon.processors.base import Basis, Spectrum
from spon.processors.places import Waves

SMALL = {
    "functions": 8,
    "functionals": 6,
    "channels": 3,
    "width": 12,
    "modes": 20,
    "frequencies": 2,
}
KINDS = {
    "coordinates": (DeepONet, {}),
    "modes": (DeepONet, {"trunk": "modes"}),
    "linear": (DeepONet, {"trunk": "modes", "channels": 0}),
    "multionet": (MultiONet, {"depth": 3}),
}


def network(kind, space, bcs=(), source=None, **options):
    cls, more = KINDS[kind]
    return random_network(cls(**{**SMALL, **more, **options}), space, bcs, source)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("degree", [1, 2])
def test_refinement_halves_the_change_of_the_output(kind, degree):
    spaces = [fd.FunctionSpace(fd.UnitSquareMesh(n, n), "CG", degree) for n in (8, 16, 32, 64)]
    net = network(kind, spaces[0], fd.DirichletBC(spaces[0], 0.0, 1))
    outputs = [processed(net.on(V.mesh()), smooth(V)) for V in spaces]
    changes = [relative(a, b) for a, b in itertools.pairwise(outputs)]
    assert changes[0] > 1e-6  # the weights do something
    assert changes[-1] < 0.02
    assert changes[2] < 0.6 * changes[1] and changes[2] < 0.3 * changes[0]


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_locally_refined_mesh_gives_the_same_output(kind):
    changes = graded_changes(partial(network, kind))
    assert changes[-1] < 0.05
    assert changes[-1] < 0.4 * changes[0]


@pytest.mark.parametrize("kind", list(KINDS))
def test_rough_inputs_give_bounded_outputs(kind):
    sizes = rough_sizes(partial(network, kind))
    # Means of more and more independent values: they do not grow.
    assert max(sizes) < 1.5 * sizes[0]


def error_of_integrals(processor, family, n):
    """What the branch sees of a function against Firedrake's integrals, on a mesh n cells wide."""
    mesh = fd.RectangleMesh(n, n, 3.0, 2.0)
    x, y = fd.SpatialCoordinate(mesh)
    f = fd.Function(fd.FunctionSpace(mesh, *family)).interpolate(fd.sin(x) * fd.exp(y))
    space = fd.FunctionSpace(mesh, "CG", 1)
    geometry = build_geometry(processor.request(), [f.function_space()], space)
    with torch.no_grad():
        places = processor.waves(geometry.features())
        moments = processor._moments(geometry.lift([column(f)]), places, geometry)
        weights = processor.weight(places)[0]
    w, exact = fd.Function(space), []
    for weight in weights.T:
        w.dat.data[:] = weight.numpy()
        exact.append(fd.assemble(w * f * fd.dx) / 6.0)
    return float((moments[0] - torch.tensor(exact, dtype=torch.float64)).abs().max())


@pytest.mark.parametrize("family", [("CG", 1), ("CG", 2), ("DG", 0), ("DG", 1)])
def test_the_branch_sees_integrals(family):
    torch.manual_seed(0)
    processor = DeepONet(functionals=5, channels=0, frequencies=1)
    processor.configure([Field(1, 1, 2)], Field(1, 1, 2))
    errors = [error_of_integrals(processor.double(), family, n) for n in (12, 24)]
    assert errors[1] < 0.01
    # Exact for constants in the cells: the mean around a node adds up to the integral.
    assert errors[1] < (1e-13 if family == ("DG", 0) else 0.3 * errors[0])


def test_modes_vanish_on_the_boundary_and_follow_no_sign():
    mesh = fd.UnitSquareMesh(10, 10)
    space = fd.FunctionSpace(mesh, "CG", 1)
    bc = fd.DirichletBC(space, 0.0, "on_boundary")
    processor = random_network(DeepONet(**SMALL, trunk="modes"), space, bc).processor
    geometry = build_geometry(processor.request(), [space], space, [bc])
    x = column(smooth(space))
    with torch.no_grad():
        expected = processor([x], geometry)

        def turned(spectrum):
            # Another basis of the same eigenspaces: signs, and a rotation within the first pair
            # of equal eigenvalues.
            signs = torch.ones(spectrum.modes, dtype=torch.float64)
            signs[::2] = -1.0
            turn = torch.diag(signs)
            value = spectrum.eigenvalues
            k = int((value[1:] - value[:-1]).argmin())
            eigenvalues = value.clone()
            eigenvalues[k : k + 2] = value[k : k + 2].mean()
            c, s = math.cos(0.7), math.sin(0.7)
            turn[k : k + 2, k : k + 2] = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
            return eigenvalues, Spectrum(
                eigenvalues, spectrum.window, turn @ spectrum.analysis, spectrum.synthesis @ turn.T
            )

        pairs = [turned(s) for s in (geometry.basis.constrained, geometry.basis.free)]
        changed = Geometry(
            geometry.positions,
            geometry.weights,
            geometry.torsion,
            list(geometry.lifts),
            geometry.read,
            Basis(*(spectrum for _, spectrum in pairs)),
        )
        found = processor([x], changed)
        assert float((found - expected).abs().max() / expected.abs().max()) < 1e-3
        # Without the family that has a natural boundary the trunk is zero there.
        for f in processor.filters:
            f.weight[1] = 0.0
        out = processor([x], geometry)
        assert out[bc.nodes].abs().max() < 1e-12 < out.abs().max()


def test_waves_are_those_of_half_a_lattice():
    points = torch.tensor([[0.25, -0.5, 0.7]], dtype=torch.float64)
    waves = Waves(2, 1)
    found = waves(points)[0].tolist()
    # Wave vectors pi (0, 1) and pi (1, 0).
    phases = [-0.5 * math.pi, 0.25 * math.pi]
    expected = [0.25, -0.5, 0.7, *map(math.sin, phases), *map(math.cos, phases)]
    assert found == pytest.approx(expected, abs=1e-15)
    assert [Waves(gdim, 2).count for gdim in (1, 2, 3)] == [2 + 4, 3 + 12, 4 + 32]
    assert torch.equal(Waves(2, 0)(points), points)
    # No rounding stays behind when a network changes its dtype.
    assert torch.equal(waves.float().double()(points)[0], waves(points)[0])


@pytest.mark.parametrize("kind", list(KINDS))
def test_training_learns_the_poisson_equation(kind):
    cls, options = KINDS[kind]
    processor = cls(width=32, **options)
    assert trained_error(processor, rate=1e-2, steps=250) < 0.05


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_file_and_another_mesh_keep_the_network(kind, tmp_path):
    check_file_and_mesh(partial(network, kind), tmp_path / "net.spon")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"trunk": "pod"}, ValueError, "trunk must be one of 'coordinates', 'modes'"),
        ({"functions": 0}, ValueError, "functions must be at least 1"),
        ({"channels": -1}, ValueError, "channels must be at least 0"),
        ({"frequencies": 1.5}, TypeError, "frequencies must be an integer"),
    ],
)
def test_wrong_options_say_what_was_expected(options, error, message):
    with pytest.raises(error, match=message):
        DeepONet(**options)


def test_a_trunk_of_modes_needs_eigenfunctions():
    space = fd.FunctionSpace(fd.UnitSquareMesh(2, 2), "CG", 1)
    processor = random_network(DeepONet(**SMALL, trunk="modes"), space).processor
    empty = build_geometry(GeometryRequest(), [space], space)
    with pytest.raises(ValueError, match="holds no eigenfunctions"):
        processor([torch.zeros(9, 1, dtype=torch.float64)], empty)
