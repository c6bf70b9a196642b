"""Make the tables of the README and docs/benchmarks.md from the JSON that the benchmarks wrote.

python benchmarks/page.py            write them
python benchmarks/page.py --check    fail if they are not up to date
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def load(name):
    """The record of a benchmark."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def demo_table():
    """Error, violation and times of each demo."""
    record = load("demos")
    lines = [
        "| demo | output dofs | relative L2 error on unseen samples: mean (worst) | "
        "boundary violation | data, training | finite elements | network, in a batch |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in record["results"]:
        r = row["report"]
        lines.append(
            f"| `{row['demo']}` | {row['dofs']:,} "
            f"| {r['mean_error']:.2%} ({r['largest_error']:.2%}) | {r['boundary_violation']:g} "
            f"| {row['data_seconds']:.0f} s, {row['training_seconds']:.0f} s | "
            f"{1e3 * r['solver_seconds']:.2f} ms | {1e3 * r['network_seconds']:.2f} ms |"
        )
    return "\n".join([*lines, "", f"Measured on {where(record)}."])


def bridge_table():
    """Ratio to Firedrake's torch bridge at each size."""
    record = load("bridge")
    rows = record["results"]
    sizes = sorted({r["dofs"] for r in rows})
    names = list(dict.fromkeys(r["operation"] for r in rows))
    lines = [
        "| batch of 64, times faster than a loop over `firedrake.ml.pytorch` | "
        + " | ".join(f"{n:,} dofs, {d}" for n in sizes for d in ("f32", "f64"))
        + " |",
        "|---" * (1 + 2 * len(sizes)) + "|",
    ]
    for name in names:
        ratio = {(r["dofs"], r["dtype"]): r["ratio"] for r in rows if r["operation"] == name}
        keys = [(n, d) for n in sizes for d in ("float32", "float64")]
        cells = [_short(ratio[key]) if key in ratio else "" for key in keys]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"Measured on {where(record)}."])


def operator_table():
    """Forms and solvers against the peers."""
    record = load("operators")
    rows = [r for r in record["results"] if r["operation"] not in ("memory", "residual of a law")]
    lines = [
        "| 64 samples | dofs | spon, ms a sample | peer | peer, ms a sample | times faster |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        name = r["what"] if r["operation"] == "TensorMesh" else f"{r['operation']}, {r['what']}"
        lines.append(
            f"| {name} | {r['dofs']:,} | {r['ours_ms'] / r['batch']:.3g} | {r['peer']} "
            f"| {r['peer_ms'] / r['batch']:.3g} | {_short(r['ratio'])} |"
        )
    return "\n".join([*lines, "", f"Measured on {where(record)}."])


def backend_table():
    """The torch backend against the native one."""
    record = load("operators")
    lines = [
        "| residual of a law, 64 samples | dofs | torch, ms a sample | native float64, ms a sample "
        "| native over torch | share of the memory bandwidth, torch / native |",
        "|---|---|---|---|---|---|",
    ]
    for r in record["results"]:
        if r["operation"] == "residual of a law":
            lines.append(
                f"| {r['what']} | {r['dofs']:,} | {r['ours_ms'] / r['batch']:.3g} "
                f"| {r['peer_ms'] / r['batch']:.3g} | {r['ratio']:.2f} "
                f"| {r['ours_bandwidth_fraction']:.0%} / {r['peer_bandwidth_fraction']:.0%} |"
            )
    return "\n".join([*lines, "", f"Measured on {where(record)}."])


def memory_table():
    """Growth of the memory over many calls."""
    record = load("operators")
    lines = ["| operator | calls, forward and backward | growth, kB |", "|---|---|---|"]
    for r in record["results"]:
        if r["operation"] == "memory":
            lines.append(f"| {r['what']} | {r['calls']:,} | {r['growth_kb']:,} |")
    return "\n".join(lines)


def physics_table():
    """Training with and without labels."""
    record = load("physics")
    lines = [
        "| training | inputs | epochs | L2 error: mean (worst) | H1 error | training | labels |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in record["results"]:
        if r["part"] == "training":
            lines.append(
                f"| {r['run']} | {r['samples']:,} | {r['epochs']} | {r['L2_mean']:.2%} "
                f"({r['L2_worst']:.2%}) | {r['H1_mean']:.2%} | {r['seconds']:.0f} s "
                f"| {r['label_seconds']:.0f} s |"
            )
    return "\n".join([*lines, "", f"Measured on {where(record)}."])


def conditioning_table():
    """Condition numbers of the two losses."""
    record = load("physics")
    lines = ["| mesh | dofs | dual norm | Euclidean norm |", "|---|---|---|---|"]
    for r in record["results"]:
        if r["part"] == "conditioning":
            lines.append(
                f"| {r['mesh']} | {r['dofs']:,} | {r['dual']:.2f} | {r['euclidean']:.2g} |"
            )
    return "\n".join(lines)


def _short(ratio):
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.2g}"


def where(record):
    """The machine in words."""
    m = record["machine"]
    versions = ", ".join(f"{k} {m['versions'][k]}" for k in ("firedrake", "torch"))
    threads = f"{m['torch_threads']} torch thread(s)"
    return f"{m['cores']} cores of {m['processor']}, {threads}, {versions}"


BLOCKS = {
    "demo-table": demo_table,
    "bridge-table": bridge_table,
    "operator-table": operator_table,
    "backend-table": backend_table,
    "memory-table": memory_table,
    "physics-table": physics_table,
    "conditioning-table": conditioning_table,
}


def filled(text):
    """The text with every block between its markers made anew."""
    for name, make in BLOCKS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = pattern.sub(lambda m, table=make: m.group(1) + table() + "\n" + m.group(2), text)
    return text


def main():
    """Write or check."""
    stale = []
    for path in (ROOT / "README.md", ROOT / "docs" / "benchmarks.md"):
        old = path.read_text()
        new = filled(old)
        if new == old:
            continue
        if "--check" in sys.argv:
            stale.append(path.name)
            continue
        temporary = path.with_suffix(".tmp")
        temporary.write_text(new)
        os.replace(temporary, path)
    if stale:
        sys.exit(f"{', '.join(stale)} not up to date: run python benchmarks/page.py")


if __name__ == "__main__":
    main()
