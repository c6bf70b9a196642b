"""Samples as tensors, ready to be cut into batches, and the loss over a part of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Samples", "TrainingData", "average_loss", "loss_per_sample", "summed", "summed_loss"]

LossFunction = Callable[[Tensor, Tensor], Tensor]


@runtime_checkable
class TrainingData(Protocol):
    """What training needs of a dataset; `spon.Dataset` is one."""

    def __len__(self) -> int: ...

    def tensors(self, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], Tensor, Tensor | None]:
        """Inputs (n, dim_i), output (n, dim) and boundary values (n, dim) or None."""


@dataclass(frozen=True)
class Samples:
    """The tensors of a dataset.

    Attributes
    ----------
    inputs : tuple of Tensor, each of shape (n, dim_i)
        Coefficients; or values at points or images, of shape (n, ...).
    output : Tensor, shape (n, dim)
        Without columns where the data have no outputs.
    boundary : Tensor, shape (n, dim), or None
        Values on the constrained dofs of the output, sample by sample.
    """

    inputs: tuple[Tensor, ...]
    output: Tensor
    boundary: Tensor | None

    @classmethod
    def read(cls, data: Any, dtype: torch.dtype, role: str = "data") -> Samples:
        """Take the tensors out of a dataset and check them.

        Parameters
        ----------
        data : TrainingData
        dtype : torch.dtype
        role : str, optional
            How messages call the dataset.

        Raises
        ------
        TypeError
            If `data` is no dataset.
        ValueError
            If it is empty, if the numbers of samples differ, or if it holds NaN or infinity.
        """
        if not isinstance(data, TrainingData):
            raise TypeError(
                f"Expected a spon.Dataset as {role}, got {type(data).__name__}; "
                "spon.Dataset.from_functions makes one from lists of functions."
            )
        if len(data) == 0:
            raise ValueError(f"The {role} set is empty: there is nothing to train on or measure.")
        inputs, output, boundary = data.tensors(dtype)
        samples = cls(tuple(inputs), output, boundary)
        names = [f"input {name!r}" for name in getattr(data, "inputs", range(len(inputs)))]
        for name, value in zip([*names, "output", "boundary"], samples.all(), strict=False):
            if len(value) != len(output):
                raise ValueError(
                    f"The {role} set has {len(value)} samples of {name} and {len(output)} of the "
                    "output: there must be as many of one as of the other."
                )
            if not bool(torch.isfinite(value).all()):
                row = int((~torch.isfinite(value)).flatten(1).any(1).nonzero()[0])
                raise ValueError(
                    f"The {role} set holds NaN or infinity: {name} of sample {row}. Leave that "
                    "sample out, or find out why its solve failed."
                )
        return samples

    def __len__(self) -> int:
        return len(self.output)

    @property
    def labelled(self) -> bool:
        """Whether there are outputs."""
        return self.output.shape[1] > 0

    def all(self) -> tuple[Tensor, ...]:
        """Inputs, output and, where there is one, boundary."""
        last = () if self.boundary is None else (self.boundary,)
        return (*self.inputs, self.output, *last)

    def take(self, rows: Tensor) -> Samples:
        """The samples of the given numbers, shape (m,)."""
        return self._each(lambda value: value.index_select(0, rows.to(value.device)))

    def to(self, device: torch.device) -> Samples:
        """The samples on a device."""
        return self._each(lambda value: value.to(device))

    def settled(self, device: torch.device) -> Samples:
        """The samples on the device if they fill less than half of its free memory, else as is."""
        if device.type != "cuda":
            return self
        size = sum(value.numel() * value.element_size() for value in self.all())
        return self.to(device) if 2 * size < torch.cuda.mem_get_info(device)[0] else self

    def fingerprint(self) -> str:
        """Number of samples and a hash of all their numbers, for messages and comparisons."""
        digest = hashlib.blake2b(digest_size=8)
        for value in self.all():
            digest.update(str(tuple(value.shape)).encode())
            digest.update(np.ascontiguousarray(value.cpu().numpy()).data)
        return f"{len(self)} samples [{digest.hexdigest()}]"

    def _each(self, change: Callable[[Tensor], Tensor]) -> Samples:
        boundary = None if self.boundary is None else change(self.boundary)
        return Samples(tuple(map(change, self.inputs)), change(self.output), boundary)


def loss_per_sample(net: nn.Module, loss: Any, batch: Samples) -> Tensor:
    """Loss of each sample of a batch.

    Parameters
    ----------
    net : Module
    loss : callable
        One with a method ``per_sample``, or any ``loss(prediction, target) -> scalar``, which is
        then called sample by sample.
    batch : Samples

    Returns
    -------
    Tensor, shape (n,)
    """
    prediction = _predict(net, batch)
    if hasattr(loss, "per_sample"):
        values: Tensor = loss.per_sample(prediction, compared(loss, batch))
        return values
    pairs = zip(prediction.split(1), batch.output.split(1), strict=True)
    return torch.stack([_scalar(loss, p, t) for p, t in pairs])


def summed_loss(net: nn.Module, loss: Any, batch: Samples) -> Tensor:
    """Sum of the losses of a batch, a scalar.

    A loss without ``per_sample`` is taken to be a mean over the batch.

    Raises
    ------
    ValueError
        If the loss does not return a scalar.
    """
    return summed(loss, _predict(net, batch), batch)


def summed(loss: Any, prediction: Tensor, batch: Samples) -> Tensor:
    """Sum of the losses of the predictions for a batch, see `summed_loss`."""
    if hasattr(loss, "per_sample"):
        total: Tensor = loss.per_sample(prediction, compared(loss, batch)).sum()
        return total
    return _scalar(loss, prediction, batch.output) * len(batch)


def compared(loss: Any, batch: Samples) -> Any:
    """What a loss looks at beside the prediction: the target, or the inputs."""
    return batch.inputs if getattr(loss, "takes_inputs", False) else batch.output


def average_loss(losses: Tensor, samples: int) -> float:
    """Mean from a sum, NaN for no samples."""
    return losses.item() / samples if samples else math.nan


def _predict(net: nn.Module, batch: Samples) -> Tensor:
    if batch.boundary is None:
        prediction: Tensor = net(*batch.inputs)
    else:
        prediction = net(*batch.inputs, boundary=batch.boundary)
    return prediction


def _scalar(loss: Any, prediction: Tensor, target: Tensor) -> Tensor:
    value = loss(prediction, target)
    if not isinstance(value, Tensor) or value.ndim != 0:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"A loss must return a scalar tensor, the mean over the batch; this one gave {got}. "
            "Take its mean, or give it a method per_sample(prediction, target) -> (batch,)."
        )
    return value
