"""Step control: load steps that are cut back and grow again, and steps along the arc."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fe_ol.macro.newton import Attempt, Newton
from fe_ol.macro.points import Points
from fe_ol.macro.system import FAILURES, System

__all__ = ["ArcControl", "ArcLength", "LoadControl", "StepFailure"]


class StepFailure(ArithmeticError):
    """A step failed, however small it was made."""


class LoadControl:
    """From one load factor to another, in as many parts as it takes.

    Parameters
    ----------
    system : System
    points : Points
    newton : Newton
    max_cutbacks : int
        A step may be halved this often.

    Attributes
    ----------
    factor : float
        Load factor that was reached.
    increment : float or None
        What the next part may be at most; None for no limit.
    """

    def __init__(self, system: System, points: Points, newton: Newton, max_cutbacks: int) -> None:
        self.system, self.points, self.newton = system, points, newton
        self.max_cutbacks = max_cutbacks
        self.factor = 0.0
        self.increment: float | None = None

    def advance(self, target: float, attempts: list[Attempt]) -> None:
        """Go to a load factor; the states at the end are committed.

        Parameters
        ----------
        target : float
        attempts : list of Attempt
            Is appended to.

        Raises
        ------
        StepFailure
        """
        whole = target - self.factor
        size = abs(whole) if self.increment is None else min(self.increment, abs(whole))
        smallest = abs(whole) * 0.5**self.max_cutbacks
        cut = size < abs(whole)
        while True:
            left = target - self.factor
            last = size >= abs(left) * (1 - 1e-12)
            factor = target if last else self.factor + math.copysign(size, whole)
            before = self.system.values()
            attempt = self.newton.solve(factor)
            attempts.append(attempt)
            if attempt.converged:
                commit(self.system, self.points)
                self.factor = factor
                size *= 2
                if last:
                    break
                continue
            self.system.set(before)
            self.points.reject()
            cut, size = True, min(size, abs(left)) / 2
            if size < smallest or not whole:
                raise StepFailure(
                    f"the step from the load factor {self.factor:g} to {target:g} failed, at the "
                    f"end with {factor:g}: {attempt.reason}"
                )
        self.increment = size if cut and size < abs(whole) else None


def commit(system: System, points: Points) -> None:
    """Make the present displacement a converged one."""
    system.evaluate(points)
    points.commit(system.read_strains())


@dataclass(frozen=True)
class ArcLength:
    """Steps along the path of displacement and load factor, past points where the load falls.

    Parameters
    ----------
    first : float, optional
        Change of the load factor in the first step, as far as the path is straight. Its sign is the
        direction in which the path is entered. The length of this step is the unit of `largest`.
    steps : int, optional
        At most so many.
    until : float, optional
        The path is left where the load factor passes this value in the direction of `first`; the
        last step ends there.
    stop : callable, optional
        Called with each `Step`; the path is left where it returns True.
    iterations : int, optional
        Number of iterations that the length is adapted to.
    largest : float, optional
        Longest step, as a multiple of the first one.

    Notes
    -----
    The cylindrical method of Crisfield (1981), *A fast incremental/iterative solution procedure
    that handles "snap-through"*: each step moves the displacements by the same length. Of the two
    roots the one is taken whose displacement turns least; the predictor goes on as the last step
    went (Feng, Perić and Owen 1996).
    """

    first: float = 0.1
    steps: int = 50
    until: float = math.inf
    stop: Callable[[Any], bool] | None = None
    iterations: int = 5
    largest: float = 4.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.first) and self.first != 0):
            raise ValueError(f"ArcLength expected first != 0, got first={self.first}.")
        if self.steps < 1 or self.iterations < 1 or not self.largest > 0:
            raise ValueError(
                "ArcLength expected steps >= 1, iterations >= 1 and largest > 0, got "
                f"steps={self.steps}, iterations={self.iterations}, largest={self.largest}."
            )


class ArcControl:
    """Steps along the arc.

    Parameters
    ----------
    system : System
    points : Points
    newton : Newton
        For its tolerances, and for the last step where that ends at a given load factor.
    settings : ArcLength
    max_cutbacks : int

    Attributes
    ----------
    factor : float
    length : float or None
        Of the next step.
    unit : float
        Of the first step.
    last : array or None
        Change of the displacement in the last step.
    """

    def __init__(
        self,
        system: System,
        points: Points,
        newton: Newton,
        settings: ArcLength,
        max_cutbacks: int,
    ) -> None:
        self.system, self.points, self.newton = system, points, newton
        self.settings, self.max_cutbacks = settings, max_cutbacks
        self.factor = 0.0
        self.length: float | None = None
        self.unit = 0.0
        self.last: np.ndarray | None = None
        self.finished = False

    def advance(self, attempts: list[Attempt]) -> float:
        """Take a step; the states at the end are committed.

        Returns
        -------
        float
            Its length.

        Raises
        ------
        StepFailure
        """
        start = self.system.values()
        for _ in range(self.max_cutbacks + 1):
            attempt, change = self._attempt(start)
            attempts.append(attempt)
            if attempt.converged:
                break
            self.system.set(start)
            self.points.reject()
            assert self.length is not None
            self.length /= 2
        else:
            raise StepFailure(
                f"the arc-length step from the load factor {self.factor:g} failed, at the end with "
                f"the length {self.length:.3g}: {attempt.reason}"
            )
        used = self.length
        assert used is not None
        if self._passed(attempt.factor):
            self._end_at_target(start, change, attempt, attempts)
        commit(self.system, self.points)
        self.last = self.system.values() - start
        self.factor = attempts[-1].factor
        grown = math.sqrt(self.settings.iterations / max(attempt.iterations, 1))
        self.length = min(used * min(max(grown, 0.5), 2.0), self.settings.largest * self.unit)
        return used

    def _passed(self, factor: float) -> bool:
        return (factor - self.settings.until) * math.copysign(1.0, self.settings.first) >= 0

    def _end_at_target(
        self, start: np.ndarray, change: np.ndarray, arc: Attempt, attempts: list[Attempt]
    ) -> None:
        """Replace a step that went too far by one that ends at the load factor asked for."""
        self.finished = True
        there = self.system.values()
        share = (self.settings.until - self.factor) / (arc.factor - self.factor)
        self.system.set(start + share * change)
        attempt = self.newton.solve(self.settings.until)
        if attempt.converged:
            attempts.append(attempt)
            return
        self.points.reject()
        self.system.set(there)

    def _attempt(self, start: np.ndarray) -> tuple[Attempt, np.ndarray]:
        system, tolerance = self.system, self.newton.tolerance
        attempt = Attempt(self.factor)
        change = np.zeros_like(start)
        if self.points.changing:
            system.outdated()
        try:
            system.evaluate(self.points)
            rate = self._rate()
            if self.length is None:
                self.length = self.unit = abs(self.settings.first) * system.norm(rate)
            if not self.length > 0:
                attempt.reason = "the load factor moves nothing: no load and no condition is scaled"
                return attempt, change
            along = system.norm(rate)
            sign = math.copysign(1.0, self.settings.first)
            if self.last is not None and self.last.size:
                sign = math.copysign(1.0, system.dot(rate, self.last))
            shift = sign * self.length / along
            change = shift * rate
            for iteration in range(self.newton.max_iterations + 1):
                attempt.factor = self.factor + shift
                system.set(start + change)
                system.evaluate(self.points)
                internal = system.internal_force()
                external = system.forces.values(attempt.factor)
                scale = max(system.norm(internal), system.norm(external))
                rest = system.cleared(internal - external)
                attempt.residuals.append(system.norm(rest) / scale if scale else 0.0)
                if attempt.residuals[-1] <= tolerance:
                    if self.points.review(system.read_strains()):
                        attempt.converged = True
                        return attempt, change
                    system.outdated()
                    attempt.reviews += 1
                    continue
                if iteration == self.newton.max_iterations:
                    break
                correction, rate = system.solve(-rest), self._rate()
                moved = change + correction
                step = self._root(rate, moved, change)
                if step is None:
                    attempt.reason = "the sphere of that length does not meet the linearised path"
                    return attempt, change
                shift, change = shift + step, moved + step * rate
            attempt.reason = (
                f"no convergence in {self.newton.max_iterations} iterations, relative residual "
                f"{attempt.residuals[-1]:.2e}"
            )
        except FAILURES as error:
            attempt.reason = str(error)
            if self.length is None:
                raise StepFailure(attempt.reason) from error
        return attempt, change

    def _rate(self) -> np.ndarray:
        """Derivative of the displacement by the load factor."""
        system = self.system
        return system.solve(system.forces.rate(), boundary=system.conditions.rate())

    def _root(self, rate: np.ndarray, moved: np.ndarray, old: np.ndarray) -> float | None:
        dot = self.system.dot
        assert self.length is not None
        a, b = dot(rate, rate), dot(rate, moved)
        c = dot(moved, moved) - self.length**2
        under = b * b - a * c
        if under < 0:
            return None
        roots = [(-b + math.sqrt(under)) / a, (-b - math.sqrt(under)) / a]
        along = dot(rate, old)
        return max(roots, key=lambda r: r * along)
