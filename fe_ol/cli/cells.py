"""What the commands share: arguments, and the cell that they describe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from mpi4py import MPI

from fe_ol.cli.checked import checked, takes
from fe_ol.cli.laws import read_laws
from fe_ol.rve import RVE
from spon.fem import read_mesh
from spon.history import replaced

__all__ = [
    "Boundary",
    "CellMesh",
    "Degree",
    "Family",
    "Laws",
    "Plane",
    "Quiet",
    "build_rve",
    "say",
    "write_json",
]

CellMesh = Annotated[
    Path, typer.Argument(metavar="MESH", help="Mesh of the cell: gmsh, or what meshio reads.")
]
Laws = Annotated[
    Path,
    typer.Option(help="TOML or JSON file with a law for each cell tag, see demos/laws.toml."),
]
Degree = Annotated[
    int | None, typer.Option(help="Degree of the cell's elements; otherwise [rve] of LAWS, or 2.")
]
Family = Annotated[str | None, typer.Option(help="CG, or S: serendipity, on quadrilaterals.")]
Boundary = Annotated[str | None, typer.Option(help="Of the cell: periodic, linear or traction.")]
Plane = Annotated[str | None, typer.Option(help="strain or stress, in 2D.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No tables, no progress bars.")]


def build_rve(mesh: Path, laws: Path, **given: Any) -> RVE:
    """The cell of a mesh and a file of laws, on this process.

    Parameters
    ----------
    mesh, laws : Path
    **given
        Options of `RVE`; they come before those of the file, None is nothing.

    Returns
    -------
    RVE

    Raises
    ------
    ValueError
        If a file cannot be read, or an option is unknown.
    """
    found, options = read_laws(laws)
    options = checked(
        options, takes(RVE, skip=("mesh", "materials")), f"[rve] of {str(laws)!r}, for fe_ol.RVE,"
    )
    options |= {name: value for name, value in given.items() if value is not None}
    tags = tuple(found) if isinstance(found, Mapping) else ()
    return RVE(read_mesh(mesh, comm=MPI.COMM_SELF, required_tags=tags), found, **options)


def say(text: str, quiet: bool = False) -> None:
    """Print, on the first process only."""
    if not quiet and MPI.COMM_WORLD.rank == 0:
        typer.echo(text)


def write_json(path: Path, values: Any) -> None:
    """Write a file under a temporary name and rename it, on the first process only."""
    if MPI.COMM_WORLD.rank == 0:
        with replaced(path) as temporary:
            temporary.write_text(json.dumps(values, indent=1) + "\n")
