"""How good a trained network is, in numbers that a user of a finite element code asks for."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spon import fem
from spon.history import replaced
from spon.losses import RelativeError
from spon.training import evaluate

__all__ = ["Report", "report"]

_BATCH = 64


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
        Largest difference between a dof of a predicted function and its Dirichlet value, over all
        samples.
    network_seconds : float
        Time of the network for one sample in batches of 64, encoding and decoding included.
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
            f"relative {self.norm} error on {len(e)} unseen samples: mean {100 * e.mean():.3g}%, "
            f"median {100 * e.median():.3g}%, worst {100 * e.max():.3g}%",
            f"violation of the boundary conditions: {self.boundary_violation:.1e}",
            f"time for a sample: network {1e3 * self.network_seconds:.3f} ms in a batch, "
            f"{1e3 * self.single_seconds:.2f} ms alone",
        ]
        if self.solver_seconds is not None:
            gain = self.solver_seconds / self.network_seconds
            lines[-1] += (
                f"; finite elements {1e3 * self.solver_seconds:.2f} ms "
                f"({gain:.2g} times the network's)"
            )
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
        with replaced(path) as temporary:
            temporary.write_text(json.dumps(self.to_json(), indent=1) + "\n")


def report(net: Any, data: Any, problem: Any = None, norm: str = "L2", repeats: int = 5) -> Report:
    """Measure a network on samples that it has not seen.

    Parameters
    ----------
    net : OperatorNetwork
        Used in evaluation mode; its mode, dtype and device stay as they are.
    data : Dataset
        Test samples in the spaces of the network.
    problem : Problem, optional
        The solver that made the data; it is timed on the test inputs and boundary data. Its
        functions hold afterwards what they held before.
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
    errors = evaluate(net, data, RelativeError(net.decoder.space, norm), _BATCH)
    inputs, _, boundary = data.tensors(net.dtype)
    batches = [
        (
            [x[rows].to(net.device) for x in inputs],
            None if boundary is None else boundary[rows].to(net.device),
        )
        for rows in torch.arange(len(data)).split(_BATCH)
    ]
    with _evaluation(net):
        predictions = torch.cat([net(*xs, boundary=b).cpu() for xs, b in batches])
        batch = _fastest(lambda: [net(*xs, boundary=b) for xs, b in batches], net, repeats)
        first, values = _first_sample(net, data, inputs)
        single = _fastest(lambda: net(*first, boundary=values), net, repeats)
        violation = _violation(net, predictions, data.boundary)
    solver = None if problem is None else _solver_seconds(problem, data, min(len(data), 8))
    return Report(errors, norm, violation, batch / len(data), single, solver)


@contextmanager
def _evaluation(net: Any) -> Iterator[None]:
    """Evaluation mode without gradients; the mode of before comes back."""
    was_training = net.training
    net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        net.train(was_training)


def _first_sample(net: Any, data: Any, inputs: Sequence[Tensor]) -> tuple[list[Any], Any]:
    """The first sample as a user would give it: Functions, where the data are functions."""
    fields = list(zip(data.inputs.values(), net.encoders, strict=True))
    values = None if data.boundary is None else data.boundary[:1]
    if all(encoder.data_signature is not None for _, encoder in fields):
        first = [
            fem.to_function(x[0], e.space if e.source is None else e.source) for x, e in fields
        ]
        return first, None if values is None else fem.to_function(values[0], net.decoder.space)
    place = {"device": net.device, "dtype": net.dtype}
    return [x[:1].to(net.device) for x in inputs], None if values is None else values.to(**place)


def _violation(net: Any, predictions: Tensor, boundary: Tensor | None) -> float:
    """Measured on the functions that the decoder returns, sample by sample."""
    found = []
    constrained = net.decoder.constrained.cpu()
    if net.decoder.kept is not None:
        # Outputs are no latent coefficients, that could be decoded again: compare them as they are.
        values = net.decoder.values.cpu() if boundary is None else boundary
        differences = (predictions - values.to(predictions))[:, constrained]
        return float(differences.abs().max()) if constrained.any() else 0.0
    for rows in torch.arange(len(predictions)).split(_BATCH):
        prescribed = None if boundary is None else boundary[rows]
        functions = net.decoder.function(
            predictions[rows].to(net.device),
            None if prescribed is None else prescribed.to(net.device),
        )
        if prescribed is None:
            found += [fem.boundary_violation(f, net.decoder.bcs) for f in functions]
        else:
            differences = (fem.to_tensor(functions) - prescribed)[:, constrained]
            found += differences.abs().amax(1).tolist()
    # Unlike Python's, this maximum does not lose a NaN.
    return float(torch.tensor(found, dtype=torch.float64).max())


def _fastest(call: Callable[[], Any], net: Any, repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        _wait(net.device)
        start = time.perf_counter()
        call()
        _wait(net.device)
        times.append(time.perf_counter() - start)
    return min(times)


def _wait(device: torch.device) -> None:
    """Calls on a GPU return before the work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _solver_seconds(problem: Any, data: Any, few: int) -> float:
    """Time of the fastest of some solves; the user's functions are left as they were."""
    functions = [*problem.inputs.values(), *problem.outputs.values()]
    if problem.boundary is not None:
        functions.append(problem.boundary)
    before = [fem.to_tensor(f).numpy() for f in functions]
    times = []
    try:
        for i in range(few):
            for name, f in problem.inputs.items():
                fem.fill(f, data.inputs[name][i].numpy())
            if problem.boundary is not None and data.boundary is not None:
                fem.fill(problem.boundary, data.boundary[i].numpy())
            problem.reset()
            start = time.perf_counter()
            problem.solve()
            times.append(time.perf_counter() - start)
    finally:
        for f, values in zip(functions, before, strict=True):
            fem.fill(f, values)
    return min(times)
