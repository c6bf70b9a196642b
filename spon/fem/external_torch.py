"""A torch function of one point, for all points at once, with its derivatives.

Row i of the result depends on row i of the operands alone. So one backward pass for each component
of the value gives the Jacobians of all points: an array (points, value, operand), block-diagonal by
construction and never a matrix. Derivatives of any order are the same step taken again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp

__all__ = [
    "PointLaw",
    "flat_parameters",
    "probe_value_shape",
    "pullback",
    "tangent",
    "trainable",
]

_CHUNK = 1 << 15  # points evaluated together: bounds the memory, costs nothing in speed


def flat_parameters(module: nn.Module) -> Tensor:
    """The trainable parameters of a module side by side, connected to them.

    Parameters
    ----------
    module : torch.nn.Module

    Returns
    -------
    Tensor, shape (n_weights,), float64
        Gradients with respect to it arrive in the parameters.
    """
    return torch.cat([p.reshape(-1) for p in module.parameters() if p.requires_grad])


class PointLaw:
    """A pointwise torch function and its derivatives by operands and weights.

    Parameters
    ----------
    function : callable or torch.nn.Module
        Float64. The trainable parameters of a module are the weights.
    operand_shapes : sequence of tuple of int
    value_shape : tuple of int
    stack : bool
        Whether the function takes all operands side by side, shape (points, n_operand), or each
        for itself, shapes (points, *operand_shape).

    Raises
    ------
    TypeError
        If a parameter of the module is not float64.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        operand_shapes: Sequence[tuple[int, ...]],
        value_shape: tuple[int, ...],
        stack: bool,
    ) -> None:
        self.function = function
        self.operand_shapes = [tuple(s) for s in operand_shapes]
        self.value_shape = tuple(value_shape)
        self.stack = stack
        self.operand_size = sum(math.prod(s) for s in self.operand_shapes)
        self.value_size = math.prod(self.value_shape)
        self.parameters = trainable(function)
        self._checked = False

    @property
    def weight_count(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.parameters.values())

    def weights(self) -> Tensor:
        """A copy of the weights, shape (n_weights,)."""
        if not self.parameters:
            return torch.zeros(0, dtype=torch.float64)
        return torch.cat([p.detach().reshape(-1) for p in self.parameters.values()]).cpu().clone()

    def set_weights(self, weights: Tensor) -> None:
        """Write weights into the parameters of the module."""
        with torch.no_grad():
            for name, part in self._named(weights).items():
                self.parameters[name].copy_(part)

    def evaluate(self, order: int, weights: Tensor, x: Tensor) -> Tensor:
        """The value (order 0) or a derivative by the operands at all points.

        Parameters
        ----------
        order : int
        weights : Tensor, shape (n_weights,)
        x : Tensor, shape (points, n_operand)

        Returns
        -------
        Tensor, shape (points, n_value * n_operand**order)

        Raises
        ------
        TypeError, ValueError
            If the function does not return what it should, see `external_operator`.
        """
        self._check(weights, x)
        f = self._derivative(order)
        with torch.no_grad():
            y = torch.cat([f(weights, part).detach() for part in x.split(_CHUNK)])
        self._check_finite(y, x, order)
        return y

    def weight_jvp(self, order: int, weights: Tensor, x: Tensor, direction: Tensor) -> Tensor:
        """Derivative of `evaluate` by the weights in a direction, shape as `evaluate`."""
        f = self._derivative(order)
        parts = [
            tangent(lambda w, part=part: f(w, part), (weights,), (direction,))
            for part in x.split(_CHUNK)
        ]
        return torch.cat(parts).detach()

    def weight_vjp(self, order: int, weights: Tensor, x: Tensor, seed: Tensor) -> Tensor:
        """Derivative of ``sum(seed * evaluate)`` by the weights, shape (n_weights,)."""
        total = torch.zeros_like(weights)
        for part, a in zip(x.split(_CHUNK), seed.split(_CHUNK), strict=True):
            total += self._pull(order, weights, part, a).detach()
        return total

    def weight_vjp_tangent(
        self,
        order: int,
        weights: Tensor,
        x: Tensor,
        seed: Tensor,
        weights_dot: Tensor,
        x_dot: Tensor,
    ) -> Tensor:
        """Derivative of `weight_vjp` along a direction of weights and operands."""
        total = torch.zeros_like(weights)
        chunks = zip(x.split(_CHUNK), seed.split(_CHUNK), x_dot.split(_CHUNK), strict=True)
        for part, a, dot in chunks:
            total += tangent(
                lambda w, p, a=a: self._pull(order, w, p, a), (weights, part), (weights_dot, dot)
            ).detach()
        return total

    def _pull(self, order: int, weights: Tensor, x: Tensor, seed: Tensor) -> Tensor:
        f = self._derivative(order)
        return pullback(lambda w: f(w, x), weights)[1](seed)[0]

    def _derivative(self, order: int) -> Callable[[Tensor, Tensor], Tensor]:
        f, size = self._call, self.value_size
        for _ in range(order):
            f = _by_operands(f, size)
            size *= self.operand_size
        return f

    def _named(self, weights: Tensor) -> dict[str, Tensor]:
        sizes = [p.numel() for p in self.parameters.values()]
        parts = weights.split(sizes)
        return {
            name: part.reshape(p.shape).to(p.device)
            for (name, p), part in zip(self.parameters.items(), parts, strict=True)
        }

    def _call(self, weights: Tensor, x: Tensor) -> Tensor:
        if self.stack:
            arguments: tuple[Tensor, ...] = (x,)
        else:
            parts = x.split([math.prod(s) for s in self.operand_shapes], dim=1)
            arguments = tuple(
                part.reshape(len(x), *shape)
                for part, shape in zip(parts, self.operand_shapes, strict=True)
            )
        if isinstance(self.function, nn.Module):
            device = next((p.device for p in self.function.parameters()), x.device)
            arguments = tuple(a.to(device) for a in arguments)
            y = functional_call(self.function, self._named(weights), arguments)
        else:
            y = self.function(*arguments)
        self._check_output(y, len(x))
        return y.to(x.device).reshape(len(x), self.value_size)

    def _check_output(self, y: Any, points: int) -> None:
        if not isinstance(y, Tensor):
            raise TypeError(
                f"The pointwise function returned a {type(y).__name__}, expected a float64 tensor "
                f"of shape {(points, *self.value_shape)}."
            )
        if y.dtype != torch.float64:
            raise TypeError(
                f"The pointwise function returned {y.dtype}, expected float64: Newton's method and "
                "its derivatives need double precision (module.double(), or no conversion inside)."
            )
        fitting = [(points, *self.value_shape), (points, self.value_size)]
        if self.value_size == 1:
            fitting.append((points,))
        if tuple(y.shape) not in fitting:
            takes = (
                f"one tensor of shape ({points}, {self.operand_size})"
                if self.stack
                else f"tensors of shapes {[(points, *s) for s in self.operand_shapes]}"
            )
            raise ValueError(
                f"The pointwise function returned a tensor of shape {tuple(y.shape)}, expected "
                f"{fitting[0]}: it takes {takes} and returns one value of shape "
                f"{self.value_shape} for each of the {points} points."
            )

    def _check(self, weights: Tensor, x: Tensor) -> None:
        """On first use: points do not see each other, nothing is random, no hidden weights."""
        if self._checked or len(x) < 2:
            return
        with torch.enable_grad():
            whole = self._call(weights, x[:_CHUNK].detach())
        if whole.requires_grad and not isinstance(self.function, nn.Module):
            raise TypeError(
                "The pointwise function uses tensors that require a gradient, which would be lost: "
                "make it a torch.nn.Module that owns them as parameters."
            )
        with torch.no_grad():
            half = (len(whole) + 1) // 2
            part = self._call(weights, x[:half])
        if not torch.allclose(part, whole[:half], rtol=1e-8, atol=1e-10, equal_nan=True):
            raise ValueError(
                "The function is not pointwise: the values at some points changed when the others "
                "were left out. Take out batch normalisation, dropout and whatever else mixes "
                "points or is random (module.eval()), or give a global operator "
                "(pointwise=False)."
            )
        self._checked = True

    def _check_finite(self, y: Tensor, x: Tensor, order: int) -> None:
        bad = ~torch.isfinite(y).all(dim=1)
        if bad.any():
            what = "returned" if order == 0 else f"has derivatives of order {order} that are"
            raise ValueError(
                f"The pointwise function {what} NaN or infinity at {int(bad.sum())} of {len(x)} "
                f"points, first for the operands {x[bad][0].tolist()}: keep the iteration in the "
                "range where it is defined (a better initial guess, a damped line search)."
            )


def probe_value_shape(
    function: Callable[..., Tensor], operand_shapes: Sequence[tuple[int, ...]], stack: bool
) -> tuple[int, ...]:
    """Shape of the value of a pointwise function, from what it returns for zeros at two points.

    Raises
    ------
    ValueError
        If the result has no axis for the points.
    """
    trainable(function)  # a module in single precision is refused here, before it is called
    n = 2
    zeros = [torch.zeros((n, *s), dtype=torch.float64) for s in operand_shapes]
    if stack:
        zeros = [torch.cat([z.reshape(n, -1) for z in zeros], dim=1)]
    if isinstance(function, nn.Module):
        device = next((p.device for p in function.parameters()), zeros[0].device)
        zeros = [z.to(device) for z in zeros]
    with torch.no_grad():
        y = function(*zeros)
    shape = tuple(getattr(y, "shape", ()))
    if not shape or shape[0] != n:
        found = f"a tensor of shape {shape}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
        raise ValueError(
            f"The pointwise function returned {found} for {n} points with operands of shapes "
            f"{[tuple(z.shape) for z in zeros]}: its first axis must be that of the points."
        )
    return () if stack and shape[1:] == (1,) else shape[1:]


def tangent(f: Callable[..., Tensor], at: Sequence[Tensor], direction: Sequence[Tensor]) -> Tensor:
    """Derivative of a function along a direction of its arguments."""
    result: Any = jvp(f, tuple(at), tuple(direction))
    derivative: Tensor = result[1]
    return derivative


def pullback(f: Callable[..., Tensor], *at: Tensor) -> tuple[Tensor, Callable[..., Any]]:
    """Value of a function, and the adjoint of its derivative."""
    result: Any = vjp(f, *at)
    return result[0], result[1]


def trainable(function: Any) -> dict[str, nn.Parameter]:
    """The trainable parameters of a module, none for another callable.

    Raises
    ------
    TypeError
        If a parameter is not float64.
    """
    if not isinstance(function, nn.Module):
        return {}
    wrong = {n: p.dtype for n, p in function.named_parameters() if p.dtype != torch.float64}
    if wrong:
        name, dtype = next(iter(wrong.items()))
        raise TypeError(
            f"The parameter {name!r} of the {type(function).__name__} is {dtype}: Newton's method "
            "and its derivatives need float64, call module.double()."
        )
    return {name: p for name, p in function.named_parameters() if p.requires_grad}


def _by_operands(f: Callable[[Tensor, Tensor], Tensor], size: int) -> Any:
    """From (points, size) to its derivative by the operands, (points, size * n_operand)."""

    def derivative(weights: Tensor, x: Tensor) -> Tensor:
        y, pull = pullback(lambda z: f(weights, z), x)
        # One pass for each component, all points together; not under vmap, which some modules
        # (and every torch.autograd.Function without a rule for it) do not support.
        columns = []
        for i in range(size):
            seed = torch.zeros_like(y)
            seed[:, i] = 1.0
            columns.append(pull(seed)[0])
        return torch.stack(columns, dim=1).reshape(len(x), -1)

    return derivative
