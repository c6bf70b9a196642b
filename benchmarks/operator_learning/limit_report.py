"""Tables of what can be learned of the small Darcy set at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["blocks"]

RESULTS = Path(__file__).resolve().parents[1] / "results"
_COMMAND = "python benchmarks/operator_learning/{}.py --data DIR"
_TITLES = {"training": "training", "validation": "validation", "16": "16 x 16", "32": "32 x 32"}


def blocks(where: Callable[[dict[str, Any]], str]) -> dict[str, Callable[[], str]]:
    """Makers of the page's blocks by their names; `where` tells the machine of a record."""
    tables = {"symmetries": symmetries, "limit": limit}
    return {f"small-darcy-{n}": partial(_block, n, t, where) for n, t in tables.items()}


def _block(
    name: str,
    table: Callable[[dict[str, Any]], str],
    where: Callable[[dict[str, Any]], str],
) -> str:
    path = RESULTS / f"operator_learning-small_darcy_{name}.json"
    if not path.exists():
        return f"Not measured yet: `{_COMMAND.format(name)}`."
    record = json.loads(path.read_text())
    return f"{table(record)}\n\nMeasured on {where(record)}."


def symmetries(record: dict[str, Any]) -> str:
    """Errors of networks that keep the symmetries of the square."""
    lines = [
        "| Elliptic | weights | " + " | ".join(_TITLES.values()) + " | epochs |",
        "|---" * (len(_TITLES) + 3) + "|",
    ]
    for row in record["results"]:
        model = ", ".join(f"{key} {value}" for key, value in row["model"].items())
        cells = " | ".join(_error(row["errors"][test]) for test in _TITLES)
        lines.append(f"| {model} | {row['weights']:,} | {cells} | {row['epochs']:.0f} |")
    return "\n".join(lines) + f"\n\n{record['settings']['seconds']:g} CPU seconds of training."


def limit(record: dict[str, Any]) -> str:
    """The least error that can be expected, and that of the best prediction on the data."""
    law, settings = record["results"]["law"], record["settings"]
    lines = [
        "| samples | number | expected of the best prediction, at least and at most "
        "| measured | with the best factor |",
        "|---|---|---|---|---|",
    ]
    for row in record["results"]["sets"]:
        least, most = (_error(row["expected"][side]) for side in ("least", "most"))
        lines.append(
            f"| {_TITLES[row['set']]} | {row['samples']} | {least}, {most} "
            f"| {_error(row['on_data'])} | {row['best_factor']['mean']:.2%} |"
        )
    low, high = law["coefficients"]
    draws = settings["chains"] * settings["draws"]
    between = max(row["between_chains"] for row in record["results"]["sets"])
    text = (
        f"Fitted: alpha {law['alpha']:.2f}, tau {law['tau']:.2f} (mean square of what the "
        f"correlations of the signs are off by: {law['mismatch']:.2e}; sampling noise alone: "
        f"{law['noise']:.2e}); coefficients {low:.4f} and {high:.4f}. {draws} fields a sample on "
        f"{settings['cells']} x {settings['cells']} cells; chains differ by at most {between:.3f} "
        f"({record['results']['sets'][0]['independent']:.3f} for independent draws)."
    )
    return "\n".join(lines) + "\n\n" + text


def _error(error: dict[str, float]) -> str:
    return f"{error['mean']:.2%} ± {error['standard']:.2%}"
