"""``evaluate``: a surrogate against solves of its cell."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from tqdm import tqdm

from fe_ol.cli.cells import (
    Boundary,
    CellMesh,
    Degree,
    Family,
    Laws,
    Plane,
    Quiet,
    build_rve,
    say,
    write_json,
)
from fe_ol.modes import voigt_weights
from fe_ol.rve import RVE, Solutions
from fe_ol.snapshots import sample_strains
from fe_ol.surrogates.kinds import load
from fe_ol.voigt import rest_strain, stress_names
from spon.plotting import histogram

__all__ = ["evaluate"]


def evaluate(
    surrogate: Annotated[Path, typer.Argument(help="What the command fit made.")],
    mesh: CellMesh,
    laws: Laws,
    n: Annotated[int, typer.Option("-n", "--number", help="Number of strains.")] = 50,
    radius: Annotated[
        float | None, typer.Option(help="Half the edge of their box; that of the snapshots.")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of the strains; another one than that of the snapshots.")
    ] = 1,
    degree: Degree = None,
    family: Family = None,
    boundary: Boundary = None,
    plane: Plane = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON file to make, with a picture of the errors beside it.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Solve a cell for new strains and compare: relative errors of stress, tangent and fields.

    Errors are relative to the size of the same quantity for the same strain: stresses in the
    Euclidean norm, local fields in L2, fluctuations by their strains. Equilibrium is the size of
    the nodal forces of the stress field, relative to that with random signs at the points.
    """
    cell = build_rve(mesh, laws, degree=degree, family=family, boundary=boundary, plane=plane)
    found: Any = load(surrogate, cell)
    reach = found.radius if radius is None else radius
    reference = rest_strain(cell.dim, cell.finite)
    strain = reference + sample_strains(n, len(reference), reach, seed)
    parts, solving = [], 0.0
    for row in tqdm(strain, "cells", disable=quiet):
        start = time.perf_counter()
        truth = cell.solve(row[None])
        solving += time.perf_counter() - start
        # One by one, since local fields of many cells are large.
        parts.append(_compare(cell, found, row[None], truth))
    errors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    start = time.perf_counter()
    found(strain)
    answering = time.perf_counter() - start
    rows = {
        name: {"mean": float(e.mean()), "median": float(e.median()), "largest": float(e.max())}
        for name, e in errors.items()
    }
    say(_table(rows), quiet)
    say(f"seconds a strain: cell {solving / n:.3g}, surrogate {answering / n:.3g}", quiet)
    if out is None:
        return
    report = {
        "kind": type(found).__name__,
        "cell": repr(cell),
        "n": n,
        "radius": reach,
        "seed": seed,
        "errors": rows,
        "cell_seconds": solving / n,
        "surrogate_seconds": answering / n,
    }
    write_json(out, report)
    shown = {name: errors[name] for name in ("stress", "tangent")}
    histogram(shown, out.with_suffix(".png"), title=type(found).__name__)
    say(f"written: {out}, {out.with_suffix('.png')}", quiet)


def _compare(cell: RVE, surrogate: Any, strain: Tensor, truth: Solutions) -> dict[str, Tensor]:
    """Errors, each of shape (n,)."""
    assert truth.tangent is not None
    response = surrogate(strain)
    out = {
        "stress": _relative(response.stress, truth.macro_stress),
        "tangent": _relative(response.tangent, truth.tangent),
    }
    if hasattr(surrogate, "estimate"):
        out["estimated stress error"] = surrogate.estimate(strain)
    if getattr(surrogate, "modes", True) is None or not hasattr(surrogate, "fields"):
        return out
    fields, w = surrogate.fields(strain), cell.weights[:, None]
    for i, name in enumerate(stress_names(cell.dim, cell.finite)):
        parts = (x[..., i : i + 1] * w.sqrt() for x in (fields.stress, truth.stress))
        out[f"local {name}"] = _relative(*parts)
    metric = (w * voigt_weights(cell.dim, cell.finite, True)).sqrt()
    gradients = (cell.gradient(x) * metric for x in (fields.fluctuation, truth.fluctuation))
    out["fluctuation"] = _relative(*gradients)
    generator = torch.Generator().manual_seed(0)
    signs = 2.0 * torch.randint(0, 2, (len(w), 1), generator=generator) - 1
    forces = cell.divergence(fields.stress).norm(dim=1)
    scale = cell.divergence(fields.stress * signs.double()).norm(dim=1)
    out["equilibrium"] = forces / scale.clamp_min(1e-300)
    return out


def _relative(x: Tensor, exact: Tensor) -> Tensor:
    size = exact.flatten(1).norm(dim=1)
    return (x - exact).flatten(1).norm(dim=1) / size.clamp_min(1e-300)


def _table(rows: dict[str, dict[str, float]]) -> str:
    lines = [f"{'relative error':24s} {'mean':>10s} {'median':>10s} {'largest':>10s}"]
    for name, row in rows.items():
        lines.append(f"{name:24s}" + "".join(f" {row[k]:10.3e}" for k in row))
    return "\n".join(lines)
