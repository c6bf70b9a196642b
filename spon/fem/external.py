"""A torch function inside a UFL form.

`external_operator` makes a symbol for UFL; `solve`, `assemble` and `ExternalSolver` of this folder
know how to evaluate it, differentiate it and record it on the pyadjoint tape, by the functions in
its operands and by its weights; `solution_operator` hands the solve to torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import finat.ufl
import ufl
from firedrake import Function
from pyadjoint import (
    Control,
    ReducedFunctional,
    Tape,
    continue_annotation,
    pause_annotation,
    set_working_tape,
)
from pyadjoint.tape import annotate_tape
from torch import Tensor, nn
from ufl.domain import extract_unique_domain

from spon.fem.external_network import NetworkLaw
from spon.fem.external_solve import ExternalSolver, assemble, solve
from spon.fem.external_symbols import (
    NetworkSymbol,
    PointSymbol,
    Symbol,
    checked_operands,
    like_space,
    point_space,
    symbols_of,
)
from spon.fem.external_torch import PointLaw, flat_parameters, probe_value_shape
from spon.fem.spaces import name_of, require_primal_space, require_serial
from spon.fem.tape import FEMOperator, fem_operator

__all__ = ["ExternalSolver", "assemble", "external_operator", "solution_operator", "solve"]

_NODAL = ("Lagrange", "Discontinuous Lagrange", "Q", "DQ")


def external_operator(
    function: Callable[..., Tensor],
    function_space: Any = None,
    *,
    operands: Any,
    degree: int | None = None,
    value_shape: tuple[int, ...] | None = None,
    stack: bool | None = None,
    pointwise: bool | None = None,
) -> Symbol:
    """Put a torch function into a UFL form.

    The result is a UFL coefficient: use it in forms, differentiate them with ``derivative``. Solve
    and assemble them with `spon.fem.solve` and `spon.fem.assemble`, which take the arguments of
    Firedrake's functions of these names and call those for forms without operators. While pyadjoint
    records they are recorded, with the functions in the operands and with the weights
    ``operator.weights.function`` as inputs.

    Three kinds:

    * *at quadrature points* (`degree` is given): the function maps the values of the operands at a
      point to a value. ``derivative`` follows it to any order, with block-diagonal tangents at the
      points; Newton's method converges quadratically, with any solver of Firedrake, also on a mesh
      that is distributed over processes.
    * *at the nodes of a space* (`function_space` is given): the same, interpolated. Its derivative
      is applied without a matrix.
    * *operator network* (a `spon.OperatorNetwork`, or ``pointwise=False``): maps all coefficients
      of the operands to all coefficients of a function in `function_space`. Its derivative is
      applied without a matrix.

    Parameters
    ----------
    function : callable or torch.nn.Module
        Float64 in and out, differentiable by torch. *Pointwise*: for a module, a tensor (points, n)
        with all components of the operands side by side to a tensor (points, value_size) or, for a
        scalar, (points,); for another callable, one tensor (points, *operand_shape) for each
        operand to (points, *value_shape). All points come in one call. *Network*: one tensor
        (batch, V.dim()) for each operand to (batch, U.dim()).
    function_space : FunctionSpace, optional
        Where the result lives. A space with nodes (CG, DG, Q, DQ, or vectors and tensors of these)
        for pointwise functions. Not given for an OperatorNetwork, which knows its own.
    operands : ufl.Expr or sequence of ufl.Expr
        What the function is applied to, as ``u`` or ``(u, grad(u))``; Functions for networks.
    degree : int, optional
        Degree of the quadrature rule at whose points the function is evaluated. Integrals with the
        operator in them use this rule.
    value_shape : tuple of int, optional
        Shape of the value at a point; by default what the function returns for zeros.
    stack : bool, optional
        Whether a pointwise function takes all operands side by side. By default modules do and
        other callables do not.
    pointwise : bool, optional
        By default all but OperatorNetworks are.

    Returns
    -------
    Symbol
        A UFL coefficient, with the attributes ``space`` and ``weights``.

    Raises
    ------
    TypeError
        If an operand is no expression of functions, or the module is not float64.
    ValueError
        If neither or both of `degree` and `function_space` are given, the space has no nodes, or
        the function does not return one value for each point.
    NotImplementedError
        If an operand holds an external operator, or a network meets a distributed mesh.

    Examples
    --------
    >>> k = spon.fem.external_operator(net, operands=u, degree=4)  # doctest: +SKIP
    >>> F = k * inner(grad(u), grad(v)) * dx - f * v * dx  # doctest: +SKIP
    >>> spon.fem.solve(F == 0, u, bcs)  # doctest: +SKIP

    Notes
    -----
    Bouziani and Ham (2021), *Escaping the abstraction: a foreign function interface for UFL*, for
    the idea.
    """
    if not callable(function):
        raise TypeError(
            f"An external operator needs a torch function or module, got {type(function).__name__}."
        )
    own_space = _own_space(function)
    if pointwise is None:
        pointwise = own_space is None
    if not pointwise:
        space = own_space if function_space is None else function_space
        return _network(function, space, operands, degree)
    operand, shapes = checked_operands(operands)
    if (degree is None) == (function_space is None):
        raise ValueError(
            "A pointwise operator needs either degree=, to be evaluated at the points of that "
            "quadrature rule, or function_space=, to be evaluated at the nodes of that space; got "
            f"{'neither' if degree is None else 'both'}."
        )
    if stack is None:
        stack = isinstance(function, nn.Module)
    if value_shape is None and function_space is not None:
        value_shape = tuple(function_space.value_shape)
    if value_shape is None:
        value_shape = probe_value_shape(function, shapes, stack)
    law = PointLaw(function, shapes, value_shape, stack)
    if degree is not None:
        mesh = extract_unique_domain(operand)
        space = point_space(mesh, degree, tuple(value_shape))
        points = point_space(mesh, degree, operand.ufl_shape)
    else:
        _check_nodal(function_space, tuple(value_shape))
        space, points = function_space, like_space(function_space, operand.ufl_shape)
    return PointSymbol(law, operand, space, points, degree)


def solution_operator(
    equation: Any,
    u: Function,
    bcs: Any = None,
    *,
    inputs: Sequence[Function] = (),
    **options: Any,
) -> Callable[..., Tensor]:
    """The solution of ``F == 0`` as a torch function, for training through the solve.

    Parameters
    ----------
    equation : ufl.Equation
        ``F == 0`` with external operators in F.
    u : Function
        The unknown; its present value is the initial guess of every solve.
    bcs : DirichletBC or sequence of DirichletBC, optional
    inputs : sequence of Function, optional
        Functions in F whose values are given in each call.
    **options
        For `ExternalSolver`.

    Returns
    -------
    callable
        ``S(*inputs) -> u`` with tensors (batch, V.dim()) or (V.dim(),) for the inputs and
        (batch, U.dim()) or (U.dim(),) for the solution. Gradients reach the inputs and the
        parameters of the modules inside F, whose present values are used in each call.
    """
    if not isinstance(getattr(equation, "lhs", None), ufl.Form):
        raise TypeError(
            f"solution_operator takes an equation F == 0, got {type(equation).__name__}."
        )
    symbols = list({s.root: None for s in symbols_of(equation.lhs)})
    weights = {s: s.weights.function for s in symbols if s.weights is not None}
    was = annotate_tape()
    guess = u.copy(deepcopy=True, annotate=False)
    with set_working_tape(Tape()):
        continue_annotation()
        try:
            solve(equation, u, bcs, **options)
            controls = [Control(f) for f in (*inputs, *weights.values())]
            operator = fem_operator(ReducedFunctional(u, controls))
        finally:
            if not was:
                pause_annotation()
    u.assign(guess, annotate=False)
    return _SolutionOperator(operator, [s.law.function for s in weights])


class _SolutionOperator:
    """A solve as a torch function that fills in the weights."""

    def __init__(self, operator: FEMOperator, modules: Sequence[nn.Module]) -> None:
        self.operator, self.modules = operator, list(modules)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Solve for each sample."""
        return self.operator(*inputs, *(flat_parameters(m) for m in self.modules))


def _own_space(function: Any) -> Any:
    """The output space of an operator network, None for what is none."""
    return getattr(getattr(function, "decoder", None), "space", None)


def _network(function: Any, space: Any, operands: Any, degree: int | None) -> NetworkSymbol:
    if space is None:
        raise ValueError("A global operator needs function_space=, the space of its result.")
    require_primal_space(space, "external_operator")
    if degree is not None:
        raise ValueError(
            "degree= is for pointwise functions: a network gives a function of a space, which is "
            "evaluated wherever the form needs it."
        )
    given = list(operands) if isinstance(operands, list | tuple) else [operands]
    for f in given:
        if not isinstance(f, Function):
            raise TypeError(
                f"The operands of an operator network are Functions, got {type(f).__name__}: "
                "interpolate expressions into a space first."
            )
    require_serial(space.mesh().unique(), "An operator network in a form")
    for f in given:
        require_serial(f.function_space().mesh().unique(), "An operator network in a form")
    encoders = getattr(function, "encoders", None)
    if encoders is not None:
        for encoder, f in zip(encoders, given, strict=False):
            if encoder.space.dim() != f.function_space().dim():
                raise ValueError(
                    f"The network encodes {name_of(encoder.space)} with {encoder.space.dim()} dofs,"
                    f" the operand is in {name_of(f.function_space())} with "
                    f"{f.function_space().dim()} dofs."
                )
    return NetworkSymbol(NetworkLaw(function, space), given, space)


def _check_nodal(space: Any, value_shape: tuple[int, ...]) -> None:
    require_primal_space(space, "external_operator")
    if tuple(space.value_shape) != value_shape:
        raise ValueError(
            f"The values have shape {value_shape}, those of {name_of(space)} "
            f"{tuple(space.value_shape)}."
        )
    element = space.ufl_element()
    if isinstance(element, finat.ufl.VectorElement | finat.ufl.TensorElement):
        element = element.sub_elements[0]
    nodal = element.family() in _NODAL and "integral" not in str(element.variant() or "")
    if len(space) > 1 or not nodal:
        raise ValueError(
            f"{name_of(space)} has no nodes at which a function could be evaluated: use CG, DG, Q, "
            "DQ or vectors and tensors of these, or quadrature points (degree=)."
        )
