"""A surrogate in one file: tensors (safetensors) and what they mean (JSON). No pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from fe_ol import materials
from spon.datafile import versions
from spon.history import replaced

__all__ = ["kind_of", "laws_from_json", "part", "read", "write"]

_KEY, _FORMAT = "fe_ol", 1
_CONVENTIONS = {
    "strain": "small: (xx, yy, 2 xy) or (xx, yy, zz, 2 yz, 2 xz, 2 xy); finite: row-major F",
    "stress": "small: (xx, yy, xy) or (xx, yy, zz, yz, xz, xy); finite: row-major first Piola",
    "units": "those of the laws: stress like their moduli",
}


def write(path: str | os.PathLike[str], kind: str, facts: dict[str, Any], tensors: Any) -> None:
    """Write a file under a temporary name and rename it.

    Parameters
    ----------
    path : path
    kind : str
        Class of the surrogate.
    facts : dict
        JSON-able.
    tensors : mapping of str to Tensor
    """
    header = {
        "format": _FORMAT,
        "kind": kind,
        "conventions": _CONVENTIONS,
        "versions": versions(),
        **facts,
    }
    clean = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    with replaced(path) as temporary:
        safetensors.torch.save_file(clean, temporary, metadata={_KEY: json.dumps(header)})
        # safetensors makes files that only their owner can read.
        mask = os.umask(0o077)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)


def read(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a file.

    Returns
    -------
    facts : dict
    tensors : dict of str to Tensor

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it is no surrogate, one of another kind, or of a newer format.
    """
    path = Path(path)
    header, tensors = _contents(path, f"{kind}.save", weights=True)
    if header["kind"] != kind:
        raise ValueError(
            f"{str(path)!r} holds a surrogate of the kind {header['kind']}, not {kind}: load it "
            f"with fe_ol.{header['kind']}.load."
        )
    return header, tensors


def kind_of(path: str | os.PathLike[str]) -> str:
    """Class of the surrogate in a file.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read` does.
    """
    return str(_contents(Path(path), "the save of a surrogate", weights=False)[0]["kind"])


def _contents(path: Path, writer: str, weights: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no surrogate at {str(path)!r}.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_KEY])
            keys = file.keys() if weights else ()
            tensors = {key: file.get_tensor(key) for key in keys}
    except (safetensors.SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{str(path)!r} is not a surrogate of fe_ol: expected what {writer} wrote."
        ) from error
    if header["format"] > _FORMAT:
        raise ValueError(
            f"{str(path)!r} has format {header['format']}, this fe_ol reads up to {_FORMAT}: "
            "update fe_ol."
        )
    return header, tensors


def part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``name.``, without that beginning."""
    start = f"{name}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def laws_from_json(described: dict[str, dict[str, Any]]) -> dict[int, Any]:
    """Laws from what `fe_ol.identity.describe_law` said of them.

    Raises
    ------
    ValueError
        If a law is none of fe_ol's own: it then has to come with an RVE.
    """
    return {int(tag): _law(description) for tag, description in described.items()}


def _law(description: dict[str, Any]) -> Any:
    name = description["law"]
    law = getattr(materials, name, None)
    if law is None or name not in materials.__all__:
        raise ValueError(
            f"The law {name} is none of fe_ol.materials {materials.__all__}: give load() the RVE, "
            "which has it."
        )
    values = {
        key: _law(value) if isinstance(value, dict) and "law" in value else value
        for key, value in description["parameters"].items()
    }
    return law(**values)
