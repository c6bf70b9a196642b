"""Training a network on a dataset, and measuring it on another."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from spon.calibration import calibrate_together, fit_linear_together
from spon.distributed import current_group
from spon.history import History
from spon.mesh_copies import MeshCopies
from spon.samples import loss_per_sample
from spon.trainer import SCHEDULES, Options, Schedule, Trainer, TrainingDivergedError
from spon.training_sets import Part, TrainingSet

__all__ = ["History", "TrainingDivergedError", "evaluate", "fit"]

PathLike = str | os.PathLike[str]

_FIRST_STEPS = 64  # samples that give a network without labels its scale


def fit(
    net: nn.Module | Sequence[nn.Module],
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
    means the smallest validation loss, that of the start among them, or the smallest training loss
    where there is no validation set. The same seed gives the same numbers, also when the run was
    killed and started again with a `checkpoint`.

    Started by ``torchrun``, the processes share every batch: with two of them and
    ``batch_size=8`` the training is that of one process with ``batch_size=16``. Process 0 writes
    the files.

    Parameters
    ----------
    net : OperatorNetwork or sequence of OperatorNetwork
        Trained in place, brought to `dtype` and `device`, and left in evaluation mode. If it is
        not calibrated, it is calibrated on the training samples, and a linear path starts from its
        closed-form fit (`OperatorNetwork.fit_linear`) if all weights are fresh and none is frozen.
        A sequence has a network for each data set, made by ``net.on(mesh, bcs)`` where a mesh needs
        conditions of its own.
    data : Dataset or sequence of Dataset
        Inputs and output of the network's spaces; inputs alone for a loss that needs no outputs.
        In a sequence each data set may have a mesh and a domain of its own, with the same elements:
        copies of the network by ``net.on(data.mesh())`` share the weights. Batches are drawn from
        all samples together, each of which counts the same; so are the scales of inputs and output.
    loss : callable, optional
        One of `spon.losses` or any ``loss(prediction, target)`` of two tensors (batch, dim) that
        returns the mean over the batch as a scalar; or a `spon.losses.Residual` or
        `spon.losses.Energy`, which look at the inputs and need no outputs. By default the relative
        L2 error in the decoder's space. The average over samples is what is minimised, whatever
        the reduction. With several meshes a loss that has a method ``on(space)`` is moved to each,
        as the errors of `spon.losses` are; what belongs to one mesh, as a form does, is given as a
        sequence, one loss for each data set.
    validation : float, Dataset, sequence of Dataset or None, optional
        The part of the samples to hold back (drawn by `seed` from all data sets together), data of
        their own (with several data sets on any mesh), or None for no validation.
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
        or other settings. With several data sets the message begins with ``data[i]`` where one of
        them has other elements, a mesh without the tags of the conditions, or a mesh that the
        network's weights do not serve on.
    TrainingDivergedError
        If the loss becomes NaN or infinite. The network is left with the best weights so far.
    RuntimeError
        If the checkpoint cannot be read, or one of several data sets has no mesh.

    Examples
    --------
    >>> history = spon.fit(net, data, epochs=200, checkpoint="run.pt")    # doctest: +SKIP
    >>> history.plot("losses.png")                                        # doctest: +SKIP
    >>> spon.fit(net, [on_plate, on_gear, on_bracket])                    # doctest: +SKIP
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
    copies = MeshCopies(net, loss)
    base = copies.base
    if not any(p.requires_grad for p in base.parameters()):
        raise ValueError(f"The {type(base).__name__} has no trainable weights.")
    train, held_back, rows = _sets(copies, data, validation, dtype, options.seed)
    place = _place(base, device)
    group = current_group(place)
    copies.place(place, dtype)
    if not getattr(base, "calibrated", True):
        _calibrate(train.to(place))
    group.same_weights_(base)
    with torch.random.fork_rng([place] if place.type == "cuda" else []):
        return Trainer(base, train, held_back, options, group, place, rows).run()


def evaluate(
    net: nn.Module | Sequence[nn.Module], data: Any, loss: Any = None, batch_size: int = 64
) -> Tensor:
    """Loss of each sample of a dataset, without gradient.

    Parameters
    ----------
    net : OperatorNetwork or sequence of OperatorNetwork
        Used in evaluation mode; its mode, dtype and device stay as they are. A sequence as in
        `fit`.
    data : Dataset or sequence of Dataset
        Inputs and output of the network's spaces; several as in `fit`.
    loss : callable, optional
        As for `fit`; by default the relative L2 error in the decoder's space. One without a method
        ``per_sample`` is called sample by sample.
    batch_size : int, optional
        Samples to put through the network at once.

    Returns
    -------
    Tensor, shape (n,)
        On the CPU, in the dtype of the network; the samples of several data sets one after the
        other.

    Raises
    ------
    TypeError
        If `data` is no dataset.
    ValueError
        If the data are empty, hold NaN or belong to other spaces than the network, or if
        `batch_size` is less than 1.
    """
    size = _integer("batch_size", batch_size, 1)
    copies = MeshCopies(net, loss)
    base = copies.base
    weight = next((p for p in base.parameters() if p.is_floating_point()), None)
    dtype = torch.get_default_dtype() if weight is None else weight.dtype
    place = _place(base, None)
    samples = copies.read(data, dtype, "evaluation")
    # Each part by itself: some may be in evaluation mode in a network that is trained.
    whole = [(n, n.training) for n in samples.networks]
    modes = [(part, part.training) for n, _ in whole for part in n.modules()]
    for n, _ in whole:
        n.eval()
    try:
        with torch.no_grad():
            parts = [
                loss_per_sample(piece.net, piece.loss, piece.samples.to(place)).cpu()
                for rows in torch.arange(len(samples)).split(size)
                for piece in samples.pieces(rows)
            ]
    finally:
        for n, mode in whole:
            n.train(mode)
        for part, mode in modes:
            part.training = mode
    return torch.cat(parts)


def _sets(
    copies: MeshCopies, data: Any, validation: Any, dtype: torch.dtype, seed: int
) -> tuple[TrainingSet, TrainingSet | None, list[int]]:
    """Training samples, validation samples, and which of `data` are the latter."""
    samples = copies.read(data, dtype, "training")
    if validation is None:
        return samples, None, []
    if not isinstance(validation, float | int):
        return samples, copies.read(validation, dtype, "validation"), []
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


def _calibrate(samples: TrainingSet) -> None:
    """Take the scales of a network from the data, or from the equations where there are no data."""
    inputs = [part.samples.inputs for part in samples.parts]
    outputs = [_outputs(part, len(part) / len(samples)) for part in samples.parts]
    known = [u for u in outputs if u is not None]
    labelled = all(part.samples.labelled for part in samples.parts)
    # A processor may come trained, from another network: its weights are not to be begun anew.
    start = labelled and getattr(samples.networks[0], "fresh", False)
    if len(samples.networks) > 1:
        nets = [part.net for part in samples.parts]
        calibrate_together(nets, inputs, outputs)
        if start:
            fit_linear_together(nets, inputs, known)
        return
    net = cast(Any, samples.networks[0])
    joined = tuple(_joined(x) for x in zip(*inputs, strict=True))
    net.calibrate(joined, _joined(known) if len(known) == len(outputs) else None)
    if start:
        net.fit_linear(joined, _joined(known))


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _outputs(part: Part, share: float) -> Tensor | None:
    """Outputs to take the scale from; `share` is this part's share of all samples."""
    samples = part.samples
    if samples.labelled:
        return samples.output
    few = samples.take(torch.arange(min(len(samples), max(1, round(share * _FIRST_STEPS)))))
    decoder = cast(Any, part.net).decoder
    zero = few.inputs[0].new_zeros(len(few), decoder.latent.dim())
    output: Tensor | None = part.loss.first_step(decoder(zero, few.boundary), few.inputs)
    return output


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
