"""Residuals measured in the dual norm: the size of a load is the energy of what it would cause."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spon.copying import deepcopy_sharing
from spon.fem.dual import RieszMap

__all__ = ["DualNorm", "SquaredDualNorm", "check_reduction", "root"]

_REDUCTIONS = ("mean", "sum", "none")


class SquaredDualNorm(nn.Module):
    """Squared dual norm ``r^T G^-1 r`` of residuals, on the dofs without essential conditions.

    A residual is a dual vector, and its Euclidean norm means nothing: minimising it is a problem
    whose condition number grows like h^-4. In the dual norm of the energy space it is that of the
    operator, on every mesh, and the norm bounds the error from both sides (Ern and Guermond 2021,
    *Finite Elements II*, section 26.1).

    Parameters
    ----------
    V : firedrake.FunctionSpace
        The space of the test functions.
    bcs : DirichletBC or sequence of DirichletBC, optional
        Essential conditions; entries of the residual at their dofs are ignored.
    inner : {"H1", "L2", "Hdiv", "Hcurl"} or ufl.Form, optional
        Inner product whose Gram matrix is G: a full norm of `spon.fem.norms.gram`, or a symmetric
        positive definite bilinear form on V, for example the energy of the problem.
    reduction : {"mean", "sum", "none"}, optional
        How the values of the samples become the value of the call.
    measure : {"L2", "H1", "Hdiv", "Hcurl"}, optional
        Measure the representative ``z = G^-1 r`` in this norm instead of its own. ``"L2"`` weighs
        an error as the L2 norm does, where the inner product is close to the operator.

    Raises
    ------
    TypeError
        If `V` is no function space, or `inner` is neither a name nor a form.
    ValueError
        If the inner product does not fit the space, or is not symmetric and positive definite on
        the free dofs; if a condition belongs to another space; if the reduction is unknown.
    """

    def __init__(
        self,
        V: Any,
        bcs: Any = None,
        inner: Any = "H1",
        reduction: str = "mean",
        measure: str | None = None,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        self.reduction = reduction
        # A factorisation in double precision, which `.to(float32)` must not reach.
        self._riesz = RieszMap(V, bcs, inner, measure)

    def __deepcopy__(self, memo: dict[int, Any]) -> SquaredDualNorm:
        return deepcopy_sharing(self, memo, [self._riesz])

    @property
    def dim(self) -> int:
        """Number of dofs of the space."""
        return self._riesz.dim

    @property
    def prescribed(self) -> Tensor:
        """Which dofs have essential conditions, shape (dim,), bool."""
        return self._riesz.prescribed

    def forward(self, residual: Tensor) -> Tensor:
        """Norm over a batch.

        Parameters
        ----------
        residual : Tensor, shape (batch, dim)
            Dual vectors in the dof order of the space, float32 or float64; the solve is in float64.

        Returns
        -------
        Tensor
            A scalar for the reductions ``"mean"`` and ``"sum"``, shape (batch,) for ``"none"``.

        Raises
        ------
        TypeError
            If the residual is no float32 or float64 tensor.
        ValueError
            If its shape does not fit the space.
        """
        values = self.per_sample(residual)
        if self.reduction == "none":
            return values
        return values.mean() if self.reduction == "mean" else values.sum()

    def per_sample(self, residual: Tensor) -> Tensor:
        """Squared norm of each sample, shape (batch,)."""
        return self._squared(residual).to(residual)

    def riesz(self, residual: Tensor) -> Tensor:
        """The functions ``G^-1 r`` that represent residuals, zero at the prescribed dofs.

        Parameters
        ----------
        residual : Tensor, shape (batch, dim)

        Returns
        -------
        Tensor, shape (batch, dim)
            Primal coefficient vectors.
        """
        self._check(residual)
        return self._riesz(residual.to("cpu", torch.float64)).to(residual)

    def extra_repr(self) -> str:
        """Inner product and space, for ``print``."""
        measure = f", measure={self._riesz.measure!r}" if self._riesz.measure else ""
        return f"inner={self._riesz.name}{measure}, {self._riesz.space_name}"

    def _squared(self, residual: Tensor) -> Tensor:
        self._check(residual)
        # Round-off can bring the value of a tiny residual below zero.
        return self._riesz.squared(residual.to("cpu", torch.float64)).clamp_min(0)

    def _check(self, residual: Any) -> None:
        if not isinstance(residual, Tensor):
            raise TypeError(f"Expected a tensor of residuals, got {type(residual).__name__}.")
        if residual.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"The residual is {residual.dtype}: it must be float32 or float64.")
        if residual.ndim != 2 or residual.shape[1] != self.dim:
            raise ValueError(
                f"The residual has shape {tuple(residual.shape)}, expected (batch, {self.dim}): "
                f"dual vectors of {self._riesz.space_name}."
            )


class DualNorm(SquaredDualNorm):
    """Dual norm ``sqrt(r^T G^-1 r)`` of residuals; see `SquaredDualNorm` for the parameters.

    Where the residual is exactly zero the gradient is zero, a subgradient.
    """

    def per_sample(self, residual: Tensor) -> Tensor:
        """Norm of each sample, shape (batch,)."""
        return root(self._squared(residual)).to(residual)


def check_reduction(reduction: str) -> None:
    """Refuse an unknown way from the values of samples to that of a batch.

    Raises
    ------
    ValueError
    """
    if reduction not in _REDUCTIONS:
        raise ValueError(
            f"Unknown reduction {reduction!r}: choose one of {', '.join(map(repr, _REDUCTIONS))}."
        )


def root(squared: Tensor) -> Tensor:
    """Square root with gradient zero, instead of infinite, at zero."""
    # Asked in this direction, NaN is not zero: a diverged prediction must not look perfect.
    zero = squared <= torch.finfo(squared.dtype).tiny
    return torch.where(zero, 0, torch.where(zero, 1, squared).sqrt())
