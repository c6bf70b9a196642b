"""A surrogate that is believed only where there is reason to."""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch
from mpi4py import MPI
from torch import Tensor

from fe_ol.guard_report import GuardedStep, GuardReport
from fe_ol.learning import Lessons
from fe_ol.materials.protocol import Response
from fe_ol.snapshots import Snapshots
from fe_ol.voigt import checked_strain

__all__ = ["POLICIES", "GuardError", "GuardWarning", "Guarded"]

POLICIES = ("fallback", "learn", "clamp", "warn", "raise")
# With an estimate of the error, the box is only a bound to how far the estimate is believed.
_LIMIT_WITH_ESTIMATE = 3.0
# Step of the differences of tangents on the border, as a share of the box.
_DIFFERENCE = 1e-5


class GuardError(RuntimeError):
    """A surrogate was asked for what it cannot be trusted with; ``policy="raise"``."""


class GuardWarning(UserWarning):
    """A surrogate answered for what it cannot be trusted with; ``policy="warn"``."""


class Guarded:
    """A surrogate with a range check and an error estimate, and an RVE to fall back to.

    A strain is *suspicious* if the surrogate's own estimate of the error of its stress exceeds
    `tolerance` (surrogates with a method ``estimate``), or if it lies outside of `limit` times the
    box of the training strains.

    Called by hand, each strain is judged at once. A `MacroProblem` tells *trial* states of Newton's
    method from *converged* ones: suspicious trial strains are answered by the surrogate's linear
    extrapolation from the border of its box, since most of them never come back; only where the
    converged strain of a load step is suspicious does the policy act, and the step is iterated
    further. Within a step a point changes hands only when an iteration has converged, or Newton's
    method would see another law in each iteration. A point that has fallen back stays with the RVE
    until its estimate is below `hysteresis` times the tolerance in a converged state, so that it
    does not switch for ever.

    Parameters
    ----------
    surrogate : Surrogate
    rve : RVE
        What it stands for.
    tolerance : float, optional
        Of the relative error of the homogenised stress.
    policy : {"fallback", "learn", "clamp", "warn", "raise"}, optional
        What to do at suspicious points: ask the RVE; ask it, and refit the surrogate with what it
        answered (see `learn`); extrapolate linearly from the border of the box; warn; or raise.
    limit : float, optional
        1 for surrogates without an estimate, 3 for those with one.
    hysteresis : float, optional
    snapshots : Snapshots, optional
        What the surrogate was made of; for the policy "learn".
    learn_at : int, optional
        Number of strains answered by the RVE in converged states from which `learn` is called at
        the end of a load step. By default it is called by hand only, after a run.
    fit_options : dict, optional
        For the surrogate's ``fit`` when it learns.

    Attributes
    ----------
    report : GuardReport
        What was guarded, step by step.
    active : Tensor, shape (n,)
        bool: the points of the last call that the RVE answers.

    Raises
    ------
    ValueError
        If the surrogate stands for another RVE, or an argument is out of its range.
    NotImplementedError
        If it is to learn on several processes.
    """

    history = False
    active: Tensor
    _committed: Tensor
    _doubtful: Tensor
    _trusted: Tensor

    def __init__(
        self,
        surrogate: Any,
        rve: Any,
        tolerance: float = 1e-2,
        policy: str = "fallback",
        limit: float | None = None,
        hysteresis: float = 0.5,
        snapshots: Snapshots | None = None,
        learn_at: int | None = None,
        fit_options: dict[str, Any] | None = None,
    ) -> None:
        if policy not in POLICIES:
            raise ValueError(f"policy must be one of {POLICIES}, got {policy!r}.")
        if not tolerance > 0 or not 0 < hysteresis <= 1:
            raise ValueError(
                "Expected tolerance > 0 and 0 < hysteresis <= 1, got "
                f"tolerance={tolerance}, hysteresis={hysteresis}."
            )
        if limit is not None and not limit >= 1:
            raise ValueError(f"limit is a multiple of the box, at least 1, got {limit}.")
        surrogate.require(rve)
        if policy == "learn":
            if snapshots is None:
                raise ValueError(
                    'policy="learn" adds to the snapshots that the surrogate was made of: give '
                    "them as snapshots=."
                )
            if MPI.COMM_WORLD.size > 1:
                raise NotImplementedError(
                    'policy="learn" works on one process; take "fallback" under MPI.'
                )
            snapshots.require(rve)
        self.surrogate, self.rve, self.tolerance, self.policy = surrogate, rve, tolerance, policy
        self.hysteresis, self.learn_at = hysteresis, learn_at
        estimates = hasattr(surrogate, "estimate")
        self.limit = float((_LIMIT_WITH_ESTIMATE if estimates else 1.0) if limit is None else limit)
        self.lessons = Lessons(rve, snapshots, type(surrogate), fit_options or {})
        self.dim, self.finite = surrogate.dim, surrogate.finite
        self.report = GuardReport()
        self.forget()

    def __repr__(self) -> str:
        kind = type(self.surrogate).__name__
        return f"Guarded({kind}, tolerance={self.tolerance:g}, policy={self.policy!r})"

    def initial_state(self, n: int) -> None:
        """None: there is no history."""
        return None

    def forget(self) -> None:
        """Begin anew: no point is with the RVE, nothing is left of a run but its report."""
        self.active = torch.zeros(0, dtype=torch.bool)
        self._committed = self.active
        self._states: dict[int, Tensor] = {}
        self._begin_step()

    # ---- by hand -------------------------------------------------------------------------------

    def __call__(self, strain: Any, state: Any = None, tangent: bool = True) -> Response:
        """Stress and tangent, each strain judged at once.

        Parameters
        ----------
        strain : array, shape (n, c) or (c,)
        state : None
        tangent : bool, optional

        Returns
        -------
        Response

        Raises
        ------
        GuardError
            With ``policy="raise"``, for suspicious strains.
        """
        x, single = checked_strain(strain, (len(self.surrogate.reference),), repr(self))
        x = x.detach()
        self.forget()
        self._count(len(x))
        suspicious = self.estimate(x) > self.tolerance
        self._act(suspicious, x)
        response = self._answer(x, suspicious)
        self._close(x)
        self._begin_step()
        stress, slope = response.stress, response.tangent
        if single:
            stress, slope = stress[0], None if slope is None else slope[0]
        return Response(stress, slope if tangent else None)

    def estimate(self, strain: Tensor) -> Tensor:
        """Estimated relative error of the surrogate's stress; infinite beyond `limit`.

        Parameters
        ----------
        strain : Tensor, shape (n, c)

        Returns
        -------
        Tensor, shape (n,)
        """
        out = torch.zeros(len(strain), dtype=torch.float64)
        far = self._reach(strain) > self.limit
        out[far] = torch.inf
        if hasattr(self.surrogate, "estimate") and not far.all():
            found = self.surrogate.estimate(strain[~far])
            out[~far] = torch.where(torch.isfinite(found), found, torch.inf)
        return out

    # ---- in a macroscopic problem --------------------------------------------------------------

    def trial(self, strain: Tensor, state: Any = None) -> Response:
        """Answer for the strains of one iteration of Newton's method.

        Parameters
        ----------
        strain : Tensor, shape (n, c)
            Of all points, in the same order in each call.
        state : None

        Returns
        -------
        Response
        """
        self._count(len(strain))
        reach = self._reach(strain)
        suspicious = reach > self.limit
        # Inside of its box the surrogate is believed until the step has converged.
        outside = (reach > 1.0) & ~suspicious & ~self.active & ~self._doubtful & ~self._trusted
        if outside.any() and hasattr(self.surrogate, "estimate"):
            suspicious[outside] = self.estimate(strain[outside]) > self.tolerance
        self._step.trials += int((suspicious & ~self.active).sum())
        if self.policy != "warn":
            self._doubtful = self._doubtful | (suspicious & ~self.active & ~self._trusted)
        return self._answer(strain, self._doubtful)

    def review(self, strain: Tensor, state: Any = None) -> bool:
        """Judge the strains of a converged iteration.

        Parameters
        ----------
        strain : Tensor, shape (n, c)

        Returns
        -------
        bool
            Whether the answers stand. Otherwise points went over to the RVE, and the step has to
            be iterated further.

        Raises
        ------
        GuardError
            With ``policy="raise"``, for suspicious strains.
        """
        self._count(len(strain))
        error = self.estimate(strain)
        self._step.reviews += 1
        suspicious = (error > self.tolerance) & ~self.active
        self._step.estimate = error
        changed = self._act(suspicious, strain)
        # What was extrapolated on the way and is in order now; once in a step.
        released = self._doubtful & ~suspicious & ~self._trusted
        self._doubtful = self._doubtful & ~released
        self._trusted = self._trusted | released
        if self.policy == "clamp":
            added = suspicious & ~self._doubtful
            self._doubtful = self._doubtful | added
            released = released | added
        self._doubtful = self._doubtful & ~self.active
        # On the border and inside, the extrapolation is the surrogate's own answer.
        changed |= bool((released & (self._reach(strain) > 1.0)).any())
        return not changed

    def converged(self, strain: Tensor, state: Any = None) -> None:
        """The step is over: note what was guarded, release points, learn."""
        if self._step.estimate is None:
            self._step.estimate = self.estimate(strain)
        calm = self._step.estimate <= self.hysteresis * self.tolerance
        self._close(strain)
        self.active = self.active & ~calm
        self._committed = self.active.clone()
        self._drop_states()
        self._begin_step()
        if self.policy == "learn" and self.learn_at and len(self.lessons) >= self.learn_at:
            self.learn()

    def rejected(self) -> None:
        """The step has failed: back to the points that were with the RVE before it."""
        self.active = self._committed.clone()
        self._drop_states()
        self._begin_step()

    def learn(self, progress: bool = False) -> Any:
        """Fit the surrogate again, with the cells that the RVE has solved in converged states.

        Parameters
        ----------
        progress : bool, optional

        Returns
        -------
        Surrogate
            The new one, which this object uses from now on.

        Raises
        ------
        ValueError
            If the policy is another one, or the RVE was never asked.
        """
        if self.policy != "learn":
            raise ValueError(f'learn needs policy="learn", this is {self!r}.')
        start = time.perf_counter()
        self.surrogate = self.lessons.taught(progress)
        self.report.fits.append(time.perf_counter() - start)
        self.active = torch.zeros_like(self.active)
        self._committed = self.active.clone()
        self._states = {}
        return self.surrogate

    # ---- inside --------------------------------------------------------------------------------

    def _reach(self, strain: Tensor) -> Tensor:
        """Where a strain lies: 1 on the border of the box."""
        change = (strain - self.surrogate.reference).abs().amax(1)
        return change / (self.surrogate.radius * (1 + 1e-9))

    def _act(self, suspicious: Tensor, strain: Tensor) -> bool:
        """What the policy does about newly suspicious points; whether answers change by it."""
        count = int(suspicious.sum())
        if not count:
            return False
        if self.policy in ("fallback", "learn"):
            self.active = self.active | suspicious
            return True
        worst = strain[suspicious][int(self._reach(strain[suspicious]).argmax())]
        what = (
            f"{count} of {len(strain)} strains are beyond the surrogate: the estimated error of "
            f"its stress exceeds {self.tolerance:g}, or they lie outside {self.limit:g} times the "
            f"box +-{self.surrogate.radius:g} of its snapshots; the farthest is "
            f"{[float(f'{v:.4g}') for v in worst]}."
        )
        if self.policy == "raise":
            raise GuardError(
                f'{what} Sample snapshots from a larger box, or choose policy="fallback".'
            )
        if self.policy == "warn":
            warnings.warn(GuardWarning(what), stacklevel=3)
        self._step.outside = suspicious
        return False

    def _answer(self, strain: Tensor, suspicious: Tensor) -> Response:
        active = self.active
        stress = torch.zeros_like(strain)
        tangent = strain.new_zeros(*strain.shape, strain.shape[1])
        extrapolated = suspicious & ~active
        if self.policy == "warn":
            extrapolated = torch.zeros_like(active)
        plain = ~active & ~extrapolated
        if plain.any():
            response = self.surrogate(strain[plain])
            stress[plain], tangent[plain] = response.stress, response.tangent
        if extrapolated.any():
            stress[extrapolated], tangent[extrapolated] = self._extrapolated(strain[extrapolated])
        if active.any():
            start = time.perf_counter()
            places = torch.nonzero(active)[:, 0].tolist()
            states = self._starts(strain, places)
            response = self.rve(strain[active], states)
            stress[active], tangent[active] = response.stress, response.tangent
            self._states.update(zip(places, response.state, strict=True))
            self._step.solves += len(places)
            self._step.seconds += time.perf_counter() - start
        return Response(stress, tangent)

    def _extrapolated(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Linear from the nearest point of the box, with the derivative of just that."""
        reference, r = self.surrogate.reference, self.surrogate.radius
        change = (x - reference).clamp(-r, r)
        border, inside = reference + change, change.abs() < r
        response = self.surrogate(border)
        beyond = x - border
        stress = response.stress + torch.einsum("nij,nj->ni", response.tangent, beyond)
        tangent = response.tangent.clone()
        # Where a component is inside, the border moves along with it, and the slopes there change.
        for j in range(x.shape[1]):
            rows = inside[:, j]
            if rows.any():
                h = torch.zeros(x.shape[1], dtype=torch.float64)
                h[j] = _DIFFERENCE * r
                after, before = (self.surrogate(border[rows] + k * h).tangent for k in (1, -1))
                turn = (after - before) / (2 * _DIFFERENCE * r)
                tangent[rows, :, j] += torch.einsum("nij,nj->ni", turn, beyond[rows])
        return stress, tangent

    def _begin_step(self) -> None:
        self._step = GuardedStep()
        # Points whose strain was suspicious on the way, and those of them that were in order after
        # all: both keep to their kind of answer until an iteration has converged.
        self._doubtful = torch.zeros_like(self.active)
        self._trusted = torch.zeros_like(self.active)

    def _count(self, n: int) -> None:
        """Begin anew with other points."""
        if len(self.active) != n:
            self.active = torch.zeros(n, dtype=torch.bool)
            self._committed = self.active.clone()
            self._states = {}
            self._begin_step()

    def _drop_states(self) -> None:
        """Forget the cells of points that are not with the RVE."""
        self._states = {i: s for i, s in self._states.items() if bool(self.active[i])}

    def _starts(self, strain: Tensor, places: list[int]) -> Tensor:
        """Where the RVE starts: from its last answer, or from the surrogate's fluctuation.

        Guesses are not kept: were the solve to fail, they would pass for solved cells.
        """
        states = dict(self._states)
        new = [i for i in places if i not in states]
        if new:
            fields = getattr(self.surrogate, "modes", None)
            reach = self._reach(strain[new])
            if fields is None or float(reach.max()) > 2 * self.limit:
                guesses = self.rve.start(self.surrogate.reference.expand(len(new), -1))
            else:
                x = strain[new]
                a = self.surrogate.coefficients(x)[0]
                guesses = self.rve.start(x, a @ fields.fluctuation)
            states.update(zip(new, guesses, strict=True))
        return torch.stack([states[i] for i in places])

    def _close(self, strain: Tensor) -> None:
        step = self._step
        step.points, step.guarded = len(strain), self.active.clone()
        step.reach = float(self._reach(strain).max()) if len(strain) else 0.0
        if self.policy == "learn" and self._states:
            self.lessons.note(torch.stack(list(self._states.values())))
        self.report.steps.append(step)
