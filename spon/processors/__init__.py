"""The learned part of an operator network: one family a file, none of them knows Firedrake."""

from spon.processors.attention import Attention
from spon.processors.base import (
    Field,
    Geometry,
    GeometryRequest,
    Processor,
    available,
    create,
    register,
)
from spon.processors.deeponet import DeepONet, MultiONet
from spon.processors.elliptic import Elliptic
from spon.processors.graph import Graph
from spon.processors.graph_multigrid import GraphMultigrid
from spon.processors.mlp import MLP
from spon.processors.multigrid import Multigrid
from spon.processors.resolvent import Resolvent
from spon.processors.spectral import Spectral

__all__ = [
    "MLP",
    "Attention",
    "DeepONet",
    "Elliptic",
    "Field",
    "Geometry",
    "GeometryRequest",
    "Graph",
    "GraphMultigrid",
    "MultiONet",
    "Multigrid",
    "Processor",
    "Resolvent",
    "Spectral",
    "available",
    "create",
    "register",
]
