"""How good a trained network is, in numbers that a user of a finite element code asks for."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spon import fem
from spon.losses import RelativeError

__all__ = ["Report", "report"]


@dataclass(frozen=True)
class Report:
    """What `report` measured.

    Attributes
    ----------
    errors : Tensor, shape (samples,)
        Relative error of each sample.
    norm : str
        Norm of the errors.
    boundary_violation : float
        Largest difference between a predicted function and its Dirichlet values.
    network_seconds : float
        Time of the network for one sample in a batch of all, encoding and decoding included.
    single_seconds : float
        Time of one call with one Function.
    solver_seconds : float or None
        Time of the finite element solver for one sample.
    """

    errors: Tensor
    norm: str
    boundary_violation: float
    network_seconds: float
    single_seconds: float
    solver_seconds: float | None

    def __str__(self) -> str:
        e = self.errors
        lines = [
            f"relative {self.norm} error on {len(e)} unseen samples: mean {e.mean():.2%}, "
            f"median {e.median():.2%}, worst {e.max():.2%}",
            f"violation of the boundary conditions: {self.boundary_violation:.1e}",
            f"time for a sample: network {1e3 * self.network_seconds:.3f} ms in a batch, "
            f"{1e3 * self.single_seconds:.2f} ms alone",
        ]
        if self.solver_seconds is not None:
            gain = self.solver_seconds / self.network_seconds
            lines[-1] += f"; finite elements {1e3 * self.solver_seconds:.2f} ms ({gain:.0f} times)"
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Mean, median and largest error, violation and times (seconds) as JSON-able values."""
        return {
            "norm": self.norm,
            "samples": len(self.errors),
            "mean_error": float(self.errors.mean()),
            "median_error": float(self.errors.median()),
            "largest_error": float(self.errors.max()),
            "boundary_violation": self.boundary_violation,
            "network_seconds": self.network_seconds,
            "single_seconds": self.single_seconds,
            "solver_seconds": self.solver_seconds,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_json` to a file, under a temporary name that is then renamed."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self.to_json(), indent=1) + "\n")
        os.replace(temporary, path)


def report(net: Any, data: Any, problem: Any = None, norm: str = "L2", repeats: int = 5) -> Report:
    """Measure a network on samples that it has not seen.

    Parameters
    ----------
    net : OperatorNetwork
    data : Dataset
        Test samples in the spaces of the network.
    problem : Problem, optional
        The solver that made the data; it is timed on the test inputs.
    norm : str, optional
        Norm of the relative errors, see `spon.losses.RelativeError`.
    repeats : int, optional
        Repetitions of each timing; the fastest counts.

    Returns
    -------
    Report

    Raises
    ------
    ValueError
        If the data belong to other spaces.
    """
    net.check_data(data)
    inputs, target, boundary = data.tensors(net.dtype)
    loss = RelativeError(net.decoder.space, norm).to(net.dtype)
    with torch.no_grad():
        prediction = net(*inputs, boundary=boundary)
        errors = loss.per_sample(prediction, target)
        batch = _fastest(lambda: net(*inputs, boundary=boundary), repeats) / len(data)
        few = min(len(data), 8)
        functions = [
            fem.to_function(
                x[:few], encoder.source if encoder.source is not None else encoder.space
            )
            for x, encoder in zip(inputs, net.encoders, strict=True)
            if encoder.data_signature is not None
        ]
        if len(functions) == len(inputs):
            first = [f[0] for f in functions]
            single = _fastest(lambda: net(*first), repeats)
        else:
            row = [x[:1] for x in inputs]
            single = _fastest(lambda: net(*row), repeats)
    predicted = net.decoder.function(prediction[:few], None if boundary is None else boundary[:few])
    violation = 0.0
    if boundary is None:
        violation = max(fem.boundary_violation(f, net.decoder.bcs) for f in predicted)
    solver = None if problem is None else _solver_seconds(problem, data, few)
    return Report(errors, norm, violation, batch, single, solver)


def _fastest(call: Any, repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _solver_seconds(problem: Any, data: Any, few: int) -> float:
    samples = [{name: x[i].numpy() for name, x in data.inputs.items()} for i in range(few)]
    times = []
    for sample in samples:
        for name, values in sample.items():
            fem.fill(problem.inputs[name], values)
        problem.reset()
        start = time.perf_counter()
        problem.solve()
        times.append(time.perf_counter() - start)
    return min(times)
