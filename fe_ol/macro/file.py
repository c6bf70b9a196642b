"""The file that a macroscopic simulation is resumed from."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from fe_ol.macro.newton import Attempt
from fe_ol.macro.result import Step
from spon.datafile import versions
from spon.history import replaced

__all__ = ["MacroFileError", "digest", "read_steps", "write_steps"]

_FORMAT, _VERSION = "fe_ol macro problem", 1


class MacroFileError(ValueError):
    """A file is no checkpoint of a macroscopic problem, or one of another problem."""


def digest(*arrays: Any) -> str:
    """Short hash of arrays, the same in every process that computed them alike."""
    total = hashlib.sha256()
    for array in arrays:
        # Rounded: what is computed twice may differ in the last bits.
        values = np.ascontiguousarray(array)
        if values.dtype.kind == "f":
            values = np.round(values, 10) + 0.0
        total.update(str(values.shape).encode())
        total.update(values.tobytes())
    return total.hexdigest()[:16]


def write_steps(
    path: str | os.PathLike[str],
    comm: Any,
    identity: dict[str, Any],
    steps: list[Step],
    states: dict[str, list[Any]],
    increment: dict[str, Any],
) -> None:
    """Write a file under a temporary name, then rename it; one process writes for all.

    Parameters
    ----------
    path : path
    comm : mpi4py communicator
    identity : dict
        JSON-able facts of which a difference means another problem.
    steps : list of Step
    states : dict of str to list of Tensor or None
        What `Points.memory` returned.
    increment : dict
        JSON-able state of the step control.
    """
    mine = {
        "displacements": np.array(
            [s.displacement.dat.data_ro.reshape(-1) for s in steps], dtype=np.float64
        ),
        "states": {
            f"{when} {k}": state.numpy()
            for when, those in states.items()
            for k, state in enumerate(those)
            if state is not None
        },
    }
    parts = comm.gather(mine)
    error = None
    if comm.rank == 0:
        try:
            with replaced(path) as scratch, h5py.File(scratch, "w") as file:
                file.attrs["format"], file.attrs["version"] = _FORMAT, _VERSION
                for name, number in versions().items():
                    file.attrs[name] = number
                texts = {
                    "identity": identity,
                    "increment": increment,
                    "steps": [_record(s) for s in steps],
                }
                for name, content in texts.items():
                    text = np.bytes_(json.dumps(content).encode())
                    file.create_dataset(name, data=text, track_times=False)
                for rank, part in enumerate(parts):
                    group = file.create_group(f"process {rank}")
                    group.create_dataset("displacements", data=part["displacements"])
                    for name, state in part["states"].items():
                        group.create_dataset(f"states/{name}", data=state)
        except OSError as caught:
            error = caught
    failed = comm.bcast(None if error is None else str(error))
    if failed:
        raise OSError(f"The checkpoint {str(path)!r} could not be written: {failed}") from error


def read_steps(
    path: str | os.PathLike[str], comm: Any, identity: dict[str, Any], make: Any, materials: int
) -> tuple[list[Step], dict[str, list[Any]], dict[str, Any]]:
    """Read what `write_steps` wrote.

    Parameters
    ----------
    path : path
    comm : mpi4py communicator
    identity : dict
    make : callable
        From the dofs of this process to a Function.
    materials : int
        Number of materials.

    Returns
    -------
    steps : list of Step
    states : dict of str to list of Tensor or None
    increment : dict

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    MacroFileError
        If it is something else or of another problem; the message says what differs.
    """
    shown = repr(os.fspath(path))
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no checkpoint at {shown}.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise MacroFileError(f"{shown} is not an HDF5 file: {error}") from error
    with file:
        if file.attrs.get("format") != _FORMAT or file.attrs.get("version") != _VERSION:
            raise MacroFileError(
                f"{shown} is no checkpoint of a MacroProblem that this version reads: expected the "
                f"format {_FORMAT!r}, version {_VERSION}."
            )
        stored = json.loads(file["identity"][()])
        lines = [
            f"{key} is {stored.get(key)} there and {value} here"
            for key, value in json.loads(json.dumps(identity)).items()
            if stored.get(key) != value
        ]
        if lines:
            raise MacroFileError(
                f"{shown} belongs to another problem: {'; '.join(lines)}. Give checkpoint= another "
                "name, or resume=False to begin anew."
            )
        group = file[f"process {comm.rank}"]
        records = json.loads(file["steps"][()])
        rows = group["displacements"][()]
        states: dict[str, list[Any]] = {}
        for when in ("before", "after"):
            names = [f"states/{when} {k}" for k in range(materials)]
            states[when] = [
                torch.from_numpy(group[name][()]) if name in group else None for name in names
            ]
        increment = json.loads(file["increment"][()])
    return [_step(r, make(row)) for r, row in zip(records, rows, strict=True)], states, increment


def _record(step: Step) -> dict[str, Any]:
    return {
        "factor": step.factor,
        "reactions": {str(tag): list(map(float, f)) for tag, f in step.reactions.items()},
        "attempts": [asdict(a) for a in step.attempts],
        "material_seconds": step.material_seconds,
        "other_seconds": step.other_seconds,
        "calls": step.calls,
        "arc_length": step.arc_length,
    }


def _step(record: dict[str, Any], displacement: Any) -> Step:
    return Step(
        **{
            **record,
            "displacement": displacement,
            "reactions": {int(tag): np.array(f) for tag, f in record["reactions"].items()},
            "attempts": [Attempt(**a) for a in record["attempts"]],
        }
    )
