"""Functions to files that ParaView opens."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import firedrake as fd
from firedrake.adjoint import stop_annotating

__all__ = ["write_vtk"]


def write_vtk(
    path: str | os.PathLike[str],
    *functions: Any,
    time: float | None = None,
    degree: int | None = None,
) -> Path:
    """Write functions on one mesh to VTK files.

    ``out.pvd`` is the file to open; the data lie in the folder ``out/``. The ending ``.vtu``
    writes one file and no folder, on one process only. The files are written under temporary
    names beside the old ones and then renamed, so that a reader never meets half a file.

    Functions are interpolated into one Lagrange space that holds all of them (ParaView shows
    high-order cells; raise its "Nonlinear Subdivision Level"). A mixed function is written as
    its parts.

    Parameters
    ----------
    path : path
        Where to write: ``.pvd``, ``.vtu``, or without an ending for ``.pvd``.
    *functions : firedrake.Function
        Scalars, vectors of at most 3 components, or tensors of at most 3 x 3.
    time : float, optional
        Time of the data, for a ``.pvd``.
    degree : int, optional
        Project onto Lagrange elements of this degree, for programs that know straight cells only.

    Returns
    -------
    Path
        The file to open.

    Raises
    ------
    TypeError
        If something else than functions is given.
    ValueError
        If the ending is another one, the functions live on several meshes, share a name, or have
        too many components.
    """
    path = Path(path)
    if not path.suffix:
        path = path.with_suffix(".pvd")
    if path.suffix not in (".pvd", ".vtu"):
        raise ValueError(f"{path}: expected the ending .pvd or .vtu, got {path.suffix!r}")
    if degree is not None and degree < 1:
        raise ValueError(f"degree: expected >= 1, got {degree}")
    parts = _writable(functions)
    mesh = parts[0].function_space().mesh()
    if path.suffix == ".vtu" and (mesh.comm.size > 1 or time is not None):
        raise ValueError(f"{path}: a .vtu holds one process and no time; write a .pvd instead")
    _write(path, parts, mesh.comm, time, degree)
    return path


def _writable(functions: tuple[Any, ...]) -> list[Any]:
    """The functions, mixed ones in parts, once it is sure that all can be written."""
    if not functions:
        raise ValueError("write_vtk needs at least one function")
    parts: list[Any] = []
    for f in functions:
        if isinstance(f, fd.Cofunction):
            raise TypeError(
                f"{f.name()!r} is a load or residual (dual) and has no values at points: "
                "write f.riesz_representation()"
            )
        if not isinstance(f, fd.Function):
            hint = ": make one with spon.fem.to_function(x, V)" if hasattr(f, "detach") else ""
            raise TypeError(f"write_vtk writes Firedrake Functions, got {type(f).__name__}{hint}")
        parts += f.subfunctions if len(f.function_space()) > 1 else [f]
    for f in parts:
        if len(f.ufl_shape) > 2 or any(extent > 3 for extent in f.ufl_shape):
            raise ValueError(
                f"{f.name()!r} has shape {f.ufl_shape}; VTK files hold scalars, vectors of at "
                "most 3 and tensors of at most 3 x 3 components. Write its components one by one"
            )
    names = [f.name() for f in parts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"several functions are called {', '.join(map(repr, twice))}; rename them, "
            "f.rename('displacement')"
        )
    if any(f.function_space().mesh() != parts[0].function_space().mesh() for f in parts):
        raise ValueError("the functions live on several meshes; write one file for each mesh")
    return parts


def _write(path: Path, parts: list[Any], comm: Any, time: float | None, degree: int | None) -> None:
    draft = None
    try:
        if comm.rank == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = tempfile.mkdtemp(prefix=f".{path.stem}-", dir=path.parent)
        draft = comm.bcast(draft, root=0)
        options = {} if degree is None else {"target_degree": degree, "project_output": True}
        with stop_annotating():
            file = fd.VTKFile(str(Path(draft) / f"{path.stem}.pvd"), comm=comm, **options)
            file.write(*parts, time=time)
        comm.barrier()
        if comm.rank == 0:
            _move(Path(draft), path)
        comm.barrier()
    finally:
        if comm.rank == 0 and draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


def _move(draft: Path, path: Path) -> None:
    """Put the files in place, the one that points to the others last."""
    if path.suffix == ".vtu":
        os.replace(draft / path.stem / f"{path.stem}_0.vtu", path)
        return
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    for file in sorted((draft / path.stem).iterdir()):
        os.replace(file, folder / file.name)
    os.replace(draft / path.name, path)
