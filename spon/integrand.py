"""What an integrand is made of: matrices that evaluate functions, and operations at the points.

Both executions of an integral read this, that in torch operations (`spon.quadrature`) and that as
one compiled loop (`spon.quadrature_loops`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from spon.scalars import Graph

__all__ = ["Program", "Rows", "Sources", "Step"]


@dataclass
class Rows:
    """Matrices of one space on the cells of an integral.

    Attributes
    ----------
    nodes : array of int, shape (cells, nodes)
    start, count, width : int
        Where the dofs of the space begin in the vector, its nodes, and the components of each.
    tables : list of array, shape (1 or cells, 1 or points, nodes)
    entries : dict
        (table, component) -> node of the graph: the value that comes out of the product for an
        input, or that goes into it for the output.
    """

    nodes: np.ndarray
    start: int
    count: int
    width: int
    tables: list[np.ndarray] = field(default_factory=list)
    entries: dict[tuple[int, int], int] = field(default_factory=dict)

    def view(self, x: Tensor) -> Tensor:
        """The dofs of the space in a vector (dim, batch), as (nodes, components * batch)."""
        return x[self.start : self.start + self.count * self.width].view(self.count, -1)

    def places(self, points: int) -> list[tuple[int, int]]:
        """Begin and number of each table's rows in the stacked matrix."""
        places, begin = [], 0
        for table in self.tables:
            size = 1 if table.shape[1] == 1 else points
            places.append((begin, size))
            begin += size
        return places

    def stacked(self, points: int) -> np.ndarray:
        """All tables below one another, shape (1 or cells, rows, nodes)."""
        cells = max(len(t) for t in self.tables)
        parts = []
        for table, (_, size) in zip(self.tables, self.places(points), strict=True):
            shape = (cells, size, self.nodes.shape[1])
            parts.append(np.broadcast_to(table, shape))
        return np.concatenate(parts, axis=1)


@dataclass
class Sources:
    """What the integrand is a function of.

    Attributes
    ----------
    rows : list of (input, Rows)
        Inputs that are evaluated by tables.
    numbers : dict
        Node -> (input, dof): unknown constants, which are the same at all points.
    """

    rows: list[tuple[int, Rows]]
    numbers: dict[int, tuple[int, int]]


@dataclass
class Step:
    """One operation. Operands are nodes or numbers; `out` is the node that it makes."""

    op: str
    out: int
    operands: tuple[Any, ...]
    alpha: float = 1.0


class Program:
    """The operations of an integrand, in an order in which they can be executed.

    Attributes
    ----------
    steps : list of Step
    fields : dict
        Node -> values of a known field, shape (1 or cells, 1 or points).
    shape : dict
        Node -> ``"full"`` (a value at each point), ``"cell"`` (one for all points of a cell) or
        ``"row"`` (one for all cells).
    """

    def __init__(self, graph: Graph, sources: Sources, outputs: list[Rows], points: int) -> None:
        self.graph, self.points = graph, points
        self.steps: list[Step] = []
        self.fields: dict[int, np.ndarray] = {}
        self.shape: dict[int, str] = dict.fromkeys(sources.numbers, "row")
        for _, rows in sources.rows:
            for (table, _), node in rows.entries.items():
                self.shape[node] = "full" if rows.tables[table].shape[1] > 1 else "cell"
        uses = self._count_uses([n for rows in outputs for n in rows.entries.values()])
        for rows in outputs:
            for node in rows.entries.values():
                self._emit(node, uses)

    def _count_uses(self, roots: list[int]) -> dict[int, int]:
        uses: dict[int, int] = {}
        stack = list(roots)
        while stack:
            node = stack.pop()
            uses[node] = uses.get(node, 0) + 1
            if uses[node] == 1 and node not in self.shape and not self.graph.is_known(node):
                stack += self.graph.args[node]
        return uses

    def _emit(self, root: int, uses: dict[int, int]) -> None:
        """Append the steps that make a node, operands first; without recursion."""
        stack = [(root, False)]
        while stack:
            node, ready = stack.pop()
            if node in self.shape or self._leaf(node):
                continue
            op, args, alpha = self._fused(node, uses)
            if not ready:
                stack.append((node, True))
                stack += [(a, False) for a in reversed(args)]
                continue
            operands = tuple(self.graph.data[a] if self.graph.is_number(a) else a for a in args)
            kinds = {self.shape[a] for a in operands if isinstance(a, int)}
            kind = next((k for k in ("full", "cell", "row") if k in kinds), "row")
            self.steps.append(Step(op, node, operands, alpha))
            self.shape[node] = kind

    def _leaf(self, node: int) -> bool:
        if not self.graph.is_known(node):
            return False
        if not self.graph.is_number(node):
            values = self.graph.values(node)
            self.fields[node] = values
            self.shape[node] = "full" if values.shape[-1] > 1 else "cell"
        return True

    def _fused(self, node: int, uses: dict[int, int]) -> tuple[str, tuple[int, ...], float]:
        """``a + number * b`` is one operation where nobody else needs ``number * b``."""
        op, args = self.graph.op[node], self.graph.args[node]
        if op == "add":
            for a, b in (args, args[::-1]):
                factor, rest = self.graph.factored(b)
                if (
                    rest is not None
                    and rest != b
                    and self.graph.is_number(factor)
                    and not self.graph.is_number(a)
                    and b not in self.shape
                    and uses.get(b, 0) == 1
                ):
                    return "add", (a, rest), self.graph.data[factor]
        if op == "div" and self.graph.is_number(args[0], 1.0):
            return "reciprocal", (args[1],), 1.0
        return op, args, 1.0
