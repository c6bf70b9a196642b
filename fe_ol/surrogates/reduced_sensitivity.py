"""Derivatives of the reduced model's stress by what the laws are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fe_ol.surrogates.reduced import ReducedModel

__all__ = ["pull_back"]


def pull_back(
    model: ReducedModel, strain: Tensor, a: Tensor, seed: Tensor, tensors: Sequence[Tensor]
) -> list[Tensor]:
    """Derivative of ``sum(seed * stress)`` by tensors in the laws, at fixed macroscopic strains.

    The seed is spread over the points as a macroscopic strain would be, by the linearised reduced
    equilibrium: with these local seeds the change of `a` has no part in the derivative. One small
    solve and one backward pass through the laws for each strain, whatever the number of tensors.

    Parameters
    ----------
    model : ReducedModel
        In the formulation of the energy.
    strain : Tensor, shape (n, c)
    a : Tensor, shape (n, na)
        Stationary points of the energy.
    seed : Tensor, shape (n, c)
    tensors : sequence of Tensor
        Leaves that require a gradient.

    Returns
    -------
    list of Tensor
        In the shapes of `tensors`; zero where no law holds one.

    Raises
    ------
    NotImplementedError
        For the formulation of the mismatch, whose second derivatives are not there.
    """
    if model.formulation != "energy":
        raise NotImplementedError(
            "Derivatives by parameters of the laws are implemented for the reduced model with "
            f'formulation="energy", this one has {model.formulation!r}.'
        )
    total = [torch.zeros_like(t) for t in tensors]
    for i in model.chunks(len(strain)):
        local, seeds = _spread(model, strain[i], a[i], seed[i])
        for law, span in model.laws.spans:
            flat = local[:, span].flatten(0, 1)
            with torch.enable_grad():
                stress = law(flat, tangent=False).stress
            if not stress.requires_grad:
                continue
            parts = torch.autograd.grad(
                stress, list(tensors), seeds[:, span].flatten(0, 1), allow_unused=True
            )
            for target, part in zip(total, parts, strict=True):
                if part is not None:
                    target += part
    return total


@torch.no_grad()
def _spread(model: ReducedModel, strain: Tensor, a: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Local strains, and the derivative of ``seed . stress`` by the local stresses."""
    c = strain.shape[1]
    local = model.strain(strain, a)
    gram = model.moments(local)[1]
    answer = -torch.linalg.solve(gram[:, c:, c:], gram[:, c:, :c] @ seed[..., None])[..., 0]
    return local, model.strain(seed, answer) * (model.weights[:, None] / model.volume)
