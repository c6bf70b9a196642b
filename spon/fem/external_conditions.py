"""Dirichlet conditions of a solver for forms with external operators."""

from __future__ import annotations

from typing import Any

from firedrake import DirichletBC, Function
from pyadjoint import stop_annotating

from spon.fem.external_workspace import copy_values

__all__ = ["Condition"]


class Condition:
    """A Dirichlet condition and copies of it whose values belong to the solver.

    Parameters
    ----------
    bc : DirichletBC
        The user's condition.

    Attributes
    ----------
    own, homogeneous, tangent : DirichletBC
        For the solve, its adjoint and its linearisation.

    Raises
    ------
    TypeError
        If `bc` is another kind of condition.
    """

    def __init__(self, bc: Any) -> None:
        if not isinstance(bc, DirichletBC):
            raise TypeError(
                f"Only Dirichlet conditions go with external operators, got {type(bc).__name__}."
            )
        self.bc = bc
        self.homogeneous = bc.reconstruct(g=0.0)
        self.own, self.tangent = bc, self.homogeneous
        self._values: Function | None = None
        if isinstance(bc.function_arg, Function):
            self._values = Function(bc.function_space())
            self._tangent = Function(bc.function_space())
            self.own = bc.reconstruct(g=self._values)
            self.tangent = bc.reconstruct(g=self._tangent)

    def load(self, bc: Any) -> None:
        """Take the values of a condition like this one."""
        if self._values is not None:
            with stop_annotating():
                copy_values(bc.function_arg, self._values)

    def load_tangent(self, bc: Any) -> None:
        """Take the derivative of the values; None for zero."""
        if self._values is None:
            return
        with stop_annotating():
            self._tangent.assign(0.0)
            if bc is not None and isinstance(bc.function_arg, Function):
                copy_values(bc.function_arg, self._tangent)
