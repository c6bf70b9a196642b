"""Training of small networks in double precision: SOAP or Adam, then L-BFGS."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from spon.resume import read_state, write_state

__all__ = ["SOAP", "Course", "Training", "train"]

_OPTIMISERS = ("soap", "adam")


@dataclass(frozen=True)
class Training:
    """How the networks are trained.

    Attributes
    ----------
    target : {"solutions", "mismatch"}
        Where the samples' right answers come from: from the reduced model's own solutions, or
        (as published) from nothing but the mismatch between the law's stress and the combination
        of stress modes. Neither needs the RVE.
    samples : int
        Strains, a Latin hypercube in the box.
    epochs, batch : int
    rate : float
        Learning rate after warming up; it falls along a cosine.
    optimiser : {"soap", "adam"}
    refine : int
        Full-batch L-BFGS iterations afterwards.
    relative : bool
        Errors relative to each sample's own size, or to the mean size.
    macro_weight : float
        Weight of the error of the homogenised stress beside that of the field.
    """

    target: str = "solutions"
    samples: int = 4000
    epochs: int = 300
    batch: int = 1000
    rate: float = 3e-3
    optimiser: str = "soap"
    refine: int = 0
    relative: bool = True
    macro_weight: float = 10.0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("target", ("solutions", "mismatch")),
            ("optimiser", _OPTIMISERS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}.")
        for name in ("samples", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")


@dataclass
class Course:
    """The course of a training.

    Attributes
    ----------
    loss : list of float
        Of each epoch, and after the L-BFGS.
    seconds : float
    """

    loss: list[float] = field(default_factory=list)
    seconds: float = 0.0


class SOAP(torch.optim.Optimizer):
    """Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al. 2024), float64.

    For a matrix of weights the second moments of the gradient's rows and columns give two small
    bases, renewed every tenth step by one step of orthogonal iteration; Adam runs in these.

    Parameters
    ----------
    params : iterable of Parameter
    lr : float, optional
    betas : tuple of float, optional
        Memory of Adam's two moments; the preconditioner has that of the second.
    frequency : int, optional
        Steps between renewals of the bases.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        frequency: int = 10,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "frequency": frequency})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step."""
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                matrix = p.grad if p.ndim == 2 else p.grad[:, None]
                if not state:
                    self._begin(state, matrix, square=p.ndim == 2)
                state["step"] += 1
                self._remember(state, matrix, second)
                state["mean"].lerp_(matrix, 1 - first)
                gradient, mean = self._rotate(state, matrix), self._rotate(state, state["mean"])
                state["square"].lerp_(gradient.square(), 1 - second)
                count = int(state["step"])
                root = (state["square"] / (1 - second**count)).sqrt() + 1e-8
                update = self._rotate(state, mean / (1 - first**count) / root, back=True)
                p.sub_(update.reshape(p.shape), alpha=group["lr"])
                if count % group["frequency"] == 0:
                    for side in ("left", "right"):
                        if f"{side}_basis" in state:
                            turned = state[side] @ state[f"{side}_basis"]
                            state[f"{side}_basis"] = torch.linalg.qr(turned)[0]

    @staticmethod
    def _begin(state: dict[str, Any], matrix: Tensor, square: bool) -> None:
        state["step"] = 0
        state["mean"], state["square"] = torch.zeros_like(matrix), torch.zeros_like(matrix)
        if square:
            state["left"], state["right"] = matrix @ matrix.T, matrix.T @ matrix
            state["left_basis"] = torch.linalg.eigh(state["left"])[1]
            state["right_basis"] = torch.linalg.eigh(state["right"])[1]

    @staticmethod
    def _remember(state: dict[str, Any], matrix: Tensor, memory: float) -> None:
        if "left" in state:
            state["left"].lerp_(matrix @ matrix.T, 1 - memory)
            state["right"].lerp_(matrix.T @ matrix, 1 - memory)

    @staticmethod
    def _rotate(state: dict[str, Any], matrix: Tensor, back: bool = False) -> Tensor:
        if "left" not in state:
            return matrix
        left, right = state["left_basis"], state["right_basis"]
        return left @ matrix @ right.T if back else left.T @ matrix @ right


def train(
    networks: nn.Module,
    samples: Sequence[Tensor],
    loss: Callable[..., Tensor],
    training: Training,
    seed: int = 0,
    label: str = "train",
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Course:
    """Train in place.

    Parameters
    ----------
    networks : Module
    samples : sequence of Tensor, shape (n, ...)
        What `loss` takes, sample by sample.
    loss : callable
        ``loss(*rows)`` is the mean over these samples.
    training : Training
    seed : int, optional
        Of the order of the samples.
    label : str, optional
        Of the progress bar.
    progress : bool, optional
    checkpoint : path, optional
        A file that is written every ten epochs; training goes on from it, with the same numbers
        as without the interruption, and it is removed at the end.

    Returns
    -------
    Course

    Raises
    ------
    FloatingPointError
        If the loss is not finite.
    """
    started, course = time.perf_counter(), Course()
    optimiser = _optimiser(networks, training)
    n = len(samples[0])
    batches = math.ceil(n / training.batch)
    settings = {k: str(v) for k, v in dataclasses.asdict(training).items()} | {"seed": str(seed)}
    if checkpoint is not None:
        state = read_state(checkpoint, networks, settings)
        if state is not None:
            networks.load_state_dict(state["weights"])
            optimiser.load_state_dict(state["optimiser"])
            course = Course(list(state["loss"]), 0.0)
    bar = tqdm(
        range(training.epochs), label, initial=len(course.loss), disable=not progress, leave=False
    )
    bar.reset(training.epochs)
    bar.update(len(course.loss))
    for epoch in range(len(course.loss), training.epochs):
        # By the number of the epoch, so that a resumed run draws the same.
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
        total = 0.0
        for i in range(batches):
            _set_rate(optimiser, training, epoch * batches + i, training.epochs * batches)
            rows = order[i * training.batch : (i + 1) * training.batch]
            optimiser.zero_grad()
            value = loss(*(s[rows] for s in samples))
            value.backward()
            optimiser.step()
            total += value.item() * len(rows) / n
        if not math.isfinite(total):
            raise FloatingPointError(
                f"The loss is {total} in epoch {epoch + 1}: lower rate={training.rate}."
            )
        course.loss.append(total)
        bar.set_postfix_str(f"loss {total:.2e}", refresh=False)
        bar.update()
        if checkpoint is not None and (epoch + 1) % 10 == 0:
            _write(checkpoint, networks, optimiser, course, settings)
    bar.close()
    if training.refine:
        course.loss.append(_refine(networks, samples, loss, training.refine))
    course.seconds = time.perf_counter() - started
    if checkpoint is not None:
        Path(checkpoint).unlink(missing_ok=True)
    return course


def _write(path: Any, networks: nn.Module, optimiser: Any, course: Course, settings: Any) -> None:
    state = {"optimiser": optimiser.state_dict(), "loss": course.loss}
    write_state(path, networks, settings, state)


def _optimiser(networks: nn.Module, training: Training) -> torch.optim.Optimizer:
    if training.optimiser == "soap":
        return SOAP(networks.parameters(), lr=training.rate)
    return torch.optim.Adam(networks.parameters(), lr=training.rate)


def _set_rate(optimiser: torch.optim.Optimizer, training: Training, step: int, steps: int) -> None:
    warm = min(1.0, (step + 1) / 50)
    rate = training.rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimiser.param_groups:
        group["lr"] = rate


def _refine(
    networks: nn.Module, samples: Sequence[Tensor], loss: Callable[..., Tensor], steps: int
) -> float:
    optimiser = torch.optim.LBFGS(
        networks.parameters(),
        max_iter=steps,
        history_size=50,
        line_search_fn="strong_wolfe",
        tolerance_grad=0.0,
        tolerance_change=0.0,
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss(*samples)
        value.backward()
        return value

    optimiser.step(closure)
    with torch.no_grad():
        return float(loss(*samples))
