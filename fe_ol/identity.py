"""What an RVE is, in a form that fits into a file and compares with another."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from spon import fem
from spon.signature import SpaceSignature

__all__ = [
    "STRETCHES",
    "compare_identities",
    "describe_law",
    "identity",
    "joined_identities",
    "varied",
]

# Key that marks an RVE of which only the answers to right stretch tensors are known.
STRETCHES = "stretches"
_LEAST, _MOST = "from", "to"  # of a number that is a range


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
        ``{"law": "LinearElastic", "parameters": {"K": 43452.381, "G": 29918.0328}}`` for example;
        of tensors their present values.

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
    return {"law": type(law).__name__, "parameters": {n: _plain(v) for n, v in values.items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().tolist()
    return describe_law(value) if dataclasses.is_dataclass(value) else value


def compare_identities(saved: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Say in words what differs between two RVEs.

    Parameters
    ----------
    saved, found : dict
        What `identity` returned, then and now. Where `saved` has a range of a parameter, what is
        found has to lie in it.

    Returns
    -------
    list of str
        Empty if the RVEs are the same.
    """
    lines = [
        f"{key} is {saved.get(key)!r} there and {value!r} here"
        for key, value in found.items()
        if key not in ("space", "tags", "points") and not _within(saved.get(key), value)
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


def joined_identities(identities: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One identity for RVEs that differ in parameters of their laws alone.

    Parameters
    ----------
    identities : sequence of dict
        What `identity` returned, or this.

    Returns
    -------
    dict
        The first one, with ``{"from": least, "to": largest}`` in the place of each number that
        varies.

    Raises
    ------
    ValueError
        If there are none, or they differ in something else; the message says in what.
    """
    if not identities:
        raise ValueError("Nothing to join: give the snapshots of at least one RVE.")
    first, *others = identities
    for other in others:
        laws = _spanned(first["laws"], other["laws"])
        lines = compare_identities({**first, "laws": None}, {**other, "laws": None})
        if laws is None:
            lines.append(f"the laws are {first['laws']!r} and {other['laws']!r}")
        if lines:
            raise ValueError(
                "Only RVEs that differ in numbers among the parameters of their laws can be "
                f"joined: {'; '.join(lines)}."
            )
        first = {**first, "laws": laws}
    return first


def varied(description: dict[str, Any]) -> list[str]:
    """Say in words which parameters of an identity are ranges.

    Parameters
    ----------
    description : dict
        What `joined_identities` returned.

    Returns
    -------
    list of str
        Such as "G of the law 2 from 1000 to 3000".
    """
    return [
        f"{name} of the law {tag} from {least:g} to {most:g}"
        for tag, law in description.get("laws", {}).items()
        for name, least, most in _ranges(law["parameters"], "")
    ]


def _is_range(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {_LEAST, _MOST}


def _ends(value: Any) -> tuple[float, float] | None:
    """Ends of a range, twice the value of a number, None of something else."""
    if _is_range(value):
        return value[_LEAST], value[_MOST]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value, value
    return None


def _within(saved: Any, found: Any) -> bool:
    if _is_range(saved):
        ends = _ends(found)
        return ends is not None and saved[_LEAST] <= ends[0] and ends[1] <= saved[_MOST]
    if isinstance(saved, dict) and isinstance(found, dict):
        return saved.keys() == found.keys() and all(_within(saved[k], found[k]) for k in saved)
    return bool(saved == found)


def _spanned(a: Any, b: Any) -> Any:
    """Two descriptions with ranges where their numbers differ, None if that is not all."""
    if a == b:
        return a
    ends = [_ends(value) for value in (a, b)]
    if ends[0] is not None and ends[1] is not None:
        return {_LEAST: min(ends[0][0], ends[1][0]), _MOST: max(ends[0][1], ends[1][1])}
    if not (isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys()):
        return None
    joined = {key: _spanned(a[key], b[key]) for key in a}
    # None is also what a parameter may be.
    return None if any(v is None and a[k] is not None for k, v in joined.items()) else joined


def _ranges(parameters: dict[str, Any], name: str) -> Iterator[tuple[str, float, float]]:
    for key, value in parameters.items():
        if _is_range(value):
            yield f"{name}{key}", value[_LEAST], value[_MOST]
        elif isinstance(value, dict) and "parameters" in value:
            yield from _ranges(value["parameters"], f"{name}{key}.")
