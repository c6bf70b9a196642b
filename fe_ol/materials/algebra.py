"""The functions that energies are written with, in three languages: torch, UFL and symbols.

A law writes its energy once, with numbers that may be any of these, and functions from the
namespace that it is given. Functions whose derivative loses digits when it is formed blindly
have a name of their own here, and a derivative that does not.
"""

from __future__ import annotations

from typing import Any, Protocol

import sympy
import torch
import ufl
from torch import Tensor

__all__ = ["Maths", "SymbolicMaths", "TorchMaths", "UFLMaths", "positive", "step", "x_minus_log1p"]


class Maths(Protocol):
    """Functions of one argument that an energy may use, besides ``+ - * / **``."""

    def sqrt(self, x: Any) -> Any:
        """Square root; add something tiny below where the argument can vanish."""

    def log(self, x: Any) -> Any:
        """Natural logarithm."""

    def x_minus_log1p(self, x: Any) -> Any:
        """``x - log(1 + x)`` for x >= 0, with the derivative x / (1 + x)."""

    def positive(self, x: Any) -> Any:
        """``max(x, 0)``, with the derivative 1 for x > 0 and 0 otherwise."""


class x_minus_log1p(sympy.Function):  # type: ignore[misc]
    """Symbol of ``x - log(1 + x)``."""

    def fdiff(self, argindex: int = 1) -> Any:
        """Derivative, in the form that keeps its digits near zero."""
        return self.args[0] / (1 + self.args[0])


class positive(sympy.Function):  # type: ignore[misc]
    """Symbol of ``max(x, 0)``."""

    def fdiff(self, argindex: int = 1) -> Any:
        """Derivative."""
        return step(self.args[0])


class step(sympy.Function):  # type: ignore[misc]
    """Symbol of 1 for x > 0 and 0 otherwise."""

    def fdiff(self, argindex: int = 1) -> Any:
        """Derivative, but for the place of the step."""
        return sympy.Integer(0)


class SymbolicMaths:
    """The functions as sympy expressions."""

    sqrt, log = staticmethod(sympy.sqrt), staticmethod(sympy.log)
    x_minus_log1p, positive = x_minus_log1p, positive


class TorchMaths:
    """The functions of tensors."""

    sqrt, log = staticmethod(torch.sqrt), staticmethod(torch.log)

    @staticmethod
    def x_minus_log1p(x: Tensor) -> Tensor:
        """``x - log(1 + x)``; a series where the difference would lose half the digits."""
        series = x * x * (1 / 2 - x * (1 / 3 - x * (1 / 4 - x / 5)))
        return torch.where(x < 1e-3, series, x - torch.log1p(x))

    @staticmethod
    def positive(x: Tensor) -> Tensor:
        """``max(x, 0)``."""
        return torch.relu(x)


class UFLMaths:
    """The functions as UFL expressions."""

    sqrt, log = staticmethod(ufl.sqrt), staticmethod(ufl.ln)

    @staticmethod
    def x_minus_log1p(x: Any) -> Any:
        """``x - log(1 + x)``."""
        return x - ufl.ln(1 + x)

    @staticmethod
    def positive(x: Any) -> Any:
        """``max(x, 0)``."""
        return ufl.conditional(ufl.gt(x, 0), x, 0.0)
