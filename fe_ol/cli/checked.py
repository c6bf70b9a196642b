"""Options by name, checked against the function that takes them before anything is computed."""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["checked", "parsed", "takes"]


def takes(function: Callable[..., Any], *further: type, skip: Iterable[str] = ()) -> dict[str, Any]:
    """Names and types of the options that a function takes.

    Parameters
    ----------
    function : callable
    *further : dataclass types
        Whose fields are options too, where the function hands ``**options`` on to them.
    skip : iterable of str, optional
        What is no option.

    Returns
    -------
    dict of str to type
    """
    out: dict[str, Any] = {}
    sources: tuple[Callable[..., Any], ...] = (function, *further)
    for source in sources:
        made = vars(source)["__init__"] if isinstance(source, type) else source
        hints = typing.get_type_hints(made)
        for name, parameter in inspect.signature(source).parameters.items():
            named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if named and name not in skip:
                out[name] = hints.get(name, Any)
    return out


def checked(values: Mapping[str, Any], types_: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The options, if all are known and of the right type; integers become floats where needed.

    Parameters
    ----------
    values : mapping of str to JSON-able values
    types_ : mapping of str to type
        What `takes` returned.
    what : str
        Whose options they are, for messages.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        If one is unknown, or of another type.
    """
    out = {}
    for name, value in values.items():
        if name not in types_:
            raise ValueError(f"{what} has no option {name!r}; it takes {sorted(types_)}.")
        allowed = _alternatives(types_[name])
        if type(value) is int and int not in allowed and float in allowed:
            value = float(value)
        if Any not in allowed and type(value) not in allowed:
            names = " or ".join("none" if t is type(None) else t.__name__ for t in allowed)
            raise ValueError(f"The option {name!r} of {what} is of type {names}, got {value!r}.")
        out[name] = value
    return out


def parsed(pairs: Iterable[str], option: str) -> dict[str, Any]:
    """``["epochs=300", "optimiser=adam"]`` as a dict; values are JSON or else text.

    Raises
    ------
    ValueError
        If one is not of that form, or a name comes twice.
    """
    out: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise ValueError(f"{option} takes NAME=VALUE, such as epochs=300, got {pair!r}.")
        if name in out:
            raise ValueError(f"{option} gives {name!r} twice.")
        try:
            out[name] = json.loads(text)
        except json.JSONDecodeError:
            out[name] = text
    return out


def _alternatives(hint: Any) -> list[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return list(typing.get_args(hint))
    return [hint]
