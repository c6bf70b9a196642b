"""Scales of inputs and outputs, as few numbers that do not depend on the mesh."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spon.sparse import SparseMap

__all__ = ["Normaliser"]


class Normaliser(nn.Module):
    """Shift and scale the blocks of a coefficient vector: ``(x - mean) / scale``.

    One mean and one scale for each block (each part of a mixed space), kept in the state dict.

    Parameters
    ----------
    sizes : sequence of int
        Dofs of each block.
    centred : sequence of bool
        Whether a mean is subtracted from the block. It makes sense for point values of scalars;
        the dofs of vectors have no common sign.
    """

    mean: Tensor
    scale: Tensor
    fitted: Tensor

    def __init__(self, sizes: Sequence[int], centred: Sequence[bool]) -> None:
        super().__init__()
        self.sizes, self.centred = tuple(sizes), tuple(centred)
        self.register_buffer("mean", torch.zeros(len(sizes)))
        self.register_buffer("scale", torch.ones(len(sizes)))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def fit(self, x: Tensor, masses: Sequence[SparseMap] | None = None) -> None:
        """Take mean and root mean square deviation of each block from data.

        Parameters
        ----------
        x : Tensor, shape (n, sum of sizes)
        masses : sequence of SparseMap, shapes (size, size), optional
            Mass matrix of each block over the measure of the domain. With them mean and deviation
            are those of the functions' values, which are the same on every mesh; without, those of
            the dofs.

        Raises
        ------
        ValueError
            If `x` has the wrong shape, or holds NaN or infinity.
        """
        if x.ndim != 2 or x.shape[1] != sum(self.sizes) or len(x) == 0:
            raise ValueError(
                f"Expected data of shape (n, {sum(self.sizes)}) with n >= 1, got {tuple(x.shape)}."
            )
        if not torch.isfinite(x).all():
            rows = (~torch.isfinite(x).all(dim=1)).nonzero().ravel()
            raise ValueError(
                f"The data hold NaN or infinity in {len(rows)} of {len(x)} samples, the first is "
                f"number {int(rows[0])}."
            )
        for i, (block, centre) in enumerate(
            zip(x.double().split(self.sizes, dim=1), self.centred, strict=True)
        ):
            if masses is None:
                mean = block.mean() if centre else block.new_zeros(())
                scale = (block - mean).square().mean().sqrt()
            else:
                mass = masses[i].to(block.device)
                one = torch.ones(self.sizes[i], 1, dtype=block.dtype, device=block.device)
                mean = (block @ mass(one)).mean() if centre else block.new_zeros(())
                centred = (block - mean).T
                scale = (centred * mass(centred)).sum(dim=0).mean().sqrt()
            self.mean[i] = mean
            # A block that is constant up to round-off carries no information: leave it at zero.
            constant = scale <= 8 * torch.finfo(x.dtype).eps * mean.abs()
            self.scale[i] = 1.0 if constant or scale == 0 else scale
        self.fitted.fill_(True)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise: (batch, dim) to (batch, dim)."""
        if len(self.sizes) == 1:
            return (x - self.mean) / self.scale
        return (x - self._spread(self.mean)) / self._spread(self.scale)

    def inverse(self, x: Tensor) -> Tensor:
        """Undo `forward`."""
        if len(self.sizes) == 1:
            return x * self.scale + self.mean
        return x * self._spread(self.scale) + self._spread(self.mean)

    def _spread(self, numbers: Tensor) -> Tensor:
        sizes = torch.tensor(self.sizes, device=numbers.device)
        return torch.repeat_interleave(numbers, sizes)
