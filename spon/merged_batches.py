"""Losses of a batch over several meshes, with as many meshes at a time as is fastest.

Meshes that have many nodes, or several samples in the batch, go through the network one after the
other. Small ones with one sample each go through it side by side, as one mesh, if its processor is
`mergeable`: the same numbers up to round-off, from fewer and larger operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from spon.processors.merging import kind, merged
from spon.samples import summed, summed_loss
from spon.training_sets import Part

__all__ = ["merged_loss", "summed_losses"]

# From so many nodes on message passing is no faster side by side (benchmarks/merged_meshes.py).
_SMALL = 1000


def summed_losses(pieces: Iterable[Part], device: torch.device) -> Iterator[Tensor]:
    """Sums of the losses of all samples, piece by piece.

    Parameters
    ----------
    pieces : iterable of Part
        The samples of a batch, mesh by mesh.
    device : torch.device
        Where the networks are.

    Yields
    ------
    Tensor
        Scalars, whose sum is that over the batch. One backward pass after each keeps as little in
        memory as can be.
    """
    groups: dict[Any, list[Part]] = {}
    for piece in pieces:
        key = _key(piece)
        if key is None:
            yield summed_loss(piece.net, piece.loss, piece.samples.to(device))
        else:
            groups.setdefault(key, []).append(piece)
    for group in groups.values():
        if len(group) == 1:
            yield summed_loss(group[0].net, group[0].loss, group[0].samples.to(device))
        else:
            yield merged_loss(group, device)


def _key(piece: Part) -> Any:
    """What pieces that go side by side have in common; None for one that goes by itself.

    Those of processors that are not `mergeable` go by themselves, and large ones, and those of
    several samples.
    """
    net = cast(Any, piece.net)
    processor = getattr(net, "processor", None)
    if len(piece) != 1 or not getattr(processor, "mergeable", False):
        return None
    return None if net.geometry.nodes > _SMALL else (id(processor), kind(net.geometry))


def merged_loss(group: Sequence[Part], device: torch.device) -> Tensor:
    """Sum of the losses of samples on several meshes, which go through the network side by side.

    Parameters
    ----------
    group : sequence of Part
        One processor, geometries of one `spon.processors.merging.kind`, one sample each.
    device : torch.device
        Where the networks are.

    Returns
    -------
    Tensor
        A scalar.
    """
    nets = [cast(Any, piece.net) for piece in group]
    batches = [piece.samples.to(device) for piece in group]
    xs = [net.processor_inputs(batch.inputs) for net, batch in zip(nets, batches, strict=True)]
    joined = [torch.cat(each) for each in zip(*xs, strict=True)]
    values = nets[0].processor(joined, merged([net.geometry for net in nets]))
    sizes = [net.geometry.read.shape[0] for net in nets]
    losses = []
    for piece, net, batch, own in zip(group, nets, batches, values.split(sizes), strict=True):
        losses.append(summed(piece.loss, net.decode(own, batch.boundary), batch))
    return torch.stack(losses).sum()
