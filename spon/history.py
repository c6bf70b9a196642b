"""What a training run leaves behind: its course as numbers, as a CSV file, as a picture."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["History", "replaced"]

_COLUMNS = ("epoch", "train", "validation", "lr", "seconds")


@dataclass
class History:
    """Course of a training run, one entry an epoch.

    A round of L-BFGS iterations counts as an epoch.

    Attributes
    ----------
    epoch : list of int
        Numbers of the epochs, from 1.
    train : list of float
        Training loss: the mean over the epoch of the losses of the batches as they were met; after
        a round of L-BFGS the loss over the training set.
    validation : list of float
        Loss over the validation set after the epoch; NaN without a validation set.
    lr : list of float
        Learning rate at the end of the epoch.
    seconds : list of float
        Time since the start of the training, in seconds, without the time between a kill and the
        resumption.
    start : float
        Loss over the validation set before the first epoch; infinite without a validation set.
    best_epoch : int
        Epoch whose weights the network holds now; 0 for the weights that it started with.
    stopped_early : bool
        Whether `patience` ended the run.
    validation_samples : list of int
        Numbers of the samples of the data that were held back for validation, counted through all
        data sets where there are several; empty if validation data were given as a dataset of
        their own, or not at all.
    """

    epoch: list[int] = field(default_factory=list)
    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    start: float = math.inf
    best_epoch: int = 0
    stopped_early: bool = False
    validation_samples: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.epoch)

    @property
    def monitored(self) -> list[float]:
        """The losses that decide which epoch is best: validation if there is one, else training."""
        return self.train if all(map(math.isnan, self.validation)) else self.validation

    @property
    def best(self) -> float:
        """The monitored loss of the best epoch, at first that of the start."""
        return self.monitored[self.best_epoch - 1] if self.best_epoch else self.start

    def add(self, train: float, validation: float, lr: float, seconds: float) -> bool:
        """Append an epoch and say whether it is the best so far."""
        before = self.best
        self.epoch.append(len(self.epoch) + 1)
        self.train.append(train)
        self.validation.append(validation)
        self.lr.append(lr)
        self.seconds.append(seconds)
        if self.monitored[-1] < before:
            self.best_epoch = self.epoch[-1]
            return True
        return False

    def to_dict(self) -> dict[str, Any]:
        """The history as plain lists and numbers."""
        return asdict(self)

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the course as CSV with the columns epoch, train, validation, lr, seconds.

        Parameters
        ----------
        path : path-like
            An existing file is replaced, in one step.
        """
        with replaced(path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            writer.writerows(self._row(i) for i in range(len(self)))

    def append_csv(self, path: str | os.PathLike[str]) -> None:
        """Append the last epoch to a file that `write_csv` made."""
        with open(path, "a", newline="") as file:
            csv.writer(file).writerow(self._row(-1))

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the losses over the epochs into a file, on a logarithmic axis if none is negative.

        Parameters
        ----------
        path : path-like
            The suffix chooses the format: ``.png``, ``.pdf``, ``.svg``.

        Raises
        ------
        ValueError
            If matplotlib cannot write that format.
        """
        # A figure of its own, not pyplot: no display is needed and none of the user's is touched.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.0, 4.0), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot(xlabel="epoch", ylabel="loss")
        curves = {"training": self.train}
        if self.monitored is self.validation:
            curves["validation"] = self.validation
        for name, curve in curves.items():
            axes.plot(self.epoch, curve, label=name)
        losses = [loss for curve in curves.values() for loss in curve]
        if losses and min(losses) >= 0 < max(losses):  # an energy may be negative
            axes.set_yscale("log")
        if self.best_epoch:
            axes.plot(self.best_epoch, self.best, "k.", label=f"best, {self.best:.3g}")
        axes.grid(alpha=0.3)
        axes.legend()
        with replaced(path) as temporary:
            figure.savefig(temporary, dpi=150)

    def _row(self, i: int) -> list[int | float | str]:
        value = self.validation[i]
        validation = "" if math.isnan(value) else value
        return [self.epoch[i], self.train[i], validation, self.lr[i], self.seconds[i]]


@contextmanager
def replaced(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write to a temporary file beside `path`, which takes its place when the block ends well.

    A reader, or a run that starts after a kill, finds the old file or the new one, never half of
    one.

    Parameters
    ----------
    path : path-like
        The file to write; its folder is made if need be.

    Yields
    ------
    Path
        Where to write.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays, since matplotlib reads the format from it.
    temporary = target.with_name(f".{target.stem}.partial{target.suffix}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
