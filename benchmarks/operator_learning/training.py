"""One training loop for every network: the same optimiser, schedule, loss and budget."""

from __future__ import annotations

import ctypes
import gc
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from operator_learning.problems import Samples

__all__ = ["CHECKS", "Budget", "Optimiser", "predict", "resident_peak", "train"]

CHECKS = 12  # looks at the validation samples, evenly over the budget
_WARM_UP = 0.15  # share of the budget in which the learning rate rises
_EVALUATION_BATCH = 50


@dataclass(frozen=True)
class Budget:
    """What a training may cost: it ends with whatever is used up first.

    Attributes
    ----------
    seconds : float
        CPU time of the process (one thread), without looks at the validation samples.
    epochs : int
        Passes over the training samples.
    """

    seconds: float
    epochs: int


@dataclass(frozen=True)
class Optimiser:
    """Settings of AdamW; `lr` is the largest learning rate of the schedule."""

    lr: float = 2e-3
    weight_decay: float = 1e-4
    batch_size: int = 16
    clip: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON-able values."""
        return asdict(self)


def train(
    model: nn.Module,
    samples: Samples,
    validation: Samples,
    optimiser: Optimiser,
    budget: Budget,
    seed: int,
    setup: float = 0.0,
    checks: int = CHECKS,
) -> dict[str, Any]:
    """Minimise the mean relative error over the training samples.

    The learning rate rises over the first part of the budget and falls to zero with a cosine over
    the rest, so that each network ends its schedule when its budget ends, however fast it is. A
    few times, first before all steps, the error on `validation` is taken; the weights of the best
    one are kept.

    Parameters
    ----------
    model : Module
        Called with input values (batch, inputs) and the level; holds the weights.
    samples, validation : Samples
    optimiser : Optimiser
    budget : Budget
    seed : int
        Of the order of the samples.
    setup : float, optional
        CPU seconds that were spent on the model before, part of the budget.
    checks : int, optional
        Looks at the validation samples after the first, evenly over the budget.

    Returns
    -------
    dict
        ``cpu_seconds`` (with the set-up), ``epochs``, ``steps``, ``memory_mb`` (or None), ``curve``
        (pairs of CPU seconds and validation error), ``validation`` (the best one, None if none was
        finite).
    """
    level = samples.level
    order = torch.Generator().manual_seed(seed)
    batch = min(optimiser.batch_size, len(samples))
    steps_an_epoch = math.ceil(len(samples) / batch)
    adam = torch.optim.AdamW(
        model.parameters(), lr=optimiser.lr, weight_decay=optimiser.weight_decay
    )
    watch = _Watch(model, validation)
    watch(setup)  # a linear start may be better than what a short training makes of it
    memory = _reset_peak()
    used = mark = 0.0
    spent = setup
    step = 0
    batches: Iterator[Tensor] = iter(())
    start = time.process_time() - setup
    while used < 1.0:
        if step % steps_an_epoch == 0:
            batches = iter(torch.randperm(len(samples), generator=order).split(batch))
        chosen = next(batches)
        for group in adam.param_groups:
            group["lr"] = optimiser.lr * rate(used)
        adam.zero_grad(set_to_none=True)
        loss = level.error(model(samples.x[chosen], level), samples.y[chosen]).mean()
        loss.backward()
        if optimiser.clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), optimiser.clip)
        adam.step()
        step += 1
        spent = time.process_time() - start
        used = max(spent / budget.seconds, step / (steps_an_epoch * budget.epochs))
        if used - mark >= 1.0 / checks or used >= 1.0:
            mark = used
            look = time.process_time()
            if not watch(spent):
                break
            start += time.process_time() - look
    peak = resident_peak()
    watch.restore()
    return {
        "cpu_seconds": spent,
        "epochs": step / steps_an_epoch,
        "steps": step,
        "memory_mb": None if memory is None or peak is None else peak - memory,
        "curve": watch.curve,
        "validation": watch.best,
    }


def rate(used: float) -> float:
    """Factor of the learning rate when this share of the budget is used."""
    if used < _WARM_UP:
        return 0.05 + 0.95 * used / _WARM_UP
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (used - _WARM_UP) / (1.0 - _WARM_UP)))


def predict(model: nn.Module, samples: Samples, batch: int = _EVALUATION_BATCH) -> Tensor:
    """Output values of all samples, shape (n, outputs)."""
    model.eval()
    with torch.no_grad():
        parts = [model(x, samples.level) for x in samples.x.split(batch)]
    model.train()
    return torch.cat(parts)


class _Watch:
    """Errors on the validation samples, and the weights of the best one."""

    def __init__(self, model: nn.Module, validation: Samples) -> None:
        self._model, self._validation = model, validation
        self.curve: list[list[float]] = []
        self.best: float | None = None
        self._weights: list[Tensor] | None = None

    def __call__(self, seconds: float) -> bool:
        """Take the error; False if it is not finite, when nothing good can follow."""
        samples = self._validation
        error = float(samples.level.error(predict(self._model, samples), samples.y).mean())
        if not math.isfinite(error):
            return False
        self.curve.append([seconds, error])
        if self.best is None or error < self.best:
            self.best = error
            self._weights = [p.detach().clone() for p in self._model.parameters()]
        return True

    def restore(self) -> None:
        """Give the model its best weights."""
        with torch.no_grad():
            for p, best in zip(self._model.parameters(), self._weights or (), strict=False):
                p.copy_(best)


def resident_peak() -> float | None:
    """Largest resident memory since it was reset, in MB; None where the system does not tell."""
    return _status("VmHWM")


def _reset_peak() -> float | None:
    """Start to measure the peak anew; the resident memory now, in MB, or None."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that is kept would hide what is taken
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except (OSError, AttributeError):
        return None
    return _status("VmRSS")


def _status(key: str) -> float | None:
    try:
        with open("/proc/self/status") as file:
            line = next(line for line in file if line.startswith(key))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) / 1024
