"""The reduced solve as a material: the RVE among its modes, without a network."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fe_ol.modes import fluctuation_modes, stress_modes
from fe_ol.snapshots import Snapshots
from fe_ol.surrogates import store
from fe_ol.surrogates.base import LocalFields, ModeFields, Surrogate
from fe_ol.surrogates.reduced import ReducedModel, ReducedState
from fe_ol.surrogates.reduced_sensitivity import pull_back

__all__ = ["ReducedSolve", "model_for_file", "model_from_file", "reduced"]

# What of a reduced model goes into a file.
_TENSORS = (
    "weights",
    "tags",
    "strain_modes",
    "stress_modes",
    "means",
    "reference",
    "factors",
)


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
    start : callable, optional
        From strains (n, c) to the coefficients a (n, na) and b (n, nb) where the solve starts;
        those of the linear law by default.

    Notes
    -----
    The answer follows the laws of the RVE: where a parameter of theirs is a tensor, it may be
    changed in place, within the range that the snapshots cover (`Snapshots.joined`), and
    `pull_back` gives derivatives by it.
    """

    def __init__(
        self,
        model: ReducedModel,
        source: dict[str, Any],
        radius: float,
        modes: ModeFields | None = None,
        tolerance: float = 1e-10,
        start: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        super().__init__(source, model.reference, radius)
        self.model, self.modes, self.tolerance, self.start = model, modes, tolerance, start

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

    @property
    def materials(self) -> dict[int, Any]:
        """The laws by tag."""
        return self.model.laws.laws

    def pull_back(self, strain: Tensor, seed: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Derivative of ``sum(seed * stress)`` by tensors in the laws, at fixed mean strains.

        Parameters
        ----------
        strain, seed : Tensor, shape (n, c)
        tensors : sequence of Tensor
            Leaves that require a gradient, as in ``LinearElastic(K=tensor, G=tensor)``.

        Returns
        -------
        list of Tensor
            In the shapes of `tensors`; zero where no law holds one.

        Raises
        ------
        NotImplementedError
            For ``formulation="mismatch"``.
        """
        x = self._checked(strain)[0]
        with torch.no_grad():
            a = self._solved(x).a
        return pull_back(self.model, x, a, seed, tensors)

    def _solved(self, strain: Tensor) -> ReducedState:
        a, b = (None, None) if self.start is None else self.start(strain)
        return self.model.solve(strain, a, b, tolerance=self.tolerance)

    def _respond(self, strain: Tensor) -> tuple[Tensor, Tensor]:
        state = self._solved(strain)
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
        with torch.no_grad():
            state = self._solved(strain)
        return self.modes.combine(strain, state.a, state.b)

    def mismatch(self, strain: Any) -> Tensor:
        """Relative distance between the law's stress and the combination of modes, shape (n,)."""
        strain = self._checked(strain)[0]
        with torch.no_grad():
            state = self._solved(strain)
            return self.model.mismatch(strain, state.a, state.b)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one file; `load` reads it. Where `start` begins is left out."""
        facts, tensors = model_for_file(self.model, self.modes)
        facts |= {
            "rve": self.source,
            "box": {"center": self.reference.tolist(), "radius": self.radius},
            "tolerance": self.tolerance,
        }
        store.write(path, type(self).__name__, facts, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str], rve: Any | None = None) -> ReducedSolve:
        """Read what `save` wrote.

        Parameters
        ----------
        path : path
        rve : RVE, optional
            Checked to be the one of the file. Needed where a law is not one of fe_ol's.

        Returns
        -------
        ReducedSolve

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it holds something else, or was made for another RVE; the message says what differs.
        """
        facts, tensors = store.read(path, cls.__name__)
        model, modes = model_from_file(facts, tensors, rve)
        self = cls(model, facts["rve"], facts["box"]["radius"], modes, facts["tolerance"])
        if rve is not None:
            self.require(rve)
        return self


_FIELDS = tuple(f.name for f in dataclasses.fields(ModeFields))


def model_for_file(
    model: ReducedModel, modes: ModeFields | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Facts and tensors from which `model_from_file` makes a reduced model and its modes again."""
    tensors = {f"model.{name}": getattr(model, name) for name in _TENSORS}
    if modes is not None:
        tensors |= {f"modes.{name}": getattr(modes, name) for name in _FIELDS}
    return {"formulation": model.formulation, "volume": model.volume}, tensors


def model_from_file(
    facts: dict[str, Any], tensors: dict[str, Tensor], rve: Any | None
) -> tuple[ReducedModel, ModeFields | None]:
    """A reduced model and, if they were kept, its modes; laws of the RVE, or those of the file."""
    laws = store.laws_from_json(facts["rve"]["laws"]) if rve is None else rve.materials
    model = ReducedModel(
        **store.part(tensors, "model"),
        volume=facts["volume"],
        laws=laws,
        formulation=facts["formulation"],
    )
    modes = ModeFields(**store.part(tensors, "modes")) if "modes.stress" in tensors else None
    return model, modes


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
    snapshots.require(rve, joined=True)
    fields = fluctuation_modes(rve, snapshots, modes, weighted=weighted)
    stresses = stress_modes(rve, snapshots, stress_count or modes, weighted=weighted)
    model = ReducedModel.build(
        rve, snapshots, fields, stresses, points, selection, formulation, seed
    )
    return model, ModeFields.of(fields, stresses)
