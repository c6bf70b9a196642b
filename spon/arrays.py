"""Named arrays of coefficient vectors: what a data set accepts, and how it refuses the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spon.signature import SpaceSignature

__all__ = ["coefficient_rows", "coefficients", "integers", "named"]


def named(fields: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    """Refuse what is no mapping of Python identifiers to something.

    Raises
    ------
    TypeError, ValueError
        If `fields` is no mapping, is empty, or has a key that is no identifier.
    """
    if not isinstance(fields, Mapping):
        raise TypeError(
            f"{what} must map names to samples, like {{'f': ...}}; got {type(fields).__name__}."
        )
    if not fields:
        raise ValueError(f"{what} is empty: a data set needs at least one.")
    for name in fields:
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"{what}: {name!r} is no name; use a Python identifier.")
    return fields


def coefficients(
    fields: Mapping[str, Any], signatures: Mapping[str, SpaceSignature], what: str
) -> dict[str, Tensor]:
    """Coefficient vectors by name, each of shape (n, dim), that fit their spaces.

    Raises
    ------
    TypeError, ValueError
        If an array has no signature, another width than its space, or no numbers.
    """
    tensors = {}
    for name, values in named(fields, what).items():
        if name not in signatures:
            raise ValueError(f"{what}: there is no signature for {name!r}.")
        x = coefficient_rows(name, values)
        if x.shape[1] != signatures[name].dim:
            raise ValueError(
                f"{name!r} has shape {tuple(x.shape)}, expected (n, {signatures[name].dim}) for "
                f"{signatures[name].describe()}."
            )
        tensors[name] = x
    return tensors


def coefficient_rows(name: str, values: Any) -> Tensor:
    """A tensor of shape (n, dim), float64, on the CPU, without NaN.

    Raises
    ------
    TypeError, ValueError
        If `values` is no such array.
    """
    try:
        x = torch.as_tensor(values).detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name!r} is no array of numbers: {error}") from error
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(
            f"{name!r} has shape {tuple(x.shape)}, expected (n, dim) with n at least 1: one row of "
            "coefficients for each sample."
        )
    bad = (~torch.isfinite(x)).any(dim=1).nonzero().flatten().tolist()
    if bad:
        shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise ValueError(f"{name!r} holds NaN or infinity in {len(bad)} samples: {shown}.")
    return x.contiguous()


def integers(name: str, values: Any, shape: tuple[int, ...], default: int) -> np.ndarray:
    """An array of integers of this shape; filled with `default` where `values` is None.

    Raises
    ------
    ValueError
        If the shape is another one.
    """
    if values is None:
        return np.full(shape, default, dtype=np.int64)
    array = np.asarray(values, dtype=np.int64)
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}.")
    return array
