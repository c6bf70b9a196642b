"""Operator networks whose inputs and outputs are finite element functions."""

__version__ = "0.1.0"

from spon import fem, losses, plotting, processors, samplers
from spon.checkpoint import load
from spon.datasets import Dataset
from spon.decoders import Decoder
from spon.encoders import Encoder
from spon.fem.problem import Problem
from spon.generate import generate
from spon.network import OperatorNetwork
from spon.report import Report, report
from spon.training import evaluate, fit

__all__ = [
    "Dataset",
    "Decoder",
    "Encoder",
    "OperatorNetwork",
    "Problem",
    "Report",
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
]
