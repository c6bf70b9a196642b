"""EquiNO: two small networks that give the coefficients of fluctuation and stress modes."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch
from torch import Tensor, nn

from fe_ol.identity import describe_law
from fe_ol.snapshots import Snapshots
from fe_ol.surrogates import store
from fe_ol.surrogates.base import LocalFields, ModeFields, Surrogate
from fe_ol.surrogates.branch import Architecture, Branch
from fe_ol.surrogates.laws import are_odd
from fe_ol.surrogates.losses import losses_for, potential_for
from fe_ol.surrogates.optimise import Course, Training, train
from fe_ol.surrogates.potential import Potential
from fe_ol.surrogates.reduced import ReducedModel
from fe_ol.surrogates.reduced_solve import (
    ReducedSolve,
    model_for_file,
    model_from_file,
    reduced,
)

__all__ = ["EquiNO"]


class EquiNO(Surrogate):
    """Equilibrium neural operator (Eivazi et al. 2025), with improvements.

    The fluctuation is a combination of periodic modes, the stress one of modes in discrete
    equilibrium; two branch networks give the coefficients. The homogenised stress is that of the
    stress modes; the tangent is the network's derivative. Made by `fit` or `load`.

    Parameters
    ----------
    model : ReducedModel
        The modes at a few points, for corrections and for the mismatch.
    fluctuation, stress : Branch
        The networks.
    source : dict
        What the RVE is.
    radius : float
    modes : ModeFields, optional
        Without them there are no fields.
    correction_steps : int, optional
        Newton (or Gauss-Newton) steps of the reduced model that improve the networks' answer; the
        tangent is then that of the reduced solution, by the implicit function theorem.
    potential : Potential, optional
        The network for the energy, whose derivatives are then stress and tangent where there are
        no correction steps.

    Attributes
    ----------
    courses : dict of str to Course
        Loss over the epochs, after `fit`.
    """

    def __init__(
        self,
        model: ReducedModel,
        fluctuation: Branch,
        stress: Branch,
        source: dict[str, Any],
        radius: float,
        modes: ModeFields | None = None,
        correction_steps: int = 0,
        potential: Potential | None = None,
    ) -> None:
        super().__init__(source, model.reference, radius)
        if correction_steps < 0:
            raise ValueError(f"correction_steps must not be negative, got {correction_steps}.")
        self.model, self.fluctuation, self.stress = model, fluctuation, stress
        self.modes, self.correction_steps, self.potential = modes, correction_steps, potential
        self.courses: dict[str, Course] = {}

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
        correction_steps: int = 0,
        seed: int = 0,
        progress: bool = True,
        checkpoint: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> EquiNO:
        """Make modes of snapshots and train the networks; the RVE is not solved any more.

        Parameters
        ----------
        rve : RVE
        snapshots : Snapshots
        modes : int, optional
            Of the fluctuation.
        stress_count : int, optional
            Of the stress; as many by default.
        points, selection, formulation
            As `ReducedModel.build` takes them.
        weighted : bool, optional
            Quadrature weights in the modes' inner product.
        correction_steps : int, optional
        seed : int, optional
            Of weights, samples and their order.
        progress : bool, optional
        checkpoint : path, optional
            Base of the names of two files from which an interrupted training goes on.
        **options
            Of the networks (`Architecture`: width, depth, features, linear, odd, scaling, head)
            and of the training (`Training`: target, samples, epochs, batch, rate, optimiser,
            refine, relative, macro_weight).

        Returns
        -------
        EquiNO

        Raises
        ------
        TypeError
            If an option is unknown.
        ValueError
            If the snapshots are of another RVE, or an argument is out of its range.
        """
        architecture, training = _split(options)
        model, bank = reduced(
            rve, snapshots, modes, stress_count, points, selection, formulation, weighted, seed
        )
        return cls.from_model(
            model,
            snapshots,
            bank,
            architecture,
            training,
            correction_steps,
            seed,
            progress,
            checkpoint,
        )

    @classmethod
    def from_model(
        cls,
        model: ReducedModel,
        snapshots: Snapshots,
        modes: ModeFields | None = None,
        architecture: Architecture | None = None,
        training: Training | None = None,
        correction_steps: int = 0,
        seed: int = 0,
        progress: bool = True,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> EquiNO:
        """Train the networks for a reduced model that is there already.

        Parameters
        ----------
        model : ReducedModel
        snapshots : Snapshots
            For their box and their RVE; nothing is trained on them.
        modes : ModeFields, optional
        architecture : Architecture, optional
        training : Training, optional
        correction_steps, seed, progress, checkpoint
            As in `fit`.

        Returns
        -------
        EquiNO
        """
        architecture = architecture or Architecture()
        training = training or Training()
        radius, laws = snapshots.radius, model.laws.laws
        # The samples' seed is not the snapshots', even where the user's are the same.
        strain = snapshots.draw(training.samples, seed + 7919)
        if architecture.odd is None:
            odd = are_odd(laws, model.reference, radius)
            architecture = dataclasses.replace(architecture, odd=odd)
        # What the networks learn does not change with the laws, also where these may.
        with torch.no_grad():
            losses = losses_for(model, strain, architecture, training)
            slopes = {"fluctuation": model.linear[0], "stress": model.linear[1]}
            nets = nn.ModuleDict(
                {
                    name: Branch(
                        architecture, model.reference, radius, slopes[name], scale, seed + i
                    )
                    for i, (name, scale) in enumerate(losses.scales(radius).items())
                }
            )
            tasks, potential = list(losses.tasks(nets)), None
            if architecture.head == "energy":
                potential, task = potential_for(
                    model, strain, radius, architecture, training, seed + 2
                )
                tasks.append(task)
        courses = {}
        for name, networks, samples, loss in tasks:
            courses[name] = train(
                networks,
                samples,
                loss,
                training,
                seed,
                name,
                progress,
                None if checkpoint is None else f"{os.fspath(checkpoint)}.{name}",
            )
        self = cls(
            model,
            nets["fluctuation"],  # type: ignore[arg-type]
            nets["stress"],  # type: ignore[arg-type]
            # The networks are made for these laws, also where the snapshots are of several.
            {**snapshots.rve, "laws": {str(t): describe_law(m) for t, m in laws.items()}},
            radius,
            modes,
            correction_steps,
            potential,
        )
        self.courses = courses
        return self

    def _respond(self, strain: Tensor) -> tuple[Tensor, Tensor]:
        if self.correction_steps:
            a, b = self.fluctuation(strain), self.stress(strain)
            state = self.model.solve(strain, a, b, self.correction_steps)
            return state.stress, state.tangent
        if self.potential is not None:
            return self.potential.respond(strain)[1:]
        return self.stress.value_and_jacobian(strain, self.model.means)

    def solved(self, tolerance: float = 1e-10) -> ReducedSolve:
        """As many correction steps as they need: the reduced solve, started by the networks.

        Other than the networks, it follows the laws where their parameters change.

        Parameters
        ----------
        tolerance : float, optional
            As in `ReducedSolve`.

        Returns
        -------
        ReducedSolve
        """

        def start(strain: Tensor) -> tuple[Tensor, Tensor]:
            return self.fluctuation(strain), self.stress(strain)

        return ReducedSolve(self.model, self.source, self.radius, self.modes, tolerance, start)

    def coefficients(self, strain: Any) -> tuple[Tensor, Tensor]:
        """Coefficients of the fluctuation and of the stress modes, after the corrections.

        Parameters
        ----------
        strain : Tensor or array, shape (n, c)

        Returns
        -------
        a : Tensor, shape (n, na)
        b : Tensor, shape (n, nb)
        """
        strain = self._checked(strain)[0]
        with torch.no_grad():
            a, b = self.fluctuation(strain), self.stress(strain)
            if self.correction_steps:
                state = self.model.solve(strain, a, b, self.correction_steps)
                a, b = state.a, state.b
        return a, b

    def fields(self, strain: Any) -> LocalFields:
        """Fluctuation, local strain and local stress.

        Parameters
        ----------
        strain : Tensor or array, shape (n, c)

        Returns
        -------
        LocalFields

        Raises
        ------
        ValueError
            If the modes were not kept.
        """
        if self.modes is None:
            raise ValueError(
                "This surrogate was saved without its modes and has no fields: save it with "
                "fields=True."
            )
        strain = self._checked(strain)[0]
        return self.modes.combine(strain, *self.coefficients(strain))

    def mismatch(self, strain: Any) -> Tensor:
        """Distance between the law's stress and the predicted one, an error indicator for free.

        Parameters
        ----------
        strain : Tensor or array, shape (n, c)

        Returns
        -------
        Tensor, shape (n,)
            In L2 by the chosen points, relative to the law's stress.
        """
        strain = self._checked(strain)[0]
        return self.model.mismatch(strain, *self.coefficients(strain))

    def estimate(self, strain: Any, mismatch_share: float = 0.05) -> Tensor:
        """Estimated relative error of the homogenised stress, without a solve of the RVE.

        What one more step of the reduced model would change (the error of the networks), plus a
        share of the `mismatch` after that step (the error of the modes).

        Parameters
        ----------
        strain : Tensor or array, shape (n, c)
        mismatch_share : float, optional
            The error of the homogenised stress is of higher order than that of the local one. On
            the RVEs of the EquiNO benchmark it was 0.02 of the mismatch in the box of the
            snapshots, and 0.05 up to three times outside.

        Returns
        -------
        Tensor, shape (n,)
            Infinite where the reduced model has no answer.
        """
        strain = self._checked(strain)[0]
        if not len(strain):
            return torch.zeros(0, dtype=torch.float64)
        try:
            return self._estimate(strain, mismatch_share)
        except ArithmeticError:
            if len(strain) == 1:
                return torch.full((1,), torch.inf, dtype=torch.float64)
            # One bad strain must not spoil the others.
            half = len(strain) // 2
            parts = (strain[:half], strain[half:])
            return torch.cat([self.estimate(part, mismatch_share) for part in parts])

    @torch.no_grad()
    def _estimate(self, strain: Tensor, share: float) -> Tensor:
        stress = self._respond(strain)[0]
        a, b = self.fluctuation(strain), self.stress(strain)
        better = self.model.solve(strain, a, b, self.correction_steps + 1)
        sizes = better.stress.norm(dim=1).clamp_min(1e-300)
        mismatch = self.model.mismatch(strain, better.a, better.b)
        off = (stress - better.stress).norm(dim=1) / sizes + share * mismatch
        # At rest there is no stress to be relative to, and no error.
        return torch.where((strain == self.reference).all(1), torch.zeros_like(off), off)

    def save(self, path: str | os.PathLike[str], fields: bool = True) -> None:
        """Write one file: weights, modes and what they mean.

        Parameters
        ----------
        path : path
        fields : bool, optional
            Whether the modes at all points are kept; they make most of the file.
        """
        facts, tensors = model_for_file(self.model, self.modes if fields else None)
        for name in ("fluctuation", "stress"):
            net: Branch = getattr(self, name)
            tensors |= {f"{name}.{key}": value for key, value in net.state_dict().items()}
        if self.potential is not None:
            state = self.potential.state_dict()
            tensors |= {f"potential.{key}": value for key, value in state.items()}
        facts |= {
            "rve": self.source,
            "box": {"center": self.reference.tolist(), "radius": self.radius},
            "correction_steps": self.correction_steps,
            "fluctuation": self.fluctuation.config(),
            "stress": self.stress.config(),
            "potential": None if self.potential is None else self.potential.config(),
        }
        store.write(path, type(self).__name__, facts, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str], rve: Any | None = None) -> EquiNO:
        """Read what `save` wrote.

        Parameters
        ----------
        path : path
        rve : RVE, optional
            Checked to be the one of the file. Needed where a law is not one of fe_ol's.

        Returns
        -------
        EquiNO

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it holds something else, or was made for another RVE; the message says what differs.
        """
        facts, tensors = store.read(path, cls.__name__)
        model, modes = model_from_file(facts, tensors, rve)
        nets = {
            name: Branch.restored(facts[name], store.part(tensors, name))
            for name in ("fluctuation", "stress")
        }
        potential = None
        if facts["potential"] is not None:
            potential = Potential.restored(facts["potential"], store.part(tensors, "potential"))
        self = cls(
            model=model,
            **nets,
            source=facts["rve"],
            radius=facts["box"]["radius"],
            modes=modes,
            correction_steps=facts["correction_steps"],
            potential=potential,
        )
        if rve is not None:
            self.require(rve)
        return self


def _split(options: dict[str, Any]) -> tuple[Architecture, Training]:
    names = [{f.name for f in dataclasses.fields(kind)} for kind in (Architecture, Training)]
    unknown = set(options) - names[0] - names[1]
    if unknown:
        raise TypeError(
            f"EquiNO.fit has no option {sorted(unknown)[0]!r}; the networks take "
            f"{sorted(names[0])}, the training {sorted(names[1])}."
        )
    return (
        Architecture(**{k: v for k, v in options.items() if k in names[0]}),
        Training(**{k: v for k, v in options.items() if k in names[1]}),
    )
