"""``fit``: a surrogate of snapshots."""

from __future__ import annotations

import time
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

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
)
from fe_ol.cli.checked import checked, parsed, takes
from fe_ol.cli.pictures import draw_courses
from fe_ol.snapshots import Snapshots
from fe_ol.surrogates.branch import Architecture
from fe_ol.surrogates.export import export, require_format
from fe_ol.surrogates.kinds import KINDS
from fe_ol.surrogates.optimise import Course, Training

__all__ = ["fit"]

_NAMES = {"reduced": "ReducedSolve"} | {
    name.lower(): name for name in KINDS if name != "ReducedSolve"
}
# What the command itself gives, or what no word can be.
_OWN = (
    "rve",
    "snapshots",
    "strain",
    "radius",
    "seed",
    "progress",
    "checkpoint",
    "modes",
    "processor",
)
_EXPORTED = ("EquiNO", "BlackBox")


def fit(
    snapshots: Annotated[Path, typer.Argument(help="What the command sample made.")],
    mesh: CellMesh,
    laws: Laws,
    out: Annotated[Path, typer.Option(help="File to make, such as cell.fe_ol.")],
    kind: Annotated[str, typer.Option(help=", ".join(_NAMES) + ".")] = "equino",
    modes: Annotated[
        int | None, typer.Option(help="Number of modes, for kinds that have some.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            metavar="NAME=VALUE",
            help="Further options of the kind's fit, such as epochs=300 or correction_steps=1; "
            "a wrong one lists them.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights and samples.")] = 0,
    export_to: Annotated[
        Path | None,
        typer.Option(
            "--export",
            help="Write stress and tangent for other codes: a torch.export program, .pt2, or .onnx.",
        ),
    ] = None,
    degree: Degree = None,
    family: Family = None,
    boundary: Boundary = None,
    plane: Plane = None,
    quiet: Quiet = False,
) -> None:
    """Make a surrogate of snapshots, and a picture of its training beside it.

    A training of EquiNO that was stopped goes on when started again. blackbox solves the cell
    again for the strains of the snapshots, or for n=... others; vpionet needs of the snapshots
    only the box.
    """
    if kind.lower() not in _NAMES:
        raise ValueError(f"--kind takes one of {list(_NAMES)}, got {kind!r}.")
    name = _NAMES[kind.lower()]
    options = _options(name, modes, parsed(option or (), "--option"))
    if export_to is not None:
        _require_exportable(name, options, export_to)
    data = Snapshots.load(snapshots)
    cell = build_rve(mesh, laws, degree=degree, family=family, boundary=boundary, plane=plane)
    data.require(cell)
    start = time.perf_counter()
    surrogate = KINDS[name].fit(cell, **_data(name, data, options, seed, quiet, out), **options)
    say(f"{name} of {len(data)} snapshots in {time.perf_counter() - start:.1f} s", quiet)
    surrogate.save(out)
    written = [str(out)]
    courses = _courses(name, surrogate)
    if courses:
        picture = out.with_name(f"{out.stem}.loss.png")
        draw_courses(courses, picture)
        written.append(str(picture))
        for which, course in courses.items():
            say(f"loss of {which}: {course.loss[-1]:.3e}", quiet)
    if export_to is not None:
        export(surrogate, export_to)
        written.append(str(export_to))
    say(f"written: {', '.join(written)}", quiet)


def _options(name: str, modes: int | None, given: dict[str, Any]) -> dict[str, Any]:
    """Options of a kind, checked before the first solve."""
    function = KINDS[name].fit
    further: list[type] = [Training]
    if name == "EquiNO":
        further.append(Architecture)
    hands_on = any(p.kind is p.VAR_KEYWORD for p in signature(function).parameters.values())
    known = takes(function, *(further if hands_on else ()), skip=_OWN)
    options = checked(given, known, f"{name}.fit")
    if modes is not None:
        if "modes" not in takes(KINDS[name].fit):
            raise ValueError(f"{name} has no modes: leave out --modes.")
        options["modes"] = modes
    return options


def _require_exportable(name: str, options: dict[str, Any], path: Path) -> None:
    # export() says the same, but after the training.
    if name not in _EXPORTED:
        raise ValueError(f"--export works for {_EXPORTED}, not for {name}.")
    require_format(path)
    if options.get("correction_steps"):
        raise ValueError("--export writes the network alone: leave out correction_steps.")


def _data(
    name: str, data: Snapshots, options: dict[str, Any], seed: int, quiet: bool, out: Path
) -> dict[str, Any]:
    """What the kind takes of snapshots, seed and progress bars."""
    known = takes(KINDS[name].fit)
    values: dict[str, Any] = {
        "snapshots": data,
        "radius": data.radius,
        "seed": seed,
        "progress": not quiet,
        "checkpoint": f"{out}.training",
    }
    if "n" not in options:
        values["strain"] = data.strain
    return {key: value for key, value in values.items() if key in known}


def _courses(name: str, surrogate: Any) -> dict[str, Course]:
    if hasattr(surrogate, "courses"):
        return dict(surrogate.courses)
    course = getattr(surrogate, "course", None)
    return {} if course is None else {name: course}
