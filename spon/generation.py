"""Make a data set by solving a problem for random inputs; a kill costs one sample at most."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from mpi4py import MPI
from tqdm import tqdm

from spon.datafile import versions
from spon.datasets import Dataset, Failure
from spon.fem.problem import SOLVE_FAILURES, Problem
from spon.parts import Parts, RunMismatchError, describe_difference

__all__ = ["GenerationError", "RunMismatchError", "generate"]

T = TypeVar("T")
_log = logging.getLogger("spon")


class GenerationError(RuntimeError):
    """No sample could be computed, or another process of the run failed."""


def generate(
    problem: Problem,
    sampler: Callable[[np.random.Generator], Any] | Mapping[str, Callable[..., Any]],
    n: int,
    path: str | os.PathLike[str],
    seed: int = 0,
    ensemble: Any | None = None,
    progress: bool = True,
) -> Dataset:
    """Draw inputs, solve, and collect the pairs in one file.

    Sample ``i`` draws its random numbers from ``numpy.random.default_rng([seed, i])``, and every
    solve starts from the same initial outputs: the data do not depend on the order of the samples,
    on the number of processes, or on how often the run was killed and started again.

    While it runs, finished samples lie in the folder ``path + ".parts"``; starting again with the
    same arguments goes on from there. When all are done, the file is written and the folder
    removed. If the file is there already, it is returned, and extended if it has fewer than `n`
    samples; a line in the log (logger ``spon``, level INFO) and above the progress bar says so. A
    sample whose input cannot be drawn or whose solve fails (an ``ArithmeticError``, no convergence,
    NaN) is left out, logged as a warning, and listed in `Dataset.failures`.

    Parameters
    ----------
    problem : Problem
        On meshes that live on one process each.
    sampler : mapping of str to callable, or callable
        Either for each input (and for ``"boundary"``, where the problem has boundary data that are
        no input) a field sampler ``sampler(function, rng)``, see `spon.samplers`; or one callable
        ``sampler(rng)`` that sets all of the problem's inputs. With a method ``describe()`` its
        settings become part of the data set and of what tells one run from another.
    n : int
        Number of samples to try.
    path : path
        The HDF5 file.
    seed : int, optional
    ensemble : firedrake.Ensemble, optional
        ``Ensemble(COMM_WORLD, 1)`` under ``mpiexec``: member ``k`` of ``m`` computes the samples
        ``k, k + m, ...``. Build the problem's mesh on ``ensemble.comm``.
    progress : bool, optional
        Whether the first process shows a progress bar.

    Returns
    -------
    Dataset
        With ``n - len(failures)`` samples, on the problem's own meshes.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.
    RunMismatchError
        If the file or the folder belongs to another problem, sampler or seed.
    NotImplementedError
        If a mesh is distributed.
    GenerationError
        If none of the `n` samples could be computed, or another process failed.
    """
    problem = _checked_problem(problem)
    n = _checked_integer("n", n, 1)
    seed = _checked_integer("seed", seed, 0)
    draw, description = _checked_sampler(sampler, problem)
    comm = _communicator(ensemble)
    run = {"made_by": "spon.generate", "sampler": description, "seed": seed} | problem.describe()
    path = Path(path)
    parts = Parts(path, run)

    known = _on_first(comm, lambda: _open(path, parts, n, progress))
    if known < n:
        mine = range(known + (comm.rank - known) % comm.size, n, comm.size)
        error: Exception | None = None
        try:
            _solve_all(problem, draw, mine, seed, parts, progress and comm.rank == 0)
        except Exception as caught:
            error = caught
        _raise_together(comm, error)
        _on_first(comm, lambda: _assemble(problem, path, parts, n))
    data = Dataset.load(path)
    data = data if len(data) + len(data.failures) <= n else _first(data, n)
    return data.attach(problem.spaces())


def _solve_all(
    problem: Problem,
    draw: Callable[[np.random.Generator], Any],
    indices: range,
    seed: int,
    parts: Parts,
    progress: bool,
) -> None:
    left = [i for i in indices if not parts.has(i)]
    bar = tqdm(
        total=len(indices),
        initial=len(indices) - len(left),
        desc="generate",
        unit="sample",
        disable=not progress,
    )
    with bar:
        for i in left:
            try:
                draw(np.random.default_rng([seed, i]))
                parts.write(i, problem.run())
            except SOLVE_FAILURES as error:
                message = f"{type(error).__name__}: {error}"
                _log.warning("Sample %d failed and is left out: %s", i, message)
                parts.write_failure(i, message)
            bar.update()


def _open(path: Path, parts: Parts, n: int, progress: bool) -> int:
    """Check what is there, and return the number of samples that the file has already."""
    known = 0
    if path.exists():
        old = Dataset.load(path)
        found = old.runs[0] if len(old.runs) == 1 else {}
        difference = describe_difference(parts.run, found)
        if difference:
            raise RunMismatchError(
                f"{str(path)!r} holds another run: {difference}. Choose another path, or remove "
                "the file."
            )
        known = len(old) + len(old.failures)
        _tell(path, old, min(known, n), progress)
    if known >= n:
        parts.remove()
        return known
    parts.open()
    return known


def _assemble(problem: Problem, path: Path, parts: Parts, n: int) -> None:
    rows: dict[str, list[np.ndarray]] = {}
    indices: list[int] = []
    failures: list[Failure] = []
    if path.exists():
        old = Dataset.load(path)
        indices, failures = old.keys[:, 1].tolist(), list(old.failures)
        rows = {f"inputs.{k}": list(x.numpy()) for k, x in old.inputs.items()}
        rows |= {f"outputs.{k}": list(x.numpy()) for k, x in old.outputs.items()}
        if old.boundary is not None:
            rows["boundary"] = list(old.boundary.numpy())
    for i in range(len(indices) + len(failures), n):
        sample = parts.read(i)
        if isinstance(sample, str):
            failures.append(Failure(i, sample))
            continue
        indices.append(i)
        for name, values in sample.items():
            rows.setdefault(name, []).append(values)
    if not indices:
        raise GenerationError(
            f"None of the {n} samples could be computed. The first one: {failures[0].message}. "
            f"Mend the problem and remove {str(parts.folder)!r}."
        )
    seed = parts.run["seed"]
    Dataset.from_arrays(
        {k: np.stack(rows[f"inputs.{k}"]) for k in problem.inputs},
        {k: np.stack(rows[f"outputs.{k}"]) for k in problem.outputs},
        problem.spaces(),
        np.stack(rows["boundary"]) if "boundary" in rows else None,
        boundary_of=problem.boundary_of(),
        runs=[parts.run | {"versions": versions()}],
        keys=[[seed, i] for i in indices],
        failures=failures,
    ).save(path)
    parts.remove()


def _tell(path: Path, old: Dataset, used: int, progress: bool) -> None:
    """Say that nothing is solved anew: Firedrake cannot be asked whether `solve` is the same."""
    made = datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    tools = ", ".join(f"{k} {v}" for k, v in old.runs[0].get("versions", {}).items())
    message = (
        f"Using {used} samples of {str(path)!r}, made {made} with {tools or 'unknown versions'}. "
        "If solve has changed since, give the Problem another description=, or choose another "
        "path, to make a new run."
    )
    _log.info(message)
    if progress:
        tqdm.write(message, file=sys.stderr)


def _first(data: Dataset, n: int) -> Dataset:
    _log.info("The file has more than %d samples; the first %d are used.", n, n)
    chosen = data.keys[:, 1] < n
    failures = tuple(failure for failure in data.failures if failure.index < n)
    if not chosen.any():
        raise GenerationError(
            f"None of the first {n} samples of the file could be computed. The first one: "
            f"{failures[0].message}. Ask for more samples."
        )
    part = data[chosen]
    part.failures = failures
    return part


# ---- arguments


def _checked_problem(problem: Any) -> Problem:
    if not isinstance(problem, Problem):
        raise TypeError(
            f"problem must be a spon.Problem, got {type(problem).__name__}: "
            "spon.Problem(inputs={'f': f}, outputs={'u': u}, solve=solver.solve)."
        )
    problem.require_serial()
    return problem


def _checked_integer(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")
    return int(value)


def _checked_sampler(
    sampler: Any, problem: Problem
) -> tuple[Callable[[np.random.Generator], None], Any]:
    if not isinstance(sampler, Mapping):
        if not callable(sampler):
            raise TypeError(
                "sampler must be a mapping of names to field samplers or a callable(rng), got "
                f"{type(sampler).__name__}."
            )
        if hasattr(sampler, "space"):
            raise TypeError(
                f"A {type(sampler).__name__} fills one function; say which: "
                f"sampler={{{next(iter(problem.inputs))!r}: ...}}."
            )
        return sampler, _description(sampler)
    targets = dict(problem.inputs)
    if problem.boundary is not None and all(problem.boundary is not f for f in targets.values()):
        targets["boundary"] = problem.boundary
    if sampler.keys() != targets.keys():
        raise ValueError(
            f"sampler has the names {sorted(sampler)}, the problem needs {sorted(targets)}: one "
            "field sampler for each."
        )
    for name, field in sampler.items():
        if not callable(field):
            raise TypeError(
                f"sampler[{name!r}] must be callable(function, rng), got {type(field).__name__}."
            )

    def draw(rng: np.random.Generator) -> None:
        # In the order of the problem: the order in a dict of the script must not matter.
        for name, function in targets.items():
            sampler[name](function, rng)

    return draw, {name: _description(sampler[name]) for name in targets}


def _description(sampler: Any) -> Any:
    if hasattr(sampler, "describe"):
        return sampler.describe()
    return getattr(sampler, "__qualname__", type(sampler).__qualname__)


# ---- processes


def _communicator(ensemble: Any | None) -> MPI.Comm:
    if ensemble is None:
        if MPI.COMM_WORLD.size > 1:
            raise ValueError(
                f"This runs on {MPI.COMM_WORLD.size} processes: say so with "
                "ensemble=Ensemble(COMM_WORLD, 1), and build the mesh on ensemble.comm."
            )
        return MPI.COMM_SELF
    if not hasattr(ensemble, "ensemble_comm"):
        raise TypeError(f"ensemble must be a firedrake.Ensemble, got {type(ensemble).__name__}.")
    if ensemble.comm.size > 1:
        raise NotImplementedError(
            f"Each member of the ensemble has {ensemble.comm.size} processes; distributed meshes "
            "are not supported. Use Ensemble(COMM_WORLD, 1)."
        )
    return ensemble.ensemble_comm


def _on_first(comm: MPI.Comm, work: Callable[[], T]) -> T:
    """Run `work` on the first process; all return its result or raise its error."""
    result: Any = None
    error: Exception | None = None
    if comm.rank == 0:
        try:
            result = work()
        except Exception as caught:
            error = caught
    _raise_together(comm, error)
    return comm.bcast(result, root=0)


def _raise_together(comm: MPI.Comm, error: Exception | None) -> None:
    """Raise on all processes if one has an error, so that none waits for it for ever."""
    messages: Sequence[str | None] = comm.allgather(
        None if error is None else f"{type(error).__name__}: {error}"
    )
    if error is not None:
        raise error
    for rank, message in enumerate(messages):
        if message is not None:
            raise GenerationError(f"Process {rank} stopped: {message}")
