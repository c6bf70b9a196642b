"""``sample``: snapshots of a cell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from mpi4py import MPI

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
from fe_ol.snapshots import Snapshots

__all__ = ["sample"]


def sample(
    mesh: CellMesh,
    laws: Laws,
    out: Annotated[Path, typer.Option(help="HDF5 file to make.")],
    n: Annotated[int, typer.Option("-n", "--number", help="Number of strains.")] = 100,
    radius: Annotated[
        float, typer.Option(help="Half the edge of the box of strains around the rest state.")
    ] = 0.04,
    seed: Annotated[int, typer.Option(help="Of the strains.")] = 0,
    method: Annotated[str, typer.Option(help="lhs, sobol or laplace.")] = "lhs",
    degree: Degree = None,
    family: Family = None,
    boundary: Boundary = None,
    plane: Plane = None,
    quiet: Quiet = False,
) -> None:
    """Solve a cell for strains in a box, and keep the solutions.

    Started again with the same arguments, it goes on where it was stopped. Under mpiexec the
    processes share the solves.
    """
    cell = build_rve(mesh, laws, degree=degree, family=family, boundary=boundary, plane=plane)
    snapshots = Snapshots.sample(
        cell, n, radius, seed, method, path=out, progress=not quiet, comm=MPI.COMM_WORLD
    )
    failed = f", {len(snapshots.failures)} solves failed" if snapshots.failures else ""
    say(f"{len(snapshots)} snapshots of {cell!r} in {out}{failed}", quiet)
