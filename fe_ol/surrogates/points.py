"""Which quadrature points of an RVE its reduced model keeps, and with which weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fe_ol.modes import Modes, voigt_weights
from fe_ol.snapshots import Snapshots
from fe_ol.surrogates.qdeim import cubature, qdeim

__all__ = ["SELECTIONS", "choose_points"]

SELECTIONS = ("cubature", "qdeim", "random", "all")


def choose_points(
    rve: Any,
    snapshots: Snapshots,
    fluctuation: Modes,
    stress: Modes,
    count: int,
    selection: str,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Choose quadrature points.

    Parameters
    ----------
    rve : RVE
    snapshots : Snapshots
        Their stresses tell the cubature what has to be integrated.
    fluctuation, stress : Modes
    count : int
        Largest number of points.
    selection : {"cubature", "qdeim", "random", "all"}
        Points with weights of their own that integrate the products of modes and stresses; Q-DEIM
        points of the stress modes, or random points, with the quadrature weights brought to the
        volume; or all points.
    seed : int, optional
        For random points.

    Returns
    -------
    points : Tensor of int64, shape (m,)
        Ordered by the material's tag.
    weights : Tensor, shape (m,)

    Raises
    ------
    ValueError
        If the selection is unknown, or `count` is not positive.
    """
    if selection not in SELECTIONS:
        raise ValueError(f"selection must be one of {SELECTIONS}, got {selection!r}.")
    if count < 1:
        raise ValueError(f"points must be at least 1, got {count}.")
    factors = voigt_weights(rve.dim, rve.finite, strain=False)
    weights = rve.weights
    count = min(count, len(weights))
    if selection == "cubature":
        integrands = _integrands(snapshots, fluctuation, stress, factors)
        points, chosen_weights = cubature(integrands, weights, count)
    else:
        if selection == "all":
            points = torch.arange(len(weights))
        elif selection == "random":
            generator = torch.Generator().manual_seed(seed)
            points = torch.randperm(len(weights), generator=generator)[:count]
        else:
            points = qdeim(stress.fields * (weights[:, None] * factors).sqrt(), count)
        chosen_weights = weights[points] * (weights.sum() / weights[points].sum())
    order = torch.argsort(torch.as_tensor(rve.tags)[points], stable=True)
    return points[order], chosen_weights[order]


def _integrands(snapshots: Snapshots, fluctuation: Modes, stress: Modes, factors: Tensor) -> Tensor:
    """What the reduced equations integrate, by importance: rows of values at all points."""
    size = (snapshots.stress.square() @ factors).sum(1).sqrt()
    rows = (snapshots.stress / size[:, None, None]).flatten(1)
    # The directions in which the stresses of the snapshots vary, as long as they matter.
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    kept = (values > 1e-10 * values[-1]).nonzero()[-2 * len(stress) :, 0]
    typical = torch.tensordot(vectors[:, kept].T, snapshots.stress / size[:, None, None], 1)
    groups = [
        torch.einsum("kpi,jpi->kjp", fluctuation.fields, typical).flatten(0, 1),
        typical.permute(0, 2, 1).flatten(0, 1),
        torch.einsum("kpi,jpi->kjp", stress.fields * factors, typical).flatten(0, 1),
        torch.ones(1, typical.shape[1], dtype=torch.float64),
    ]
    return torch.cat([g / g.norm() for g in groups])
