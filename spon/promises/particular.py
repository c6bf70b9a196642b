"""The smallest field with a given divergence (or curl) and given traces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from scipy.sparse.linalg import splu
from torch import Tensor

from spon.promises.base import InDouble
from spon.sparse import InverseMap, SparseMap

__all__ = ["Particular"]

_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


class Particular(InDouble):
    """Minimise the L2 norm of u under ``D u = b`` and prescribed dofs: a saddle point problem.

    Parameters
    ----------
    system : scipy sparse matrix, shape (n, n)
        ``[[M, D^T], [D, 0]]`` on the free dofs, then on the multipliers.
    boundary : SparseMap, shape (n, dim)
        What the prescribed dofs add to the left-hand side.
    load : SparseMap, shape (n, multipliers' space dim)
        Coefficients of the right-hand side to its moments, zero rows on the free dofs.
    free : Tensor of int, shape (k,)
        Which dofs of the field the first k unknowns are.
    balance : SparseMap, shape (pieces, multipliers' space dim + dim)
        The total inside less that of the traces, for each piece of the domain with traces all
        round: zero where there is a solution.
    even : SparseMap, shape (n, pieces)
        Moments of one over the measure of the piece: where an imbalance by rounding goes.
    trace : Tensor of bool, shape (dim,)
        The prescribed dofs.
    what : tuple of str
        What is prescribed in the cells ("divergence") and on the boundary ("normal traces").
    factorise : callable, optional
        As for `spon.sparse.InverseMap`.
    """

    _free: Tensor
    _trace: Tensor
    default: Tensor

    def __init__(
        self,
        system: object,
        boundary: SparseMap,
        load: SparseMap,
        free: Tensor,
        balance: SparseMap,
        even: SparseMap,
        trace: Tensor,
        what: tuple[str, str],
        factorise: Callable[[Any], Any] = splu,
    ) -> None:
        super().__init__()
        self.inverse = InverseMap(system, factorise=factorise)
        self.system = SparseMap(system)
        self.boundary, self.load, self.what = boundary, load, what
        self.balance, self.even = balance, even
        self.terms = SparseMap(abs(balance.to_scipy()))
        self.register_buffer("_free", free, persistent=False)
        self.register_buffer("_trace", trace, persistent=False)
        self.register_buffer("default", torch.zeros(trace.shape[0]).double(), persistent=False)
        self.default_source = torch.zeros(load.shape[1], dtype=torch.float64)

    def set_default(self, traces: Tensor, source: Tensor) -> None:
        """Keep the field of these data, shapes (dim,) and (multipliers' space dim,).

        Raises
        ------
        ValueError
            If there is none.
        """
        self.default_source = source.double()
        self.default = self.solve(traces[None], source[None])[0]

    def solve(self, traces: Tensor, source: Tensor) -> Tensor:
        """The fields of some data.

        Parameters
        ----------
        traces : Tensor, shape (batch, dim) or (1, dim)
            Values on the prescribed dofs; the others do not count.
        source : Tensor, shape (batch, multipliers' space dim) or (1, ...)

        Returns
        -------
        Tensor, shape (batch, dim)

        Raises
        ------
        ValueError
            If the data contradict each other.
        """
        single = torch.float32 in (traces.dtype, source.dtype)
        g = torch.where(self._trace, traces, 0.0).double()
        f = source.to(g)
        right = (self.load.batch(f) - self.boundary.batch(g)).T
        if self.balance.shape[0]:
            right = right - self.even(self._imbalance(g, f, single).T)
        y = self.inverse(right)
        y = y + self.inverse(right - self.system(y))
        return g.expand(y.shape[1], -1).index_copy(1, self._free, y[: len(self._free)].T)

    def forward(self, traces: Tensor | None, source: Tensor | None) -> Tensor:
        """As `solve`; None stands for the default data.

        Raises
        ------
        ValueError
            As `solve`.
        """
        if traces is None and source is None:
            return self.default[None]
        g = self.default if traces is None else traces
        f = self.default_source.to(self.default.device) if source is None else source
        return self.solve(torch.atleast_2d(g), torch.atleast_2d(f))

    def _imbalance(self, g: Tensor, f: Tensor, single: bool) -> Tensor:
        count = max(len(f), len(g))
        data = torch.cat([f.expand(count, -1), g.expand(count, -1)], 1)
        gap, scale = self.balance.batch(data), self.terms.batch(data.abs())
        bad = gap.abs() > _TOLERANCE[torch.float32 if single else torch.float64] * scale
        if bad.any():
            sample, piece = (int(i) for i in bad.nonzero()[0])
            raise ValueError(self._refusal(sample, count, float(gap[sample, piece])))
        return gap

    def _refusal(self, sample: int, count: int, gap: float) -> str:
        inside, outside = self.what
        which = "" if count == 1 else f" of sample {sample}"
        return (
            f"The prescribed {outside}{which} contradict the prescribed {inside}: it integrates to "
            f"the {outside}' total over the whole boundary (of each connected piece of the mesh), "
            f"and they differ by {gap:.3g}. Leave a part of the boundary free, or correct the data "
            "so that the totals agree."
        )
