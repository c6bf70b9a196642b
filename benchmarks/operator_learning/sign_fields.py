"""Fields that are known by their signs at points: the law of the small Darcy set."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import optimize, special

__all__ = ["Law", "fitted_law", "gibbs", "modes", "points"]

FINE = 512  # the grid on which the set was made: point i of n lies in the middle of a cell of it
MODES = 96  # of the field, along each axis: three times what the points tell apart


def points(n: int) -> np.ndarray:
    """Where the points of a grid of n x n lie along each axis, shape (n,).

    Next to the boundary the pressure is about 1/33 of its neighbour's on 32 points, so that the
    first points lie half a cell of a grid of 512 away from it.
    """
    return (np.arange(n) + n / (2 * FINE)) / n


@dataclass(frozen=True)
class Law:
    """A Gaussian field on the unit square: mean zero, covariance (-Laplace + tau^2)^-alpha.

    With Neumann conditions, without its constant mode, scaled to variance one in the mean.
    """

    alpha: float
    tau: float

    @cached_property
    def spectrum(self) -> np.ndarray:
        """Variances of the modes, shape (MODES, MODES)."""
        k2 = (np.pi * np.arange(MODES)) ** 2
        variance = (k2[:, None] + k2 + self.tau**2) ** -self.alpha
        variance[0, 0] = 0.0
        return variance / variance.sum()

    def covariance(self, x: np.ndarray) -> np.ndarray:
        """Of the field at the points x times x, shape (len(x)^2, len(x)^2)."""
        n = len(x)
        products = np.einsum("ia,ka->ika", *[modes(x)] * 2).reshape(n * n, MODES)
        axes = (products @ self.spectrum @ products.T).reshape(n, n, n, n)
        return axes.transpose(0, 2, 1, 3).reshape(n * n, n * n)

    def given(self, values: np.ndarray, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Fields that take the values at the points: (draws, n^2) to modes (draws, MODES, MODES).

        A field drawn freely, and what its values are off by carried on by the covariance.
        """
        n, at = len(x), modes(x)
        free = np.sqrt(self.spectrum) * rng.standard_normal((len(values), MODES, MODES))
        off = values - (at @ free @ at.T).reshape(len(values), -1)
        weights = np.linalg.solve(self.covariance(x), off.T).T.reshape(-1, n, n)
        return free + self.spectrum * (at.T @ weights @ at)


def modes(x: np.ndarray) -> np.ndarray:
    """Cosines with unit mean square, shape (len(x), MODES)."""
    k = np.arange(MODES)
    return np.cos(np.pi * np.outer(x, k)) * np.where(k == 0, 1.0, np.sqrt(2.0))


def fitted_law(signs: np.ndarray) -> tuple[Law, dict[str, float]]:
    """The law whose signs are correlated like those of the samples, (samples, n, n)."""
    count, n = signs.shape[:2]
    flat = signs.reshape(count, -1)
    measured = flat.T @ flat / count

    def mismatch(parameters: np.ndarray) -> float:
        return float(((correlation(Law(*parameters), n) - measured) ** 2).mean())

    options = {"xatol": 1e-2, "fatol": 1e-8, "maxiter": 100}
    found = optimize.minimize(mismatch, [2.5, 8.0], method="Nelder-Mead", options=options)
    law = Law(*map(float, found.x))
    noise = float((1 - correlation(law, n) ** 2).mean()) / count
    return law, {"alpha": law.alpha, "tau": law.tau, "mismatch": float(found.fun), "noise": noise}


def correlation(law: Law, n: int) -> np.ndarray:
    """Of the signs of the field at the n x n points: the arcsine law."""
    C = law.covariance(points(n))
    scale = np.sqrt(C.diagonal())
    return 2 / np.pi * np.arcsin(np.clip(C / np.outer(scale, scale), -1, 1))


def gibbs(
    signs: np.ndarray,
    covariance: np.ndarray,
    sweeps: int,
    rng: np.random.Generator,
    state: np.ndarray | None = None,
) -> np.ndarray:
    """Gaussian vectors with given signs, by Gibbs' sampler.

    Parameters
    ----------
    signs : array, shape (n, chains)
    covariance : array, shape (n, n)
    sweeps : int
        How often each entry is drawn anew, given all others.
    rng : Generator
    state : array, shape (n, chains), optional
        Where the chains go on.

    Returns
    -------
    array, shape (n, chains)
    """
    precision = np.linalg.inv(covariance)
    deviation = precision.diagonal() ** -0.5
    others = precision / precision.diagonal()[:, None]
    np.fill_diagonal(others, 0.0)
    z = 0.5 * np.abs(rng.standard_normal(signs.shape)) * signs if state is None else state.copy()
    for _ in range(sweeps):
        for i in rng.permutation(len(signs)):
            mean = -(others[i] @ z) * signs[i] / deviation[i]
            # Of N(mean, 1) what is positive, by the inverse of its distribution: u in (0, 1].
            u = 1 - rng.random(z.shape[1])
            inside = mean - special.ndtri(u * special.ndtr(mean))
            # So far from zero that the distribution underflows it is exponential.
            tail = mean < -30
            inside[tail] = -np.log(u[tail]) / -mean[tail]
            z[i] = inside * deviation[i] * signs[i]
    return z
