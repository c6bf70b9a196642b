"""Plasticity of small strains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fe_ol.materials.algebra import Maths, TorchMaths
from fe_ol.materials.elastic import TINY, deviator, squared, trace
from fe_ol.materials.law import _EMBEDDINGS, EnergyLaw, plain, require_positive

__all__ = ["J2Plasticity"]

# The symmetric tensor of plastic strain in the state: its components by the size of the strain.
_PLANE = ((0, 0), (1, 1), (2, 2), (0, 1))
_SOLID = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


@dataclass(frozen=True)
class J2Plasticity(EnergyLaw):
    """Von Mises plasticity with linear isotropic hardening.

    The state of a point is its plastic strain tensor (xx, yy, zz, xy in the plane; xx, yy, zz, yz,
    xz, xy in space; shears not doubled) and its equivalent plastic strain. Steps are implicit
    (radial return), the tangent is the consistent one.

    Parameters
    ----------
    K, G : float
        Bulk and shear modulus.
    yield_stress : float
        Uniaxial stress at first yield.
    hardening : float
        d yield stress / d equivalent plastic strain.

    Raises
    ------
    ValueError
        If a parameter is not positive, or the hardening is negative.

    Notes
    -----
    Simo and Hughes (1998), *Computational Inelasticity*, box 3.2. Linear hardening makes the step a
    minimum of the incremental energy ``K/2 tr(e)^2 + G |d|^2 - <f>^2 / (4 G + 4/3 H)`` with
    d = e_D - e_p and f = 2 G |d| - sqrt(2/3) (yield stress + H alpha), whose first derivative is
    the radial return and whose second is the consistent tangent (Ortiz and Stainier 1999).
    """

    history: ClassVar[bool] = True

    K: float
    G: float
    yield_stress: float
    hardening: float

    def __post_init__(self) -> None:
        require_positive(self, "K", "G", "yield_stress")
        if not plain(self.hardening) >= 0:
            raise ValueError(f"J2Plasticity expected hardening >= 0, got {self.hardening}.")

    @classmethod
    def state_size(cls, strain_size: int) -> int:
        """Plastic strain and equivalent plastic strain: 5 in the plane, 7 in space."""
        return len(_SOLID if strain_size == 6 else _PLANE) + 1

    @staticmethod
    def potential(e: Any, p: Mapping[str, Any], maths: Maths, state: Any = ()) -> Any:
        """The incremental energy of the notes."""
        d, f, _ = _trial(e, p, maths, state)
        slope = 4 * p["G"] + 4 * p["hardening"] / 3
        return p["K"] / 2 * trace(e) ** 2 + p["G"] * squared(d) - maths.positive(f) ** 2 / slope

    def next_state(self, strain: Tensor, state: Tensor | None) -> Tensor:
        """Plastic strain and equivalent plastic strain after the step."""
        assert state is not None
        p, maths = self._named(), TorchMaths
        d, f, norm = _trial(_EMBEDDINGS[False][len(strain)](list(strain)), p, maths, state)
        flow = maths.positive(f) / (2 * p["G"] + 2 * p["hardening"] / 3)
        places = _SOLID if len(strain) == 6 else _PLANE
        moved = [state[k] + flow * d[i][j] / norm for k, (i, j) in enumerate(places)]
        return torch.stack([*moved, state[len(places)] + (2 / 3) ** 0.5 * flow])


def _trial(e: Any, p: Mapping[str, Any], maths: Any, state: Any) -> tuple[Any, Any, Any]:
    """Elastic deviator, yield function and the norm of the deviator, of an elastic step."""
    places = _SOLID if len(state) == len(_SOLID) + 1 else _PLANE
    plastic: list[list[Any]] = [[0] * 3 for _ in range(3)]
    for value, (i, j) in zip(state, places, strict=False):
        plastic[i][j] = plastic[j][i] = value
    full = deviator(e)
    d = [[full[i][j] - plastic[i][j] for j in range(3)] for i in range(3)]
    norm = maths.sqrt(squared(d) + TINY)
    limit = p["yield_stress"] + p["hardening"] * state[len(places)]
    return d, 2 * p["G"] * norm - (2 / 3) ** 0.5 * limit, norm
