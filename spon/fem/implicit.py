"""Derivatives of what a solver computes, by the implicit function theorem.

A solved batch satisfies ``R(u, p) = load`` on the free dofs and ``u = g`` on the prescribed ones.
Its backward pass solves the adjoint of the linearised system and evaluates derivatives of the
form R; the solve of a linearised system is differentiable in the same manner, and so on to any
order. No step of an iteration is ever recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from spon.fem.forms import TorchForm
from spon.fem.share import Share

__all__ = ["Inverse", "Linearisation", "constant_solve", "solution"]


class Inverse(Protocol):
    """The inverses of the matrices of a batch on the free dofs."""

    def solve(self, b: Tensor, transposed: bool = False) -> Tensor:
        """Solve for rows of shape (batch, dim); zero at the prescribed dofs."""


class Linearisation:
    """The linearised problem at a solved batch; its matrices are inverted when first needed.

    Parameters
    ----------
    residual : TorchForm
        R as a function of u and the inputs.
    prescribed : bool Tensor, shape (dim,)
        Dofs with essential conditions.
    invert : callable
        Takes the list of u and the inputs, each (batch, dim), and returns an `Inverse`.
    solved : bool Tensor, shape (batch,), optional
        Samples that have a solution. The others have zero gradients.
    share : Share, optional
        Spreads the samples over processes.
    """

    def __init__(
        self,
        residual: TorchForm,
        prescribed: Tensor,
        invert: Callable[[Sequence[Tensor]], Inverse],
        solved: Tensor | None = None,
        share: Share | None = None,
    ) -> None:
        self.residual, self.prescribed = residual, prescribed
        self._invert: Callable[[Sequence[Tensor]], Inverse] = invert
        self._inverse: Inverse | None = None
        self._solved = None if solved is None or bool(solved.all()) else solved
        self._share = share

    @property
    def hopeless(self) -> bool:
        """Whether no sample has a solution."""
        return self._solved is not None and not bool(self._solved.any())

    def masked(self, x: Tensor) -> Tensor:
        """Zero in the rows of samples without a solution."""
        return x if self._solved is None else torch.where(self._solved[:, None], x, 0.0)

    def replaced(self, xs: Sequence[Tensor]) -> list[Tensor]:
        """The rows of a solved sample in the place of those of the others.

        These have zero gradients, which derivatives of the form at bad inputs would make NaN.
        """
        if self._solved is None or not self._solved.any():
            return list(xs)
        good, row = self._solved[:, None], int(self._solved.nonzero()[0])
        return [torch.where(good, x, x[row].detach()) for x in xs]

    def solve(self, b: Tensor, transposed: bool, xs: Sequence[Tensor]) -> Tensor:
        """Solve the linearised system at xs for detached values."""
        if self._share is None:
            return self._solve(slice(None), b, transposed, xs)
        return self._share.rows(len(b), lambda part: (self._solve(part, b, transposed, xs), None))[
            0
        ]

    def _solve(self, part: slice, b: Tensor, transposed: bool, xs: Sequence[Tensor]) -> Tensor:
        b, xs = b[part], [x[part] for x in xs]
        solved = None if self._solved is None else self._solved[part]
        if solved is None:
            return self._at(xs).solve(b, transposed) if len(b) else b
        x = torch.zeros_like(b)
        if solved.any():
            inverse = self._at([y[solved] for y in xs])
            x[solved] = inverse.solve(b[solved], transposed)
        return x

    def _at(self, xs: Sequence[Tensor]) -> Inverse:
        if self._inverse is None:
            self._inverse = self._invert([x.detach() for x in xs])
        return self._inverse


def solution(
    linearisation: Linearisation,
    u: Tensor,
    inputs: Sequence[Tensor],
    boundary: Tensor | None = None,
    load: Tensor | None = None,
) -> Tensor:
    """A computed solution as a differentiable function of what it was computed from.

    Parameters
    ----------
    linearisation : Linearisation
    u : Tensor, shape (batch, dim)
        The solution, without a graph.
    inputs : sequence of Tensor, shapes (batch, dim of the input)
    boundary : Tensor, shape (batch, dim), optional
        Values at the prescribed dofs.
    load : Tensor, shape (batch, dim), optional
        Right-hand side besides the one that R contains.
    """
    # In a box, because a tensor that comes in must not be the one that goes out.
    result: Tensor = _Solution.apply(linearisation, [u], boundary, load, *inputs)
    return result


class _Solution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        linearisation: Linearisation,
        box: list[Tensor],
        boundary: Tensor | None,
        load: Tensor | None,
        *inputs: Tensor,
    ) -> Tensor:
        u = box.pop()
        ctx.linearisation = linearisation
        ctx.save_for_backward(u, *inputs)
        return u

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        at, (u, *inputs) = ctx.linearisation, ctx.saved_tensors
        g, (u, *inputs) = at.masked(gradients[0]), at.replaced([u, *inputs])
        needs = ctx.needs_input_grad
        if at.hopeless:
            given = zip((u, u, *inputs), needs[2:], strict=True)
            return (None, None, *(_zero(x) if need else None for x, need in given))
        w: Tensor = _LinearisedSolve.apply(at, True, g, u, *inputs)
        boundary = None
        if needs[2]:
            boundary = torch.where(at.prescribed, g - at.residual.gradient(0)(u, *inputs, w), 0.0)
        return (
            None,
            None,
            boundary,
            w if needs[3] else None,
            *(
                -at.residual.gradient(i + 1)(u, *inputs, w) if needs[i + 4] else None
                for i in range(len(inputs))
            ),
        )


def _zero(x: Tensor) -> Tensor:
    """Zeros that a second derivative finds to be a constant function of x, also of a NaN."""
    return torch.where(torch.zeros_like(x, dtype=torch.bool), x, 0.0)


class _LinearisedSolve(torch.autograd.Function):
    """``J(u, p)^-1 b`` or its transpose, as a function of b, u and p."""

    @staticmethod
    def forward(ctx: Any, at: Linearisation, transposed: bool, b: Tensor, *xs: Tensor) -> Tensor:
        y = at.solve(b, transposed, xs)
        ctx.at, ctx.transposed = at, transposed
        ctx.save_for_backward(y, *xs)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        y, *xs = ctx.saved_tensors
        z: Tensor = _LinearisedSolve.apply(ctx.at, not ctx.transposed, gradients[0], *xs)
        # The derivative of the inverse is -J^-1 dJ J^-1.
        test, trial = (y, z) if ctx.transposed else (z, y)
        adjoint = ctx.at.residual.gradient(0)
        derivatives = (
            -adjoint.gradient(i)(*xs, test, trial) if ctx.needs_input_grad[i + 3] else None
            for i in range(len(xs))
        )
        return None, None, z if ctx.needs_input_grad[2] else None, *derivatives


def constant_solve(b: Tensor, factor: Inverse, transposed: bool = False) -> Tensor:
    """Solve with a constant matrix, differentiable in b to any order and under ``torch.func``.

    Parameters
    ----------
    b : Tensor, shape (batch, dim)
        float64 on the CPU.
    factor : Factor
    transposed : bool, optional
    """
    x: Tensor = _ConstantSolve.apply(b, factor, transposed)
    return x


class _ConstantSolve(torch.autograd.Function):
    @staticmethod
    def forward(b: Tensor, factor: Inverse, transposed: bool) -> Tensor:
        return factor.solve(b.detach(), transposed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.factor, ctx.transposed = inputs[1:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _ConstantSolve.apply(gradients[0], ctx.factor, not ctx.transposed), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        x: Tensor = _ConstantSolve.apply(tangents[0], ctx.factor, ctx.transposed)
        return x

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], b: Tensor, factor: Inverse, transposed: bool
    ) -> tuple[Tensor, int]:
        # The mapped axis becomes a part of the batch.
        b = b.movedim(in_dims[0], 0)
        x: Tensor = _ConstantSolve.apply(b.reshape(-1, b.shape[-1]), factor, transposed)
        return x.reshape(b.shape), 0
