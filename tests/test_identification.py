"""A fibre's stiffness from displacements: derivatives by laws through surrogates and beyond."""

from functools import cache

import numpy as np
import pytest
import torch
from firedrake import DirichletBC, RectangleMesh
from scipy.optimize import minimize
from small_rve import MATRIX, small_mesh

import fe_ol
from fe_ol.identity import identity, varied
from fe_ol.surrogates import reduced
from fe_ol.surrogates.equino import Architecture, Training

BULK, STIFFNESSES, TRUE, START = 6000.0, (1000.0, 2000.0, 4000.0), 2600.0, 1560.0
MATRIX_LAW = fe_ol.NonlinearElastic(**MATRIX)


def leaf(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


@cache
def mesh():
    return small_mesh(3)


def cell(G, a2=MATRIX["a2"]):
    laws = {1: fe_ol.NonlinearElastic(**(MATRIX | {"a2": a2})), 2: fe_ol.LinearElastic(BULK, G)}
    return fe_ol.RVE(mesh(), laws)


@cache
def joined():
    """Snapshots of cells with three stiffnesses of the fibre."""
    parts = [
        fe_ol.Snapshots.sample(cell(G), 16, seed=k, progress=False)
        for k, G in enumerate(STIFFNESSES)
    ]
    return fe_ol.Snapshots.joined(parts)


class Fibre:
    """A cell and a surrogate of it that share the fibre's stiffness."""

    def __init__(self, G=2000.0, modes=12):
        self.G = leaf(G)
        self.rve = cell(self.G)
        self.surrogate = fe_ol.ReducedSolve.fit(self.rve, joined(), modes=modes)

    def set(self, G):
        with torch.no_grad():
            self.G.fill_(G)


def strains(n, radius=0.03, seed=5):
    return fe_ol.snapshots.sample_strains(n, 3, radius, seed)


class Bar:
    """A bar of two by one elements, clamped at one end and drawn and bent at the other."""

    def __init__(self, material):
        self.V = V = fe_ol.macro.problem_space(RectangleMesh(2, 1, 2, 1, quadrilateral=True), 1)
        self.problem = fe_ol.MacroProblem(
            V, material, DirichletBC(V, 0, 1), tractions={2: (20.0, 5.0)}, tolerance=1e-10
        )
        outside = np.setdiff1d(DirichletBC(V, 0, (2, 3, 4)).nodes, DirichletBC(V, 0, 1).nodes)
        self.nodes = torch.from_numpy(outside.astype(np.int64))

    def displacements(self):
        """At the outside, shape (nodes, 2)."""
        return self.problem.solve_torch([1.0]).reshape(-1, 2)[self.nodes]


def test_the_derivative_is_that_of_differences(monkeypatch):
    """By two parameters, of the linear and of the nonlinear law; also in parts."""
    G, a2 = leaf(2600.0), leaf(0.06)
    surrogate = fe_ol.ReducedSolve.fit(cell(G, a2), joined(), modes=12)
    e = strains(7)
    seed = torch.linspace(-1, 1, 21, dtype=torch.float64).reshape(7, 3)
    found = surrogate.pull_back(e, seed, [G, a2, leaf(1.0)])
    assert float(found[2]) == 0
    for tensor, slope in zip((G, a2), found[:2], strict=True):
        h, ends = 1e-4 * float(tensor.detach()), []
        for step in (h, -h):
            with torch.no_grad():
                tensor += step
                ends.append(float((seed * surrogate(e).stress).sum()))
                tensor -= step
        assert abs((ends[0] - ends[1]) / (2 * h) - float(slope)) < 1e-6 * abs(float(slope))
    monkeypatch.setattr(reduced, "_CHUNK", 1)
    parts = surrogate.pull_back(e, seed, [G, a2])
    assert torch.allclose(torch.stack(parts), torch.stack(found[:2]), rtol=1e-12)
    assert surrogate(e).stress.requires_grad is False
    assert surrogate.fields(e).stress.requires_grad is False


def test_the_derivative_is_that_of_the_cell():
    """Between the stiffnesses of the snapshots; both for each strain alone."""
    fibre = Fibre()
    for G in (1400.0, 2600.0):
        fibre.set(G)
        for e in strains(3)[:, None]:
            for seed in torch.eye(3, dtype=torch.float64)[:, None]:
                a = fibre.surrogate.pull_back(e, seed, [fibre.G])[0]
                b = fibre.rve.pull_back(e, seed, [fibre.G])[0]
                assert abs(float(a - b)) < 2e-3 * abs(float(b)) + 1e-6


def test_the_derivative_at_finite_strain():
    laws = {1: fe_ol.NeoHookean(mu=1.0, lam=3.0), 2: fe_ol.NeoHookean(mu=4.0, lam=8.0)}
    snapshots = fe_ol.Snapshots.sample(fe_ol.RVE(mesh(), laws), 12, progress=False)
    mu = leaf(4.0)
    rve = fe_ol.RVE(mesh(), {1: laws[1], 2: fe_ol.NeoHookean(mu=mu, lam=8.0)})
    surrogate = fe_ol.ReducedSolve.fit(rve, snapshots, modes=5, selection="all")
    F = torch.tensor([[1.02, 0.01, -0.02, 0.99]], dtype=torch.float64)
    seed = torch.tensor([[1.0, -0.5, 0.3, 0.7]], dtype=torch.float64)
    slope, ends = float(surrogate.pull_back(F, seed, [mu])[0]), []
    for step in (1e-4, -1e-4):
        with torch.no_grad():
            mu += step
            ends.append(float((seed * surrogate(F).stress).sum()))
            mu -= step
    assert abs((ends[0] - ends[1]) / 2e-4 - slope) < 1e-6 * abs(slope)


def misfit(bar, data):
    return (bar.displacements() - data).square().sum()


def test_taylor_remainders_of_a_misfit():
    fibre = Fibre(START)
    bar = Bar(fibre.surrogate)
    assert bar.problem.parameters.names == ["ReducedSolve.materials[2].G"]
    data = torch.zeros(len(bar.nodes), 2, dtype=torch.float64)
    value = misfit(bar, data)
    (slope,) = torch.autograd.grad(value, fibre.G)
    assert slope != 0
    rest = []
    for h in (400.0, 200.0, 100.0, 50.0):
        fibre.set(START + h)
        rest.append(abs(float(misfit(bar, data).detach() - value.detach() - h * slope)))
    rates = np.log2(np.array(rest[:-1]) / rest[1:])
    # Towards two from below: the third derivative takes the other sign.
    assert rates[-1] > 1.95 and rates[-1] < 2.05, rates


def identify(fibre, bar, data, noise):
    """The stiffness, its standard error by Gauss and Newton, and the evaluations."""

    def objective(x):
        fibre.set(START * x[0])
        value = misfit(bar, data) / (2 * noise**2)
        (slope,) = torch.autograd.grad(value, fibre.G)
        return float(value.detach()), np.array([START * float(slope)])

    found = minimize(objective, [1.0], jac=True, method="L-BFGS-B", bounds=[(0.3, 3.0)])
    assert found.success, found.message
    G, ends = START * float(found.x[0]), []
    for h in (1e-3 * G, -1e-3 * G):
        fibre.set(G + h)
        ends.append(bar.displacements().detach())
    change = (ends[0] - ends[1]) / (2e-3 * G)
    return G, noise / float(change.norm()), found.nfev


def test_a_stiffness_from_noisy_displacements():
    """Forty per cent off at the start; data by nested cells, of a stiffness no snapshot has."""
    fibre = Fibre()
    nested, fast = Bar(fibre.rve), Bar(fibre.surrogate)
    fibre.set(TRUE)
    exact = nested.displacements().detach()
    noise = 0.01 * float(exact.square().mean().sqrt())
    rng = torch.Generator().manual_seed(0)
    data = exact + noise * torch.randn(exact.shape, generator=rng, dtype=torch.float64)

    def slope(bar, G):
        fibre.set(G)
        return float(torch.autograd.grad(misfit(bar, data), fibre.G)[0])

    there, here = slope(nested, START), slope(fast, START)
    assert abs(here - there) < 1e-3 * abs(there)

    G, error, calls = identify(fibre, fast, data, noise)
    assert 0.001 * TRUE < error < 0.05 * TRUE and calls < 15
    assert abs(G - TRUE) < 3 * error
    # The misfit of nested cells has its minimum near by: fiftieths of the standard error away.
    assert slope(nested, G - 0.02 * error) < 0 < slope(nested, G + 0.02 * error)
    # Without noise the surrogate's own error is left.
    clean, _, _ = identify(fibre, fast, exact, noise)
    assert abs(clean - TRUE) < 1e-3 * TRUE


def test_equino_that_follows_the_laws():
    """The networks know one stiffness, their corrections to the end know all."""
    fibre = Fibre()
    networks = fe_ol.EquiNO.from_model(
        fibre.surrogate.model,
        joined(),
        architecture=Architecture(width=8, depth=2),
        training=Training(epochs=20, samples=64),
        progress=False,
    )
    networks.require(cell(2000.0))
    with pytest.raises(ValueError, match=r"another RVE: laws is .*2000.0.* there and .*2600.0"):
        networks.require(cell(2600.0))
    converged = networks.solved()
    fibre.set(2600.0)
    e = strains(4)
    seed = torch.ones_like(e)
    a, b = converged(e), fibre.surrogate(e)
    assert float((a.stress - b.stress).abs().max()) < 1e-8 * float(b.stress.abs().max())
    slopes = [s.pull_back(e, seed, [fibre.G])[0] for s in (converged, fibre.surrogate)]
    assert abs(float(slopes[0] - slopes[1])) < 1e-8 * abs(float(slopes[1]))


def test_snapshots_know_what_varies(tmp_path):
    assert varied(joined().rve) == ["G of the law 2 from 1000 to 4000"]
    assert len(joined()) == 48 and joined().indices == list(range(48))
    joined().save(tmp_path / "joined.h5")
    again = fe_ol.Snapshots.load(tmp_path / "joined.h5")
    assert again.rve == joined().rve
    again.require(cell(leaf(1500.0)), joined=True)
    assert identity(cell(leaf(1500.0))) == identity(cell(1500.0))
    with pytest.raises(ValueError, match=r"another RVE: laws is .*'from': 1000.0, 'to': 4000.0.*"):
        again.require(cell(4001.0), joined=True)
    message = r"joined snapshots of several RVEs \(G of the law 2 from 1000 to 4000\).*ReducedSolve"
    with pytest.raises(ValueError, match=message):
        fe_ol.Interpolation.fit(cell(2000.0), joined(), modes=4)
    surrogate = Fibre().surrogate
    surrogate.require(cell(3000.0))
    with pytest.raises(ValueError, match="another RVE: laws"):
        surrogate.require(cell(900.0))


def test_snapshots_that_cannot_be_joined():
    one = joined()[:2]
    with pytest.raises(ValueError, match=r"Nothing to join"):
        fe_ol.Snapshots.joined([])
    wide = fe_ol.Snapshots.sample(cell(1000.0), 1, radius=0.05, progress=False)
    with pytest.raises(ValueError, match=r"one box of strains, got the radii \[0.04, 0.05\]"):
        fe_ol.Snapshots.joined([one, wide])
    soft = fe_ol.RVE(mesh(), {1: MATRIX_LAW, 2: MATRIX_LAW})
    other = fe_ol.Snapshots.sample(soft, 1, progress=False)
    with pytest.raises(ValueError, match=r"Only RVEs that differ in numbers .*the laws are"):
        fe_ol.Snapshots.joined([one, other])
    fine = fe_ol.RVE(small_mesh(4), cell(1000.0).materials)
    other = fe_ol.Snapshots.sample(fine, 1, progress=False)
    with pytest.raises(ValueError, match=r"its space is .* 9 quadrilaterals.* 16 quadrilaterals"):
        fe_ol.Snapshots.joined([one, other])


def test_the_mismatch_has_no_such_derivative():
    G = leaf(2000.0)
    surrogate = fe_ol.ReducedSolve.fit(cell(G), joined(), modes=6, formulation="mismatch")
    e = strains(2)
    with pytest.raises(NotImplementedError, match=r"formulation=\"energy\", this one has 'mismat"):
        surrogate.pull_back(e, e, [G])
