"""Newton's method at one load factor, by PETSc's SNES."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from firedrake.petsc import PETSc
from firedrake.solving_utils import KSPReasons, SNESReasons
from pyadjoint import stop_annotating

from fe_ol.macro.points import MaterialFailure, Points
from fe_ol.macro.system import FAILURES, System, linear_message
from spon.fem.callbacks import attributes_of

__all__ = ["Attempt", "Newton"]

# Points that go over to another answer do not come back in a step, so this is plenty.
_MAX_REVIEWS = 20


@dataclass
class Attempt:
    """Newton's method at one load factor.

    Attributes
    ----------
    factor : float
        Load factor.
    converged : bool
    residuals : list of float
        Norm of the forces out of balance before the first and after each iteration, relative to the
        larger of the internal and the external forces.
    reason : str
        Why it ended.
    reviews : int
        How often the materials changed their answers where it had converged; the residual then
        begins anew.
    """

    factor: float
    converged: bool = False
    residuals: list[float] = field(default_factory=list)
    reason: str = ""
    reviews: int = 0

    @property
    def iterations(self) -> int:
        """Newton iterations."""
        return max(len(self.residuals) - 1 - self.reviews, 0)


class Newton:
    """Solves for the displacement at a given load factor.

    Where the prescribed displacements change, the start is the linearised answer to the change: the
    old displacement with new values at the boundary alone would strain the cells there by far more
    than the step does. This linear solve counts as an iteration.

    Parameters
    ----------
    system : System
    points : Points
    tolerance : float
        Forces out of balance, relative to the larger of the internal and the external forces
        (reactions included).
    max_iterations : int
    line_search : str
        PETSc's name: ``basic`` for none, ``bt``, ``l2``, ``cp``.
    """

    def __init__(
        self,
        system: System,
        points: Points,
        tolerance: float,
        max_iterations: int,
        line_search: str,
    ) -> None:
        self.system, self.points = system, points
        self.tolerance, self.max_iterations = tolerance, max_iterations
        self.attempt = Attempt(0.0)
        self._error: Exception | None = None
        self._failure = ""
        self._scale = 0.0
        vector = system.vector
        self._x, self._f = vector.duplicate(), vector.duplicate()
        self.snes = snes = PETSc.SNES().create(vector.comm)
        with stop_annotating():
            matrix = system.matrix()
        snes.setFunction(self._function, self._f)
        snes.setJacobian(self._jacobian, matrix, matrix)
        snes.setConvergenceTest(self._test)
        self._callbacks = attributes_of(snes)
        options = system.options
        options.parameters.setdefault("snes_linesearch_type", line_search)
        options.set_from_options(snes)
        snes.setTolerances(max_it=max_iterations)
        system.ksp = snes.getKSP()

    def solve(self, factor: float) -> Attempt:
        """Solve from the present displacement, which becomes the solution or anything.

        Parameters
        ----------
        factor : float
            Load factor.

        Returns
        -------
        Attempt
        """
        self.attempt = attempt = Attempt(factor)
        self._error, self._failure = None, ""
        try:
            self._predict(factor)
        except FAILURES as error:
            attempt.reason = str(error)
            return attempt
        if self.points.changing:
            # The same strain has another answer now than before the last step was committed.
            self.system.outdated()
        while True:
            self._iterate(attempt)
            if not attempt.converged:
                return attempt
            # The last evaluation may have been another one, of a line search.
            self.system.evaluate(self.points)
            if self.points.review(self.system.read_strains()):
                return attempt
            self.system.outdated()
            attempt.reviews += 1
            if attempt.reviews > _MAX_REVIEWS:
                attempt.converged = False
                attempt.reason = f"a material changed its answers {attempt.reviews} times"
                return attempt

    def _iterate(self, attempt: Attempt) -> None:
        self._x.array_w[:] = self.system.values()
        attempt.converged = False
        try:
            with self.system.options.inserted_options():
                self.snes.solve(None, self._x)
        except PETSc.Error as error:
            self._raise_kept()
            attempt.reason = f"PETSc error {error.ierr}"
            return
        self._raise_kept()
        reason = self.snes.getConvergedReason()
        attempt.converged = reason > 0
        if attempt.converged:
            self.system.set(self._x.array_r)
        else:
            attempt.reason = self._failure or self._explain(reason)

    def _raise_kept(self) -> None:
        # Not kept any longer: its traceback holds this object and the solver.
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error from None
        finally:
            del error

    def _explain(self, reason: int) -> str:
        linear = self.system.ksp.getConvergedReason()
        if linear < 0:
            return f"{linear_message(self.system.ksp)}, {KSPReasons.get(linear, linear)}"
        last = self.attempt.residuals[-1] if self.attempt.residuals else np.nan
        return (
            f"Newton's method ended with {SNESReasons.get(reason, reason)} after "
            f"{self.attempt.iterations} iterations, relative residual {last:.2e}"
        )

    def _predict(self, factor: float) -> None:
        system = self.system
        fixed, old = system.conditions.fixed, system.values()
        change = np.where(fixed, system.conditions.values(factor) - old, 0.0)
        if not system.comm.allreduce(int(change.any())):
            return
        system.evaluate(self.points)
        internal, external = system.internal_force(), system.forces.values(factor)
        rest = internal - external + system.along(change)
        scale = max(map(system.norm, (internal, external, rest)))
        self.attempt.residuals.append(system.norm(system.cleared(rest)) / scale if scale else 0.0)
        step = system.solve(-rest)
        system.set(np.where(fixed, system.conditions.values(factor), old + step))

    # What SNES calls. PETSc forgets what is raised in there, so it is kept.

    def _function(self, snes: Any, x: Any, f: Any) -> None:
        try:
            with stop_annotating():
                self._take(x)
                internal = self.system.internal_force()
                external = self.system.forces.values(self.attempt.factor)
                self._scale = max(self.system.norm(internal), self.system.norm(external))
                f.array_w[:] = self.system.cleared(internal - external)
        except MaterialFailure as failure:
            # A line search steps back from NaN; without one the attempt has failed.
            self._failure = str(failure)
            f.array_w[:] = np.nan
        except Exception as error:
            self._error = error
            raise

    def _jacobian(self, snes: Any, x: Any, J: Any, P: Any) -> None:
        try:
            with stop_annotating():
                self._take(x)
                matrix = self.system.matrix()
                self.system._factored = False
            snes.getKSP().setOperators(matrix, matrix)
        except Exception as error:
            self._error = error
            raise

    def _take(self, x: Any) -> None:
        self.system.set(x.array_r)
        self.system.evaluate(self.points)

    def _test(self, snes: Any, iteration: int, norms: tuple[float, float, float]) -> int:
        reasons = PETSc.SNES.ConvergedReason
        x, y, f = norms
        if not np.isfinite(f):
            return int(reasons.DIVERGED_FNORM_NAN)
        relative = f / self._scale if self._scale else 0.0
        self.attempt.residuals.append(relative)
        if relative <= self.tolerance:
            return int(reasons.CONVERGED_FNORM_RELATIVE)
        # Where cancellation leaves no more digits: the displacement does not move any more.
        if iteration and y <= 1e-14 * x and relative <= 1e3 * self.tolerance:
            return int(reasons.CONVERGED_SNORM_RELATIVE)
        if iteration >= self.max_iterations:
            return int(reasons.DIVERGED_MAX_IT)
        return int(reasons.CONVERGED_ITERATING)
