"""POD with interpolation: coefficients of the modes by radial basis functions of the strain."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from fe_ol.modes import fluctuation_modes, stress_modes, voigt_weights
from fe_ol.snapshots import Snapshots
from fe_ol.surrogates import store
from fe_ol.surrogates.base import LocalFields, ModeFields, Surrogate
from fe_ol.surrogates.laws import are_odd
from fe_ol.voigt import rest_strain

__all__ = ["Interpolation"]


class Interpolation(Surrogate):
    """Cubic radial basis functions with a linear tail, through the snapshots and the rest state.

    Nothing is trained and no law is evaluated; fields are periodic and in equilibrium like those
    of EquiNO. Made by `fit` or `load`.

    Parameters
    ----------
    centers : Tensor, shape (m, c)
        Strains, less that of the undeformed state, over the radius.
    factors : Tensor, shape (m + 1 + c, na + nb)
        Of the radial functions, of one and of the components.
    means : Tensor, shape (nb, c)
        Homogenised stresses of the stress modes.
    source : dict
    reference : Tensor, shape (c,)
    radius : float
    modes : ModeFields
    """

    def __init__(
        self,
        centers: Tensor,
        factors: Tensor,
        means: Tensor,
        source: dict[str, Any],
        reference: Tensor,
        radius: float,
        modes: ModeFields,
    ) -> None:
        super().__init__(source, reference, radius)
        self.centers, self.factors, self.means, self.modes = centers, factors, means, modes

    @classmethod
    def fit(
        cls,
        rve: Any,
        snapshots: Snapshots,
        modes: int = 16,
        stress_count: int | None = None,
        odd: bool | None = None,
    ) -> Interpolation:
        """Make modes of snapshots and interpolate the snapshots' coefficients.

        Parameters
        ----------
        rve : RVE
        snapshots : Snapshots
        modes, stress_count : int, optional
            Numbers of fluctuation and stress modes.
        odd : bool, optional
            Every snapshot counts with the other sign, too; right for laws that are odd. Found out
            by default.

        Returns
        -------
        Interpolation
        """
        snapshots.require(rve)
        fluctuation = fluctuation_modes(rve, snapshots, modes)
        stress = stress_modes(rve, snapshots, stress_count or modes)
        strains = rve.gradient(snapshots.fluctuation)
        a = _parts(rve, strains, fluctuation.fields, strain=True)
        b = _parts(rve, snapshots.stress, stress.fields, strain=False)
        reference = rest_strain(rve.dim, rve.finite)
        x = (snapshots.strain - reference) / snapshots.radius
        y = torch.cat((a, b), 1)
        if odd is None:
            odd = are_odd(rve.materials, reference, snapshots.radius)
        if odd:
            x, y = torch.cat((x, -x)), torch.cat((y, -y))
        x, y = torch.cat((x, torch.zeros_like(x[:1]))), torch.cat((y, torch.zeros_like(y[:1])))
        tail = torch.cat((torch.ones_like(x[:, :1]), x), 1)
        c1 = tail.shape[1]
        system = torch.zeros(len(x) + c1, len(x) + c1, dtype=torch.float64)
        system[: len(x), : len(x)] = torch.cdist(x, x, compute_mode=_EXACT) ** 3
        system[: len(x), len(x) :], system[len(x) :, : len(x)] = tail, tail.T
        factors = torch.linalg.solve(system, torch.cat((y, y.new_zeros(c1, y.shape[1]))))
        means = (stress.fields * rve.weights[:, None]).sum(1) / rve.volume
        bank = ModeFields.of(fluctuation, stress)
        return cls(x, factors, means, snapshots.rve, reference, snapshots.radius, bank)

    def _respond(self, strain: Tensor) -> tuple[Tensor, Tensor]:
        x = (strain - self.reference) / self.radius
        # Two products with the few columns that the mean needs.
        factors = self.factors[:, -len(self.means) :] @ self.means
        m, c = self.centers.shape
        difference = x[:, None] - self.centers
        distance = difference.square().sum(2).sqrt()
        stress = distance**3 @ factors[:m] + factors[m] + x @ factors[m + 1 :]
        slopes = (3 * distance[..., None] * difference).transpose(1, 2) @ factors[:m]
        tangent = (slopes + factors[m + 1 :]).transpose(1, 2) / self.radius
        return stress, tangent.reshape(len(x), c, c)

    def coefficients(self, strain: Any) -> tuple[Tensor, Tensor]:
        """Coefficients of the fluctuation and of the stress modes.

        Parameters
        ----------
        strain : Tensor or array, shape (n, c)

        Returns
        -------
        a : Tensor, shape (n, na)
        b : Tensor, shape (n, nb)
        """
        x = (self._checked(strain)[0] - self.reference) / self.radius
        radial = torch.cdist(x, self.centers, compute_mode=_EXACT) ** 3
        values = torch.cat((radial, torch.ones_like(x[:, :1]), x), 1) @ self.factors
        na = len(self.modes.fluctuation)
        return values[:, :na], values[:, na:]

    def fields(self, strain: Any) -> LocalFields:
        """Fluctuation, local strain and local stress.

        Parameters
        ----------
        strain : Tensor or array, shape (n, c)

        Returns
        -------
        LocalFields
        """
        strain = self._checked(strain)[0]
        return self.modes.combine(strain, *self.coefficients(strain))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one file; `load` reads it."""
        tensors = {name: getattr(self, name) for name in ("centers", "factors", "means")}
        tensors |= {f"modes.{name}": getattr(self.modes, name) for name in _MODES}
        box = {"center": self.reference.tolist(), "radius": self.radius}
        store.write(path, type(self).__name__, {"rve": self.source, "box": box}, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str], rve: Any | None = None) -> Interpolation:
        """Read what `save` wrote; an RVE that is given must be the one of the file."""
        facts, tensors = store.read(path, cls.__name__)
        self = cls(
            tensors["centers"],
            tensors["factors"],
            tensors["means"],
            facts["rve"],
            torch.tensor(facts["box"]["center"], dtype=torch.float64),
            facts["box"]["radius"],
            ModeFields(*(tensors[f"modes.{name}"] for name in _MODES)),
        )
        if rve is not None:
            self.require(rve)
        return self


_MODES = ("fluctuation", "strain", "stress")
_EXACT = "donot_use_mm_for_euclid_dist"


def _parts(rve: Any, fields: Tensor, modes: Tensor, strain: bool) -> Tensor:
    """Products of fields with orthonormal modes."""
    factors = rve.weights[:, None] * voigt_weights(rve.dim, rve.finite, strain)
    return fields.flatten(1) @ (modes * factors).flatten(1).T
