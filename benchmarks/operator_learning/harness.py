"""Tuning by validation, then several seeds with the best setting; every run is kept at once.

Each finished run is a line of JSON in a file of the cache folder. Starting again runs what is
missing: a kill costs one run. A run is known by its problem, network, setting, seed and budget.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from operator_learning import training
from operator_learning.problems import Problem, Samples
from operator_learning.training import CHECKS, Budget, Optimiser, predict, train

__all__ = ["Network", "Plan", "Records", "Tried", "compare", "settings"]

# Options of the network and options of `Optimiser`, for each setting.
Tried = Sequence[tuple[dict[str, Any], dict[str, Any]]]


@dataclass(frozen=True)
class Network:
    """A family of networks with the settings that are tried.

    Attributes
    ----------
    name : str
    build : callable
        ``build(problem, **setting["model"])`` returns a module that is called with input values
        and a level. It may look at ``problem.train``, not at the other samples.
    settings : callable
        From a problem to a list of ``{"model": {...}, "training": {...}}``; the latter are
        arguments of `Optimiser`.
    ours : bool
    note : str
        What a reader should know of how it is used.
    sources : tuple of path
        Files whose change makes finished runs doubtful.
    double : bool
        Whether it can be evaluated in float64, too, for problems that ask for that.
    """

    name: str
    build: Callable[..., nn.Module]
    settings: Callable[[Problem], list[dict[str, Any]]]
    ours: bool = False
    note: str = ""
    sources: tuple[str, ...] = ()
    double: bool = False

    @property
    def code(self) -> str:
        """A digest of the sources and of the training loop."""
        files = (*self.sources, training.__file__)
        return hashlib.sha256(b"".join(Path(f).read_bytes() for f in files)).hexdigest()[:12]


@dataclass(frozen=True)
class Plan:
    """How a comparison is run.

    Attributes
    ----------
    budget : Budget
        Of a final run.
    tuning : float
        Share of it that a tuning run gets.
    seeds : tuple of int
        Of the final runs.
    tuning_seed : int
        Of the tuning runs; none of `seeds`, so that the choice did not see them.
    settings : int or None
        Only so many settings of each network.
    """

    budget: Budget
    tuning: float = 1 / 3
    seeds: tuple[int, ...] = (0, 1, 2)
    tuning_seed: int = 100
    settings: int | None = None

    @property
    def tuning_budget(self) -> Budget:
        """Budget of a tuning run."""
        return Budget(
            self.budget.seconds * self.tuning, max(1, round(self.budget.epochs * self.tuning))
        )


@dataclass
class Records:
    """Finished runs in a file of JSON lines.

    Attributes
    ----------
    path : Path
    again : set of str
        Networks whose old runs do not count.
    """

    path: Path
    again: frozenset[str] = frozenset()
    _known: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            return
        for line in self.path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line that a kill cut off
            if record["network"] not in self.again:
                self._known[record["key"]] = record

    def get(self, key: str) -> dict[str, Any] | None:
        """The record of a finished run."""
        return self._known.get(key)

    def add(self, record: dict[str, Any]) -> None:
        """Keep a run: one write at the end of the file, so that runs side by side do not mix."""
        self._known[record["key"]] = record
        with self.path.open("a") as file:
            # After a line that was cut off, a new one.
            file.write("\n" * self._cut() + json.dumps(record, allow_nan=False) + "\n")

    def _cut(self) -> bool:
        data = self.path.read_bytes()
        return bool(data) and not data.endswith(b"\n")


def settings(tried: Tried, batch_size: int = 16) -> list[dict[str, Any]]:
    """What `Network.settings` returns, with a batch size for those that do not say theirs."""
    return [{"model": m, "training": {"batch_size": batch_size, **t}} for m, t in tried]


def compare(
    problem: Problem, networks: Sequence[Network], plan: Plan, records: Records
) -> list[dict[str, Any]]:
    """Tune each network, run the best setting with each seed, and collect.

    Returns
    -------
    list of dict
        One for each network: ``network``, ``ours``, ``note``, ``best`` (the setting), ``tried``
        (setting, validation error, weights and costs of each tuning run), ``runs``, and
        ``summary``: for each test set and measure the mean over the seeds, the standard deviation
        (of a sample), the least and the largest.
    """
    found, shown = [], plan.seeds[0]
    for network in networks:
        tried = [
            run(
                problem, network, setting, plan.tuning_seed, plan.tuning_budget, records, test=False
            )
            for setting in network.settings(problem)[: plan.settings]
        ]
        if all(r["validation"] is None for r in tried):
            print(f"{network.name}: no setting could be trained", flush=True)
            continue
        best = min(tried, key=lambda r: math.inf if r["validation"] is None else r["validation"])
        runs = [
            run(problem, network, best["setting"], seed, plan.budget, records, seed == shown)
            for seed in plan.seeds
        ]
        found.append(
            {
                "network": network.name,
                "ours": network.ours,
                "note": network.note,
                "best": best["setting"],
                "tried": [_short(r) for r in tried],
                "runs": runs,
                "summary": summary(runs),
            }
        )
    return found


def run(
    problem: Problem,
    network: Network,
    setting: dict[str, Any],
    seed: int,
    budget: Budget,
    records: Records,
    show: bool = False,
    test: bool = True,
) -> dict[str, Any]:
    """Train and measure one network, or take the record of the run if there is one.

    With `show` what `Problem.shown` returns is part of it; without `test` the test samples are left
    alone, as befits runs that choose a setting.

    Returns
    -------
    dict
        The arguments that tell one run from another, ``weights``, ``setup_seconds``, what
        `training.train` returns, ``tests`` (mean and worst error of each measure of each test
        set), ``inference_ms`` a sample in a batch and ``single_ms`` for one alone, both with
        encoding, on the training level. Errors are None where the training diverged, ``tests``
        also without `test`.
    """
    identity = {
        "problem": problem.name,
        "data": problem.about,
        "network": network.name,
        "setting": setting,
        "seed": seed,
        "seconds": budget.seconds,
        "epochs_at_most": budget.epochs,
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    known = records.get(key)
    if known is not None:
        if known.get("code") != network.code:
            print(
                f"{network.name}: a finished run was made by other code than this; "
                f"--again '{network.name}' runs it anew",
                flush=True,
            )
        return known
    torch.manual_seed(seed)
    start = time.process_time()
    model = network.build(problem, **setting["model"])
    setup = time.process_time() - start
    optimiser = Optimiser(**setting["training"])
    checks = CHECKS if test else CHECKS // 2
    data = (problem.train, problem.validation)
    trained = train(model, *data, optimiser, budget, seed, setup, checks)
    record = {
        "key": key,
        **identity,
        "code": network.code,
        "weights": sum(p.numel() * (2 if p.is_complex() else 1) for p in model.parameters()),
        "setup_seconds": setup,
        **trained,
        **_inference(model, problem.validation),
        "tests": None,
    }
    if test and trained["validation"] is not None:
        double = problem.double and network.double
        record.update(_tests(problem, model.double() if double else model, double, show))
    records.add(record)
    _print(record)
    return record


def _tests(problem: Problem, model: nn.Module, double: bool, show: bool) -> dict[str, Any]:
    tests: dict[str, Any] = {}
    found: dict[str, Any] = {"tests": tests}
    for name, samples in problem.tests.items():
        x = samples.x.double() if double else samples.x
        prediction = predict(model, Samples(x, samples.y, samples.level))
        measured = problem.measures(name, prediction)
        tests[name] = {what: _mean_and_largest(e) for what, e in measured.items()}
        if show and len(tests) == 1 and (shown := problem.shown(prediction)) is not None:
            found["shown"] = shown
    return found


def _mean_and_largest(values: Tensor) -> dict[str, float | None]:
    """NaN is a sample that has no such value; None are all of them."""
    there = values[~values.isnan()]
    if not len(there):
        return {"mean": None, "largest": None}
    return {"mean": float(there.mean()), "largest": float(there.max())}


def _inference(model: nn.Module, samples: Samples, seconds: float = 0.3) -> dict[str, float]:
    """CPU milliseconds a sample, in a batch of up to 50 and one by one."""
    some = samples[:50]
    return {
        "inference_ms": 1e3 * _cpu(lambda: predict(model, some), seconds) / len(some),
        "single_ms": 1e3 * _cpu(lambda: predict(model, some[:1]), seconds),
    }


def _cpu(call: Callable[[], Any], seconds: float) -> float:
    """Median CPU seconds of a call."""
    call()
    times: list[float] = []
    while not times or (sum(times) < seconds and len(times) < 50):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return statistics.median(times)


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread over the runs that were trained."""
    whole = [r for r in runs if r["tests"] is not None]
    out: dict[str, Any] = {"runs": len(whole)}
    if not whole:
        return out
    for test, measures in whole[0]["tests"].items():
        means = {what: [r["tests"][test][what]["mean"] for r in whole] for what in measures}
        out[test] = {
            what: spread(there)
            for what, values in means.items()
            if (there := [v for v in values if v is not None])
        }
    out["validation"] = spread([r["validation"] for r in whole])
    for what in ("cpu_seconds", "epochs", "inference_ms", "single_ms", "setup_seconds"):
        out[what] = statistics.fmean(r[what] for r in whole)
    memory = [r["memory_mb"] for r in whole if r["memory_mb"] is not None]
    out["memory_mb"] = max(memory) if memory else None
    out["weights"] = whole[0]["weights"]
    return out


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation of a sample, least, largest."""
    return {
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
        "least": min(values),
        "largest": max(values),
    }


def _short(record: dict[str, Any]) -> dict[str, Any]:
    keys = ("setting", "validation", "weights", "cpu_seconds", "epochs", "memory_mb", "code")
    return {k: record[k] for k in keys}


def _print(r: dict[str, Any]) -> None:
    tests = ""
    if r["tests"] is not None:
        tests = ", ".join(f"{k} {v['error']['mean']:.3%}" for k, v in r["tests"].items())
    error = "diverged" if r["validation"] is None else f"{r['validation']:.3%}"
    print(
        f"{r['network']:18s} seed {r['seed']:3d} {r['weights']:9,d} weights "
        f"{r['cpu_seconds']:6.1f} s {r['epochs']:6.1f} epochs: validation {error}; {tests} "
        f"{json.dumps(r['setting'])}",
        flush=True,
    )
