"""Elastic laws of small strains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fe_ol.materials.algebra import Maths
from fe_ol.materials.law import EnergyLaw, require_positive

__all__ = ["LinearElastic", "NonlinearElastic", "deviator", "squared", "trace"]

# Below the square of a norm, so that its root has a derivative at zero; no double is nearer to
# zero than this without being zero in every sum that matters.
TINY = 1e-40


def trace(e: Any) -> Any:
    """Trace of 3 x 3 nested lists."""
    return e[0][0] + e[1][1] + e[2][2]


def deviator(e: Any) -> list[list[Any]]:
    """Deviator of 3 x 3 nested lists."""
    mean = trace(e) / 3
    return [[e[i][j] - mean if i == j else e[i][j] for j in range(3)] for i in range(3)]


def squared(d: Any) -> Any:
    """D : d of a symmetric d."""
    off = d[0][1] * d[0][1] + d[0][2] * d[0][2] + d[1][2] * d[1][2]
    return d[0][0] * d[0][0] + d[1][1] * d[1][1] + d[2][2] * d[2][2] + 2 * off


@dataclass(frozen=True)
class LinearElastic(EnergyLaw):
    """Isotropic linear elasticity, ``K tr(e) I + 2 G e_D``.

    Parameters
    ----------
    K, G : float
        Bulk and shear modulus.

    Raises
    ------
    ValueError
        If a modulus is not positive.
    """

    K: float
    G: float

    def __post_init__(self) -> None:
        require_positive(self, "K", "G")

    @classmethod
    def from_young(cls, E: float, nu: float) -> LinearElastic:
        """The law with Young's modulus `E` and Poisson's ratio `nu`."""
        if not -1 < nu < 0.5:
            raise ValueError(f"LinearElastic expected -1 < nu < 0.5, got nu={nu}.")
        return cls(K=E / (3 * (1 - 2 * nu)), G=E / (2 * (1 + nu)))

    @staticmethod
    def potential(e: Any, p: Mapping[str, Any], maths: Maths, state: Any = ()) -> Any:
        """``K/2 tr(e)^2 + G e_D : e_D``."""
        return p["K"] / 2 * trace(e) ** 2 + p["G"] * squared(deviator(e))


@dataclass(frozen=True)
class NonlinearElastic(EnergyLaw):
    """An elastic law whose shear stress saturates, ``K tr(e) I + a1 / (a2 + |e_D|) e_D``.

    In plane strain e_zz = 0, and the deviator has an out-of-plane part that counts in |e_D|.

    Parameters
    ----------
    K : float
        Bulk modulus.
    a1 : float
        Norm of the deviatoric stress that is approached at large strain.
    a2 : float
        Strain at which half of it is reached; the initial shear modulus is a1 / (2 a2).

    Raises
    ------
    ValueError
        If a parameter is not positive.

    Notes
    -----
    Eivazi, Tröger, Wittek, Hartmann and Rausch (2025), *EquiNO*, the matrix material. Its potential
    is ``K/2 tr(e)^2 + a1 (n - a2 log(1 + n / a2))`` with n = |e_D|.
    """

    K: float
    a1: float
    a2: float

    def __post_init__(self) -> None:
        require_positive(self, "K", "a1", "a2")

    @staticmethod
    def potential(e: Any, p: Mapping[str, Any], maths: Maths, state: Any = ()) -> Any:
        """``K/2 tr(e)^2 + a1 a2 (x - log(1 + x))`` with x = |e_D| / a2."""
        n = maths.sqrt(squared(deviator(e)) + TINY)
        return p["K"] / 2 * trace(e) ** 2 + p["a1"] * p["a2"] * maths.x_minus_log1p(n / p["a2"])
