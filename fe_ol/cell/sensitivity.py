"""Derivatives of the mean stress of cells by what their laws are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fe_ol.cell.equilibrium import Balance, Equilibrium

__all__ = ["pull_back"]


def pull_back(
    equilibrium: Equilibrium,
    balances: Sequence[Balance],
    seed: Tensor,
    tensors: Sequence[Tensor],
) -> list[Tensor]:
    """Derivative of ``sum(seed * mean stress)`` by tensors in the laws, at fixed mean strains.

    The seed is spread over the cell as a mean strain would be, by the adjoint of the linearised
    equilibrium: with these local seeds the fluctuation's own change has no part in the derivative.

    Parameters
    ----------
    equilibrium : Equilibrium
    balances : sequence of Balance
        Cells in equilibrium.
    seed : Tensor, shape (n, c)
    tensors : sequence of Tensor
        Leaves that require a gradient.

    Returns
    -------
    list of Tensor
        In the shapes of `tensors`; zero where no law holds one.
    """
    total = [torch.zeros_like(t) for t in tensors]
    share = equilibrium.cell.weights[:, None] / equilibrium.volume
    for balance, row in zip(balances, seed, strict=True):
        local = equilibrium.concentrated(balance, row) * share
        with torch.enable_grad():
            stress = equilibrium.laws.stress(balance.local_strain.detach()[None])[0]
            parts = torch.autograd.grad(stress, list(tensors), local, allow_unused=True)
        for target, part in zip(total, parts, strict=True):
            if part is not None:
                target += part
    return total
