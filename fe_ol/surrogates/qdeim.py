"""Which quadrature points stand for all of them: Q-DEIM, and cubature with positive weights."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
from scipy.optimize import nnls
from torch import Tensor

__all__ = ["cubature", "qdeim"]


def qdeim(modes: Tensor, count: int) -> Tensor:
    """Points at which modes are told apart best (Drmac and Gugercin 2016).

    The pivots of a QR factorisation with column pivoting; where more points than modes are asked
    for, the factorisation is repeated on the points that are left.

    Parameters
    ----------
    modes : Tensor, shape (k, points, components)
        Times the square roots of the quadrature weights.
    count : int

    Returns
    -------
    Tensor of int64, shape (count,)
        In ascending order.
    """
    k, points, components = modes.shape
    if not 1 <= count <= points:
        raise ValueError(f"count must lie between 1 and {points}, got {count}.")
    columns = modes.numpy().reshape(k, points, components)
    left, chosen = np.arange(points), np.empty(0, dtype=np.int64)
    while len(chosen) < count:
        matrix = columns[:, left].reshape(k, -1)
        pivots = scipy.linalg.qr(matrix, mode="r", pivoting=True)[1][:k] // components
        # Two components of one point may both be pivots.
        order = pivots[np.sort(np.unique(pivots, return_index=True)[1])]
        new = left[order][: count - len(chosen)]
        chosen = np.concatenate((chosen, new))
        left = np.setdiff1d(left, new, assume_unique=True)
    return torch.from_numpy(np.sort(chosen))


def cubature(
    integrands: Tensor, weights: Tensor, count: int, tolerance: float = 1e-7
) -> tuple[Tensor, Tensor]:
    """Few points with positive weights that integrate given functions like all points do.

    The greedy non-negative least squares of Hernandez, Caicedo and Ferrer (2017, "Dimensional
    hyper-reduction of nonlinear finite element models via empirical cubature"), four candidates
    at a time. Positive weights keep the reduced energy convex where the law is.

    Parameters
    ----------
    integrands : Tensor, shape (f, points)
        Values at the quadrature points, scaled by their importance.
    weights : Tensor, shape (points,)
        Quadrature weights.
    count : int
        Largest number of points; fewer if `tolerance` is met before.
    tolerance : float, optional
        Relative to the integrals by all points.

    Returns
    -------
    points : Tensor of int64, shape (m,)
        In ascending order.
    weights : Tensor, shape (m,)
    """
    if not 1 <= count <= len(weights):
        raise ValueError(f"count must lie between 1 and {len(weights)}, got {count}.")
    matrix = _compressed((integrands * weights).numpy())
    wanted = matrix.sum(1)
    norms = np.linalg.norm(matrix, axis=0) + 1e-300
    points, factors = np.empty(0, dtype=np.int64), np.empty(0)
    residual, best = wanted, np.inf
    stalled = 0
    while len(points) < count and stalled < 25:
        gain = (matrix.T @ residual) / norms
        gain[points] = -np.inf
        new = np.argsort(-gain, kind="stable")[: min(4, count - len(points))]
        points = np.concatenate((points, new))
        factors = nnls(matrix[:, points], wanted, maxiter=30 * len(points))[0]
        points, factors = points[factors > 0], factors[factors > 0]
        residual = wanted - matrix[:, points] @ factors
        size = float(np.linalg.norm(residual))
        if size <= tolerance * np.linalg.norm(wanted):
            break
        stalled, best = (0, size) if size < 0.999 * best else (stalled + 1, best)
    order = np.argsort(points)
    points, factors = points[order], factors[order]
    return torch.from_numpy(points), weights[points] * torch.from_numpy(factors)


def _compressed(matrix: np.ndarray, largest: int = 500) -> np.ndarray:
    """Combinations of the rows that hold what there is to hold."""
    values, vectors = np.linalg.eigh(matrix @ matrix.T)
    kept = np.flatnonzero(values > 1e-12 * values[-1])[-largest:]
    return vectors[:, kept].T @ matrix
