"""What is lost in predicted fluxes, and what particles do in them: tables and a picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["tracer_picture", "tracer_table", "violation_table"]

Record = dict[str, Any]
_TEST = "mesh"
_TRUE = "*finite elements*"
_SHARES = {
    "right": ("leaves by the outflow", "C0", ""),
    "walls": ("through a wall or a hole", "C3", "o"),
    "inside": ("never leaves", "black", "x"),
    "left": ("back through the inflow", "C1", "s"),
}


def violation_table(record: Record, networks: list[Record]) -> str:
    """Sources, leaks and balance of each network."""
    columns = {
        "cell_outflow": "outflow of a cell: mean",
        "cell_outflow_largest": "largest",
        "wall_flux": "through walls and holes",
        "wall_trace": "largest normal trace there",
        "imbalance": "outflow against inflow",
        "projected": "error after projection",
    }
    return _table(record, networks, columns, _number, "fluxes")


def tracer_table(record: Record, networks: list[Record]) -> str:
    """Where particles go, and when."""
    columns = {
        "tracers_out": "leave by the outflow",
        "tracers_walls": "through walls and holes",
        "tracers_back": "back through the inflow",
        "tracers_inside": "never",
        "arrival_distance": "distance at the outflow",
        "travel_time": "difference of travel times",
    }
    return _table(record, networks, columns, _short, "particles")


def _table(
    record: Record, networks: list[Record], columns: dict[str, str], text: Any, first: str
) -> str:
    head = f"| {first} | {' | '.join(columns.values())} |"
    lines = [head, "|---" * (1 + len(columns)) + "|"]
    for n in networks:
        found = n["summary"].get(_TEST)
        if found is not None:
            name = f"**{n['network']}**" if n["ours"] else n["network"]
            cells = [text(c, found[c]["mean"] if c in found else None) for c in columns]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    true = record["results"]["reference"]["measures"]
    lines.append(f"| {_TRUE} | {' | '.join(text(c, true[c]['mean']) for c in columns)} |")
    return "\n".join(lines)


def _number(measure: str, value: float | None) -> str:
    if value is None:
        return ""
    if measure == "projected" and value < 1e-6:
        return "none"
    return f"{value:.1e}" if 0 < value < 1e-4 else f"{100 * value:.3g}%"


def _short(measure: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if measure == "arrival_distance" else f"{100 * value:.1f}%"


def tracer_picture(record: Record, networks: list[Record], path: Path) -> None:
    """A panel for the true flux and for that of each network, first seed, first test sample."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.collections import LineCollection
    from matplotlib.lines import Line2D
    from PIL import Image

    true = record["results"]["reference"]["shown"]
    shown = {"finite elements": true}
    for n in networks:
        run = next((r for r in n["runs"] if "shown" in r), None)
        if run is not None:
            shown[f"{n['network']}, error {100 * n['summary'][_TEST]['error']['mean']:.3g}%"] = run[
                "shown"
            ]
    outline = [_points(line) for line in true["outline"]]
    rows = (len(shown) + 1) // 2
    figure, axes = plt.subplots(rows, 2, figsize=(11, 2.75 * rows), dpi=80, layout="constrained")
    for axis in axes.flat[len(shown) :]:
        axis.remove()
    for axis, (title, flow) in zip(axes.flat, shown.items(), strict=False):
        axis.add_collection(LineCollection(outline, colors="0.4", capstyle="round"))
        for line, end in zip(flow["paths"], flow["ends"], strict=True):
            points, kind = _points(line), _kind(end)
            _, color, marker = _SHARES[kind]
            axis.plot(*zip(*points, strict=True), color=color, lw=0.9)
            if marker:
                axis.plot(*points[-1], marker, color=color, ms=4.5, mew=1.3, zorder=3)
        out = sum(end == "right" for end in flow["ends"])
        axis.set_title(f"{title}: {out} of {len(flow['ends'])} leave by the outflow", fontsize=9)
        axis.set(aspect="equal", xlim=(-0.03, 2.03), ylim=(-0.03, 1.03))
        axis.axis("off")
    handles = [
        Line2D([], [], color=color, marker=marker or None, ms=5, lw=1, label=label)
        for label, color, marker in _SHARES.values()
    ]
    figure.legend(handles=handles, ncols=len(handles), loc="outside lower center", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.canvas.draw()
    canvas: Any = figure.canvas
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    plt.close(figure)
    temporary = path.with_suffix(".tmp")
    # A palette: a third of the size.
    drawn.quantize(64, Image.Quantize.MAXCOVERAGE).save(temporary, format="png", optimize=True)
    os.replace(temporary, path)


def _kind(end: str) -> str:
    return end if end in _SHARES else "walls"


def _points(text: str) -> list[tuple[float, float]]:
    numbers = [int(n) / 1000 for n in text.split()]
    return list(zip(numbers[0::2], numbers[1::2], strict=True))
