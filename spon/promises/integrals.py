"""Means, fluxes and other integrals with prescribed values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spon.promises.base import InDouble

__all__ = ["Integrals"]

_TOLERANCE, _LOOSE = 1e-9, 1e-5  # of data in double and in single precision


class Integrals(InDouble):
    """``u + W (d - L u)``: the smallest change after which the functionals L have the values d.

    Parameters
    ----------
    functionals : Tensor, shape (m, dim)
        L, one row for each functional.
    fields : Tensor, shape (dim, r)
        F: fields that keep all other promises, of norm one.
    amounts : Tensor, shape (r, m)
        A, with ``W = F A``: ``L W`` is the identity on what can be attained. The product is never
        formed, whose large entries cancel where functionals are nearly dependent.
    stuck : Tensor, shape (m, m - r)
        Combinations, of norm one, of the functionals that the other promises determine already.
    values : Tensor, shape (m,)
        d, where none are given at the call.
    names : sequence of str
        For messages.
    """

    functionals: Tensor
    fields: Tensor
    amounts: Tensor
    stuck: Tensor
    values: Tensor

    def __init__(
        self,
        functionals: Tensor,
        fields: Tensor,
        amounts: Tensor,
        stuck: Tensor,
        values: Tensor,
        names: Sequence[str],
    ) -> None:
        super().__init__()
        self.names = list(names)
        self.register_buffer("functionals", functionals, persistent=False)
        self.register_buffer("fields", fields, persistent=False)
        self.register_buffer("amounts", amounts, persistent=False)
        self.register_buffer("stuck", stuck, persistent=False)
        self.register_buffer("values", values, persistent=False)

    def forward(self, u: Tensor, values: Tensor | None = None, loose: bool = False) -> Tensor:
        """Correct a batch of fields.

        Parameters
        ----------
        u : Tensor, shape (batch, dim)
        values : Tensor, shape (batch, m) or (m,), optional
        loose : bool, optional
            Whether data came in single precision and contradict each other by its rounding.

        Returns
        -------
        Tensor, shape (batch, dim)

        Raises
        ------
        ValueError
            If other promises determine a combination of the functionals, and to another value.
        """
        d = self.values if values is None else values
        gap = d - u @ self.functionals.T
        if self.stuck.shape[1]:
            self._check(gap, u, d, _LOOSE if loose else _TOLERANCE)
        u = u + self._change(gap)
        # Large corrections leave the rounding of large numbers.
        return u + self._change(d - u @ self.functionals.T)

    def _change(self, gap: Tensor) -> Tensor:
        return (gap @ self.amounts.T) @ self.fields.T

    def _check(self, gap: Tensor, u: Tensor, d: Tensor, tolerance: float) -> None:
        with torch.no_grad():
            # Each combination by its own terms: a large functional does not excuse a small one.
            scale = u.abs() @ self.functionals.abs().T + d.abs()
            wrong = gap @ self.stuck
            bad = wrong.abs() > tolerance * (scale @ self.stuck.abs()) + 1e-300
        if bad.any():
            sample, which = (int(i) for i in bad.nonzero()[0])
            parts = self.stuck[:, which].abs() * self.functionals.norm(dim=1)
            terms = zip(self.names, parts, strict=True)
            involved = [name for name, part in terms if part > 1e-6 * parts.max()]
            raise ValueError(
                f"The prescribed value of {' + '.join(involved)} cannot be attained: the other "
                "promises (traces, divergence, or another integral) fix it to another value, off "
                f"by {float(wrong[sample, which].abs()):.3g}. Leave it out, change its value, or "
                "free a part of the boundary."
            )
