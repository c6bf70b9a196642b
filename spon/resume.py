"""The state of a training run in a file: written in one step, refused where it does not belong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spon.history import replaced

__all__ = ["read_state", "write_state"]

_FORMAT = "spon training state 1"


def write_state(
    path: str | os.PathLike[str], net: nn.Module, settings: dict[str, Any], state: dict[str, Any]
) -> None:
    """Write a training state; an older one is replaced in one step.

    Parameters
    ----------
    path : path-like
    net : Module
        The network that is trained. Its current weights are stored.
    settings : dict
        What must be the same for a resumed run to give the same numbers: names to strings,
        numbers or None.
    state : dict
        Tensors, numbers, strings, lists and dicts of them.
    """
    content = {
        "format": _FORMAT,
        "settings": settings,
        "weights": net.state_dict(),
        "state": state,
    }
    with replaced(path) as temporary:
        torch.save(content, temporary)


def read_state(
    path: str | os.PathLike[str], net: nn.Module, settings: dict[str, Any]
) -> dict[str, Any] | None:
    """Read a training state.

    Parameters
    ----------
    path : path-like
    net : Module
        The network that is to be trained on; it is compared, not changed.
    settings : dict
        The settings of this run.

    Returns
    -------
    dict or None
        What `write_state` was given as `state`, with the weights under ``"weights"``; None if
        there is no such file.

    Raises
    ------
    RuntimeError
        If the file is not a training state.
    ValueError
        If it belongs to another network or to other settings.
    """
    if not Path(path).exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RuntimeError(
            f"Cannot read {os.fspath(path)!r} as a training checkpoint ({type(error).__name__}). "
            "Delete it to start afresh, or choose another file name."
        ) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise RuntimeError(
            f"{os.fspath(path)!r} is not a training checkpoint of this version ({_FORMAT!r}). "
            "Delete it to start afresh, or choose another file name."
        )
    here = net.state_dict()
    # What older files lack and `net` takes its defaults for is no difference.
    late = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in net.named_modules()
        for name in getattr(module, "added_later", ())
    }
    here = {k: v for k, v in here.items() if k in content["weights"] or k not in late}
    _compare_networks(path, content["weights"], here)
    _compare_settings(path, content["settings"], settings)
    state: dict[str, Any] = content["state"]
    return {**state, "weights": content["weights"]}


def _compare_networks(path: Any, stored: dict[str, Any], here: dict[str, Any]) -> None:
    shapes_stored, shapes_here = _shapes(stored), _shapes(here)
    if shapes_stored == shapes_here:
        return
    names = [*shapes_stored, *shapes_here]
    name = next(n for n in names if shapes_stored.get(n) != shapes_here.get(n))
    raise ValueError(
        f"The checkpoint {os.fspath(path)!r} belongs to another network: it has {_size(stored)}, "
        f"this network has {_size(here)}; the first difference is {name!r}, "
        f"{shapes_stored.get(name, 'absent')} in the file and {shapes_here.get(name, 'absent')} "
        "here. Choose another file name, or delete the file to start afresh."
    )


def _compare_settings(path: Any, stored: dict[str, Any], here: dict[str, Any]) -> None:
    names = [n for n in {**stored, **here} if stored.get(n) != here.get(n)]
    if not names:
        return
    differences = "; ".join(
        f"{n}: {stored.get(n)!r} in the file, {here.get(n)!r} here" for n in names
    )
    raise ValueError(
        f"The checkpoint {os.fspath(path)!r} belongs to a run with other settings ({differences}). "
        "Give the same settings to resume it, choose another file name, or delete the file to "
        "start afresh."
    )


def _shapes(weights: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(w.shape) for name, w in weights.items() if isinstance(w, torch.Tensor)}


def _size(weights: dict[str, Any]) -> str:
    tensors = [w for w in weights.values() if isinstance(w, torch.Tensor)]
    return f"{sum(w.numel() for w in tensors):,} numbers in {len(tensors)} tensors"
