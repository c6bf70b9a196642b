"""Integrals over many cells for a whole batch, as one compiled loop.

Torch makes a pass over memory for each operation of an integrand. Here an integral becomes one loop
in C over cells and over groups of samples, which lie side by side in the vector registers: what is
between the dofs that are read and those that are added to never leaves the first level of the
cache. Nothing here knows of UFL or Firedrake, nor of a compiler, which is handed in.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spon.integrand import Program, Rows, Sources, Step

__all__ = ["Loop", "source"]

_TYPES = {torch.float64: "double", torch.float32: "float"}
_EXPRESSIONS = {
    "mul": "{0} * {1}", "div": "{0} / {1}", "reciprocal": "1 / {0}",
    "abs": "fabs({0})", "sign": "({0} > 0) - ({0} < 0)", "where": "{0} ? {1} : {2}",
    "min": "{0} < {1} ? {0} : {1}", "max": "{0} > {1} ? {0} : {1}", "not": "!{0}",
    "lt": "{0} < {1}", "le": "{0} <= {1}", "gt": "{0} > {1}", "ge": "{0} >= {1}",
    "eq": "{0} == {1}", "ne": "{0} != {1}", "and": "{0} && {1}", "or": "{0} || {1}",
}  # fmt: skip

_HEADER = """\
#include <stdint.h>
#include <tgmath.h>

typedef %s T;
/* A vector register; aligned like a number, so that no array of a caller can be at fault. */
typedef T lanes __attribute__((vector_size(64), aligned(sizeof(T)), may_alias));
#define L ((int)(2 * sizeof(lanes) / sizeof(T)))  /* samples of a group: two registers */
#define INLINE static inline __attribute__((always_inline)) void

/* x[node][component][lane]; lanes beyond the last sample repeat it. */
INLINE load(const int nodes, const int width, const int64_t *node, int count, int64_t batch,
            const T *from, T *x) {
  for (int n = 0; n < nodes; n++)
    for (int w = 0; w < width; w++, x += L) {
      const T *row = from + (node[n] * width + w) * batch;
      if (count == L) for (int l = 0; l < L; l++) x[l] = row[l];
      else for (int l = 0; l < L; l++) x[l] = row[l < count ? l : count - 1];
    }
}

INLINE add(const int nodes, const int width, const int64_t *node, int count, int64_t batch,
           const T *x, T *to) {
  for (int n = 0; n < nodes; n++)
    for (int w = 0; w < width; w++, x += L) {
      T *row = to + (node[n] * width + w) * batch;
      if (count == L) for (int l = 0; l < L; l++) row[l] += x[l];
      else for (int l = 0; l < count; l++) row[l] += x[l];
    }
}

/* Four rows at most of y[i] = sum_j m[i * down + j * along] x[j], for all components and lanes. */
INLINE some(const int rows, const int inner, const int down, const int along, const int width,
            const T *m, const T *x, T *y) {
  for (int w = 0; w < width; w++) {
    lanes sum[4][2] = {0};
    for (int j = 0; j < inner; j++) {
      const lanes *v = (const lanes *)(x + (j * width + w) * L), v0 = v[0], v1 = v[1];
      for (int i = 0; i < rows; i++) {
        sum[i][0] += m[i * down + j * along] * v0;
        sum[i][1] += m[i * down + j * along] * v1;
      }
    }
    for (int i = 0; i < rows; i++)
      for (int k = 0; k < 2; k++) ((lanes *)(y + (i * width + w) * L))[k] = sum[i][k];
  }
}

INLINE product(const int rows, const int inner, const int down, const int along, const int width,
               const T *m, const T *x, T *y) {
  for (int i = 0; i < rows / 4 * 4; i += 4, m += 4 * down, y += 4 * width * L)
    some(4, inner, down, along, width, m, x, y);
  if (rows %% 4) some(rows %% 4, inner, down, along, width, m, x, y);
}

void integral(int64_t cells, int64_t batch, int64_t first, int64_t last, const T *const *matrix,
              const int64_t *const *node, const T *const *field, const T *const *number,
              const T *const *input, T *const *output) {
"""


class Loop:
    """An integral as a compiled loop, for one dtype on the CPU.

    Parameters
    ----------
    function : ctypes function
        What was compiled from `source`.
    program, sources, outputs, points, dtype
        What `source` was made of.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        program: Program,
        sources: Sources,
        outputs: Sequence[Rows],
        points: int,
        dtype: torch.dtype,
    ) -> None:
        self._function, self._sources, self._outputs = function, sources, outputs
        everything = [*(rows for _, rows in sources.rows), *outputs]
        self._cells = len(outputs[0].nodes)
        self._matrices = [_tensor(r.stacked(points), dtype) for r in everything]
        self._nodes = [_tensor(r.nodes, torch.int64) for r in everything]
        self._fields = [_tensor(v, dtype) for v in program.fields.values()]
        self._constant = [_pointers(t) for t in (self._matrices, self._nodes, self._fields)]

    def add_to(self, out: Tensor, xs: Sequence[Tensor]) -> None:
        """Add the integral to a result, of shape (size, batch); see `Integral.add_to`."""
        rows = self._sources.rows
        numbers = [xs[i][dof] for i, dof in self._sources.numbers.values()]
        inputs = [r.view(xs[i]) for i, r in rows]
        outputs = [r.view(out) for r in self._outputs]
        batch, group = out.shape[1], 128 // out.dtype.itemsize
        pointers = [*self._constant, *map(_pointers, (numbers, inputs, outputs))]

        def run(first: int, last: int) -> None:
            sizes = map(ctypes.c_int64, (self._cells, batch, first, min(last, batch)))
            self._function(*sizes, *pointers)

        groups = -(-batch // group)
        threads = min(torch.get_num_threads(), groups)
        if threads == 1:
            return run(0, batch)
        # Each thread has samples of its own, and C holds no lock of Python's.
        borders = [group * (groups * i // threads) for i in range(threads + 1)]
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, borders[:-1], borders[1:]))


def _tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.array(array, order="C")).to(dtype)


def _pointers(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))


def source(
    program: Program, sources: Sources, outputs: Sequence[Rows], points: int, dtype: torch.dtype
) -> str:
    """The integral in C: a function ``integral``.

    The number of cells and of samples, the tables and the known fields are its arguments, so that
    meshes share what is compiled.
    """
    writer = _Writer(program, sources, outputs, points)
    return _HEADER % _TYPES[dtype] + "\n".join(writer.lines()) + "\n"


class _Writer:
    """Names for what an integrand consists of, and the lines in which it is evaluated."""

    def __init__(
        self, program: Program, sources: Sources, outputs: Sequence[Rows], points: int
    ) -> None:
        self._program, self._sources, self._points = program, sources, points
        self._inputs, self._outputs = [rows for _, rows in sources.rows], list(outputs)
        # C expressions of the nodes, those of the unknown constants and fields first.
        self._names = {node: f"t{node}[l]" for node in sources.numbers}
        self._names |= {node: f"f{node}" for node in program.fields}
        for k, rows in enumerate(self._inputs):
            places = rows.places(points)
            for (table, component), node in rows.entries.items():
                self._names[node] = self._value(k, places[table], component)

    def lines(self) -> list[str]:
        """The body of the function."""
        once, each, arrays = self._statements()
        everything = [*self._inputs, *self._outputs]
        text = [f"  T t{node}[L];" for node in arrays]
        for k, rows in enumerate(everything):
            # Zero where nothing is written: a table that some component does not use.
            height, nodes = self._height(rows), rows.nodes.shape[1]
            text.append(f"  T v{k}[{height}][{rows.width}][L] = {{0}};")
            text.append(f"  T x{k}[{nodes}][{rows.width}][L];")
        text += ["  for (int64_t c = 0; c < cells; c++) {", *self._fields("cell")]
        text += ["  for (int64_t b = first; b < last; b += L) {",
                 "  const int count = last - b < L ? (int)(last - b) : L;"]  # fmt: skip
        for k, rows in enumerate(self._inputs):
            nodes, height = rows.nodes.shape[1], self._height(rows)
            text.append(f"  load({self._place(k, rows)}, input[{k}] + b, x{k}[0][0]);")
            text.append(f"  product({height}, {nodes}, {nodes}, 1, {rows.width}, "
                        f"{self._matrix(k, rows)}, x{k}[0][0], v{k}[0][0]);")  # fmt: skip
        lanes = "  for (int l = 0; l < L; l++) {"
        if once:
            text += [lanes, *once, "  }"]
        if each:
            text.append(f"  for (int q = 0; q < {self._points}; q++) {{")
            text += [*self._fields("full"), lanes, *each, "  }", "  }"]
        for k, rows in enumerate(self._outputs, start=len(self._inputs)):
            nodes, height = rows.nodes.shape[1], self._height(rows)
            text.append(f"  product({nodes}, {height}, 1, {nodes}, {rows.width}, "
                        f"{self._matrix(k, rows)}, v{k}[0][0], x{k}[0][0]);")  # fmt: skip
            target = f"output[{k - len(self._inputs)}] + b"
            text.append(f"  add({self._place(k, rows)}, x{k}[0][0], {target});")
        return [*text, "  }", "  }", "}"]

    def _statements(self) -> tuple[list[str], list[str], list[int]]:
        """What is done once in a cell, and at each point; and the nodes that get an array."""
        once = [f"  t{node}[l] = number[{i}][b + (l < count ? l : count - 1)];"
                for i, node in enumerate(self._sources.numbers)]  # fmt: skip
        each, arrays = [], list(self._sources.numbers)
        for step in self._program.steps:
            expression = _expression(step, [self._name(a) for a in step.operands])
            if self._program.shape[step.out] == "full":
                self._names[step.out] = f"t{step.out}"
                each.append(f"  const T t{step.out} = {expression};")
            else:
                self._names[step.out] = f"t{step.out}[l]"
                arrays.append(step.out)
                once.append(f"  t{step.out}[l] = {expression};")
        for k, rows in enumerate(self._outputs, start=len(self._inputs)):
            places = rows.places(self._points)
            for (table, component), node in rows.entries.items():
                number = self._program.graph.is_number(node)
                name = self._name(self._program.graph.data[node] if number else node)
                varies = places[table][1] > 1 or self._program.shape.get(node) == "full"
                line = f"  {self._value(k, places[table], component)} = {name};"
                (each if varies else once).append(line)
        return once, each, arrays

    def _name(self, operand: int | float) -> str:
        # Infinity is no word of C, and not for -ffast-math: torch keeps such an integral.
        return self._names[operand] if isinstance(operand, int) else f"(T){operand!r}"

    def _value(self, k: int, place: tuple[int, int], component: int) -> str:
        return f"v{k}[{place[0]}{' + q' if place[1] > 1 else ''}][{component}][l]"

    def _height(self, rows: Rows) -> int:
        return sum(size for _, size in rows.places(self._points))

    def _place(self, k: int, rows: Rows) -> str:
        nodes = rows.nodes.shape[1]
        return f"{nodes}, {rows.width}, node[{k}] + c * {nodes}, count, batch"

    def _matrix(self, k: int, rows: Rows) -> str:
        shared = all(len(table) == 1 for table in rows.tables)
        step = 0 if shared else self._height(rows) * rows.nodes.shape[1]
        return f"matrix[{k}] + c * {step}"

    def _fields(self, shape: str) -> list[str]:
        """Declarations of the known fields of a shape."""
        lines = []
        for i, (node, values) in enumerate(self._program.fields.items()):
            if self._program.shape[node] == shape:
                step = values.shape[-1] if len(values) > 1 else 0
                place = f"c * {step}" + (" + q" if shape == "full" else "")
                lines.append(f"  const T f{node} = field[{i}][{place}];")
        return lines


def _expression(step: Step, operands: list[str]) -> str:
    if step.op == "add":
        return f"{operands[0]} + (T){step.alpha!r} * {operands[1]}"
    if step.op in _EXPRESSIONS:
        return _EXPRESSIONS[step.op].format(*operands)
    return f"{step.op}({', '.join(operands)})"  # C has the names of the other functions too
