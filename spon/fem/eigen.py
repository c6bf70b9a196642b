"""Eigenfunctions of the Laplacian on a finite element space."""

from __future__ import annotations

import numpy as np
import scipy.linalg as la
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from spon.fem.factor import SingularMatrixError, SparseLU

__all__ = ["cutoff_window", "eigenpairs"]

_ZERO = 1e-8  # times the first non-zero eigenvalue: zero up to round-off
_DENSE = 400  # below this many unknowns LAPACK is quicker than a Krylov method


def eigenpairs(
    stiffness: sp.csr_matrix,
    mass: sp.csr_matrix,
    count: int,
    fixed: NDArray[np.bool_],
    shift: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest eigenpairs of ``K v = lambda M v`` with v = 0 at fixed nodes.

    Shift-inverted Lanczos iteration with a shift just below zero, so that the constant function
    (eigenvalue zero where nothing is fixed) is found like any other.

    Parameters
    ----------
    stiffness, mass : csr_matrix, shape (nodes, nodes)
        Symmetric; `mass` positive definite, `stiffness` positive semi-definite.
    count : int
        Eigenpairs wanted; fewer come back where fewer nodes are free.
    fixed : bool array, shape (nodes,)
        Nodes where the eigenfunctions vanish.
    shift : float
        Negative number of the size of the first non-zero eigenvalue, -1 / length^2 for example.

    Returns
    -------
    eigenvalues : array, shape (count,)
        Ascending, never negative.
    eigenfunctions : array, shape (nodes, count)
        Orthonormal in the mass matrix.

    Raises
    ------
    RuntimeError
        If the iteration does not converge.
    ValueError
        If every node is fixed.
    """
    free = np.flatnonzero(~fixed)
    size = len(free)
    if size == 0:
        raise ValueError(
            "Every node lies on the constrained boundary, so the Laplacian has no eigenfunction: "
            "refine the mesh or raise the degree."
        )
    count = min(count, size)
    k_free, m_free = stiffness[free][:, free], mass[free][:, free]
    if size <= _DENSE or count > size // 3:
        values, vectors = la.eigh(
            k_free.toarray(), m_free.toarray(), subset_by_index=[0, count - 1]
        )
    else:
        start = np.random.default_rng(0).standard_normal(size)
        try:
            values, vectors = eigsh(
                k_free, count, m_free, sigma=shift, which="LM", v0=start,
                OPinv=_inverse(k_free - shift * m_free),
            )  # fmt: skip
        except (ArpackNoConvergence, SingularMatrixError) as error:
            raise RuntimeError(
                f"The {count} smallest eigenfunctions of the Laplacian on {size} free nodes were "
                "not found: ask for fewer modes or check the mesh for slivers."
            ) from error
        order = np.argsort(values)
        values, vectors = values[order], vectors[:, order]
    functions = np.zeros((stiffness.shape[0], count))
    functions[free] = vectors
    # The round-off of an eigenvalue zero depends on the numbering of the nodes, and what is made of
    # the eigenvalue would show it.
    values[values < _ZERO * abs(shift)] = 0.0
    return values, functions


def _inverse(matrix: sp.csr_matrix) -> LinearOperator:
    """Solves with a positive definite matrix, faster than eigsh's own factorisation, most in 3D."""
    matrix = matrix.tocsr()
    matrix.sort_indices()
    factor = SparseLU(matrix.indptr, matrix.indices).factor(
        torch.from_numpy(matrix.data.astype(np.float64)), symmetric=True
    )

    def solve(b: NDArray[np.float64]) -> NDArray[np.float64]:
        found = factor.solve(torch.from_numpy(np.ascontiguousarray(b, np.float64)).reshape(1, -1))
        return found[0].numpy()

    return LinearOperator(matrix.shape, matvec=solve, dtype=np.float64)


def cutoff_window(eigenvalues: NDArray[np.float64], width: float = 0.15) -> NDArray[np.float64]:
    """Weights that fall smoothly from one to zero towards the last eigenvalue.

    Whatever is cut off by the number of modes has weight zero already, so that a group of equal
    eigenvalues that the end splits does no harm and the weights vary continuously with the mesh.

    Parameters
    ----------
    eigenvalues : array, shape (modes,)
        Ascending.
    width : float
        Fraction of the last eigenvalue over which the weight falls.

    Returns
    -------
    array, shape (modes,)
    """
    last = eigenvalues[-1]
    if last <= 0.0:
        return np.ones_like(eigenvalues)
    s = np.clip((1.0 - eigenvalues / last) / width, 0.0, 1.0)
    return s * s * (3.0 - 2.0 * s)
