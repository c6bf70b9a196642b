"""What can be learned of the small Darcy set at all: symmetries, and draws from its law."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from operator_learning import limit, limit_report, sign_fields, small_darcy, symmetries


def test_symmetries_of_the_square():
    level = small_darcy._level(4)
    orders = symmetries.positions(level)
    assert len({tuple(order.tolist()) for order in orders}) == 8
    points = torch.from_numpy(small_darcy.lattice(level.mesh, 4)).double()
    for order in orders:  # distances stay, and two of them make a third
        torch.testing.assert_close(
            torch.cdist(points[order], points[order]), torch.cdist(points, points)
        )
        assert any(torch.equal(order[orders[1]], other) for other in orders)
    # The nodes of a level are its own: weights in their order know left from right.
    weights = torch.rand(len(points), generator=torch.Generator().manual_seed(0))
    operator = SimpleNamespace(on=lambda level: lambda c: c * weights)
    net = symmetries.Symmetric.__new__(symmetries.Symmetric)
    torch.nn.Module.__init__(net)
    net.operator, net._orders = operator, {}
    net.eval()
    x = torch.rand(2, 16)
    mirrored = x.reshape(2, 4, 4).transpose(1, 2).flatten(1)
    found = net(mirrored, level).reshape(2, 4, 4).transpose(1, 2).flatten(1)
    torch.testing.assert_close(found, net(x, level))


def test_the_tables_of_what_can_be_learned():
    error = {"mean": 0.0645, "standard": 0.0009}
    row = {"model": {"channels": 16}, "weights": 6467, "epochs": 70.0}
    errors = dict.fromkeys(("training", "validation", "16", "32"), error)
    record = {"results": [{**row, "errors": errors}], "settings": {"seconds": 9}}
    table = limit_report.symmetries(record)
    assert "| channels 16 | 6,467 | 6.45% ± 0.09% | 6.45% ± 0.09% |" in table
    law = {"alpha": 3.0, "tau": 9.5, "mismatch": 2e-3, "noise": 1e-3, "coefficients": (0.02, 0.36)}
    law["refitted"] = {"alpha": [2.9, 3.1], "tau": [9.4, 9.6]}
    row = {"set": "16", "samples": 50, "on_data": error,
           "best_factor": {"factor": 1.01, "mean": 0.0625},
           "expected": {"least": error, "most": error}, "between_chains": 1.1,
           "independent": 1.05}  # fmt: skip
    settings = {"chains": 4, "draws": 5, "cells": 64}
    laws = [{"least": {"mean": 0.061}, "most": {"mean": 0.063}}]
    results = {"law": law, "sets": [row], "laws": laws}
    table = limit_report.limit({"results": results, "settings": settings})
    assert "| 16 x 16 | 50 |" + 3 * " 6.45% ± 0.09% |" in table and "errors to 6.25%" in table
    assert "alpha 3.00, tau 9.50" in table and "20 fields a sample on 64 x 64" in table
    assert "alpha varies by 0.14" in table and "points: 6.10% to 6.30%." in table


def test_gaussians_of_given_signs():
    rng = np.random.default_rng(0)
    rho = 0.8
    signs = np.tile([[1.0], [-1.0]], 20_000)
    z = sign_fields.gibbs(signs, np.array([[1.0, -rho], [-rho, 1.0]]), 50, rng)
    assert (z * signs > 0).all()
    # The mean over a quadrant is known, and that of the product, too.
    inside = 0.25 + np.arcsin(rho) / (2 * np.pi)
    mean = (1 + rho) / (2 * np.sqrt(2 * np.pi)) / inside
    product = rho + np.sqrt(1 - rho**2) / (2 * np.pi) / inside
    assert (z * signs).mean(1) == pytest.approx(mean, rel=0.01)
    assert -(z[0] * z[1]).mean() == pytest.approx(product, rel=0.01)
    # Signs that each makes all but impossible for the other: no infinities.
    opposed = np.array([[1.0, -1 + 1e-6], [-1 + 1e-6, 1.0]])
    far = sign_fields.gibbs(np.ones((2, 100)), opposed, 20, rng)
    assert np.isfinite(far).all() and (far > 0).all()


def test_the_law_of_a_field_is_found_from_its_signs():
    law, x = sign_fields.Law(2.9, 9.5), sign_fields.points(8)
    rng = np.random.default_rng(0)
    at = sign_fields.modes(x)
    free = np.sqrt(law.spectrum) * rng.standard_normal((4000, *law.spectrum.shape))
    values = (at @ free @ at.T).reshape(4000, -1)
    noise = np.sqrt(2 / 4000) * law.covariance(x).diagonal().max()
    assert np.abs(values.T @ values / 4000 - law.covariance(x)).max() < 4 * noise
    found, fit = sign_fields.fitted_law(np.sign(values).reshape(-1, 8, 8))
    assert (found.alpha, found.tau) == pytest.approx((2.9, 9.5), rel=0.1)
    assert 0.5 * fit["noise"] < fit["mismatch"] < 1.5 * fit["noise"]
    # What is drawn takes the values, and varies in between as it should.
    known = values[:1].repeat(2000, axis=0)
    drawn = law.given(known, x, rng)
    np.testing.assert_allclose((at @ drawn @ at.T).reshape(2000, -1), known, atol=1e-10)
    both = np.append(x, x[0] + 0.5 / 8)
    C = law.covariance(both).reshape(9, 9, 9, 9)
    points, new = C[:8, :8, :8, :8].reshape(64, 64), C[8, 8, :8, :8].ravel()
    variance = C[8, 8, 8, 8] - new @ np.linalg.solve(points, new)
    there = sign_fields.modes(both[8:])
    assert np.var(there @ drawn @ there.T) == pytest.approx(variance, rel=0.15)


def test_pressures_and_coefficients_of_two_phases():
    n = 16
    field = np.zeros((1, sign_fields.MODES, sign_fields.MODES))
    field[0, 0, 0] = 1.0
    solve = limit.Pressures((0.02, 0.36), n, 128)
    # One phase all over: the series of Poisson's equation.
    k = np.pi * np.arange(1, 400, 2)
    s = np.sin(np.outer(sign_fields.points(n), k))
    terms = 16 / (k[:, None] * k * (k[:, None] ** 2 + k**2))
    for sign, coefficient in ((1, 0.36), (-1, 0.02)):
        exact = s @ terms @ s.T / coefficient
        np.testing.assert_allclose(solve(sign * field)[0], exact, atol=1e-3 * exact.max())
    # Two phases, side by side: what is more conducting has the lower pressure, and x is x.
    field[0, 0, 0], field[0, 1, 0] = 0.0, 1.0
    left, right = solve(field)[0, 4], solve(field)[0, 12]
    assert (left[1:] < 0.3 * right[1:]).all()
    x = np.linspace(0, 1, 32, endpoint=False)[None, :, None].repeat(32, axis=2)
    signs = np.stack([np.ones((32, 32)), -np.ones((32, 32))])
    y = -np.concatenate([x**2 / (2 * 0.36), x**2 / (2 * 0.02)])
    assert limit.fitted_coefficients(signs, y) == pytest.approx((0.02, 0.36), rel=1e-6)


def test_the_nearest_to_draws():
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((1, 41, 6)) + 3

    def distance(p):
        return limit.relative(p, draws[0]).mean()

    found = limit.nearest(draws, 200)[0]
    for step in rng.standard_normal((20, 6)):
        assert distance(found) <= distance(found + 1e-3 * step)
    assert distance(found) < distance(draws[0].mean(0))


def test_what_is_left_open_is_bracketed():
    given = SimpleNamespace(cells=32, chains=4, burn=50, thin=10, draws=4)
    law = sign_fields.Law(2.9, 9.5)
    rng = np.random.default_rng(1)
    free = np.sqrt(law.spectrum) * rng.standard_normal((4, *law.spectrum.shape))
    at = sign_fields.modes(sign_fields.points(8))
    y = limit.Pressures((0.02, 0.36), 8, 32)(free)
    signs = np.sign(at @ free @ at.T)
    found = limit.measure(law, (0.02, 0.36), signs, y, given)
    least, most = (found["expected"][side]["mean"] for side in ("least", "most"))
    assert 0.02 < least < most < 0.5
    # Drawn from the law themselves, they are as far off as expected.
    assert 0.3 * least < found["on_data"]["mean"] < 3 * most
    assert found["best_factor"]["mean"] <= found["on_data"]["mean"] + 1e-12
