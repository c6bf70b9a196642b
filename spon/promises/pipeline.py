"""Promises one after the other, in the order in which none breaks another."""

from __future__ import annotations

import torch
from torch import Tensor

from spon.promises.base import InDouble
from spon.promises.bounds import Bounds
from spon.promises.gradient_traces import GradientTraces
from spon.promises.integrals import Integrals
from spon.promises.particular import Particular
from spon.promises.potential import Potential
from spon.promises.projection import Projection
from spon.promises.symmetric import GroupAverage, Symmetric

__all__ = ["Pipeline"]


class Pipeline(InDouble):
    """From the latent coefficients to a field that keeps all promises.

    Parameters
    ----------
    constrained : Tensor of bool, shape (dim,)
        Prescribed dofs.
    potential : Potential or Projection, optional
    particular : Particular or GradientTraces, optional
        The field of the prescribed traces and divergence; what the potential gives has none.
    symmetric : Symmetric or GroupAverage, optional
    bounds : Bounds, optional
    integrals : Integrals, optional
        Last: its corrections keep what the others promise.
    """

    constrained: Tensor

    def __init__(
        self,
        constrained: Tensor,
        potential: Potential | Projection | None = None,
        particular: Particular | GradientTraces | None = None,
        symmetric: Symmetric | GroupAverage | None = None,
        bounds: Bounds | None = None,
        integrals: Integrals | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("constrained", constrained, persistent=False)
        self.potential, self.particular = potential, particular
        self.symmetric, self.bounds, self.integrals = symmetric, bounds, integrals

    def forward(
        self,
        x: Tensor,
        boundary: Tensor,
        per_sample: bool = False,
        divergence: Tensor | None = None,
        mean: Tensor | None = None,
        integrals: Tensor | None = None,
        single: bool = False,
    ) -> Tensor:
        """Apply all promises in double precision.

        Parameters
        ----------
        x : Tensor, shape (batch, latent)
            float64.
        boundary : Tensor, shape (batch, dim) or (dim,)
            Prescribed values.
        per_sample : bool, optional
            Whether `boundary` is other than what the decoder was built with.
        divergence : Tensor, shape (batch, ...) or (...,), optional
            Coefficients of the divergence.
        mean : Tensor, shape (batch, components), optional
            Means, for `bounds`.
        integrals : Tensor, shape (batch, m), optional
            Values of the functionals, for `integrals`.
        single : bool, optional
            Whether these values came in single precision. The others tell by their type.

        Returns
        -------
        Tensor, shape (batch, dim)

        Raises
        ------
        ValueError
            If traces, divergence, means and integrals contradict each other or the bounds, or
            boundary data or means of symmetric functions are not symmetric.
        """
        u = x if self.potential is None else self.potential(x)
        if self.symmetric is not None:
            if per_sample:
                self._check_symmetric(boundary)
            u = self.symmetric(u)
        if self.particular is not None:
            u = u + self.particular(boundary if per_sample else None, divergence)
        values = boundary.to(u)
        if self.bounds is not None:
            mean = self.bounds.mean if mean is None else mean
            u = self.bounds(u, values, self._symmetric_mean(mean), boundary.dtype, single)
            values = self.bounds.clip(values)
        u = torch.where(self.constrained, values, u)
        if self.integrals is not None:
            loose = single or any(
                t is not None and t.dtype == torch.float32
                for t in (boundary if per_sample else None, divergence)
            )
            u = self.integrals(u, integrals, loose)
        return torch.where(self.constrained, values, u)

    def _symmetric_mean(self, mean: Tensor | None) -> Tensor | None:
        """The means for `bounds`, without the rounding that would break a symmetry."""
        if self.symmetric is None or mean is None:
            return mean
        # The constant function with that mean.
        constant = torch.atleast_2d(mean).tile(len(self.constrained) // mean.shape[-1])
        kept = self.symmetric(constant)[:, : mean.shape[-1]]
        miss = (kept - mean).abs().max()
        if miss > 1e-6 * mean.abs().max():
            raise ValueError(
                f"The mean {mean.tolist()} is not symmetric (off by {float(miss):.3g}), and the "
                "decoder promises that its functions are: make the mean symmetric."
            )
        return kept

    def _check_symmetric(self, boundary: Tensor) -> None:
        held = torch.where(self.constrained, torch.atleast_2d(boundary), 0.0).double()
        if self.symmetric is None:
            return
        miss = (self.symmetric(held) - held).abs().max()
        tolerance = 1e-5 if boundary.dtype == torch.float32 else 1e-12
        if miss > tolerance * held.abs().max():
            raise ValueError(
                f"The boundary data are not symmetric (off by {float(miss):.3g}), and the decoder "
                "promises that its functions are: make the data symmetric."
            )
