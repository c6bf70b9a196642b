"""Compare operator networks with their rivals on one problem.

python benchmarks/operator_learning/run.py --problem small_darcy --data DIR
python benchmarks/operator_learning/run.py --problem poisson --networks FNO,Spectral --seconds 600

Finished runs are kept in benchmarks/results/operator_learning/ (those of --quick in results/cache/)
and not run again; without --networks all of them are collected in
benchmarks/results/operator_learning-PROBLEM.json.
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
from operator_learning.harness import Network, Plan, Records, compare
from operator_learning.ours import ABLATIONS, OURS
from operator_learning.rivals import RIVALS, missing
from operator_learning.training import Budget

NETWORKS: dict[str, Network] = {**OURS, **ABLATIONS, **RIVALS}
RUNS, CACHE = RESULTS / "operator_learning", RESULTS / "cache"


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--problem", required=True, choices=list(problems.PROBLEMS))
    add("--networks", help=f"some of: {', '.join(NETWORKS)}; separated by commas")
    add("--quick", action="store_true", help="few samples, two settings, seconds of training")
    add("--seconds", type=float, help="CPU seconds of a training; the problem's own by default")
    add("--epochs", type=int, help="passes over the samples at most; the problem's by default")
    add("--tuning", type=float, default=1 / 3, help="share of the budget of a tuning run")
    add("--seeds", type=int, default=3, help="runs with the best setting")
    add("--settings", type=int, help="only the first so many settings of each network")
    add("--again", default="", help="networks whose finished runs are thrown away first")
    add("--data", help="folder of a data set that is not part of the repository")
    add("--cache", type=Path, help="folder of the finished runs")
    add("--output", type=Path, help="JSON file to write")
    return parser.parse_args()


def chosen(names: str | None, problem: problems.Problem) -> list[Network]:
    """The networks that were asked for, by default those of the problem that can be had."""
    if names is None:
        of_problem = problem.networks or tuple({**OURS, **RIVALS})
        absent = [name for name in missing() if name in of_problem]
        if absent:
            print(f"left out, not installed (the extra 'benchmarks'): {', '.join(absent)}")
        return [NETWORKS[name] for name in of_problem if name not in absent]
    wanted = [name.strip() for name in names.split(",")]
    unknown = [name for name in wanted if name not in NETWORKS]
    if unknown:
        sys.exit(f"No network is called {', '.join(unknown)}; there are {', '.join(NETWORKS)}.")
    return [NETWORKS[name] for name in wanted]


def plan_of(given: argparse.Namespace, problem: problems.Problem) -> Plan:
    """Budget and number of runs."""
    seconds, epochs = (0.5, 20) if given.quick else (problem.seconds, problem.epochs)
    return Plan(
        Budget(given.seconds or seconds, given.epochs or epochs),
        tuning=given.tuning,
        seeds=tuple(range(2 if given.quick else given.seeds)),
        settings=given.settings or (2 if given.quick else None),
    )


def main() -> None:
    """Run and write."""
    given = options()
    torch.set_num_threads(1)
    extra: dict[str, Any] = {} if given.data is None else {"data": given.data}
    try:
        problem = problems.make(given.problem, given.quick, **extra)
    except FileNotFoundError as error:
        sys.exit(str(error))
    networks, plan = chosen(given.networks, problem), plan_of(given, problem)
    name = f"{problem.name}{'-quick' if given.quick else ''}.jsonl"
    again = frozenset(filter(None, given.again.split(",")))
    kept = CACHE if given.quick else RUNS
    records = Records((given.cache or kept) / name, again)
    results = {
        "networks": compare(problem, networks, plan, records),
        "solvers": problem.solvers(given.quick),
        "floors": problem.floors(),
        "reference": problem.reference(),
    }
    if given.networks is not None and given.output is None:
        print("some networks only: give --output to write a JSON file, or run without --networks")
        return
    settings = {
        "problem": problem.name,
        "title": problem.title,
        **problem.about,
        "outputs": problem.level.outputs,
        "tests": {key: len(samples) for key, samples in problem.tests.items()},
        "seconds": plan.budget.seconds,
        "epochs_at_most": plan.budget.epochs,
        "tuning_share": plan.tuning,
        "seeds": list(plan.seeds),
        "tuning_seed": plan.tuning_seed,
    }
    write(f"operator_learning-{problem.name}", results, settings, given.output, given.quick)


if __name__ == "__main__":
    main()
