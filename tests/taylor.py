"""Rates of Taylor remainders, the independent check of every gradient."""

from itertools import pairwise

import numpy as np
import torch


def rates(value, x, scale=4e-3, halvings=3, seed=0):
    """Observed orders of the remainders of first and second order.

    Parameters
    ----------
    value : callable
        From a tensor like `x` to a scalar tensor.
    x : Tensor
        float64.
    scale : float
        First step, relative to the size of `x`.

    Returns
    -------
    first, second : float
        The smallest observed order; infinite where the remainder is round-off.
    """
    rng = torch.Generator().manual_seed(seed)
    direction = torch.randn(x.shape, generator=rng, dtype=torch.float64)
    direction *= x.abs().max().clamp_min(1e-3) / direction.abs().max()
    at = x.detach().clone().requires_grad_()
    result = value(at)
    (gradient,) = torch.autograd.grad(result, at, create_graph=True)
    start = float(result.detach())
    slope = (gradient * direction).sum()
    if slope.requires_grad:
        (product,) = torch.autograd.grad(slope, at, allow_unused=True)
        curvature = 0.0 if product is None else float((product * direction).sum())
    else:
        curvature = 0.0
    slope = float(slope.detach())
    first, second = [], []
    for k in range(halvings + 1):
        h = scale / 2**k
        with torch.no_grad():
            change = float(value(x.detach() + h * direction) - start)
        first.append(abs(change - h * slope))
        second.append(abs(change - h * slope - h**2 / 2 * curvature))
    # What cancels to this is exact: polynomials of the first or second degree have no remainder.
    round_off = 1e-12 * max(abs(start), abs(slope) * scale)
    return _order(first, round_off), _order(second, round_off)


def _order(remainders, round_off):
    pairs = [(a, b) for a, b in pairwise(remainders) if b > round_off]
    if not pairs:
        return np.inf
    return min(np.log2(a / b) for a, b in pairs)
