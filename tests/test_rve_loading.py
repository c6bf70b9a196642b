"""What an RVE is loaded with, and how: stresses, paths, steps that are too large."""

from __future__ import annotations

import pytest
import torch
from small_rve import FINITE, LAWS, corner, small_mesh, small_rve, tagged
from test_rve import cell, differences, jumps, laminate, unit, worst

import fe_ol.cell.equilibrium as equilibrium
from fe_ol import (
    RVE,
    EquiNO,
    J2Plasticity,
    LinearElastic,
    NoEquilibriumError,
    PlaneStress,
    Snapshots,
)
from fe_ol.voigt import rest_strain

PLASTIC = {
    1: J2Plasticity(K=4780.0, G=2000.0, yield_stress=40.0, hardening=300.0),
    2: LAWS[2],
}


# ---- stresses prescribed


@pytest.mark.parametrize("boundary", ["periodic", "linear", "traction"])
@pytest.mark.parametrize("finite", [False, True])
def test_mixed_loads(boundary, finite):
    rve = cell(boundary=boundary, finite=finite)
    if finite:  # stretched, free at the sides, turned by nothing
        strain, stress = [1.2, None, 0.0, None], [None, 0.3, None, 0.0]
    else:
        strain, stress = [0.02, None, None], [None, -15.0, 7.0]
    found = rve.solve(strain, stress)
    size = float(found.macro_stress.abs().max())
    for got, wanted in zip(found.macro_stress[0].tolist(), stress, strict=True):
        assert wanted is None or got == pytest.approx(wanted, abs=1e-10 * size)
    for got, wanted in zip(found.macro_strain[0].tolist(), strain, strict=True):
        assert wanted is None or got == wanted
    again = rve.solve(found.macro_strain)
    assert worst(again.macro_stress, found.macro_stress) < 1e-9
    assert worst(again.tangent, found.tangent) < 1e-8
    assert float(rve.hill_mandel(found).max()) < 1e-10
    iterations = int(found.iterations) - int(again.iterations)
    assert iterations <= 2  # the unknown strain is no loop around Newton's method


def test_uniaxial_stress_of_a_homogeneous_cell():
    """Plane stress, pulled: E and nu are those of the law; many loads at once."""
    law = LinearElastic.from_young(E=70.0, nu=0.3)
    rve = RVE(unit(2, "periodic"), law, plane="stress")
    found = rve.solve(None, [[7.0, 0.0, 0.0], [0.0, 14.0, 0.0], [0.0, 0.0, 1.0]])
    G = 70.0 / 2.6
    exact = [[0.1, -0.03, 0.0], [-0.06, 0.2, 0.0], [0.0, 0.0, 1 / G]]
    assert worst(found.macro_strain, exact) < 1e-12
    one = rve.solve([0.1, None, None], [None, 0.0, 0.0])
    assert worst(one.macro_stress, [[7.0, 0.0, 0.0]]) < 1e-10


def test_only_stresses_at_once_and_from_a_state():
    rve = small_rve()
    stress = [[30.0, 0.0, 0.0], [0.0, -20.0, 9.0]]
    found = rve.solve([[None] * 3] * 2, stress)
    assert worst(found.macro_stress, stress) < 1e-10
    warm = rve.solve([None] * 3, stress, state=found.state)
    assert int(warm.iterations.max()) == 0
    torch.testing.assert_close(warm.macro_strain, found.macro_strain, rtol=1e-9, atol=1e-12)


# ---- history


PATH = torch.tensor(
    [[0.01, 0, 0], [0.02, -0.005, 0.01], [0.01, -0.005, 0.03], [-0.01, 0, 0.01], [0, 0, 0]],
    dtype=torch.float64,
)


@pytest.mark.parametrize("plane", ["strain", "stress"])
def test_a_homogeneous_cell_follows_the_path_of_its_law(plane):
    law = PLASTIC[1]
    rve = RVE(unit(2, "periodic"), law, plane=plane)
    alone = PlaneStress(law) if plane == "stress" else law
    state, own = rve.initial_state(1), None
    assert rve.history and state.shape[0] == 1
    for strain in PATH[:, None]:
        response, exact = rve(strain, state), alone(strain, own)
        state, own = response.state, exact.state
        torch.testing.assert_close(response.stress, exact.stress, rtol=1e-9, atol=1e-9)
        assert worst(response.tangent, exact.tangent) < 1e-9
    # The strain, no fluctuation, and the state of the law at each point.
    at_points = state[0, 3 + rve.space.dim() :].reshape(len(rve.weights), -1)
    torch.testing.assert_close(state[0, :3], PATH[-1])
    assert float(state[0, 3 : 3 + rve.space.dim()].abs().max()) < 1e-12
    torch.testing.assert_close(at_points, own.expand(len(at_points), -1), rtol=1e-9, atol=1e-12)
    assert float(own[0, -1]) > 0.01  # it has flowed


@pytest.mark.parametrize("boundary", ["periodic", "traction"])
def test_tangent_of_a_step_with_history(boundary):
    """The derivative for a fixed state at the beginning of the step, while the matrix flows."""
    mesh = tagged(unit(2, boundary), corner)
    rve = RVE(mesh, PLASTIC, boundary=boundary)
    state = rve(PATH[:1]).state
    strain = PATH[1]
    before = state.clone()
    response = rve(strain, state)
    slopes = differences(lambda x: rve(x, state, tangent=False).stress, strain, 1e-6)
    assert worst(slopes[None], response.tangent[None]) < 1e-6
    assert torch.equal(before, state)  # a trial step leaves no trace
    assert not torch.allclose(rve(strain).stress, response.stress, rtol=1e-6)
    found = rve.solve(strain, state=state)
    assert float(rve.hill_mandel(found)) < 1e-10
    torch.testing.assert_close(found.macro_stress[0], response.stress, rtol=1e-9, atol=1e-9)


def test_a_plastic_laminate_follows_its_path():
    """Two layers with the same traction: two equations for each step, by Newton's method here."""
    rve, normal = laminate("diagonal", PLASTIC, degree=1)
    N, state = jumps(normal, False), None
    a, own = torch.zeros(2, dtype=torch.float64), None
    for strain in PATH[:, None]:
        response = rve(strain, state)
        state = response.state
        for _ in range(30):
            thin = PLASTIC[1](strain[0] + 0.75 * N @ a, own)
            thick = PLASTIC[2](strain[0] - 0.25 * N @ a)
            slope = N.T @ (0.75 * thin.tangent + 0.25 * thick.tangent) @ N
            move = torch.linalg.solve(slope, N.T @ (thin.stress - thick.stress))
            a = a - move
        assert float(move.norm()) < 1e-12
        own = thin.state
        exact = 0.25 * thin.stress + 0.75 * thick.stress
        torch.testing.assert_close(response.stress[0], exact, rtol=1e-8, atol=1e-8)
    assert float(own[-1]) > 0.01


def test_surrogates_and_snapshots_refuse_history():
    rve = RVE(small_mesh(3), PLASTIC)
    with pytest.raises(ValueError, match="law with history: its stress does not follow"):
        rve.law(torch.zeros(1, len(rve.weights), 3, dtype=torch.float64))
    with pytest.raises(NotImplementedError, match=r"history.*Use the RVE itself"):
        Snapshots.sample(rve, 2, progress=False)
    snapshots = Snapshots.sample(small_rve(3), 20, progress=False)
    with pytest.raises((ValueError, NotImplementedError), match=r"another RVE|history"):
        EquiNO.fit(rve, snapshots, 4, progress=False)


# ---- steps that are too large


def test_large_steps_are_cut_back():
    """The answer is that of small steps; elastic laws do not see the path."""
    rve = cell(finite=True, n=4)
    strain = torch.tensor([2.2, 0.8, 0.0, 1.0], dtype=torch.float64)
    hasty = RVE(rve.space.mesh(), FINITE, max_iterations=5).solve(strain)
    assert int(hasty.cutbacks) > 0
    state = None
    for share in (0.25, 0.5, 0.75, 1.0):
        part = torch.lerp(rest_strain(2, True), strain, share)
        response = rve(part, state)
        state = response.state
    assert worst(hasty.macro_stress, response.stress[None]) < 1e-9
    assert worst(hasty.tangent, response.tangent[None]) < 1e-8


def test_steps_of_prescribed_stress_are_cut_back():
    rve = cell(finite=True, n=3)
    load = [2.0, None, None, None], [None, 0.0, 0.0, 0.0]
    whole = rve.solve(*load)
    hasty = RVE(rve.space.mesh(), FINITE, max_iterations=5).solve(*load)
    assert int(hasty.cutbacks) > 0
    assert worst(hasty.macro_strain, whole.macro_strain) < 1e-8
    assert worst(hasty.macro_stress, whole.macro_stress) < 1e-8


def test_a_step_that_is_cut_back_is_a_path(monkeypatch):
    """A law with history sees each part of the step: the state is that of two calls."""
    rve = RVE(small_mesh(3), PLASTIC)
    strain = torch.tensor([0.03, -0.02, 0.04], dtype=torch.float64)
    half = rve(0.5 * strain)
    whole = rve(strain, half.state)
    newton, calls = equilibrium.Equilibrium._newton, []

    def fails_at_first(self, *arguments):
        calls.append(1)
        if len(calls) == 1:
            raise NoEquilibriumError("on purpose")
        return newton(self, *arguments)

    monkeypatch.setattr(equilibrium.Equilibrium, "_newton", fails_at_first)
    cut = rve.solve(strain)
    assert int(cut.cutbacks) == 1 and len(calls) == 3
    torch.testing.assert_close(cut.macro_stress[0], whole.stress, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(cut.state[0], whole.state, rtol=1e-8, atol=1e-9)


def test_no_equilibrium_is_named_and_forgotten():
    rve = cell(finite=True)
    good = torch.tensor([1.1, 0.0, 0.0, 1.0], dtype=torch.float64)
    before = rve(good)
    inverted = torch.tensor([-1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    with pytest.raises(NoEquilibriumError, match=r"Cell number 1: .*no equilibrium beyond 0\.\d+"):
        rve.solve(torch.stack([good, inverted]))
    with pytest.raises(ArithmeticError, match=r"from the strain \(1, 0, 0, 1\) to \(-1, 0, 0, 1\)"):
        rve(inverted)
    torch.testing.assert_close(rve(good).stress, before.stress, rtol=1e-9, atol=1e-10)
