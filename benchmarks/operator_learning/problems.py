"""What a problem of the comparison is, and the list of them.

A problem has samples (`Samples`) on one or more discretisations (`Level`). Networks are trained on
one level and may be evaluated on the others. Every network gets the raw input values of a sample
and the level, and returns the raw output values; what it takes to bring these into a function
space, onto a grid or onto a graph is part of the level, so that no network has to know the problem.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from spon.sparse import SparseMap

__all__ = ["PROBLEMS", "Grid", "Level", "Problem", "Samples", "make", "pairs"]

# Name on the command line -> (module of this package, class, arguments).
PROBLEMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "small_darcy": ("small_darcy", "SmallDarcy", {}),
    "poisson": ("poisson", "Poisson", {"degree": 1, "cells": 64}),
    "poisson_p2": ("poisson", "Poisson", {"degree": 2, "cells": 32}),
    "darcy_holes": ("plate", "DarcyHoles", {"coefficient": "lognormal"}),
    "darcy_holes_two_phase": ("plate", "DarcyHoles", {"coefficient": "two-phase"}),
    "darcy_flux": ("flux", "DarcyFlux", {}),
}


@dataclass
class Grid:
    """How a level looks to a network that works on images.

    Attributes
    ----------
    shape : (int, int)
        Pixels along x and along y, the axes of an image.
    ends : (float, float)
        Where the pixel after the last one of each axis would lie; the first one lies at `start`.
    start : (float, float)
    to_grid : SparseMap, shape (pixels, inputs), or None
        Input values to pixels; None where they are the same in the same order.
    from_grid : SparseMap, shape (outputs, components * pixels), or None
        Pixels, one component after the other, to output values.
    mask : Tensor, shape (pixels,), or None
        One on the domain, zero elsewhere; None where the domain fills the image.
    """

    shape: tuple[int, int]
    ends: tuple[float, float] = (1.0, 1.0)
    start: tuple[float, float] = (0.0, 0.0)
    to_grid: SparseMap | None = None
    from_grid: SparseMap | None = None
    mask: Tensor | None = None

    def image(self, x: Tensor) -> Tensor:
        """Input values (batch, inputs) as images (batch, 1, *shape)."""
        values = x if self.to_grid is None else self.to_grid.batch(x)
        return values.reshape(len(x), 1, *self.shape)

    def values(self, image: Tensor) -> Tensor:
        """Images (batch, components, *shape) as output values (batch, outputs)."""
        flat = image.flatten(1)
        return flat if self.from_grid is None else self.from_grid.batch(flat)


@dataclass
class Level:
    """One discretisation of a problem.

    Attributes
    ----------
    name : str
    inputs, outputs : int
        Values of a sample.
    points : Tensor, shape (points, 2)
        Where the output values belong.
    edges : Tensor, shape (2, edges), int64
        Senders and receivers among the points: those that share a cell, both ways, no loops.
    grid : Grid
    error : callable
        Prediction and target, both (batch, outputs), to relative errors (batch,).
    components : int
        How many values a network that works on points or pixels has at each of them.
    from_points : SparseMap, shape (outputs, components * points), or None
        Values at the points, one component after the other, to output values; None where they are
        the output values.
    sampled : SparseMap, shape (components * m, outputs), or None
        Output values to values of each component at some m places, which tell its scale.
    promises : dict
        Keywords of `spon.Decoder` beside the conditions.
    mesh, V, U, rule : optional
        The mesh, the spaces of input and output, and a function from a space to its boundary
        conditions.
    into_V : Tensor, shape (V.dim(),), int64, or None
        For each dof of `V` the input value that it takes; None where they are the same.
    out_of_U : Tensor, shape (outputs,), int64, or None
        For each output value its dof in `U`; dofs that no value belongs to are zero.
    to_points : SparseMap, shape (points, inputs), or None
        Input values to the points, by the plain means that a user of message passing takes.
    restrict : SparseMap, shape (inputs of the training level, inputs), or None
        To the training level, for networks that are tied to it. None on that level.
    prolong : SparseMap, shape (outputs, outputs of the training level), or None
    """

    name: str
    inputs: int
    outputs: int
    points: Tensor
    edges: Tensor
    grid: Grid
    error: Callable[[Tensor, Tensor], Tensor]
    components: int = 1
    from_points: SparseMap | None = None
    sampled: SparseMap | None = None
    promises: dict[str, Any] = field(default_factory=dict)
    mesh: Any = None
    V: Any = None
    U: Any = None
    rule: Any = None
    into_V: Tensor | None = None
    out_of_U: Tensor | None = None
    to_points: SparseMap | None = None
    restrict: SparseMap | None = None
    prolong: SparseMap | None = None

    def coefficients(self, x: Tensor) -> Tensor:
        """Input values (batch, inputs) as coefficients in V (batch, V.dim())."""
        return x if self.into_V is None else x[:, self.into_V]

    def values(self, u: Tensor) -> Tensor:
        """Coefficients in U (batch, U.dim()) as output values (batch, outputs)."""
        return u if self.out_of_U is None else u[:, self.out_of_U]

    def gather(self, values: Tensor) -> Tensor:
        """Values at the points (batch, components, points) as output values (batch, outputs)."""
        flat = values.flatten(1)
        return flat if self.from_points is None else self.from_points.batch(flat)

    def output_coefficients(self, y: Tensor) -> Tensor:
        """Output values (batch, outputs) as coefficients in U (batch, U.dim())."""
        if self.out_of_U is None:
            return y
        u = y.new_zeros(len(y), self.U.dim())
        u[:, self.out_of_U] = y
        return u


@dataclass
class Samples:
    """Pairs of input and output values on one level.

    Attributes
    ----------
    x : Tensor, shape (n, level.inputs), float32
    y : Tensor, shape (n, level.outputs), float32
    level : Level
    """

    x: Tensor
    y: Tensor
    level: Level

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, which: slice) -> Samples:
        return Samples(self.x[which], self.y[which], self.level)


@dataclass
class Problem(ABC):
    """Data, metric and budget of a comparison.

    Attributes
    ----------
    title : str
    networks : tuple of str, or None
        Those that take part if none are asked for; None for all that suit every problem.
    double : bool
        Whether tests are in float64 for networks that can, because round-off is measured.
    name : str
    train, validation : Samples
        On one level. Settings are chosen by the error on `validation`.
    tests : dict of str to Samples
        For reporting only.
    seconds : float
        CPU seconds that the training of a network may take.
    epochs : int
        Passes over the training samples that it may take at most.
    """

    title: ClassVar[str]
    networks: ClassVar[tuple[str, ...] | None] = None
    double: ClassVar[bool] = False
    name: str
    train: Samples
    validation: Samples
    tests: dict[str, Samples]
    seconds: float
    epochs: int
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def level(self) -> Level:
        """The level of the training samples."""
        return self.train.level

    def measures(self, test: str, prediction: Tensor) -> dict[str, Tensor]:
        """Errors of the samples of a test set, each of shape (n,), by what they are measured in.

        Parameters
        ----------
        test : str
            Key of `tests`.
        prediction : Tensor, shape (n, outputs)
        """
        samples = self.tests[test]
        return {"error": samples.level.error(prediction.double(), samples.y.double())}

    def shown(self, prediction: Tensor) -> dict[str, Any] | None:
        """What a picture needs of the predictions for the first test set, JSON-able."""
        return None

    def reference(self) -> dict[str, Any]:
        """What the solutions that are learned have of all that is measured or shown."""
        return {}

    def floors(self) -> dict[str, Any]:
        """Errors that no network can go below, apart from what a network does wrong."""
        return {}

    @abstractmethod
    def solvers(self, quick: bool) -> list[dict[str, Any]]:
        """Errors and times of finite elements on several meshes.

        Returns
        -------
        list of dict
            ``solver``, ``mesh``, ``dofs``, ``error`` (mean over a test set, in its metric),
            ``ms`` a sample with assembly, factorisation and transfers, ``batch``.
        """


def make(name: str, quick: bool = False, **options: Any) -> Problem:
    """Build a problem with its data.

    Parameters
    ----------
    name : str
        One of `PROBLEMS`.
    quick : bool, optional
        Few samples.
    **options : optional
        Further arguments of the problem's class.

    Raises
    ------
    ValueError
        If there is no such problem.
    FileNotFoundError
        If its data are not there, with what to do.
    """
    if name not in PROBLEMS:
        raise ValueError(f"No problem is called {name!r}; there are {', '.join(PROBLEMS)}.")
    module, kind, arguments = PROBLEMS[name]
    cls = getattr(import_module(f"operator_learning.{module}"), kind)
    problem: Problem = cls.make(name, quick, **{**arguments, **options})
    return problem


def pairs(cells: Any) -> Tensor:
    """All ordered pairs of different points that share a cell.

    Parameters
    ----------
    cells : array, shape (cells, points of a cell), int
        Points of each cell.

    Returns
    -------
    Tensor, shape (2, pairs), int64
        Sorted by the second row, the receivers.
    """
    cells = np.asarray(cells, dtype=np.int64)
    count = cells.shape[1]
    senders, receivers = np.nonzero(~np.eye(count, dtype=bool))
    both = np.stack([cells[:, receivers].ravel(), cells[:, senders].ravel()])
    receivers, senders = np.unique(both, axis=1)
    return torch.from_numpy(np.stack([senders, receivers]))
