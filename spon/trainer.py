"""The loop behind `spon.fit`: AdamW epochs, then rounds of L-BFGS, resumable at any moment."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from tqdm import tqdm

from spon.distributed import Group
from spon.history import History
from spon.merged_batches import summed_losses
from spon.resume import read_state, write_state
from spon.run_settings import described_losses, described_spaces, name_of
from spon.samples import average_loss
from spon.training_sets import TrainingSet

__all__ = ["SCHEDULES", "Options", "Trainer", "TrainingDivergedError"]

SCHEDULES = ("onecycle", "cosine", "constant")
Schedule = str | Callable[[torch.optim.Optimizer], Any]

_ROUND = 10  # L-BFGS iterations between two looks at the validation loss
_SECONDS_BETWEEN_PLOTS = 30.0


class TrainingDivergedError(RuntimeError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Options:
    """What `spon.fit` was asked for; see there for the meaning of each entry."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    schedule: Schedule
    lbfgs: int
    patience: int | None
    clip: float | None
    checkpoint: Any
    checkpoint_every: int | timedelta
    seed: int
    progress: bool
    log: Any
    plot: Any


class Trainer:
    """A training run.

    Parameters
    ----------
    net : Module
        Its weights are those of all networks of the two sets.
    train, validation : TrainingSet
        `validation` is None where there is no validation.
    options : Options
    group : Group
        The processes that train together.
    device : torch.device
    validation_samples : list of int
        For the history.
    """

    def __init__(
        self,
        net: nn.Module,
        train: TrainingSet,
        validation: TrainingSet | None,
        options: Options,
        group: Group,
        device: torch.device,
        validation_samples: list[int],
    ) -> None:
        self.net, self.options = net, options
        self.group, self.device = group, device
        self.train = train.settled(device)
        self.validation = None if validation is None else validation.settled(device)
        held_back = [] if validation is None else validation.networks
        self.networks = list({id(n): n for n in (*train.networks, *held_back)}.values())
        self.weights = [p for p in net.parameters() if p.requires_grad]
        self.global_batch = options.batch_size * group.size
        self.history = History(validation_samples=validation_samples)
        self.best: dict[str, Any] | None = None
        self.lbfgs_done = 0
        # Number of the epoch after which the present stage began: patience counts from there.
        self.stage_start = 0
        self.optimiser: torch.optim.Optimizer
        self.scheduler: Any
        self._begin_adamw()
        self._seconds_before = 0.0
        self._started = self._checkpointed = self._plotted = time.perf_counter()

    # -- the course of a run ----------------------------------------------------------------------

    def run(self) -> History:
        """Train, or go on from the checkpoint, and leave the best weights in the network."""
        self._resume()
        if not len(self.history):
            self._look_at_start()
        options, history = self.options, self.history
        rounds = math.ceil(options.lbfgs / _ROUND)
        with tqdm(
            total=options.epochs + rounds,
            initial=len(history),
            desc="training",
            unit="epoch",
            disable=not (options.progress and self.group.leads),
        ) as bar:
            while self._in_adamw and len(history) < options.epochs and not self._out_of_patience():
                self._round(self._adamw_epoch, bar)
            if self._in_adamw and options.lbfgs and options.lbfgs > self.lbfgs_done:
                self._restore_best()
                self._begin_lbfgs()
            while not self._in_adamw and options.lbfgs > self.lbfgs_done:
                if self._out_of_patience():
                    break
                self._round(self._lbfgs_round, bar)
        history.stopped_early = self._out_of_patience()
        if self.group.leads:
            if options.checkpoint is not None:
                self._save()
            if options.plot is not None:
                history.plot(options.plot)
        self._restore_best()
        self._set_mode(training=False)
        return history

    def _look_at_start(self) -> None:
        """Weights from elsewhere (a linear fit, an earlier training) may be the best ones."""
        value = self._validate()
        if math.isfinite(value):
            self.history.start = value
            self.best = copy.deepcopy(self.net.state_dict())

    def _set_mode(self, training: bool) -> None:
        for net in (self.net, *self.networks):
            net.train(training)

    def _round(self, step: Callable[[], tuple[float, float]], bar: Any) -> None:
        number = len(self.history) + 1
        # Seeded for each epoch, so that dropout goes on after a resumption as if nothing had
        # happened, and differs between the processes.
        torch.manual_seed(_seed(self.options.seed, number, 1 + self.group.rank))
        train, lr = step()
        validation = self._validate()
        if not math.isfinite(train) or (self.validation and not math.isfinite(validation)):
            raise self._diverged(number, train, validation)
        now = time.perf_counter()
        seconds = self._seconds_before + now - self._started
        if self.history.add(train, validation, lr, seconds):
            self.best = copy.deepcopy(self.net.state_dict())
        if self._in_adamw and callable(self.options.schedule):
            self._step_schedule_of_epochs()
        bar.set_postfix(self._figures(), refresh=False)
        bar.update()
        self._write_files(now)

    def _figures(self) -> dict[str, str]:
        history = self.history
        figures = {"train": f"{history.train[-1]:.3e}"}
        if self.validation:
            figures["validation"] = f"{history.validation[-1]:.3e}"
        return {**figures, "best": f"{history.best:.3e}"}

    def _out_of_patience(self) -> bool:
        patience, last = self.options.patience, max(self.history.best_epoch, self.stage_start)
        return patience is not None and len(self.history) - last >= patience

    def _restore_best(self) -> None:
        if self.best is not None:
            self.net.load_state_dict(self.best)

    def _diverged(self, epoch: int, train: float, validation: float) -> TrainingDivergedError:
        self._restore_best()
        if self.history.best_epoch:
            held = f"those of epoch {self.history.best_epoch}, the best"
        else:
            held = "not usable" if self.best is None else "those that it started with"
        return TrainingDivergedError(
            f"The loss is not finite in epoch {epoch} (training {train}, validation {validation}, "
            f"lr={self.options.lr}). Try a smaller lr, clip=1.0, or dtype=torch.float64. The "
            f"network's weights are now {held}."
        )

    # -- AdamW ------------------------------------------------------------------------------------

    @property
    def _in_adamw(self) -> bool:
        return isinstance(self.optimiser, torch.optim.AdamW)

    def _begin_adamw(self) -> None:
        options = self.options
        self.optimiser = torch.optim.AdamW(
            self.weights, lr=options.lr, weight_decay=options.weight_decay, fused=True
        )
        steps = max(1, options.epochs * math.ceil(len(self.train) / self.global_batch))
        if callable(options.schedule):
            self.scheduler = options.schedule(self.optimiser)
            if not hasattr(self.scheduler, "step") or not hasattr(self.scheduler, "state_dict"):
                raise TypeError(
                    "A callable schedule must take an optimiser and return a scheduler of "
                    f"torch.optim.lr_scheduler; this one returned {type(self.scheduler).__name__}."
                )
        elif options.schedule == "onecycle":
            self.scheduler = lr_scheduler.OneCycleLR(self.optimiser, options.lr, total_steps=steps)
        elif options.schedule == "cosine":
            self.scheduler = lr_scheduler.CosineAnnealingLR(self.optimiser, T_max=steps)
        else:
            self.scheduler = lr_scheduler.ConstantLR(self.optimiser, factor=1.0)

    def _step_schedule_of_epochs(self) -> None:
        if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(self.history.monitored[-1])
        else:
            self.scheduler.step()

    def _adamw_epoch(self) -> tuple[float, float]:
        options, epoch = self.options, len(self.history) + 1
        generator = torch.Generator().manual_seed(_seed(options.seed, epoch, 0))
        order = torch.randperm(len(self.train), generator=generator)
        each_batch = not callable(options.schedule)
        # Summed as a tensor: asking for its value in each step would make a GPU wait.
        running = torch.zeros((), dtype=self.weights[0].dtype, device=self.device)
        self._set_mode(training=True)
        for rows in order.split(self.global_batch):
            self.optimiser.zero_grad()
            running += self._backward(rows, self.global_batch)
            self.group.sum_gradients(self.weights)
            if options.clip is not None:
                nn.utils.clip_grad_norm_(self.weights, options.clip)
            lr = float(self.optimiser.param_groups[0]["lr"])
            self.optimiser.step()
            if each_batch:
                self.scheduler.step()
        return average_loss(self.group.sum_(running), len(self.train)), lr

    def _backward(self, rows: Tensor, chunk: int) -> Tensor:
        """Add this process's gradient of the mean over `rows` and return its summed loss."""
        total = torch.zeros((), dtype=self.weights[0].dtype, device=self.device)
        for part in self.group.share(rows).split(chunk):
            # Some meshes at a time; the gradient is that of the mean over samples on all of them.
            for value in summed_losses(self.train.pieces(part), self.device):
                (value / len(rows)).backward()
                total += value.detach()
        return total

    # -- L-BFGS -----------------------------------------------------------------------------------

    def _begin_lbfgs(self) -> None:
        self.stage_start = len(self.history)
        self.optimiser = torch.optim.LBFGS(
            self.weights,
            lr=1.0,
            history_size=20,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )
        self.scheduler = None

    def _lbfgs_round(self) -> tuple[float, float]:
        wanted = min(_ROUND, self.options.lbfgs - self.lbfgs_done)
        # A line search may take several evaluations: count the iterations alone.
        self.optimiser.param_groups[0].update(max_iter=wanted, max_eval=25 * wanted)
        rows = torch.arange(len(self.train))

        def closure() -> Tensor:
            self.optimiser.zero_grad()
            total = self._backward(rows, self.options.batch_size)
            self.group.sum_gradients(self.weights)
            return self.group.sum_(total) / len(rows)

        # The objective must not change between two evaluations: no dropout here.
        self._set_mode(training=False)
        before = self._iterations()
        self.optimiser.step(closure)  # type: ignore[arg-type]
        made = self._iterations() - before
        # Fewer than wanted: it has converged, or cannot go lower in this precision.
        self.lbfgs_done = self.lbfgs_done + made if made == wanted else self.options.lbfgs
        return self._measure(self.train), 1.0

    def _iterations(self) -> int:
        return int(self.optimiser.state[self.weights[0]].get("n_iter", 0))

    # -- losses without gradient ------------------------------------------------------------------

    def _validate(self) -> float:
        return math.nan if self.validation is None else self._measure(self.validation)

    @torch.no_grad()
    def _measure(self, samples: TrainingSet) -> float:
        self._set_mode(training=False)
        total = torch.zeros((), dtype=self.weights[0].dtype, device=self.device)
        # Without a tape there is room for larger chunks than in training.
        for part in self.group.share(torch.arange(len(samples))).split(4 * self.options.batch_size):
            for value in summed_losses(samples.pieces(part), self.device):
                total += value
        return average_loss(self.group.sum_(total), len(samples))

    # -- files ------------------------------------------------------------------------------------

    def _write_files(self, now: float) -> None:
        options, history = self.options, self.history
        if not self.group.leads:
            return
        if options.log is not None:
            history.append_csv(options.log)
        every = options.checkpoint_every
        if options.checkpoint is not None and (
            now - self._checkpointed >= every.total_seconds()
            if isinstance(every, timedelta)
            else len(history) % every == 0
        ):
            self._save()
            self._checkpointed = now
        if options.plot is not None and now - self._plotted > _SECONDS_BETWEEN_PLOTS:
            history.plot(options.plot)
            self._plotted = now

    def _save(self) -> None:
        state = {
            "stage": "adamw" if self._in_adamw else "lbfgs",
            "stage_start": self.stage_start,
            "lbfgs_done": self.lbfgs_done,
            "optimiser": self.optimiser.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "best": self.best,
            "history": self.history.to_dict(),
        }
        write_state(self.options.checkpoint, self.net, self._settings, state)

    def _resume(self) -> None:
        options, state = self.options, None
        if options.checkpoint is not None:
            if self.group.leads:
                state = read_state(options.checkpoint, self.net, self._settings)
            state = self.group.same_object(state)
        if state is not None:
            self.net.load_state_dict(state["weights"])
            self.best = state["best"]
            self.history = History(**state["history"])
            self.lbfgs_done = state["lbfgs_done"]
            if state["stage"] == "lbfgs":
                self._begin_lbfgs()
            self.optimiser.load_state_dict(state["optimiser"])
            if self.scheduler is not None:
                self.scheduler.load_state_dict(state["scheduler"])
            self.stage_start = state["stage_start"]
            self._seconds_before = self.history.seconds[-1] if self.history.seconds else 0.0
        if options.log is not None and self.group.leads:
            # Written anew: lines of epochs after the checkpoint would otherwise stay twice.
            self.history.write_csv(options.log)

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """What a checkpoint must agree on for the numbers to be the same."""
        options = self.options
        # The constant schedule does not look ahead: such a run may be prolonged.
        open_end = options.schedule == "constant" and not options.lbfgs
        processor = getattr(self.net, "processor", None)
        return {
            "network": f"{type(processor).__name__} {processor.config()}" if processor else None,
            **described_spaces(self.networks),
            "epochs": None if open_end else options.epochs,
            "batch_size over all processes": self.global_batch,
            "lr": options.lr,
            "weight_decay": options.weight_decay,
            "schedule": name_of(options.schedule),
            "lbfgs": options.lbfgs,
            "patience": options.patience,
            "clip": options.clip,
            "seed": options.seed,
            "dtype": str(self.weights[0].dtype),
            "loss": described_losses([part.loss for part in self.train.parts]),
            "training data": self.train.fingerprint(),
            "validation data": self.validation.fingerprint() if self.validation else None,
        }


def _seed(seed: int, epoch: int, stream: int) -> int:
    """A seed for each epoch and purpose, far apart for neighbouring numbers."""
    return int(np.random.SeedSequence([seed, epoch, stream]).generate_state(1, np.uint64)[0] >> 1)
