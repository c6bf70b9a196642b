"""Tables and plots of accuracy against cost, and of the growth of cost with the mesh."""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["blocks", "draw"]

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"
_ACCURACY, _GROWTH = "operator_learning-accuracy_cost", "cost_growth"
_COMMANDS = {
    _ACCURACY: "python benchmarks/operator_learning/accuracy_cost.py",
    _GROWTH: "python benchmarks/cost_growth.py",
}

Where = Callable[[dict[str, Any]], str]


def blocks(where: Where) -> dict[str, Callable[[], str]]:
    """Makers of the page's blocks by their names; `where` tells the machine of a record."""
    return {
        "accuracy-cost": partial(_block, _ACCURACY, _accuracy, where),
        "cost-growth": partial(_block, _GROWTH, _growth, where),
    }


def draw() -> None:
    """The pictures of what was measured."""
    for name, picture in _pictures().items():
        record = _load(name)
        if record is not None:
            picture(record, IMAGES / f"{name}.png")


def _pictures() -> dict[str, Callable[[dict[str, Any], Path], None]]:
    return {_ACCURACY: _accuracy_picture, _GROWTH: _growth_picture}


def _load(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _block(name: str, text: Callable[[dict[str, Any]], str], where: Where) -> str:
    record = _load(name)
    if record is None:
        return f"Not measured yet: `{_COMMANDS[name]}`."
    picture = f"![{name.split('-')[-1].replace('_', ' ')}](images/{name}.png)"
    return f"{picture}\n\n{text(record)}\n\nMeasured on {where(record)}."


# ---- accuracy against cost ---------------------------------------------------------------------


def _mean(row: dict[str, Any], test: str, measure: str = "error") -> float:
    return statistics.fmean(r["tests"][test][measure]["mean"] for r in row["runs"])


def _average(row: dict[str, Any], what: str) -> float:
    return statistics.fmean(r[what] for r in row["runs"])


def _accuracy(record: dict[str, Any]) -> str:
    lines = [
        "| network | degree | dofs | against the reference | against the finite element solution "
        "| that solution against the reference | inference | epochs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(n["network"] for s in record["results"]["degrees"]
                              for n in s["networks"]):  # fmt: skip
        for space in record["results"]["degrees"]:
            (n,) = (n for n in space["networks"] if n["network"] == name)
            lines.append(
                f"| {name} | {space['degree']} | {n['dofs']:,} "
                f"| {_mean(n, 'unseen', 'against_reference'):.2%} | {_mean(n, 'unseen'):.2%} "
                f"| {space['solvers'][0]['error']:.2%} | {_average(n, 'inference_ms'):.2f} ms "
                f"| {_average(n, 'epochs'):.0f} |"
            )
    budgets = record["settings"]["budgets"]
    lines += [
        "",
        "| network | weights | "
        + " | ".join(f"error after {b:g} s of training" for b in budgets)
        + " | inference |",
        "|---|---" + "|---" * len(budgets) + "|---|",
    ]
    levels = record["results"]["levels"]
    for name in dict.fromkeys(r["network"] for r in levels):
        rows = [r for r in levels if r["network"] == name]
        errors = " | ".join(f"{_mean(r, 'mesh'):.2%}" for r in rows)
        lines.append(
            f"| {name} | {rows[-1]['runs'][0]['weights']:,} | {errors} "
            f"| {_average(rows[-1], 'inference_ms'):.2f} ms |"
        )
    s = record["settings"]
    return "\n".join(
        [*lines, "", f"{'One seed' if s['seeds'] == 1 else str(s['seeds']) + ' seeds'}; "
         f"{s['seconds']:g} CPU seconds of training in the first table."]
    )  # fmt: skip


def _accuracy_picture(record: dict[str, Any], path: Path) -> None:
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    spaces = record["results"]["degrees"]
    names = list(dict.fromkeys(n["network"] for s in spaces for n in s["networks"]))
    for degree, line in ((1, "--"), (2, "-")):
        mine = [s for s in spaces if s["degree"] == degree]
        for i, name in enumerate(names):
            rows = [n for s in mine for n in s["networks"] if n["network"] == name]
            axes[0].loglog(
                [_average(n, "inference_ms") for n in rows],
                [100 * _mean(n, "unseen", "against_reference") for n in rows],
                f"o{line}", color=f"C{i}", label=f"{name}, degree {degree}",
            )  # fmt: skip
        solvers = [s["solvers"][0] for s in mine]
        axes[0].loglog(
            [r["ms"] for r in solvers], [100 * r["error"] for r in solvers], f"k.{line}",
            label=f"finite elements, degree {degree}",
        )  # fmt: skip
    axes[0].set_xlabel("CPU ms a sample; meshes of 4 to 64 cells along a side")
    axes[0].set_ylabel("relative L2 error against the reference, %")
    levels = record["results"]["levels"]
    pairs = list(dict.fromkeys(r["pair"] for r in levels))
    for name in dict.fromkeys(r["network"] for r in levels):
        rows = [r for r in levels if r["network"] == name]
        several = name in ("GraphMultigrid", "Multigrid")
        axes[1].loglog(
            [r["seconds"] for r in rows], [100 * _mean(r, "mesh") for r in rows],
            "o-" if several else "o--", color=f"C{pairs.index(rows[0]['pair'])}", label=name,
        )  # fmt: skip
    axes[1].set_xlabel("CPU seconds of training, plate with holes")
    axes[1].set_ylabel("relative L2 error, %")
    _finish(figure, axes, path)


# ---- growth of cost ----------------------------------------------------------------------------


_FEW = 10_000  # dofs; solids with more are iterated
_COSTS = {
    "training_ms": "a training step",
    "inference_ms": "inference",
    "training_mb": "memory of training",
    "inference_mb": "memory of inference",
    "setup_s": "set-up of a mesh",
}


def _slope(rows: list[dict[str, Any]], key: str) -> float:
    sizes, costs = ([math.log(row[k]) for row in rows] for k in ("dofs", key))
    return statistics.linear_regression(sizes, costs).slope


def _exponents(rows: list[dict[str, Any]], slopes: list[dict[str, Any]]) -> list[str]:
    sizes = sorted({r["dofs"] for r in rows})
    lines = [
        f"Exponents of growth from {sizes[0]:,} to {sizes[-1]:,} dofs, and costs a sample at the "
        "largest size:",
        "",
        "| network | " + " | ".join(_COSTS.values()) + " | a training step | inference "
        "| memory of training |",
        "|---" * (len(_COSTS) + 4) + "|",
    ]
    for s in slopes:
        last = max((r for r in rows if r["network"] == s["network"]), key=lambda r: r["dofs"])
        lines.append(
            f"| `{s['network']}` | "
            + " | ".join(f"{s[k]:.2f}" for k in _COSTS)
            + f" | {last['training_ms']:,.0f} ms | {last['inference_ms']:,.0f} ms "
            f"| {last['training_mb']:,.0f} MB |"
        )
    return lines


def _growth(record: dict[str, Any]) -> str:
    results = record["results"]
    rows = results["networks"]
    sizes = sorted({r["dofs"] for r in rows})
    lines = _exponents(rows, results["slopes"])
    for found in results["solids"]:
        lines += ["", "A cube of tetrahedra.", "", *_exponents(found["rows"], [found["slopes"]])]
        large = [row for row in found["rows"] if row["dofs"] > _FEW]
        times = " and ".join(f"{_slope(large, k):.2f}" for k in ("training_ms", "inference_ms"))
        lines += [
            "",
            f"From {large[0]['dofs']:,} dofs on: {times} for a training step and inference.",
        ]
    at = results["returned"][0]["dofs"]
    lines += [
        "",
        f"A training step on {at:,} dofs with freed memory kept, and given back as glibc does by "
        "itself:",
        "",
        "| | " + " | ".join(f"`{r['network']}`" for r in results["returned"]) + " |",
        "|---" * (len(results["returned"]) + 1) + "|",
        "| kept | "
        + " | ".join(f"{r['training_ms']:,.0f} ms" for r in rows if r["dofs"] == at)
        + " |",
        "| given back | "
        + " | ".join(f"{r['training_ms']:,.0f} ms" for r in results["returned"])
        + " |",
        "",
        f"Sparse products (stiffness matrix with {record['settings']['columns']} columns) against "
        "a copy of a large array:",
        "",
        "| dofs | " + " | ".join(f"{n:,}" for n in sizes) + " |",
        "|---" * (len(sizes) + 1) + "|",
    ]
    for kept, dtype in itertools.product((True, False), ("float32", "float64")):
        found = {
            r["dofs"]: r for r in results["bandwidth"] if (r["kept"], r["dtype"]) == (kept, dtype)
        }
        cells = [f"{found[n]['gb_per_s']:.1f} GB/s, {found[n]['fraction']:.0%}" for n in sizes]
        name = f"{dtype}, freed memory {'kept' if kept else 'given back'}"
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _growth_picture(record: dict[str, Any], path: Path) -> None:
    plt = _pyplot()
    rows = record["results"]["networks"]
    shown = ("training_ms", "inference_ms", "training_mb")
    labels = ("training step, ms a sample", "inference, ms a sample", "training, MB a sample")
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.4), layout="constrained")
    for axis, key, label in zip(axes, shown, labels, strict=True):
        for name in dict.fromkeys(r["network"] for r in rows):
            mine = [r for r in rows if r["network"] == name]
            axis.loglog([r["dofs"] for r in mine], [r[key] for r in mine], "o-", label=name)
        ends = [min(r["dofs"] for r in rows), max(r["dofs"] for r in rows)]
        least = min(r[key] for r in rows if r["dofs"] == ends[0])
        axis.loglog(ends, [least, least * ends[1] / ends[0]], "k:", label="linear")
        axis.set_xlabel("dofs")
        axis.set_ylabel(label)
    _finish(figure, axes, path)


# ---- what both share ---------------------------------------------------------------------------


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _finish(figure: Any, axes: Any, path: Path) -> None:
    for axis in axes:
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(fontsize=8)
    if len(axes) == 2:
        axes[1].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    figure.savefig(temporary, dpi=100, format="png")
    _pyplot().close(figure)
    os.replace(temporary, path)
