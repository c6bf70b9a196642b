"""Tables of what can be learned of the small Darcy set at all."""

from __future__ import annotations

import json
import statistics
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


def _load(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"operator_learning-small_darcy_{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _block(
    name: str,
    table: Callable[[dict[str, Any]], str],
    where: Callable[[dict[str, Any]], str],
) -> str:
    record = _load(name)
    if record is None:
        return f"Not measured yet: `{_COMMAND.format(name)}`."
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
    networks = _load("symmetries")
    # Which of them is the best is for the validation samples to say.
    best = networks and min(networks["results"], key=lambda n: n["errors"]["validation"]["mean"])
    lines = [
        "| samples | number | best prediction: expected at least | at most "
        "| on the published pressures | best network of the table above |",
        "|---|---|---|---|---|---|",
    ]
    for row in record["results"]["sets"]:
        least, most = (_error(row["expected"][side]) for side in ("least", "most"))
        network = _error(best["errors"][row["set"]]) if best else ""
        lines.append(
            f"| {_TITLES[row['set']]} | {row['samples']} | {least} | {most} "
            f"| {_error(row['on_data'])} | {network} |"
        )
    low, high = law["coefficients"]
    draws = settings["chains"] * settings["draws"]
    laws = record["results"]["laws"]
    refits, deviation = law["refitted"], statistics.stdev
    near = "; ".join(f"{x['least']['mean']:.2%} to {x['most']['mean']:.2%}" for x in laws)
    tuned = [row["best_factor"] for row in record["results"]["sets"]]
    factors = " and ".join(f"{f['factor']:.3f}" for f in tuned)
    scaled = " and ".join(f"{f['mean']:.2%}" for f in tuned)
    between = max(row["between_chains"] for row in record["results"]["sets"])
    text = (
        f"Fitted: alpha {law['alpha']:.2f}, tau {law['tau']:.2f} (mean square of what the "
        f"correlations of the signs are off by: {law['mismatch']:.2e}; sampling noise alone: "
        f"{law['noise']:.2e}); coefficients {low:.4f} and {high:.4f}. {draws} fields a sample on "
        f"{settings['cells']} x {settings['cells']} cells; chains differ by {between:.3f} "
        f"({record['results']['sets'][0]['independent']:.3f} for independent draws). What is left "
        f"of the arithmetic: the one factor that suits the pressures best, {factors}, takes the "
        f"errors to {scaled}. Refitted to {len(refits['alpha'])} drawn sets, alpha varies by "
        f"{deviation(refits['alpha']):.2f} and tau by {deviation(refits['tau']):.2f}. One of these "
        f"below, at, and one above the fitted law, on a coarse grid and 16 x 16 points: {near}."
    )
    return "\n".join(lines) + "\n\n" + text


def _error(error: dict[str, float]) -> str:
    return f"{error['mean']:.2%} ± {error['standard']:.2%}"
