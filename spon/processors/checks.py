"""Checks of constructor arguments, with messages that say what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

__all__ = ["check_choice", "check_integer", "check_range", "check_widths"]


def check_integer(name: str, value: Any, least: int = 1) -> int:
    """Return `value` as a plain int if it is an integer, of NumPy perhaps, of at least `least`.

    Raises
    ------
    TypeError
        If it is no integer.
    ValueError
        If it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")
    return int(value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return `value` if it is one of `choices`.

    Raises
    ------
    ValueError
        If it is not.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")
    return str(value)


def check_range(upper: str, high: Any, lower: str, low: Any) -> tuple[float, float]:
    """Return `high` and `low` as floats if they are positive, finite, in that order or equal.

    Raises
    ------
    TypeError
        If one is no number.
    ValueError
        If they are out of order, or not positive and finite.
    """
    for name, value in ((upper, high), (lower, low)):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be a number, got {value!r}.")
    if not (0.0 < low <= high and math.isfinite(high)):
        raise ValueError(f"Expected 0 < {lower} <= {upper}, got {lower}={low} and {upper}={high}.")
    return float(high), float(low)


def check_widths(name: str, value: Any) -> list[int]:
    """Return `value` as a list of plain ints if it is a sequence or array of positive integers.

    Raises
    ------
    TypeError, ValueError
        If it is not.
    """
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a sequence of integers, got {value!r}.")
    return [check_integer(f"{name}[{i}]", width) for i, width in enumerate(value)]
