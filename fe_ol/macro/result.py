"""What a macroscopic simulation returns: a report for each load step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fe_ol.macro.newton import Attempt

__all__ = ["LoadStepError", "MacroResult", "Step"]


@dataclass
class Step:
    """A load step.

    Attributes
    ----------
    factor : float
        Load factor.
    displacement : Function
        At the end of the step.
    reactions : dict of int to array, shape (dim,)
        Sum of the forces that hold the body at each boundary tag with a condition, and at those
        asked for. Force per thickness in two dimensions.
    attempts : list of Attempt
        Newton's method at each load factor on the way that was tried, the failed ones too.
    material_seconds, other_seconds : float
        Time in the materials, and in everything else.
    calls : int
        How often the materials were asked, for all points at once.
    arc_length : float or None
        Length of an arc-length step.
    """

    factor: float
    displacement: Any
    reactions: dict[int, np.ndarray]
    attempts: list[Attempt] = field(default_factory=list)
    material_seconds: float = 0.0
    other_seconds: float = 0.0
    calls: int = 0
    arc_length: float | None = None

    @property
    def iterations(self) -> int:
        """Newton iterations of what converged."""
        return sum(a.iterations for a in self.attempts if a.converged)

    @property
    def residuals(self) -> list[float]:
        """Relative residual before the first and after each iteration that led to the step."""
        return self.attempts[-1].residuals if self.attempts else []

    @property
    def cutbacks(self) -> int:
        """How often the step was made smaller."""
        return sum(not a.converged for a in self.attempts)

    @property
    def order(self) -> float:
        """Observed order of convergence of the last iterations; 2 for Newton's method.

        NaN where too few residuals lie above round-off.
        """
        r = [x for x in self.residuals if x > 1e-14]
        if len(r) < 3 or r[-2] >= r[-3] or r[-1] >= r[-2]:
            return float("nan")
        return float(np.log(r[-1] / r[-2]) / np.log(r[-2] / r[-3]))


@dataclass
class MacroResult:
    """The load steps of a simulation; ``print(result)`` shows their course.

    Attributes
    ----------
    steps : list of Step
    """

    steps: list[Step] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> Step:
        return self.steps[index]

    @property
    def displacement(self) -> Any:
        """Displacement at the end, a Function."""
        return self.steps[-1].displacement

    @property
    def factors(self) -> np.ndarray:
        """Load factors, shape (steps,)."""
        return np.array([s.factor for s in self.steps])

    @property
    def iterations(self) -> list[int]:
        """Newton iterations of each step."""
        return [s.iterations for s in self.steps]

    @property
    def cutbacks(self) -> int:
        """How often a step was made smaller."""
        return sum(s.cutbacks for s in self.steps)

    @property
    def material_seconds(self) -> float:
        """Time in the materials."""
        return sum(s.material_seconds for s in self.steps)

    @property
    def other_seconds(self) -> float:
        """Time in everything else."""
        return sum(s.other_seconds for s in self.steps)

    def reactions(self, tag: int) -> np.ndarray:
        """Reaction at a boundary tag over the steps, shape (steps, dim).

        Raises
        ------
        KeyError
            If it was not recorded.
        """
        known = list(self.steps[0].reactions) if self.steps else []
        if tag not in known:
            raise KeyError(
                f"The reaction at the boundary tag {tag!r} was not recorded, only those at {known}:"
                f" ask for it with MacroProblem(..., reactions=[{tag!r}])."
            )
        return np.array([s.reactions[tag] for s in self.steps])

    def __str__(self) -> str:
        lines = ["step  factor    iterations  cut-backs  material s   other s  residuals"]
        for k, s in enumerate(self.steps, 1):
            course = " ".join(f"{r:.1e}" for r in s.residuals)
            lines.append(
                f"{k:4d}  {s.factor:<9.4g} {s.iterations:10d} {s.cutbacks:10d} "
                f"{s.material_seconds:11.3f} {s.other_seconds:9.3f}  {course}"
            )
        return "\n".join(lines)


class LoadStepError(ArithmeticError):
    """A load step did not converge, however small it was made.

    Attributes
    ----------
    result : MacroResult
        The steps until then.
    """

    def __init__(self, message: str, result: MacroResult) -> None:
        super().__init__(message)
        self.result = result
