"""The laws of chosen quadrature points, evaluated for many strains at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["PointLaws", "are_odd"]


class PointLaws:
    """Stress and tangent at points of several materials.

    Parameters
    ----------
    laws : mapping of int to Material
        By tag; none with history.
    tags : Tensor of int, shape (m,)
        Ascending, so that the points of each law are neighbours.

    Raises
    ------
    NotImplementedError
        If a law has a history: what it does depends on the path of the strain, which no surrogate
        here sees.
    """

    def __init__(self, laws: Mapping[int, Any], tags: Tensor) -> None:
        historic = [tag for tag, law in laws.items() if getattr(law, "history", False)]
        if historic:
            raise NotImplementedError(
                f"The laws with the tags {historic} have a history; surrogates learn maps from "
                "strain to stress. Use the RVE itself as the material."
            )
        self.laws = dict(laws)
        self.spans: list[tuple[Any, slice]] = []
        start = 0
        for tag, count in zip(*torch.unique_consecutive(tags, return_counts=True), strict=True):
            stop = start + int(count)
            self.spans.append((self.laws[int(tag)], slice(start, stop)))
            start = stop

    def __call__(self, strain: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate.

        Parameters
        ----------
        strain : Tensor, shape (n, m, c)

        Returns
        -------
        stress : Tensor, shape (n, m, c)
        tangent : Tensor, shape (n, m, c, c)
        """
        n, c = len(strain), strain.shape[2]
        stress = torch.empty_like(strain)
        tangent = strain.new_empty(*strain.shape, c)
        for law, span in self.spans:
            response = law(strain[:, span].reshape(-1, c))
            size = span.stop - span.start
            stress[:, span] = response.stress.reshape(n, size, c)
            tangent[:, span] = response.tangent.reshape(n, size, c, c)
        return stress, tangent

    def stress(self, strain: Tensor) -> Tensor:
        """Stress alone, differentiable once in the strain (by the law's own tangent)."""
        result: Tensor = _Stress.apply(strain, self)
        return result


class _Stress(torch.autograd.Function):
    """Laws promise a tangent, not that autograd can follow them."""

    @staticmethod
    def forward(ctx: Any, strain: Tensor, laws: PointLaws) -> Tensor:  # type: ignore[override]
        stress, tangent = laws(strain)
        ctx.save_for_backward(tangent)
        return stress

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:  # type: ignore[override]
        (tangent,) = ctx.saved_tensors
        return (cotangent[..., None, :] @ tangent)[..., 0, :], None


def are_odd(laws: Mapping[int, Any], reference: Tensor, radius: float) -> bool:
    """Whether the laws change nothing but the sign of the stress with that of the strain.

    Parameters
    ----------
    laws : mapping of int to Material
    reference : Tensor, shape (c,)
        Strain of the undeformed state.
    radius : float
        Size of the strains that are tried.
    """
    generator = torch.Generator().manual_seed(0)
    change = 2 * torch.rand(8, len(reference), generator=generator, dtype=torch.float64) - 1
    for law in laws.values():
        there = law(reference + radius * change).stress
        back = law(reference - radius * change).stress
        if bool((there + back).abs().max() > 1e-9 * there.abs().max()):
            return False
    return True
