"""Make the tables of the README and of docs/ from the JSON that the benchmarks wrote.

python benchmarks/page.py            write them
python benchmarks/page.py --check    fail if they are not up to date
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

from operator_learning import cost_report, limit_report, report

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def load(name):
    """The record of a benchmark."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def demo_table():
    """Error, violation and times of each demo."""
    record = load("demos")
    _require_one_state(record["results"])
    lines = [
        "| demo | output dofs | relative L2 error on unseen samples: mean (worst) | "
        "boundary violation | data, training | finite elements | network, in a batch |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in record["results"]:
        r = row["report"]
        lines.append(
            f"| `{row['demo']}` | {row['dofs']:,} "
            f"| {100 * r['mean_error']:.3g}% ({100 * r['largest_error']:.3g}%) "
            f"| {r['boundary_violation']:g} "
            f"| {row['data_seconds']:.0f} s, {row['training_seconds']:.0f} s | "
            f"{1e3 * r['solver_seconds']:.2f} ms | {1e3 * r['network_seconds']:.2f} ms |"
        )
    return "\n".join([*lines, "", f"Measured on {where(record)}."])


def _require_one_state(rows):
    codes = {row["demo"]: row.get("code") for row in rows}
    # Rows of before the field say nothing.
    if None not in codes.values() and len(set(codes.values())) > 1:
        listed = ", ".join(f"{demo}: {code}" for demo, code in codes.items())
        sys.exit(
            f"The rows of demos.json were made with different sources of spon ({listed}): run "
            "python benchmarks/demos.py without --only."
        )


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


def beam_table():
    """Errors of the first guesses for the beam, and Newton's iterations from them."""
    record = load("beam")
    (r,) = record["results"]
    n, warm = r["unseen"], r["iterations_from_network"]
    ways = {"the network": warm, **r["iterations_from_zero"]}
    lines = [
        f"Relative error of {n} unseen displacements: L2 {r['L2_mean']:.2%} (worst "
        f"{r['L2_worst']:.2%}), H1 {r['H1_mean']:.2%} (worst {r['H1_worst']:.2%}); violation of "
        f"the clamped end {r['boundary_violation']:g}; deflection of the tip "
        f"{r['deflection_mean']:.2f} on average, {r['deflection_least']:.2f} at least. Training on "
        f"{r['inputs']:,} loads, {r['epochs']} epochs, {r['seconds']:.0f} s. At most half of the "
        f"fewest iterations from zero: in {r['at_most_half']} of {n} samples.",
        "",
        f"| Newton's method from | iterations: mean (most) | without a solution, of {n} |",
        "|---|---|---|",
    ]
    for name, counts in ways.items():
        found = [i for i in counts if i is not None]
        start = name if name == "the network" else f"zero, {name}"
        lines.append(
            f"| {start} | {sum(found) / len(found):.1f} ({max(found)}) | {n - len(found)} |"
        )
    return "\n".join([*lines, "", f"Measured on {where(record)}."])


def surrogate_table():
    """Errors of all surrogates of the three cells."""
    record = load("surrogates-accuracy")
    lines = [
        "| cell | surrogate | stress: mean (largest) | tangent: mean | s_xx, s_yy, s_xy: median "
        "| u_x, u_y: median | out of equilibrium | fit | a point, in a batch |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in record["results"]:
        fields = [""] * 3
        if "s_xx" in r:
            fields = [
                ", ".join(f"{r[k]:.2%}" for k in ("s_xx", "s_yy", "s_xy")),
                f"{r['u_x']:.2%}, {r['u_y']:.2%}",
                f"{r['equilibrium']:.0e}",
            ]
        lines.append(
            f"| {r['cell']}, {r['dofs']:,} dofs | {r['surrogate']} | {r['stress']['mean']:.4%} "
            f"({r['stress']['largest']:.3%}) | {r['tangent']['mean']:.3%} | "
            + " | ".join(fields)
            + f" | {r['fit_seconds']:.0f} s | {r['microseconds_a_point']:.0f} µs |"
        )
    return "\n".join([*lines, "", f"Measured on {where(record)}."])


def ablation_table():
    """What makes EquiNO good."""
    record = load("surrogates-ablation")
    lines = [
        "| EquiNO of RVE1 | stress: mean (largest) | tangent: mean "
        "| one correction step, stress: mean (largest) |",
        "|---|---|---|---|",
    ]
    for r in record["results"]:
        s, one = r["stress"], r["one_step"]
        lines.append(
            f"| {r['surrogate']} | {s['mean']:.3%} ({s['largest']:.2%}) "
            f"| {r['tangent']['mean']:.3%} | {one['mean']:.3%} ({one['largest']:.2%}) |"
        )
    return "\n".join([*lines, "", f"Measured on {where(record)}."])


def fe2_table():
    """FE² against FE-OL."""
    record = load("fe2")
    lines = [
        "| problem | points | largest strain | of FE-OL for each answer (limit of arithmetic) "
        "| iterations of the last step | displacement, reaction off by | dofs of a cell "
        "| stress at 40 points: mean (largest) error | FE², an answer | FE², ten steps "
        "| FE-OL, ten steps | times faster |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in record["results"]:
        end = r["steps"][-1]
        for i, c in enumerate(r["cells"]):
            left = [
                f"{r['problem']} of {r['cell']}",
                f"{r['points']:,}",
                f"{r['largest_strain']:.3f}",
                f"{r['fe_ol_microseconds_a_point']:.0f} µs "
                f"({r['arithmetic_limit_microseconds']:.1f} µs)",
                f"{end['iterations_fe_ol']}, FE² {end['iterations_fe2']}",
                f"{end['displacement_error']:.3%}, {end['reaction_error']:.3%}",
            ]
            cells = left if i == 0 else [""] * len(left)
            cells += [
                f"{c['micro_dofs']:,}",
                f"{c['stress_error_at_points']['mean']:.3%} "
                f"({c['stress_error_at_points']['largest']:.2%})",
                f"{1e3 * c['answer_seconds']:.0f} ms",
                f"{c['fe2_seconds_scaled'] / 3600:.1f} h",
                f"{c['fe_ol_seconds']:.2f} s",
                _short(c["times_faster"]),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"Measured on {where(record)}."])


def fe2_headline():
    """FE² against FE-OL, the finest cells alone."""
    record = load("fe2")
    lines = [
        "| ten load steps, plane strain | points | dofs of a cell "
        "| full FE² (scaled from 40 points) | with EquiNO | times faster | displacement off by |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in record["results"]:
        c = r["cells"][-1]
        lines.append(
            f"| {PROBLEMS[r['problem']]} | {r['points']:,} | {c['micro_dofs']:,} "
            f"| {c['fe2_seconds_scaled'] / 3600:.1f} h | {c['fe_ol_seconds']:.1f} s "
            f"| {_short(c['times_faster'])} | {r['steps'][-1]['displacement_error']:.3%}* |"
        )
    lines += [
        "",
        "\\* Against full FE² with the cells of `meshes/`, which have a quarter to a third of the "
        f"dofs. Measured on {where(record)}.",
    ]
    return "\n".join(lines)


def guarded_table():
    """A surrogate beyond its box."""
    record = load("guarded")
    lines = [
        "| perforated plate | displacement, reaction off by | stress at the 100 farthest points: "
        "largest error | points with the cell, at the end | solves of cells | whole run |",
        "|---|---|---|---|---|---|",
    ]
    for r in record["results"]:
        if "failure" in r:
            lines.append(f"| {r['material']} | no solution: {r['failure']} | | | | |")
            continue
        stress = r.get("largest_stress_error")
        share = r.get("share_of_points_at_the_end")
        lines.append(
            f"| {r['material']} | {r['displacement_error']:.3%}, {r['reaction_error']:.3%} "
            f"| {'' if stress is None else f'{stress:.2%}'} "
            f"| {'' if share is None else f'{share:.2%}'} "
            f"| {r.get('solves', 0):,} | {r['seconds']:.0f} s |"
        )
    s = record["settings"]
    lines += ["", f"The strains reach {s['reach']:.2f} times the box. Measured on {where(record)}."]
    return "\n".join(lines)


def solid_table():
    """The chain in three dimensions."""
    record = load("solid")
    s = record["settings"]
    lines = [
        f"A cell of {s['micro_dofs']:,} dofs; {s['snapshots']} snapshots "
        f"({s['sampling_seconds']:.0f} s), {s['modes']} modes; a solve with tangent takes "
        f"{s['solve_seconds']:.1f} s.",
        "",
        "| surrogate | stress: mean (largest) | tangent: mean | local stress: median "
        "| out of equilibrium | fit |",
        "|---|---|---|---|---|---|",
    ]
    for r in record["results"]:
        if r["part"] == "cell":
            lines.append(
                f"| {r['surrogate']} | {r['stress']['mean']:.3%} ({r['stress']['largest']:.2%}) "
                f"| {r['tangent']['mean']:.3%} | {r['local_stress_median']:.2%} "
                f"| {r['equilibrium']:.0e} | {r['fit_seconds']:.0f} s |"
            )
    lines += [
        "",
        "| cantilever | points | largest component of F - I | five steps | iterations | stress at "
        "12 points: mean (largest) | times faster than nested solves |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in record["results"]:
        if r["part"] == "cantilever":
            e = r["stress_at_points"]
            lines.append(
                f"| {r['surrogate']} | {r['points']:,} | {r['largest_component']:.3f} "
                f"| {r['seconds']:.1f} s | {', '.join(map(str, r['iterations']))} "
                f"| {e['mean']:.3%} ({e['largest']:.2%}) | {_short(r['times_faster'])} |"
            )
    return "\n".join([*lines, "", f"Measured on {where(record)}."])


def identification_table():
    """The stiffness of a fibre from displacements."""
    record = load("identification")
    r, true = record["results"], record["results"]["true"]
    lines = [
        f"True modulus {true:,.0f}, start {r['start']:,.0f}, noise "
        f"{record['settings']['noise']:.0%}.",
        "",
        "| body | through | modulus found | standard error from the noise | evaluations "
        "| seconds |",
        "|---|---|---|---|---|---|",
    ]
    for body in ("bar", "cook"):
        part = r[body]
        for way in ("FE-OL", "FE²"):
            if way in part:
                found = part[way]
                lines.append(
                    f"| {body}, {part['points']:,} points | {way} | {found['G']:,.1f} "
                    f"| {part['standard_error']:.1f} | {found['evaluations']} "
                    f"| {found['seconds']:.1f} |"
                )
    lines += [
        "",
        f"Gradients through FE-OL and FE² differ by {r['bar']['gradient_difference']:.1e}; Taylor "
        f"rates are at least {min(r['bar']['taylor_rates'] + r['cook']['taylor_rates']):.2f}. "
        f"Measured on {where(record)}.",
    ]
    return "\n".join(lines)


def processor_table():
    """Every processor on two small problems."""
    record = load("processors")
    lines = [
        "| problem | processor | error | refined | weights | steps | a step of 20 samples |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in record["results"]:
        refined = r["error_refined"]
        lines.append(
            f"| {r['problem']} | {r['processor']} | {r['error']:.2%} "
            f"| {'' if refined is None else f'{refined:.2%}'} | {r['weights']:,} | {r['steps']:,} "
            f"| {r['step_ms']:.0f} ms |"
        )
        if r is _last(record["results"], r["problem"]):
            apart = record["settings"]["solutions_apart"][r["problem"]]
            lines.append(f"| {r['problem']} | (the solutions) | | {apart:.2%} | | | |")
    seconds = record["settings"]["seconds"]
    end = f"{seconds:.0f} s of processor time for each training. Measured on {where(record)}."
    return "\n".join([*lines, "", end])


def _last(rows, problem):
    return [r for r in rows if r["problem"] == problem][-1]


def _short(ratio):
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.2g}"


def merged_table():
    """Small meshes side by side against one by one."""
    record = load("merged_meshes")
    rows = record["results"]
    sizes = list(dict.fromkeys((r["meshes"], r["nodes"]) for r in rows))
    heads = [f"{meshes} meshes of {nodes:,} nodes" for meshes, nodes in sizes]
    lines = [
        "| one sample on each, times faster side by side | " + " | ".join(heads) + " |",
        "|---" * (1 + len(sizes)) + "|",
    ]
    for name in dict.fromkeys(r["processor"] for r in rows):
        ratio = {(r["meshes"], r["nodes"]): r["ratio"] for r in rows if r["processor"] == name}
        cells = [f"{ratio[size]:.2f}" for size in sizes]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"Measured on {where(record)}."])


def promises_table():
    """Making decoders in 3D, and what they add to a step."""
    record = load("promises")
    lines = [
        "| promise | cells | dofs | made in | with SuperLU | a step, for each sample "
        "| without the promise |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in record["results"]:
        superlu = f"{r['superlu_s']:.3g} s" if "superlu_s" in r else ""
        lines.append(
            f"| {r['promise']} | {r['cells']:,} | {r['dofs']:,} | {r['setup_s']:.3g} s "
            f"| {superlu} | {r['ms']:.3g} ms | {r['without_ms']:.3g} ms |"
        )
    return "\n".join([*lines, "", f"Measured on {where(record)}."])


def where(record):
    """The machine in words."""
    m = record["machine"]
    versions = ", ".join(f"{k} {m['versions'][k]}" for k in ("firedrake", "torch"))
    threads = f"{m['torch_threads']} torch thread(s)"
    return f"{m['cores']} cores of {m['processor']}, {threads}, {versions}"


PROBLEMS = {"cook": "Cook's membrane", "lprofile": "L-profile", "holes": "plate with holes"}

BLOCKS = {
    "demo-table": demo_table,
    "bridge-table": bridge_table,
    "operator-table": operator_table,
    "backend-table": backend_table,
    "memory-table": memory_table,
    "physics-table": physics_table,
    "conditioning-table": conditioning_table,
    "beam-table": beam_table,
    "surrogate-table": surrogate_table,
    "ablation-table": ablation_table,
    "fe2-table": fe2_table,
    "fe2-headline": fe2_headline,
    "guarded-table": guarded_table,
    "solid-table": solid_table,
    "identification-table": identification_table,
    "merged-table": merged_table,
    "promises-table": promises_table,
    **report.blocks(where),
    **cost_report.blocks(where),
    **limit_report.blocks(where),
    "processor-table": processor_table,
}


def filled(text):
    """The text with every block between its markers made anew."""
    for name, make in BLOCKS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = pattern.sub(lambda m, table=make: m.group(1) + table() + "\n" + m.group(2), text)
    return text


def draw_curves():
    """The error of each surrogate against the number of snapshots and of modes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    record = load("surrogates-curves")
    rows, chosen = record["results"], record["settings"]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    names = dict.fromkeys(r["surrogate"] for r in rows)
    colours = {name: f"C{i}" for i, name in enumerate(names)}
    for axis, along, across in zip(
        axes, ("snapshots", "modes"), ("modes", "snapshots"), strict=True
    ):
        for name, colour in colours.items():
            found = sorted(
                (r[along], r["stress"]["mean"], r["stress"]["largest"])
                for r in rows
                if r["surrogate"] == name and r[across] in (None, chosen[f"fixed_{across}"])
            )
            if any(x is None for x, *_ in found):
                ((_, mean, _),) = found
                axis.axhline(100 * mean, label=name, color=colour, linestyle=":")
            elif found:
                x, mean, largest = zip(*found, strict=True)
                axis.loglog(x, [100 * v for v in mean], "o-", color=colour, label=name)
                axis.loglog(x, [100 * v for v in largest], "--", color=colour, lw=0.8)
        axis.set_xlabel(f"{along} ({chosen[f'fixed_{across}']} {across})")
        axis.set_xticks(sorted({r[along] for r in rows if r[along]}))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("error of the stress, %: mean (largest dashed)")
    axes[0].legend(fontsize=8)
    path = ROOT / "docs" / "images" / "surrogate_curves.png"
    figure.savefig(path.with_suffix(".tmp"), dpi=110, format="png")
    os.replace(path.with_suffix(".tmp"), path)


def main():
    """Write or check."""
    stale = []
    if "--check" not in sys.argv:
        draw_curves()
        report.draw()
        cost_report.draw()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
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
