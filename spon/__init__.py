"""Operator networks whose inputs and outputs are finite element functions."""

__version__ = "0.1.0"

from spon.decoders import Decoder
from spon.encoders import Encoder

__all__ = ["Decoder", "Encoder"]
