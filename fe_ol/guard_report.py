"""What a guarded surrogate did, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["GuardReport", "GuardedStep"]


@dataclass
class GuardedStep:
    """One load step, or one call by hand.

    Attributes
    ----------
    points : int
    guarded : Tensor, shape (points,)
        bool: which points the RVE answered at the end.
    outside : Tensor, shape (points,), or None
        bool: suspicious points that policies without the RVE left to the surrogate.
    estimate : Tensor, shape (points,), or None
        Estimated relative errors of the surrogate's stress in the converged state.
    reach : float
        Largest strain component, as a multiple of the box.
    trials : int
        Suspicious answers to trial states.
    solves : int
        RVE solves.
    reviews : int
        Converged states that were judged.
    seconds : float
        Spent in the RVE.
    """

    points: int = 0
    guarded: Tensor | None = None
    outside: Tensor | None = None
    estimate: Tensor | None = None
    reach: float = 0.0
    trials: int = 0
    solves: int = 0
    reviews: int = 0
    seconds: float = 0.0

    @property
    def count(self) -> int:
        """Number of points that the RVE answered."""
        return 0 if self.guarded is None else int(self.guarded.sum())


@dataclass
class GuardReport:
    """What was guarded.

    Attributes
    ----------
    steps : list of GuardedStep
    fits : list of float
        Seconds of each refit.
    """

    steps: list[GuardedStep] = field(default_factory=list)
    fits: list[float] = field(default_factory=list)

    @property
    def solves(self) -> int:
        """RVE solves in all."""
        return sum(step.solves for step in self.steps)

    @property
    def share(self) -> float:
        """Share of the points, over all steps, that the RVE answered in the converged state."""
        points = sum(step.points for step in self.steps)
        return sum(step.count for step in self.steps) / points if points else 0.0

    def clear(self) -> None:
        """Forget all steps."""
        self.steps.clear()
        self.fits.clear()

    def __str__(self) -> str:
        lines = [
            f"{'step':>4} {'reach':>6} {'guarded':>8} {'of':>7} {'trials':>7} {'reviews':>8} "
            f"{'solves':>7} {'RVE s':>7}"
        ]
        lines += [
            f"{k:4d} {s.reach:6.2f} {s.count:8d} {s.points:7d} {s.trials:7d} {s.reviews:8d} "
            f"{s.solves:7d} {s.seconds:7.1f}"
            for k, s in enumerate(self.steps)
        ]
        return "\n".join(lines)
