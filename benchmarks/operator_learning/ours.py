"""Networks of spon: one entry of `OURS` for each processor, with the settings that are tried."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import spon
from operator_learning.harness import Network, Tried, settings
from operator_learning.problems import Level, Problem

__all__ = ["ABLATIONS", "OURS", "Operator", "processor"]


class Operator(nn.Module):
    """An `OperatorNetwork` behind the interface of the comparison.

    On a level other than that of training, the network is moved by `OperatorNetwork.on`. Without
    `promised` the decoder keeps the conditions of the level, not its promises.
    """

    def __init__(
        self, problem: Problem, kind: str, options: dict[str, Any], promised: bool = True
    ) -> None:
        super().__init__()
        level = problem.level
        promises = level.promises if promised else {}
        self.net = spon.OperatorNetwork(
            spon.Encoder(level.V),
            spon.processors.create(kind, options),
            spon.Decoder(level.U, bcs=level.rule, **promises),
        )
        samples = problem.train
        known = [level.coefficients(samples.x)], level.output_coefficients(samples.y)
        self.net.calibrate(*known)
        self.net.fit_linear(*known)
        # In a plain dict: they share the weights, which count once.
        self._moved = {level.name: self.net}

    def on(self, level: Level) -> spon.OperatorNetwork:
        """The network on the mesh of a level."""
        if level.name not in self._moved:
            self._moved[level.name] = self.net.on(level.mesh)
        return self._moved[level.name]

    def forward(self, x: Tensor, level: Level) -> Tensor:
        """(batch, inputs) to (batch, outputs)."""
        return level.values(self.on(level)(level.coefficients(x)))


def processor(
    name: str,
    kind: str,
    tried: Tried,
    note: str = "",
    promised: bool = True,
    batch_size: int | None = None,
) -> Network:
    """An entry of the comparison.

    Parameters
    ----------
    name : str
        In tables and on the command line.
    kind : str
        In the registry of processors.
    tried : sequence of (processor options, options of `training.Optimiser`)
    note : str, optional
    promised : bool, optional
        Whether the decoder keeps the promises of the problem, beside its conditions.
    batch_size : int, optional
        Of settings that do not say theirs; by default 16, or 8 where there are many outputs.
    """

    def build(problem: Problem, **options: Any) -> nn.Module:
        return Operator(problem, kind, options, promised)

    package = Path(inspect.getfile(spon.processors)).parent
    sources = tuple(str(p) for p in sorted(package.glob("*.py")))
    return Network(
        name, build, partial(_settings, tried, batch_size), ours=True, note=note, sources=sources,
        double=True,
    )  # fmt: skip


def _settings(tried: Tried, batch_size: int | None, problem: Problem) -> list[dict[str, Any]]:
    if batch_size is None:
        batch_size = 8 if problem.level.outputs > 1000 else 16
    return settings(tried, batch_size=batch_size)


_SPECTRAL: Tried = [
    ({"channels": 24, "layers": 4, "modes": 100}, {"lr": 4e-3, "weight_decay": 1e-4}),
    ({"channels": 24, "layers": 4, "modes": 100}, {"lr": 4e-3, "weight_decay": 1e-1}),
    ({"channels": 32, "layers": 4, "modes": 150}, {"lr": 4e-3, "weight_decay": 1e-1}),
    ({"channels": 24, "layers": 6, "modes": 150}, {"lr": 3e-3, "weight_decay": 1e-1}),
    ({"channels": 48, "layers": 4, "modes": 100}, {"lr": 3e-3, "weight_decay": 1e-1}),
    ({"channels": 16, "layers": 3, "modes": 200}, {"lr": 5e-3, "weight_decay": 1e-2}),
    ({"channels": 16, "layers": 2, "modes": 400}, {"lr": 1e-3, "weight_decay": 1e-2}),
]
_MULTIGRID: Tried = [
    ({"channels": 16, "layers": 3, "width": 8}, {"lr": 4e-3, "weight_decay": 1e-4}),
    ({"channels": 24, "layers": 4, "width": 8}, {"lr": 4e-3, "weight_decay": 1e-2}),
    ({"channels": 24, "layers": 4, "width": 12}, {"lr": 3e-3, "weight_decay": 1e-1}),
    (
        {"channels": 24, "layers": 4, "width": 8, "smoother": "stencil"},
        {"lr": 3e-3, "weight_decay": 1e-2},
    ),
    ({"channels": 32, "layers": 5, "width": 8}, {"lr": 3e-3, "weight_decay": 1e-2}),
    ({"channels": 16, "layers": 3, "width": 8, "pre": 2, "post": 2}, {"lr": 4e-3}),
]
_RESOLVENT: Tried = [
    ({"channels": 24, "layers": 3}, {"lr": 4e-3, "weight_decay": 1e-4}),
    ({"channels": 24, "layers": 4, "width": 4}, {"lr": 4e-3, "weight_decay": 1e-2}),
    ({"channels": 32, "layers": 4, "width": 4}, {"lr": 3e-3, "weight_decay": 1e-1}),
    (
        {"channels": 24, "layers": 4, "width": 4, "alphas": 7, "smallest": 1e-4},
        {"lr": 4e-3, "weight_decay": 1e-2},
    ),
    ({"channels": 32, "layers": 5, "width": 2}, {"lr": 3e-3, "weight_decay": 1e-2}),
    ({"channels": 16, "layers": 3, "width": 4, "alphas": 4}, {"lr": 5e-3, "weight_decay": 1e-3}),
]
_ELLIPTIC: Tried = [
    ({"channels": 16, "solves": 2, "rounds": 2}, {"lr": 4e-3, "weight_decay": 1e-2, "clip": 1.0}),
    ({"channels": 16, "solves": 2, "rounds": 0}, {"lr": 4e-3, "weight_decay": 1e-2, "clip": 1.0}),
    (
        {"channels": 16, "solves": 2, "rounds": 2, "degree": 2},
        {"lr": 4e-3, "weight_decay": 1e-2, "clip": 1.0},
    ),
    (
        {"channels": 24, "solves": 3, "rounds": 4, "degree": 2},
        {"lr": 4e-3, "weight_decay": 1e-2, "clip": 1.0},
    ),
    (
        {"channels": 24, "solves": 3, "rounds": 4, "degree": 2},
        {"lr": 2e-3, "weight_decay": 1e-1, "clip": 1.0},
    ),
    (
        {"channels": 16, "solves": 4, "rounds": 4, "degree": 2},
        {"lr": 4e-3, "weight_decay": 1e-2, "clip": 1.0},
    ),
]
_GRAPH: Tried = [
    ({"channels": 32, "rounds": 6}, {"lr": 2e-3, "weight_decay": 1e-4}),
    ({"channels": 24, "rounds": 10}, {"lr": 2e-3, "weight_decay": 1e-3}),
    ({"channels": 48, "rounds": 4}, {"lr": 2e-3, "weight_decay": 1e-3}),
    ({"channels": 32, "rounds": 10}, {"lr": 3e-3, "weight_decay": 1e-3}),
    ({"channels": 48, "rounds": 8}, {"lr": 2e-3, "weight_decay": 1e-3}),
    ({"channels": 16, "rounds": 8}, {"lr": 4e-3, "weight_decay": 1e-4}),
]

_GRAPH_MULTIGRID: Tried = [
    ({}, {"lr": 3e-3, "weight_decay": 1e-4}),
    ({}, {"lr": 3e-3, "weight_decay": 1e-2}),
    ({"channels": [24, 24, 16, 12]}, {"lr": 4e-3, "weight_decay": 1e-3}),
    ({"channels": [48, 48, 24, 16]}, {"lr": 2e-3, "weight_decay": 1e-2}),
    ({"layers": 2}, {"lr": 2e-3, "weight_decay": 1e-2}),
    ({"channels": [32, 32, 24, 16], "rounds": [3, 3, 2, 1]}, {"lr": 2e-3, "weight_decay": 1e-2}),
]
_ATTENTION: Tried = [
    ({}, {"lr": 2e-3, "weight_decay": 1e-4}),
    ({}, {"lr": 1e-3, "weight_decay": 1e-2}),
    ({"tokens": 128}, {"lr": 1e-3, "weight_decay": 1e-2}),
    ({"channels": 48}, {"lr": 1e-3, "weight_decay": 1e-2}),
    ({"layers": 4}, {"lr": 1e-3, "weight_decay": 1e-2}),
    ({}, {"lr": 2e-3, "weight_decay": 1e-1}),
]
_DEEPONET: Tried = [
    ({}, {"lr": 3e-3, "weight_decay": 1e-4}),
    ({}, {"lr": 1e-3, "weight_decay": 1e-2}),
    ({"trunk": "modes"}, {"lr": 3e-3, "weight_decay": 1e-2}),
    ({"trunk": "modes"}, {"lr": 1e-3, "weight_decay": 1e-4}),
    ({"functions": 128}, {"lr": 2e-3, "weight_decay": 1e-2}),
    ({"functionals": 128}, {"lr": 2e-3, "weight_decay": 1e-2}),
]

_START = "starts from least squares of its linear path where these leave less than a tenth"
_CYCLE = f"made of solves of -Laplace + c at first; {_START}"
_SOLVER = (
    "solves -div(A grad w) + c w = f - div g with learned A, c, f and g; where the data come from "
    "such an equation, it has to learn the coefficients' law alone, and knows more than the others"
)

OURS = {
    network.name: network
    for network in (
        processor("Spectral", "spectral", _SPECTRAL, note=_START),
        processor("Multigrid", "multigrid", _MULTIGRID, note=_CYCLE),
        processor("Resolvent", "resolvent", _RESOLVENT, note=_CYCLE),
        processor("Elliptic", "elliptic", _ELLIPTIC, note=_SOLVER),
        processor("GraphMultigrid", "graph_multigrid", _GRAPH_MULTIGRID),
        processor("Attention", "attention", _ATTENTION),
        processor("DeepONet (spon)", "deeponet", _DEEPONET, note="integrals in place of sensors"),
        processor("Graph", "graph", _GRAPH, note="message passing between encoder and decoder"),
    )
}

# For problems that name them: what a part of a network is good for.
ABLATIONS = {
    network.name: network
    for network in (
        processor(
            "Spectral without promise",
            "spectral",
            _SPECTRAL,
            note="essential conditions only",
            promised=False,
        ),
    )
}
