"""What an RVE is given: laws, and loads of mean strains and mean stresses, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fe_ol.cell.equilibrium import Load
from fe_ol.materials import PlaneStress
from fe_ol.voigt import checked_strain, rest_strain

__all__ = ["checked_laws", "loads", "strain_load"]


def strain_load(strain: Tensor) -> Load:
    """The load of a mean strain, shape (c,), without prescribed stresses."""
    return Load(strain, torch.zeros_like(strain), torch.zeros_like(strain, dtype=torch.bool))


def loads(strain: Any, stress: Any, dim: int, finite: bool, what: str) -> list[Load]:
    """Loads of strains and stresses of which None or NaN marks the gaps.

    Parameters
    ----------
    strain : array, shape (n, c) or (c,)
    stress : array, shape (n, c) or (c,), or None
    dim : int
    finite : bool
    what : str
        Who asks, for messages.

    Returns
    -------
    list of Load

    Raises
    ------
    TypeError
        If something else than numbers and None is given.
    ValueError
        If shapes do not match, or a component has both strain and stress, or neither.
    """
    rest = rest_strain(dim, finite)
    c = len(rest)
    if stress is None:
        strains, _ = checked_strain(strain, (c,), what)
        return [strain_load(row) for row in strains.detach()]
    x, y = _with_gaps(strain), _with_gaps(stress)
    x, y = np.broadcast_arrays(np.atleast_2d(x), np.atleast_2d(y))
    if x.ndim != 2 or x.shape[1] != c:
        raise ValueError(
            f"Expected strains and stresses of shape (n, {c}), got {np.shape(strain)} and "
            f"{np.shape(stress)}."
        )
    wrong = np.isnan(x) == np.isnan(y)
    if wrong.any():
        i, j = np.argwhere(wrong)[0]
        what = "neither strain nor stress" if np.isnan(x[i, j]) else "both strain and stress"
        raise ValueError(f"Component {j} of load {i} has {what}: give one, and None for the other.")
    free = torch.from_numpy(np.isnan(x))
    strains = torch.where(free, rest, torch.from_numpy(x.copy()))
    stresses = torch.from_numpy(np.nan_to_num(y))
    return [Load(*row) for row in zip(strains, stresses, free, strict=True)]


def checked_laws(materials: Any, plane: str) -> dict[int, Any]:
    """Laws by tag, made laws of plane stress where asked for.

    Parameters
    ----------
    materials : mapping of int to Material, or Material
    plane : {"strain", "stress"}

    Returns
    -------
    dict of int to Material
        A single law has the tag 0.

    Raises
    ------
    TypeError
        If something is no material.
    ValueError
        If there is none, or laws of small and finite strain are mixed.
    """
    if plane not in ("strain", "stress"):
        raise ValueError(f'plane must be "strain" or "stress", got {plane!r}.')
    laws = dict(materials) if isinstance(materials, Mapping) else {0: materials}
    if not laws:
        raise ValueError("No laws are given: expected {tag: law}, or one law.")
    for tag, law in laws.items():
        if not callable(law) or not hasattr(law, "finite") or not hasattr(law, "history"):
            raise TypeError(
                f"The law of tag {tag} is a {type(law).__name__}, expected a material such as "
                "fe_ol.LinearElastic."
            )
    if len({law.finite for law in laws.values()}) > 1:
        kinds = {tag: "finite" if law.finite else "small" for tag, law in laws.items()}
        raise ValueError(f"Laws of small and of finite strain cannot be mixed, got {kinds}.")
    if plane == "stress":
        laws = {k: v if isinstance(v, PlaneStress) else PlaneStress(v) for k, v in laws.items()}
    return laws


def _with_gaps(values: Any) -> np.ndarray:
    try:
        return np.array(values, dtype=np.float64)  # None becomes NaN
    except (TypeError, ValueError) as error:
        raise TypeError(f"Expected numbers and None, got {values!r}: {error}.") from error
