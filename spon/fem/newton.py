"""Newton's method for a batch of nonlinear systems, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from spon.fem.factor import Factors, SingularMatrixError, SparseLU
from spon.fem.forms import TorchForm
from spon.fem.lu_kernels import LANES
from spon.fem.matrices import BatchMatrix

__all__ = ["Newton", "SolveReport", "Tolerances"]

_SHORTEST_STEP = 1e-3
_ROUND_OFF_STEP = 1e-8
_BLOCK_ENTRIES = 1 << 14


@dataclass(frozen=True)
class Tolerances:
    """When to stop; names and meaning are those of PETSc's SNES.

    Attributes
    ----------
    rtol : float
        Residual relative to that of the state without a guess: zero with the boundary values.
    atol : float
        Residual.
    stol : float
        Length of a Newton step relative to the solution.
    max_it : int
        Iterations.
    damped : bool
        Whether steps are shortened until the residual decreases (``"bt"``), or not (``"basic"``).
    """

    rtol: float = 1e-10
    atol: float = 1e-50
    stol: float = 1e-12
    max_it: int = 50
    damped: bool = True


@dataclass
class SolveReport:
    """What became of each sample of a batch.

    Attributes
    ----------
    converged : bool Tensor, shape (batch,)
    iterations : int Tensor, shape (batch,)
        Newton iterations, each with one matrix and one linear solve.
    residuals : Tensor, shape (batch,)
        Euclidean norm of the residual on the free dofs in the end.
    reasons : list of str
        Why the iteration stopped.
    load_steps : int Tensor, shape (batch,)
        Steps that load stepping took; zero where it was not needed.
    """

    converged: Tensor
    iterations: Tensor
    residuals: Tensor
    reasons: list[str]
    load_steps: Tensor

    @staticmethod
    def empty(batch: int) -> SolveReport:
        """A report to be filled in."""
        return SolveReport(
            torch.zeros(batch, dtype=torch.bool),
            torch.zeros(batch, dtype=torch.int64),
            torch.full((batch,), torch.nan, dtype=torch.float64),
            [""] * batch,
            torch.zeros(batch, dtype=torch.int64),
        )

    @staticmethod
    def joined(parts: Sequence[SolveReport]) -> SolveReport:
        """The reports of the parts of a batch as one."""
        return SolveReport(
            torch.cat([part.converged for part in parts]),
            torch.cat([part.iterations for part in parts]),
            torch.cat([part.residuals for part in parts]),
            [reason for part in parts for reason in part.reasons],
            torch.cat([part.load_steps for part in parts]),
        )

    @property
    def failed(self) -> list[int]:
        """The samples without a solution."""
        return torch.nonzero(~self.converged)[:, 0].tolist()

    def describe(self) -> str:
        """How many samples failed and why the first one did."""
        first = self.failed[0]
        names = ", ".join(map(str, self.failed[:5])) + (", ..." if len(self.failed) > 5 else "")
        return (
            f"{len(self.failed)} of {len(self.reasons)} samples did not converge ({names}). Sample "
            f"{first} stopped after {int(self.iterations[first])} iterations with a residual of "
            f"{float(self.residuals[first]):.2e}: {self.reasons[first]}."
        )


@dataclass
class _State:
    """The part of a batch that is iterated together."""

    u: Tensor
    inputs: list[Tensor]
    offset: Tensor | None
    goal: Tensor
    residual: Tensor = field(init=False)
    norm: Tensor = field(init=False)

    def rows(self, index: Tensor, u: Tensor | None = None) -> list[Tensor]:
        """The state, or another one, and the inputs for some of the samples."""
        return [self.u[index] if u is None else u, *(x[index] for x in self.inputs)]


class Newton:
    """Newton's method with sparse factorisations of the exact tangent.

    Parameters
    ----------
    residual : TorchForm
        As a function of u and the inputs.
    matrices : BatchMatrix
        Its derivative by u.
    lu : SparseLU
        Of the pattern of `matrices`.
    free : int array
        The dofs that are solved for.
    tolerances : Tolerances
    """

    def __init__(
        self,
        residual: TorchForm,
        matrices: BatchMatrix,
        lu: SparseLU,
        free: np.ndarray,
        tolerances: Tolerances,
    ) -> None:
        self._residual, self._matrices, self._lu = residual, matrices, lu
        self._free, self.tolerances = torch.from_numpy(free), tolerances

    def norm(self, rows: Sequence[Tensor]) -> Tensor:
        """Norm of the residual on the free dofs, shape (batch,)."""
        return self._norm(self._residual.values(rows))

    def solve(
        self,
        u: Tensor,
        inputs: Sequence[Tensor],
        scale: Tensor,
        offset: Tensor | None = None,
    ) -> tuple[Tensor, SolveReport]:
        """Solve ``R(u, inputs) = offset``.

        Parameters
        ----------
        u : Tensor, shape (batch, dim)
            Where to start, with the boundary values.
        inputs : sequence of Tensor, shapes (batch, dim of the input)
        scale : Tensor, shape (batch,)
            What the relative tolerance is relative to.
        offset : Tensor, shape (batch, dim), optional

        Returns
        -------
        u : Tensor, shape (batch, dim)
        report : SolveReport
        """
        batch, result, report = len(u), u.clone(), SolveReport.empty(len(u))
        goals = (self.tolerances.rtol * scale.nan_to_num(0.0)).clamp_min(self.tolerances.atol)
        # So many samples at a time that their factors stay in the cache.
        block = LANES * max(1, _BLOCK_ENTRIES // max(self._lu.fill, 1))
        for start in range(0, batch, block):
            part = slice(start, min(start + block, batch))
            state = _State(
                result[part],
                [x[part] for x in inputs],
                None if offset is None else offset[part],
                goals[part],
            )
            self._iterate(state, report, start)
        return result, report

    def _iterate(self, state: _State, report: SolveReport, start: int) -> None:
        active = torch.arange(len(state.u))
        state.residual = self._evaluate(state, active, state.u)
        state.norm = self._norm(state.residual)
        factors: Factors | None = None
        steps = torch.full((len(state.u),), torch.inf, dtype=torch.float64)
        for iteration in range(self.tolerances.max_it + 1):
            small = steps[active] <= self.tolerances.stol
            done = (state.norm[active] <= state.goal[active]) | small
            self._note(report, start, active[done], iteration, state, "converged", True)
            broken = ~done & ~torch.isfinite(state.norm[active])
            why = "the residual is NaN or infinite"
            self._note(report, start, active[broken], iteration, state, why)
            active = active[~done & ~broken]
            if len(active) == 0:
                return
            if iteration == self.tolerances.max_it:
                why = f"snes_max_it = {iteration} iterations were not enough"
                self._note(report, start, active, iteration, state, why)
                return
            step, good, factors = self._direction(state, active, iteration == 0, factors)
            why = "the tangent is singular"
            self._note(report, start, active[~good], iteration, state, why)
            active, step = active[good], step[good]
            length = step.norm(dim=1)
            steps[active] = length / state.u[active].norm(dim=1).clamp_min(1e-300)
            moved = self._search(state, active, step)
            # Where no step reduces the residual, but the step is tiny, round-off is reached.
            at_end = ~moved & (steps[active] <= _ROUND_OFF_STEP)
            self._note(report, start, active[at_end], iteration, state, "round-off reached", True)
            why = "no step along Newton's direction reduces the residual"
            self._note(report, start, active[~moved & ~at_end], iteration, state, why)
            active = active[moved]

    def _direction(
        self, state: _State, active: Tensor, check: bool, factors: Factors | None
    ) -> tuple[Tensor, Tensor, Factors | None]:
        rows = state.rows(active)
        values = self._matrices.values(rows, len(active))
        reuse = factors if factors is not None and factors.count == len(active) else None
        good = torch.ones(len(active), dtype=torch.bool)
        try:
            factors = self._lu.factor_each(values, check, reuse)
        except SingularMatrixError as error:
            good[error.samples] = False
            if not good.any():
                return torch.zeros_like(rows[0]), good, None
            factors = self._lu.factor_each(values[good], check)
        step = torch.zeros_like(rows[0])
        step[good] = factors.solve(-state.residual[active[good]])
        return step, good & torch.isfinite(step).all(1), factors

    def _search(self, state: _State, active: Tensor, step: Tensor) -> Tensor:
        """Move along the steps, shortened where needed; whether the residual was reduced."""
        moved = torch.zeros(len(active), dtype=torch.bool)
        pending, factor = torch.arange(len(active)), 1.0
        while len(pending) and factor >= _SHORTEST_STEP:
            index = active[pending]
            trial = state.u[index] + factor * step[pending]
            residual = self._evaluate(state, index, trial)
            norm = self._norm(residual)
            accept = norm <= (1 - 1e-4 * factor) * state.norm[index]
            if not self.tolerances.damped:
                accept[:] = True
            taken = index[accept]
            state.u[taken], state.residual[taken] = trial[accept], residual[accept]
            state.norm[taken] = norm[accept]
            moved[pending[accept]] = True
            pending, factor = pending[~accept], factor / 2
        return moved

    def _evaluate(self, state: _State, index: Tensor, u: Tensor) -> Tensor:
        r = self._residual.values(state.rows(index, u))
        return r if state.offset is None else r - state.offset[index]

    def _norm(self, residual: Tensor) -> Tensor:
        return residual[:, self._free].norm(dim=1)

    def _note(
        self,
        report: SolveReport,
        start: int,
        samples: Tensor,
        iteration: int,
        state: _State,
        reason: str,
        converged: bool = False,
    ) -> None:
        report.converged[start + samples] = converged
        report.iterations[start + samples] = iteration
        report.residuals[start + samples] = state.norm[samples]
        for i in samples.tolist():
            report.reasons[start + i] = reason
