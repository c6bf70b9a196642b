"""How far the small Darcy set can be learned from 16 x 16 points.

Mirrored or turned, a sample of the square is a sample of the same law. Each batch of the training
is brought to one of the eight positions, and a prediction is the mean over all eight: a network
that keeps the symmetries, trained on eight times the samples. Its error on the training samples
themselves is nearly what the coefficients at 16 x 16 points leave open, whatever its size. The
errors of training, validation and test samples go with their standard errors.

    python benchmarks/operator_learning/symmetries.py --data DIR [--quick]
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from common import write
from torch import Tensor, nn

from operator_learning import problems
from operator_learning.ours import Operator
from operator_learning.problems import Level, Problem
from operator_learning.small_darcy import lattice, relative
from operator_learning.training import Budget, Optimiser, predict, train

NAME = "small_darcy_symmetries"
MODELS: tuple[dict[str, Any], ...] = (
    {"channels": 16, "solves": 2, "rounds": 2},
    {"channels": 16, "solves": 2, "rounds": 2, "degree": 2},
    {"channels": 32, "solves": 2, "rounds": 5, "degree": 2},
)
OPTIMISER = Optimiser(lr=4e-3, weight_decay=1e-2, batch_size=16, clip=1.0)


class Symmetric(nn.Module):
    """A network under the eight symmetries of the square: one a batch in training, else all."""

    def __init__(self, operator: Operator) -> None:
        super().__init__()
        self.operator = operator
        self._orders: dict[str, list[Tensor]] = {}

    def forward(self, x: Tensor, level: Level) -> Tensor:
        """(batch, inputs) to (batch, outputs)."""
        orders = self._orders.setdefault(level.name, positions(level))
        if self.training:
            orders = [orders[int(torch.randint(len(orders), ()))]]
        net, x = self.operator.on(level), level.coefficients(x)
        back = [net(x[:, order])[:, order.argsort()] for order in orders]
        return level.values(torch.stack(back).mean(0))


def positions(level: Level) -> list[Tensor]:
    """For each symmetry, which dof comes to the place of each dof."""
    n = level.grid.shape[0]
    points = lattice(level.mesh, n)
    number = np.empty((n + 1, n + 1), dtype=np.int64)
    number[tuple(points.T)] = np.arange(len(points))
    turned = [np.rot90(grid, k) for grid in (number, number.T) for k in range(4)]
    return [torch.from_numpy(grid[tuple(points.T)]) for grid in turned]


def measure(problem: Problem, model: dict[str, Any], seconds: float, seed: int) -> dict[str, Any]:
    """Train one network; its errors on all samples with their standard errors."""
    torch.manual_seed(seed)
    net = Symmetric(Operator(problem, "elliptic", model))
    budget = Budget(seconds, 100_000)
    trained = train(net, problem.train, problem.validation, OPTIMISER, budget, seed)
    sets = {"training": problem.train, "validation": problem.validation, **problem.tests}
    errors = {}
    for name, samples in sets.items():
        e = relative(predict(net, samples), samples.y)
        errors[name] = {"mean": float(e.mean()), "standard": float(e.std() / len(e) ** 0.5)}
        print(f"{model} {name}: {e.mean():.3%} +- {errors[name]['standard']:.3%}", flush=True)
    return {
        "model": model,
        "weights": sum(p.numel() for p in net.parameters()),
        "epochs": trained["epochs"],
        "errors": errors,
    }


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder of the small Darcy set")
    parser.add_argument("--quick", action="store_true", help="few samples, a second of training")
    parser.add_argument("--seconds", type=float, default=400.0, help="CPU seconds of a training")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    given = parser.parse_args()
    torch.set_num_threads(1)
    try:
        problem = problems.make("small_darcy", given.quick, data=given.data)
    except FileNotFoundError as error:
        sys.exit(str(error))
    seconds = 1.0 if given.quick else given.seconds
    models = MODELS[:1] if given.quick else MODELS
    results = [measure(problem, model, seconds, seed=0) for model in models]
    settings = {"seconds": seconds, "training": OPTIMISER.to_json()}
    write(f"operator_learning-{NAME}", results, settings, given.output, given.quick)


if __name__ == "__main__":
    main()
