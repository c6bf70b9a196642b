"""Meshes inside an HDF5 file, and back with the same numbering of the dofs.

Meshes are written by `firedrake.CheckpointFile`, which stores the permutation of the mesh points
beside the topology, so that the mesh read back numbers its dofs as the mesh written did. That is
checked, never assumed: see `space_on`.

A checkpoint holds expressions and pickled dictionaries that Firedrake evaluates when it reads a
mesh. Read meshes only from files that you trust; the arrays of a data set are plain HDF5.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import firedrake as fd
import h5py
import numpy as np

from spon.fem.elements import space_from_element
from spon.fem.spaces import require_serial, signature
from spon.signature import SpaceSignature

__all__ = ["MeshFileError", "copy_meshes", "read_space", "space_on", "write_meshes"]

# The first mesh lies where CheckpointFile looks for it. Every other one has a checkpoint of its
# own in here, because one checkpoint cannot hold two meshes of one name, and the meshes of a
# MeshHierarchy all have one name.
_FURTHER = "spon_meshes"


class MeshFileError(RuntimeError):
    """A mesh cannot be stored in a file, or comes back different from what was stored."""


def write_meshes(target: h5py.File, meshes: Sequence[Any]) -> None:
    """Write meshes into an open HDF5 file.

    Parameters
    ----------
    target : h5py.File
        Open for writing. ``firedrake.CheckpointFile(path, "r").load_mesh(name)`` reads the first
        mesh, too.
    meshes : sequence of Firedrake meshes
        `read_space` finds them by their position here.

    Raises
    ------
    MeshFileError
        If Firedrake cannot store a mesh.
    NotImplementedError
        If a mesh is distributed over several processes.
    """
    for number, mesh in enumerate(meshes):
        require_serial(mesh, "a data set's file")
        scratch = Path(f"{target.filename}.mesh")
        try:
            with (
                _stable_names(mesh),
                fd.CheckpointFile(str(scratch), "w", comm=mesh.comm) as checkpoint,
            ):
                checkpoint.save_mesh(mesh)
            with h5py.File(scratch, "r") as source:
                _copy_tree(source, _place(target, number))
        except (RuntimeError, ValueError, NotImplementedError, TypeError, OSError) as error:
            raise MeshFileError(
                f"The mesh {mesh.name!r} cannot be stored: {type(error).__name__}: {error}"
            ) from error
        finally:
            scratch.unlink(missing_ok=True)


def copy_meshes(source: h5py.File, target: h5py.File, skip: Iterable[str]) -> None:
    """Copy all meshes of one file into another.

    Parameters
    ----------
    source, target : h5py.File
        Open for reading and for writing.
    skip : iterable of str
        Names at the top of `source` that are not meshes.
    """
    _copy_tree(source, target, skip)


def read_space(
    path: str | os.PathLike[str], number: int, name: str, expected: SpaceSignature
) -> Any:
    """Rebuild a function space, and its mesh, from a file.

    Parameters
    ----------
    path : path
        A file that `write_meshes` wrote into.
    number : int
        Position of the mesh among the meshes written.
    name : str
        Name of the mesh.
    expected : SpaceSignature
        The space to build.

    Returns
    -------
    FunctionSpace
        Its signature is `expected`.

    Raises
    ------
    FileNotFoundError
        If there is no such file (any more).
    MeshFileError
        If the file has no such mesh, or the dofs of the mesh read are numbered differently.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"The mesh {name!r} would be read from {os.fspath(path)!r}, which does not exist "
            "(any more)."
        )
    with tempfile.TemporaryDirectory() as folder:
        try:
            mesh = _load_mesh(path, number, name, folder)
        except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
            raise MeshFileError(
                f"Firedrake {version('firedrake')} cannot read the mesh {name!r} from "
                f"{os.fspath(path)!r}: {type(error).__name__}: {error}"
            ) from error
    return space_on(mesh, expected, os.fspath(path))


def space_on(mesh: Any, expected: SpaceSignature, where: str) -> Any:
    """Build the space `expected` on `mesh`; refuse a mesh that numbers the dofs differently.

    Parameters
    ----------
    mesh : Firedrake mesh
    expected : SpaceSignature
    where : str
        Where the mesh is from, for the message.

    Returns
    -------
    FunctionSpace

    Raises
    ------
    MeshFileError
        If the signature of the space is not `expected`.
    """
    space = space_from_element(mesh, expected.element)
    found = signature(space)
    if found != expected:
        raise MeshFileError(
            f"The mesh {mesh.name!r} from {where!r} does not fit the data. They belong to "
            f"{expected.describe()}; this mesh gives {found.describe()}, so that coefficients "
            "would be read in the wrong order. Build the mesh as it was built for the data."
        )
    return space


def _load_mesh(path: str | os.PathLike[str], number: int, name: str, folder: str) -> Any:
    if number > 0:
        with h5py.File(path, "r") as source, h5py.File(Path(folder, "mesh.h5"), "w") as target:
            _copy_tree(source[f"{_FURTHER}/{number}"], target)
        path = Path(folder, "mesh.h5")
    with fd.CheckpointFile(str(path), "r", comm=fd.COMM_SELF) as checkpoint:
        return checkpoint.load_mesh(name)


@contextmanager
def _stable_names(mesh: Any) -> Iterator[None]:
    """Replace the names that Firedrake made up, from addresses and counters, while writing."""
    topology, coordinates = mesh.topology, mesh.coordinates.topological
    plex = None if mesh.extruded else topology.topology_dm
    before = topology.name, coordinates.name(), plex.getName() if plex else ""

    def rename(topology_name: str, coordinates_name: str, plex_name: str) -> None:
        topology.name = topology_name
        coordinates.rename(coordinates_name)
        if plex:
            plex.setName(plex_name)

    rename(f"{mesh.name}_topology", f"{mesh.name}_coordinates", f"{mesh.name}_topology")
    try:
        with _stable_names(mesh._base_mesh) if mesh.extruded else nullcontext():
            yield
    finally:
        rename(*before)


def _place(target: h5py.File, number: int) -> h5py.Group:
    return target if number == 0 else target.require_group(f"{_FURTHER}/{number}")


def _copy_tree(source: h5py.Group, target: h5py.Group, skip: Iterable[str] = ()) -> None:
    # HDF5's own copy would keep the time at which PETSc made each object, and then two files of
    # equal contents would differ.
    _copy_attributes(source, target)
    skip = set(skip)
    for name in sorted(set(source) - skip):
        item = source[name]
        if isinstance(item, h5py.Group):
            _copy_tree(item, target.require_group(name))
        else:
            copy = target.create_dataset(name, data=item[()], dtype=item.dtype, track_times=False)
            _copy_attributes(item, copy)


def _copy_attributes(source: Any, target: Any) -> None:
    for key in sorted(source.attrs):
        original = h5py.h5a.open(source.id, key.encode())
        if h5py.check_string_dtype(original.dtype) and original.get_type().is_variable_str():
            target.attrs[key] = source.attrs[key]
            continue
        # Type and bytes as they are: PETSc reads fixed-length strings only as it wrote them.
        value = np.empty(original.shape, dtype=original.dtype)
        original.read(value)
        copy = h5py.h5a.create(target.id, key.encode(), original.get_type(), original.get_space())
        copy.write(value)
