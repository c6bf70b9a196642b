"""The plain baseline: a dense network on coefficient vectors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spon.processors.base import Field, Geometry, GeometryRequest, Processor, register
from spon.processors.checks import check_choice, check_widths

__all__ = ["MLP"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


@register
class MLP(Processor):
    """Dense layers from the dofs of the inputs to the dofs of the output.

    It knows nothing of the mesh: its size grows with the number of dofs, and its weights mean
    nothing on another mesh. It is here to compare with.

    Parameters
    ----------
    hidden : sequence of int, optional
        Widths of the hidden layers; an empty sequence makes the map affine.
    activation : {"gelu", "relu", "silu", "tanh"}, optional

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it should be.
    """

    name: ClassVar[str] = "mlp"
    mesh_independent: ClassVar[bool] = False

    def __init__(self, hidden: Sequence[int] = (256, 256), activation: str = "gelu") -> None:
        super().__init__()
        self.hidden = check_widths("hidden", hidden)
        self.activation = check_choice("activation", activation, tuple(_ACTIVATIONS))

    def config(self) -> dict[str, Any]:
        """Constructor arguments, JSON-able."""
        return {"hidden": list(self.hidden), "activation": self.activation}

    def request(self) -> GeometryRequest:
        """Nothing."""
        return GeometryRequest(nodes=False)

    def configure(self, inputs: Sequence[Field], output: Field) -> None:
        """Create the weights."""
        widths = [sum(field.dim for field in inputs), *self.hidden]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), _ACTIVATIONS[self.activation]()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], output.dim))

    def forward(self, xs: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """Map input coefficients (dim_i, batch) to output coefficients (dim_out, batch)."""
        out: Tensor = self.layers(torch.cat(list(xs)).T).T
        return out
