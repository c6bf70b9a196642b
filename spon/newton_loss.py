"""A loss for energies: the distance to where Newton's method leads from the prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spon.copying import deepcopy_sharing
from spon.fem.descent import EnergyDescent
from spon.fem.forms import TorchForm
from spon.fem.norms import gram
from spon.physics_losses import PhysicsLoss
from spon.residual_losses import root

__all__ = ["NewtonLoss"]

_FIRST_STEPS = 4


class NewtonLoss(PhysicsLoss):
    """Relative distance of the prediction u to ``N(u)``, damped Newton steps on the energy from it.

    The gradient is taken with ``N(u)`` held fixed. No solution is needed, and the loss is zero at
    stationary points of the energy only. The value estimates the relative error of the prediction,
    in the norm that was chosen, up to its square (with two steps: its fourth power): it can be
    compared between networks, and tells when to stop. Take it where minimising the energy itself
    is badly conditioned, as for slender bodies.

    Parameters
    ----------
    form : TorchForm
        ``torch_form(E, [u, *inputs])`` of an energy: the prediction first, then the inputs of the
        network in the order of its encoders.
    bcs : DirichletBC or sequence of DirichletBC, optional
        Essential conditions, those of the decoder.
    norm : {"H1", "L2", "Hdiv", "Hcurl"}, optional
        Norm of the distance, see `spon.fem.norms.gram`.
    steps : int, optional
        Newton steps, each with one matrix, one factorisation and one or more values of the energy
        for each sample. With large rotations two trained well at learning rates at which one did
        not.

    Raises
    ------
    TypeError, ValueError
        If `form` is no energy, a condition or the norm does not fit its space, or `steps` is less
        than one.

    Notes
    -----
    For one whole step, ``N(u) = u - E''(u)^-1 E'(u)``, the gradient of half the squared distance by
    u is ``G E''(u)^-1 E'(u)``, G being the Gram matrix of the norm: the gradient of the energy,
    preconditioned. Such losses are the *Newton losses* of Petersen et al. (2024), *Newton Losses:
    Using Curvature Information for Learning with Differentiable Algorithms*, here with a
    line search in the place of their damping and the norm of a function space in the place of the
    Euclidean one. The direction in function space is the one that energy natural gradients project
    onto what the weights can reach (Müller and Zeinhofer 2023, *Achieving High Accuracy with PINNs
    via Energy Natural Gradient Descent*); here the optimiser of the training does that, over many
    batches and step by step. Unlike `spon.losses.Energy`, the value is not one functional that the
    training minimises: N(u) moves with the weights.
    """

    def __init__(self, form: TorchForm, bcs: Any = None, norm: str = "H1", steps: int = 2) -> None:
        super().__init__(form, 0)
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"The number of Newton steps must be 1 or more, got steps={steps!r}.")
        self._descent = EnergyDescent(form, bcs, norm)
        self._gram = gram(self._descent.space, norm)
        self.norm, self.steps = norm, steps

    def __deepcopy__(self, memo: dict[int, Any]) -> NewtonLoss:
        return deepcopy_sharing(self, memo, [self.form, self._descent, self._gram])

    def per_sample(self, prediction: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """Relative distance of each sample, shape (batch,).

        Raises
        ------
        ValueError
            If the prediction does not fit the space of the energy.
        """
        target = self.target(prediction, inputs)
        distance = self._squared_norm(prediction.to(target) - target)
        size = self._squared_norm(target).clamp_min(torch.finfo(target.dtype).tiny)
        # NaN at a prediction that is not finite: the training then says that it has diverged.
        return root(distance / size).to(prediction)

    def target(
        self, prediction: Tensor, inputs: Sequence[Tensor], steps: int | None = None
    ) -> Tensor:
        """Where the Newton steps lead.

        Parameters
        ----------
        prediction : Tensor, shape (batch, U.dim())
        inputs : sequence of Tensor, shapes (batch, dim)
        steps : int, optional
            Another number of steps than that of the loss.

        Returns
        -------
        Tensor, shape (batch, U.dim())
            float64 on the CPU, without a graph.

        Raises
        ------
        ValueError
            If the prediction does not fit the space of the energy.
        """
        if prediction.ndim != 2 or prediction.shape[1] != self._descent.dim:
            raise ValueError(
                f"The prediction has shape {tuple(prediction.shape)}, expected (batch, "
                f"{self._descent.dim}): coefficients in {self._descent.space_name}."
            )
        state, *given = (x.detach().to("cpu", torch.float64) for x in (prediction, *inputs))
        return self._descent(state, given, self.steps if steps is None else steps)

    def first_step(self, start: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """A few Newton steps from the start, (batch, U.dim())."""
        return self.target(start, inputs, max(self.steps, _FIRST_STEPS)).to(start)

    def extra_repr(self) -> str:
        """Steps, norm and space, for ``print``."""
        return f"steps={self.steps}, norm={self.norm!r}, {self._descent.space_name}"

    def _squared_norm(self, v: Tensor) -> Tensor:
        columns = v.T.contiguous()
        return (columns * self._gram(columns)).sum(0).clamp_min(0)
