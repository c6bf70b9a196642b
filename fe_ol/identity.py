"""What an RVE is, in a form that fits into a file and compares with another."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np

from spon import fem
from spon.signature import SpaceSignature

__all__ = ["compare_identities", "describe_law", "identity"]


def identity(rve: Any) -> dict[str, Any]:
    """Dimension, boundary condition, laws, mesh and numbering of an RVE as JSON-able values.

    Parameters
    ----------
    rve : RVE

    Returns
    -------
    dict
    """
    # The geometry is in the signature of the space; weights may differ in their last bits.
    digest = hashlib.sha256(np.asarray(rve.tags, dtype=np.int64).tobytes())
    return {
        "dim": int(rve.dim),
        "finite": bool(rve.finite),
        "boundary": getattr(rve, "boundary", None),
        "plane": getattr(rve, "plane", None),
        "points": len(rve.weights),
        "tags": digest.hexdigest(),
        "laws": {str(tag): describe_law(law) for tag, law in sorted(rve.materials.items())},
        "space": fem.signature(rve.space).to_json(),
    }


def describe_law(law: Any) -> dict[str, Any]:
    """Class name and parameters of a law.

    Parameters
    ----------
    law : Material

    Returns
    -------
    dict
        ``{"law": "LinearElastic", "parameters": {"K": 43452.381, "G": 29918.0328}}`` for example.

    Raises
    ------
    TypeError
        If the law is not a dataclass: its parameters are then unknown, and another RVE would pass
        for this one.
    """
    if not dataclasses.is_dataclass(law):
        raise TypeError(
            f"The law {type(law).__name__} is not a dataclass, so its parameters cannot be written "
            "down and compared: make it one, in the manner of fe_ol.materials."
        )
    values = {f.name: getattr(law, f.name) for f in dataclasses.fields(law) if f.init}
    nested = {
        name: describe_law(value) if dataclasses.is_dataclass(value) else value
        for name, value in values.items()
    }
    return {"law": type(law).__name__, "parameters": nested}


def compare_identities(saved: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Say in words what differs between two RVEs.

    Parameters
    ----------
    saved, found : dict
        What `identity` returned, then and now.

    Returns
    -------
    list of str
        Empty if the RVEs are the same.
    """
    lines = [
        f"{key} is {saved.get(key)!r} there and {value!r} here"
        for key, value in found.items()
        if key not in ("space", "tags", "points") and saved.get(key) != value
    ]
    if saved.get("space") != found["space"]:
        lines.append(f"its space is {_space(saved)} there and {_space(found)} here")
    elif (saved.get("points"), saved.get("tags")) != (found["points"], found["tags"]):
        lines.append(
            f"it has {saved.get('points')} quadrature points there and {found['points']} here, or "
            "other tags"
        )
    return lines


def _space(record: dict[str, Any]) -> str:
    data = record.get("space")
    return "unknown" if data is None else SpaceSignature.from_json(data).describe()
