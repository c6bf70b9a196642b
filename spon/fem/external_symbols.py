"""What stands for a torch function inside a UFL form.

A symbol is a UFL coefficient without data. UFL's own algorithms treat it as any coefficient, and a
rule for Gateaux derivatives makes ``derivative(F, u)`` follow the operands of a pointwise operator
by the chain rule: the tangent at the points is a symbol again. Firedrake's ``assemble`` and
``solve`` find no data and refuse, instead of taking yesterday's values for a constant; those of
`spon.fem` put the data in.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NoReturn

import finat.ufl
import numpy as np
import torch
import ufl
from firedrake import (
    COMM_SELF,
    Cofunction,
    Function,
    FunctionSpace,
    IntervalMesh,
    TensorFunctionSpace,
    VectorFunctionSpace,
)
from pyadjoint import stop_annotating
from torch import Tensor
from ufl.algorithms import extract_arguments, extract_coefficients
from ufl.algorithms.apply_algebra_lowering import apply_algebra_lowering
from ufl.algorithms.apply_derivatives import GateauxDerivativeRuleset, apply_derivatives
from ufl.constantvalue import Zero

from spon.fem.external_torch import PointLaw

__all__ = [
    "NetworkSymbol",
    "PointSymbol",
    "Symbol",
    "Weights",
    "checked_operands",
    "like_space",
    "point_space",
    "symbols_of",
    "tensor_of_weights",
]


class Symbol(ufl.Coefficient):
    """A torch function inside a form: a UFL coefficient whose data are computed when needed.

    Attributes
    ----------
    space : FunctionSpace
        Where its values live.
    weights : Weights or None
        The trainable parameters as a Function, if there are any.
    """

    def __init__(self, space: Any) -> None:
        super().__init__(space.ufl_function_space())
        self.space = space

    weights: Weights | None = None

    @property
    def root(self) -> Symbol:
        """The operator that this symbol is, or is a derivative of."""
        return self

    def operand_coefficients(self) -> list[Function]:
        """The functions that the operands depend on."""
        raise NotImplementedError

    def _refuse(self) -> NoReturn:
        raise TypeError(
            "The form holds an external operator, whose values Firedrake's own assemble and solve "
            "cannot compute: use spon.fem.assemble(form) and spon.fem.solve(F == 0, u, bcs), which "
            "take the same arguments."
        )

    # What Firedrake and pyadjoint ask of a coefficient.
    dat = property(_refuse)
    subfunctions = property(_refuse)
    topological = property(_refuse)
    block_variable = property(_refuse)

    def function_space(self) -> Any:
        """The space of the values."""
        return self.space


class PointSymbol(Symbol):
    """A pointwise operator (order 0), or its derivatives by the operands (order 1, 2, ...).

    Parameters
    ----------
    law : PointLaw
    operand : ufl.Expr, shape (m,)
        The components of all operands side by side, without compound or nested derivatives.
    space : FunctionSpace
    points : FunctionSpace, shape (m,)
        Where the operand is evaluated: quadrature points or nodes.
    degree : int or None
        Quadrature degree; None at nodes.
    """

    def __init__(
        self,
        law: PointLaw,
        operand: Any,
        space: Any,
        points: Any,
        degree: int | None,
        parent: PointSymbol | None = None,
    ) -> None:
        super().__init__(space)
        self.law, self.operand, self.points, self.degree = law, operand, points, degree
        self.parent = parent
        self.order: int = 0 if parent is None else parent.order + 1
        if parent is None:
            self.weights = Weights(law) if law.parameters else None
        else:
            self.weights = parent.weights

    @property
    def root(self) -> PointSymbol:
        """The operator that this symbol is, or is a derivative of."""
        return self if self.parent is None else self.parent.root

    @cached_property
    def tangent(self) -> PointSymbol:
        """The derivative by the operand, shape value_shape + (m,)."""
        shape = self.ufl_shape + self.operand.ufl_shape
        space = like_space(self.space, shape)
        return PointSymbol(self.law, self.operand, space, self.points, self.degree, self)

    def operand_coefficients(self) -> list[Function]:
        """The functions that the operands depend on."""
        return list(extract_coefficients(self.operand))


class NetworkSymbol(Symbol):
    """An operator between spaces: its value at a node depends on all dofs of its operands.

    Parameters
    ----------
    law : object
        Evaluates the operator and its derivatives, see `spon.fem.external_network`.
    operands : list of Function
    space : FunctionSpace
    """

    def __init__(self, law: Any, operands: Sequence[Function], space: Any) -> None:
        super().__init__(space)
        self.law, self.operands = law, list(operands)
        self.weights = Weights(law) if law.parameters else None

    def operand_coefficients(self) -> list[Function]:
        """The functions that the operator is applied to."""
        return self.operands


class Weights:
    """The trainable parameters of a module as a Function, for the pyadjoint tape.

    A piecewise constant function on an interval with one cell of length one for each weight: sums,
    inner products and Riesz maps are then those of plain vectors, and every process holds all.

    Parameters
    ----------
    law : object
        With ``weights()``, ``set_weights(w)`` and ``weight_count``.
    """

    def __init__(self, law: Any) -> None:
        self.law = law
        self._last = np.zeros(0)

    @cached_property
    def function(self) -> Function:
        """The weights as a Function."""
        n = self.law.weight_count
        with stop_annotating():
            mesh = IntervalMesh(n, float(n), comm=COMM_SELF, reorder=False)
            f = Function(FunctionSpace(mesh, "DG", 0), name="weights")
            self._last = self.law.weights().numpy()
            f.dat.data_wo[...] = self._last
        return f

    def synchronise(self) -> None:
        """Bring module and Function together: what was changed since the last time wins.

        Raises
        ------
        ValueError
            If both were changed, to different values.
        """
        f, last = self.function, self._last
        module, function = self.law.weights().numpy(), f.dat.data_ro
        new_module = not np.array_equal(module, last)
        new_function = not np.array_equal(function, last)
        if new_module and new_function and not np.array_equal(module, function):
            raise ValueError(
                "The parameters of the module and the Function `operator.weights` were both "
                "changed since the last evaluation, to different values: change one of them."
            )
        if new_module and not new_function:
            with stop_annotating(modifies=f):
                f.dat.data_wo[...] = module
        elif new_function:
            self.law.set_weights(torch.from_numpy(function.copy()))
        self._last = f.dat.data_ro.copy()


def tensor_of_weights(f: Any) -> Tensor:
    """Weights in a Function as a tensor."""
    return torch.from_numpy(np.array(f.dat.data_ro, dtype=np.float64))


@GateauxDerivativeRuleset.process.register(PointSymbol)
def _(self: Any, o: PointSymbol) -> Any:
    """Chain rule: D N(z)[v] = N'(z) D z[v]."""
    direction = self._w2v.get(o)
    if direction is not None:
        return direction
    dz = self(o.operand)
    if isinstance(dz, Zero):
        return Zero(o.ufl_shape)
    if o.degree is None:
        raise NotImplementedError(
            "An operator at the nodes of a space is interpolated, so its derivative is no UFL "
            "form: use spon.fem.solve and the tape, which apply it without a matrix, or put the "
            "operator at quadrature points (degree=...)."
        )
    rows, column = ufl.indices(len(o.ufl_shape)), ufl.indices(1)
    product = o.tangent[rows + column] * dz[column]
    return ufl.as_tensor(product, rows) if rows else product


@GateauxDerivativeRuleset.process.register(NetworkSymbol)
def _(self: Any, o: NetworkSymbol) -> Any:
    direction = self._w2v.get(o)
    if direction is not None:
        return direction
    if all(isinstance(self(f), Zero) for f in o.operands):
        return Zero(o.ufl_shape)
    raise NotImplementedError(
        "The derivative of an operator network is a dense matrix and no UFL form: use "
        "spon.fem.solve and the tape, which apply it without a matrix."
    )


def symbols_of(form: Any) -> list[Symbol]:
    """The external operators in a form or expression, and their derivatives."""
    return [c for c in extract_coefficients(form) if isinstance(c, Symbol)]


def checked_operands(operands: Any) -> tuple[Any, list[tuple[int, ...]]]:
    """Operands as one UFL vector, and their shapes.

    Raises
    ------
    TypeError
        If an operand is no UFL expression of Functions.
    NotImplementedError
        If an operand holds an external operator.
    """
    given = list(operands) if isinstance(operands, list | tuple) else [operands]
    if not given:
        raise TypeError("An external operator needs at least one operand.")
    components, shapes = [], []
    for operand in given:
        if not isinstance(operand, ufl.core.expr.Expr):
            raise TypeError(
                f"An operand is a UFL expression such as u, grad(u) or SpatialCoordinate(mesh), "
                f"got {type(operand).__name__}."
            )
        if extract_arguments(operand):
            raise TypeError(
                f"The operand {operand} holds a test or trial function: a torch function may be "
                "nonlinear in its operands, so they are functions."
            )
        for coefficient in extract_coefficients(operand):
            if isinstance(coefficient, Symbol):
                raise NotImplementedError(
                    "External operators of external operators are not supported: compose the torch "
                    "functions instead."
                )
            if not isinstance(coefficient, Function) or isinstance(coefficient, Cofunction):
                raise TypeError(
                    f"The operand {operand} holds a {type(coefficient).__name__}, not a Function."
                )
        shape = tuple(operand.ufl_shape)
        shapes.append(shape)
        components += [operand[i] if shape else operand for i in np.ndindex(*shape)]
    # The operand is hidden from UFL inside a terminal, so what UFL does first is done here.
    vector = apply_derivatives(apply_algebra_lowering(ufl.as_vector(components)))
    return vector, shapes


def point_space(mesh: Any, degree: int, shape: tuple[int, ...]) -> Any:
    """Values of that shape at the quadrature points of a degree."""
    return _shaped(mesh, shape, "Quadrature", degree)


def like_space(space: Any, shape: tuple[int, ...]) -> Any:
    """Values of another shape at the same points or nodes."""
    element = space.ufl_element()
    if isinstance(element, finat.ufl.VectorElement | finat.ufl.TensorElement):
        element = element.sub_elements[0]
    return _shaped(space.mesh(), shape, element)


def _shaped(mesh: Any, shape: tuple[int, ...], *element: Any) -> Any:
    if not shape:
        return FunctionSpace(mesh, *element)
    if len(shape) == 1:
        return VectorFunctionSpace(mesh, *element, dim=shape[0])
    return TensorFunctionSpace(mesh, *element, shape=shape)
