"""The folder in which a run keeps its finished samples until all are done."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Parts", "RunMismatchError", "describe_difference"]


class RunMismatchError(ValueError):
    """What lies on the disk belongs to another run."""


class Parts:
    """Finished samples of one run, one file each, in the folder ``path + ".parts"``.

    Parameters
    ----------
    path : Path
        The file that the run makes.
    run : dict
        What tells this run from another; JSON-able.
    """

    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        self.folder = path.with_name(path.name + ".parts")
        try:
            # Through JSON and back, so that it compares equal with what is read from a file.
            self.run: dict[str, Any] = json.loads(json.dumps(run))
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"The description of the sampler must be JSON-able: {error}. Let describe() "
                "return numbers, strings, lists and dicts."
            ) from error

    def open(self) -> None:
        """Make the folder, or check that the one which is there belongs to this run.

        Raises
        ------
        RunMismatchError
            If it belongs to another one.
        """
        self._sweep()
        self.folder.mkdir(parents=True, exist_ok=True)
        note = self.folder / "run.json"
        if note.exists():
            difference = describe_difference(self.run, json.loads(note.read_text()))
            if difference:
                raise RunMismatchError(
                    f"{str(self.folder)!r} holds samples of another run: {difference}. Go on with "
                    "the old settings, choose another path, or remove the folder."
                )
        elif any(self.folder.glob("*.npz")):
            raise RunMismatchError(
                f"{str(self.folder)!r} holds samples, but not the note that says of which run. "
                "Choose another path, or remove the folder."
            )
        _replace(note, json.dumps(self.run, indent=1).encode())

    def has(self, index: int) -> bool:
        """Whether sample `index` is done, with success or not."""
        return self._file(index).exists()

    def write(self, index: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep a sample: arrays of shape (dim,) by name."""
        file = self._file(index)
        scratch = file.with_suffix(".tmp")
        with open(scratch, "wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
        os.replace(scratch, file)

    def write_failure(self, index: int, message: str) -> None:
        """Keep the note that a sample failed."""
        self.write(index, {"failure": np.array(message)})

    def read(self, index: int) -> dict[str, np.ndarray] | str:
        """A sample's arrays, or the message of its failure."""
        with np.load(self._file(index), allow_pickle=False) as stored:
            if "failure" in stored:
                return str(stored["failure"])
            return {name: stored[name] for name in stored.files}

    def remove(self) -> None:
        """Remove the folder, if it is there and belongs to this run."""
        note = self.folder / "run.json"
        if note.exists() and not describe_difference(self.run, json.loads(note.read_text())):
            # First out of the way in one step: a kill in between must not leave half a folder.
            self._sweep()
            os.replace(self.folder, self._trash)
        self._sweep()

    @property
    def _trash(self) -> Path:
        return self.folder.with_name(self.folder.name + ".old")

    def _sweep(self) -> None:
        if self._trash.exists():
            shutil.rmtree(self._trash)

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:08d}.npz"


def describe_difference(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Say in words what differs between two runs; an empty text if nothing does."""
    lines = [
        f"{key} is {found.get(key, 'missing')}, not {wanted[key]}"
        for key in wanted
        if found.get(key) != wanted[key]
    ]
    return "; ".join(lines)


def _replace(path: Path, contents: bytes) -> None:
    scratch = path.with_suffix(".tmp")
    scratch.write_bytes(contents)
    os.replace(scratch, path)
