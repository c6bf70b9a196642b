"""Nonlinear variational problems as batched, differentiable torch functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import firedrake as fd
import torch
import ufl
from petsctools import flatten_parameters
from torch import Tensor
from ufl.algorithms import extract_coefficients

from spon.fem.arguments import Essential, Rows, checked_inputs, describe_input
from spon.fem.factor import SparseLU
from spon.fem.forms import torch_form
from spon.fem.implicit import Inverse, Linearisation, solution
from spon.fem.matrices import jacobian
from spon.fem.newton import Newton, SolveReport, Tolerances
from spon.fem.share import Share
from spon.fem.snes import Snes
from spon.fem.spaces import mesh_of, require_serial

__all__ = ["NonlinearSolver"]

_POLICIES = ("raise", "mask", "load_stepping")
_SHORTEST_LOAD_STEP = 1 / 1024


class NonlinearSolver:
    """Solve ``F(u; v) = 0`` for a batch; differentiable in everything that is given, twice.

    Newton's method runs for many samples side by side; with `solver_parameters` that it does not
    know (a Krylov method, a preconditioner, a line search of PETSc) each sample is solved by one
    and the same PETSc SNES instead. The backward pass assembles and factorises the tangent at each
    solution once, and uses it for the adjoint and for second derivatives (implicit function
    theorem). Everything that is not an input keeps the value that it had when the solver was made.

    Parameters
    ----------
    F : ufl.Form
        Residual, a 1-form.
    u : Function
        The unknown in `F`. It is not changed, and its values do not matter.
    inputs : Function, Constant, mesh, or sequence of them, optional
        What varies from sample to sample, in the order of the call. A mesh stands for the
        coordinates of its nodes.
    bcs : DirichletBC or sequence of DirichletBC, optional
        Essential conditions. The solution has their values exactly; values that vary from sample
        to sample are given to the call.
    solver_parameters : dict, optional
        PETSc options. ``snes_rtol`` (1e-10), ``snes_atol``, ``snes_stol`` (1e-12), ``snes_max_it``
        (50) and ``snes_linesearch_type`` (``"bt"`` or ``"basic"``) are those of Newton's method
        here; any other option selects SNES. The relative tolerance refers to the residual of zero
        with the boundary values, also with a guess: a good guess saves iterations and leads to the
        same accuracy.
    on_failure : {"raise", "mask", "load_stepping"}, optional
        What to do about samples that do not converge. ``"raise"``: refuse the batch. ``"mask"``:
        their rows are NaN and have no gradients; `report` tells which. ``"load_stepping"``: go from
        the state that is the start to the problem in small steps, and refuse the batch if that
        fails as well.
    ensemble : firedrake.Ensemble, optional
        Spreads the samples over processes. Each process has its own mesh, on ``ensemble.comm``, and
        makes the same calls with the same tensors.

    Attributes
    ----------
    report : SolveReport or None
        What became of each sample of the last call.

    Raises
    ------
    TypeError
        If `F` is no form, `u` no Function, or an input of the wrong kind.
    ValueError
        If the arguments do not fit each other or an option is unknown.
    NotImplementedError
        If the mesh is distributed over several processes.

    Examples
    --------
    >>> F = (1 + u**2) * inner(grad(u), grad(v)) * dx - f * v * dx          # doctest: +SKIP
    >>> solve = NonlinearSolver(F, u, f, bcs)                               # doctest: +SKIP
    >>> x = solve(y)                              # y: (batch, dim of f)    # doctest: +SKIP
    """

    def __init__(
        self,
        F: Any,
        u: Any,
        inputs: Any = (),
        bcs: Any = None,
        solver_parameters: Mapping[str, Any] | None = None,
        on_failure: str = "raise",
        ensemble: Any = None,
    ) -> None:
        _check_problem(F, u)
        if on_failure not in _POLICIES:
            raise ValueError(
                f"Unknown policy on_failure={on_failure!r}: choose one of {', '.join(_POLICIES)}."
            )
        V = u.function_space()
        require_serial(mesh_of(V), "NonlinearSolver")
        given = checked_inputs(inputs)
        if any(x is u for x in given):
            raise ValueError("The unknown u is also an input: a start is given as guess=.")
        self.space, self.report = V, None
        self._share = None if ensemble is None else Share(ensemble)
        self._essential, self._on_failure = Essential(V, bcs, [u, *given]), on_failure
        described = [describe_input(x) for x in given]
        self._rows = Rows("NonlinearSolver", [n for n, _ in described], [s for _, s in described])
        self._residual = torch_form(F, [u, *given])
        self._matrices = jacobian(self._residual)
        free = self._essential.free
        self._lu = SparseLU(self._matrices.pointers, self._matrices.columns, free)
        options = flatten_parameters(dict(solver_parameters or {}))
        tolerances = _own_tolerances(options)
        self._newton = Newton(
            self._residual, self._matrices, self._lu, free, tolerances or Tolerances()
        )
        self._engine: Newton | Snes = self._newton
        if tolerances is None:
            if on_failure == "load_stepping":
                raise ValueError(
                    'on_failure="load_stepping" needs Newton\'s method of this library, and '
                    f"{sorted(options)} ask for SNES: leave out all but the tolerances."
                )
            self._engine = Snes(self._residual, self._essential.bcs, options)

    report: SolveReport | None

    def __call__(
        self, *xs: Tensor, guess: Tensor | None = None, boundary: Tensor | None = None
    ) -> Tensor:
        """Solve for a batch.

        Parameters
        ----------
        *xs : Tensor, shape (batch, dim) or (dim,)
            The inputs in their order. One without a batch axis serves all samples.
        guess : Tensor, shape (batch, V.dim()) or (V.dim(),), optional
            Where to start, zero by default; a network's answer, for example. It has no gradient.
        boundary : Tensor, shape (batch, V.dim()) or (V.dim(),), optional
            Values at the dofs of the essential conditions, instead of the values of these; entries
            at other dofs are ignored.

        Returns
        -------
        Tensor, shape (batch, V.dim())
            Coefficients in V, in the dtype and on the device of what was given (computed in float64
            on the CPU); without the batch axis if nothing had one. Differentiable to any order.

        Raises
        ------
        TypeError, ValueError
            If a tensor does not fit, or holds NaN or infinity.
        firedrake.ConvergenceError
            Which samples did not converge and why, unless `on_failure` is ``"mask"``.
        """
        self._essential.check(boundary)
        dim = self.space.dim()
        call = self._rows(xs, guess=(guess, dim), boundary=(boundary, dim))
        inputs, values = [call.rows(x) for x in xs], call.rows(boundary)
        with torch.no_grad():
            u, report = self._spread(call.batch, inputs, call.rows(guess), values)
        self.report = report
        if report.failed:
            if self._on_failure != "mask":
                raise fd.ConvergenceError(f"NonlinearSolver: {report.describe()} {self._advice()}")
            u = torch.where(report.converged[:, None], u, torch.nan)
        at = Linearisation(
            self._residual,
            self._essential.prescribed,
            self._invert,
            report.converged,
            self._share,
        )
        return call.result(solution(at, u, inputs, values))

    def _spread(
        self,
        batch: int,
        inputs: Sequence[Tensor],
        guess: Tensor | None,
        boundary: Tensor | None,
    ) -> tuple[Tensor, SolveReport]:
        def solve(part: slice) -> tuple[Tensor, SolveReport]:
            count = len(range(batch)[part])
            start, values = (None if x is None else x[part] for x in (guess, boundary))
            return self._solve(count, [x.detach()[part] for x in inputs], start, values)

        if self._share is None:
            return solve(slice(None))
        u, reports = self._share.rows(batch, solve)
        return u, SolveReport.joined(reports)

    def _solve(
        self,
        batch: int,
        inputs: Sequence[Tensor],
        guess: Tensor | None,
        boundary: Tensor | None,
    ) -> tuple[Tensor, SolveReport]:
        if batch == 0:
            return self._essential.values[None][:0], SolveReport.empty(0)
        lift = self._essential.lift(boundary, batch)
        scale = self._newton.norm([lift, *inputs])
        start = lift
        if guess is not None:
            start = torch.where(self._essential.prescribed, lift, guess)
            scale = torch.maximum(scale.nan_to_num(0.0), self._newton.norm([start, *inputs]))
        u, report = self._engine.solve(start, inputs, scale)
        if report.failed and self._on_failure == "load_stepping":
            rest = torch.zeros_like(lift) if guess is None else guess
            for i in report.failed:
                one = slice(i, i + 1)
                found, done = self._step(rest[one], lift[one], [x[one] for x in inputs], scale[one])
                report.iterations[i] += done.iterations[0]
                report.load_steps[i] = done.load_steps[0]
                report.converged[i], report.residuals[i] = done.converged[0], done.residuals[0]
                report.reasons[i], u[one] = done.reasons[0], found
        return u, report

    def _step(
        self, rest: Tensor, lift: Tensor, inputs: Sequence[Tensor], scale: Tensor
    ) -> tuple[Tensor, SolveReport]:
        """From a state to the solution: ``R(u) = (1 - t) R(rest)``, boundary values likewise.

        At t = 0 the state itself is a solution, at t = 1 the problem is the one to be solved. For
        a structure at rest this is the proportional increase of all loads and displacements.
        """
        fixed = self._essential.prescribed
        start_residual = self._residual.values([rest, *inputs])
        u, t, step, total = rest, 0.0, 0.25, SolveReport.empty(1)
        while t < 1.0:
            now = min(t + step, 1.0)
            boundary = rest + now * (lift - rest)
            trial = torch.where(fixed, boundary, u)
            found, done = self._newton.solve(trial, inputs, scale, (1.0 - now) * start_residual)
            total.iterations += done.iterations
            if done.converged[0]:
                u, t, step = found, now, 2 * step
                total.load_steps += 1
            else:
                step /= 2
                if step < _SHORTEST_LOAD_STEP:
                    total.residuals = done.residuals
                    total.reasons = [f"load stepping stopped at {t:.1%}: {done.reasons[0]}"]
                    return u, total
        total.converged, total.residuals = done.converged, done.residuals
        total.reasons = [f"converged in {int(total.load_steps)} load steps"]
        return u, total

    def _invert(self, rows: Sequence[Tensor]) -> Inverse:
        return self._lu.factor_each(self._matrices.values(rows, len(rows[0])))

    def _advice(self) -> str:
        if self._on_failure == "load_stepping":
            return 'Give a better guess=, check the inputs, or use on_failure="mask".'
        return (
            'Give a better guess=, use on_failure="load_stepping" or "mask", or raise snes_max_it '
            "in solver_parameters."
        )


def _own_tolerances(options: Mapping[str, Any]) -> Tolerances | None:
    """The options as tolerances of the own method; None if there are others among them."""
    known: dict[str, Any] = {
        "snes_rtol": float,
        "snes_atol": float,
        "snes_stol": float,
        "snes_max_it": int,
    }
    rest = {k: v for k, v in options.items() if k not in known}
    line_search = rest.pop("snes_linesearch_type", "bt")
    if rest.pop("snes_type", "newtonls") != "newtonls" or line_search not in ("bt", "basic"):
        return None
    if rest:
        return None
    chosen = {
        k.removeprefix("snes_"): cast(options[k]) for k, cast in known.items() if k in options
    }
    return Tolerances(**chosen, damped=line_search == "bt")


def _check_problem(F: Any, u: Any) -> None:
    if not isinstance(u, fd.Function):
        raise TypeError(f"Expected a Function for the unknown u, got {type(u).__name__}.")
    if not isinstance(F, ufl.Form):
        raise TypeError(
            f"Expected a residual as a UFL form for F, got {type(F).__name__}; for an equation "
            "a == L the residual is action(a, u) - L."
        )
    V, arguments = u.function_space(), F.arguments()
    if len(arguments) != 1 or arguments[0].function_space() != V:
        spaces = [argument.function_space().ufl_element() for argument in arguments]
        raise ValueError(
            f"Expected a residual F with one test function of the space of u, {V.ufl_element()}, "
            f"this one has arguments in {spaces}."
        )
    if u not in extract_coefficients(F):
        raise ValueError(
            "The unknown u does not occur in F: pass the very Function that F contains; a "
            "TrialFunction makes a bilinear form, which is for LinearSolver."
        )
