"""The scales of a network, from data on one mesh or on several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spon import fem
from spon.normalisation import fit_together
from spon.sparse import SparseMap

__all__ = ["calibrate_together"]


def calibrate_together(
    networks: Sequence[Any],
    inputs: Sequence[Sequence[Tensor]],
    outputs: Sequence[Tensor | None],
) -> None:
    """Take the scales of a network from data on several meshes together.

    Parameters
    ----------
    networks : sequence of OperatorNetwork
        The same weights on different meshes. The first one takes the scales, and with it those that
        share them.
    inputs : sequence of sequence of Tensor
        For each network, what `OperatorNetwork.calibrate` takes.
    outputs : sequence of Tensor or None
        The same for outputs; the scale is left at one if any is None.

    Raises
    ------
    ValueError
        As `OperatorNetwork.calibrate`.
    """
    first = networks[0]
    for net, given in zip(networks, inputs, strict=True):
        net._check_count(given)
    with torch.no_grad():
        for i, norm in enumerate(first._norms):
            encoders = [net._encoders[i] for net in networks]
            encoded = [
                encoder(x[i].to(first.device, first.dtype))
                for encoder, x in zip(encoders, inputs, strict=True)
            ]
            masses = [_masses(first.processor, encoder.space) for encoder in encoders]
            fit_together([norm, *(net._norms[i] for net in networks[1:])], encoded, masses)
        known = [u.to(first.device, first.dtype) for u in outputs if u is not None]
        if len(known) < len(networks):
            first.output_norm.fitted.fill_(True)
            return
        latent = [net.decoder.pull_back(u) for net, u in zip(networks, known, strict=True)]
        masses = [_masses(first.processor, net.decoder.latent) for net in networks]
        fit_together([net.output_norm for net in networks], latent, masses)


def _masses(processor: Any, space: Any) -> list[SparseMap] | None:
    # Where the weights serve on any mesh, so must the scales: dofs that are integrals over
    # facets or edges shrink with them, the values of the functions do not.
    return fem.mean_mass(space) if processor.mesh_independent else None
