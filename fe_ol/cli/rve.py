"""``rve``: one cell, its stress and tangent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

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
from fe_ol.cli.command import numbers
from fe_ol.macro.fields import draw
from fe_ol.voigt import component_names, strain_size, stress_names
from spon.fem import write_vtk

__all__ = ["rve"]


def rve(
    mesh: CellMesh,
    laws: Laws,
    strain: Annotated[
        list[str],
        typer.Option(
            metavar="E...",
            help="Mean strain, E_xx E_yy 2E_xy in 2D; the word free where --stress is given. "
            "Several times for several solves.",
        ),
    ],
    stress: Annotated[
        list[str] | None,
        typer.Option(
            metavar="S...",
            help="Mean stress in the unit of the moduli; the word free where the strain is given. "
            "Once, or as often as --strain.",
        ),
    ] = None,
    degree: Degree = None,
    family: Family = None,
    boundary: Boundary = None,
    plane: Plane = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for cell.json, and cell.png and cell.pvd of the last solve."),
    ] = None,
    show: Annotated[
        str | None, typer.Option(help="Stress in the picture: xx, xy, ...; the first by default.")
    ] = None,
    deform: Annotated[
        float | None, typer.Option(help="Factor on the displacement in the picture.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Solve a cell: homogenised stress, tangent and iterations; picture and VTK of its fields."""
    cell = build_rve(mesh, laws, degree=degree, family=family, boundary=boundary, plane=plane)
    size = strain_size(cell.dim, cell.finite)
    strains = [_row(text, "--strain", size, bool(stress)) for text in strain]
    stresses = [_row(text, "--stress", size, True) for text in stress or ()]
    if len(stresses) not in (0, 1, len(strains)):
        raise ValueError(f"Got {len(strains)} strains and {len(stresses)} stresses.")
    shown = _component(show, cell)
    solutions = cell.solve(strains, stress=stresses or None)
    names = component_names(cell.dim, cell.finite), stress_names(cell.dim, cell.finite)
    records = []
    for i in range(len(solutions)):
        assert solutions.tangent is not None
        records.append(
            {
                "strain": dict(zip(names[0], solutions.macro_strain[i].tolist(), strict=True)),
                "stress": dict(zip(names[1], solutions.macro_stress[i].tolist(), strict=True)),
                "tangent": solutions.tangent[i].tolist(),
                "iterations": int(solutions.iterations[i]),
                "cutbacks": int(solutions.cutbacks[i]),
            }
        )
        say(_table(records[-1]), quiet)
    if out is None:
        return
    hill = [float(x) for x in cell.hill_mandel(solutions)]
    write_json(
        out / "cell.json", {"cell": repr(cell), "solutions": records, "hill_mandel_errors": hill}
    )
    last = len(solutions) - 1
    u, values = cell.displacement(solutions, last), solutions.stress[last]
    draw(
        u, cell.field(values[:, shown], names[1][shown]), out / "cell.png", names[1][shown], deform
    )
    columns = [cell.field(column, name) for column, name in zip(values.T, names[1], strict=True)]
    write_vtk(out / "cell.pvd", u, *columns)
    say(f"cell.json, cell.png and cell.pvd are in {out}", quiet)


def _row(text: str, option: str, size: int, free: bool) -> list[float | None]:
    values = numbers(text, option, free)
    if len(values) != size:
        raise ValueError(f"{option} of this cell has {size} components, got {len(values)}: {text}.")
    return values


def _component(show: str | None, cell: Any) -> int:
    names = [name[2:] for name in stress_names(cell.dim, cell.finite)]
    if show is None:
        return 0
    if show not in names:
        raise ValueError(f"--show takes one of {names}, got {show!r}.")
    return names.index(show)


def _table(record: dict[str, Any]) -> str:
    lines = [
        "strain   " + "  ".join(f"{k} = {v:.6g}" for k, v in record["strain"].items()),
        "stress   " + "  ".join(f"{k} = {v:.6g}" for k, v in record["stress"].items()),
    ]
    tangent = torch.tensor(record["tangent"])
    for i, row in enumerate(tangent.tolist()):
        lines.append(("tangent  " if i == 0 else " " * 9) + "".join(f"{v:13.6g}" for v in row))
    cut = f", {record['cutbacks']} cut-backs" if record["cutbacks"] else ""
    return "\n".join([*lines, f"{record['iterations']} iterations{cut}", ""])
