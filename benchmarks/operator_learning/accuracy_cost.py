"""Accuracy against cost: degree 2 against degree 1, and multigrid against a single level.

The first part trains the same networks in spaces of degree 1 and 2 on meshes of the unit square,
with one budget for all, and compares what they predict with one reference for all spaces. The
second part trains networks with and without coarse levels on the plate with holes, with budgets
that grow. Finished runs are kept in benchmarks/results/operator_learning/ and not run again.

    python benchmarks/operator_learning/accuracy_cost.py [--quick]
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from common import RESULTS, write

from operator_learning import problems
from operator_learning.harness import Network, Records, run
from operator_learning.ours import processor
from operator_learning.problems import Problem
from operator_learning.square import DarcySquare
from operator_learning.training import Budget

NAME = "accuracy_cost"
SPACES = [(1, 8), (1, 16), (1, 32), (1, 64), (2, 4), (2, 8), (2, 16), (2, 32)]
SQUARE_SECONDS = 20.0
BUDGETS = (10.0, 30.0, 60.0)
EPOCHS = 100_000  # the budget is in seconds alone
_ELLIPTIC = {"lr": 4e-3, "weight_decay": 1e-2, "clip": 1.0}
_SPECTRAL = {"lr": 4e-3, "weight_decay": 1e-2}
_MESSAGES = {"lr": 2e-3, "weight_decay": 1e-3}
_CYCLES = {"lr": 4e-3, "weight_decay": 1e-3}


def _network(name: str, kind: str, model: dict[str, Any], training: dict[str, Any]) -> Network:
    return processor(name, kind, [(model, training)], batch_size=8)


# Settings are not searched here: both sides of a comparison get the same one.
ON_SQUARE = (
    _network("Elliptic", "elliptic", {"channels": 16, "solves": 2, "rounds": 1}, _ELLIPTIC),
    _network("Spectral", "spectral", {"channels": 24, "layers": 4, "modes": 60}, _SPECTRAL),
)
# Pair that a network belongs to, and the network. "meshes" takes coarse levels from a hierarchy of
# meshes, and that of training is the coarsest of its own: a single level is left.
ON_PLATE = (
    ("messages", _network("Graph", "graph", {"channels": 32, "rounds": 6}, _MESSAGES)),
    ("messages", _network("GraphMultigrid", "graph_multigrid", {}, _MESSAGES)),
    ("cycles", _network("Multigrid, one level", "multigrid", {"coarse": "meshes"}, _CYCLES)),
    ("cycles", _network("Multigrid", "multigrid", {"coarse": "lattice"}, _CYCLES)),
)


def measure(
    problem: Problem, network: Network, seconds: float, seeds: int, records: Records
) -> dict[str, Any]:
    """Train one network with a budget and several seeds, and keep what a plot needs."""
    (setting,) = network.settings(problem)
    budget = Budget(seconds, EPOCHS)
    runs = [run(problem, network, setting, seed, budget, records) for seed in range(seeds)]
    keys = ("weights", "epochs", "cpu_seconds", "setup_seconds", "inference_ms", "single_ms")
    return {
        "network": network.name,
        "seconds": seconds,
        "dofs": problem.level.outputs,
        "setting": setting,
        "runs": [{k: r[k] for k in (*keys, "validation", "tests")} for r in runs],
    }


def degrees(quick: bool, seconds: float, seeds: int) -> list[dict[str, Any]]:
    """Both degrees on several meshes."""
    rows = []
    for degree, cells in [(1, 8), (2, 4)] if quick else SPACES:
        name = f"darcy_square_p{degree}_{cells}"
        problem = DarcySquare.make(name, quick, degree, cells)
        networks = [measure(problem, n, seconds, seeds, _records(quick)) for n in ON_SQUARE]
        solvers = problem.solvers(quick)
        rows.append({"degree": degree, "cells": cells, "networks": networks, "solvers": solvers})
    return rows


def levels(quick: bool, budgets: tuple[float, ...], seeds: int) -> list[dict[str, Any]]:
    """Networks with and without coarse levels."""
    problem = problems.make("darcy_holes", quick)
    return [
        {**measure(problem, network, seconds, seeds, _records(quick)), "pair": pair}
        for pair, network in ON_PLATE
        for seconds in budgets
    ]


def _records(quick: bool) -> Records:
    kept = RESULTS / ("cache" if quick else "operator_learning")
    return Records(kept / f"{NAME}{'-quick' if quick else ''}.jsonl")


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two spaces, seconds of training")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each network")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    given = parser.parse_args()
    torch.set_num_threads(1)
    seeds = 1 if given.quick else given.seeds
    seconds, budgets = (0.5, (0.5, 1.0)) if given.quick else (SQUARE_SECONDS, BUDGETS)
    results = {
        "levels": levels(given.quick, budgets, seeds),
        "degrees": degrees(given.quick, seconds, seeds),
    }
    settings = {"seconds": seconds, "budgets": budgets, "seeds": seeds}
    write(f"operator_learning-{NAME}", results, settings, given.output, given.quick)


if __name__ == "__main__":
    main()
