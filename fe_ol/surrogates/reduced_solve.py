"""The reduced solve as a material: the RVE among its modes, without a network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fe_ol.modes import fluctuation_modes, stress_modes
from fe_ol.snapshots import Snapshots
from fe_ol.surrogates.base import LocalFields, ModeFields, Surrogate
from fe_ol.surrogates.reduced import ReducedModel

__all__ = ["ReducedSolve", "reduced"]


class ReducedSolve(Surrogate):
    """The reduced model, solved to the end for each strain.

    Parameters
    ----------
    model : ReducedModel
    source : dict
        What the RVE is.
    radius : float
    modes : ModeFields, optional
        Without them there are no fields.
    tolerance : float, optional
        Size of the last step, relative to the coefficients.
    """

    def __init__(
        self,
        model: ReducedModel,
        source: dict[str, Any],
        radius: float,
        modes: ModeFields | None = None,
        tolerance: float = 1e-10,
    ) -> None:
        super().__init__(source, model.reference, radius)
        self.model, self.modes, self.tolerance = model, modes, tolerance

    @classmethod
    def fit(
        cls,
        rve: Any,
        snapshots: Snapshots,
        modes: int = 16,
        stress_count: int | None = None,
        points: int = 256,
        selection: str = "cubature",
        formulation: str = "energy",
        weighted: bool = True,
        seed: int = 0,
    ) -> ReducedSolve:
        """Make modes of snapshots and choose points.

        Parameters
        ----------
        rve : RVE
        snapshots : Snapshots
        modes, stress_count : int, optional
        points, selection, formulation, seed
            As `ReducedModel.build` takes them.
        weighted : bool, optional
            Quadrature weights in the modes' inner product.

        Returns
        -------
        ReducedSolve
        """
        model, bank = reduced(
            rve, snapshots, modes, stress_count, points, selection, formulation, weighted, seed
        )
        return cls(model, snapshots.rve, snapshots.radius, bank)

    def _respond(self, strain: Tensor) -> tuple[Tensor, Tensor]:
        state = self.model.solve(strain, tolerance=self.tolerance)
        return state.stress, state.tangent

    def fields(self, strain: Any) -> LocalFields:
        """Fluctuation, local strain and local stress.

        Parameters
        ----------
        strain : Tensor or array, shape (n, c)

        Returns
        -------
        LocalFields
        """
        if self.modes is None:
            raise ValueError("This reduced solve was made without modes at all points.")
        strain = self._checked(strain)[0]
        state = self.model.solve(strain, tolerance=self.tolerance)
        return self.modes.combine(strain, state.a, state.b)

    def mismatch(self, strain: Any) -> Tensor:
        """Relative distance between the law's stress and the combination of modes, shape (n,)."""
        strain = self._checked(strain)[0]
        state = self.model.solve(strain, tolerance=self.tolerance)
        with torch.no_grad():
            return self.model.mismatch(strain, state.a, state.b)


def reduced(
    rve: Any,
    snapshots: Snapshots,
    modes: int,
    stress_count: int | None,
    points: int,
    selection: str,
    formulation: str,
    weighted: bool,
    seed: int,
) -> tuple[ReducedModel, ModeFields]:
    """Modes of snapshots, and the model among them; the arguments are those of `ReducedSolve.fit`.

    Raises
    ------
    ValueError
        If the snapshots are of another RVE.
    """
    snapshots.require(rve)
    fields = fluctuation_modes(rve, snapshots, modes, weighted=weighted)
    stresses = stress_modes(rve, snapshots, stress_count or modes, weighted=weighted)
    model = ReducedModel.build(
        rve, snapshots, fields, stresses, points, selection, formulation, seed
    )
    return model, ModeFields.of(fields, stresses)
