"""The materials at the quadrature points of a macroscopic problem: one call for all points."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from spon.fem.problem import SOLVE_FAILURES

__all__ = ["Answer", "MaterialFailure", "Points"]


class MaterialFailure(ArithmeticError):
    """A material could not answer; smaller load steps may help."""


@dataclass(frozen=True)
class Answer:
    """Stress and tangent at all points of this process.

    Attributes
    ----------
    stress : Tensor, shape (n, c)
    tangent : Tensor, shape (n, c, c)
    """

    stress: Tensor
    tangent: Tensor


class Points:
    """Which material answers at which point, and the states between the steps.

    States are committed when a step has converged and come back when it has failed. What a
    material without history returns as its state is a warm start: it is passed to the next call.

    A material that wants to know which strains were more than trials may have these methods:

    * ``trial(strain, state)``: called instead of the material itself;
    * ``review(strain, state) -> bool``: called with the strains at which Newton's method has
      converged; False means that the material will now answer otherwise, and that the step has to
      be iterated further;
    * ``converged(strain, state)``: called once for each converged step, with its last strains and
      the state at its end;
    * ``rejected()``: the step was given up, and what is not converged does not count;
    * ``forget()``: a simulation begins from rest.

    Parameters
    ----------
    materials : mapping of int to Material
        By cell tag.
    tags : Tensor, shape (n,)
        Tag of each point of this process.
    components : int
        Number of strain components.
    comm : mpi4py communicator
        What fails on one process fails on all of them.

    Attributes
    ----------
    seconds : float
        Spent in the materials so far.
    calls : int
        Evaluations so far.
    """

    def __init__(
        self, materials: Mapping[int, Any], tags: Tensor, components: int, comm: Any
    ) -> None:
        self.components, self.comm = components, comm
        self.size = len(tags)
        self.seconds, self.calls = 0.0, 0
        groups: dict[int, tuple[Any, list[int]]] = {}
        for tag, material in materials.items():
            groups.setdefault(id(material), (material, []))[1].append(tag)
        self.groups: list[tuple[Any, Any]] = []
        for material, mine in groups.values():
            if len(groups) == 1:
                self.groups.append((material, slice(None)))
            else:
                where = torch.isin(tags, torch.tensor(mine, dtype=tags.dtype))
                self.groups.append((material, where.nonzero()[:, 0]))
        self.committed: list[Tensor | None] = [None] * len(self.groups)
        self._before = list(self.committed)
        self._trial: list[Tensor | None] = [None] * len(self.groups)

    @property
    def materials(self) -> list[Any]:
        """Each material once."""
        return [material for material, _ in self.groups]

    @property
    def history(self) -> bool:
        """Whether a material has history."""
        return any(material.history for material in self.materials)

    @property
    def changing(self) -> bool:
        """Whether an answer may change when a step is committed."""
        return self.history or any(hasattr(material, "converged") for material in self.materials)

    def review(self, strain: Tensor) -> bool:
        """Whether the answers at the strains of a converged iteration stand, on all processes."""
        stand = True
        for (material, where), state in zip(self.groups, self._trial, strict=True):
            judge = getattr(material, "review", None)
            if judge is not None:
                stand &= bool(self.agree(partial(judge, strain[where], state)))
        return bool(self.comm.allreduce(int(stand)) == self.comm.size)

    def evaluate(self, strain: Tensor) -> Answer:
        """Ask the materials for trial strains.

        Parameters
        ----------
        strain : Tensor, shape (n, c)

        Raises
        ------
        MaterialFailure
            On all processes, if a material fails on one of them as `SOLVE_FAILURES` say, or
            answers with NaN or infinity.
        ValueError
            If an answer has a wrong shape.
        """
        self.calls += 1
        start = time.perf_counter()
        try:
            return self.agree(lambda: self._evaluate(strain))
        finally:
            self.seconds += time.perf_counter() - start

    def commit(self, strain: Tensor) -> None:
        """The step has converged at these strains, which were the last to be evaluated."""
        self._before, self.committed = self.committed, list(self._trial)
        for (material, where), state in zip(self.groups, self.committed, strict=True):
            told = getattr(material, "converged", None)
            if told is not None:
                self.agree(partial(told, strain[where], state))

    def reject(self) -> None:
        """The step has failed: back to the committed states."""
        self._trial = list(self.committed)
        self._tell("rejected")

    def restore(self, states: list[Tensor | None]) -> None:
        """Take committed states."""
        self.committed, self._trial = list(states), list(states)

    def reset(self) -> None:
        """Back to rest."""
        self.restore([None] * len(self.groups))
        self._before = list(self.committed)
        self._tell("forget")

    def memory(self) -> dict[str, list[Tensor | None]]:
        """States before and after the last commit, for a file.

        Those that are warm starts only are left out: they may be large, and are found again.
        """
        keep = [material.history for material in self.materials]
        return {
            when: [s if k else None for s, k in zip(states, keep, strict=True)]
            for when, states in (("before", self._before), ("after", self.committed))
        }

    def remember(self, memory: dict[str, list[Tensor | None]], strain: Tensor) -> Answer:
        """Go back to where `memory` was called.

        Parameters
        ----------
        memory : dict
        strain : Tensor, shape (n, c)
            Strains of the last commit.

        Returns
        -------
        Answer
            That of the last commit: with the tangent of the step and not with that of what follows,
            so that a resumed run goes on with the same numbers.
        """
        self.restore(memory["before"])
        answer = self.evaluate(strain)
        self._before, self.committed = list(memory["before"]), list(memory["after"])
        self._trial = [
            a if m.history else t
            for a, t, m in zip(self.committed, self._trial, self.materials, strict=True)
        ]
        return answer

    def agree(self, call: Callable[[], Any]) -> Any:
        """Call on all processes; what is raised on one is raised on all."""
        error: Exception | None = None
        try:
            try:
                result = call()
            except Exception as caught:
                error = caught
            self._compare(error)
            if isinstance(error, SOLVE_FAILURES) and not isinstance(error, MaterialFailure):
                raise MaterialFailure(_text(error)) from error
            if error is not None:
                raise error
            return result
        finally:
            # Its traceback refers to this frame: a cycle that would hold what the callers have.
            del error

    def _compare(self, error: Exception | None) -> None:
        """Raise what another process has raised."""
        if self.comm.size == 1:
            return
        mild = error is None or isinstance(error, SOLVE_FAILURES)
        texts = self.comm.allgather(None if error is None else (mild, _text(error)))
        failed = [(rank, text) for rank, text in enumerate(texts) if text is not None]
        if failed and (error is None or mild):
            # The worst decides, so that no process goes on where another has stopped.
            rank, (milder, text) = min(failed, key=lambda item: item[1][0])
            kind = MaterialFailure if milder else RuntimeError
            raise kind(f"on process {rank}: {text}") from error

    def _tell(self, what: str) -> None:
        for material in self.materials:
            told = getattr(material, what, None)
            if told is not None:
                self.agree(told)

    def _evaluate(self, strain: Tensor) -> Answer:
        parts = [self._ask(k, strain[where]) for k, (_, where) in enumerate(self.groups)]
        if len(parts) == 1:
            return parts[0]
        c = self.components
        whole = Answer(strain.new_empty(self.size, c), strain.new_empty(self.size, c, c))
        for (_, where), part in zip(self.groups, parts, strict=True):
            whole.stress[where], whole.tangent[where] = part.stress, part.tangent
        return whole

    @torch.no_grad()
    def _ask(self, k: int, strain: Tensor) -> Answer:
        material, n, c = self.groups[k][0], len(strain), self.components
        if n == 0:
            return Answer(strain.new_empty(0, c), strain.new_empty(0, c, c))
        state = self.committed[k] if material.history else self._trial[k]
        ask = getattr(material, "trial", material)
        response = ask(strain) if state is None else ask(strain, state)
        stress, tangent = response.stress, response.tangent
        name = type(material).__name__
        if tangent is None:
            raise ValueError(
                f"{name} answered without a tangent: Newton's method needs d stress / d strain, of "
                f"shape {(n, c, c)}."
            )
        for what, x, shape in (("stress", stress, (n, c)), ("tangent", tangent, (n, c, c))):
            if not isinstance(x, Tensor) or tuple(x.shape) != shape or x.dtype != torch.float64:
                kind = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x)
                raise ValueError(
                    f"{name} answered {n} strains of {c} components with a {what} {kind}, expected "
                    f"a float64 tensor of shape {shape}."
                )
        wrong = ~(torch.isfinite(stress).all(1) & torch.isfinite(tangent).flatten(1).all(1))
        if wrong.any():
            first = int(wrong.nonzero()[0])
            raise MaterialFailure(
                f"{name} answered with NaN or infinity at {int(wrong.sum())} of {n} points, the "
                f"first for the strain {[float(f'{x:.4g}') for x in strain[first]]}"
            )
        self._trial[k] = response.state
        return Answer(stress.detach(), tangent.detach())


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, MaterialFailure) else f"{type(error).__name__}: {error}"
