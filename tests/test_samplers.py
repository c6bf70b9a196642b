"""Random fields against the Matern formula, exact areas, and Firedrake's own operators."""

import numpy as np
import pytest
import scipy.sparse as sp
from firedrake import (
    Cofunction,
    DirichletBC,
    Function,
    FunctionSpace,
    IcosahedralSphereMesh,
    MixedFunctionSpace,
    PeriodicUnitSquareMesh,
    SpatialCoordinate,
    TensorFunctionSpace,
    UnitCubeMesh,
    UnitIntervalMesh,
    UnitSquareMesh,
    VectorFunctionSpace,
    as_tensor,
    as_vector,
    assemble,
    dx,
    inner,
    project,
)
from firedrake import TestFunction as Test
from firedrake import TrialFunction as Trial
from firedrake.adjoint import AutoregressiveCovariance
from firedrake.adjoint.covariance_operator import lengthscale_m
from scipy.special import gamma, kv

from spon import samplers
from spon.fem.matern import white_noise_factor
from spon.fem.spaces import to_function, to_tensor


def nodes(V):
    """Coordinates of the nodes of a scalar space, shape (nodes, gdim)."""
    mesh = V.mesh()
    X = VectorFunctionSpace(mesh, V.ufl_element())
    return Function(X).interpolate(SpatialCoordinate(mesh)).dat.data_ro.reshape(V.dim(), -1)


def matern(r, nu, length, std):
    """Matern covariance (Rasmussen, Williams 2006, eq. 4.14)."""
    x = np.sqrt(2 * nu) * np.maximum(r, 1e-12) / length
    return std**2 * 2 ** (1 - nu) / gamma(nu) * x**nu * kv(nu, x)


MESHES = {
    "interval": lambda: UnitIntervalMesh(16),
    "triangle": lambda: UnitSquareMesh(5, 4),
    "quadrilateral": lambda: UnitSquareMesh(4, 3, quadrilateral=True),
    "tetrahedron": lambda: UnitCubeMesh(2, 2, 2),
    "hexahedron": lambda: UnitCubeMesh(2, 2, 2, hexahedral=True),
    "sphere": lambda: IcosahedralSphereMesh(1.0, 1),
    "periodic": lambda: PeriodicUnitSquareMesh(4, 4),
}


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("name", MESHES)
def test_white_noise_has_the_mass_matrix_as_covariance(name, degree):
    V = FunctionSpace(MESHES[name](), "CG", degree)
    H = white_noise_factor(V)
    mass = assemble(inner(Trial(V), Test(V)) * dx).petscmat
    indptr, indices, values = mass.getValuesCSR()
    expected = sp.csr_matrix((values, indices, indptr), shape=mass.size)
    assert abs(H @ H.T - expected).max() < 1e-13 * abs(expected).max()


def covariance_with(field, V, centre):
    """Covariance of the value at the node next to `centre` with all nodes, and the distances."""
    x = nodes(V)
    middle = int(np.argmin(np.linalg.norm(x - centre, axis=1)))
    unit = np.zeros((V.dim(), 1))
    unit[middle] = 1.0
    return covariance(field, unit)[:, 0], np.linalg.norm(x - x[middle], axis=1)


def covariance(field, columns):
    """The covariance matrix of a field's nodes, applied to columns."""
    # A sample is D S H z, with H H^T = M (tested above), S symmetric and D diagonal.
    matern, d = field._matern, field.std * field._scale[:, None]
    return d * matern._solve(matern._mass @ matern._solve(d * columns))


@pytest.mark.parametrize(
    ("mesh", "nu"),
    [
        (lambda: UnitIntervalMesh(200), 0.5),
        (lambda: UnitIntervalMesh(200), 1.5),
        (lambda: UnitSquareMesh(24, 24), 1.0),
        (lambda: UnitSquareMesh(24, 24), 2.0),
        (lambda: UnitSquareMesh(16, 16, quadrilateral=True), 3.0),
        (lambda: UnitSquareMesh(24, 24), 1.3),
    ],
)
def test_covariance_is_the_matern_function(mesh, nu):
    mesh = mesh()
    V = FunctionSpace(mesh, "CG", 2 if mesh.topological_dimension == 2 and nu > 1 else 1)
    length, std = 0.12, 1.7
    field = samplers.GaussianRandomField(V, length, std, smoothness=nu)
    found, r = covariance_with(field, V, np.full(mesh.geometric_dimension, 0.5))
    assert np.abs(found - matern(r, nu, length, std))[r < 0.25].max() < 0.025 * std**2


def test_covariance_in_three_dimensions():
    # nu = 1/2 is the exponential covariance; its kink at 0 is what a mesh resolves last.
    V = FunctionSpace(UnitCubeMesh(12, 12, 12), "CG", 1)
    field = samplers.GaussianRandomField(V, 0.2)
    assert field.smoothness == 0.5
    found, r = covariance_with(field, V, (0.5, 0.5, 0.5))
    shell = (r > 0.15) & (r < 0.3)
    assert np.abs(found - np.exp(-r / 0.2))[shell].max() < 0.1


def test_samples_have_the_variance_and_correlation_of_the_formula():
    V = FunctionSpace(UnitSquareMesh(32, 32), "CG", 1)
    length, std, mean, n = 0.1, 2.0, 5.0, 2000
    draws = samplers.GaussianRandomField(V, length, std, mean).draw(n, seed=1).numpy()
    x = nodes(V)
    inside = (np.abs(x - 0.5) < 0.2).all(axis=1)
    # The standard error of a variance is std**2 sqrt(2 / n), and 5 of them are allowed.
    error = 5 * std**2 * np.sqrt(2 / n) + 0.02 * std**2
    assert np.abs(draws[:, inside].var(axis=0) - std**2).max() < error
    assert np.abs(draws[:, inside].mean(axis=0) - mean).max() < 5 * std / np.sqrt(n)
    middle = int(np.argmin(np.linalg.norm(x - 0.5, axis=1)))
    r = np.linalg.norm(x - x[middle], axis=1)
    centred = draws - mean
    found = centred.T @ centred[:, middle] / n
    assert np.abs(found - matern(r, 1.0, length, std))[inside].max() < error
    # Gaussian, too: kurtosis 3.
    z = centred[:, middle] / centred[:, middle].std()
    assert abs((z**4).mean() - 3) < 5 * np.sqrt(24 / n)


@pytest.mark.parametrize(
    ("mesh", "order"),
    [
        (lambda: UnitIntervalMesh(20), 2),
        (lambda: UnitSquareMesh(10, 8), 4),
        (lambda: UnitCubeMesh(3, 3, 3), 4),
    ],
)
def test_covariance_agrees_with_firedrakes_operator(mesh, order):
    mesh = mesh()
    V, d = FunctionSpace(mesh, "CG", 1), mesh.topological_dimension
    theirs = AutoregressiveCovariance(V, 0.3, sigma=1.4, m=order)
    # Order m is (1 - L^2 Laplace)^-m: nu = m - d/2.
    nu, L = order - d / 2, float(lengthscale_m(0.3, order, d))
    ours = samplers.GaussianRandomField(V, np.sqrt(2 * nu) * L, std=1.4, smoothness=nu)
    load = Cofunction(V.dual())
    load.dat.data_wo[...] = np.random.default_rng(0).standard_normal(V.dim())
    expected = theirs.apply_action(load).dat.data_ro
    found = covariance(ours, load.dat.data_ro[:, None])[:, 0]
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()


def test_statistics_do_not_depend_on_the_mesh():
    variances = []
    for k in (12, 24):
        V = FunctionSpace(UnitSquareMesh(k, k), "CG", 2)
        matern = samplers.GaussianRandomField(V, 0.2)._matern
        variance = (matern.scale / matern.unit_scale()) ** 2
        x = nodes(V)
        points = [(0.5, 0.5), (0.5, 0.25), (0.25, 0.25), (0.0, 0.5)]
        variances.append([variance[np.argmin(np.linalg.norm(x - p, axis=1))] for p in points])
    coarse, fine = np.array(variances)
    assert np.abs(coarse - fine).max() < 0.03
    assert abs(fine[0] - 1) < 0.03


@pytest.mark.parametrize("boundary", ["neumann", "robin"])
def test_normalise_gives_the_standard_deviation_up_to_the_boundary(boundary):
    V = FunctionSpace(UnitSquareMesh(8, 8), "CG", 1)
    field = samplers.GaussianRandomField(V, 0.3, std=3.0, boundary=boundary, normalise=True)
    noise = np.eye(field._matern.noise_size)
    factor = 3.0 * field._scale[:, None] * field._matern.apply(noise)
    assert np.allclose((factor**2).sum(axis=1), 9.0, rtol=1e-10)


def test_boundary_conditions_do_to_the_variance_what_the_documentation_says():
    V = FunctionSpace(UnitSquareMesh(32, 32), "CG", 1)
    x = nodes(V)
    edge = int(np.argmin(np.linalg.norm(x - [0, 0.5], axis=1)))
    corner = int(np.argmin(np.linalg.norm(x, axis=1)))

    def variance(boundary):
        m = samplers.GaussianRandomField(V, 0.15, boundary=boundary)._matern
        scale = m.unit_scale()
        return np.divide(m.scale, scale, out=np.zeros(V.dim()), where=scale > 0) ** 2

    natural, robin, fixed = (variance(b) for b in ("neumann", "robin", "dirichlet"))
    assert abs(natural[edge] - 2) < 0.05 and abs(natural[corner] - 4) < 0.2
    assert robin.min() > 0.75 and robin.max() < 1.15
    assert fixed[edge] == 0 and fixed[corner] == 0


SPACES = {
    "DG0": lambda m: FunctionSpace(m, "DG", 0),
    "DG1": lambda m: FunctionSpace(m, "DG", 1),
    "CG3": lambda m: FunctionSpace(m, "CG", 3),
    "vector CG2": lambda m: VectorFunctionSpace(m, "CG", 2),
    "vector DG0": lambda m: VectorFunctionSpace(m, "DG", 0, dim=3),
    "tensor CG1": lambda m: TensorFunctionSpace(m, "CG", 1),
    "RT1": lambda m: FunctionSpace(m, "RT", 1),
    "N1curl1": lambda m: FunctionSpace(m, "N1curl", 1),
}


@pytest.mark.parametrize("name", SPACES)
def test_fields_of_any_space(name):
    V = SPACES[name](UnitSquareMesh(6, 6))
    field = samplers.GaussianRandomField(V, 0.4, mean=1.0, std=0.5)
    f, g = Function(V), Function(V)
    field(f, np.random.default_rng([3, 4]))
    field(g, np.random.default_rng([3, 4]))
    assert (to_tensor(f) == to_tensor(g)).all()
    assert (field.draw(5, seed=3)[4] == to_tensor(f)).all()
    field(g, np.random.default_rng([3, 5]))
    assert (to_tensor(f) != to_tensor(g)).any()
    # The mean over many samples is the function 1 (in each component).
    mean = to_function(field.draw(400).mean(dim=0), V)
    one = as_tensor(np.ones(V.value_shape).tolist()) if V.value_shape else 1
    assert np.sqrt(assemble(inner(mean - one, mean - one) * dx)) < 0.3


@pytest.mark.parametrize("name", MESHES)
def test_fields_on_any_mesh(name):
    V = FunctionSpace(MESHES[name](), "CG", 1)
    draws = samplers.GaussianRandomField(V, 0.5).draw(50).numpy()
    assert np.isfinite(draws).all() and 0.3 < draws.std() < 3


def test_components_of_a_vector_are_independent():
    V = VectorFunctionSpace(UnitSquareMesh(6, 6), "CG", 1)
    draws = samplers.GaussianRandomField(V, 0.3, normalise=True).draw(1000).numpy()
    x, y = draws.reshape(1000, -1, 2)[:, 20].T
    assert abs(np.corrcoef(x, y)[0, 1]) < 5 / np.sqrt(1000)


def test_lognormal_and_mean_from_an_expression():
    mesh = UnitSquareMesh(6, 6)
    V = FunctionSpace(mesh, "CG", 1)
    mean = SpatialCoordinate(mesh)[0]
    plain = samplers.GaussianRandomField(V, 0.3, 0.5, mean).draw(3)
    lognormal = samplers.GaussianRandomField(V, 0.3, 0.5, mean, transform="exp").draw(3)
    assert np.allclose(plain.exp(), lognormal, rtol=1e-14)
    zero = samplers.GaussianRandomField(V, 0.3, 0.5).draw(3)
    assert np.allclose(plain - zero, nodes(V)[:, 0], atol=1e-12)
    square = samplers.GaussianRandomField(V, 0.3, 0.5, mean, transform=np.square).draw(3)
    assert np.allclose(plain**2, square)


# ---- inclusions


@pytest.mark.parametrize("quadrilateral", [False, True])
def test_area_of_one_disc(quadrilateral):
    mesh = UnitSquareMesh(24, 24, quadrilateral=quadrilateral)
    V, R = FunctionSpace(mesh, "DG", 0), 0.1
    sampler = samplers.RandomInclusions(V, 1, R, inside=3.0, outside=1.0, quadrature_degree=8)
    f = Function(V)
    areas = []
    for i in range(40):
        sampler(f, np.random.default_rng([0, i]))
        rng = np.random.default_rng([0, i])
        rng.uniform(1.0, 1.0)
        [(centre, _, _)] = sampler._place(rng)
        if (np.abs(centre - 0.5) < 0.5 - R).all():
            areas.append((assemble(f * dx) - 1) / 2)
            assert f.dat.data_ro[np.linalg.norm(nodes(V) - centre, axis=1) < 0.5 * R].min() > 2.99
    assert len(areas) > 10
    assert np.abs(np.array(areas) / (np.pi * R**2) - 1).max() < 0.03


def test_volume_of_an_ellipsoid_and_values_at_centres():
    V = FunctionSpace(UnitCubeMesh(8, 8, 8), "DG", 0)
    sampler = samplers.RandomInclusions(V, 1, (0.1, 0.3), inside=1.0, shape="ellipsoid")
    draws = sampler.draw(20).numpy()
    assert set(np.unique(draws)) == {0.0, 1.0}
    averaged = samplers.RandomInclusions(
        V, 1, (0.1, 0.3), inside=1.0, shape="ellipsoid", quadrature_degree=4
    ).draw(20)
    difference = averaged.mean(dim=1).numpy() - draws.mean(axis=1)
    assert 0 < np.abs(difference).max() < 0.02


def test_centres_are_uniform_over_the_mesh():
    # Cells of very different size: x^3 crowds them at the left.
    mesh = UnitSquareMesh(8, 8)
    mesh.coordinates.dat.data[:, 0] **= 3
    V = FunctionSpace(mesh, "DG", 0)
    sampler = samplers.RandomInclusions(V, 1, 0.1, inside=1.0)
    rng = np.random.default_rng(0)
    centres = np.array([sampler._centre(rng) for _ in range(4000)])
    for component in centres.T:
        assert np.abs(np.sort(component) - np.linspace(0, 1, 4000)).max() < 1.95 / np.sqrt(4000)


def test_inclusions_without_overlap():
    V = FunctionSpace(UnitSquareMesh(8, 8), "DG", 0)
    sampler = samplers.RandomInclusions(V, (4, 6), (0.05, 0.1), inside=1.0, overlap=False)
    for i in range(10):
        placed = sampler._place(np.random.default_rng(i))
        assert 4 <= len(placed) <= 6
        for k, (c, r, _) in enumerate(placed):
            assert all(np.linalg.norm(c - d) >= r[0] + s[0] for d, s, _ in placed[:k])
    crowded = samplers.RandomInclusions(V, 50, 0.3, inside=1.0, overlap=False)
    with pytest.raises(samplers.PlacementError, match="found no place"):
        crowded.sample(np.random.default_rng(0))


@pytest.mark.parametrize("name", ["DG0", "DG1", "CG3", "vector CG2", "vector DG0"])
def test_inclusions_in_spaces_of_point_values(name):
    V = SPACES[name](UnitSquareMesh(6, 6))
    values = samplers.RandomInclusions(V, 3, 0.2, inside=2.0, outside=1.0).draw(4)
    assert set(values.unique().tolist()) == {1.0, 2.0}
    assert (values.reshape(4, -1, V.block_size).std(dim=-1, correction=0) == 0).all()


@pytest.mark.parametrize("name", ["RT1", "N1curl1"])
def test_inclusions_refuse_other_spaces(name):
    with pytest.raises(NotImplementedError, match="values at points"):
        samplers.RandomInclusions(SPACES[name](UnitSquareMesh(2, 2)), 3, 0.2, inside=2.0)


@pytest.mark.parametrize("fraction", [0.2, 0.5])
def test_two_phase_fraction(fraction):
    V = FunctionSpace(UnitSquareMesh(24, 24), "CG", 1)
    sampler = samplers.TwoPhase(V, 0.15, 1.0, 10.0, fraction, normalise=True)
    draws = sampler.draw(400)
    assert set(draws.unique().tolist()) == {1.0, 10.0}
    assert abs((draws == 10).double().mean() - fraction) < 0.02


@pytest.mark.parametrize("name", ["RT1", "N1curl1"])
def test_two_phases_refuse_other_spaces(name):
    with pytest.raises(NotImplementedError, match="TwoPhase needs dofs that are values at points"):
        samplers.TwoPhase(SPACES[name](UnitSquareMesh(2, 2)), 0.3, 1.0, 2.0)


# ---- boundary data and constants


def test_boundary_data_of_a_tensor_field():
    V = TensorFunctionSpace(UnitSquareMesh(3, 3), "CG", 1)
    sampler = samplers.RandomBoundaryData(V, 1, 0.3, mean=4.0, std=0.1)
    on = np.zeros(V.dim() // 4, dtype=bool)
    on[np.abs(V.mesh().coordinates.dat.data_ro[:, 0]) < 1e-12] = True
    values = sampler.draw(1).reshape(-1, 4).numpy()
    assert (values[~on] == 0).all() and (np.abs(values[on] - 4) < 1).all()


@pytest.mark.parametrize("name", ["CG3", "vector CG2", "RT1"])
def test_boundary_data_live_on_the_boundary(name):
    V = SPACES[name](UnitSquareMesh(5, 5))
    sampler = samplers.RandomBoundaryData(V, (1, 3), 0.3, mean=4.0, std=0.1)
    f = Function(V)
    sampler(f, np.random.default_rng(0))
    on = Function(V).assign(1.0)
    zero = 0 if V.value_size == 1 else as_vector([0.0, 0.0])
    for tag in (1, 3):
        DirichletBC(V, zero, tag).apply(on)
    on = to_tensor(on).numpy() == 0
    values = to_tensor(f).numpy()
    assert (values[~on] == 0).all() and (values[on] != 0).any()
    if name != "RT1":
        assert (np.abs(values[on] - 4) < 1).all()


def test_boundary_data_need_a_boundary():
    V = FunctionSpace(UnitSquareMesh(3, 3), "CG", 1)
    with pytest.raises(ValueError, match="tags 7"):
        samplers.RandomBoundaryData(V, 7, 0.3)
    with pytest.raises(ValueError, match="No dof"):
        samplers.RandomBoundaryData(FunctionSpace(V.mesh(), "DG", 0), 1, 0.3)


def test_constants():
    mesh = UnitSquareMesh(3, 3)
    V, R = VectorFunctionSpace(mesh, "DG", 1), FunctionSpace(mesh, "R", 0)
    f = Function(V)
    samplers.Constant(V, as_vector([1.0, -2.0]))(f, np.random.default_rng(0))
    assert np.allclose(project(f, V).dat.data_ro, [1.0, -2.0])
    draws = samplers.Uniform(V, 2.0, 3.0).draw(200).reshape(200, -1, 2)
    assert (draws.std(dim=1) == 0).all() and 2 <= draws.min() < 2.1 and 2.9 < draws.max() <= 3
    draws = samplers.Uniform(R, 1e-4, 1.0, log=True).draw(500)
    assert draws.shape == (500, 1) and abs(draws.log10().mean() + 2) < 0.3


# ---- wrong calls


def test_wrong_calls():
    mesh = UnitSquareMesh(2, 2)
    V, W = FunctionSpace(mesh, "CG", 1), FunctionSpace(mesh, "CG", 2)
    rng = np.random.default_rng(0)
    field = samplers.GaussianRandomField(V, 0.3)
    with pytest.raises(ValueError, match=r"made for CG 1 .* lives in CG 2"):
        field(Function(W), rng)
    with pytest.raises(TypeError, match="fills a Function, got float"):
        field(1.0, rng)
    with pytest.raises(TypeError, match="needs a FunctionSpace first"):
        samplers.GaussianRandomField(mesh, 0.3)
    with pytest.raises(ValueError, match="length must be positive"):
        samplers.GaussianRandomField(V, -1.0)
    with pytest.raises(ValueError, match="boundary must be"):
        samplers.GaussianRandomField(V, 1.0, boundary="periodic")
    with pytest.raises(ValueError, match="transform must be"):
        samplers.GaussianRandomField(V, 1.0, transform="log")
    with pytest.raises(NotImplementedError, match="mixed"):
        samplers.GaussianRandomField(MixedFunctionSpace([V, W]), 1.0)
    with pytest.raises(ValueError, match="fraction"):
        samplers.TwoPhase(V, 1.0, 0.0, 1.0, fraction=1.5)
    with pytest.raises(ValueError, match="low <= high"):
        samplers.RandomInclusions(V, (3, 1), 0.1, inside=1.0)
    with pytest.raises(ValueError, match="DG 0 only"):
        samplers.RandomInclusions(V, 1, 0.1, inside=1.0, quadrature_degree=2)
    with pytest.raises(ValueError, match="log=True"):
        samplers.Uniform(V, 0.0, 1.0, log=True)


def test_descriptions_are_json():
    import json

    mesh = UnitSquareMesh(2, 2)
    V = FunctionSpace(mesh, "DG", 0)
    mean = SpatialCoordinate(mesh)[0]
    for sampler in (
        samplers.GaussianRandomField(V, 1.0, mean=mean),
        samplers.TwoPhase(V, 1.0, 0.0, 1.0),
        samplers.RandomBoundaryData(FunctionSpace(mesh, "CG", 1), (1, 2), 1.0),
        samplers.RandomInclusions(V, (1, 2), 0.3, inside=1.0),
        samplers.Constant(V, 2.0),
        samplers.Uniform(V, 0.0, 1.0),
    ):
        described = sampler.describe()
        assert json.loads(json.dumps(described)) == described
        assert described["sampler"] == type(sampler).__name__
