"""What all surrogates have in common: they are materials, and know where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fe_ol.identity import compare_identities, identity
from fe_ol.materials.protocol import Response
from fe_ol.modes import Modes
from fe_ol.voigt import checked_strain

__all__ = ["LocalFields", "ModeFields", "Surrogate"]


@dataclass(frozen=True)
class LocalFields:
    """Fields inside the RVE for some macroscopic strains.

    Attributes
    ----------
    fluctuation : Tensor, shape (n, dofs)
        Coefficients of the RVE's space.
    strain : Tensor, shape (n, points, c)
        Macroscopic strain plus that of the fluctuation, at the quadrature points.
    stress : Tensor, shape (n, points, c)
        In discrete equilibrium to round-off.
    """

    fluctuation: Tensor
    strain: Tensor
    stress: Tensor


@dataclass(frozen=True)
class ModeFields:
    """Modes at all points, for fields on demand.

    Attributes
    ----------
    fluctuation : Tensor, shape (na, dofs)
    strain : Tensor, shape (na, points, c)
    stress : Tensor, shape (nb, points, c)
    """

    fluctuation: Tensor
    strain: Tensor
    stress: Tensor

    @classmethod
    def of(cls, fluctuation: Modes, stress: Modes) -> ModeFields:
        """The fields of modes."""
        assert fluctuation.fluctuation is not None
        return cls(fluctuation.fluctuation, fluctuation.fields, stress.fields)

    def combine(self, strain: Tensor, a: Tensor, b: Tensor) -> LocalFields:
        """Fields from coefficients (n, na) and (n, nb)."""
        return LocalFields(
            a @ self.fluctuation,
            strain[:, None] + torch.tensordot(a, self.strain, 1),
            torch.tensordot(b, self.stress, 1),
        )


class Surrogate:
    """A material that stands for an RVE.

    Parameters
    ----------
    source : dict
        `fe_ol.identity.identity` of the RVE.
    reference : Tensor, shape (c,)
        Strain of the undeformed state.
    radius : float
        Half the edge of the box of strains around it that the snapshots cover.

    Attributes
    ----------
    dim : int
    finite : bool
    history : bool
        Always False.
    """

    history = False

    def __init__(self, source: dict[str, Any], reference: Tensor, radius: float) -> None:
        self.source, self.reference, self.radius = source, reference, float(radius)
        self.dim, self.finite = int(source["dim"]), bool(source["finite"])

    @property
    def components(self) -> int:
        """Number of components of strain and stress."""
        return len(self.reference)

    def __call__(self, strain: Any, state: Any = None, tangent: bool = True) -> Response:
        """Homogenised stress and consistent tangent.

        Parameters
        ----------
        strain : Tensor or array, shape (n, c) or (c,)
            (E_xx, E_yy, 2 E_xy) in 2D; the deformation gradient at finite strain.
        state : None
            Surrogates have no history.
        tangent : bool, optional
            It comes with the stress at little cost; False leaves it out of the response.

        Returns
        -------
        Response
            ``stress (n, c)``, ``tangent (n, c, c)``.

        Raises
        ------
        TypeError, ValueError
            If the strain is not float64, finite, and of that shape.
        """
        if state is not None:
            raise ValueError("A surrogate has no history: state must be None.")
        x, single = self._checked(strain)
        with torch.no_grad():
            stress, slope = self._respond(x)
        if single:
            stress, slope = stress[0], slope[0]
        return Response(stress, slope if tangent else None, None)

    def initial_state(self, n: int) -> None:
        """None: there is no history."""
        return None

    def differentiable_stress(self, strain: Tensor) -> Tensor:
        """Homogenised stress as a function that torch follows, to the weights too.

        Parameters
        ----------
        strain : Tensor, shape (n, c)

        Returns
        -------
        Tensor, shape (n, c)
        """
        return self._respond(strain)[0]

    def _checked(self, strain: Any) -> tuple[Tensor, bool]:
        x, single = checked_strain(strain, (self.components,), type(self).__name__)
        return x.detach(), single

    def _respond(self, strain: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def require(self, rve: Any) -> None:
        """Check that an RVE is the one that this surrogate stands for.

        Raises
        ------
        ValueError
            If it is not; the message names what differs.
        """
        lines = compare_identities(self.source, identity(rve))
        if lines:
            raise ValueError(f"The surrogate was made for another RVE: {'; '.join(lines)}.")
