"""Factorisations of constant matrices, for whatever solves with them in numpy or in torch."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from spon.fem.factor import SparseLU
from spon.fem.one_factor import Factor, PivotingFactor, SingularMatrixError

__all__ = ["Direct", "definite", "saddle"]


class Direct:
    """The factorisation of a constant square matrix, with the face of SciPy's ``splu``.

    That is SuperLU, which is quick where matrices are small or of two dimensions, but fills up in
    three: ``benchmarks/promises.py``.

    Parameters
    ----------
    matrix : scipy sparse matrix, shape (n, n)
    kind : {"any", "saddle", "definite"}, optional
        ``"any"`` tests the factorisation, and looks for pivots where it has to. ``"saddle"`` looks
        for them at once. ``"definite"`` is for symmetric positive definite matrices. Of the last
        two it is asked alone that solutions leave no residual: they may be nearly singular.

    Raises
    ------
    spon.fem.SingularMatrixError
    """

    def __init__(self, matrix: Any, kind: str = "any") -> None:
        csr = sp.csr_matrix(matrix, dtype=np.float64)
        csr.sum_duplicates()
        if csr.nnz == 0:
            raise SingularMatrixError(csr.shape[0])
        lu, values = SparseLU(csr.indptr, csr.indices), torch.from_numpy(csr.data)
        self._factor: Factor
        if kind == "any":
            self._factor = lu.factor(values)
        else:
            spd = kind == "definite"
            symmetric = spd or lu.is_symmetric(values)
            self._factor = PivotingFactor(lu, values, symmetric, spd)
            if not lu.is_stable(values, self._factor):
                raise SingularMatrixError(lu.unknowns)

    def solve(self, right: np.ndarray, side: str = "N") -> np.ndarray:
        """Solve for one right-hand side or several.

        Parameters
        ----------
        right : float array, shape (n,) or (n, m)
        side : {"N", "T"}, optional
            ``"T"`` for the transposed matrix.

        Returns
        -------
        array of the shape of `right`
        """
        columns = torch.from_numpy(np.ascontiguousarray(_columns(right), np.float64))
        found = self._factor.solve(columns.T, side == "T")
        result: np.ndarray = found.T.numpy().reshape(np.shape(right))
        return result


def _columns(right: np.ndarray) -> np.ndarray:
    return right if np.ndim(right) == 2 else np.reshape(right, (len(right), -1))


saddle = partial(Direct, kind="saddle")
definite = partial(Direct, kind="definite")
