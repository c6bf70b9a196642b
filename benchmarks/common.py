"""What every benchmark shares: repeated timing, a record of the machine, JSON written safely."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def arguments(description: str, *more: str) -> argparse.Namespace:
    """Command line of a benchmark: ``--quick``, ``--output`` and `more` options with a value."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    for option in more:
        parser.add_argument(option)
    return parser.parse_args()


def median_times(
    ours: Callable[[], Any], peer: Callable[[], Any], repeats: int = 7, least: float = 0.05
) -> dict[str, Any]:
    """Medians of both sides, taken in turns so that noise of the machine hits both.

    Parameters
    ----------
    ours, peer : callable
        Called once before the clock starts.
    repeats : int
        Measurements of each side.
    least : float
        Seconds that one measurement lasts at least; a fast side is called several times.

    Returns
    -------
    dict
        ``ours_ms``, ``peer_ms``, their quartiles, and ``ratio = peer / ours``.
    """
    start = time.perf_counter()
    calls = [_calls(side, least) for side in (ours, peer)]
    if time.perf_counter() - start > 2:
        repeats = min(repeats, 3)
    samples: list[list[float]] = [[], []]
    for _ in range(repeats):
        for i, side in enumerate((ours, peer)):
            start = time.perf_counter()
            for _ in range(calls[i]):
                side()
            samples[i].append(1e3 * (time.perf_counter() - start) / calls[i])
    medians = [statistics.median(s) for s in samples]
    spread = [statistics.quantiles(s, n=4) for s in samples]
    return {
        "ours_ms": medians[0],
        "peer_ms": medians[1],
        "ours_quartiles_ms": spread[0],
        "peer_quartiles_ms": spread[1],
        "ratio": medians[1] / medians[0],
    }


def _calls(side: Callable[[], Any], least: float) -> int:
    side()
    start = time.perf_counter()
    side()
    once = time.perf_counter() - start
    return max(1, min(1000, int(least / max(once, 1e-7))))


def machine() -> dict[str, Any]:
    """Processor, threads and versions that the numbers belong to."""
    packages = ("firedrake", "torch", "numpy", "scipy", "petsc4py")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": {name: version(name) for name in packages},
    }


def write(
    name: str, results: Any, settings: dict[str, Any], output: Path | None, quick: bool
) -> Path:
    """Write the JSON of a benchmark under a temporary name and rename it.

    Quick runs go beside the real ones under another name, so that they never replace them.
    """
    path = output or RESULTS / f"{name}{'-quick' if quick else ''}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "benchmark": name,
        "quick": quick,
        "machine": machine(),
        "settings": settings,
        "results": results,
    }
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(temporary, path)
    print(f"wrote {path}")
    return path


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "unknown"
    )
