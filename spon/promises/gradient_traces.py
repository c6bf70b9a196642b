"""The smallest gradient with given tangential traces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu
from torch import Tensor

from spon.promises.base import InDouble
from spon.sparse import InverseMap, SparseMap

__all__ = ["GradientTraces"]

_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


class GradientTraces(InDouble):
    """Potential on the boundary from traces along it, then the least energy inside.

    Parameters
    ----------
    gradient : scipy sparse matrix, shape (dim, latent)
    mass : scipy sparse matrix, shape (dim, dim)
    trace : array of bool, shape (dim,)
        Prescribed dofs.
    fixed : array of bool, shape (latent,)
        Dofs of the potential on that part of the boundary.
    factorise : callable, optional
        As for `spon.sparse.InverseMap`.
    """

    _held: Tensor
    _outer: Tensor
    default: Tensor

    def __init__(
        self,
        gradient: Any,
        mass: Any,
        trace: np.ndarray,
        fixed: np.ndarray,
        factorise: Callable[[Any], Any] = splu,
    ) -> None:
        super().__init__()
        along = sp.csr_matrix(gradient[trace][:, fixed])
        normal = along.T @ along
        inner, outer = gradient[:, ~fixed], gradient[:, fixed]
        self.along, self.gradient = SparseMap(along), SparseMap(gradient)
        # Each piece of the boundary has its own constant, and so has a piece of the domain without
        # such a boundary.
        self.normal = InverseMap(_pinned(normal), factorise=factorise)
        coupling = sp.csr_matrix(inner.T @ mass @ outer)
        self.coupling = SparseMap(coupling)
        self.energy = None
        if inner.shape[1]:
            held = np.flatnonzero(np.diff(coupling.indptr))
            self.energy = InverseMap(_pinned(inner.T @ mass @ inner, held), factorise=factorise)
        self.register_buffer("_held", torch.from_numpy(np.flatnonzero(trace)), persistent=False)
        self.register_buffer("_outer", torch.from_numpy(fixed), persistent=False)
        self.register_buffer("default", torch.zeros(len(trace)).double(), persistent=False)

    def set_default(self, traces: Tensor, source: Tensor) -> None:
        """Keep the field of these traces, shape (dim,); there is no source.

        Raises
        ------
        ValueError
            If the traces are those of no gradient.
        """
        self.default = self.solve(traces[None])[0]

    def solve(self, traces: Tensor) -> Tensor:
        """The fields of some traces.

        Parameters
        ----------
        traces : Tensor, shape (batch, dim)

        Returns
        -------
        Tensor, shape (batch, dim)

        Raises
        ------
        ValueError
            If the traces are those of no gradient.
        """
        g = traces[:, self._held].double().T
        p = self.normal(self.along.T(g))
        for _ in range(2):
            p = p + self.normal(self.along.T(g - self.along(p)))
        miss = (g - self.along(p)).abs().amax(0)
        tolerance = _TOLERANCE.get(traces.dtype, _TOLERANCE[torch.float32])
        if (miss > tolerance * g.abs().amax(0)).any():
            raise ValueError(
                f"The prescribed tangential traces contradict curl_free=True: around a closed path "
                f"on the boundary they do not add up to zero (dofs off by {float(miss.max()):.3g})."
                " Correct the data, or leave a part of the boundary free."
            )
        x = p.new_zeros(len(self._outer), p.shape[1])
        x[self._outer] = p
        if self.energy is not None:
            x[~self._outer] = -self.energy(self.coupling(p))
        return self.gradient(x).T

    def forward(self, traces: Tensor | None, source: Tensor | None) -> Tensor:
        """As `solve`; None stands for the default traces.

        Raises
        ------
        ValueError
            As `solve`.
        """
        return self.default[None] if traces is None else self.solve(torch.atleast_2d(traces))


def _pinned(matrix: sp.csr_matrix, held: Sequence[int] | np.ndarray = ()) -> sp.csr_matrix:
    """One value set to zero in each piece of a matrix without one of the `held` rows."""
    _, piece = connected_components(matrix, directed=False)
    pieces, first = np.unique(piece, return_index=True)
    pins = np.zeros(len(piece))
    pins[first[~np.isin(pieces, piece[np.asarray(held, int)])]] = matrix.diagonal().mean()
    return matrix + sp.diags(pins)
