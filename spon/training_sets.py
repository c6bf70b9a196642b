"""Samples on one mesh or on several, each beside the network and the loss of its mesh."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from spon.samples import Samples

__all__ = ["Part", "TrainingSet"]


@dataclass(frozen=True)
class Part:
    """Samples on one mesh.

    Attributes
    ----------
    net : Module
        The network on this mesh. Its weights are those of the other parts.
    loss : callable
        The loss on this mesh.
    samples : Samples
    """

    net: nn.Module
    loss: Any
    samples: Samples

    def __len__(self) -> int:
        return len(self.samples)


class TrainingSet:
    """Samples on one mesh or on several, numbered from the first part's to the last one's.

    Parameters
    ----------
    parts : sequence of Part
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        self._ends = torch.tensor([len(part) for part in self.parts]).cumsum(0)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def networks(self) -> list[nn.Module]:
        """The networks of the parts, each of them once."""
        return list({id(part.net): part.net for part in self.parts}.values())

    def pieces(self, rows: Tensor) -> Iterator[Part]:
        """Some samples, mesh by mesh.

        Parameters
        ----------
        rows : Tensor, shape (m,)
            Numbers of samples in any order.

        Yields
        ------
        Part
            Those of one part in the order of `rows`; parts without any are left out.
        """
        if len(self.parts) == 1:
            owners = [0] if len(rows) else []
            where = torch.zeros_like(rows)
        else:
            where = torch.bucketize(rows, self._ends, right=True)
            owners = where.unique().tolist()
        for i in owners:
            part = self.parts[i]
            own = rows[where == i] - (self._ends[i] - len(part))
            yield replace(part, samples=part.samples.take(own))

    def take(self, rows: Tensor) -> TrainingSet:
        """The samples of the given numbers, in ascending order."""
        return TrainingSet(list(self.pieces(rows.sort().values)))

    def to(self, device: torch.device) -> TrainingSet:
        """The samples on a device; networks and losses stay where they are."""
        return self._each(lambda samples: samples.to(device))

    def settled(self, device: torch.device) -> TrainingSet:
        """The samples on the device as far as they fit, see `Samples.settled`."""
        return self._each(lambda samples: samples.settled(device))

    def fingerprint(self) -> str:
        """Numbers of samples and hashes of all their numbers, for messages and comparisons."""
        return "; ".join(part.samples.fingerprint() for part in self.parts)

    def _each(self, change: Any) -> TrainingSet:
        return TrainingSet([replace(p, samples=change(p.samples)) for p in self.parts])
