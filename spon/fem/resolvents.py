"""Resolvents of the Laplacian as torch modules: one factorisation for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spon.copying import deepcopy_sharing
from spon.fem.factor import SparseLU
from spon.fem.implicit import constant_solve
from spon.processors.levels import Resolvents
from spon.sparse import SparseMap

__all__ = ["FactorMap", "build_resolvents"]


class FactorMap(nn.Module):
    """Solves with one factorised matrix, dofs first.

    Parameters
    ----------
    lu : SparseLU
        The pattern; matrices that share it share its analysis.
    values : Tensor, shape (nnz,)
        The entries.
    """

    def __init__(self, lu: SparseLU, values: Tensor) -> None:
        super().__init__()
        self._factor = lu.factor(values)
        self.size = lu.size

    def __deepcopy__(self, memo: dict[int, Any]) -> FactorMap:
        return deepcopy_sharing(self, memo, [self._factor])

    def forward(self, b: Tensor) -> Tensor:
        """Solve for each column, in double precision on the CPU whatever comes in.

        Parameters
        ----------
        b : Tensor, shape (nodes, ...)
            Dual.

        Returns
        -------
        Tensor, shape (nodes, ...)
            Primal, zero at the nodes that are no unknowns; differentiable.

        Raises
        ------
        ValueError
            If the first axis of `b` has another length.
        """
        if b.ndim == 0 or len(b) != self.size:
            raise ValueError(
                f"Got a tensor of shape {tuple(b.shape)} for a system of {self.size} nodes: nodes "
                "are the first axis."
            )
        columns = b.reshape(self.size, -1).T
        x = constant_solve(columns.to("cpu", torch.float64), self._factor)
        return x.T.to(b.device, b.dtype).reshape(b.shape)


def build_resolvents(
    alphas: Sequence[float],
    stiffness: sp.csr_matrix,
    mass: sp.csr_matrix,
    gradient: sp.csr_matrix,
    fixed: NDArray[np.bool_],
    length: float,
) -> Resolvents:
    """Factorise M + alpha K for each alpha and both kinds of boundary.

    Parameters
    ----------
    alphas : sequence of float
        In units of the square of `length`.
    stiffness, mass : csr_matrix, shape (nodes, nodes)
    gradient : csr_matrix, shape (nodes * gdim, nodes)
        Partial derivatives at the nodes, directions fastest.
    fixed : bool array, shape (nodes,)
        Nodes on the constrained boundary.
    length : float
        Length of the domain.

    Returns
    -------
    Resolvents
        Without units.

    Raises
    ------
    ValueError
        If every node is fixed.
    """
    volume, nodes = mass.sum(), len(fixed)
    stiffness, mass = stiffness * (length**2 / volume), mass / volume
    directions = gradient.shape[0] // nodes
    order = np.arange(gradient.shape[0]).reshape(nodes, directions).T.ravel()
    matrices = [sp.csr_matrix(mass + alpha * stiffness) for alpha in alphas]
    return Resolvents(
        alphas=alphas,
        mass=SparseMap(sp.csr_matrix(mass)),
        free=_factors(matrices, None),
        constrained=_factors(matrices, np.flatnonzero(~fixed)) if fixed.any() else None,
        gradient=SparseMap(sp.csr_matrix(gradient[order] * length)),
    )


def _factors(matrices: Sequence[sp.csr_matrix], free: NDArray[np.int64] | None) -> list[FactorMap]:
    maps = []
    for matrix in matrices:
        matrix.sort_indices()
        # Sums of matrices drop entries that cancel: each has its own pattern.
        lu = SparseLU(matrix.indptr, matrix.indices, free)
        maps.append(FactorMap(lu, torch.from_numpy(matrix.data)))
    return maps
