"""Promises in a file: JSON for what is short, tensors for what belongs to the mesh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spon.fem.constraints import constant_value
from spon.fem.functionals import is_recipe
from spon.fem.promises import KeptPromises
from spon.promises import Specification

__all__ = ["promises_from_json", "promises_to_json"]


def promises_to_json(
    given: Specification, kept: KeptPromises
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The promises of a decoder as JSON-able values and tensors.

    Parameters
    ----------
    given : Specification
    kept : KeptPromises
        What was made of it.
    """
    tensors = {}
    divergence = given.divergence
    if divergence is not None and kept.source is not None:
        varies = is_recipe(divergence) or isinstance(divergence, Tensor | np.ndarray)
        divergence = None if varies else constant_value(divergence)
        tensors["divergence"] = kept.source
    if given.integrals:
        rows = kept.functionals.rows[-len(given.integrals) :]
        tensors["integrals"] = torch.from_numpy(rows.copy())
    data = {
        "divergence_free": given.divergence_free,
        "curl_free": given.curl_free,
        "divergence": divergence,
        "mean": None if given.mean is None else np.asarray(given.mean, dtype=float).tolist(),
        "integrals": [float(value) for _, value in given.integrals],
        "flux": [[tag, float(value)] for tag, value in given.flux.items()],
        "bounds": None if given.bounds is None else list(given.bounds),
        "symmetric": given.symmetric,
        "through": given.through,
        "symmetry": [
            [np.asarray(part, dtype=float).tolist() for part in g] for g in given.symmetry
        ],
    }
    return data, tensors


def promises_from_json(
    data: Mapping[str, Any], tensors: Mapping[str, Tensor], same_mesh: bool, known: Any = ()
) -> dict[str, Any]:
    """The keywords of a decoder from what `promises_to_json` returned.

    Parameters
    ----------
    data, tensors : mappings
    same_mesh : bool
        Whether the tensors fit.
    known : collection of str, optional
        Promises that are given in another way, and not to be read.

    Raises
    ------
    ValueError
        If a promise cannot be carried to another mesh.
    """
    keywords = {k: v for k, v in data.items() if k not in known}
    flux = keywords.get("flux", [])
    keywords["flux"] = {tuple(t) if isinstance(t, list) else t: value for t, value in flux}
    if keywords.get("bounds") is not None:
        keywords["bounds"] = tuple(keywords["bounds"])
    values = keywords.get("integrals") or []
    varies = keywords.get("divergence") is None and "divergence" in tensors
    varies = varies and "divergence" not in known
    if (values or varies) and not same_mesh:
        name = "integrals" if values else "divergence"
        raise ValueError(
            f"The decoder in the file promises {name} as coefficients on its own mesh: give those "
            f"of the other mesh with promises={{'{name}': ...}}."
        )
    if values:
        rows = tensors["integrals"].numpy()
        keywords["integrals"] = list(zip(rows, values, strict=True))
    if varies:
        keywords["divergence"] = tensors["divergence"]
    return {k: v for k, v in keywords.items() if k not in known}
