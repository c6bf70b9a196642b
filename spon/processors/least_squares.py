"""Weights that an output depends on linearly, fitted in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

__all__ = ["Columns", "fit_weights", "one_by_one"]

Columns = Callable[[Tensor], Iterator[Tensor]]

# Of squares of scaled columns. Of these the largest is taken that costs little: small weights
# train better than large ones that cancel, and more so where the map is far from linear.
_RIDGES = tuple(10.0**exponent for exponent in range(-10, -1))
_COST = 1.02
_NOTHING = 1e-5  # times the largest column: round-off, the gradient of a constant for example
# Where the best weights leave more than this of the target, training from fresh weights ended
# better (`demos/darcy_plate.py`, `demos/one_network_three_meshes.py` with `Spectral`).
_WORTH = 0.1
_LARGEST = 600  # beyond so many weights the fit costs more than it saves


def fit_weights(
    weights: Sequence[nn.Parameter],
    columns: Columns,
    target: Tensor,
    rows: Tensor,
    batch: int = 32,
) -> bool:
    """Set weights to their least squares values.

    Parameters
    ----------
    weights : sequence of Parameter
        What the output depends on linearly, without a constant.
    columns : callable
        Takes numbers of samples, an integer Tensor of shape (n,), and yields what each weight by
        itself makes of them, shape (dim, n), entry by entry.
    target : Tensor, shape (dim, samples)
        Each sample counts relative to its own norm; one that is zero, or no more than round-off
        of the largest one, does not count.
    rows : bool Tensor, shape (dim,)
        Where the output matters.
    batch : int, optional
        Samples at once.

    Returns
    -------
    bool
        False where the weights are too many, where the best of them leave much of the target, or
        where no sample counts; they stay as they are then.
    """
    count = sum(weight.numel() for weight in weights)
    sizes = target.detach()[rows].double().norm(dim=0).cpu()
    counted = (sizes > torch.finfo(target.dtype).eps * sizes.max()).nonzero().ravel()
    if count > _LARGEST or not len(counted):
        return False
    before = [weight.detach().clone() for weight in weights]
    gram = torch.zeros(count, count, dtype=torch.float64)
    moment = torch.zeros(count, dtype=torch.float64)
    with torch.no_grad():
        for which in counted.split(batch):
            wanted = target[rows][:, which].double()
            scale = 1.0 / wanted.norm(dim=0)
            found = [(column[rows].double() * scale).flatten() for column in columns(which)]
            design = torch.stack(found)
            gram += (design @ design.T).cpu()
            moment += (design @ (wanted * scale).flatten()).cpu()
        solution, misfit = _ridge(gram, moment, float(len(counted)))
        worth = misfit <= _WORTH * len(counted) ** 0.5
        parts = solution.split([weight.numel() for weight in weights]) if worth else before
        for weight, part in zip(weights, parts, strict=True):
            weight.copy_(part.reshape(weight.shape).to(weight))
    return worth


def one_by_one(weights: Sequence[nn.Parameter], apply: Callable[[Tensor], Tensor]) -> Columns:
    """Columns from what all weights make of samples together, one weight after the other being one.

    Parameters
    ----------
    weights : sequence of Parameter
        They are changed.
    apply : callable
        From numbers of samples to (dim, n).
    """

    def columns(which: Tensor) -> Iterator[Tensor]:
        for weight in weights:
            weight.zero_()
        for weight in weights:
            for index in range(weight.numel()):
                weight.view(-1)[index] = 1.0
                yield apply(which)
                weight.view(-1)[index] = 0.0

    return columns


def _ridge(gram: Tensor, moment: Tensor, total: float) -> tuple[Tensor, float]:
    """Solve the normal equations of scaled columns; columns of nothing get no weight.

    Parameters
    ----------
    gram : Tensor, shape (count, count)
    moment : Tensor, shape (count,)
    total : float
        Square of the norm of the target.

    Returns
    -------
    Tensor, shape (count,)
    float
        Norm of what they leave.
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
    chosen = max(i for i, misfit in enumerate(misfits) if misfit <= allowed)
    return solutions[chosen], misfits[chosen]
