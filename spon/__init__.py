"""Operator networks whose inputs and outputs are finite element functions."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Loaded when they are first asked for: `spon.doctor` runs where Firedrake or torch is missing, and
# `spon.sparse` and `spon.processors` without Firedrake.
_MODULES = ("fem", "losses", "plotting", "processors", "samplers", "sparse")
_NAMES = {
    "Dataset": "datasets",
    "Decoder": "decoders",
    "Encoder": "encoders",
    "History": "history",
    "OperatorNetwork": "network",
    "Problem": "fem.problem",
    "Report": "reporting",
    "TrainingDivergedError": "trainer",
    "evaluate": "training",
    "fit": "training",
    "generate": "generation",
    "load": "checkpoint",
    "report": "reporting",
}

if TYPE_CHECKING:
    from spon import fem, losses, plotting, processors, samplers, sparse
    from spon.checkpoint import load
    from spon.datasets import Dataset
    from spon.decoders import Decoder
    from spon.encoders import Encoder
    from spon.fem.problem import Problem
    from spon.generation import generate
    from spon.history import History
    from spon.network import OperatorNetwork
    from spon.reporting import Report, report
    from spon.trainer import TrainingDivergedError
    from spon.training import evaluate, fit

__all__ = [
    "Dataset",
    "Decoder",
    "Encoder",
    "History",
    "OperatorNetwork",
    "Problem",
    "Report",
    "TrainingDivergedError",
    "evaluate",
    "fem",
    "fit",
    "generate",
    "load",
    "losses",
    "plotting",
    "processors",
    "report",
    "samplers",
    "sparse",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"spon.{name}")
    if name in _NAMES:
        value = getattr(import_module(f"spon.{_NAMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'spon' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
