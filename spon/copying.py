"""What copies of a module share with it: meshes, spaces and factorisations, or its numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, TypeVar

from torch import nn

__all__ = ["deepcopy_sharing", "share_buffers"]

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


def share_buffers(module: nn.Module, other: nn.Module) -> None:
    """Let a module have the very buffers of another one, whatever is done to either of them.

    Parameters
    ----------
    module, other : Module
        Of one class. Their submodules are not looked at.
    """
    # The table of buffers, not the tensors in it: `.to` puts other tensors into the table.
    module._buffers = other._buffers
