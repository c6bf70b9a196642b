"""What networks for fluctuations are trained to make small: the energy of the cell."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fe_ol.surrogates.field_base import CellPoints

__all__ = ["ENERGIES", "CellEnergy"]

ENERGIES = ("potential", "published")
_CHUNK = 8192  # columns of this length stay in the cache between two operations


class CellEnergy:
    """Mean energy of local strains, relative to that of the cell without a fluctuation.

    Parameters
    ----------
    points : CellPoints
    reference : Tensor, shape (c,)
        Strain of the undeformed state.
    kind : {"potential", "published"}
        The potential of the laws, whose minimiser is in equilibrium; or stress : strain / 2, which
        the published VPIONet and PINN (Eivazi et al. 2025) minimise. That is the potential of a
        linear law only: for others **its minimiser is not in equilibrium**.

    Raises
    ------
    ValueError
        If the kind is unknown, or "published" with laws of finite strain.
    TypeError
        If a law has no `energy`.
    """

    def __init__(self, points: CellPoints, reference: Tensor, kind: str) -> None:
        if kind not in ENERGIES:
            raise ValueError(f"energy must be one of {ENERGIES}, got {kind!r}.")
        for tag, law in points.laws.laws.items():
            if kind == "published" and law.finite:
                raise ValueError(
                    'energy="published", stress : strain / 2, is of small strain; the law of tag '
                    f'{tag}, {type(law).__name__}, is of finite strain: use "potential".'
                )
            if kind == "potential" and not callable(getattr(law, "energy", None)):
                raise TypeError(
                    f'energy="potential" needs laws with a method energy(strain); the law of tag '
                    f"{tag}, {type(law).__name__}, has none: make it an EnergyLaw."
                )
        self.points, self.reference, self.kind = points, reference, kind
        self._rest = self._density(reference.expand(1, len(points.weights), -1))

    def __call__(self, local: Tensor, size: Tensor) -> Tensor:
        """Relative energies.

        Parameters
        ----------
        local : Tensor, shape (n, p, c)
            At the points ordered by tag; differentiable once.
        size : Tensor, shape (n,)
            What `sizes` gave for the macroscopic strains.

        Returns
        -------
        Tensor, shape (n,)
            1 without a fluctuation; the least possible one is the share of the homogenised energy
            in Taylor's upper bound. 0 at rest.
        """
        return self.energy(local) / size

    @torch.no_grad()
    def sizes(self, strain: Tensor) -> Tensor:
        """Energies (n,) of macroscopic strains (n, c) without a fluctuation."""
        # One cell after the other: there may be many samples.
        parts = [self.energy(x.expand(1, len(self.points.weights), -1)) for x in strain]
        size = torch.cat(parts)
        # Far below the energies of the box: only the undeformed state itself is concerned.
        return size.clamp_min(1e-14 * float(size.max()) + 1e-300)

    def energy(self, local: Tensor) -> Tensor:
        """Mean energy densities (n,) of local strains (n, p, c), zero at rest."""
        return self.points.mean((self._density(local) - self._rest)[..., None])[:, 0]

    def _density(self, local: Tensor) -> Tensor:
        if self.kind == "published":
            return 0.5 * (self.points.laws.stress(local) * local).sum(2)
        density: Tensor = _Potential.apply(local, self.points)
        return density


class _Potential(torch.autograd.Function):
    """Energy densities, whose derivative is the stress that the laws have in closed form."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, points: CellPoints) -> Tensor:  # type: ignore[override]
        n, _, c = local.shape
        energy, stress = torch.empty_like(local[..., 0]), torch.empty_like(local)
        for law, span in points.laws.spans:
            part, size = local[:, span].reshape(-1, c), span.stop - span.start
            energies, stresses = zip(
                *((law.energy(x), law(x, tangent=False).stress) for x in part.split(_CHUNK)),
                strict=True,
            )
            energy[:, span] = torch.cat(energies).reshape(n, size)
            stress[:, span] = torch.cat(stresses).reshape(n, size, c)
        ctx.save_for_backward(stress)
        return energy

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:  # type: ignore[override]
        (stress,) = ctx.saved_tensors
        return cotangent[..., None] * stress, None
