"""Function spaces by name: there already, or rebuilt from a file when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from spon.fem.meshfile import copy_meshes, read_space, space_on, write_meshes
from spon.fem.spaces import mesh_of
from spon.signature import SpaceSignature

__all__ = ["MeshLink", "SpaceStore"]


@dataclass(frozen=True)
class MeshLink:
    """Where the mesh of a space lies: position among the meshes of the file, and its name."""

    number: int
    name: str


class SpaceStore:
    """Function spaces, some of them still in a file.

    Parameters
    ----------
    live : mapping of str to FunctionSpace
        Spaces that exist.
    links : mapping of str to MeshLink
        For spaces in the file, where their meshes lie.
    path : Path, optional
        The file.
    """

    def __init__(
        self,
        live: Mapping[str, Any] | None = None,
        links: Mapping[str, MeshLink] | None = None,
        path: Path | None = None,
    ) -> None:
        self._live = dict(live or {})
        self._links = dict(links or {})
        self._path = path

    def with_live(self, spaces: Mapping[str, Any]) -> SpaceStore:
        """The same store with further spaces that exist."""
        return SpaceStore(self._live | dict(spaces), self._links, self._path)

    def get(self, name: str, expected: SpaceSignature) -> Any:
        """The space `name`, which must have the signature `expected`.

        Raises
        ------
        RuntimeError
            If there is neither the space nor a mesh for it.
        FileNotFoundError, MeshFileError
            If its mesh cannot be read, or numbers the dofs differently.
        """
        if name not in self._live:
            if self._path is None or name not in self._links:
                raise RuntimeError(
                    f"The data set has no mesh for {name!r}: it was made from arrays and a "
                    "signature. Give from_arrays the FunctionSpace, or use attach."
                )
            self._live[name] = self._build(name, expected)
        return self._live[name]

    def _build(self, name: str, expected: SpaceSignature) -> Any:
        link = self._links[name]
        for other, V in self._live.items():
            if self._links.get(other) == link:
                return space_on(mesh_of(V), expected, str(self._path))
        return read_space(str(self._path), link.number, link.name, expected)

    def write(self, file: h5py.File, names: list[str], skip: str) -> dict[str, MeshLink]:
        """Write the meshes of some spaces into an open file.

        Parameters
        ----------
        file : h5py.File
            Open for writing.
        names : list of str
            The spaces.
        skip : str
            The group of the old file, if there is one, that holds no meshes.

        Returns
        -------
        dict of str to MeshLink
            Where the meshes lie now; spaces without a mesh are missing.
        """
        links = {k: link for k, link in self._links.items() if k in names}
        if links and self._path is not None and self._path.exists():
            # What is in the file goes over as it is, without building the mesh.
            with h5py.File(self._path, "r") as source:
                copy_meshes(source, file, skip=[skip])
            return links
        meshes: list[Any] = []
        links = {}
        for name in names:
            if name not in self._live:
                continue
            mesh = mesh_of(self._live[name])
            if all(mesh is not other for other in meshes):
                meshes.append(mesh)
            number = next(i for i, other in enumerate(meshes) if other is mesh)
            links[name] = MeshLink(number, mesh.name)
        write_meshes(file, meshes)
        return links
