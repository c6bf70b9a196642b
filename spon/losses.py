"""Errors measured in the norm of the function space, as training losses and as figures."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from spon.fem.norms import gram
from spon.fem.spaces import signature
from spon.newton_loss import NewtonLoss
from spon.physics_losses import Energy, PhysicsLoss, Residual
from spon.residual_losses import DualNorm, SquaredDualNorm, check_reduction, root
from spon.sparse import SparseMap

__all__ = [
    "AbsoluteError",
    "DualNorm",
    "Energy",
    "NewtonLoss",
    "PhysicsLoss",
    "RelativeError",
    "Residual",
    "SquaredDualNorm",
    "SquaredError",
    "SquaredRelativeError",
]


class NormLoss(nn.Module):
    """Base of the losses: a distance between coefficient vectors in the norm of their space.

    The Gram matrix is assembled once in double precision and follows the dtype and the device of
    the tensors it is given. It is geometry, not a weight: the ``state_dict`` is empty.

    Parameters
    ----------
    space : firedrake.FunctionSpace
        The space of the predictions and targets.
    norm : {"L2", "H1", "Hdiv", "Hcurl"}, optional
        Full norms, see `spon.fem.norms.gram`. On a mixed space only ``"L2"``, which sums over the
        components.
    reduction : {"mean", "sum", "none"}, optional
        How the errors of the samples become the value of the call. `spon.fit` always averages over
        samples, whatever is chosen here.

    Raises
    ------
    TypeError
        If `space` is not a function space.
    ValueError
        If the norm does not fit the space, or the norm or reduction is unknown.
    """

    def __init__(self, space: Any, norm: str = "L2", reduction: str = "mean") -> None:
        super().__init__()
        check_reduction(reduction)
        self.norm = norm
        self.reduction = reduction
        # Kept outside of the buffers, so that `.to(float32)` cannot spoil the float64 matrix.
        self._matrix = gram(space, norm).to_scipy()
        self.signature = signature(space)
        self._copies: dict[tuple[torch.dtype, torch.device], SparseMap] = {}

    @property
    def space_name(self) -> str:
        """The space in one line, for messages."""
        return self.signature.describe()

    def on(self, space: Any) -> Self:
        """The same loss on another mesh.

        Parameters
        ----------
        space : firedrake.FunctionSpace
            Of the same element.

        Raises
        ------
        ValueError
            If it has another element.
        """
        if not signature(space).same_element(self.signature):
            raise ValueError(
                f"This {type(self).__name__} measures functions in {self.space_name}, the space on "
                f"the other mesh is {signature(space).describe()}."
            )
        return type(self)(space, **self._options())

    def _options(self) -> dict[str, Any]:
        """Arguments of the constructor beside the space."""
        return {"norm": self.norm, "reduction": self.reduction}

    @property
    def dim(self) -> int:
        """Number of dofs of the space."""
        return int(self._matrix.shape[0])

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Error over a batch.

        Parameters
        ----------
        prediction, target : Tensor, shape (batch, dim)
            Coefficients in the dof order of the space; same dtype (float32 or float64) and device.

        Returns
        -------
        Tensor
            A scalar for the reductions ``"mean"`` and ``"sum"``, shape (batch,) for ``"none"``.

        Raises
        ------
        TypeError
            If the dtypes differ or are not floating point.
        ValueError
            If a shape does not fit the space, or the devices differ.
        """
        errors = self.per_sample(prediction, target)
        if self.reduction == "none":
            return errors
        return errors.mean() if self.reduction == "mean" else errors.sum()

    def per_sample(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Error of each sample.

        Parameters
        ----------
        prediction, target : Tensor, shape (batch, dim)

        Returns
        -------
        Tensor, shape (batch,)

        Raises
        ------
        TypeError, ValueError
            As in `forward`.
        """
        raise NotImplementedError

    def squared_norm(self, v: Tensor) -> Tensor:
        """Squared norm of each function of a batch.

        Parameters
        ----------
        v : Tensor, shape (batch, dim)

        Returns
        -------
        Tensor, shape (batch,)
            Never negative.
        """
        # Copied dofs first: the sparse product and its backward pass take a third of the time.
        columns = v.T.contiguous()
        # Round-off can bring the form of a tiny vector below zero.
        return (columns * self._gram(v)(columns)).sum(0).clamp_min(0)

    def extra_repr(self) -> str:
        """Norm and space, for ``print``."""
        return f"norm={self.norm!r}, {self.space_name}"

    def _gram(self, like: Tensor) -> SparseMap:
        key = (like.dtype, like.device)
        if key not in self._copies:
            self._copies[key] = SparseMap(self._matrix, like.dtype).to(like.device)
        return self._copies[key]

    def _difference(self, prediction: Tensor, target: Tensor) -> Tensor:
        if prediction.dtype != target.dtype or prediction.dtype not in (
            torch.float32,
            torch.float64,
        ):
            raise TypeError(
                f"The prediction is {prediction.dtype} and the target {target.dtype}: both must be "
                "float32 or both float64."
            )
        if prediction.shape != target.shape or prediction.ndim != 2:
            raise ValueError(
                f"The prediction has shape {tuple(prediction.shape)} and the target "
                f"{tuple(target.shape)}: both must be (batch, {self.dim}), coefficients in "
                f"{self.space_name}."
            )
        if prediction.shape[1] != self.dim:
            raise ValueError(
                f"Prediction and target have {prediction.shape[1]} coefficients a sample, but "
                f"{self.space_name} has {self.dim}."
            )
        if prediction.device != target.device:
            raise ValueError(
                f"The prediction is on {prediction.device} and the target on {target.device}: "
                "bring both to one device."
            )
        return prediction - target


class SquaredError(NormLoss):
    """Squared error ``||u - v||^2``; see `NormLoss` for the parameters."""

    def per_sample(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Squared error of each sample, shape (batch,)."""
        return self.squared_norm(self._difference(prediction, target))


class AbsoluteError(NormLoss):
    """Error ``||u - v||``; see `NormLoss` for the parameters.

    Where the error is exactly zero the gradient is zero, a subgradient.
    """

    def per_sample(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Error of each sample, shape (batch,)."""
        return root(self.squared_norm(self._difference(prediction, target)))


class _Relative(NormLoss):
    """Base of the two relative errors.

    Parameters
    ----------
    space, norm, reduction
        See `NormLoss`.
    floor : float, optional
        Targets whose norm is below this are divided by it instead of by their norm. By default
        there is no floor, and a zero target is refused.

    Raises
    ------
    ValueError
        If `floor` is not positive. On a call: if a target is zero and there is no floor.
    """

    def __init__(
        self, space: Any, norm: str = "L2", reduction: str = "mean", floor: float | None = None
    ) -> None:
        super().__init__(space, norm, reduction)
        if floor is not None and not floor > 0:
            raise ValueError(f"The floor of a relative error must be positive, got {floor}.")
        self.floor = floor

    def extra_repr(self) -> str:
        """Norm, space and floor, for ``print``."""
        return super().extra_repr() + (f", floor={self.floor}" if self.floor else "")

    def _options(self) -> dict[str, Any]:
        return super()._options() | {"floor": self.floor}

    def _squared_ratio(self, prediction: Tensor, target: Tensor) -> Tensor:
        error = self.squared_norm(self._difference(prediction, target))
        scale = self.squared_norm(target)
        if self.floor is not None:
            return error / scale.clamp_min(self.floor**2)
        zero = scale <= torch.finfo(scale.dtype).tiny
        if zero.any():
            raise ValueError(
                f"{type(self).__name__}: target {int(zero.nonzero()[0])} of a batch of "
                f"{len(scale)} is zero, so that its relative error is undefined. Leave such "
                "samples out, pass floor=..., or use AbsoluteError or SquaredError."
            )
        return error / scale


class SquaredRelativeError(_Relative):
    """Squared relative error ``||u - v||^2 / ||v||^2`` for a prediction u and a target v.

    Parameters
    ----------
    space, norm, reduction
        See `NormLoss`.
    floor : float, optional
        Targets whose norm is below this are divided by it instead of by their norm. By default
        there is no floor, and a zero target is refused with a ``ValueError``.
    """

    def per_sample(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Squared relative error of each sample, shape (batch,)."""
        return self._squared_ratio(prediction, target)


class RelativeError(_Relative):
    """Relative error ``||u - v|| / ||v||`` for a prediction u and a target v.

    Where the error is exactly zero the gradient is zero, a subgradient.

    Parameters
    ----------
    space, norm, reduction
        See `NormLoss`.
    floor : float, optional
        Targets whose norm is below this are divided by it instead of by their norm. By default
        there is no floor, and a zero target is refused with a ``ValueError``.
    """

    def per_sample(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Relative error of each sample, shape (batch,)."""
        return root(self._squared_ratio(prediction, target))
