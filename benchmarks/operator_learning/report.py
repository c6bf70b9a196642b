"""Tables and plots of the comparison, made from its JSON files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from operator_learning import flux_report

__all__ = ["NAMES", "blocks", "draw"]

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"
NAMES = (
    "small_darcy",
    "poisson",
    "poisson_p2",
    "darcy_holes",
    "darcy_holes_two_phase",
    "darcy_flux",
)
_MISSING = "Not measured yet: `python benchmarks/operator_learning/run.py --problem {}`."
# What tells problems of the same title from each other.
_VARIANTS = {"darcy_holes": ", lognormal", "darcy_holes_two_phase": ", two phases"}
_PLAIN = "message passing"
_NONE = 1e-6  # the solution that the others are measured against has no error of its own
# How test sets and measures are called in a table.
_TESTS = {
    "16": "16 x 16",
    "32": "32 x 32, unseen",
    "unseen": "unseen sources",
    "mesh": "mesh of training",
    "refined": "refined twice",
}


def load(name: str) -> dict[str, Any] | None:
    """The record of a problem, None if it was not run."""
    path = RESULTS / f"operator_learning-{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def blocks(where: Callable[[dict[str, Any]], str]) -> dict[str, Callable[[], str]]:
    """Makers of the page's blocks by their names.

    Parameters
    ----------
    where : callable
        From a record to its machine in words.
    """
    found: dict[str, Callable[[], str]] = {
        f"operator-learning-{n}": partial(block, n, where) for n in NAMES
    }
    return {**found, "operator-learning-headline": headline}


def headline() -> str:
    """One row for each problem: our best network by validation, FNO, the other rivals' best."""
    lines = [
        "| problem | our network | weights | relative L2 error | FNO (tuned) | best other rival |",
        "|---|---|---|---|---|---|",
    ]
    for name in NAMES:
        record = load(name)
        if record is None:
            continue
        networks = [n for n in record["results"]["networks"] if n["summary"]["runs"]]
        test = next(iter(record["settings"]["tests"]))

        def best(some: list[dict[str, Any]], test: str = test, named: bool = True) -> str:
            if not some:
                return "not run"
            n = min(some, key=lambda n: n["summary"]["validation"]["mean"])
            error = _percent(n["summary"][test]["error"]["mean"])
            return f"{error} ({n['network']})" if named else error

        ours = [n for n in networks if n["ours"]]
        fno = [n for n in networks if n["network"] == "FNO"]
        others = [n for n in networks if not n["ours"] and n["network"] != "FNO"]
        mine = min(ours, key=lambda n: n["summary"]["validation"]["mean"])
        lines.append(
            f"| {_title(name, record)} | `{mine['network']}` "
            f"| {mine['summary']['weights']:,} | {best(ours, named=False)} "
            f"| {best(fno, named=False)} | {best(others)} |"
        )
    return "\n".join(lines)


def _title(name: str, record: dict[str, Any]) -> str:
    return f"{record['settings']['title']}{_VARIANTS.get(name, '')}"


def block(name: str, where: Callable[[dict[str, Any]], str]) -> str:
    """The picture, the tables and what was spent, for one problem."""
    record = load(name)
    if record is None:
        return _MISSING.format(name)
    parts = [
        f"![errors and costs](images/operator_learning-{name}.png)",
        network_table(record),
        flux_tables(name, record),
        paces(record),
        setting_table(record),
        notes(record),
        solver_table(record),
        floor(record),
        budget(record) + f" Measured on {where(record)}.",
    ]
    return "\n\n".join(p for p in parts if p)


def network_table(record: dict[str, Any]) -> str:
    """Errors and costs of the best setting of each network, the best network first."""
    tests = list(record["settings"]["tests"])
    lines = [
        "| network | weights | "
        + " | ".join(f"error, {_TESTS.get(t, t)}" for t in tests)
        + " | worst sample | training, epochs | memory of training "
        "| inference: in a batch, alone |",
        "|---|---" + "|---" * len(tests) + "|---|---|---|---|",
    ]
    for n in sorted(record["results"]["networks"], key=_key(tests[0])):
        s = n["summary"]
        if not s["runs"]:
            lines.append(f"| {_name(n)} | diverged" + " |" * (len(tests) + 5))
            continue
        errors = [_error(s[t]["error"]) for t in tests]
        worst = max(r["tests"][tests[0]]["error"]["largest"] for r in n["runs"] if r["tests"])
        memory = "" if s["memory_mb"] is None else f"{s['memory_mb']:,.0f} MB"
        lines.append(
            f"| {_name(n)} | {s['weights']:,} | {' | '.join(errors)} | {worst:.1%} "
            f"| {s['cpu_seconds']:.0f} s, {s['epochs']:.0f} | {memory} "
            f"| {s['inference_ms']:.2f} ms, {s['single_ms']:.1f} ms |"
        )
    return "\n".join(lines)


def flux_tables(name: str, record: dict[str, Any]) -> str:
    """What is lost and where particles go, with a picture; nothing for other problems."""
    if not record["results"].get("reference"):
        return ""
    networks = sorted(record["results"]["networks"], key=_key("mesh"))
    parts = [
        flux_report.violation_table(record, networks),
        flux_report.tracer_table(record, networks),
        f"![particles in the predicted flows](images/operator_learning-{name}-tracers.png)",
    ]
    return "\n\n".join(parts)


def paces(record: dict[str, Any]) -> str:
    """`pace` against message passing and against the best rival."""
    rivals = [n for n in record["results"]["networks"]
              if not n["ours"] and n["summary"]["runs"]]  # fmt: skip
    if not rivals:
        return ""
    best = min(rivals, key=lambda n: n["summary"]["validation"]["mean"])["network"]
    return "\n\n".join(filter(None, [pace(record, r) for r in dict.fromkeys([_PLAIN, best])]))


def pace(record: dict[str, Any], rival: str = _PLAIN) -> str:
    """How soon each network is as good on the validation samples as a rival in the end."""
    networks = record["results"]["networks"]
    ends = [n["summary"]["validation"]["mean"] for n in networks
            if n["network"] == rival and n["summary"]["runs"]]  # fmt: skip
    if not ends:
        return ""
    found = []
    for n in networks:
        # A schedule that is still at a high rate shows an error above what it could have been.
        times = [
            min((t for t, e in r["curve"] if e <= ends[0]), default=math.inf) for r in n["runs"]
        ]
        slowest = max(times)
        if n["network"] != rival and slowest < math.inf:
            found.append((slowest, f"{_name(n)} {slowest:.0f} s"))
    if not found:
        return f"None reaches the validation error of {rival}, {_percent(ends[0])}."
    return (
        f"The validation error that {rival} ends with, {_percent(ends[0])}, is reached with every "
        f"seed after: {', '.join(text for _, text in sorted(found))} (looks are a twelfth of the "
        "budget apart)."
    )


def setting_table(record: dict[str, Any]) -> str:
    """What was tried for each network, and what was best."""
    lines = [
        "| network | settings | validation errors of the tuning runs | the best setting |",
        "|---|---|---|---|",
    ]
    for n in record["results"]["networks"]:
        found = sorted(t["validation"] for t in n["tried"] if t["validation"] is not None)
        lines.append(
            f"| {_name(n)} | {len(n['tried'])} | {_percent(found[0])} to {_percent(found[-1])} "
            f"| {_setting(n['best'])} |"
        )
    return "\n".join(lines)


def notes(record: dict[str, Any]) -> str:
    """What a reader should know of each network."""
    found = [f"{_name(n)}: {n['note']}" for n in record["results"]["networks"] if n["note"]]
    mixed = [_name(n) for n in record["results"]["networks"] if len(_states(n)) > 1]
    text = f"{'; '.join(found)}." if found else ""
    if mixed:
        text += f" Runs of {', '.join(mixed)} were made by several states of the code."
    return text


def _states(network: dict[str, Any]) -> set[str]:
    return {r["code"] for r in (*network["tried"], *network["runs"]) if "code" in r}


def solver_table(record: dict[str, Any]) -> str:
    """Finite elements on several meshes."""
    rows = record["results"]["solvers"]
    if not rows:
        return ""
    lines = [
        "| finite elements | mesh | dofs | error | a sample, all costs | after the set-up |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        mesh = r["mesh"] + (f", test {_TESTS[r['test']]}" if "test" in r else "")
        error = _percent(r["error"]) if r["error"] > _NONE else "none: what is learned"
        lines.append(
            f"| {r['solver']} | {mesh} | {r['dofs']:,} | {error} | {r['ms']:.3g} ms "
            f"| {r['solve_ms']:.3g} ms |"
        )
    return "\n".join(lines)


def floor(record: dict[str, Any]) -> str:
    """What the space is off by, apart from the networks."""
    f = record["results"]["floors"]
    if not f:
        return ""
    if "points" in f:
        return (
            "What the rivals' own values cannot represent of the true fluxes: "
            f"{_percent(f['points'])} at the vertices, {_percent(f['pixels'])} on the image."
        )
    text = (
        f"Floor of the space: against a reference ({f['reference']}) the best approximation is off "
        f"by {_percent(f['best_approximation'])}, the finite element solution, which the networks "
        f"learn, by {_percent(f['finite_elements'])}."
    )
    whole = [
        f"{n['network']} {_error(s['against_reference'])}"
        for n in record["results"]["networks"]
        for s in n["summary"].values()
        if isinstance(s, dict) and "against_reference" in s
    ]
    return text + (f" Networks against the reference: {', '.join(whole)}." if whole else "")


def budget(record: dict[str, Any]) -> str:
    """What each network could spend."""
    s = record["settings"]
    return (
        f"{s['train']:,} training samples, {s['validation']} for validation, "
        f"{', '.join(f'{n} of test {k!r}' for k, n in s['tests'].items())}; "
        f"{s['seconds']:g} CPU seconds of training (at most {s['epochs_at_most']} epochs) for each "
        f"of {len(s['seeds'])} seeds, {s['tuning_share']:.0%} of both for each tuning run."
    )


def _key(test: str) -> Callable[[dict[str, Any]], float]:
    def key(network: dict[str, Any]) -> float:
        found = network["summary"].get(test)
        return float("inf") if found is None else float(found["error"]["mean"])

    return key


def _name(network: dict[str, Any]) -> str:
    return f"**{network['network']}**" if network["ours"] else str(network["network"])


def _error(spread: dict[str, float]) -> str:
    return f"{_percent(spread['mean'])} ± {_percent(spread['deviation'])}"


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"


def _setting(setting: dict[str, Any]) -> str:
    parts = [
        ", ".join(f"{k} {v}" for k, v in setting[part].items() if v is not None)
        for part in ("model", "training")
    ]
    return "; ".join(parts)


# ---- plots -------------------------------------------------------------------------------------


def draw() -> None:
    """One picture for each problem that was run."""
    for name in NAMES:
        record = load(name)
        if record is not None and record["results"]["networks"]:
            picture(name, record, IMAGES / f"operator_learning-{name}.png")
            if record["results"].get("reference"):
                path = IMAGES / f"operator_learning-{name}-tracers.png"
                networks = sorted(record["results"]["networks"], key=_key("mesh"))
                flux_report.tracer_picture(record, networks, path)


def picture(name: str, record: dict[str, Any], path: Path) -> None:
    """Errors of all networks; against training time, weights and the time of a sample."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tests = list(record["settings"]["tests"])
    networks = [n for n in record["results"]["networks"] if n["summary"]["runs"]]
    networks.sort(key=_key(tests[0]), reverse=True)
    looks = {
        n["network"]: {"color": f"C{i % 10}", "marker": "o" if n["ours"] else "s"}
        for i, n in enumerate(networks)
    }
    figure, axes = plt.subplots(2, 2, figsize=(12, 8.5), layout="constrained")
    _draw_errors(axes[0, 0], networks, tests, looks)
    _draw_training(axes[0, 1], networks, looks)
    _draw_weights(axes[1, 0], networks, tests[0], looks)
    _draw_times(axes[1, 1], networks, record["results"]["solvers"], tests[0], looks)
    for axis in axes.flat:
        axis.grid(alpha=0.3, which="both")
    figure.suptitle(f"{_title(name, record)}: relative L2 error, %")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    figure.savefig(temporary, dpi=100, format="png")
    plt.close(figure)
    os.replace(temporary, path)


def _draw_errors(axis: Any, networks: Any, tests: list[str], looks: Any) -> None:
    offsets = [0.0] if len(tests) == 1 else [-0.12, 0.12]
    for i, n in enumerate(networks):
        for test, offset, filled in zip(tests, offsets, (True, False), strict=False):
            e = n["summary"][test]["error"]
            look = looks[n["network"]]
            axis.errorbar(
                100 * e["mean"], i - offset, xerr=100 * e["deviation"], capsize=3, ms=7,
                mfc=look["color"] if filled else "white", **look,
            )  # fmt: skip
    axis.set_yticks(range(len(networks)), [n["network"] for n in networks])
    axis.set_xscale("log")
    _plain_numbers(axis.xaxis)
    shown = ", ".join(
        f"{kind}: {_TESTS.get(t, t)}" for kind, t in zip(("filled", "open"), tests, strict=False)
    )
    axis.set_xlabel(f"test error: mean, deviation of the seeds ({shown})", fontsize=9)


def _draw_training(axis: Any, networks: Any, looks: Any) -> None:
    for n in networks:
        for i, r in enumerate(n["runs"]):
            if len(r["curve"]) > 1:
                # The look before the first step would make the axis long: not before a set-up that
                # took a hundredth of the budget.
                last = r["curve"][-1][0]
                seconds, errors = zip(*(c for c in r["curve"] if c[0] > 0.01 * last), strict=True)
                label = n["network"] if i == 0 else None
                axis.loglog(
                    seconds, [100 * e for e in errors], lw=1.2, label=label,
                    color=looks[n["network"]]["color"], ls="-" if n["ours"] else "--",
                )  # fmt: skip
    _plain_numbers(axis.xaxis)
    axis.set_xlabel("CPU seconds of training (all seeds; validation error on the way)", fontsize=9)
    _plain_numbers(axis.yaxis)
    axis.legend(fontsize=8, ncols=2)


def _draw_weights(axis: Any, networks: Any, test: str, looks: Any) -> None:
    from matplotlib.ticker import EngFormatter

    for n in networks:
        look, best = looks[n["network"]], n["summary"]
        tried = [t for t in n["tried"] if t["validation"] is not None]
        axis.scatter(
            [t["weights"] for t in tried], [100 * t["validation"] for t in tried],
            s=14, alpha=0.5, **look,
        )  # fmt: skip
        e = best[test]["error"]
        axis.errorbar(
            best["weights"], 100 * e["mean"], yerr=100 * e["deviation"], ms=9, capsize=3, **look
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    _plain_numbers(axis.xaxis, EngFormatter(sep=""))
    _plain_numbers(axis.yaxis)
    axis.set_xlabel("weights (small: validation error of the tuning runs; large: test)", fontsize=9)


def _draw_times(axis: Any, networks: Any, solvers: Any, test: str, looks: Any) -> None:
    for n in networks:
        e = n["summary"][test]["error"]
        axis.errorbar(
            n["summary"]["inference_ms"], 100 * e["mean"], yerr=100 * e["deviation"], ms=9,
            capsize=3, **looks[n["network"]],
        )  # fmt: skip
    kinds = dict.fromkeys(r["solver"] for r in solvers)
    for kind, style in zip(kinds, ("k.-", "k.:", "k.--"), strict=False):
        rows = [r for r in solvers if r["solver"] == kind and r["error"] > _NONE]
        rows = [r for r in rows if r.get("test", test) == test]
        if rows:
            errors = [100 * r["error"] for r in rows]
            axis.plot([r["ms"] for r in rows], errors, style, label=kind)
    axis.set_xscale("log")
    axis.set_yscale("log")
    _plain_numbers(axis.yaxis)
    _plain_numbers(axis.xaxis)
    axis.set_xlabel("CPU ms a sample in a batch; finite elements on several meshes", fontsize=9)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)


def _plain_numbers(axis: Any, form: Any = "{x:g}") -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_data_interval()
    subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if high < 30 * low else (1.0, 2.0, 5.0)
    if high > 300 * low:
        subs = (1.0,) if high > 3000 * low else (1.0, 3.0)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(form)
    axis.set_minor_formatter(NullFormatter())
