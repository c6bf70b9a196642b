"""Operator networks whose inputs and outputs are finite element functions."""

__version__ = "0.1.0"

from spon import fem, processors
from spon.checkpoint import load
from spon.decoders import Decoder
from spon.encoders import Encoder
from spon.network import OperatorNetwork

__all__ = ["Decoder", "Encoder", "OperatorNetwork", "fem", "load", "processors"]
