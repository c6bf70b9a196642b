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
    correction : Tensor, shape (dim, m)
        W: fields that keep all other promises, ``L W`` is the identity on what can be attained.
    stuck : Tensor, shape (m, r)
        Orthonormal combinations of the functionals that the other promises determine already.
    values : Tensor, shape (m,)
        d, where none are given at the call.
    names : sequence of str
        For messages.
    """

    functionals: Tensor
    correction: Tensor
    stuck: Tensor
    values: Tensor

    def __init__(
        self,
        functionals: Tensor,
        correction: Tensor,
        stuck: Tensor,
        values: Tensor,
        names: Sequence[str],
    ) -> None:
        super().__init__()
        self.names = list(names)
        self.register_buffer("functionals", functionals, persistent=False)
        self.register_buffer("correction", correction, persistent=False)
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
        u = u + gap @ self.correction.T
        # Large corrections leave the rounding of large numbers.
        return u + (d - u @ self.functionals.T) @ self.correction.T

    def _check(self, gap: Tensor, u: Tensor, d: Tensor, tolerance: float) -> None:
        with torch.no_grad():
            scale = (u.abs() @ self.functionals.abs().T).amax(-1) + d.abs().amax(-1)
            wrong = gap @ self.stuck
            bad = (wrong.abs() > tolerance * scale[..., None] + 1e-300).any(-1)
        if bad.any():
            column = self.stuck[:, int(wrong.abs().amax(0).argmax())]
            involved = [n for n, c in zip(self.names, column, strict=True) if abs(float(c)) > 1e-6]
            raise ValueError(
                f"The prescribed value of {' + '.join(involved)} cannot be attained: the other "
                "promises (traces, divergence, or another integral) fix it to another value, off "
                f"by {float(wrong.abs().max()):.3g}. Leave it out, change its value, or free a "
                "part of the boundary."
            )
