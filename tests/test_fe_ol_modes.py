"""Sampling, snapshots, and modes of fluctuation and stress."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_rve import shared_rve, shared_snapshots, small_rve

from fe_ol.modes import equilibrate, fluctuation_modes, pod, stress_modes, voigt_weights
from fe_ol.snapshots import Snapshots, sample_strains
from spon.parts import RunMismatchError


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- sampling


def test_latin_hypercube_has_one_sample_in_every_stratum():
    strain = sample_strains(50, 3, radius=0.04, seed=1)
    strata = ((strain / 0.04 + 1) * 25).floor().long()
    assert all(torch.equal(strata[:, j].sort()[0], torch.arange(50)) for j in range(3))
    assert not torch.equal(strata[:, 0], strata[:, 1])


@pytest.mark.parametrize("method", ["sobol", "laplace"])
def test_a_longer_run_begins_with_the_shorter_one(method):
    short, long = (sample_strains(n, 6, 0.02, 5, method) for n in (11, 40))
    assert torch.equal(short, long[:11])
    assert not torch.equal(short, sample_strains(11, 6, 0.02, 6, method))


def test_laplace_samples_follow_their_distribution():
    size = sample_strains(4000, 1, 1.0, 0, "laplace")[:, 0].abs().sort()[0].numpy()
    scale = 0.25  # of the box's radius
    exact = (1 - np.exp(-size / scale)) / (1 - np.exp(-1 / scale))
    # Kolmogorov and Smirnov: 1.95 / sqrt(n) is exceeded by one in a thousand.
    assert np.abs(exact - (np.arange(4000) + 0.5) / 4000).max() < 1.95 / np.sqrt(4000)


def test_sobol_points_are_balanced():
    strain = sample_strains(64, 3, 0.04, 0, "sobol")
    octant = ((strain > 0) * torch.tensor([1, 2, 4])).sum(1)
    assert torch.equal(octant.bincount(), torch.full((8,), 8))


def test_bad_samples_are_refused():
    with pytest.raises(ValueError, match=r"n must be at least 1, got 0"):
        sample_strains(0, 3)
    with pytest.raises(ValueError, match=r"radius must be positive, got -1"):
        sample_strains(3, 3, radius=-1)
    with pytest.raises(ValueError, match=r"one of \('lhs', 'sobol', 'laplace'\), got 'grid'"):
        sample_strains(3, 3, method="grid")


# ---- proper orthogonal decomposition


def test_pod_is_the_best_approximation():
    rows, weights = random(12, 30, 3), random(30, 3, seed=1).abs()
    combinations, singular = pod(rows, weights, count=5)
    modes = torch.tensordot(combinations.T, rows, 1)
    gram = torch.einsum("ipc,jpc,pc->ij", modes, modes, weights)
    torch.testing.assert_close(gram, torch.eye(5, dtype=torch.float64), atol=1e-12, rtol=0)
    parts = torch.einsum("npc,kpc,pc->nk", rows, modes, weights)
    rest = rows - torch.tensordot(parts, modes, 1)
    # Eckart and Young: no five modes leave less than the other singular values.
    exact = np.linalg.svd((rows * weights.sqrt()).flatten(1).numpy(), compute_uv=False)
    np.testing.assert_allclose(singular.numpy(), exact, rtol=1e-12)
    left = float((rest.square() * weights).sum().sqrt())
    assert left == pytest.approx(float(np.linalg.norm(exact[5:])), rel=1e-10)


def test_pod_by_energy_takes_as_few_modes_as_hold_it():
    rows, weights = random(12, 30, 3), torch.ones(30, 3, dtype=torch.float64)
    squares = np.linalg.svd(rows.flatten(1).numpy(), compute_uv=False) ** 2
    shares = np.cumsum(squares) / squares.sum()
    for share in (0.3, 0.9):
        count = pod(rows, weights, energy=share)[0].shape[1]
        assert shares[count - 1] >= share > (shares[count - 2] if count > 1 else 0)


def test_bad_counts_are_refused():
    rows, weights = random(4, 30, 3), torch.ones(30, 3, dtype=torch.float64)
    rows[3] = rows[0] - rows[1]
    with pytest.raises(ValueError, match=r"4 snapshots span 3 modes, 4 were asked for"):
        pod(rows, weights, count=4)
    with pytest.raises(ValueError, match=r"either count or energy, got count=None and energy=None"):
        pod(rows, weights)
    with pytest.raises(ValueError, match=r"energy must lie between 0 and 1, got 1.5"):
        pod(rows, weights, energy=1.5)


# ---- what the modes promise


def test_fluctuation_modes_are_periodic_and_orthonormal():
    rve, snapshots = shared_rve(), shared_snapshots()
    modes = fluctuation_modes(rve, snapshots, 12)
    factors = rve.weights[:, None] * voigt_weights(2, False, strain=True)
    gram = torch.einsum("ipc,jpc,pc->ij", modes.fields, modes.fields, factors)
    torch.testing.assert_close(gram, torch.eye(12, dtype=torch.float64), atol=1e-10, rtol=0)
    torch.testing.assert_close(modes.fields, rve.gradient(modes.fluctuation), atol=1e-9, rtol=0)
    # By the divergence theorem the strain of a periodic displacement has no mean.
    mean = (modes.fields * rve.weights[:, None]).sum(1)
    size = (modes.fields.abs() * rve.weights[:, None]).sum(1).max()
    assert float(mean.abs().max()) < 1e-12 * float(size)


def test_stress_modes_do_no_work_on_periodic_displacements():
    rve, snapshots = shared_rve(), shared_snapshots()
    modes = stress_modes(rve, snapshots, 12)
    factors = rve.weights[:, None] * voigt_weights(2, False, strain=False)
    gram = torch.einsum("ipc,jpc,pc->ij", modes.fields, modes.fields, factors)
    torch.testing.assert_close(gram, torch.eye(12, dtype=torch.float64), atol=1e-9, rtol=0)
    strain = rve.gradient(random(3, rve.space.dim()))
    densities = torch.einsum("kpc,npc,p->knp", modes.fields, strain, rve.weights)
    assert float(densities.sum(2).abs().max()) < 1e-12 * float(densities.abs().sum(2).max())


def test_modes_hold_the_snapshots():
    rve, snapshots = shared_rve(), shared_snapshots()
    modes = stress_modes(rve, snapshots, 12)
    parts = torch.einsum(
        "npc,kpc,p,c->nk",
        snapshots.stress,
        modes.fields,
        rve.weights,
        voigt_weights(2, False, strain=False),
    )
    rest = snapshots.stress - torch.tensordot(parts, modes.fields, 1)
    factors = rve.weights[:, None] * voigt_weights(2, False, strain=False)
    share = (rest.square() * factors).sum() / (snapshots.stress.square() * factors).sum()
    assert float(share) == pytest.approx(1 - modes.energy, rel=1e-4)
    assert modes.energy > 0.9999


def test_equilibrate_makes_the_smallest_change():
    rve, snapshots = shared_rve(), shared_snapshots()
    spoilt = snapshots.stress[:2] + 0.1 * random(*snapshots.stress[:2].shape)
    mended = equilibrate(rve, spoilt)
    assert float(rve.divergence(spoilt).abs().max()) > 1e-3
    assert float(rve.divergence(mended).abs().max()) < 1e-10
    # The change is a strain, and as such orthogonal to all stresses in equilibrium.
    change = spoilt - mended
    product = torch.einsum("npc,mpc,p->nm", change, mended, rve.weights).abs().max()
    assert float(product) < 1e-9 * float((mended.square().sum(2) @ rve.weights).max())


# ---- files


def test_snapshots_solve_the_rve():
    rve, snapshots = shared_rve(), shared_snapshots()
    assert len(snapshots) == 40 and not snapshots.failures
    again = rve.solve(snapshots.strain[7:8])
    torch.testing.assert_close(snapshots.macro_stress[7], again.macro_stress[0])
    local = snapshots.strain[:, None] + rve.gradient(snapshots.fluctuation)
    torch.testing.assert_close(rve.law(local), snapshots.stress, rtol=1e-9, atol=1e-9)


def test_a_killed_run_goes_on_and_gives_the_same_file(tmp_path, monkeypatch):
    rve, path = small_rve(3), tmp_path / "some" / "snapshots.h5"
    whole = Snapshots.sample(rve, 6, seed=2, path=tmp_path / "whole.h5", progress=False)
    solve, calls = rve.solve, []

    def killed(strain, **options):
        if len(calls) == 3:
            raise KeyboardInterrupt
        return counted(strain, **options)

    def counted(strain, **options):
        calls.append(strain)
        return solve(strain, **options)

    monkeypatch.setattr(rve, "solve", killed)
    with pytest.raises(KeyboardInterrupt):
        Snapshots.sample(rve, 6, seed=2, path=path, progress=False)
    monkeypatch.setattr(rve, "solve", counted)
    resumed = Snapshots.sample(rve, 6, seed=2, path=path, progress=False)
    assert len(calls) == 6
    for name in ("strain", "fluctuation", "stress", "macro_stress"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name))
    assert [p.name for p in path.parent.iterdir()] == ["snapshots.h5"]
    # A finished file is returned without any solve; another run is refused.
    assert torch.equal(Snapshots.sample(rve, 6, seed=2, path=path).stress, whole.stress)
    assert len(calls) == 6
    with pytest.raises(RunMismatchError, match=r"seed is 2, not 4"):
        Snapshots.sample(rve, 6, seed=4, path=path)
    with pytest.raises(RunMismatchError, match=r"its space is .* 9 quadrilaterals"):
        Snapshots.sample(small_rve(5), 6, seed=2, path=path)


def test_failures_are_listed_and_left_out(monkeypatch):
    rve = small_rve(3)
    solve = rve.solve

    def fragile(strain, **options):
        if strain[0, 0] > 0:
            raise ArithmeticError("no convergence")
        return solve(strain, **options)

    monkeypatch.setattr(rve, "solve", fragile)
    snapshots = Snapshots.sample(rve, 6, progress=False)
    assert 0 < len(snapshots) < 6
    assert len(snapshots) + len(snapshots.failures) == 6
    assert sorted(snapshots.indices + [i for i, _ in snapshots.failures]) == list(range(6))
    assert snapshots.failures[0][1] == "ArithmeticError: no convergence"
    monkeypatch.setattr(rve, "solve", lambda strain, **options: fragile(strain.abs()))
    with pytest.raises(ValueError, match=r"None of the 6 RVE solves converged.*no convergence"):
        Snapshots.sample(rve, 6, progress=False)


def test_foreign_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file of snapshots at .*nothing.h5"):
        Snapshots.load(tmp_path / "nothing.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(ValueError, match=r"text.h5' does not hold snapshots"):
        Snapshots.load(tmp_path / "text.h5")
    with pytest.raises(ValueError, match=r"of another RVE: its space is"):
        shared_snapshots().require(small_rve(3))


def test_some_of_the_snapshots():
    snapshots = shared_snapshots()
    some = snapshots[5:8]
    assert len(some) == 3 and some.indices == [5, 6, 7]
    assert torch.equal(some.stress, snapshots.stress[5:8])
