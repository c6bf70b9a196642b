"""Guarded surrogates: what is suspicious, who answers, and how long a point stays with the RVE."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from firedrake import DirichletBC, RectangleMesh, assemble, dx, errornorm, norm
from small_rve import shared_rve, shared_snapshots, small_rve

from fe_ol import EquiNO
from fe_ol.guarded import Guarded, GuardError, GuardWarning
from fe_ol.macro import MacroFileError, MacroProblem, problem_space
from fe_ol.surrogates import Interpolation

FIT: dict[str, Any] = {"modes": 8, "points": 96, "epochs": 200, "samples": 1024}


@cache
def fitted() -> EquiNO:
    """An EquiNO that is good in its box and bad outside."""
    return EquiNO.fit(shared_rve(), shared_snapshots(), progress=False, **FIT)


def strains(radius: float, n: int = 12) -> torch.Tensor:
    """Strains on the surface of a box."""
    x = torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return radius * x / x.abs().amax(1, keepdim=True)


def errors(stress: torch.Tensor, strain: torch.Tensor) -> torch.Tensor:
    """Relative errors of homogenised stresses."""
    exact = shared_rve()(strain).stress
    return (stress - exact).norm(dim=1) / exact.norm(dim=1)


def test_the_estimate_is_near_to_the_error() -> None:
    for radius in (0.03, 0.06, 0.1):
        e = strains(radius)
        found, true = fitted().estimate(e), errors(fitted()(e).stress, e)
        assert bool((true <= 1.5 * found).all())
        assert float(found.median()) <= 10 * float(true.median())


def test_falling_back_keeps_the_tolerance_where_the_surrogate_does_not() -> None:
    e, tolerance = torch.cat([strains(0.03), strains(0.12)]), 2e-2
    guarded = Guarded(fitted(), shared_rve(), tolerance=tolerance)
    assert float(errors(fitted()(e).stress, e).max()) > 2 * tolerance
    assert float(errors(guarded(e).stress, e).max()) <= tolerance
    assert 0.0 < guarded.report.share < 1.0
    assert guarded.report.solves == int(guarded.active.sum())


def test_tangents_come_from_whoever_answers() -> None:
    e = torch.cat([strains(0.03), strains(0.12)])
    guarded = Guarded(fitted(), shared_rve(), tolerance=2e-2)
    tangent = guarded(e).tangent
    active = guarded.active
    torch.testing.assert_close(tangent[active], shared_rve()(e[active]).tangent, rtol=1e-8, atol=0)
    assert torch.equal(tangent[~active], fitted()(e[~active]).tangent)


def test_inside_of_its_box_a_good_surrogate_is_left_alone() -> None:
    e = strains(0.03)
    guarded = Guarded(fitted(), shared_rve(), tolerance=5e-2)
    assert torch.equal(guarded(e).stress, fitted()(e).stress)
    assert guarded.report.solves == 0


def test_one_strain_needs_no_axis() -> None:
    guarded = Guarded(fitted(), shared_rve())
    response = guarded([0.2, 0.0, 0.1])
    assert response.stress.shape == (3,) and response.tangent.shape == (3, 3)
    torch.testing.assert_close(
        response.stress, shared_rve()([0.2, 0.0, 0.1]).stress, rtol=1e-9, atol=1e-9
    )


def test_clamping_extrapolates_linearly_from_the_border() -> None:
    r = fitted().radius
    border = torch.tensor([[r, r, -r]], dtype=torch.float64)
    e = border * 4.0
    guarded = Guarded(fitted(), shared_rve(), policy="clamp")  # all components beyond
    response, at = guarded(e), fitted()(border)
    wanted = at.stress + torch.einsum("nij,nj->ni", at.tangent, e - border)
    torch.testing.assert_close(response.stress, wanted)
    assert torch.equal(response.tangent, at.tangent)
    assert guarded.report.solves == 0 and int(guarded.report.steps[0].outside.sum()) == 1


def test_the_tangent_of_the_extrapolation_is_its_derivative() -> None:
    """Also where one component is beyond the box and the others move along its border."""
    guarded = Guarded(fitted(), shared_rve(), policy="clamp", limit=1.0)
    e = torch.tensor([[0.09, 0.01, -0.02]], dtype=torch.float64)
    tangent, h = guarded(e).tangent[0], 1e-6
    for j in range(3):
        d = h * torch.eye(3, dtype=torch.float64)[j]
        slope = (guarded(e + d).stress - guarded(e - d).stress)[0] / (2 * h)
        torch.testing.assert_close(
            tangent[:, j], slope, rtol=1e-5, atol=1e-5 * float(tangent.max())
        )


def test_warning_and_raising_name_what_was_asked() -> None:
    e = strains(0.3)
    with pytest.warns(GuardWarning, match="12 of 12 strains are beyond the surrogate"):
        response = Guarded(fitted(), shared_rve(), policy="warn")(e)
    assert torch.equal(response.stress, fitted()(e).stress)
    with pytest.raises(GuardError, match=r"box \+-0.04"):
        Guarded(fitted(), shared_rve(), policy="raise")(e)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Guarded(fitted(), shared_rve(), tolerance=0.1, policy="warn")(strains(0.03))


def test_without_an_estimate_the_box_decides() -> None:
    surrogate = Interpolation.fit(shared_rve(), shared_snapshots(), modes=8)
    guarded = Guarded(surrogate, shared_rve())
    inside, outside = strains(0.039, 5), strains(0.041, 5)
    guarded(torch.cat([inside, outside]))
    assert guarded.active.tolist() == [False] * 5 + [True] * 5


def test_trial_states_do_not_ask_the_rve_and_converged_ones_do() -> None:
    guarded = Guarded(fitted(), shared_rve(), tolerance=2e-2)
    wild, calm = strains(0.4, 4), strains(0.03, 4)
    guarded.trial(wild)
    guarded.trial(calm)
    assert guarded.review(calm)
    guarded.converged(calm)
    step = guarded.report.steps[0]
    assert (step.trials, step.solves, step.count) == (4, 0, 0)

    guarded.trial(wild)
    assert not guarded.review(wild)
    torch.testing.assert_close(
        guarded.trial(wild).stress, shared_rve()(wild).stress, rtol=1e-8, atol=1e-8
    )
    assert guarded.review(wild)
    guarded.converged(wild)
    step = guarded.report.steps[1]
    assert (step.trials, step.solves, step.count, step.reviews) == (4, 4, 4, 2)


def test_within_a_step_a_point_keeps_to_its_kind_of_answer() -> None:
    """Or Newton's method would go round in circles between two laws."""
    guarded = Guarded(fitted(), shared_rve(), tolerance=1.0)
    level = torch.tensor([0.0], dtype=torch.float64)
    guarded.estimate = lambda strain: level.expand(len(strain))  # type: ignore[method-assign]
    x = strains(0.05, 1)
    plain, extrapolated = fitted()(x).stress, guarded._extrapolated(x)[0]
    assert float((plain - extrapolated).abs().max()) > 1e-3

    def trial(value: float) -> torch.Tensor:
        level.fill_(value)
        return guarded.trial(x).stress

    # Suspicious once, extrapolated until an iteration has converged; then trusted, then the RVE.
    assert torch.equal(trial(0.5), plain)
    for value in (1.5, 0.5, 1.5, 0.5):
        assert torch.equal(trial(value), extrapolated)
    assert not guarded.review(x)
    for value in (0.5, 1.5, 0.5):
        assert torch.equal(trial(value), plain)
    level.fill_(1.5)
    assert not guarded.review(x)
    assert bool(guarded.active.all()) and guarded.review(x)
    guarded.converged(x)
    # A step that is given up leaves no doubt behind.
    guarded = Guarded(fitted(), shared_rve(), tolerance=1.0, policy="clamp")
    guarded.estimate = lambda strain: level.expand(len(strain))  # type: ignore[method-assign]
    assert torch.equal(trial(1.5), extrapolated)
    guarded.rejected()
    assert torch.equal(trial(0.5), plain)
    # Clamped points change hands twice at most.
    level.fill_(1.5)
    assert not guarded.review(x)
    assert torch.equal(trial(0.5), extrapolated)
    assert not guarded.review(x)
    assert torch.equal(trial(1.5), plain)
    assert not guarded.review(x)
    assert torch.equal(trial(0.5), extrapolated)
    assert guarded.review(x)


def test_a_point_comes_back_only_when_its_estimate_is_well_below_the_tolerance() -> None:
    guarded = Guarded(fitted(), shared_rve(), tolerance=1.0, hysteresis=0.5)
    level = torch.tensor([0.0], dtype=torch.float64)
    guarded.estimate = lambda strain: level.expand(len(strain))  # type: ignore[method-assign]
    x = strains(0.03, 1)

    def step(value: float) -> bool:
        level.fill_(value)
        guarded.trial(x)
        while not guarded.review(x):
            guarded.trial(x)
        guarded.converged(x)
        return bool(guarded.active[0])

    # Around the tolerance it stays where it is: no switching to and fro.
    assert [step(v) for v in (0.9, 1.1, 0.9, 1.1, 0.6)] == [False, True, True, True, True]
    assert [step(v) for v in (0.4, 0.6, 0.9)] == [False, False, False]


def test_a_rejected_step_leaves_nothing_behind() -> None:
    guarded = Guarded(fitted(), shared_rve())
    calm, wild = strains(0.03, 3), strains(0.4, 3)
    guarded.trial(calm)
    guarded.review(calm)
    guarded.converged(calm)
    guarded.trial(wild)
    guarded.review(wild)
    assert bool(guarded.active.all())
    guarded.rejected()
    assert not bool(guarded.active.any())


def test_only_solved_cells_are_lessons(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that could not be solved, in a step that was given up, teaches nothing."""
    rve = shared_rve()
    guarded = Guarded(fitted(), rve, policy="learn", snapshots=shared_snapshots())
    calm, wild = strains(0.03, 3), strains(0.4, 3)
    guarded.trial(calm)
    guarded.review(wild)
    with monkeypatch.context() as patch:
        patch.setattr(rve, "_solved", lambda *_: (_ for _ in ()).throw(ArithmeticError("no")))
        with pytest.raises(ArithmeticError, match="no"):
            guarded.trial(wild)
    guarded.rejected()
    guarded.active[0] = True
    guarded.trial(calm)
    guarded.converged(calm)
    assert len(guarded.lessons) == 1
    strain, fluctuation = rve.split_state(torch.cat(guarded.lessons._states))
    torch.testing.assert_close(strain, calm[:1])
    stress = rve.law(strain[:, None] + rve.gradient(fluctuation))
    assert float(rve.divergence(stress).abs().max()) < 1e-8


def test_learning_makes_the_rve_needless() -> None:
    rve, e = shared_rve(), strains(0.1, 40)
    guarded = Guarded(
        fitted(), rve, tolerance=3e-2, policy="learn", snapshots=shared_snapshots(),
        fit_options=FIT,
    )  # fmt: skip
    guarded(e)
    first = guarded.report.solves
    assert first >= 10
    taught = guarded.learn()
    assert taught is guarded.surrogate and taught.radius > fitted().radius
    guarded.report.clear()
    assert float(errors(guarded(e).stress, e).max()) <= 3e-2
    assert guarded.report.solves <= first / 10


def test_arguments_are_checked() -> None:
    surrogate, rve = fitted(), shared_rve()
    with pytest.raises(ValueError, match="policy must be one of"):
        Guarded(surrogate, rve, policy="hope")
    with pytest.raises(ValueError, match="tolerance > 0"):
        Guarded(surrogate, rve, tolerance=0.0)
    with pytest.raises(ValueError, match="limit is a multiple of the box"):
        Guarded(surrogate, rve, limit=0.0)
    with pytest.raises(ValueError, match="made for another RVE"):
        Guarded(surrogate, small_rve(3))
    with pytest.raises(ValueError, match="give them as snapshots="):
        Guarded(surrogate, rve, policy="learn")
    with pytest.raises(ValueError, match='learn needs policy="learn"'):
        Guarded(surrogate, rve).learn()
    learning = Guarded(surrogate, rve, policy="learn", snapshots=shared_snapshots())
    with pytest.raises(ValueError, match="nothing to learn"):
        learning.learn()
    with pytest.raises(TypeError, match="float64"):
        Guarded(surrogate, rve)(torch.zeros(1, 3))


# ---- in a macroscopic problem


@cache
def bar() -> Any:
    """Quadratic displacements on a bar of four cells."""
    return problem_space(RectangleMesh(4, 1, 2.0, 1.0, quadrilateral=True))


def bent(material: Any, size: float, **options: Any) -> tuple[MacroProblem, Any]:
    """The bar, clamped at one end, the other end moved along and across."""
    V = bar()
    ends = [DirichletBC(V, 0, 1), DirichletBC(V, (size, size), 2)]
    problem = MacroProblem(V, material, bcs=ends)
    return problem, problem.solve([0.5, 1.0], progress=False, **options)


def test_a_guarded_problem_is_near_to_full_fe2() -> None:
    """Far out of the box: alone the surrogate is off, guarded it keeps its tolerance."""
    _, alone = bent(fitted(), 0.1)
    guarded = Guarded(fitted(), shared_rve(), tolerance=2e-2)
    problem, result = bent(guarded, 0.1)
    # Cells are elastic: the end does not depend on where Newton's method starts.
    _, truth = bent(shared_rve(), 0.1, start=result[0].displacement)
    last = guarded.report.steps[-1]
    assert last.reach > 2 and 0 < last.count < last.points
    force, errors = truth.reactions(2)[-1], []
    for found in (alone, result):
        off = errornorm(found.displacement, truth.displacement) / norm(truth.displacement)
        missing = np.linalg.norm(found.reactions(2)[-1] - force) / np.linalg.norm(force)
        errors.append((off, missing))
    assert errors[0][0] > 1e-2 and errors[0][1] > 2e-2
    assert errors[1][0] < 1e-3 and errors[1][1] < 1e-3
    assert result.cutbacks == 0
    # The guarded points as a field to look at: its mean is their share of the area.
    share = problem.field(last.guarded.double(), "guarded")
    weights = problem.system.weights
    assert assemble(share * dx) == pytest.approx(float(weights[last.guarded].sum()), rel=1e-9)
    means = problem.field(last.guarded.double(), "guarded", means=True)
    assert assemble(means * dx) == pytest.approx(float(weights[last.guarded].sum()), rel=1e-9)
    assert means.dat.data_ro.min() > -1e-12 and means.dat.data_ro.max() < 1 + 1e-12
    with pytest.raises(ValueError, match="36 quadrature points of this process, got 3"):
        problem.field(torch.zeros(3), "guarded")


def test_a_second_run_after_learning_needs_the_rve_no_more() -> None:
    guarded = Guarded(
        fitted(), shared_rve(), tolerance=5e-2, policy="learn", snapshots=shared_snapshots(),
        fit_options=FIT,
    )  # fmt: skip
    bent(guarded, 0.1)
    first = guarded.report.solves
    assert first >= 10
    guarded.learn()
    guarded.report.clear()
    bent(guarded, 0.1)
    assert guarded.report.solves <= first / 10


def test_raising_in_a_problem_names_the_load_step_that_went_too_far() -> None:
    with pytest.raises(GuardError, match="beyond the surrogate"):
        bent(Guarded(fitted(), shared_rve(), tolerance=1e-2, policy="raise"), 0.3)


def test_a_checkpoint_of_another_surrogate_is_refused(tmp_path: Any) -> None:
    """Also of one of the same kind, for the same cell, or guarded otherwise."""
    path = tmp_path / "steps.h5"
    bent(Guarded(fitted(), shared_rve(), tolerance=0.5), 0.01, checkpoint=path)
    bent(Guarded(fitted(), shared_rve(), tolerance=0.5), 0.01, checkpoint=path)
    other = Interpolation.fit(shared_rve(), shared_snapshots(), modes=6)
    for material in (Guarded(fitted(), shared_rve(), tolerance=0.4), fitted(), other):
        with pytest.raises(MacroFileError, match="materials"):
            bent(material, 0.01, checkpoint=path)
    path.unlink()
    bent(other, 0.01, checkpoint=path)
    with pytest.raises(MacroFileError, match="materials"):
        bent(Interpolation.fit(shared_rve(), shared_snapshots(), modes=8), 0.01, checkpoint=path)
