"""``macro``: a body of a law, of cells, or of a surrogate of cells."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from mpi4py import MPI

from fe_ol.cli.cells import Boundary, Degree, Family, Plane, Quiet, build_rve, say, write_json
from fe_ol.cli.command import numbers
from fe_ol.cli.laws import read_laws
from fe_ol.guard_report import GuardReport
from fe_ol.guarded import Guarded
from fe_ol.macro import LoadStepError, MacroProblem, MacroResult, problem_space
from fe_ol.macro.prescribed import prescribed
from fe_ol.materials import PlaneStress
from fe_ol.surrogates.kinds import load
from spon.fem import mesh_tags, read_mesh

__all__ = ["macro"]

_POLICIES = ("fallback", "clamp", "warn", "raise")
_STEPS, _FACTS = "steps.h5", "arguments.json"
_TAG = "TAG is a number, or a name in the mesh file."


def macro(
    mesh: Annotated[Path, typer.Argument(metavar="MESH", help="Mesh of the body.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    cell: Annotated[
        Path | None, typer.Option(help="Surrogate that is the material, made by the command fit.")
    ] = None,
    rve: Annotated[
        Path | None,
        typer.Option(
            help="Mesh of the cell that is the material (full FE²), or that --guard falls back to."
        ),
    ] = None,
    laws: Annotated[
        Path | None,
        typer.Option(help="Laws of the cell; without --rve and --cell those of the body's cells."),
    ] = None,
    clamp: Annotated[
        list[str] | None,
        typer.Option(metavar="TAG...", help=f"Boundary without displacement. {_TAG}"),
    ] = None,
    move: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TAG X Y [Z]",
            help="Displacement of a boundary at the end, in the unit of the mesh; free where it "
            f"may move. {_TAG}",
        ),
    ] = None,
    traction: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TAG X Y [Z]",
            help="Force per area on a boundary at the end, in the unit of the moduli.",
        ),
    ] = None,
    body_force: Annotated[
        str | None,
        typer.Option("--body-force", metavar="X Y [Z]", help="Force per volume at the end."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Number of equal load steps.")] = 10,
    guard: Annotated[
        str | None,
        typer.Option(
            help=f"What to do where the surrogate is not to be believed: {', '.join(_POLICIES)}. "
            "Needs --cell, --rve and --laws."
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Of the guard: relative error of the homogenised stress.")
    ] = 0.01,
    order: Annotated[int, typer.Option(help="Degree of the body's elements.")] = 2,
    resume: Annotated[
        bool, typer.Option(help="Go on from the steps in the folder, or begin anew.")
    ] = True,
    degree: Degree = None,
    family: Family = None,
    boundary: Boundary = None,
    plane: Plane = None,
    quiet: Quiet = False,
) -> None:
    """Load a body in steps: table, JSON, picture and VTK.

    The material is --cell FILE, a surrogate; --rve MESH --laws FILE, a cell at every point; or
    --laws FILE, laws for the cell tags of the body. Started again, it goes on after the last step
    in the folder. Under mpiexec the body is distributed over the processes, and no picture drawn.
    """
    shape = {"degree": degree, "family": family, "boundary": boundary, "plane": plane}
    clamped = [tag for text in clamp or () for tag in text.split(",")]
    moved = dict(_tagged(text, "--move", True) for text in move or ())
    loads = dict(_tagged(text, "--traction") for text in traction or ())
    words = [*clamped, *moved, *loads]
    wanted = [int(word) if word.isdecimal() else word for word in words]
    body = read_mesh(mesh, required_tags=tuple(wanted))
    known = mesh_tags(mesh, body.topological_dimension - 1)
    tags = {word: int(word) if word.isdecimal() else _named(word, known) for word in words}
    material = _material(cell, rve, laws, guard, tolerance, shape)
    facts = _facts(
        {"MESH": mesh, "--cell": cell, "--rve": rve, "--laws": laws},
        {f"--{name}": value for name, value in shape.items()}
        | {"--clamp": clamp, "--move": move, "--traction": traction, "--body-force": body_force}
        | {"--steps": steps, "--guard": guard, "--tolerance": tolerance, "--order": order},
    )
    _require_same(out, facts, resume)
    space = problem_space(body, order)
    still = dict.fromkeys(clamped, [0.0] * int(space.value_size))
    bcs = prescribed(space, {tags[k]: v for k, v in (still | moved).items()})
    force = None if body_force is None else numbers(body_force, "--body-force")
    problem = MacroProblem(
        space,
        material,
        bcs=bcs,
        tractions={tags[tag]: vector for tag, vector in loads.items()},
        body_force=force,
    )
    if not resume:
        _forget(out)
    write_json(out / _FACTS, facts)
    try:
        result = problem.solve(steps, checkpoint=out / _STEPS, progress=not quiet)
    except LoadStepError as error:
        _report(out, problem, error.result, quiet)
        raise
    report = material.report if isinstance(material, Guarded) else None
    _report(out, problem, result, quiet, report)
    problem.write_vtk(out / "body.pvd")
    if MPI.COMM_WORLD.size == 1:
        problem.plot(out / "body.png")
        if report is not None and report.steps and report.steps[-1].guarded is not None:
            field = problem.field(report.steps[-1].guarded, "share of points answered by the cell")
            problem.plot(out / "guarded.png", field=field)
    say(f"results in {out}", quiet)


def _material(
    cell: Path | None,
    rve: Path | None,
    laws: Path | None,
    guard: str | None,
    tolerance: float,
    shape: dict[str, Any],
) -> Any:
    """What the options say that the body is made of."""
    if guard is not None:
        if cell is None or rve is None or laws is None:
            raise ValueError("--guard needs the surrogate (--cell), its cell (--rve) and --laws.")
        if guard not in _POLICIES:
            raise ValueError(f"--guard takes one of {_POLICIES}, got {guard!r}.")
        fallback = build_rve(rve, laws, **shape)
        return Guarded(load(cell, fallback), fallback, tolerance=tolerance, policy=guard)
    if cell is not None:
        # The cell is then needed for nothing but to check that it is the right one.
        return load(cell, None if rve is None or laws is None else build_rve(rve, laws, **shape))
    if laws is None:
        raise ValueError(
            "No material: give --cell FILE, or --rve MESH --laws FILE, or --laws FILE."
        )
    if rve is not None:
        return build_rve(rve, laws, **shape)
    found, _ = read_laws(laws)
    if shape["plane"] not in (None, "strain", "stress"):
        raise ValueError(f"--plane takes strain or stress, got {shape['plane']!r}.")
    if shape["plane"] == "stress":
        several = isinstance(found, Mapping)
        found = {k: PlaneStress(v) for k, v in found.items()} if several else PlaneStress(found)
    return found


def _facts(files: dict[str, Path | None], values: dict[str, Any]) -> dict[str, Any]:
    """What decides on the result; of files the contents."""
    digests = {
        name: None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in files.items()
    }
    return digests | values


def _require_same(out: Path, facts: dict[str, Any], resume: bool) -> None:
    # The checkpoint knows body and loads, but not all that a surrogate is.
    if not resume or not (out / _STEPS).exists() or not (out / _FACTS).exists():
        return
    there = json.loads((out / _FACTS).read_text())
    other = [name for name in facts if there.get(name) != facts[name]]
    if other:
        raise ValueError(
            f"{str(out)!r} holds the steps of a run with other arguments, or other contents of "
            f"these files: {', '.join(other)}. Choose another --out, or --no-resume to begin anew."
        )


def _forget(out: Path) -> None:
    """Remove the steps of the last run: a kill before the first step must not leave them."""
    MPI.COMM_WORLD.Barrier()
    if MPI.COMM_WORLD.rank == 0:
        (out / _STEPS).unlink(missing_ok=True)
    MPI.COMM_WORLD.Barrier()


def _tagged(text: str, option: str, free: bool = False) -> tuple[str, list[float | None]]:
    tag, comma, rest = text.partition(",")
    if not comma:
        raise ValueError(
            f"{option} takes a boundary tag and a vector, such as 2 0.1 0; got {text!r}."
        )
    return tag, numbers(rest, option, free)


def _named(name: str, known: dict[str, tuple[int, int]]) -> int:
    if name not in known:
        raise ValueError(f"The mesh names no boundary {name!r}, only {sorted(known)}.")
    return known[name][1]


def _report(
    out: Path,
    problem: MacroProblem,
    result: MacroResult,
    quiet: bool,
    guard: GuardReport | None = None,
) -> None:
    say(str(result), quiet)
    values: dict[str, Any] = {
        "problem": repr(problem),
        "steps": [
            {
                "factor": step.factor,
                "iterations": step.iterations,
                "cutbacks": step.cutbacks,
                "residuals": step.residuals,
                "reactions": {str(tag): r.tolist() for tag, r in step.reactions.items()},
                "material_seconds": step.material_seconds,
                "other_seconds": step.other_seconds,
            }
            for step in result.steps
        ],
    }
    if guard is not None:
        say(str(guard), quiet)
        values["guard"] = [
            {"points": s.points, "guarded": s.count, "reach": s.reach, "solves": s.solves}
            for s in guard.steps
        ]
    write_json(out / "result.json", values)
