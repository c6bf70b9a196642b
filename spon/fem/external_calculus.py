"""Derivatives of a scalar form with external operators, by its coefficients and weights.

What an assembly and a solve need on the tape is the same: for a residual F and an adjoint state
lambda the scalar L = F(lambda), its gradient by every input, and the change of that gradient along
a direction of all inputs. By coefficients UFL does it, as the symbols obey the chain rule; by
weights, and through operators without a UFL derivative, torch continues from the derivative of L by
the values of the operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import ufl
from firedrake import Cofunction, Function, TestFunction, assemble, derivative
from firedrake import interpolate as ufl_interpolate
from pyadjoint import stop_annotating
from torch import Tensor
from ufl.algorithms import expand_derivatives

from spon.fem.external_symbols import PointSymbol, Symbol, symbols_of
from spon.fem.external_workspace import (
    Assembled,
    Workspace,
    is_zero,
    read_values,
    write_values,
)
from spon.fem.spaces import to_function

__all__ = ["Calculus", "Directions", "directional", "pull_back", "push_forward"]


class Directions:
    """A direction of all inputs: of some coefficients, and of the weights of some operators.

    Parameters
    ----------
    coefficients : mapping of Function to Function
    weights : mapping of Symbol to Tensor, shape (n_weights,)
    """

    def __init__(
        self, coefficients: Mapping[Any, Function], weights: Mapping[Symbol, Tensor]
    ) -> None:
        self.coefficients = dict(coefficients)
        self.weights = dict(weights)

    @property
    def key(self) -> tuple[Any, ...]:
        """Which inputs move: forms are made once for each such set."""
        return tuple(self.coefficients), tuple(self.weights)

    def fill(self, workspace: Workspace, symbols: list[Symbol]) -> None:
        """Put the directions where the forms of `directional` look for them."""
        for c, dot in self.coefficients.items():
            with stop_annotating():
                workspace.dot(c).assign(dot)
        for s in symbols:
            if s.root in self.weights:
                write_values(_weight_jvp(workspace, s, self.weights[s.root]), workspace.dot(s))


def directional(workspace: Workspace, form: Any, to: Directions) -> tuple[Any, list[Symbol]]:
    """Derivative of a form along directions, and the symbols in it that move with the weights."""
    total: Any = ufl.Form([])
    for c in to.coefficients:
        total = total + derivative(form, c, workspace.dot(c))
    moving = [s for s in symbols_of(expand_derivatives(form)) if s.root in to.weights]
    for s in moving:
        total = total + ufl.derivative(form, s, workspace.dot(s))
    return expand_derivatives(total), moving


class Calculus:
    """First and second derivatives of a scalar form.

    Parameters
    ----------
    workspace : Workspace
    form : ufl.Form
        Without arguments, in terms of the user's functions, of symbols, and of Functions of the
        caller such as an adjoint state, which are constants here.
    """

    def __init__(self, workspace: Workspace, form: Any) -> None:
        self.workspace, self.form = workspace, form
        self._assembled: dict[Any, Assembled] = {}

    def gradient(self, c: Any) -> Any:
        """Derivative by a coefficient as a Cofunction; None if it is zero."""
        result = self._assemble(("by", c), lambda: derivative(self.form, c))
        for s in self.workspace.frozen:
            if c in s.operand_coefficients():
                seed = self._by_values(s)
                if seed is not None:
                    result = _plus(result, pull_back(self.workspace, s, seed, c))
        return result

    def weight_gradient(self, operator: Symbol) -> Tensor:
        """Derivative by the weights of an operator, shape (n_weights,), of all processes."""
        total = torch.zeros_like(self.workspace.weight(operator))
        for s in self._symbols(operator):
            seed = self._by_values(s)
            if seed is not None:
                total += _weight_vjp(self.workspace, s, read_values(seed))
        return _summed(total, operator)

    def second(self, c: Any, to: Directions) -> Any:
        """Change of `gradient` along a direction; None if it is zero."""
        self._require_ufl()
        return self._along(("by", c), lambda: derivative(self.form, c), to)

    def weight_second(self, operator: Symbol, to: Directions) -> Tensor:
        """Change of `weight_gradient` along a direction."""
        self._require_ufl()
        workspace = self.workspace
        weights = workspace.weight(operator)
        total = torch.zeros_like(weights)
        for s in self._symbols(operator):
            assert isinstance(s, PointSymbol)
            seed = self._by_values(s)
            if seed is None:
                continue
            seed_dot = self._along(("by", s), lambda s=s: _by(self.form, s), to)
            if seed_dot is not None:
                total += _weight_vjp(workspace, s, read_values(seed_dot))
            x = workspace.at_points(s)
            total += s.law.weight_vjp_tangent(
                s.order,
                weights,
                x,
                read_values(seed),
                to.weights.get(operator, torch.zeros_like(weights)),
                _operand_dot(workspace, s.root, to),
            )
        return _summed(total, operator)

    def _require_ufl(self) -> None:
        if self.workspace.frozen:
            raise NotImplementedError(
                "Second derivatives through operator networks and operators at nodes are not "
                "supported: put pointwise operators at quadrature points (degree=...)."
            )

    def _symbols(self, operator: Symbol) -> list[Symbol]:
        if operator in self.workspace.frozen:
            return [operator]
        return [s for s in symbols_of(self.form) if s.root is operator]

    def _by_values(self, s: Symbol) -> Any:
        """Derivative by the values of a symbol, a Cofunction of its space."""
        variable = self.workspace.data(s) if s in self.workspace.frozen else s
        return self._assemble(("by", s), lambda: _by(self.form, variable))

    def _assemble(self, key: Any, form: Any) -> Any:
        if key not in self._assembled:
            self._assembled[key] = Assembled(self.workspace, form())
        return self._assembled[key]()

    def _along(self, key: Any, form: Any, to: Directions) -> Any:
        key = (*key, to.key)
        if key not in self._assembled:
            total, moving = directional(self.workspace, expand_derivatives(form()), to)
            self._assembled[key] = Assembled(self.workspace, total)
            self._assembled[key].moving = moving
        assembled = self._assembled[key]
        to.fill(self.workspace, assembled.moving)
        return assembled()


def push_forward(workspace: Workspace, s: Any, to: Directions) -> Any:
    """Derivative of the values of a frozen operator along a direction, as a Function."""
    result = Function(s.space)
    weights = workspace.weight(s)
    weights_dot = to.weights.get(s, torch.zeros_like(weights))
    if isinstance(s, PointSymbol):
        x_dot = _operand_dot(workspace, s, to)
        tangent = s.law.evaluate(1, weights, workspace.at_points(s))
        values = (tangent.reshape(len(x_dot), -1, x_dot.shape[1]) @ x_dot[..., None])[..., 0]
        if s in to.weights:
            values = values + _weight_jvp(workspace, s, weights_dot)
        write_values(values, result)
        return result
    dots = [to.coefficients.get(f) for f in s.operands]
    return to_function(s.law.jvp(weights, workspace.inputs(s), weights_dot, dots), s.space)


def pull_back(workspace: Workspace, s: Any, seed: Any, c: Any) -> Any:
    """Adjoint of `push_forward` for one coefficient: from loads on the values to loads on it."""
    weights = workspace.weight(s)
    if not isinstance(s, PointSymbol):
        return s.law.pull_back(weights, workspace.inputs(s), seed, s.operands, c)
    a = read_values(seed)
    tangent = s.law.evaluate(1, weights, workspace.at_points(s)).reshape(len(a), a.shape[1], -1)
    load = Cofunction(s.points.dual())
    write_values((a[:, None, :] @ tangent)[:, 0], load)
    direction = expand_derivatives(ufl.derivative(s.operand, c, TestFunction(c.function_space())))
    with stop_annotating():
        return assemble(ufl_interpolate(workspace.replaced(direction), load))


def _by(form: Any, variable: Any) -> Any:
    space = variable.space if isinstance(variable, Symbol) else variable.function_space()
    return ufl.derivative(form, variable, TestFunction(space))


def _operand_dot(workspace: Workspace, s: PointSymbol, to: Directions) -> Tensor:
    """Derivative of the operand at the points along a direction, shape (points, m)."""
    x = workspace.at_points(s)
    total = torch.zeros_like(x)
    for c in s.operand_coefficients():
        if c in to.coefficients:
            with stop_annotating():
                workspace.dot(c).assign(to.coefficients[c])
            dot = expand_derivatives(ufl.derivative(s.operand, c, workspace.dot(c)))
            if not is_zero(dot):
                total += workspace.interpolated(dot, s)
    return total


def _weight_jvp(workspace: Workspace, s: Any, direction: Tensor) -> Tensor:
    weights = workspace.weight(s)
    if isinstance(s, PointSymbol):
        return s.law.weight_jvp(s.order, weights, workspace.at_points(s), direction)
    none = [None] * len(s.operands)
    result: Tensor = s.law.jvp(weights, workspace.inputs(s), direction, none)
    return result


def _weight_vjp(workspace: Workspace, s: Any, seed: Tensor) -> Tensor:
    weights = workspace.weight(s)
    if isinstance(s, PointSymbol):
        return s.law.weight_vjp(s.order, weights, workspace.at_points(s), seed)
    result: Tensor = s.law.weight_vjp(weights, workspace.inputs(s), seed.reshape(-1))
    return result


def _summed(total: Tensor, operator: Symbol) -> Tensor:
    """Sum over processes: each has the points of its own cells."""
    comm = operator.space.mesh().unique().comm
    return total if comm.size == 1 else torch.from_numpy(comm.allreduce(total.numpy()))


def _plus(a: Any, b: Any) -> Any:
    if a is None:
        return b
    with stop_annotating():
        a += b
    return a
