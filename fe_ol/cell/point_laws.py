"""The laws of an RVE at all its quadrature points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["PointLaws"]


class PointLaws:
    """Laws by tag, evaluated at the points that have the tag.

    Parameters
    ----------
    materials : mapping of int to Material
    tags : Tensor, shape (p,)
    size : int
        Components of a strain.

    Attributes
    ----------
    history : bool
    state_size : int
        State variables of the whole cell: those of the points, one law after the other.
    """

    def __init__(self, materials: Mapping[int, Any], tags: Tensor, size: int) -> None:
        self._places = {tag: torch.nonzero(tags == tag)[:, 0] for tag in materials}
        self._materials, self._size = dict(materials), size
        self._rest: dict[int, Tensor] = {}
        for tag, law in materials.items():
            if law.history:
                self._rest[tag] = law.initial_state(len(self._places[tag]), size)
        self.history = bool(self._rest)
        self.state_size = sum(rest.numel() for rest in self._rest.values())

    def initial_state(self) -> Tensor:
        """State of the cell at rest, shape (state_size,)."""
        parts = [rest.flatten() for rest in self._rest.values()]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def evaluate(self, strain: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Stress, tangent and new state of one cell.

        Parameters
        ----------
        strain : Tensor, shape (p, c)
        state : Tensor, shape (state_size,)

        Returns
        -------
        stress : Tensor, shape (p, c)
        modulus : Tensor, shape (p, c, c)
        state : Tensor, shape (state_size,)

        Raises
        ------
        ArithmeticError
            If a strain, a stress or a tangent is not finite.
        """
        if not torch.isfinite(strain).all():
            raise ArithmeticError("local strains are not finite")
        stress = torch.empty_like(strain)
        modulus = strain.new_empty(*strain.shape, self._size)
        start, after = 0, []
        for tag, law in self._materials.items():
            places, before = self._places[tag], None
            if tag in self._rest:
                rest = self._rest[tag]
                before = state[start : start + rest.numel()].reshape(rest.shape)
                start += rest.numel()
            response = law(strain[places], before)
            stress[places], modulus[places] = response.stress, response.tangent
            if before is not None:
                after.append(response.state.flatten())
        bad = ~(torch.isfinite(stress).all(1) & torch.isfinite(modulus).flatten(1).all(1))
        if bad.any():
            raise ArithmeticError(
                f"the laws give no finite stress at {int(bad.sum())} of {len(bad)} points, the "
                f"first with the strain {strain[int(torch.nonzero(bad)[0])].tolist()}"
            )
        return stress, modulus, torch.cat(after) if after else state

    def stress(self, strain: Tensor) -> Tensor:
        """Stresses of laws without history, differentiable by torch.

        Parameters
        ----------
        strain : Tensor, shape (n, p, c)

        Returns
        -------
        Tensor, shape (n, p, c)
        """
        parts, order = [], []
        for tag, law in self._materials.items():
            places = self._places[tag]
            local = strain[:, places].reshape(-1, self._size)
            found = law(local, tangent=False).stress
            parts.append(found.reshape(len(strain), len(places), self._size))
            order.append(places)
        return torch.cat(parts, 1)[:, torch.argsort(torch.cat(order))]
