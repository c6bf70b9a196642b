"""What every promise has in common."""

from __future__ import annotations

from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

__all__ = ["InDouble", "Promise", "require_finite"]


class Promise(Protocol):
    """A map of coefficient vectors whose values have a property, whatever it is given.

    Called in float64 with ``(batch, n)``, it returns ``(batch, m)``.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the map."""
        ...


class InDouble(nn.Module):
    """A module that stays in double precision, whatever `.to` is asked for.

    The derivatives in a divergence magnify the rounding of single precision by 1/h; a field that
    is made in double precision and rounded once has only the error of its own coefficients.
    """

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        device = fn(torch.empty(0, dtype=torch.float64)).device

        def move(t: Tensor) -> Tensor:
            return t if t.device == device else t.to(device)

        return super()._apply(move, recurse)


def require_finite(values: Tensor, what: str, where: Tensor | None = None) -> Tensor:
    """Return `values` if they are finite; a comparison with NaN finds nothing wrong later.

    Parameters
    ----------
    values : Tensor, shape (batch, n) or (n,)
    what : str
        What they are, for the message.
    where : Tensor of bool, shape (n,), optional
        Entries that count; all of them by default.

    Raises
    ------
    ValueError
        If there is NaN or infinity.
    """
    bad = ~torch.isfinite(values)
    if where is not None:
        bad = bad & where
    if bad.any():
        hint = "give finite numbers."
        if bad.ndim == 2:
            first = int(bad.any(1).nonzero()[0])
            hint = f"the first is sample {first}. Give finite numbers, or leave such samples out."
        raise ValueError(f"Got NaN or infinity in {what}: {hint}")
    return values
