"""Weights that an output depends on linearly, fitted in closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["fit_weights"]

# Of squares of scaled columns. Of these the largest is taken that costs little: small weights
# train better than large ones that cancel, and more so where the map is far from linear.
_RIDGES = tuple(10.0**exponent for exponent in range(-10, -1))
_COST = 1.02
_NOTHING = 1e-5  # times the largest column: round-off, the gradient of a constant for example
_LARGEST = 600  # beyond so many weights the fit costs more than it saves


def fit_weights(
    weights: Sequence[nn.Parameter],
    apply: Callable[[Tensor], Tensor],
    target: Tensor,
    rows: Tensor,
    batch: int = 32,
) -> None:
    """Set weights to their least squares values.

    Parameters
    ----------
    weights : sequence of Parameter
        What `apply` depends on linearly, without a constant.
    apply : callable
        Takes numbers of samples, an integer Tensor of shape (n,), and returns what the weights
        make of them, shape (dim, n).
    target : Tensor, shape (dim, samples)
        Each sample counts relative to its own norm.
    rows : bool Tensor, shape (dim,)
        Where the output matters.
    batch : int, optional
        Samples at once.
    """
    entries = [(weight, index) for weight in weights for index in range(weight.numel())]
    if len(entries) > _LARGEST:
        return
    count = len(entries)
    gram = torch.zeros(count, count, dtype=torch.float64)
    moment = torch.zeros(count, dtype=torch.float64)
    with torch.no_grad():
        for which in torch.arange(target.shape[1]).split(batch):
            wanted = target[rows][:, which].double()
            scale = 1.0 / wanted.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
            columns = []
            for weight, index in entries:
                for other in weights:
                    other.zero_()
                weight.view(-1)[index] = 1.0
                columns.append((apply(which)[rows].double() * scale).flatten())
            design = torch.stack(columns)
            gram += (design @ design.T).cpu()
            moment += (design @ (wanted * scale).flatten()).cpu()
        solution = _ridge(gram, moment, float(target.shape[1]))
        start = 0
        for weight in weights:
            part = solution[start : start + weight.numel()]
            weight.copy_(part.reshape(weight.shape).to(weight))
            start += weight.numel()


def _ridge(gram: Tensor, moment: Tensor, total: float) -> Tensor:
    """Solve the normal equations of scaled columns; columns of nothing get no weight.

    Parameters
    ----------
    gram : Tensor, shape (count, count)
    moment : Tensor, shape (count,)
    total : float
        Square of the norm of the target.
    """
    size = gram.diagonal().sqrt()
    used = size > _NOTHING * size.max()
    inverse = torch.where(used, 1.0 / size.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    scaled, right = gram * inverse[:, None] * inverse, moment * inverse
    values, vectors = torch.linalg.eigh(scaled)
    values = values.clamp_min(0.0)
    rotated = vectors.T @ right
    solutions, misfits = [], []
    for ridge in _RIDGES:
        found = vectors @ (rotated / (values + ridge * float(values.max())).clamp_min(1e-300))
        solutions.append(found * inverse)
        square = total - 2.0 * float(right @ found) + float(found @ scaled @ found)
        # Round-off of the difference of large numbers.
        misfits.append(max(square, 1e-14 * total) ** 0.5)
    allowed = _COST * min(misfits)
    return solutions[max(i for i, misfit in enumerate(misfits) if misfit <= allowed)]
