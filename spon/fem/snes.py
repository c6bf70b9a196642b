"""PETSc's SNES for the samples of a batch, one after the other, with one solver object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import firedrake as fd
import ufl
from firedrake.petsc import PETSc
from firedrake.solving_utils import SNESReasons
from pyadjoint import stop_annotating
from torch import Tensor
from tsfc.ufl_utils import extract_firedrake_constants
from ufl.algorithms import extract_coefficients

from spon.fem.callbacks import attributes_of
from spon.fem.forms import TorchForm
from spon.fem.newton import SolveReport
from spon.fem.problem import fill
from spon.fem.spaces import to_tensor

__all__ = ["Snes"]


class Snes:
    """A solver with the options of the user, on copies of everything that it changes.

    Parameters
    ----------
    residual : TorchForm
        As a function of u and the inputs.
    bcs : sequence of DirichletBC
    options : mapping
        PETSc options.
    """

    def __init__(self, residual: TorchForm, bcs: Sequence[Any], options: Mapping[str, Any]) -> None:
        form = residual._form.form()
        meshes = list(form.ufl_domains())
        slots = [slot.function for slot in residual._slots]
        copies: dict[Any, Any] = {
            f: f.copy(deepcopy=True)
            for f in {*extract_coefficients(form), slots[0]}
            if not any(f is mesh.coordinates for mesh in meshes)
        }
        for constant in extract_firedrake_constants(form):
            values = residual._snapshot.array(constant.dat).reshape(constant.ufl_shape)
            copies[constant] = fd.Constant(values)
        # The coordinates cannot be exchanged in a form; they are put back after each solve.
        self._inputs = [copies.get(f, f) for f in slots[1:]]
        self._borrowed = [mesh.coordinates for mesh in meshes]
        self._coordinates = [
            residual._snapshot.array(f.dat).reshape(-1).copy() for f in self._borrowed
        ]
        self._u = copies.get(slots[0])
        self._boundary = fd.Function(slots[0].function_space())
        conditions = [_moved(bc, self._boundary) for bc in bcs]
        with stop_annotating():
            problem = fd.NonlinearVariationalProblem(ufl.replace(form, copies), self._u, conditions)
            self._solver = fd.NonlinearVariationalSolver(problem, solver_parameters=dict(options))
        self._callbacks = attributes_of(self._solver.snes)
        self._rtol = self._solver.snes.getTolerances()[0]

    def solve(
        self, u: Tensor, inputs: Sequence[Tensor], scale: Tensor
    ) -> tuple[Tensor, SolveReport]:
        """Solve for each row; see `spon.fem.newton.Newton.solve`."""
        result, report = u.clone(), SolveReport.empty(len(u))
        kept = [to_tensor(f).numpy() for f in self._borrowed]
        snes = self._solver.snes
        try:
            for f, values in zip(self._borrowed, self._coordinates, strict=True):
                fill(f, values)
            for i in range(len(u)):
                for f, x in zip(self._inputs, inputs, strict=True):
                    fill(f, x[i].numpy())
                fill(self._u, u[i].numpy())
                fill(self._boundary, u[i].numpy())
                # Relative to the same residual with and without a guess.
                snes.setTolerances(rtol=0.0, atol=max(self._rtol * float(scale[i]), 1e-50))
                try:
                    with stop_annotating():
                        self._solver.solve()
                    report.converged[i] = True
                except (fd.ConvergenceError, PETSc.Error):
                    pass
                report.iterations[i] = snes.getIterationNumber()
                report.residuals[i] = snes.getFunctionNorm()
                reason = snes.getConvergedReason()
                report.reasons[i] = f"SNES {SNESReasons.get(reason, reason)}"
                result[i] = to_tensor(self._u)
        finally:
            for f, values in zip(self._borrowed, kept, strict=True):
                fill(f, values)
        return result, report


def _moved(bc: Any, values: Any) -> Any:
    """The condition with the values of a function."""
    space = values.function_space()
    for index in bc._indices:
        space, values = space.sub(index), values.sub(index)
    moved = fd.DirichletBC(space, values, bc.sub_domain)
    moved.nodes = bc.nodes  # a subclass may have chosen them
    return moved
