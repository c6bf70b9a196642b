"""Meshes from files, with the tags of their cells and of their boundary."""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import firedrake as fd
from petsc4py import PETSc

from spon.fem.curved import curved_mesh
from spon.fem.gmsh_file import GmshSummary, TaggedMesh, cell_kind, cell_nodes, scan_gmsh, write_gmsh
from spon.fem.mesh_conversion import check_kinds, convert
from spon.fem.second_order import Array, complete, is_straight

__all__ = ["mesh_tags", "read_mesh"]

_SURFACES = (".stl", ".obj", ".ply", ".off")
_CHECKPOINTS = (".h5", ".hdf5")
_SECOND_ORDER = ("triangle6", "quad8", "quad9", "tetra10", "hexahedron20", "hexahedron27")


@dataclass
class _Readable:
    """A gmsh file that Firedrake reads, the names in it, and the nodes of curved cells."""

    path: Path
    names: list[tuple[str, int, int]] = field(default_factory=list)
    nodes: Array | None = None


def read_mesh(
    path: str | os.PathLike[str],
    comm: Any = None,
    name: str | None = None,
    required_tags: Sequence[str | int] = (),
    tag_data: str | None = None,
    curved: bool = True,
) -> Any:
    """Read a mesh of triangles, quadrilaterals, tetrahedra or hexahedra from a file.

    gmsh's ``.msh`` (2.2, 4) goes to Firedrake as it is. Any other format that meshio reads
    (``.vtu``, ``.vtk``, ``.xdmf``, ``.med``, ``.inp``, ``.mesh``, ...) is converted to a gmsh
    file in a temporary folder first. Tags become ``dx(tag)`` for cells and ``ds(tag)`` or
    ``DirichletBC(V, g, tag)`` for facets; `mesh_tags` gives them by name. A tag of 0 is none.

    Cells of degree 2 in a gmsh file (``gmsh -order 2``) stay curved: the coordinates of the mesh
    are a field of degree 2, if any edge is bent at all. Matched sides (``$Periodic``) become one,
    and the coordinates a discontinuous field. Cells of higher degree, and curved ones in other
    formats, are read with straight edges and a warning.

    A conversion drops points that no cell uses, and z where it is constant; a gmsh file with such
    points is converted too.

    Parameters
    ----------
    path : path
        The file.
    comm : MPI communicator, optional
        Where the mesh lives; ``COMM_WORLD`` by default. Only its first process reads.
    name : str, optional
        Name of the mesh, under which a checkpoint stores it.
    required_tags : sequence of str or int, optional
        Names or numbers that the caller is going to use, for cells or for facets.
    tag_data : str, optional
        For formats other than ``.msh``: the cell array that holds the tags. By default the first
        of `spon.fem.mesh_conversion.TAG_DATA` that is there, and otherwise the cell sets,
        numbered from 1.
    curved : bool, optional
        False to read curved cells of a gmsh file with straight edges, without a warning.

    Returns
    -------
    firedrake.Mesh

    Raises
    ------
    TypeError
        If `path` is not a path or `required_tags` holds neither names nor numbers.
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not a mesh of one shape of cells, cannot be read, or lacks a required tag,
        or if a curved cell turns over.

    Examples
    --------
    >>> mesh = read_mesh("meshes/bracket.msh", required_tags=("clamped", "loaded"))
    >>> tags = mesh_tags("meshes/bracket.msh")
    >>> bc = DirichletBC(V, 0, tags["clamped"][1])
    """
    path = _checked_path(path)
    required = _checked_required(required_tags)
    comm = fd.COMM_WORLD if comm is None else comm
    options = {"comm": comm} if name is None else {"comm": comm, "name": name}
    with _readable_by_firedrake(path, comm, tag_data, curved) as readable:
        try:
            with _corners_only():
                mesh = fd.Mesh(str(readable.path), **options)
        except Exception as error:
            raise ValueError(f"Firedrake cannot read {path}: {error}") from error
    _check_required(path, mesh, readable.names, required)
    if readable.nodes is not None:
        try:
            mesh = curved_mesh(mesh, readable.nodes[:, :, : mesh.geometric_dimension])
        except ValueError as error:
            raise ValueError(
                f"{path} has curved cells that cannot be used: {error}. With curved=False they are "
                "read with straight edges"
            ) from error
    return mesh


def mesh_tags(
    path: str | os.PathLike[str], dim: int | None = None, tag_data: str | None = None
) -> dict[str, tuple[int, int]]:
    """Names of the tags in a mesh file.

    Parameters
    ----------
    path : path
        The file, as for `read_mesh`.
    dim : int, optional
        Only names of this dimension: that of the cells, or one less for facets.
    tag_data : str, optional
        As for `read_mesh`.

    Returns
    -------
    dict
        ``name -> (dimension, tag)``. Tags without a name are not listed.

    Raises
    ------
    ValueError
        If the file cannot be read, or one name stands for two tags.
    """
    path = _checked_path(path)
    if path.suffix.lower() == ".msh":
        listed = scan_gmsh(path).names
    else:
        listed = [(name, *at) for name, at in convert(path, tag_data).names.items()]
    tags: dict[str, tuple[int, int]] = {}
    for name, own_dim, tag in listed:
        if dim is not None and own_dim != dim:
            continue
        if name in tags:
            raise ValueError(
                f"{path}: the name {name!r} stands for tag {tags[name][1]} of dimension "
                f"{tags[name][0]} and tag {tag} of dimension {own_dim}; choose with dim=..."
            )
        tags[name] = (own_dim, tag)
    return tags


def _checked_path(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path: expected a file name, got {type(path).__name__}")
    path = Path(path)
    suffix = path.suffix.lower()
    if path.is_dir() or not path.exists():
        what = "is a folder, not a mesh file" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"mesh file {path} {what} (looked in {Path.cwd()})")
    if suffix in _SURFACES:
        raise ValueError(
            f"{path}: {suffix} files describe the surface of a body, not a mesh of its volume. "
            "Mesh the volume (in gmsh: Merge, Surface Loop, Volume) and save a .msh"
        )
    if suffix in _CHECKPOINTS:
        raise ValueError(
            f"{path}: open a Firedrake checkpoint with firedrake.CheckpointFile, and a data set "
            "with spon.Dataset.load(...).mesh()"
        )
    return path


def _checked_required(required: Sequence[str | int]) -> list[str | int]:
    if isinstance(required, str | int):
        required = [required]
    for tag in required:
        if not isinstance(tag, str | int) or isinstance(tag, bool):
            raise TypeError(
                f"required_tags: expected names (str) or numbers (int), got {type(tag).__name__}"
            )
    return list(required)


@contextlib.contextmanager
def _corners_only() -> Iterator[None]:
    """PETSc would hand curved cells to Firedrake in a form that it does not take."""
    options, name = PETSc.Options(), "dm_plex_gmsh_highorder"
    before = options.getString(name) if options.hasName(name) else None
    options[name] = "false"
    try:
        yield
    finally:
        options.delValue(name)
        if before is not None:
            options[name] = before


@contextlib.contextmanager
def _readable_by_firedrake(
    path: Path, comm: Any, tag_data: str | None, curved: bool
) -> Iterator[_Readable]:
    """What Firedrake reads; the work is the first process's."""
    with contextlib.ExitStack() as stack:
        result: _Readable | Exception = RuntimeError("nothing was read")
        if comm.rank == 0:
            try:
                result = _prepare(path, stack, tag_data, curved)
            except Exception as error:  # every process must hear of it, or the others wait
                result = error
        result = comm.bcast(result, root=0)
        if isinstance(result, Exception):
            raise result
        yield result
        comm.barrier()  # before the folder goes


def _prepare(
    path: Path, stack: contextlib.ExitStack, tag_data: str | None, curved: bool
) -> _Readable:
    if path.suffix.lower() == ".msh":
        if tag_data is not None:
            raise ValueError("tag_data is for formats other than .msh, whose tags are known")
        summary = scan_gmsh(path)
        shape, bent = check_kinds(path, summary.kinds)
        if summary.repeated:
            raise ValueError(
                f"{path} lists {summary.repeated} cells more than once: physical groups overlap, "
                "and format 2.2 repeats a cell for each of its groups. Make the groups disjoint, "
                "or save in format 4.1"
            )
        nodes = _bent_nodes(path, summary, shape) if bent and curved else None
        if not summary.loose:
            return _Readable(path.absolute(), summary.names, nodes)
        if summary.periodic:
            raise ValueError(
                f"{path} is periodic and has {summary.loose} points that no cell uses, which "
                "Firedrake does not read. Save it without them (in gmsh: Mesh.SaveAll = 0)"
            )
        mesh = _convert_gmsh(path, f"{summary.loose} unused points")
    else:
        mesh, nodes = convert(path, tag_data), None
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="spon-mesh-"))
    readable = Path(folder) / "mesh.msh"
    write_gmsh(readable, mesh)
    return _Readable(readable, [(name, *at) for name, at in mesh.names.items()], nodes)


def _bent_nodes(path: Path, summary: GmshSummary, shape: str) -> Array | None:
    """Nodes of all cells, shape (cells, nodes, 3), or None where every edge is straight."""
    kinds = [name for name in summary.kinds if (kind := cell_kind(name)) and kind.shape == shape]
    if len(kinds) > 1 or kinds[0] not in _SECOND_ORDER:
        warnings.warn(
            f"{path} has curved cells ({', '.join(kinds)}); their edges are read as straight "
            "lines, for only cells of degree 2 stay curved. Save it with gmsh -order 2",
            UserWarning,
            stacklevel=2,
        )
        return None
    nodes = complete(shape, cell_nodes(path, kinds[0]))
    return None if is_straight(shape, nodes) else nodes


def _convert_gmsh(path: Path, reason: str) -> TaggedMesh:
    """What meshio makes of a gmsh file that Firedrake does not read; it does not read all."""
    try:
        return convert(path, warn=False)  # of curved cells _bent_nodes has spoken
    except ValueError as error:
        raise ValueError(
            f"{path} has {reason}, which Firedrake does not read, and was not converted: {error}. "
            "Save it without them (in gmsh: Mesh.SaveAll = 0)"
        ) from error


def _present_tags(mesh: Any) -> dict[int, set[int]]:
    """Tags that a mesh has, by dimension; 0 is none."""
    dm, dim = mesh.topology_dm, mesh.topological_dimension
    present = {}
    for own_dim, label in ((dim, "Cell Sets"), (dim - 1, "Face Sets")):
        mine = dm.getLabelIdIS(label).indices.tolist() if dm.hasLabel(label) else []
        present[own_dim] = {tag for tags in mesh.comm.allgather(mine) for tag in tags} - {0}
    return present


def _check_required(
    path: Path, mesh: Any, names: list[tuple[str, int, int]], required: list[str | int]
) -> None:
    present = _present_tags(mesh)
    known: set[str | int] = {tag for tags in present.values() for tag in tags}
    known |= {name for name, dim, tag in names if tag in present.get(dim, ())}
    missing = [tag for tag in required if tag not in known]
    if not missing:
        return
    lines = []
    for dim, tags in present.items():
        named = {tag: name for name, own_dim, tag in names if own_dim == dim}
        listed = [f"{tag} ({named[tag]})" if tag in named else f"{tag}" for tag in sorted(tags)]
        what = "cells" if dim == mesh.topological_dimension else "facets"
        lines.append(f"{what}: {', '.join(listed) or 'none'}")
    raise ValueError(
        f"{path} lacks the tags {', '.join(map(repr, missing))}. It has {'; '.join(lines)}"
    )
