"""Scalar expressions at quadrature points, as a graph without repetitions.

A node is a number, a known field (values over entities and points), a term (a linear functional of
one unknown: a derivative of a component of a function at the points), or an operation on nodes.
Equal expressions are one node. What is linear in an unknown is recognised, so that all geometry can
be folded into the matrices that evaluate it. Nothing here knows of UFL or Firedrake.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from scipy import special

__all__ = ["FUNCTIONS", "Graph", "Linear", "Unknown"]


class Unknown(NamedTuple):
    """A scalar function that varies: one component of one part of an input or of the argument."""

    name: Any
    block: int
    component: int
    side: str | None


Linear = tuple[Unknown, dict[Hashable, int]]  # the unknown, and for each term its factor's node

# Function of one argument: the numpy name, which is also the name of the node.
FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "abs": np.abs,
    "sign": np.sign,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "log": np.log,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "erf": special.erf,
    "not": np.logical_not,
}
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add,
    "mul": np.multiply,
    "div": np.divide,
    "pow": np.power,
    "atan2": np.arctan2,
    "min": np.minimum,
    "max": np.maximum,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
}
_SYMMETRIC = {"add", "mul", "min", "max", "and", "or", "eq", "ne"}


class Graph:
    """The nodes of one integral. A node is an integer; operands come before what is made of them.

    Attributes
    ----------
    op : list of str
        ``"number"``, ``"field"``, ``"term"``, ``"where"``, or the name of a function.
    args : list of tuple of int
        The operands' nodes.
    data : list
        The number; the key of a field; the pair (unknown, key) of a term; None otherwise.
    """

    def __init__(self) -> None:
        self.op: list[str] = []
        self.args: list[tuple[int, ...]] = []
        self.data: list[Any] = []
        self.unknowns: list[frozenset[Unknown]] = []
        self._known: dict[Any, int] = {}
        self._fields: dict[int, np.ndarray] = {}
        self._linear: dict[int, Linear | None] = {}

    def _node(self, op: str, args: tuple[int, ...] = (), data: Any = None) -> int:
        key = (op, args, data)
        if key not in self._known:
            self._known[key] = len(self.op)
            self.op.append(op)
            self.args.append(args)
            self.data.append(data)
            own = {data[0]} if op == "term" else set()
            self.unknowns.append(frozenset(own).union(*(self.unknowns[a] for a in args)))
        return self._known[key]

    # ---- leaves ------------------------------------------------------------------------------

    def number(self, value: float) -> int:
        """A number."""
        # -0.0 and 0.0 are equal, and 1 and 1.0: one node for each value.
        return self._node("number", (), float(value) + 0.0)

    def field(self, key: Hashable, values: Callable[[], np.ndarray]) -> int:
        """A known field; `values` returns an array that broadcasts to (entities, points)."""
        node = self._node("field", (), key)
        if node not in self._fields:
            array = np.asarray(values(), dtype=np.float64)
            if array.size and np.all(array == array.flat[0]):
                self._fields[node] = array  # keeps the key; what is used is the number
                return self.number(array.flat[0])
            self._fields[node] = array
        elif self._fields[node].size and np.all(self._fields[node] == self._fields[node].flat[0]):
            return self.number(self._fields[node].flat[0])
        return node

    def term(self, unknown: Unknown, key: Hashable) -> int:
        """A linear functional `key` of an unknown."""
        return self._node("term", (), (unknown, key))

    # ---- questions ---------------------------------------------------------------------------

    def is_known(self, node: int) -> bool:
        """Whether a node depends on no unknown."""
        return not self.unknowns[node]

    def is_number(self, node: int, value: float | None = None) -> bool:
        """Whether a node is a number, or this number."""
        return self.op[node] == "number" and (value is None or self.data[node] == value)

    def values(self, node: int) -> np.ndarray:
        """Values of a known node, an array that broadcasts to (entities, points)."""
        if node not in self._fields:
            if self.op[node] == "number":
                self._fields[node] = np.full((1, 1), self.data[node])
            else:
                operands = [self.values(a) for a in self.args[node]]
                with np.errstate(all="ignore"):
                    self._fields[node] = _apply(self.op[node], operands)
        return self._fields[node]

    def linear(self, node: int) -> Linear | None:
        """The node as a linear functional of one unknown with known factors, or None."""
        if node not in self._linear:
            self._linear[node] = self._find_linear(node)
        return self._linear[node]

    def _find_linear(self, node: int) -> Linear | None:
        if len(self.unknowns[node]) != 1:
            return None
        op, args = self.op[node], self.args[node]
        if op == "term":
            unknown, key = self.data[node]
            return unknown, {key: self.number(1.0)}
        if op == "add":
            left, right = self.linear(args[0]), self.linear(args[1])
            if left is None or right is None:
                return None
            terms = dict(left[1])
            for key, factor in right[1].items():
                terms[key] = self.add(terms[key], factor) if key in terms else factor
            return left[0], terms
        if op in ("mul", "div") and self.is_known(args[1]):
            inner = self.linear(args[0])
            combine = self.mul if op == "mul" else self.div
            return inner and (inner[0], {k: combine(f, args[1]) for k, f in inner[1].items()})
        if op == "mul" and self.is_known(args[0]):
            inner = self.linear(args[1])
            return inner and (inner[0], {k: self.mul(f, args[0]) for k, f in inner[1].items()})
        return None

    # ---- operations --------------------------------------------------------------------------

    def add(self, a: int, b: int) -> int:
        """Sum."""
        if self.is_number(a, 0.0):
            return b
        if self.is_number(b, 0.0):
            return a
        if a == b:
            return self.mul(self.number(2.0), a)
        return self._operation("add", a, b)

    def mul(self, a: int, b: int) -> int:
        """Product. Known factors are gathered in front: known * unknown."""
        if self.is_number(a, 0.0) or self.is_number(b, 0.0):
            return self.number(0.0)
        if self.is_number(a, 1.0):
            return b
        if self.is_number(b, 1.0):
            return a
        if self.is_known(a) and self.is_known(b):
            return self._operation("mul", a, b)
        (fa, xa), (fb, xb) = self.factored(a), self.factored(b)
        factor = self.mul(fa, fb)
        if xa is not None and xb is not None:
            return self._scaled(factor, self._operation("mul", xa, xb))
        return self._scaled(factor, xb if xa is None else xa)

    def factored(self, node: int) -> tuple[int, int | None]:
        """A node as known factor times the rest, which is None for a known node."""
        if self.is_known(node):
            return node, None
        if self.op[node] == "mul" and self.is_known(self.args[node][0]):
            return self.args[node][0], self.args[node][1]
        return self.number(1.0), node

    def _scaled(self, factor: int, rest: int | None) -> int:
        if rest is None or self.is_number(factor, 0.0):
            return factor
        return rest if self.is_number(factor, 1.0) else self._node("mul", (factor, rest))

    def div(self, a: int, b: int) -> int:
        """Quotient."""
        if self.is_number(a, 0.0) or self.is_number(b, 1.0):
            return a
        if self.is_known(b):
            return self.mul(a, self._operation("div", self.number(1.0), b))
        factor, rest = self.factored(a)
        below, under = self.factored(b)
        inner = self.number(1.0) if rest is None else rest
        return self.mul(self.div(factor, below), self._operation("div", inner, under))

    def power(self, a: int, b: int) -> int:
        """Power; small whole exponents become products."""
        if self.op[b] == "number" and math.isfinite(self.data[b]):
            exponent = self.data[b]
            if exponent == 0.5:
                return self.function("sqrt", a)
            if exponent == round(exponent) and abs(exponent) <= 8:
                positive = self._whole_power(a, int(abs(exponent)))
                return positive if exponent >= 0 else self.div(self.number(1.0), positive)
        return self._operation("pow", a, b)

    def _whole_power(self, a: int, exponent: int) -> int:
        if exponent == 0:
            return self.number(1.0)
        half = self._whole_power(a, exponent // 2)
        square = self.mul(half, half)
        return self.mul(square, a) if exponent % 2 else square

    def function(self, name: str, *args: int) -> int:
        """A function of `FUNCTIONS`, or one of two arguments, comparisons among them."""
        return self._operation(name, *args)

    def where(self, condition: int, a: int, b: int) -> int:
        """`a` where the condition holds, `b` elsewhere."""
        return a if a == b else self._operation("where", condition, a, b)

    def _operation(self, op: str, *args: Any) -> int:
        if op in _SYMMETRIC:
            # Known operands first, where linear() and factored() look for them.
            args = tuple(sorted(args, key=lambda n: (bool(self.unknowns[n]), n)))
        if all(self.op[a] == "number" for a in args):
            with np.errstate(all="ignore"):
                value = _apply(op, [np.float64(self.data[a]) for a in args])
            # A condition has to stay a node: its value is no number.
            if not isinstance(value, bool | np.bool_) and math.isfinite(value):
                return self.number(float(value))
        return self._node(op, tuple(args))

    # ---- what a linear argument is multiplied by ----------------------------------------------

    def coefficients(
        self, root: int, arguments: frozenset[Unknown]
    ) -> list[tuple[Unknown, tuple[tuple[Hashable, int], ...], int, int]]:
        """Take apart an expression that is linear in some unknowns, the arguments.

        Parameters
        ----------
        root : int
        arguments : frozenset
            The unknowns in which `root` is linear.

        Returns
        -------
        list of (argument, functional, factor, multiplier)
            ``root = sum of multiplier * factor * functional(argument)``: `functional` holds pairs
            of a term's key and its known factor's node, `factor` is known, `multiplier` is a node
            free of arguments.
        """
        one = self.number(1.0)
        # For each node what the root multiplies it by, as in reverse differentiation: known factor
        # -> [(number, node)], a sum. Operands come before what is made of them, so that a sum is
        # complete when its node is the largest one left.
        pending: dict[int, dict[int, list[tuple[float, int]]]] = {root: {one: [(1.0, one)]}}
        found: dict[tuple[Any, int], list[tuple[float, int]]] = {}
        while pending:
            node = max(pending)
            weights = {known: self._total(terms) for known, terms in pending.pop(node).items()}
            if not self.unknowns[node] & arguments:
                if not self.is_number(node, 0.0):
                    raise ValueError("the expression is not linear in its argument")
                continue
            linear = self.linear(node)
            if linear is not None:
                functional = (linear[0], tuple(sorted(linear[1].items(), key=repr)))
                for known, weight in weights.items():
                    found.setdefault((functional, known), []).append(weight)
                continue
            for child, passed in self._passes(node, arguments):
                target = pending.setdefault(child, {})
                for known, (number, unknown) in weights.items():
                    new_known, more, new_unknown = passed(known, unknown)
                    target.setdefault(new_known, []).append((number * more, new_unknown))
        result = []
        for ((argument, functional), known), terms in found.items():
            number, unknown = self._total(terms)
            total = self.mul(self.number(number), unknown)
            if not self.is_number(total, 0.0):
                result.append((argument, functional, known, total))
        return result

    def _total(self, terms: list[tuple[float, int]]) -> tuple[float, int]:
        """A sum of multiples of nodes as one multiple of a node."""
        merged: dict[int, float] = {}
        for number, node in terms:
            merged[node] = merged.get(node, 0.0) + number
        merged = {node: number for node, number in merged.items() if number != 0.0}
        if len(merged) == 1:
            ((node, number),) = merged.items()
            return number, node
        total = self.number(0.0)
        for node, number in merged.items():
            total = self.add(total, self.mul(self.number(number), node))
        return 1.0, total

    def _passes(self, node: int, arguments: frozenset[Unknown]) -> list[tuple[int, Any]]:
        """How a node hands on what it is multiplied by to the operands that hold an argument.

        Pairs of an operand and a function (known, unknown) -> (known, number, unknown).
        """
        op, args = self.op[node], self.args[node]
        if op == "add":
            return [(a, lambda known, unknown: (known, 1.0, unknown)) for a in args]
        if op == "mul":
            for child, other in (args, args[::-1]):
                if self.unknowns[child] & arguments and not self.unknowns[other] & arguments:
                    return [(child, partial(self._times, other))]
        if op == "div" and not self.unknowns[args[1]] & arguments:
            below = args[1]
            return [(args[0], lambda known, unknown: (known, 1.0, self.div(unknown, below)))]
        if op == "where" and not self.unknowns[args[0]] & arguments:
            zero, condition = self.number(0.0), args[0]
            return [
                (args[1], lambda known, x: (known, 1.0, self.where(condition, x, zero))),
                (args[2], lambda known, x: (known, 1.0, self.where(condition, zero, x))),
            ]
        raise ValueError(f"the expression is not linear in its argument ({op})")

    def _times(self, other: int, known: int, unknown: int) -> tuple[int, float, int]:
        if self.op[other] == "number":
            return known, self.data[other], unknown
        if self.is_known(other):
            return self.mul(known, other), 1.0, unknown
        return known, 1.0, self.mul(unknown, other)


def _apply(op: str, operands: list[Any]) -> Any:
    if op == "where":
        return np.where(*operands)
    if op in FUNCTIONS:
        return FUNCTIONS[op](operands[0])
    return _BINARY[op](*operands)
