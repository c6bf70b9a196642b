"""Modes of fluctuation and stress: proper orthogonal decomposition in the quadrature product.

Every mode is a linear combination of snapshots. A combination of periodic fluctuations is
periodic, and a combination of stresses in discrete equilibrium is in discrete equilibrium:
nothing has to be imposed afterwards. The only thing that could spoil it is round-off, since weak
modes come from combinations with large coefficients; `equilibrate` removes that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fe_ol.snapshots import Snapshots
from fe_ol.voigt import strain_size

__all__ = ["Modes", "equilibrate", "fluctuation_modes", "pod", "stress_modes", "voigt_weights"]


@dataclass(frozen=True)
class Modes:
    """An orthonormal family of combinations of snapshots.

    Attributes
    ----------
    combinations : Tensor, shape (n, k)
        Mode ``j`` is the sum over the snapshots ``i`` of ``combinations[i, j] * snapshot[i]``.
    singular_values : Tensor, shape (n,)
        Of all snapshots, largest first.
    fields : Tensor, shape (k, points, components)
        The modes at the quadrature points: stresses, or the strains of fluctuations.
    fluctuation : Tensor, shape (k, dofs), or None
        The modes of the fluctuation as coefficients of the RVE's space.
    """

    combinations: Tensor
    singular_values: Tensor
    fields: Tensor
    fluctuation: Tensor | None = None

    def __len__(self) -> int:
        return self.fields.shape[0]

    @property
    def energy(self) -> float:
        """Share of the snapshots' squared norm that the modes hold, between 0 and 1."""
        squares = self.singular_values.square()
        return float(squares[: len(self)].sum() / squares.sum())


def voigt_weights(dim: int, finite: bool, strain: bool) -> Tensor:
    """Factors that turn a sum over Voigt components into the double contraction.

    Parameters
    ----------
    dim : int
        2 or 3.
    finite : bool
        Components of the deformation gradient and the first Piola stress: all factors are one.
    strain : bool
        Strain, whose shear is engineering shear (factor 1/2), or stress (factor 2).

    Returns
    -------
    Tensor, shape (components,)
    """
    weights = torch.ones(strain_size(dim, finite), dtype=torch.float64)
    if not finite:
        weights[dim:] = 0.5 if strain else 2.0
    return weights


def pod(
    snapshots: Tensor, weights: Tensor, count: int | None = None, energy: float | None = None
) -> tuple[Tensor, Tensor]:
    """Proper orthogonal decomposition by the method of snapshots (Sirovich 1987).

    Parameters
    ----------
    snapshots : Tensor, shape (n, points, components)
    weights : Tensor, shape (points, components)
        Of the inner product: quadrature weights times Voigt factors.
    count : int, optional
        Number of modes.
    energy : float, optional
        Instead of `count`: as few modes as hold this share of the squared norm, e.g. ``0.99999``.

    Returns
    -------
    combinations : Tensor, shape (n, k)
    singular_values : Tensor, shape (n,)

    Raises
    ------
    ValueError
        If not exactly one of `count` and `energy` is given, or the snapshots cannot give as many
        modes as asked for: the message says how many they can.
    """
    if (count is None) == (energy is None):
        raise ValueError(f"Give either count or energy, got count={count} and energy={energy}.")
    scaled = (snapshots * weights.sqrt()).flatten(1).numpy()
    # A QR first: the Gram matrix alone would lose half of the digits of the weak modes.
    _, singular, right = np.linalg.svd(np.linalg.qr(scaled.T, mode="r"))
    rank = int((singular > 1e-10 * singular[0]).sum()) if len(singular) and singular[0] > 0 else 0
    if energy is not None:
        if not 0 < energy < 1:
            raise ValueError(f"energy must lie between 0 and 1, got {energy}.")
        shares = np.cumsum(singular**2) / np.sum(singular**2)
        count = int(np.searchsorted(shares, energy) + 1)
    assert count is not None
    if not 1 <= count <= rank:
        raise ValueError(
            f"{len(snapshots)} snapshots span {rank} modes, {count} were asked for: take fewer "
            "modes or more snapshots."
        )
    combinations = right[:count].T / singular[:count]
    return torch.from_numpy(combinations.copy()), torch.from_numpy(singular)


def fluctuation_modes(
    rve: Any,
    snapshots: Snapshots,
    count: int | None = None,
    energy: float | None = None,
    weighted: bool = True,
) -> Modes:
    """Modes of the fluctuation, orthonormal in the L2 product of their strains.

    Parameters
    ----------
    rve : RVE
    snapshots : Snapshots
    count, energy : optional
        As `pod` takes them.
    weighted : bool, optional
        Quadrature weights in the inner product (default), or the plain Euclidean product.

    Returns
    -------
    Modes
    """
    strains = rve.gradient(snapshots.fluctuation)
    product = _product(rve, True, weighted)
    combinations, singular = pod(strains, product, count, energy)
    return Modes(
        combinations,
        singular,
        torch.tensordot(combinations.T, strains, 1),
        combinations.T @ snapshots.fluctuation,
    )


def stress_modes(
    rve: Any,
    snapshots: Snapshots,
    count: int | None = None,
    energy: float | None = None,
    weighted: bool = True,
) -> Modes:
    """Modes of the stress, orthonormal in L2 and in discrete equilibrium.

    Parameters
    ----------
    rve, snapshots, count, energy, weighted
        As in `fluctuation_modes`.

    Returns
    -------
    Modes
    """
    product = _product(rve, False, weighted)
    combinations, singular = pod(snapshots.stress, product, count, energy)
    fields = torch.tensordot(combinations.T, snapshots.stress, 1)
    return Modes(combinations, singular, equilibrate(rve, fields))


def equilibrate(rve: Any, stress: Tensor, tolerance: float = 1e-13, steps: int = 2000) -> Tensor:
    """Remove what a stress lacks to discrete equilibrium, by the smallest change in L2.

    The change is the strain of the solution of a vector Laplace problem, found by conjugate
    gradients with nothing but the RVE's gradient and divergence. For stresses that are in
    equilibrium up to round-off nothing happens.

    Parameters
    ----------
    rve : RVE
    stress : Tensor, shape (k, points, components)
    tolerance : float, optional
        Largest nodal residual that is left alone, relative to the largest nodal force that the
        stress would exert if the signs at its points were random.
    steps : int, optional

    Returns
    -------
    Tensor, shape (k, points, components)
    """
    residual = rve.divergence(stress)
    # What the points' forces add up to where they do not cancel.
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (stress.shape[1], 1), generator=generator, dtype=torch.int64)
    scale = rve.divergence(stress * (2.0 * signs - 1.0)).abs().amax(1)
    if bool((residual.abs().amax(1) <= tolerance * scale).all()):
        return stress
    u = torch.zeros_like(residual)
    direction, square = residual.clone(), residual.square().sum(1, keepdim=True)
    for _ in range(steps):
        product = rve.divergence(rve.gradient(direction))
        step = square / (direction * product).sum(1, keepdim=True).clamp_min(1e-300)
        u += step * direction
        residual = residual - step * product
        if bool((residual.abs().amax(1) <= 0.1 * tolerance * scale).all()):
            break
        last, square = square, residual.square().sum(1, keepdim=True)
        direction = residual + square / last.clamp_min(1e-300) * direction
    return stress - rve.gradient(u)


def _product(rve: Any, strain: bool, weighted: bool) -> Tensor:
    factors = voigt_weights(rve.dim, rve.finite, strain)
    points = rve.weights if weighted else torch.full_like(rve.weights, float(rve.weights.mean()))
    return points[:, None] * factors
