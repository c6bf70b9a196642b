"""Integrals over many cells for a whole batch, in torch.

An integral is executed in chunks of cells that stay in the cache: the dofs of the cells are
gathered, one matrix product for each function gives what the integrand needs of it at the points,
the integrand is evaluated in place there, one product with the transposed matrices brings the
result back to dofs, and it is added up. The geometry is in the matrices. On the CPU an integral
with much to do becomes one compiled loop instead (`spon.quadrature_loops`), where a compiler is
handed in. Nothing here knows of UFL or Firedrake.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spon.integrand import Program, Rows, Sources, Step
from spon.quadrature_loops import Loop, source
from spon.scalars import Graph

__all__ = ["Integral", "Rows", "Sources"]

# Samples, and evaluations of an integrand, from which a compiled loop is worth the compilation.
_LEAST_BATCH = 8
LEAST_WORK = 1 << 16
# Bytes of each array of a chunk: some ten arrays of that size should fit into the cache.
_CHUNK = 1 << 18
_UNARY: dict[str, Callable[..., Tensor]] = {
    "abs": torch.abs, "sign": torch.sign, "sqrt": torch.sqrt, "exp": torch.exp, "log": torch.log,
    "sin": torch.sin, "cos": torch.cos, "tan": torch.tan, "sinh": torch.sinh, "cosh": torch.cosh,
    "tanh": torch.tanh, "asin": torch.asin, "acos": torch.acos, "atan": torch.atan,
    "erf": torch.erf, "not": torch.logical_not,
}  # fmt: skip
_BINARY: dict[str, Callable[..., Tensor]] = {
    "add": torch.add, "mul": torch.mul, "div": torch.div, "pow": torch.pow, "atan2": torch.atan2,
    "min": torch.minimum, "max": torch.maximum, "lt": torch.lt, "le": torch.le, "gt": torch.gt,
    "ge": torch.ge, "eq": torch.eq, "ne": torch.ne, "and": torch.logical_and,
    "or": torch.logical_or,
}  # fmt: skip
_TRUTH = {"lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not"}


class Integral:
    """One integral of a form.

    Parameters
    ----------
    graph : Graph
    sources : Sources
    outputs : list of Rows
    points : int
        Points in each cell.
    compiler : callable, optional
        From C source to a library, or None where that fails. With it, integrals over many points
        on the CPU become compiled loops.
    """

    def __init__(
        self,
        graph: Graph,
        sources: Sources,
        outputs: list[Rows],
        points: int,
        compiler: Callable[[str], Any] | None = None,
    ) -> None:
        self.sources, self.outputs, self.points = sources, outputs, points
        self.cells = len(outputs[0].nodes)
        self._program = Program(graph, sources, outputs, points)
        self._compiler = compiler
        self._copies: dict[Any, _Copy] = {}
        self._loops: dict[torch.dtype, Loop | None] = {}

    def add_to(self, out: Tensor, xs: Sequence[Tensor]) -> None:
        """Add the integral to a result.

        Parameters
        ----------
        out : Tensor, shape (size, batch)
        xs : sequence of Tensor, shapes (dim, batch)
            Contiguous, of the dtype and on the device of `out`.
        """
        if self.cells == 0:
            return
        loop = self._loop(out)
        if loop is not None:
            return loop.add_to(out, xs)
        key = (out.dtype, out.device)
        if key not in self._copies:
            self._copies[key] = _Copy(self, out.dtype, out.device)
        self._copies[key].add_to(out, xs)

    def _loop(self, out: Tensor) -> Loop | None:
        """The compiled loop, where there is one and it pays.

        That depends on sizes only, so that a calculation can be repeated to the last bit.
        """
        batch = out.shape[1]
        if out.device.type != "cpu" or self._compiler is None or batch < _LEAST_BATCH:
            return None
        if self.cells * self.points * batch < LEAST_WORK:
            return None
        if out.dtype not in self._loops:
            parts = (self._program, self.sources, self.outputs, self.points, out.dtype)
            library = self._compiler(source(*parts))
            self._loops[out.dtype] = library and Loop(library.integral, *parts)
        return self._loops[out.dtype]


# ---- execution -----------------------------------------------------------------------------------


class _Copy:
    """Everything of an integral in one dtype on one device, with its buffers."""

    def __init__(self, integral: Integral, dtype: torch.dtype, device: torch.device) -> None:
        self.integral, self.dtype, self.device = integral, dtype, device
        points = integral.points
        self._inputs = [_Tables(r, points, dtype, device) for _, r in integral.sources.rows]
        self._outputs = [_Tables(r, points, dtype, device) for r in integral.outputs]
        self._fields = {
            node: torch.from_numpy(np.array(v)[..., None]).to(
                device, torch.bool if v.dtype == bool else dtype
            )
            for node, v in integral._program.fields.items()
        }
        self._plans: dict[int, _Plan] = {}

    def add_to(self, out: Tensor, xs: Sequence[Tensor]) -> None:
        integral = self.integral
        batch = out.shape[1]
        if batch not in self._plans:
            self._plans.clear()  # buffers of one size of batch at a time
            self._plans[batch] = _Plan(self, batch)
        plan = self._plans[batch]
        views = [rows.view(xs[i]) for i, rows in integral.sources.rows]
        numbers = {n: xs[i][dof][None, None] for n, (i, dof) in integral.sources.numbers.items()}
        targets = [rows.view(out) for rows in integral.outputs]
        for begin in range(0, integral.cells, plan.chunk):
            cells = min(plan.chunk, integral.cells - begin)
            plan.run(begin, cells, views, numbers, targets)


class _Tables:
    """The stacked matrices and the nodes of one space."""

    def __init__(self, rows: Rows, points: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rows, self.places = rows, rows.places(points)
        stacked = rows.stacked(points)
        self.matrix = torch.from_numpy(np.ascontiguousarray(stacked)).to(device, dtype)
        self.size = int(self.matrix.shape[1])
        self.nodes = torch.from_numpy(np.ascontiguousarray(rows.nodes)).to(device)
        self._shared: Tensor | None = None

    def chunk(self, begin: int, cells: int) -> Tensor:
        """The matrices of some cells; one that all share is repeated once and kept."""
        if len(self.matrix) > 1 or len(self.nodes) == 1:
            return self.matrix[begin : begin + cells]
        if self._shared is None or len(self._shared) < cells:
            self._shared = self.matrix.expand(cells, -1, -1).contiguous()
        return self._shared[:cells]


class _Plan:
    """The buffers for one size of batch, and what is written where."""

    def __init__(self, copy: _Copy, batch: int) -> None:
        self.copy, self.batch = copy, batch
        integral = copy.integral
        program, points = integral._program, integral.points
        on_cpu = copy.device.type == "cpu"
        per_cell = points * batch * copy.dtype.itemsize
        most = max(1, (_CHUNK if on_cpu else 1 << 28) // per_cell)
        self.chunk = -(-integral.cells // -(-integral.cells // most))  # chunks of one size
        like: dict[str, Any] = {"dtype": copy.dtype, "device": copy.device}
        self._products = [
            torch.empty(self.chunk, t.size, t.rows.width * batch, **like) for t in copy._inputs
        ]
        # Zero where no step writes: a table that some component does not use.
        self._results = [
            torch.zeros(self.chunk, t.size, t.rows.width * batch, **like) for t in copy._outputs
        ]
        self._gathered, self._returned = (
            [
                torch.empty(self.chunk * t.nodes.shape[1], t.rows.width * batch, **like)
                for t in group
            ]
            for group in (copy._inputs, copy._outputs)
        )
        self._whole: dict[int, Tensor] = {}
        for tables, buffer in zip(copy._inputs, self._products, strict=True):
            for place, node in tables.rows.entries.items():
                self._whole[node] = self._part(buffer, tables, place)
        self._copies: list[tuple[Tensor, int]] = []
        self._place_results(program)
        self._calls = self._make_calls(program, like)
        self._cut: dict[int, dict[Any, Tensor]] = {}

    def _part(self, buffer: Tensor, tables: _Tables, place: tuple[int, int]) -> Tensor:
        """The values of one table and component, shape (cells, 1 or points, batch)."""
        (begin, size), component = tables.places[place[0]], place[1]
        columns = slice(component * self.batch, (component + 1) * self.batch)
        return buffer[:, begin : begin + size, columns]

    def _place_results(self, program: Program) -> None:
        """Let steps write into the buffers of the results where they can."""
        made = {step.out for step in program.steps if program.shape[step.out] != "row"}
        for tables, buffer in zip(self.copy._outputs, self._results, strict=True):
            for place, node in tables.rows.entries.items():
                target = self._part(buffer, tables, place)
                fits = program.shape.get(node) == ("full" if target.shape[1] > 1 else "cell")
                single = target.shape[1] == 1 and self.copy.integral.points == 1
                if node in made and node not in self._whole and (fits or single):
                    self._whole[node] = target
                else:
                    self._copies.append((target, node))

    def _make_calls(self, program: Program, like: dict[str, Any]) -> list[Any]:
        last: dict[int, int] = {}
        for number, step in enumerate(program.steps):
            for operand in step.operands:
                if isinstance(operand, int):
                    last[operand] = number
        for _, node in self._copies:
            last[node] = len(program.steps)
        free: dict[str, list[Tensor]] = {"full": [], "cell": []}
        own: dict[int, Tensor] = {}
        calls = []
        for number, step in enumerate(program.steps):
            kind = program.shape[step.out]
            for operand in set(step.operands):
                if isinstance(operand, int) and last[operand] == number and operand in own:
                    free[program.shape[operand]].append(own.pop(operand))
            buffered = kind != "row" and step.op not in _TRUTH and step.op != "where"
            if buffered and step.out not in self._whole:
                if free[kind]:
                    own[step.out] = free[kind].pop()
                else:
                    points = self.copy.integral.points if kind == "full" else 1
                    own[step.out] = torch.empty(self.chunk, points, self.batch, **like)
                self._whole[step.out] = own[step.out]
            calls.append((step.out, _function(step, like), step.operands))
        # A buffer that was handed on belongs to several nodes, one after the other.
        return calls

    def run(
        self,
        begin: int,
        cells: int,
        views: Sequence[Tensor],
        numbers: dict[int, Tensor],
        targets: Sequence[Tensor],
    ) -> None:
        copy = self.copy
        end = begin + cells
        if cells not in self._cut:
            self._cut[cells] = {node: buffer[:cells] for node, buffer in self._whole.items()}
        values = {**self._cut[cells], **numbers}
        for node, known in copy._fields.items():
            values[node] = known[begin:end] if len(known) > 1 else known
        for tables, view, local, product in zip(
            copy._inputs, views, self._gathered, self._products, strict=True
        ):
            nodes = tables.nodes[begin:end]
            local = local[: nodes.numel()]
            torch.index_select(view, 0, nodes.reshape(-1), out=local)
            local = local.view(cells, nodes.shape[1], -1)
            torch.bmm(tables.chunk(begin, cells), local, out=product[:cells])
        for out, function, operands in self._calls:
            arguments = [values[a] if isinstance(a, int) else a for a in operands]
            target = values.get(out)
            if target is not None and out in self._whole:
                function(*arguments, out=target)
            else:
                values[out] = function(*arguments)
        for target, node in self._copies:
            if node in values:
                target[:cells].copy_(values[node].expand_as(target[:cells]))
            else:
                target[:cells].fill_(copy.integral._program.graph.data[node])
        for tables, target, result, local in zip(
            copy._outputs, targets, self._results, self._returned, strict=True
        ):
            nodes = tables.nodes[begin:end]
            local = local[: nodes.numel()]
            matrix = tables.chunk(begin, cells).transpose(1, 2)
            torch.bmm(matrix, result[:cells], out=local.view(cells, nodes.shape[1], -1))
            target.index_add_(0, nodes.reshape(-1), local)


def _function(step: Step, like: dict[str, Any]) -> Callable[..., Any]:
    """The torch function of a step, with the numbers where torch wants them."""
    op = step.op
    if op == "reciprocal":
        return torch.reciprocal
    if op == "where":
        return lambda c, *args, **kw: torch.where(c, *_as_tensors(args, like), **kw)
    if op in _UNARY:
        return _UNARY[op]
    if op == "add" and step.alpha == -1.0:
        return torch.sub
    if op == "add" and step.alpha != 1.0:
        alpha = step.alpha
        return lambda a, b, **kw: torch.add(a, b, alpha=alpha, **kw)
    function = _BINARY[op]
    if op in ("add", "mul") and not isinstance(step.operands[0], int):
        return lambda a, b, **kw: function(b, a, **kw)
    if op in ("min", "max", "atan2", "div") and any(not isinstance(a, int) for a in step.operands):
        return lambda *args, **kw: function(*_as_tensors(args, like), **kw)
    if op in ("lt", "le", "gt", "ge", "eq", "ne") and not isinstance(step.operands[0], int):
        return lambda *args, **kw: function(*_as_tensors(args, like), **kw)
    return function


def _as_tensors(args: Sequence[Any], like: dict[str, Any]) -> list[Tensor]:
    return [a if isinstance(a, Tensor) else torch.tensor(a, **like) for a in args]
