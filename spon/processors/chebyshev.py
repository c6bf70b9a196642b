"""Polynomials of which learned functions of the Laplacian are made."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["chebyshev", "largest_eigenvalue"]


def largest_eigenvalue(modes: int, gdim: int) -> float:
    """About the last of the first `modes` eigenvalues on a domain of unit volume.

    Weyl (1911): eigenvalue number n is about 4 pi^2 (n / |unit ball|)^(2/d). Half as much again for
    the effect of the boundary.
    """
    ball = math.pi ** (gdim / 2) / math.gamma(gdim / 2 + 1)
    return 1.5 * 4.0 * math.pi**2 * (modes / ball) ** (2.0 / gdim)


def chebyshev(eigenvalues: Tensor, count: int, largest: float) -> Tensor:
    """Chebyshev polynomials in log(1 + lambda), with the range up to `largest` mapped to [-1, 1].

    Parameters
    ----------
    eigenvalues : Tensor, shape (modes,)
    count : int
        Number of polynomials, from degree zero on.
    largest : float
        Eigenvalues above it are taken for it.

    Returns
    -------
    Tensor, shape (modes, count)
    """
    t = (2.0 * torch.log1p(eigenvalues) / math.log1p(largest) - 1.0).clamp(-1.0, 1.0)
    order = torch.arange(count, dtype=t.dtype, device=t.device)
    return torch.cos(torch.arccos(t)[:, None] * order)
