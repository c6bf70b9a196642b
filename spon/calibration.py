"""The scales of a network, from data on one mesh or on several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spon import fem
from spon.normalisation import fit_together
from spon.processors import Geometry
from spon.processors.merging import kind, merged
from spon.promises import fit_margins
from spon.sparse import SparseMap

__all__ = ["calibrate_together", "fit_linear_together"]

# So many samples determine the few weights of a linear path; where each has many nodes, fewer do,
# and a fit looks at so many nodes in all.
_FEW, _LEAST, _LOOKS = 128, 16, 500_000
_MANY = 50_000  # nodes that are looked at together


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
        net.follow_weights()
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
        bounds = [net.decoder.bounds for net in networks]
        if all(b is not None for b in bounds):
            fit_margins(bounds, [u.to(first.device) for u in outputs if u is not None])


def fit_linear_together(
    networks: Sequence[Any], inputs: Sequence[Sequence[Tensor]], outputs: Sequence[Tensor]
) -> None:
    """Fit the linear path of the processor to samples of several meshes, if it has one.

    Each mesh gives as many samples, over again where it has fewer; all meshes are looked at, as
    long as they are not too large together. The path of a processor that takes no merged
    geometries is fitted on the first mesh. A processor with frozen weights stays as it is: a path
    that is fitted and a nonlinear part that begins at zero belong together.

    Parameters
    ----------
    networks : sequence of OperatorNetwork
        The same weights on different meshes, calibrated.
    inputs : sequence of sequence of Tensor
        For each network, what `OperatorNetwork.calibrate` takes.
    outputs : sequence of Tensor
        The outputs of these inputs.
    """
    first = networks[0]
    if any(net.decoder.kept is not None for net in networks):
        return
    if not all(weight.requires_grad for weight in first.processor.parameters()):
        return
    chosen = _looked_at([net.geometry for net in networks], first.processor.mergeable)
    nodes = max(networks[i].geometry.nodes for i in chosen)
    few = max(_LEAST, min(_FEW, _LOOKS // max(nodes, 1)))
    each = min(max(few // len(chosen), 1), max(len(outputs[i]) for i in chosen))
    rows = {i: torch.arange(each) % len(outputs[i]) for i in chosen}
    nets = [networks[i] for i in chosen]
    place = {"device": first.device, "dtype": first.dtype}
    with torch.no_grad():
        xs = [
            net.processor_inputs([x[rows[i].to(x.device)].to(**place) for x in inputs[i]])
            for i, net in zip(chosen, nets, strict=True)
        ]
        y = [
            net.output_norm(outputs[i][rows[i].to(outputs[i].device)].to(**place)).T
            for i, net in zip(chosen, nets, strict=True)
        ]
        first.processor.fit_linear(
            [torch.cat(x) for x in zip(*xs, strict=True)],
            torch.cat(y),
            first.geometry if len(nets) == 1 else merged([net.geometry for net in nets]),
            torch.cat([~net.decoder.constrained for net in nets]),
        )


def _looked_at(geometries: Sequence[Geometry], mergeable: bool) -> list[int]:
    """The first geometry and those which are merged with it."""
    chosen, nodes = [0], geometries[0].nodes
    for i, geometry in enumerate(geometries[1:_FEW] if mergeable else [], start=1):
        if kind(geometry) == kind(geometries[0]) and nodes + geometry.nodes <= _MANY:
            chosen.append(i)
            nodes += geometry.nodes
    return chosen


def _masses(processor: Any, space: Any) -> list[SparseMap] | None:
    # Where the weights serve on any mesh, so must the scales: dofs that are integrals over
    # facets or edges shrink with them, the values of the functions do not.
    return fem.mean_mass(space) if processor.mesh_independent else None
