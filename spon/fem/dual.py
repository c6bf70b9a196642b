"""The Riesz map of a space with essential conditions: from dual vectors to functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import ufl
from torch import Tensor

from spon.fem.arguments import Essential
from spon.fem.factor import SingularMatrixError, SparseLU
from spon.fem.implicit import Inverse, constant_solve
from spon.fem.maps import sparse_map
from spon.fem.norms import NORMS, gram
from spon.fem.spaces import mesh_of, name_of, require_primal_space, require_serial

__all__ = ["RieszMap"]


class RieszMap:
    """``r -> G^-1 r`` on the free dofs, for the Gram matrix G of an inner product.

    Parameters
    ----------
    V : FunctionSpace
    bcs : None, DirichletBC or sequence of DirichletBC
    inner : str or ufl.Form
        A norm of `spon.fem.norms.gram`, or a symmetric positive definite bilinear form on V.
    measure : str, optional
        A norm of `spon.fem.norms.gram` for the representative; its own by default.

    Raises
    ------
    TypeError, ValueError
        If one does not fit the other, or the form is not symmetric positive definite.
    """

    def __init__(self, V: Any, bcs: Any, inner: Any, measure: str | None = None) -> None:
        require_primal_space(V, "A dual norm")
        require_serial(mesh_of(V), "A dual norm")
        self.dim, self.space_name = int(V.dim()), f"{name_of(V)} with {V.dim()} dofs"
        self.name = repr(inner) if isinstance(inner, str) else "a bilinear form"
        self.measure = measure
        self._measure = None if measure is None else gram(V, measure)
        self._essential = Essential(V, bcs)
        matrix = _gram(V, inner).to_scipy()
        lu = SparseLU(matrix.indptr, matrix.indices, self._essential.free)
        values = torch.from_numpy(matrix.data)
        if not lu.is_symmetric(values, 1e-10):
            raise ValueError(
                f"The inner product of a dual norm on {self.space_name} must be symmetric, "
                f"{self.name} is not."
            )
        try:
            self._factor = lu.factor(values, symmetric=True)
        except SingularMatrixError as error:
            raise ValueError(self._refusal()) from error
        probe = torch.from_numpy(np.random.default_rng(0).standard_normal((8, self.dim)))
        if not self._factor.positive or not (self.squared(probe) > 0).all():
            raise ValueError(self._refusal())

    def _refusal(self) -> str:
        return (
            f"The inner product of a dual norm must be positive definite on the free dofs of "
            f"{self.space_name}, {self.name} is not: a seminorm needs conditions that fix what it "
            "does not see, or a lower-order term."
        )

    @property
    def prescribed(self) -> Tensor:
        """Which dofs have essential conditions, shape (dim,), bool."""
        return self._essential.prescribed

    def __call__(self, r: Tensor) -> Tensor:
        """Representatives of dual vectors of shape (batch, dim), float64 on the CPU."""
        return constant_solve(r, self._factor)

    def squared(self, r: Tensor) -> Tensor:
        """``r^T G^-1 r`` for each row, or the square of another norm of ``G^-1 r``, (batch,)."""
        if self._measure is not None:
            z = self(torch.where(self.prescribed, 0.0, r)).T
            return (z * self._measure(z)).sum(0)
        value: Tensor = _Squared.apply(r, self._factor, self._essential.prescribed)
        return value


class _Squared(torch.autograd.Function):
    """A quadratic form whose gradient needs no further solve."""

    @staticmethod
    def forward(ctx: Any, r: Tensor, factor: Inverse, prescribed: Tensor) -> Tensor:
        z = factor.solve(r.detach())
        ctx.factor = factor
        ctx.save_for_backward(r, z)
        # Where r is ignored, it may be NaN.
        return (torch.where(prescribed, 0.0, r) * z).sum(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        r, z = ctx.saved_tensors
        if torch.is_grad_enabled():
            z = constant_solve(r, ctx.factor)
        return 2 * gradients[0][:, None] * z, None, None


def _gram(V: Any, inner: Any) -> Any:
    if isinstance(inner, str):
        return gram(V, inner)
    if not isinstance(inner, ufl.Form):
        raise TypeError(
            f"Expected one of {', '.join(map(repr, NORMS))} or a bilinear form for inner, got "
            f"{type(inner).__name__}."
        )
    spaces = [argument.function_space() for argument in inner.arguments()]
    if len(spaces) != 2 or any(space != V for space in spaces):
        raise ValueError(
            f"Expected a bilinear form on {V.ufl_element()} for inner, this one has arguments in "
            f"{[space.ufl_element() for space in spaces]}."
        )
    return sparse_map(inner)
