"""Newton steps down an energy, for a batch of states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spon.fem.arguments import Essential
from spon.fem.dual import RieszMap
from spon.fem.factor import SingularMatrixError, SparseLU
from spon.fem.forms import TorchForm
from spon.fem.lu_kernels import LANES
from spon.fem.matrices import jacobian
from spon.fem.spaces import mesh_of, name_of, require_primal_space, require_serial

__all__ = ["EnergyDescent"]

_HALVINGS = 7  # shorter steps that are tried where the whole one does not reduce the energy
_GRADIENT_HALVINGS = 30  # the gradient knows no length of its own
_ROUND_OFF = 1e-13


class EnergyDescent:
    """Damped Newton steps on the free dofs: ``u + t d`` with ``E''(u) d = -E'(u)``.

    The length t is one where that reduces the energy, otherwise the best of some shorter ones.
    Where the Hessian is indefinite and d leads upwards, its negative is taken. Where no length
    reduces the energy, d is the gradient in the inner product of a norm instead: the negative Riesz
    representative of ``E'(u)``.

    Parameters
    ----------
    energy : TorchForm
        A 0-form of the unknown, a Function, and of the inputs.
    bcs : None, DirichletBC or sequence of DirichletBC
        Says which dofs are prescribed; a step does not change them.
    norm : str, optional
        A norm of `spon.fem.norms.gram`, for the gradient.

    Attributes
    ----------
    space : FunctionSpace
        Of the unknown.
    dim : int
    prescribed : bool Tensor, shape (dim,)

    Raises
    ------
    TypeError, ValueError
        If a condition or the norm does not fit the space, or the energy does not depend on the
        unknown.
    NotImplementedError
        If the unknown is of a type that has no matrices here.
    """

    def __init__(self, energy: TorchForm, bcs: Any = None, norm: str = "H1") -> None:
        self.space = energy._slots[0].function.function_space()
        require_primal_space(self.space, "An energy")
        require_serial(mesh_of(self.space), "An energy")
        self.dim = int(self.space.dim())
        essential = Essential(self.space, bcs)
        self.prescribed, self.space_name = essential.prescribed, name_of(self.space)
        self._energy, self._residual = energy, energy.gradient(0)
        self._matrices = jacobian(self._residual)
        self._lu = SparseLU(self._matrices.pointers, self._matrices.columns, essential.free)
        self._riesz = RieszMap(self.space, bcs, norm)

    def __call__(self, u: Tensor, inputs: Sequence[Tensor], steps: int = 1) -> Tensor:
        """Take some steps.

        Parameters
        ----------
        u : Tensor, shape (batch, dim)
            float64 on the CPU.
        inputs : sequence of Tensor, shapes (batch, dim of the input)
            float64 on the CPU.
        steps : int, optional

        Returns
        -------
        Tensor, shape (batch, dim)
            Without a graph. Nowhere is the energy larger than before, up to round-off. NaN where
            the energy or its gradient is not finite.
        """
        with torch.no_grad():
            parts = zip(u.split(LANES), *(x.split(LANES) for x in inputs), strict=True)
            done = []
            for state, *given in parts:
                for _ in range(steps):
                    state = self._step(state, given)
                done.append(state)
            return torch.cat(done) if done else u.clone()

    def _step(self, u: Tensor, inputs: list[Tensor]) -> Tensor:
        gradient = torch.where(self.prescribed, 0.0, self._residual.values([u, *inputs]))
        start = self._energy.values([u, *inputs])
        finite = torch.isfinite(start) & torch.isfinite(gradient).all(1)
        direction = self._newton_direction(u, inputs, gradient, finite)
        upwards = (gradient * direction).sum(1) > 0
        direction = torch.where(upwards[:, None], -direction, direction)
        # At the minimum a step changes the energy by round-off, in either direction.
        bound = start + _ROUND_OFF * start.abs()
        length = self._search(u, inputs, direction, bound, _HALVINGS)
        stuck = finite & (length == 0)
        if stuck.any():
            rows = [x[stuck] for x in inputs]
            direction[stuck] = -self._riesz(gradient[stuck])
            length[stuck] = self._search(
                u[stuck], rows, direction[stuck], start[stuck], _GRADIENT_HALVINGS
            )
        return torch.where(finite[:, None], u + length[:, None] * direction, torch.nan)

    def _search(
        self, u: Tensor, inputs: list[Tensor], direction: Tensor, bound: Tensor, halvings: int
    ) -> Tensor:
        """Lengths: one, or the best of those tried, or zero if none reaches the bound."""
        best, length = bound.clone(), torch.zeros_like(bound)
        rest = torch.nonzero((direction != 0).any(1))[:, 0]
        for k in range(1 + halvings):
            if not len(rest):
                break
            t = 0.5**k
            trial = u[rest] + t * direction[rest]
            value = self._energy.values([trial, *(x[rest] for x in inputs)])
            # Asked in this direction, NaN is no reduction.
            better = value <= best[rest]
            length[rest[better]], best[rest[better]] = t, value[better]
            rest = rest[length[rest] < 1]
        return length

    def _newton_direction(
        self, u: Tensor, inputs: list[Tensor], gradient: Tensor, finite: Tensor
    ) -> Tensor:
        direction, good = torch.zeros_like(u), finite.clone()
        while good.any():
            values = self._matrices.values([x[good] for x in (u, *inputs)], int(good.sum()))
            try:
                # Untested: a bad factorisation gives a direction that the energy refuses.
                factors = self._lu.factor_each(values, check=False)
            except SingularMatrixError as error:
                good[good.nonzero()[error.samples, 0]] = False
                continue
            direction[good] = factors.solve(-gradient[good])
            break
        return direction.nan_to_num(0.0, 0.0, 0.0)
