"""Torch execution of a form: the same quadrature for a whole batch, in torch operations."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pyop2.compilation import load
from pyop2.exceptions import CompilationError
from pyop2.mpi import COMM_SELF
from torch import Tensor

from spon.fem.compiler import widest
from spon.fem.entities import Entities, block_size, node_count
from spon.fem.lowering import ARGUMENT, IntegralGraph, integrals_of
from spon.fem.snapshot import Snapshot
from spon.integrand import Rows, Sources
from spon.quadrature import Integral
from spon.scalars import Graph

__all__ = ["QuadratureEvaluator"]


class QuadratureEvaluator:
    """A 0-form or 1-form whose inputs are given as rows of tensors, executed by torch.

    Parameters
    ----------
    form : ufl.Form
        With no or one argument.
    inputs : sequence of Function
        What the rows stand for; the coordinates of the form's mesh among them make these an input.
    snapshot : Snapshot
        The values of everything else.

    Raises
    ------
    NotImplementedError
        If something in the form cannot be translated; it is named.
    """

    def __init__(self, form: Any, inputs: Sequence[Any], snapshot: Snapshot) -> None:
        arguments = form.arguments()
        space = arguments[0].function_space() if arguments else None
        self.size = int(arguments[0].function_space().dim()) if arguments else 1
        coordinates = form.ufl_domains()[0].coordinates
        unknowns = {
            "coordinates" if f is coordinates else f: number for number, f in enumerate(inputs)
        }
        vary = any(f is coordinates for f in inputs)
        self._integrals: list[Integral] = []
        self._lock = threading.Lock()
        self._buffers: dict[Any, tuple[list[Tensor], Tensor]] = {}
        for integrand, entities in integrals_of(form, snapshot, vary):
            built = IntegralGraph(integrand, entities, unknowns)
            integral = _integral(built, space)
            if integral is not None:
                self._integrals.append(integral)

    def __call__(self, xs: Sequence[Tensor], batch: int) -> Tensor:
        """Evaluate for each row.

        Parameters
        ----------
        xs : sequence of Tensor, shapes (batch, dim of the input)
        batch : int

        Returns
        -------
        Tensor, shape (batch, size)
            In the dtype and on the device of the inputs.
        """
        like = xs[0] if xs else torch.empty(0, dtype=torch.float64)
        if batch == 0:
            return torch.zeros(0, self.size, dtype=like.dtype, device=like.device)
        with self._lock:  # the buffers serve one call at a time
            return self._evaluate(xs, like, batch)

    def _evaluate(self, xs: Sequence[Tensor], like: Tensor, batch: int) -> Tensor:
        columns, out = self._buffers_for(like, [x.shape[1] for x in xs], batch)
        for column, x in zip(columns, xs, strict=True):
            column.copy_(x.detach().T)
        out.zero_()
        for integral in self._integrals:
            integral.add_to(out, columns)
        result = torch.empty(batch, self.size, dtype=like.dtype, device=like.device)
        return result.copy_(out.T)

    def _buffers_for(
        self, like: Tensor, sizes: Sequence[int], batch: int
    ) -> tuple[list[Tensor], Tensor]:
        """Arrays (dim, batch), kept from call to call: new memory costs more than the sums."""
        key = (like.dtype, like.device, batch)
        if key not in self._buffers:
            self._buffers.clear()
            options: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
            columns = [torch.empty(size, batch, **options) for size in sizes]
            self._buffers[key] = columns, torch.empty(self.size, batch, **options)
        return self._buffers[key]


def _integral(built: IntegralGraph, space: Any) -> Integral | None:
    graph, entities = built.graph, built.entities
    outputs = _outputs(built, space)
    if not outputs:
        return None
    sources = _sources(built, [n for rows in outputs for n in rows.entries.values()])
    points = entities.weights.shape[1]
    _sum_tables_where_values_are_constant(graph, sources, outputs, points)
    return Integral(graph, sources, outputs, points, _compiled)


def _compiled(code: str) -> Any:
    """A library, by the compiler that Firedrake compiles its kernels with; None without one."""
    try:
        return load(widest(code), "c", ldargs=("-lm",), comm=COMM_SELF)
    except (CompilationError, OSError):
        return None


def _outputs(built: IntegralGraph, space: Any) -> list[Rows]:
    graph, entities = built.graph, built.entities
    points = entities.weights.shape[1]
    if space is None:
        factor, rest = graph.factored(built.root)
        if graph.is_number(built.root, 0.0):
            return []
        rows = Rows(np.zeros((entities.count, 1), dtype=np.int64), 0, 1, 1)
        rows.tables.append(_at_points(graph.values(factor), points)[..., None])
        rows.entries[0, 0] = graph.number(1.0) if rest is None else rest
        return [rows]
    arguments = frozenset(u for u in graph.unknowns[built.root] if u.name == ARGUMENT)
    groups: dict[Any, Rows] = {}
    tables: dict[Any, int] = {}
    for argument, functional, known, multiplier in graph.coefficients(built.root, arguments):
        block, side = argument.block, argument.side
        if (block, side) not in groups:
            groups[block, side] = _rows(space, block, entities, side)
        rows = groups[block, side]
        key = (block, side, functional, known)
        if key not in tables:
            tables[key] = len(rows.tables)
            table = _table(graph, entities, space.subspaces[block], functional, side)
            weight = _at_points(graph.values(known), points)[..., None]
            rows.tables.append(weight * _at_points(table, points))
        place = (tables[key], argument.component)
        old = rows.entries.get(place)
        rows.entries[place] = multiplier if old is None else graph.add(old, multiplier)
    return list(groups.values())


def _sources(built: IntegralGraph, roots: Sequence[int]) -> Sources:
    """Which functionals of the inputs the integrand needs: the linear parts as large as can be."""
    graph, entities = built.graph, built.entities
    groups: dict[Any, Rows] = {}
    tables: dict[Any, int] = {}
    numbers: dict[int, tuple[int, int]] = {}
    seen: set[int] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node in seen or graph.is_known(node):
            continue
        seen.add(node)
        linear = graph.linear(node)
        multiple = graph.op[node] == "mul" and graph.is_number(graph.args[node][0])
        if linear is None or multiple:  # a multiple is an operation on what is evaluated anyway
            stack += graph.args[node]
            continue
        unknown, functional = linear
        name, block, side = unknown.name, unknown.block, unknown.side
        space = built.spaces[name]
        part = space.subspaces[block]
        if part.ufl_element().family() == "Real":
            if graph.op[node] == "term":
                start = sum(int(p.dim()) for p in space.subspaces[:block])
                numbers[node] = (name, start + unknown.component)
            else:
                stack += graph.args[node]
            continue
        if (name, block, side) not in groups:
            groups[name, block, side] = _rows(space, block, entities, side)
        rows = groups[name, block, side]
        items = tuple(sorted(functional.items(), key=repr))
        key = (name, block, side, items)
        if key not in tables:
            tables[key] = len(rows.tables)
            rows.tables.append(_table(graph, entities, part, items, side))
        rows.entries[tables[key], unknown.component] = node
    return Sources([(key[0], rows) for key, rows in groups.items()], numbers)


def _rows(space: Any, block: int, entities: Entities, side: Any) -> Rows:
    part = space.subspaces[block]
    start = sum(int(p.dim()) for p in space.subspaces[:block])
    return Rows(entities.nodes(part, side), start, node_count(part), block_size(part))


def _table(graph: Graph, entities: Entities, part: Any, functional: Any, side: Any) -> np.ndarray:
    """Values of a functional of the basis functions, (1 or cells, 1 or points, nodes)."""
    total: Any = 0.0
    for (component, derivative), factor in functional:
        basis = entities.table(part, component, derivative, side)
        total = total + graph.values(factor)[..., None] * basis
    return np.asarray(total)


def _at_points(array: np.ndarray, points: int) -> np.ndarray:
    """The array with all points on its second axis."""
    shape = (array.shape[0], points, *array.shape[2:])
    return np.broadcast_to(array, shape)


def _sum_tables_where_values_are_constant(
    graph: Graph, sources: Sources, outputs: Sequence[Rows], points: int
) -> None:
    """Integrate a table once for all where its factor is the same at all points of a cell."""
    full = {
        node
        for _, rows in sources.rows
        for (table, _), node in rows.entries.items()
        if rows.tables[table].shape[1] > 1
    }
    cell = {n for _, rows in sources.rows for n in rows.entries.values()} - full
    cell |= set(sources.numbers)
    memo: dict[int, bool] = {}

    def varies(node: int) -> bool:
        if node not in memo:
            if node in full or node in cell:
                memo[node] = node in full
            elif graph.is_known(node):
                memo[node] = graph.values(node).shape[-1] > 1
            else:
                memo[node] = any(varies(a) for a in graph.args[node])
        return memo[node]

    for rows in outputs:
        for number, table in enumerate(rows.tables):
            nodes = [n for (t, _), n in rows.entries.items() if t == number]
            if not any(varies(n) for n in nodes):
                rows.tables[number] = table.sum(axis=1, keepdims=True)
