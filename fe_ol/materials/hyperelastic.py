"""Elastic laws of finite strains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fe_ol.materials.algebra import Maths
from fe_ol.materials.law import EnergyLaw, plain, require_positive

__all__ = ["NeoHookean"]


@dataclass(frozen=True)
class NeoHookean(EnergyLaw):
    """Compressible neo-Hookean law: deformation gradient in, first Piola stress out.

    Parameters
    ----------
    mu, lam : float
        Lamé's parameters at small strain.

    Raises
    ------
    ValueError
        If mu is not positive, or lam is negative.

    Notes
    -----
    Bonet and Wood (2008), *Nonlinear Continuum Mechanics for Finite Element Analysis*, eq. 6.27:
    ``mu/2 (F:F - 3) - mu log J + lam/2 (log J)^2``. Where J <= 0 the answer is NaN.
    """

    finite: ClassVar[bool] = True

    mu: float
    lam: float

    def __post_init__(self) -> None:
        require_positive(self, "mu")
        if not plain(self.lam) >= 0:
            raise ValueError(f"NeoHookean expected lam >= 0, got lam={self.lam}.")

    @classmethod
    def from_young(cls, E: float, nu: float) -> NeoHookean:
        """The law with Young's modulus `E` and Poisson's ratio `nu` at small strain."""
        if not 0 <= nu < 0.5:
            raise ValueError(f"NeoHookean expected 0 <= nu < 0.5, got nu={nu}.")
        return cls(mu=E / (2 * (1 + nu)), lam=E * nu / ((1 + nu) * (1 - 2 * nu)))

    @staticmethod
    def potential(e: Any, p: Mapping[str, Any], maths: Maths, state: Any = ()) -> Any:
        """The energy of the notes."""
        (a, b, c), (d, f, g), (h, i, k) = e
        J = a * (f * k - g * i) - b * (d * k - g * h) + c * (d * i - f * h)
        squares = sum(x * x for row in e for x in row)
        log_J = maths.log(J)
        return p["mu"] / 2 * (squares - 3) - p["mu"] * log_J + p["lam"] / 2 * log_J**2
