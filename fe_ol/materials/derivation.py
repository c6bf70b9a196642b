"""From an energy to stress and tangent: differentiated once as symbols, then run on tensors.

The energy is traced with sympy symbols, differentiated twice, freed of common subexpressions and
kept as a list of operations. On tensors that is a few dozen operations of whole columns, several
times faster than differentiating the energy automatically at every call, itself differentiable by
torch, and without the loss of digits of an automatic derivative near zero strain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import sympy
import torch
from torch import Tensor

from fe_ol.materials.algebra import SymbolicMaths

__all__ = ["Derived", "derive"]

Columns = Sequence[Any]


class Derived:
    """Stress and tangent of an energy.

    Parameters
    ----------
    strain, parameters, state : sequence of sympy.Symbol
        The arguments.
    energy : sympy expression
    """

    def __init__(
        self, strain: Columns, parameters: Columns, state: Columns, energy: sympy.Expr
    ) -> None:
        self.size = len(strain)
        self._symbols = [*strain, *parameters, *state]
        first = [sympy.diff(energy, x) for x in strain]
        self._upper = [(i, j) for i in range(self.size) for j in range(i, self.size)]
        second = [sympy.diff(first[i], strain[j]) for i, j in self._upper]
        self._stress = _Program(self._symbols, first)
        self._both = _Program(self._symbols, [*first, *second])

    def stress(self, arguments: Columns) -> list[Any]:
        """Components of the stress, of columns of strain, parameters and state."""
        return self._stress(arguments)

    def both(self, arguments: Columns) -> tuple[list[Any], list[list[Any]]]:
        """Components of the stress and of the (symmetric) tangent."""
        values = self._both(arguments)
        tangent = [[None] * self.size for _ in range(self.size)]
        for (i, j), value in zip(self._upper, values[self.size :], strict=True):
            tangent[i][j] = tangent[j][i] = value
        return values[: self.size], tangent


@cache
def derive(law: type, strain_size: int, embed: Callable[[Columns], Any]) -> Derived:
    """Derive a law for one kind of strain; done once for a law, whatever its parameters.

    Parameters
    ----------
    law : subclass of EnergyLaw
    strain_size : int
        Components of the strain.
    embed : callable
        From the components to the 3 x 3 strain.
    """
    strain = sympy.symbols(f"e:{strain_size}", real=True)
    names = law.parameter_names()  # type: ignore[attr-defined]
    parameters = sympy.symbols([f"p_{name}" for name in names], real=True)
    width = law.state_size(strain_size)  # type: ignore[attr-defined]
    state = sympy.symbols(f"s:{width}", real=True)
    energy = law.potential(  # type: ignore[attr-defined]
        embed(strain), dict(zip(names, parameters, strict=True)), SymbolicMaths, state
    )
    return Derived(strain, parameters, state, energy)


class _Program:
    """Expressions as a list of operations on numbered registers."""

    def __init__(self, symbols: Columns, outputs: Sequence[sympy.Expr]) -> None:
        shared, finals = sympy.cse(outputs, order="none")
        self._registers: dict[Any, int] = {s: i for i, s in enumerate(symbols)}
        self._inputs = len(symbols)
        self._steps: list[tuple[Callable[..., Any], tuple[int, ...]]] = []
        self._numbers: list[tuple[int, float]] = []
        self._size = self._inputs
        for symbol, expression in shared:
            self._registers[symbol] = self._emit(expression)
        self._outputs = [self._emit(e) for e in finals]
        self._last_use = self._find_last_uses()

    def __call__(self, arguments: Columns) -> list[Any]:
        registers: list[Any] = [*arguments, *([None] * (self._size - self._inputs))]
        for where, number in self._numbers:
            registers[where] = number
        for (operation, operands), (target, finished) in zip(
            self._steps, self._last_use, strict=True
        ):
            registers[target] = operation(*[registers[i] for i in operands])
            for i in finished:
                registers[i] = None  # its memory serves the next step, still in the cache
        return [registers[i] for i in self._outputs]

    def _find_last_uses(self) -> list[tuple[int, tuple[int, ...]]]:
        last: dict[int, int] = {}
        for position, (_, operands) in enumerate(self._steps):
            for i in operands:
                last[i] = position
        kept = {*range(self._inputs), *self._outputs, *(i for i, _ in self._numbers)}
        targets = iter(self._targets)
        return [
            (next(targets), tuple(i for i in set(operands) if last[i] == k and i not in kept))
            for k, (_, operands) in enumerate(self._steps)
        ]

    @property
    def _targets(self) -> list[int]:
        numbers = {i for i, _ in self._numbers}
        return [i for i in range(self._inputs, self._size) if i not in numbers]

    def _new(self, expression: Any) -> int:
        self._registers[expression] = self._size
        self._size += 1
        return self._size - 1

    def _number(self, expression: Any) -> int:
        if expression not in self._registers:
            self._numbers.append((self._new(expression), float(expression)))
        return self._registers[expression]

    def _step(self, expression: Any, operation: Callable[..., Any], *operands: int) -> int:
        self._steps.append((operation, operands))
        return self._new(expression)

    def _emit(self, e: Any) -> int:
        if e in self._registers:
            return self._registers[e]
        if e.is_Number or e.is_NumberSymbol:
            return self._number(e)
        if e.is_Add:
            return self._sum(e)
        if e.is_Mul:
            return self._product(e)
        if e.is_Pow:
            return self._power(e, *e.args)
        operation = _FUNCTIONS[type(e).__name__]
        return self._step(e, operation, self._emit(e.args[0]))

    def _sum(self, e: Any) -> int:
        # Plus terms first, so that the others are subtracted instead of negated and added.
        terms = sorted(e.args, key=lambda t: t.could_extract_minus_sign())
        result = self._emit(terms[0])
        for k, term in enumerate(terms[1:]):
            key = e if k == len(terms) - 2 else object()
            if term.could_extract_minus_sign() and not term.is_Number:
                result = self._step(key, _subtract, result, self._emit(-term))
            else:
                result = self._step(key, _add, result, self._emit(term))
        return result

    def _product(self, e: Any) -> int:
        above, below = e.as_numer_denom() if any(_is_inverse(a) for a in e.args) else (e, None)
        if below is not None and below != 1:
            return self._step(e, _divide, self._emit(above), self._emit(below))
        factors = list(e.args)
        result = self._emit(factors[0])
        for k, factor in enumerate(factors[1:]):
            key = e if k == len(factors) - 2 else object()
            result = self._step(key, _multiply, result, self._emit(factor))
        return result

    def _power(self, e: Any, base: Any, exponent: Any) -> int:
        if exponent == sympy.Rational(1, 2):
            return self._step(e, _sqrt, self._emit(base))
        if exponent.is_number and exponent.is_negative:
            return self._step(
                e, _divide, self._number(sympy.Integer(1)), self._emit(base**-exponent)
            )
        if exponent.is_Integer and exponent <= 4:
            root = self._emit(base)
            if exponent == 2:
                return self._step(e, _multiply, root, root)
            return self._step(e, _multiply, self._emit(base ** (exponent - 1)), root)
        if exponent.is_Rational and exponent.q == 2:
            rest = base ** (exponent - sympy.Rational(1, 2))
            return self._step(e, _multiply, self._emit(rest), self._emit(sympy.sqrt(base)))
        return self._step(e, _raise, self._emit(base), self._emit(exponent))


def _is_inverse(e: Any) -> bool:
    return bool(e.is_Pow and e.args[1].is_number and e.args[1].is_negative)


def _add(a: Any, b: Any) -> Any:
    return a + b


def _subtract(a: Any, b: Any) -> Any:
    return a - b


def _multiply(a: Any, b: Any) -> Any:
    return a * b


def _divide(a: Any, b: Any) -> Any:
    return a / b


def _raise(a: Any, b: Any) -> Any:
    return a**b


def _sqrt(a: Any) -> Any:
    return torch.sqrt(a) if isinstance(a, Tensor) else a**0.5


def _log(a: Any) -> Any:
    return torch.log(torch.as_tensor(a))


def _positive(a: Any) -> Any:
    return torch.relu(a)


def _step(a: Any) -> Any:
    return (a > 0).to(a.dtype)


def _x_minus_log1p(a: Any) -> Any:
    return a - torch.log1p(a)


_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "log": _log,
    "positive": _positive,
    "step": _step,
    "x_minus_log1p": _x_minus_log1p,
}
