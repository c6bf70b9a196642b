"""Training a network on a dataset, and measuring it on another."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from spon.distributed import current_group
from spon.history import History
from spon.losses import RelativeError
from spon.samples import Samples, loss_per_sample
from spon.trainer import SCHEDULES, Options, Schedule, Trainer, TrainingDivergedError

__all__ = ["History", "TrainingDivergedError", "evaluate", "fit"]

PathLike = str | os.PathLike[str]

_FIRST_STEPS = 64  # samples that give a network without labels its scale


def fit(
    net: nn.Module,
    data: Any,
    loss: Any = None,
    validation: Any = 0.1,
    epochs: int = 100,
    batch_size: int = 16,
    lr: float = 2e-3,
    weight_decay: float = 1e-4,
    schedule: Schedule = "onecycle",
    lbfgs: int = 0,
    patience: int | None = None,
    clip: float | None = None,
    checkpoint: PathLike | None = None,
    checkpoint_every: int | timedelta = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    progress: bool = True,
    log: PathLike | None = None,
    plot: PathLike | None = None,
) -> History:
    """Train a network; afterwards it holds the best weights that were met.

    AdamW runs over mini-batches, then, if asked for, L-BFGS over the whole training set. *Best*
    means the smallest validation loss, or the smallest training loss where there is no validation
    set. The same seed gives the same numbers, also when the run was killed and started again with
    a `checkpoint`.

    Started by ``torchrun``, the processes share every batch: with two of them and
    ``batch_size=8`` the training is that of one process with ``batch_size=16``. Process 0 writes
    the files.

    Parameters
    ----------
    net : OperatorNetwork
        Trained in place, brought to `dtype` and `device`, and left in evaluation mode. If it is
        not calibrated, it is calibrated on the training samples.
    data : Dataset
        Inputs and output of the network's spaces; inputs alone for a loss that needs no outputs.
    loss : callable, optional
        One of `spon.losses` or any ``loss(prediction, target)`` of two tensors (batch, dim) that
        returns the mean over the batch as a scalar; or a `spon.losses.Residual` or
        `spon.losses.Energy`, which look at the inputs and need no outputs. By default the relative
        L2 error in the decoder's space. The average over samples is what is minimised, whatever
        the reduction.
    validation : float, Dataset or None, optional
        The part of the samples to hold back (drawn by `seed`), a dataset of its own, or None for
        no validation.
    epochs : int, optional
        Passes over the training samples with AdamW; 0 leaves the training to L-BFGS.
    batch_size : int, optional
        Samples in a batch, for each process. The last batch of an epoch may be smaller; its
        gradient is the mean over the samples it has.
    lr : float, optional
        Learning rate; with ``"onecycle"`` the largest one.
    weight_decay : float, optional
        Decoupled weight decay of AdamW.
    schedule : {"onecycle", "cosine", "constant"} or callable, optional
        Course of the learning rate. A callable takes the optimiser and returns a scheduler of
        ``torch.optim.lr_scheduler``, which is stepped after each epoch.
    lbfgs : int, optional
        L-BFGS iterations (strong Wolfe line search, no weight decay, network in evaluation mode)
        after AdamW, from the best weights. Every ten of them count as an epoch in the history.
    patience : int, optional
        Stop after so many epochs without a new best. By default never.
    clip : float, optional
        Largest norm of the gradient; longer ones are shortened. AdamW only.
    checkpoint : path-like, optional
        File that holds the whole state of the run. If it exists, the run goes on from there, to
        the same numbers as if it had never been interrupted; a finished run is not run again. With
        the constant schedule and no L-BFGS a run may be resumed with more epochs.
    checkpoint_every : int or timedelta, optional
        Epochs, or the time, between two checkpoints. The end of the run is always written.
    seed : int, optional
        Seed of the order of samples, of the validation samples and of dropout. The state of the
        global random number generator is left as it was.
    dtype : {torch.float32, torch.float64}, optional
        Precision of the training.
    device : torch.device or str, optional
        By default where the network's weights are.
    progress : bool, optional
        Whether to show a progress bar.
    log : path-like, optional
        CSV file with the columns epoch, train, validation, lr, seconds; a line an epoch, as it
        goes. An existing file is replaced; a resumed run writes the lines up to the checkpoint
        anew.
    plot : path-like, optional
        Picture of the losses, drawn twice a minute and at the end.

    Returns
    -------
    History
        Losses, learning rates and times of all epochs, and which epoch was best.

    Raises
    ------
    TypeError
        If `data` is no dataset, or an argument is of the wrong type.
    ValueError
        If an argument is out of range, the data hold NaN or belong to other spaces than the
        network, the loss is not a scalar, or the checkpoint belongs to another network, other data
        or other settings.
    TrainingDivergedError
        If the loss becomes NaN or infinite. The network is left with the best weights so far.
    RuntimeError
        If the checkpoint cannot be read.

    Examples
    --------
    >>> history = spon.fit(net, data, epochs=200, checkpoint="run.pt")    # doctest: +SKIP
    >>> history.plot("losses.png")                                        # doctest: +SKIP
    """
    options = Options(
        epochs=_integer("epochs", epochs, 0),
        batch_size=_integer("batch_size", batch_size, 1),
        lr=_number("lr", lr, positive=True),
        weight_decay=_number("weight_decay", weight_decay),
        schedule=_schedule(schedule),
        lbfgs=_integer("lbfgs", lbfgs, 0),
        patience=None if patience is None else _integer("patience", patience, 1),
        clip=None if clip is None else _number("clip", clip, positive=True),
        checkpoint=_file("checkpoint", checkpoint),
        checkpoint_every=_interval(checkpoint_every),
        seed=_integer("seed", seed, 0),
        progress=bool(progress),
        log=_file("log", log),
        plot=_file("plot", plot),
    )
    if options.epochs == options.lbfgs == 0:
        raise ValueError("epochs=0 and lbfgs=0 leave nothing to do: ask for some of either.")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype!r}.")
    if not any(p.requires_grad for p in net.parameters()):
        raise ValueError(f"The {type(net).__name__} has no trainable weights.")
    loss = _loss_or_default(net, loss)
    train, held_back, rows = _samples(net, data, validation, dtype, options.seed)
    for samples in (train, held_back):
        _require_outputs(samples, loss)

    place = _place(net, device)
    group = current_group(place)
    net.to(device=place, dtype=dtype)
    if not getattr(net, "calibrated", True):
        _calibrate(cast(Any, net), loss, train.to(place))
    group.same_weights_(net)
    with torch.random.fork_rng([place] if place.type == "cuda" else []):
        return Trainer(net, loss, train, held_back, options, group, place, rows).run()


def evaluate(net: nn.Module, data: Any, loss: Any = None, batch_size: int = 64) -> Tensor:
    """Loss of each sample of a dataset, without gradient.

    Parameters
    ----------
    net : OperatorNetwork
        Used in evaluation mode; its mode, dtype and device stay as they are.
    data : Dataset
        Inputs and output of the network's spaces.
    loss : callable, optional
        As for `fit`; by default the relative L2 error in the decoder's space. One without a method
        ``per_sample`` is called sample by sample.
    batch_size : int, optional
        Samples to put through the network at once.

    Returns
    -------
    Tensor, shape (n,)
        On the CPU, in the dtype of the network.

    Raises
    ------
    TypeError
        If `data` is no dataset.
    ValueError
        If the data are empty, hold NaN or belong to other spaces than the network, or if
        `batch_size` is less than 1.
    """
    size = _integer("batch_size", batch_size, 1)
    loss = _loss_or_default(net, loss)
    weight = next((p for p in net.parameters() if p.is_floating_point()), None)
    dtype = torch.get_default_dtype() if weight is None else weight.dtype
    place = _place(net, None)
    samples = _read(net, data, dtype, "evaluation")
    _require_outputs(samples, loss)
    was_training = net.training
    net.eval()
    try:
        with torch.no_grad():
            parts = [
                loss_per_sample(net, loss, samples.take(rows).to(place)).cpu()
                for rows in torch.arange(len(samples)).split(size)
            ]
    finally:
        net.train(was_training)
    return torch.cat(parts)


def _samples(
    net: nn.Module, data: Any, validation: Any, dtype: torch.dtype, seed: int
) -> tuple[Samples, Samples | None, list[int]]:
    """Training samples, validation samples, and which of `data` are the latter."""
    samples = _read(net, data, dtype, "training")
    if validation is None:
        return samples, None, []
    if not isinstance(validation, float | int):
        return samples, _read(net, validation, dtype, "validation"), []
    if isinstance(validation, bool) or not 0 < validation < 1:
        raise ValueError(
            f"validation={validation!r} must be a fraction between 0 and 1, both excluded, a "
            "Dataset, or None for no validation."
        )
    held = max(1, round(validation * len(samples)))
    if held == len(samples):
        raise ValueError(
            f"validation={validation} of {len(samples)} samples leaves none to train on: give more "
            "samples, a smaller fraction, or validation=None."
        )
    order = np.random.default_rng([seed, len(samples)]).permutation(len(samples))
    out, kept = np.sort(order[:held]), np.sort(order[held:])
    return samples.take(torch.from_numpy(kept)), samples.take(torch.from_numpy(out)), out.tolist()


def _read(net: nn.Module, data: Any, dtype: torch.dtype, role: str) -> Samples:
    samples = Samples.read(data, dtype, role)
    if hasattr(net, "check_data"):
        cast(Any, net).check_data(data)
    return samples


def _require_outputs(samples: Samples | None, loss: Any) -> None:
    if samples is not None and not samples.labelled and not getattr(loss, "takes_inputs", False):
        raise ValueError(
            f"The data set has no outputs, which {type(loss).__name__} compares with: give it "
            "outputs, or use spon.losses.Residual or spon.losses.Energy."
        )


def _calibrate(net: Any, loss: Any, samples: Samples) -> None:
    """Take the scales of a network from the data, or from the equations where there are no data."""
    output: Tensor | None = samples.output
    if not samples.labelled:
        few = samples.take(torch.arange(min(len(samples), _FIRST_STEPS)))
        zero = few.inputs[0].new_zeros(len(few), net.decoder.latent.dim())
        output = loss.first_step(net.decoder(zero, few.boundary), few.inputs)
    net.calibrate(samples.inputs, output)
    if samples.labelled and hasattr(net, "fit_linear"):
        net.fit_linear(samples.inputs, samples.output)


def _loss_or_default(net: nn.Module, loss: Any) -> Any:
    if loss is None:
        decoder = getattr(net, "decoder", None)
        if decoder is None:
            raise ValueError(
                f"A {type(net).__name__} has no decoder whose space could give a loss: pass loss=, "
                "spon.losses.RelativeError(U) for example."
            )
        return RelativeError(decoder.space, "L2")
    if not callable(loss):
        raise TypeError(
            f"loss must be callable, loss(prediction, target), got {type(loss).__name__}; "
            "spon.losses.RelativeError(U, 'H1') is one."
        )
    return loss


def _place(net: nn.Module, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    weight = next(net.parameters(), None)
    return torch.device("cpu") if weight is None else weight.device


def _integer(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be a whole number, got {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")
    return int(value)


def _number(name: str, value: Any, positive: bool = False) -> float:
    number = float(value)
    if not np.isfinite(number) or number < 0 or (positive and number == 0):
        raise ValueError(
            f"{name} must be a {'positive' if positive else 'non-negative'} number, got {value}."
        )
    return number


def _schedule(schedule: Schedule) -> Schedule:
    if not callable(schedule) and schedule not in SCHEDULES:
        raise ValueError(
            f"Unknown schedule {schedule!r}: choose one of {', '.join(map(repr, SCHEDULES))}, or "
            "give a function that takes the optimiser and returns a scheduler."
        )
    return schedule


def _interval(every: Any) -> int | timedelta:
    if isinstance(every, timedelta):
        return every
    return _integer("checkpoint_every", every, 1)


def _file(name: str, path: PathLike | None) -> Path | None:
    if path is None:
        return None
    if Path(path).is_dir():
        raise ValueError(f"{name}={os.fspath(path)!r} is a folder: give the name of a file in it.")
    return Path(path)
