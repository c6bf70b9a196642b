"""Laws and the cell that they belong to, from a small TOML or JSON file."""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
from pathlib import Path
from typing import Any

from fe_ol import materials
from fe_ol.materials import EnergyLaw

__all__ = ["read_laws"]

_LAWS = {
    name: law
    for name in materials.__all__
    if isinstance(law := getattr(materials, name), type)
    and issubclass(law, EnergyLaw)
    and dataclasses.is_dataclass(law)
}


def read_laws(path: str | os.PathLike[str]) -> tuple[Any, dict[str, Any]]:
    """Read a file such as ::

        [1]                          # tag of the cells of the mesh
        law = "NonlinearElastic"
        K = 4780.0
        a1 = 50.0
        a2 = 0.06

        [2]
        law = "LinearElastic"        # K and G, or Young's modulus and Poisson's ratio
        E = 73000.0
        nu = 0.22

        [rve]                        # may be missing: what fe_ol.RVE takes by name
        family = "S"

    Without tags, ``law = "..."`` and its parameters at the beginning hold for all cells.

    Parameters
    ----------
    path : path
        A file in TOML, or with the ending ``.json`` the same in JSON.

    Returns
    -------
    laws : dict of int to EnergyLaw, or EnergyLaw
    options : dict
        The table ``rve``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it cannot be read, or a law is unknown or has other parameters.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file of laws at {str(path)!r}.")
    try:
        text = path.read_text()
        table = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        kind = "JSON" if path.suffix.lower() == ".json" else "TOML"
        raise ValueError(f"{str(path)!r} is not {kind}: {error}.") from error
    if not isinstance(table, dict):
        raise ValueError(f"{str(path)!r} holds {type(table).__name__}, expected tables of laws.")
    options = table.pop("rve", {})
    if not isinstance(options, dict):
        raise ValueError(f"rve in {str(path)!r} is a table of options, got {options!r}.")
    if "law" in table:
        return _law(table, f"The law in {str(path)!r}"), options
    laws = {}
    for tag, described in table.items():
        if not tag.isdecimal() or not isinstance(described, dict):
            raise ValueError(
                f"{str(path)!r} has the entry {tag!r}; expected a table for each cell tag, such as "
                "[1], and [rve]."
            )
        laws[int(tag)] = _law(described, f"The law of tag {tag} in {str(path)!r}")
    if not laws:
        raise ValueError(f'{str(path)!r} holds no law: begin with [1] and law = "LinearElastic".')
    return laws, options


def _law(described: dict[str, Any], what: str) -> Any:
    values = dict(described)
    name = values.pop("law", None)
    if name not in _LAWS:
        raise ValueError(f"{what} is {name!r}, expected law = one of {sorted(_LAWS)}.")
    law = _LAWS[name]
    wanted = {f.name for f in dataclasses.fields(law)}
    ways = [wanted, {"E", "nu"}] if hasattr(law, "from_young") else [wanted]
    if set(values) not in ways:
        readable = " or ".join(f"{sorted(way)}" for way in ways)
        raise ValueError(f"{what}: {name} takes {readable}, got {sorted(values)}.")
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{what}: {key} is a number, got {value!r}.")
    numbers = {key: float(value) for key, value in values.items()}
    try:
        return law(**numbers) if set(numbers) == wanted else law.from_young(**numbers)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
