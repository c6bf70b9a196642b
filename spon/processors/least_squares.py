"""Weights that an output depends on linearly, fitted in closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["fit_weights"]

_RIDGE = 1e-10  # of squares of scaled columns
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
        solution = _ridge(gram, moment)
        start = 0
        for weight in weights:
            part = solution[start : start + weight.numel()]
            weight.copy_(part.reshape(weight.shape).to(weight))
            start += weight.numel()


def _ridge(gram: Tensor, moment: Tensor) -> Tensor:
    """Solve the normal equations of scaled columns; columns of nothing get no weight."""
    size = gram.diagonal().sqrt()
    used = size > _NOTHING * size.max()
    inverse = torch.where(used, 1.0 / size.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    scaled = gram * inverse[:, None] * inverse
    values, vectors = torch.linalg.eigh(scaled)
    values = values.clamp_min(0.0)
    least = _RIDGE * float(values.max()) if len(values) else 0.0
    solved = vectors @ ((vectors.T @ (moment * inverse)) / (values + least).clamp_min(least))
    return solved * inverse
