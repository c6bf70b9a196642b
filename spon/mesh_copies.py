"""One network on the meshes of several data sets, and the loss on each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from spon.losses import RelativeError
from spon.samples import Samples
from spon.training_sets import Part, TrainingSet

__all__ = ["MeshCopies"]

_LABELS = {"training": "data", "evaluation": "data", "validation": "validation"}


class MeshCopies:
    """A network, its copies on other meshes, which share its weights, and a loss for each.

    Parameters
    ----------
    net : Module or sequence of Module
        A network; or one for each data set, made by ``net.on`` and so with the same weights.
    loss : callable, sequence of callable, or None
        One with a method ``on(space)`` is moved to each mesh; a sequence has one for each data set;
        None stands for the relative L2 error.

    Raises
    ------
    TypeError
        If a loss is not callable.
    ValueError
        If networks do not share their weights, or a sequence is empty.
    """

    def __init__(self, net: Any, loss: Any) -> None:
        self._given = _sequence(net)
        self._losses = _sequence(loss)
        if self._given is not None and not self._given:
            raise ValueError("Got an empty list of networks: give one for each data set.")
        self.nets: list[nn.Module] = [net] if self._given is None else list(self._given)
        for position, other in enumerate(self.nets[1:], start=1):
            shared = getattr(other, "processor", other)
            if shared is not getattr(self.base, "processor", self.base):
                raise ValueError(
                    f"net[{position}] has weights of its own: networks that are trained together "
                    "share them. Make it by net[0].on(mesh, bcs)."
                )
        self._loss = loss
        for one in [loss] if self._losses is None else self._losses:
            if one is not None and not callable(one):
                raise TypeError(
                    f"loss must be callable, loss(prediction, target), got {type(one).__name__}; "
                    "spon.losses.RelativeError(U, 'H1') is one."
                )
        self._moved: dict[int, Any] = {}
        self._used: list[Part] = []
        self._several = False

    @property
    def base(self) -> nn.Module:
        """The network whose weights all others share."""
        return self.nets[0]

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Bring all networks to a device and a precision."""
        for net in self.nets:
            net.to(device=device, dtype=dtype)
        for net in self.nets[1:]:
            if hasattr(net, "share_scales"):
                cast(Any, net).share_scales(self.base)

    def read(self, data: Any, dtype: torch.dtype, role: str) -> TrainingSet:
        """Samples of one data set, or of several, each with its network and loss.

        Parameters
        ----------
        data : Dataset or sequence of Dataset
        dtype : torch.dtype
        role : {"training", "evaluation", "validation"}

        Raises
        ------
        TypeError, ValueError, RuntimeError, OSError
            If a data set cannot be used with the network. With several of them the message begins
            with ``data[i]`` or ``validation[i]``.
        """
        sets = _sequence(data)
        named = sets is not None
        sets = [data] if sets is None else sets
        self._several = several = named or self._several
        if not sets:
            raise ValueError(f"The list of {role} sets is empty: give at least one data set.")
        if role != "validation":
            for what, given in (("networks", self._given), ("losses", self._losses)):
                if given is not None and len(given) != len(sets):
                    raise ValueError(
                        f"Got {len(given)} {what} for {len(sets)} data sets: give one for each."
                    )
        parts = []
        for i, one in enumerate(sets):
            with _named(f"{_LABELS[role]}[{i}]" if named else _LABELS[role] if several else None):
                samples = Samples.read(one, dtype, role)
                _require_same_inputs(sets[0], one)
                own = self.nets[i] if self._given is not None and role != "validation" else None
                net = self._network(one, own, several)
                part = Part(net, self._loss_for(net, None if role == "validation" else i), samples)
                _require_outputs(part)
                parts.append(part)
        self._used += parts
        return TrainingSet(parts)

    def _network(self, data: Any, own: nn.Module | None, several: bool) -> nn.Module:
        """The network on the mesh of a data set, new if need be."""
        net: Any = self.base if own is None else own
        if not hasattr(net, "check_data"):
            return cast(nn.Module, net)
        if own is not None or not several:
            net.check_data(data)
            return cast(nn.Module, net)
        for known in self.nets:
            if _fits(known, data):
                return known
        net.check_elements(data)
        moved = net.on(_mesh(data))
        moved.check_data(data)
        self.nets.append(moved)
        return cast(nn.Module, moved)

    def _loss_for(self, net: nn.Module, position: int | None) -> Any:
        """The loss of a data set: its own where there is one for each, or that of its mesh."""
        if self._losses is not None:
            if position is not None:
                own = self._losses[position]
                return _default_loss(net) if own is None else own
            for part in self._used:
                if part.net is net:
                    return part.loss
            raise ValueError(
                "The losses were given for each mesh of the training sets, and this mesh is none "
                "of them: give one loss that can be moved, spon.losses.RelativeError(U) for "
                "example, or validate on a mesh that is trained on."
            )
        if id(net) not in self._moved:
            self._moved[id(net)] = self._moved_loss(net)
        return self._moved[id(net)]

    def _moved_loss(self, net: nn.Module) -> Any:
        if self._loss is None:
            return _default_loss(net)
        if net is self.base:
            return self._loss
        if hasattr(self._loss, "on"):
            return self._loss.on(cast(Any, net).decoder.space)
        if getattr(self._loss, "takes_inputs", False):
            raise ValueError(
                f"The form of a {type(self._loss).__name__} belongs to one mesh: give a list of "
                "losses, one for each data set."
            )
        return self._loss


def _sequence(value: Any) -> Sequence[Any] | None:
    return value if isinstance(value, list | tuple) else None


@contextmanager
def _named(label: str | None) -> Iterator[None]:
    """Put the name of a data set in front of what is said about it."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        if label is None:
            raise
        kinds = (TypeError, ValueError, FileNotFoundError, OSError, RuntimeError)
        kind = next(kind for kind in kinds if isinstance(error, kind))
        raise kind(f"{label}: {error}") from error


def _require_same_inputs(first: Any, other: Any) -> None:
    """Inputs go to the encoders in their order: names in another one would be a mistake."""
    a, b = (list(getattr(data, "inputs", ())) for data in (first, other))
    if a != b:
        raise ValueError(f"It has the inputs {b}, the first data set has {a}.")


def _require_outputs(part: Part) -> None:
    if not part.samples.labelled and not getattr(part.loss, "takes_inputs", False):
        raise ValueError(
            f"The data set has no outputs, which {type(part.loss).__name__} compares with: give it "
            "outputs, or use spon.losses.Residual or spon.losses.Energy."
        )


def _fits(net: Any, data: Any) -> bool:
    try:
        net.check_data(data)
    except ValueError:
        return False
    return True


def _mesh(data: Any) -> Any:
    """The mesh of the output, or that of the first input in a space where there is none."""
    inputs = (name for name, known in data.input_signatures.items() if known is not None)
    name = next(iter(data.output_signatures), None) or next(inputs, None)
    if name is None:
        raise ValueError(
            "It has no outputs, and no input in a function space, so that its mesh is unknown: "
            "give a network for each data set."
        )
    return data.mesh(name)


def _default_loss(net: nn.Module) -> RelativeError:
    decoder = getattr(net, "decoder", None)
    if decoder is None:
        raise ValueError(
            f"A {type(net).__name__} has no decoder whose space could give a loss: pass loss=, "
            "spon.losses.RelativeError(U) for example."
        )
    return RelativeError(decoder.space, "L2")
