"""The HDF5 file behind a data set: what lies where, and how to read it without surprises.

Layout. Meshes lie at the top, as `firedrake.CheckpointFile` writes them. Everything else lies in
the group ``spon``, with the attributes ``format``, ``version``, ``spon`` and ``firedrake``::

    spon/inputs/NAME    (n, dim) float64, attributes: signature (JSON), position, mesh_number, mesh;
                        with the signature null, values that are not in a space: (n, ...)
    spon/outputs/NAME   the same, always with a signature
    spon/boundary       (n, dim) float64, may be missing; attribute output: the output it belongs
                        to, missing if that is not known
    spon/samples/run    (n,) int64: position in runs
    spon/samples/keys   (n, 2) int64: seed and number of the sample, -1 where unknown
    spon/runs           JSON text: how the samples were made
    spon/failures       JSON text: index, message and run of each sample that failed
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from spon.fem.spacestore import MeshLink, SpaceStore
from spon.signature import SpaceSignature

__all__ = [
    "Contents",
    "DatasetFileError",
    "MeshLink",
    "read_contents",
    "versions",
    "write_contents",
]

_FORMAT, _VERSION, _ROOT = "spon dataset", 1, "spon"


class DatasetFileError(ValueError):
    """A file is no data set, is damaged, or was written by a version unknown here."""


@dataclass
class Contents:
    """What is in a file; the shapes are in the docstring of this module."""

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    boundary: np.ndarray | None
    signatures: dict[str, SpaceSignature | None]
    runs: list[dict[str, Any]]
    run: np.ndarray
    keys: np.ndarray
    failures: list[dict[str, Any]]
    links: dict[str, MeshLink] = field(default_factory=dict)
    boundary_of: str | None = None


def versions() -> dict[str, str]:
    """Installed versions of spon and Firedrake."""
    own = getattr(sys.modules.get("spon"), "__version__", "unknown")
    try:
        return {"spon": own, "firedrake": installed_version("firedrake")}
    except PackageNotFoundError:
        return {"spon": own, "firedrake": "unknown"}


def write_contents(path: str | os.PathLike[str], contents: Contents, spaces: SpaceStore) -> None:
    """Write a file under a temporary name in the same folder, then rename it.

    Parameters
    ----------
    path : path
        Its folder is made if need be.
    contents : Contents
        `links` name the fields that must not lose their mesh; where it lies, `spaces` knows.
    spaces : SpaceStore
        Where the meshes come from.

    Raises
    ------
    FileNotFoundError
        If the file that held the mesh of a field is gone.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # One name for every attempt: what a kill leaves behind, the next attempt replaces.
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        with h5py.File(scratch, "w") as file:
            root = file.create_group(_ROOT)
            links = spaces.write(file, list(contents.signatures), skip=_ROOT)
            lost = [name for name in contents.links if name not in links]
            if lost:
                raise FileNotFoundError(
                    f"The meshes of {lost} cannot be saved: the file that the data set was loaded "
                    "from is gone. Put it back, or give the function spaces first: "
                    f"data.attach({{{lost[0]!r}: V}})."
                )
            _write_arrays(root, contents, links)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def _write_arrays(root: h5py.Group, contents: Contents, links: dict[str, MeshLink]) -> None:
    root.attrs["format"] = _FORMAT
    root.attrs["version"] = _VERSION
    for name, number in versions().items():
        root.attrs[name] = number
    for kind in ("inputs", "outputs"):
        for position, (name, values) in enumerate(getattr(contents, kind).items()):
            item = _array(root, f"{kind}/{name}", values)
            item.attrs["position"] = position
            signature = contents.signatures[name]
            item.attrs["signature"] = json.dumps(signature and signature.to_json())
            if name in links:
                item.attrs["mesh_number"] = links[name].number
                item.attrs["mesh"] = links[name].name
    if contents.boundary is not None:
        item = _array(root, "boundary", contents.boundary)
        if contents.boundary_of is not None:
            item.attrs["output"] = contents.boundary_of
    _array(root, "samples/run", contents.run)
    _array(root, "samples/keys", contents.keys)
    # As data sets: an attribute holds 64 kB at most, and failures may be many.
    for name in ("runs", "failures"):
        text = json.dumps(getattr(contents, name)).encode()
        root.create_dataset(name, data=np.bytes_(text), track_times=False)


def _array(root: h5py.Group, name: str, values: np.ndarray) -> h5py.Dataset:
    # Without times, so that equal contents give equal files.
    return root.create_dataset(name, data=values, track_times=False)


def read_contents(path: str | os.PathLike[str]) -> Contents:
    """Read the arrays of a file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    DatasetFileError
        If the file is no data set, is damaged, or has a version unknown here.
    """
    shown = repr(os.fspath(path))
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no data set at {shown}.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DatasetFileError(f"{shown} is not an HDF5 file: {error}") from error
    with file:
        root = file.get(_ROOT)
        if root is None or root.attrs.get("format") != _FORMAT:
            raise DatasetFileError(
                f"{shown} is an HDF5 file, but not a data set of spon; it holds "
                f"{sorted(file) or 'nothing'}. Make one with spon.generate or Dataset.save."
            )
        version = int(root.attrs.get("version", -1))
        if version != _VERSION:
            raise DatasetFileError(
                f"{shown} has format version {version}, written by spon "
                f"{root.attrs.get('spon', 'unknown')}; this spon {versions()['spon']} reads "
                f"version {_VERSION}. Read it with the spon that wrote it, or generate it again."
            )
        try:
            return _read(root)
        except (KeyError, ValueError, TypeError, OSError) as error:
            raise DatasetFileError(f"{shown} is damaged: {error}") from error


def _read(root: h5py.Group) -> Contents:
    fields: dict[str, dict[str, np.ndarray]] = {}
    signatures: dict[str, SpaceSignature | None] = {}
    links = {}
    for kind in ("inputs", "outputs"):
        group = root.get(kind, {})  # without outputs where there are none
        fields[kind] = {}
        for name in sorted(group, key=lambda k: int(group[k].attrs["position"])):
            item = group[name]
            fields[kind][name] = item[()]
            signature = json.loads(item.attrs["signature"])
            signatures[name] = signature and SpaceSignature.from_json(signature)
            if "mesh" in item.attrs:
                links[name] = MeshLink(int(item.attrs["mesh_number"]), str(item.attrs["mesh"]))
    boundary = root.get("boundary")
    output = None if boundary is None else boundary.attrs.get("output")
    return Contents(
        inputs=fields["inputs"],
        outputs=fields["outputs"],
        boundary=None if boundary is None else boundary[()],
        boundary_of=None if output is None else str(output),
        signatures=signatures,
        runs=json.loads(root["runs"][()]),
        run=root["samples/run"][()],
        keys=root["samples/keys"][()],
        failures=json.loads(root["failures"][()]),
        links=links,
    )
