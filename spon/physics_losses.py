"""Losses that need no solutions: residuals in the dual norm, and energies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spon.copying import deepcopy_sharing
from spon.fem.forms import TorchForm
from spon.residual_losses import SquaredDualNorm

__all__ = ["Energy", "PhysicsLoss", "Residual"]

_HALVINGS = 12  # lengths that are tried for the first step


class PhysicsLoss(nn.Module):
    """Base of the losses that look at the inputs of a network in the place of a target.

    `spon.fit` gives such a loss the prediction and the inputs; the data set needs no outputs.

    Attributes
    ----------
    takes_inputs : bool
        True: what tells these losses from those of `spon.losses` that compare with a target.
    """

    takes_inputs = True

    def __init__(self, form: TorchForm, arity: int) -> None:
        super().__init__()
        if not isinstance(form, TorchForm):
            raise TypeError(
                f"Expected what spon.fem.torch_form returns, got {type(form).__name__}: "
                "torch_form(F, [u, *inputs])."
            )
        if form.arity != arity:
            wanted, got = ("an energy, a 0-form", "a residual, a 1-form")[:: 1 - 2 * arity]
            raise ValueError(f"{type(self).__name__} takes {wanted}; got {got}.")
        # Not a child module: a form has no weights and no place of its own.
        object.__setattr__(self, "form", form)

    form: TorchForm

    def __deepcopy__(self, memo: dict[int, Any]) -> PhysicsLoss:
        return deepcopy_sharing(self, memo, [self.form])

    def forward(self, prediction: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """Mean over a batch.

        Parameters
        ----------
        prediction : Tensor, shape (batch, U.dim())
        inputs : sequence of Tensor, shapes (batch, dim)
            In the order in which the form takes them after the prediction.

        Returns
        -------
        Tensor
            A scalar.
        """
        return self.per_sample(prediction, inputs).mean()

    def per_sample(self, prediction: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """Loss of each sample, shape (batch,)."""
        raise NotImplementedError

    def first_step(self, start: Tensor, inputs: Sequence[Tensor]) -> Tensor | None:
        """Where one step of descent in the energy space leads: the size of solutions, unsolved.

        `spon.fit` takes the scale of a network's output from it.

        Parameters
        ----------
        start : Tensor, shape (batch, U.dim())
            What the network's decoder makes of zero.
        inputs : sequence of Tensor

        Returns
        -------
        Tensor, shape (batch, U.dim()), or None if nothing is known
        """
        return None

    def _best_step(self, start: Tensor, direction: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """``start - t * direction`` with the best of some lengths t for each sample."""
        best, least = start, self.per_sample(start, inputs)
        for k in range(_HALVINGS):
            tried = start - direction / 2**k
            value = self.per_sample(tried, inputs)
            better = value < least
            best = torch.where(better[:, None], tried, best)
            least = torch.where(better, value, least)
        return best


class Residual(PhysicsLoss):
    """Squared dual norm of the residual of the prediction.

    For a symmetric coercive problem and its energy as inner product this is the squared energy
    error, up to the square of the ratio of the coefficients; on any mesh.

    Parameters
    ----------
    form : TorchForm
        ``torch_form(F, [u, *inputs])`` of the residual ``F(u; v)``: the prediction first, then the
        inputs of the network in the order of its encoders.
    norm : spon.losses.SquaredDualNorm or spon.losses.DualNorm
        In the space of the test functions, with the conditions of the decoder.
    relative : bool, optional
        Divide by the value at the network's start (the decoder's boundary values, zero elsewhere),
        so that samples of different size weigh alike. False by default.

    Raises
    ------
    TypeError, ValueError
        If `form` is no residual, or `norm` is no dual norm in its space.

    Notes
    -----
    The Euclidean norm of a residual is no alternative: minimising it is conditioned like h^-4.
    """

    def __init__(self, form: TorchForm, norm: SquaredDualNorm, relative: bool = False) -> None:
        super().__init__(form, 1)
        if not isinstance(norm, SquaredDualNorm):
            raise TypeError(
                f"Expected spon.losses.DualNorm(V, bcs) or SquaredDualNorm, got "
                f"{type(norm).__name__}."
            )
        if norm.dim != form.output_size:
            raise ValueError(
                f"The residual has {form.output_size} entries, the dual norm is one of vectors "
                f"with {norm.dim}: build it in the space of the test functions."
            )
        self.norm, self.relative = norm, relative
        self._prescribed = norm.prescribed

    def per_sample(self, prediction: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """Loss of each sample, shape (batch,)."""
        value = self.norm.per_sample(self.form(prediction, *inputs))
        if not self.relative:
            return value
        with torch.no_grad():
            start = torch.where(self._prescribed.to(prediction.device), prediction, 0.0)
            size = self.norm.per_sample(self.form(start, *inputs))
        return value / size.clamp_min(torch.finfo(size.dtype).tiny)

    def first_step(self, start: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """Start minus a multiple of the Riesz representative of its residual, (batch, U.dim())."""
        return self._best_step(start, self.norm.riesz(self.form(start, *inputs)), inputs)


class Energy(PhysicsLoss):
    """Energy of the prediction: its minimiser solves the problem.

    The value is not zero at the solution, and a network's distance to it is not known from the
    value alone: measure it by `Residual`, or on some solutions.

    Parameters
    ----------
    form : TorchForm
        ``torch_form(E, [u, *inputs])`` of an energy.
    norm : spon.losses.SquaredDualNorm, optional
        Gives the network's output its scale before the training, see `first_step`.
    scale : float, optional
        Divide by it: an energy of the size of one suits the optimiser.

    Raises
    ------
    TypeError, ValueError
        If `form` is no energy.
    """

    def __init__(
        self, form: TorchForm, norm: SquaredDualNorm | None = None, scale: float = 1.0
    ) -> None:
        super().__init__(form, 0)
        if not scale > 0:
            raise ValueError(f"The scale of an energy must be positive, got {scale}.")
        self.norm, self.scale = norm, scale

    def per_sample(self, prediction: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """Energy of each sample, shape (batch,)."""
        return self.form(prediction, *inputs) / self.scale

    def first_step(self, start: Tensor, inputs: Sequence[Tensor]) -> Tensor | None:
        """Start minus the Riesz representative of the derivative, if there is a `norm`."""
        if self.norm is None:
            return None
        with torch.enable_grad():
            at = start.detach().requires_grad_()
            (derivative,) = torch.autograd.grad(self.form(at, *inputs).sum(), at)
        return self._best_step(start, self.norm.riesz(derivative), inputs)
