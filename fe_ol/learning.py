"""What a guarded surrogate learns from: cells that the RVE had to solve."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fe_ol.snapshots import Snapshots

__all__ = ["Lessons"]


class Lessons:
    """Solved cells, and the refit with some of them.

    Parameters
    ----------
    rve : RVE
    snapshots : Snapshots or None
        What the surrogate was made of.
    kind : type
        Class of the surrogate.
    options : dict
        For its ``fit``.
    largest : int, optional
        At most so many of the solved cells become snapshots: those whose strains lie farthest from
        each other and from the snapshots.
    """

    def __init__(
        self,
        rve: Any,
        snapshots: Snapshots | None,
        kind: type,
        options: dict[str, Any],
        largest: int = 100,
    ) -> None:
        self.rve, self.snapshots, self.kind, self.options = rve, snapshots, kind, options
        self.largest = largest
        self._states: list[Tensor] = []

    def __len__(self) -> int:
        return sum(len(s) for s in self._states)

    def note(self, states: Tensor) -> None:
        """Keep the states of solved cells, shape (k, s)."""
        if len(states):
            self._states.append(states)

    def taught(self, progress: bool) -> Any:
        """A surrogate made of the snapshots and of the solved cells.

        Raises
        ------
        ValueError
            If there are no solved cells.
        """
        if not self._states or self.snapshots is None:
            raise ValueError("There is nothing to learn: the RVE was not asked yet.")
        states = torch.cat(self._states)
        strain, fluctuation = self.rve.split_state(states)
        chosen = farthest(strain, self.snapshots.strain, self.largest)
        strain, fluctuation = strain[chosen], fluctuation[chosen]
        stress = torch.cat(
            [
                self.rve.law(e[None, None] + self.rve.gradient(w[None]))
                for e, w in zip(strain, fluctuation, strict=True)
            ]
        )
        mean = (stress * self.rve.weights[:, None]).sum(1) / self.rve.volume
        self.snapshots = self.snapshots.extended(strain, fluctuation, stress, mean)
        self._states.clear()
        return self.kind.fit(self.rve, self.snapshots, progress=progress, **self.options)  # type: ignore[attr-defined]


def farthest(points: Tensor, known: Tensor, count: int) -> Tensor:
    """Indices of points that lie far from known ones and from each other, one after the other."""
    distance = torch.cdist(points, known).amin(1)
    chosen: list[int] = []
    for _ in range(min(count, len(points))):
        best = int(distance.argmax())
        if not float(distance[best]) > 0:
            break
        chosen.append(best)
        distance = torch.minimum(distance, (points - points[best]).norm(dim=1))
    return torch.tensor(chosen, dtype=torch.int64)
