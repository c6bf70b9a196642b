"""Scales of inputs and outputs, as few numbers that do not depend on the mesh."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spon.copying import share_buffers
from spon.sparse import SparseMap

__all__ = ["Normaliser", "fit_together"]


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
        fit_together([self], [x], [masses])

    def share(self, other: Normaliser) -> None:
        """Use the very numbers of another normaliser, now and whenever they change.

        Fitting, loading and `.to` on either of the two then hold for both.
        """
        share_buffers(self, other)

    def _checked_blocks(self, x: Tensor) -> list[Tensor]:
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
        return list(x.double().split(self.sizes, dim=1))

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


def fit_together(
    normalisers: Sequence[Normaliser],
    data: Sequence[Tensor],
    masses: Sequence[Sequence[SparseMap] | None],
) -> None:
    """Take the scales from samples on several meshes, each of which counts the same.

    Parameters
    ----------
    normalisers : sequence of Normaliser
        One for each mesh; the first one takes the numbers.
    data : sequence of Tensor, shapes (n_i, sum of sizes on that mesh)
    masses : sequence, of what `Normaliser.fit` takes
        For all meshes, or None for all.

    Raises
    ------
    ValueError
        As `Normaliser.fit`.
    """
    first = normalisers[0]
    blocks = [n._checked_blocks(x) for n, x in zip(normalisers, data, strict=True)]
    for i, centre in enumerate(first.centred):
        parts = [
            (block[i], None if mass is None else mass[i].to(block[i].device))
            for block, mass in zip(blocks, masses, strict=True)
        ]
        mean = parts[0][0].new_zeros(())
        if centre:
            mean = torch.cat([_means(block, mass) for block, mass in parts]).mean()
        squares = [_mean_squares(block - mean, mass) for block, mass in parts]
        scale = torch.cat(squares).mean().sqrt()
        first.mean[i] = mean
        # A block that is constant up to round-off carries no information: leave it at zero.
        constant = scale <= 8 * torch.finfo(data[0].dtype).eps * mean.abs()
        first.scale[i] = 1.0 if constant or scale == 0 else scale
    first.fitted.fill_(True)


def _means(block: Tensor, mass: SparseMap | None) -> Tensor:
    """Mean of each function, shape (n,); without a mass matrix all dofs, which weigh the same."""
    if mass is None:
        return block.flatten()
    one = torch.ones(block.shape[1], 1, dtype=block.dtype, device=block.device)
    return (block @ mass(one)).flatten()


def _mean_squares(block: Tensor, mass: SparseMap | None) -> Tensor:
    """Mean square of each function, shape (n,); without a mass matrix that of each dof."""
    if mass is None:
        return block.square().flatten()
    return (block.T * mass(block.T)).sum(dim=0)
