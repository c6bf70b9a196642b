"""The rivals, each with at least six settings.

FNO and TFNO are those of neuraloperator, the DeepONet that of deepxde: install the extra
`benchmarks`. Message passing and POD are short enough to be written here, as their users would:
raw point values, plain means, no boundary condition.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from operator_learning.harness import Network, Tried, settings
from operator_learning.problems import Level, Problem, Samples

__all__ = ["RIVALS", "FourierOperator", "MessagePassing", "Pod", "deeponet", "fno", "missing"]


class MissingRivalError(ImportError):
    """A package that a rival comes from is not installed."""


def missing() -> list[str]:
    """Names of the rivals whose packages are not installed."""
    absent = []
    for name, packages in {"FNO": "neuralop", "TFNO": "neuralop", "DeepONet": "deepxde"}.items():
        try:
            _package(packages)
        except MissingRivalError:
            absent.append(name)
    return absent


def _package(name: str) -> Any:
    os.environ.setdefault("DDE_BACKEND", "pytorch")
    known = {"neuralop": "neuraloperator", "deepxde": "deepxde"}
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingRivalError(
            f"This rival comes from {known[name]}, which cannot be imported ({error}): install the "
            "extra with pip install -c install/constraints-benchmarks.txt '.[benchmarks]', or "
            "leave the rival out by --networks."
        ) from error


class Scaled(nn.Module):
    """Base of the rivals: inputs and outputs are scaled by mean and deviation over the samples."""

    scales: Tensor
    output_scales: Tensor

    def __init__(self, samples: Samples) -> None:
        super().__init__()
        (x, y), level, tiny = (samples.x, samples.y), samples.level, 1e-12
        # The mean of one component of a vector says nothing of another.
        y = y if level.sampled is None else level.sampled.batch(y)
        y = y.reshape(len(y), level.components, -1)
        self.register_buffer("scales", torch.stack([x.mean(), x.std().clamp_min(tiny)]))
        both = [y.mean(dim=(0, 2)), y.std(dim=(0, 2)).clamp_min(tiny)]
        self.register_buffer("output_scales", torch.stack(both))

    def normal(self, x: Tensor) -> Tensor:
        """Inputs with mean zero and deviation one."""
        return (x - self.scales[0]) / self.scales[1]

    def physical(self, y: Tensor) -> Tensor:
        """Outputs (batch, components, ...) of a network that makes mean zero and deviation one."""
        mean, deviation = self.output_scales.reshape(2, -1, *[1] * (y.ndim - 2))
        return y * deviation + mean


# ---- FNO and TFNO ------------------------------------------------------------------------------


class FourierOperator(Scaled):
    """An operator on images, on the grid of the level; the mask of the domain is an input, too."""

    def __init__(self, samples: Samples, core: nn.Module) -> None:
        super().__init__(samples)
        self.core = core

    def forward(self, x: Tensor, level: Level) -> Tensor:
        """(batch, inputs) to (batch, outputs)."""
        grid = level.grid
        image = grid.image(self.normal(x))
        if grid.mask is not None:
            mask = grid.mask.reshape(1, 1, *grid.shape).expand(len(x), -1, -1, -1)
            image = torch.cat([image * mask, mask], dim=1)
        return grid.values(self.physical(self.core(image)))


def fno(
    problem: Problem,
    modes: int,
    width: int,
    layers: int = 4,
    padding: float = 0.0,
    rank: float | None = None,
) -> nn.Module:
    """FNO of neuraloperator, or TFNO where a rank is given."""
    _package("neuralop")
    models: Any = import_module("neuralop.models")
    embedding = import_module("neuralop.layers.embeddings").GridEmbeddingND
    grid = problem.level.grid
    channels = 1 if grid.mask is None else 2
    options: dict[str, Any] = {
        # Both signs count, so that wave numbers go to half of it. A long side gets as many more as
        # it is longer; a grid cannot carry more modes than it has pixels.
        "n_modes": tuple(min(modes * round(n / min(grid.shape)), n) for n in grid.shape),
        "in_channels": channels,
        "out_channels": problem.level.components,
        "hidden_channels": width,
        "n_layers": layers,
        "domain_padding": padding or None,
        "positional_embedding": embedding(
            in_channels=channels,
            dim=2,
            grid_boundaries=[list(e) for e in zip(grid.start, grid.ends, strict=True)],
        ),
    }
    if rank is None:
        core = models.FNO(**options)
    else:
        core = models.TFNO(**options, factorization="Tucker", rank=rank)
    return FourierOperator(problem.train, core)


def _fno_settings(problem: Problem) -> list[dict[str, Any]]:
    few, many, most, batch = _sizes(problem)
    tried: Tried = [
        ({"modes": few, "width": 32}, {"lr": 5e-3, "weight_decay": 1e-4}),
        ({"modes": many, "width": 32}, {"lr": 5e-3, "weight_decay": 1e-4}),
        ({"modes": few, "width": 32, "padding": 0.1}, {"lr": 5e-3, "weight_decay": 1e-2}),
        ({"modes": many, "width": 16}, {"lr": 8e-3, "weight_decay": 1e-3}),
        (
            {"modes": few, "width": 32, "layers": 3},
            {"lr": 5e-3, "weight_decay": 1e-2, "batch_size": batch // 2},
        ),
        ({"modes": most, "width": 24}, {"lr": 4e-3, "weight_decay": 1e-2}),
        ({"modes": many, "width": 48, "padding": 0.25}, {"lr": 3e-3, "weight_decay": 1e-1}),
        (
            {"modes": many, "width": 24, "padding": 0.1, "layers": 5},
            {"lr": 5e-3, "weight_decay": 1e-2},
        ),
    ]
    return settings(tried, batch)


def _sizes(problem: Problem) -> tuple[int, int, int, int]:
    """Modes of three settings, and the batch size: small where an image is dear."""
    return (16, 24, 32, 8) if min(problem.level.grid.shape) > 20 else (8, 12, 16, 16)


def _tfno_settings(problem: Problem) -> list[dict[str, Any]]:
    few, many, _, batch = _sizes(problem)
    tried: Tried = [
        ({"modes": few, "width": 32, "rank": 0.1}, {"lr": 5e-3, "weight_decay": 1e-4}),
        ({"modes": few, "width": 32, "rank": 0.4}, {"lr": 5e-3, "weight_decay": 1e-2}),
        ({"modes": many, "width": 32, "rank": 0.1}, {"lr": 5e-3, "weight_decay": 1e-3}),
        (
            {"modes": few, "width": 48, "rank": 0.1, "padding": 0.25},
            {"lr": 4e-3, "weight_decay": 1e-2},
        ),
        ({"modes": few, "width": 64, "rank": 0.05}, {"lr": 3e-3, "weight_decay": 1e-2}),
        ({"modes": few, "width": 32, "rank": 0.1, "layers": 3}, {"lr": 8e-3, "weight_decay": 1e-3}),
    ]
    return settings(tried, batch)


# ---- DeepONet ----------------------------------------------------------------------------------


class DeepONet(Scaled):
    """A branch that sees the inputs of the training level, a trunk that may be asked anywhere."""

    def __init__(self, samples: Samples, core: nn.Module) -> None:
        super().__init__(samples)
        self.core = core

    def forward(self, x: Tensor, level: Level) -> Tensor:
        """(batch, inputs) to (batch, outputs)."""
        x = x if level.restrict is None else level.restrict.batch(x)
        out = self.core((self.normal(x), level.points))
        values = out[:, None] if level.components == 1 else out.movedim(-1, 1)
        return level.gather(self.physical(values))


class _Convolutions(nn.Module):
    """The usual branch for images: strided convolutions, then dense layers."""

    def __init__(self, level: Level, width: int, out: int) -> None:
        super().__init__()
        self.grid = level.grid
        steps = max(2, round(math.log2(min(level.grid.shape))) - 2)
        channels = [1, *(width * 2**i for i in range(steps))]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GELU()]
        self.convolutions = nn.Sequential(*layers, nn.Flatten())
        with torch.no_grad():
            size = self.convolutions(torch.zeros(1, 1, *level.grid.shape)).shape[1]
        self.dense = nn.Sequential(nn.Linear(size, out), nn.GELU(), nn.Linear(out, out))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs) to (batch, out)."""
        out: Tensor = self.dense(self.convolutions(self.grid.image(x)))
        return out


def deeponet(
    problem: Problem, width: int, depth: int = 3, basis: int = 128, branch: str = "dense"
) -> nn.Module:
    """DeepONet of deepxde; the branch is dense or made of convolutions."""
    _package("deepxde")
    networks: Any = import_module("deepxde.nn")
    level = problem.level
    wide = basis * level.components  # each component has products of its own
    first: list[Any] = [level.inputs, *[width] * depth, wide]
    if branch == "convolutions":
        first = [level.inputs, _Convolutions(level, 16, wide)]
    trunk = [2, *[width] * depth, wide]
    several: dict[str, Any] = {}
    if level.components > 1:
        several = {"num_outputs": level.components, "multi_output_strategy": "split_both"}
    core = networks.DeepONetCartesianProd(first, trunk, "gelu", "Glorot normal", **several)
    return DeepONet(problem.train, core)


def _deeponet_settings(problem: Problem) -> list[dict[str, Any]]:
    tried: Tried = [
        ({"width": 128}, {"lr": 2e-3, "weight_decay": 1e-3}),
        ({"width": 256, "basis": 256}, {"lr": 1e-3, "weight_decay": 1e-2}),
        ({"width": 128, "branch": "convolutions"}, {"lr": 2e-3, "weight_decay": 1e-3}),
        (
            {"width": 256, "basis": 256, "branch": "convolutions"},
            {"lr": 1e-3, "weight_decay": 1e-1},
        ),
        ({"width": 128, "depth": 5, "branch": "convolutions"}, {"lr": 1e-3, "weight_decay": 1e-2}),
        ({"width": 64, "depth": 4, "basis": 64}, {"lr": 3e-3, "weight_decay": 1e-2}),
    ]
    if problem.level.components > 1:
        # deepxde splits the outputs of dense branches only.
        tried = [s for s in tried if "branch" not in s[0]]
        tried += [
            ({"width": 256, "depth": 4}, {"lr": 1e-3, "weight_decay": 1e-1}),
            ({"width": 128, "depth": 5, "basis": 64}, {"lr": 1e-3, "weight_decay": 1e-2}),
            ({"width": 128, "depth": 2}, {"lr": 2e-3, "weight_decay": 1e-1}),
        ]
    return settings(tried)


# ---- message passing ---------------------------------------------------------------------------


class MessagePassing(Scaled):
    """Encode, process, decode on the points that share a cell, with raw values and positions.

    The message of an edge is a network of both ends, their distance and its length; messages are
    averaged or summed without weights, as in Pfaff et al. (2021), *Learning mesh-based simulation
    with graph networks*, section 3, without edge states.
    """

    def __init__(
        self, samples: Samples, channels: int, rounds: int, aggregation: str = "mean"
    ) -> None:
        super().__init__(samples)
        self.aggregation = aggregation
        c = channels
        self.encode = _dense([1 + 2, c, c])
        self.messages = nn.ModuleList(_dense([2 * c + 3, c, c], norm=True) for _ in range(rounds))
        self.updates = nn.ModuleList(_dense([2 * c, c, c], norm=True) for _ in range(rounds))
        self.decode = _dense([c, c, samples.level.components])

    def forward(self, x: Tensor, level: Level) -> Tensor:
        """(batch, inputs) to (batch, outputs)."""
        senders, receivers = level.edges
        features, counts = self._edges(level)
        x = self.normal(x if level.to_points is None else level.to_points.batch(x))
        where = level.points[:, None].expand(-1, len(x), -1)
        latent = self.encode(torch.cat([x.T[..., None], where], dim=-1))
        features = features[:, None].expand(-1, len(x), -1)
        for message, update in zip(self.messages, self.updates, strict=True):
            ends = [latent[senders], latent[receivers], features]
            received = torch.zeros_like(latent).index_add(
                0, receivers, message(torch.cat(ends, -1))
            )
            if self.aggregation == "mean":
                received = received / counts
            latent = latent + update(torch.cat([latent, received], dim=-1))
        return level.gather(self.physical(self.decode(latent).permute(1, 2, 0)))

    @staticmethod
    def _edges(level: Level) -> tuple[Tensor, Tensor]:
        senders, receivers = level.edges
        step = level.points[senders] - level.points[receivers]
        counts = torch.bincount(receivers, minlength=len(level.points)).clamp_min(1)
        return torch.cat([step, step.norm(dim=1, keepdim=True)], 1), counts[:, None, None]


def _message_passing(problem: Problem, **options: Any) -> nn.Module:
    return MessagePassing(problem.train, **options)


def _message_passing_settings(problem: Problem) -> list[dict[str, Any]]:
    large = problem.level.outputs > 1000  # where a round is dear
    tried: Tried = [
        ({"channels": 32, "rounds": 6}, {"lr": 2e-3, "weight_decay": 1e-4}),
        ({"channels": 32, "rounds": 6, "aggregation": "sum"}, {"lr": 1e-3, "weight_decay": 1e-4}),
        ({"channels": 24, "rounds": 10}, {"lr": 2e-3, "weight_decay": 1e-3}),
        ({"channels": 48, "rounds": 4}, {"lr": 2e-3, "weight_decay": 1e-3}),
        (
            {"channels": 16, "rounds": 8} if large else {"channels": 48, "rounds": 8},
            {"lr": 3e-3, "weight_decay": 1e-4},
        ),
        (
            {"channels": 32, "rounds": 10} if large else {"channels": 32, "rounds": 14},
            {"lr": 1e-3, "weight_decay": 1e-4},
        ),
    ]
    return settings(tried, batch_size=8 if large else 16)


# ---- POD + dense network -----------------------------------------------------------------------


class Pod(Scaled):
    """A dense network between coefficients of the first modes of inputs and of outputs.

    Bhattacharya, Hosseini, Kovachki and Stuart (2021), *Model reduction and neural networks for
    parametric PDEs*, section 2. Modes are singular vectors of the centred values.
    """

    analysis: Tensor
    synthesis: Tensor
    x_mean: Tensor
    y_mean: Tensor
    sizes: Tensor

    def __init__(
        self, samples: Samples, inputs: int, outputs: int, width: int, depth: int = 3
    ) -> None:
        super().__init__(samples)
        analysis, x_mean = _modes(samples.x, inputs)
        synthesis, y_mean = _modes(samples.y, outputs)
        # Coefficients of the inputs get deviation one, those of the outputs keep their sizes.
        deviation = ((samples.x - x_mean) @ analysis).std(0)
        self.register_buffer("analysis", analysis / deviation)
        self.register_buffer("x_mean", x_mean)
        self.register_buffer("synthesis", synthesis)
        self.register_buffer("y_mean", y_mean)
        sizes = ((samples.y - y_mean) @ synthesis).std(0)
        self.register_buffer("sizes", sizes)
        self.dense = _dense([analysis.shape[1], *[width] * depth, synthesis.shape[1]])
        if depth == 0:
            self._least_squares(samples)

    def _least_squares(self, samples: Samples) -> None:
        """Start a linear map where the sum of squares over the samples is least."""
        x = ((samples.x - self.x_mean) @ self.analysis).double()
        y = (((samples.y - self.y_mean) @ self.synthesis) / self.sizes).double()
        shift = 1e-8 * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
        (layer,) = self.dense
        with torch.no_grad():
            layer.weight.copy_(torch.linalg.solve(x.T @ x + shift, x.T @ y).T)
            layer.bias.zero_()

    def forward(self, x: Tensor, level: Level) -> Tensor:
        """(batch, inputs) to (batch, outputs)."""
        x = x if level.restrict is None else level.restrict.batch(x)
        coefficients = self.dense((x - self.x_mean) @ self.analysis) * self.sizes
        y = coefficients @ self.synthesis.T + self.y_mean
        return y if level.prolong is None else level.prolong.batch(y)


def _modes(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    mean = values.mean(0)
    left, sizes, _ = torch.linalg.svd((values - mean).T.double(), full_matrices=False)
    # What is left of fewer samples than modes, or of values that never vary, is round-off.
    count = min(count, int((sizes > 1e-5 * sizes[0]).sum()))
    return left[:, :count].float().contiguous(), mean


def _pod(problem: Problem, **options: Any) -> nn.Module:
    return Pod(problem.train, **options)


def _pod_settings(problem: Problem) -> list[dict[str, Any]]:
    tried: Tried = [
        ({"inputs": 64, "outputs": 32, "width": 256}, {"lr": 1e-3, "weight_decay": 1e-2}),
        ({"inputs": 128, "outputs": 64, "width": 256}, {"lr": 1e-3, "weight_decay": 1e-1}),
        (
            {"inputs": 128, "outputs": 64, "width": 512, "depth": 2},
            {"lr": 1e-3, "weight_decay": 1.0},
        ),
        ({"inputs": 200, "outputs": 100, "width": 256}, {"lr": 2e-3, "weight_decay": 1e-2}),
        (
            {"inputs": 64, "outputs": 64, "width": 128, "depth": 4},
            {"lr": 3e-3, "weight_decay": 1e-2},
        ),
        ({"inputs": 200, "outputs": 100, "width": 512}, {"lr": 5e-4, "weight_decay": 1.0}),
        (
            {"inputs": 400, "outputs": 200, "width": 0, "depth": 0},
            {"lr": 3e-3, "weight_decay": 1e-2},
        ),  # linear, from its least squares
    ]
    return settings(tried, batch_size=32)


# ---- shared ------------------------------------------------------------------------------------


def _dense(widths: Sequence[int], norm: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.GELU()]
    layers.pop()
    return nn.Sequential(*layers, *([nn.LayerNorm(widths[-1])] if norm else []))


_rival = partial(Network, sources=(__file__,))

RIVALS = {
    network.name: network
    for network in (
        _rival("FNO", fno, _fno_settings, note="neuraloperator"),
        _rival("TFNO", fno, _tfno_settings, note="neuraloperator, Tucker factorisation"),
        _rival(
            "DeepONet",
            deeponet,
            _deeponet_settings,
            note="deepxde; inputs of another level are brought to that of training, the trunk is "
            "asked at the points of the other",
        ),
        _rival(
            "message passing",
            _message_passing,
            _message_passing_settings,
            note="values and positions at the points, no encoder, decoder, levels or conditions",
        ),
        _rival(
            "POD + MLP",
            _pod,
            _pod_settings,
            note="inputs of another level are brought to that of training, outputs interpolated",
        ),
    )
}
