"""Deep copies of modules that share the meshes, spaces and factorisations they refer to."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, TypeVar

__all__ = ["deepcopy_sharing"]

M = TypeVar("M")


def deepcopy_sharing(module: M, memo: dict[int, Any], shared: Iterable[Any]) -> M:
    """Deep copy of an object that keeps references to the `shared` parts.

    Parameters
    ----------
    module : object
    memo : dict
        What `copy.deepcopy` hands to ``__deepcopy__``.
    shared : iterable
        Objects that the copy refers to as the original does.
    """
    for thing in shared:
        memo[id(thing)] = thing
    twin = type(module).__new__(type(module))
    memo[id(module)] = twin
    for name, value in vars(module).items():
        vars(twin)[name] = copy.deepcopy(value, memo)
    return twin
