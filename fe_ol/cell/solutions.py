"""Cells in equilibrium, put together, also from several processes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from fe_ol.cell.equilibrium import Balance, NoEquilibriumError

__all__ = ["Solutions", "gathered", "joined", "stacked"]


@dataclass
class Solutions:
    """Cells in equilibrium, one for each strain.

    Attributes
    ----------
    macro_strain, macro_stress : Tensor, shape (n, c)
        Mean strains and homogenised stresses, in the conventions of `fe_ol.voigt`.
    tangent : Tensor, shape (n, c, c), or None
        d macro_stress / d macro_strain.
    fluctuation : Tensor, shape (n, V.dim())
        Coefficients in ``rve.space``; without mean, and without rotation where the boundary
        condition leaves it open.
    strain, stress : Tensor, shape (n, p, c)
        At the quadrature points.
    state : Tensor, shape (n, s)
        To start the next step from.
    iterations, cutbacks : Tensor, shape (n,)
        int64: Newton iterations in all, with those that were given up, and how often a load step
        was halved.
    errors : list of list of float
        Relative residuals of the iterates (of the last load step).
    """

    macro_strain: Tensor
    macro_stress: Tensor
    tangent: Tensor | None
    fluctuation: Tensor
    strain: Tensor
    stress: Tensor
    state: Tensor
    iterations: Tensor
    cutbacks: Tensor
    errors: list[list[float]]

    def __len__(self) -> int:
        return len(self.macro_strain)


def gathered(mine: list[int], own: Solutions, problem: Exception | None, comm: Any) -> Solutions:
    """The solutions of all processes, in their order, on each of them.

    Parameters
    ----------
    mine : list of int
        Numbers of the solutions that this process has.
    own : Solutions
    problem : Exception or None
        What kept this process from having all of its solutions.
    comm : mpi4py communicator

    Returns
    -------
    Solutions

    Raises
    ------
    Exception
        `problem`, if there is one.
    NoEquilibriumError
        If another process has a problem.
    """
    problems = comm.allgather(None if problem is None else f"{type(problem).__name__}: {problem}")
    if problem is not None:
        raise problem
    for rank, other in enumerate(problems):
        if other is not None:
            raise NoEquilibriumError(f"Process {rank} failed: {other}")
    parts = comm.allgather((mine, own))
    order = torch.argsort(torch.tensor([i for numbers, _ in parts for i in numbers]))
    joined: dict[str, Any] = {}
    for f in fields(Solutions):
        values = [getattr(s, f.name) for _, s in parts]
        if values[0] is None:
            joined[f.name] = None
        elif f.name == "errors":
            flat = [e for part in values for e in part]
            joined[f.name] = [flat[int(k)] for k in order]
        else:
            joined[f.name] = torch.cat(values)[order]
    return Solutions(**joined)


def joined(found: Balance) -> Tensor:
    """The state of a cell: mean strain, fluctuation, and the states of the laws."""
    return torch.cat([found.strain, found.fluctuation, found.state])


def stacked(rows: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    """Rows as one tensor, of shape (0, *shape) without rows."""
    return torch.stack(rows) if rows else torch.zeros(0, *shape, dtype=torch.float64)
