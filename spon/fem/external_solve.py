"""Solving and assembling forms with external operators, on the pyadjoint tape too.

The operators' values and tangents are data at the points, the Jacobian is a written-out UFL form of
them, and Firedrake's own solver does the rest: any solver option, Dirichlet condition or number of
processes. Before each residual and each Jacobian torch is called once, for all points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import ufl
from firedrake import (
    Cofunction,
    Function,
    LinearVariationalProblem,
    LinearVariationalSolver,
    NonlinearVariationalProblem,
    NonlinearVariationalSolver,
    action,
    adjoint,
    derivative,
)
from firedrake import assemble as firedrake_assemble
from firedrake import solve as firedrake_solve
from firedrake.petsc import PETSc
from pyadjoint import AdjFloat, annotate_tape, get_working_tape, stop_annotating
from ufl.algorithms import expand_derivatives
from ufl.equation import Equation

from spon.fem.callbacks import attributes_of
from spon.fem.external_blocks import AssembleBlock, SolveBlock
from spon.fem.external_calculus import Calculus
from spon.fem.external_conditions import Condition
from spon.fem.external_network import NewtonKrylov
from spon.fem.external_symbols import symbols_of
from spon.fem.external_workspace import Assembled, Workspace, copy_values

__all__ = ["ExternalSolver", "assemble", "solve"]


def assemble(form: Any, bcs: Any = None, annotate: bool = True, **options: Any) -> Any:
    """Assemble a form that may hold external operators; Firedrake's ``assemble`` for those.

    Parameters
    ----------
    form : ufl.Form
        Without arguments, with a test function, or with both.
    bcs : DirichletBC or sequence of DirichletBC, optional
        For a matrix.
    annotate : bool, optional
        Whether a number or Cofunction is recorded while pyadjoint records.
    **options
        For Firedrake's ``assemble``, as ``mat_type``.

    Returns
    -------
    float, Cofunction or Matrix
        A matrix is not recorded.
    """
    if not _has_operators(form):
        return firedrake_assemble(form, bcs=bcs, annotate=annotate, **options)
    workspace = Workspace(form)
    workspace.load_current()
    arity = len(workspace.forms[0].arguments())
    if arity > 1:
        return Assembled(workspace, workspace.forms[0], bcs=bcs, **options)()
    if bcs is not None:
        raise ValueError(
            "Boundary conditions belong to a matrix or a solve: apply them to the assembled "
            "cofunction with bc.zero(cofunction)."
        )
    if not annotate_tape({"annotate": annotate}):
        return Assembled(workspace, workspace.forms[0], **options)()
    block = AssembleBlock(workspace)
    get_working_tape().add_block(block)
    value = block.evaluate()
    result = AdjFloat(value) if arity == 0 else value
    block.add_output(result.block_variable)
    return result


def solve(equation: Any, u: Function, bcs: Any = None, **options: Any) -> None:
    """Solve ``F == 0`` where F may hold external operators; Firedrake's ``solve`` for those.

    Parameters
    ----------
    equation : ufl.Equation
        ``F == 0`` with F in terms of `u`, or ``a == L`` with a trial function.
    u : Function
        Initial guess on entry, solution on return.
    bcs : DirichletBC or sequence of DirichletBC, optional
    **options
        For `ExternalSolver`, as ``solver_parameters`` and ``annotate``.

    See Also
    --------
    ExternalSolver : for many solves of one equation.
    """
    if not isinstance(equation, Equation):
        raise TypeError(
            f"solve takes an equation, F == 0 or a == L, got {type(equation).__name__}."
        )
    if not any(_has_operators(side) for side in (equation.lhs, equation.rhs)):
        firedrake_solve(equation, u, bcs, **options)
        return
    F = equation.lhs
    if isinstance(equation.rhs, ufl.Form):
        F = action(equation.lhs, u) - equation.rhs
    annotate = options.pop("annotate", True)
    ExternalSolver(F, u, bcs, **options).solve(annotate=annotate)


class ExternalSolver:
    """Newton's method for ``F(u) = 0`` with external operators in F, made once for many solves.

    Parameters
    ----------
    F : ufl.Form
        Residual, with a test function.
    u : Function
        The unknown.
    bcs : DirichletBC or sequence of DirichletBC, optional
    J : ufl.Form, optional
        Jacobian; ``derivative(F, u)`` by default, which knows the operators at quadrature points.
    Jp : ufl.Form, optional
        What preconditioners are made of.
    solver_parameters : dict, optional
        PETSc options of Newton's method, as for Firedrake's solver.
    adjoint_parameters : dict, optional
        PETSc options of the adjoint solves; those of the linear solves in Newton's method by
        default.
    **options
        Further arguments of Firedrake's NonlinearVariationalSolver.

    Attributes
    ----------
    iterations : int
        Newton iterations of the last solve.

    Raises
    ------
    TypeError
        If F is no form, or a condition is not a DirichletBC.
    ValueError
        If `u` does not occur in F.
    NotImplementedError
        If F holds an operator where it cannot be evaluated, see `external_operator`.
    """

    def __init__(
        self,
        F: Any,
        u: Function,
        bcs: Any = None,
        *,
        J: Any = None,
        Jp: Any = None,
        solver_parameters: dict[str, Any] | None = None,
        adjoint_parameters: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.workspace = Workspace(F)
        self.form = self.workspace.forms[0]
        if u not in self.workspace.coefficients:
            raise ValueError(f"The unknown {u} does not occur in the residual.")
        if len(self.form.arguments()) != 1:
            raise ValueError(
                f"A residual has one test function, this form has {len(self.form.arguments())} "
                "arguments."
            )
        self.u, self.x = u, self.workspace.copies[u]
        self.iterations = 0
        self.bcs = _listed(bcs)
        with stop_annotating():
            self._conditions = [Condition(bc) for bc in self.bcs]
        self._parameters = dict(solver_parameters or {})
        self._adjoint_parameters = adjoint_parameters
        self._options = options
        self._user_J, self._user_Jp = J, Jp
        self._error: Exception | None = None

    def solve(self, annotate: bool = True) -> None:
        """Solve from the present value of `u`, which becomes the solution.

        Parameters
        ----------
        annotate : bool, optional
            Whether the solve is recorded while pyadjoint records.

        Raises
        ------
        firedrake.ConvergenceError
            If Newton's method does not converge.
        """
        self.workspace.load_current()
        for condition in self._conditions:
            condition.load(condition.bc)
        block = None
        if annotate_tape({"annotate": annotate}):
            block = SolveBlock(self)
            get_working_tape().add_block(block)
        with stop_annotating():
            self.run()
            copy_values(self.x, self.u)
        if block is not None:
            block.add_output(self.u.create_block_variable())

    def run(self) -> None:
        """Solve with what the workspace holds; the result is in `x`."""
        self._error = None
        with stop_annotating():
            try:
                self._newton.solve()
            except PETSc.Error as error:
                # PETSc forgets what was raised inside its callbacks.
                raise (self._error or error) from None
        self.iterations = int(self._newton.snes.getIterationNumber())
        self.workspace.touch()

    def load_conditions(self, bcs: Sequence[Any]) -> None:
        """Take the boundary values from conditions like those of the solver."""
        for condition, bc in zip(self._conditions, bcs, strict=True):
            condition.load(bc)

    @cached_property
    def jacobian(self) -> Any:
        """The Jacobian in terms of the user's functions; partial where operators are frozen."""
        J = derivative(self.form, self.u) if self._user_J is None else self._user_J
        return expand_derivatives(J)

    @cached_property
    def _preconditioner(self) -> Any:
        if self._user_Jp is None:
            return None
        return self.workspace.replaced(expand_derivatives(self._user_Jp))

    @cached_property
    def _newton(self) -> Any:
        workspace = self.workspace
        conditions = [c.own for c in self._conditions]
        if workspace.frozen:
            return NewtonKrylov(
                workspace,
                self.form,
                self.u,
                conditions,
                self.jacobian,
                self._user_Jp,
                self._parameters,
                self._guarded,
            )
        of_residual, of_jacobian = workspace.symbols(self.form), workspace.symbols(self.jacobian)

        last: list[Any] = [None]

        def before_residual(_: Any) -> None:
            workspace.touch()
            workspace.refresh(of_residual)
            last[0] = _alone(self.x)

        def before_jacobian(_: Any) -> None:
            here = _alone(self.x)
            if here is None or not np.array_equal(here, last[0]):
                workspace.touch()
            workspace.refresh(of_jacobian)

        problem = NonlinearVariationalProblem(
            workspace.replaced(self.form),
            self.x,
            bcs=conditions,
            J=workspace.replaced(self.jacobian),
            Jp=self._preconditioner,
        )
        solver = NonlinearVariationalSolver(
            problem,
            solver_parameters=self._parameters,
            pre_function_callback=self._guarded(before_residual),
            pre_jacobian_callback=self._guarded(before_jacobian),
            **self._options,
        )
        self._callbacks = attributes_of(solver.snes)
        return solver

    def _guarded(self, callback: Callable[..., None]) -> Callable[..., None]:
        def guarded(*arguments: Any) -> None:
            try:
                callback(*arguments)
            except Exception as error:
                self._error = error
                raise

        return guarded

    # What the tape needs: linear solves at what is loaded, and derivatives of F(lambda).

    @cached_property
    def adjoint_state(self) -> Function:
        """The lambda of `calculus`."""
        return Function(self.u.function_space())

    @cached_property
    def second_state(self) -> Function:
        """The lambda of `second_calculus`."""
        return Function(self.u.function_space())

    @cached_property
    def calculus(self) -> Calculus:
        """Derivatives of F(lambda) at the adjoint state."""
        return Calculus(self.workspace, action(self.form, self.adjoint_state))

    @cached_property
    def second_calculus(self) -> Calculus:
        """Derivatives of F(lambda) at the second-order adjoint state."""
        return Calculus(self.workspace, action(self.form, self.second_state))

    def solve_adjoint(self, load: Any, result: Function) -> None:
        """Solve with the transposed Jacobian; the conditions are homogeneous."""
        if self.workspace.frozen:
            self._newton.solve_transposed(load, result)
            return
        self._linear(load, result, "_adjoint_solver", lambda: adjoint(self.jacobian))

    def solve_tangent(self, load: Any, result: Function, boundary: Sequence[Any]) -> None:
        """Solve with the Jacobian; `boundary` holds the derivative of each condition, or None."""
        if self.workspace.frozen:
            self._newton.solve_linear(load, result, [b is not None for b in boundary])
            return
        for condition, bc in zip(self._conditions, boundary, strict=True):
            condition.load_tangent(bc)
        self._linear(load, result, "_tangent_solver", lambda: self.jacobian)

    def _linear(self, load: Any, result: Function, name: str, form: Callable[[], Any]) -> None:
        with stop_annotating():
            if not hasattr(self, name):
                a = expand_derivatives(form())
                rhs, x = Cofunction(self.u.function_space().dual()), self.u.copy(deepcopy=True)
                own = name == "_adjoint_solver"
                bcs = [c.homogeneous if own else c.tangent for c in self._conditions]
                problem = LinearVariationalProblem(self.workspace.replaced(a), rhs, x, bcs=bcs)
                nullspaces = {k: v for k, v in self._options.items() if "nullspace" in k}
                solver = LinearVariationalSolver(
                    problem, solver_parameters=self._linear_parameters(), **nullspaces
                )
                setattr(self, name, (solver, rhs, x, bcs, self.workspace.symbols(a)))
            solver, rhs, x, bcs, symbols = getattr(self, name)
            self.workspace.refresh(symbols)
            copy_values(load, rhs)
            for bc in bcs:
                bc.zero(rhs)
            x.assign(0.0)
            solver.solve()
            copy_values(x, result)

    def _linear_parameters(self) -> dict[str, Any]:
        if self._adjoint_parameters is not None:
            return self._adjoint_parameters
        return {k: v for k, v in self._parameters.items() if not k.startswith("snes")}


def _alone(f: Function) -> Any:
    """The values of a function; None where others have a part of it and may see a change."""
    if f.comm.size > 1:
        return None
    return np.concatenate([part.dat.data_ro.reshape(-1) for part in f.subfunctions])


def _has_operators(form: Any) -> bool:
    return isinstance(form, ufl.Form) and bool(symbols_of(form))


def _listed(bcs: Any) -> list[Any]:
    if bcs is None:
        return []
    return list(bcs) if isinstance(bcs, list | tuple) else [bcs]
