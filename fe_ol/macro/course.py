"""The course of a simulation: step after step, each one reported and written to a file."""

from __future__ import annotations

import os
import time
from typing import Any

import firedrake as fd
import numpy as np
from tqdm import tqdm

from fe_ol.macro.file import MacroFileError, read_steps, write_steps
from fe_ol.macro.identity import describe
from fe_ol.macro.newton import Attempt, Newton
from fe_ol.macro.points import Points
from fe_ol.macro.result import LoadStepError, MacroResult, Step
from fe_ol.macro.steps import ArcControl, ArcLength, LoadControl, StepFailure
from fe_ol.macro.system import System

__all__ = ["Course"]


class Course:
    """Runs a simulation from where the system is, at rest or as a file has it.

    Parameters
    ----------
    system : System
    points : Points
    newton : Newton
    tags : iterable of int
        Boundary tags whose reactions are recorded.
    max_cutbacks : int
    """

    def __init__(
        self, system: System, points: Points, newton: Newton, tags: Any, max_cutbacks: int
    ) -> None:
        self.system, self.points, self.newton = system, points, newton
        self.max_cutbacks = max_cutbacks
        self.reaction_tests = {tag: _movements(system.space, tag) for tag in tags}

    def run(
        self,
        factors: list[float] | None,
        arc: ArcLength | None,
        checkpoint: Any,
        resume: bool,
        progress: bool,
    ) -> list[Step]:
        """Take the steps; the arguments are those of `MacroProblem.solve`, checked.

        Raises
        ------
        LoadStepError
        MacroFileError
        """
        steps: list[Step] = []
        control: LoadControl | ArcControl
        if arc is None:
            control = LoadControl(self.system, self.points, self.newton, self.max_cutbacks)
        else:
            control = ArcControl(self.system, self.points, self.newton, arc, self.max_cutbacks)
        identity = {} if checkpoint is None else describe(self.system, self.points, arc)
        if checkpoint is not None and resume and self._exists(checkpoint):
            steps = self._resume(checkpoint, identity, control)
            _compare_factors(checkpoint, steps, factors)
        total = arc.steps if arc is not None else len(factors or ())
        silent = not progress or self.system.comm.rank > 0
        with tqdm(total=total, initial=len(steps), desc="load steps", disable=silent) as bar:
            while len(steps) < total and not _finished(control, steps):
                target = None if factors is None else factors[len(steps)]
                steps.append(self._step(control, target, steps))
                bar.update()
                bar.set_postfix(factor=f"{steps[-1].factor:.4g}", iterations=steps[-1].iterations)
                if checkpoint is not None:
                    states, memory = self.points.memory(), _memory(control)
                    write_steps(checkpoint, self.system.comm, identity, steps, states, memory)
        return steps

    def _step(
        self, control: LoadControl | ArcControl, target: float | None, done: list[Step]
    ) -> Step:
        attempts: list[Attempt] = []
        start, asked, calls = time.perf_counter(), self.points.seconds, self.points.calls
        length = None
        try:
            if isinstance(control, ArcControl):
                if not done and control.length is None:
                    self._start_arc(attempts)
                    attempts.clear()
                length = control.advance(attempts)
            else:
                assert target is not None
                control.advance(target, attempts)
        except StepFailure as failure:
            raise LoadStepError(
                f"Load step {len(done) + 1}: {failure}. Use smaller steps, a line search, or "
                "arc_length= where the load has a maximum.",
                MacroResult(done),
            ) from failure
        reactions = self._reactions(control.factor)
        inside = self.points.seconds - asked
        return Step(
            factor=control.factor,
            displacement=self.system.function(self.system.values()),
            reactions=reactions,
            attempts=attempts,
            material_seconds=inside,
            other_seconds=time.perf_counter() - start - inside,
            calls=self.points.calls - calls,
            arc_length=length,
        )

    def _start_arc(self, attempts: list[Attempt]) -> None:
        """Equilibrium with the constant loads alone, where the path begins."""
        system = self.system
        constant = system.forces.values(0.0).any() or system.conditions.values(0.0).any()
        if not system.comm.allreduce(int(constant)):
            return
        LoadControl(self.system, self.points, self.newton, self.max_cutbacks).advance(0.0, attempts)

    def _reactions(self, factor: float) -> dict[int, np.ndarray]:
        self.system.evaluate(self.points)
        residual = self.system.residual(factor)
        return {
            tag: np.array([self.system.dot(residual, w) for w in tests])
            for tag, tests in self.reaction_tests.items()
        }

    def _resume(
        self, path: Any, identity: dict[str, Any], control: LoadControl | ArcControl
    ) -> list[Step]:
        steps, states, memory = read_steps(
            path, self.system.comm, identity, self.system.function, len(self.points.groups)
        )
        if not steps:
            return steps
        last = steps[-1]
        self.system.set(last.displacement.dat.data_ro.reshape(-1))
        self.system.outdated()
        self.system.take(self.points.remember(states, self.system.strains()))
        control.factor = last.factor
        for name, value in memory.items():
            setattr(control, name, value)
        if isinstance(control, ArcControl):
            before = steps[-2].displacement.dat.data_ro.reshape(-1) if len(steps) > 1 else 0.0
            control.last = self.system.values() - before
        return steps

    def _exists(self, path: Any) -> bool:
        found = os.path.exists(path) if self.system.comm.rank == 0 else None
        return bool(self.system.comm.bcast(found))


def _finished(control: LoadControl | ArcControl, steps: list[Step]) -> bool:
    if not isinstance(control, ArcControl) or not steps:
        return False
    stop = control.settings.stop
    return control.finished or (stop is not None and bool(stop(steps[-1])))


def _compare_factors(path: Any, steps: list[Step], factors: list[float] | None) -> None:
    done = [s.factor for s in steps]
    if factors is not None and done != factors[: len(done)]:
        raise MacroFileError(
            f"{os.fspath(path)!r} holds steps to the load factors {done}, load_steps begins with "
            f"{factors[: len(done)]}: give the same factors (more may follow), or resume=False."
        )


def _memory(control: LoadControl | ArcControl) -> dict[str, Any]:
    if isinstance(control, LoadControl):
        return {"increment": control.increment}
    return {"length": control.length, "unit": control.unit, "finished": control.finished}


def _movements(space: Any, tag: int) -> list[np.ndarray]:
    """For each direction the displacement that moves a boundary by one."""
    result = []
    for i in range(space.value_size):
        w = fd.Function(space)
        fd.DirichletBC(space.sub(i), 1.0, tag).apply(w)
        result.append(w.dat.data_ro.reshape(-1).copy())
    return result
