"""Surrogates for other codes: stress and tangent as one exported torch program."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from fe_ol.surrogates.blackbox import BlackBox
from fe_ol.surrogates.equino import EquiNO
from spon.history import replaced

__all__ = ["export"]


class _Program(nn.Module):
    """Strain (n, c) to stress (n, c) and tangent (n, c, c), without checks."""

    head: Tensor | None

    def __init__(self, surrogate: EquiNO | BlackBox) -> None:
        super().__init__()
        self.potential = None
        if isinstance(surrogate, BlackBox):
            self.network, head = surrogate.network, None
        else:
            self.network, head = surrogate.stress, surrogate.model.means
            self.potential = surrogate.potential
        self.register_buffer("head", head)

    def forward(self, strain: Tensor) -> tuple[Tensor, Tensor]:
        if self.potential is not None:
            return self.potential.respond(strain)[1:]
        return self.network.value_and_jacobian(strain, self.head)


def export(surrogate: Any, path: str | os.PathLike[str]) -> None:
    """Write the network of a surrogate as a ``torch.export`` program.

    ``torch.export.load(path).module()(strain)`` gives stress and tangent for float64 strains of
    any number, in C++ through AOTInductor as well; neither fe_ol nor Firedrake is needed then.

    Parameters
    ----------
    surrogate : EquiNO or BlackBox
        Without correction steps: these evaluate the laws.
    path : path
        Ends in ``.pt2``.

    Raises
    ------
    TypeError
        If it is another kind of surrogate.
    ValueError
        If it has correction steps, or the name ends otherwise.
    """
    if not isinstance(surrogate, EquiNO | BlackBox):
        raise TypeError(
            f"Only EquiNO and BlackBox can be exported, got {type(surrogate).__name__}."
        )
    if isinstance(surrogate, EquiNO) and surrogate.correction_steps:
        raise ValueError(
            f"The surrogate has correction_steps={surrogate.correction_steps}, which evaluate the "
            "laws: set it to 0 to export the network alone."
        )
    if not os.fspath(path).endswith(".pt2"):
        raise ValueError(f"The file's name must end in .pt2, got {os.fspath(path)!r}.")
    example = surrogate.reference + 0.1 * surrogate.radius * torch.ones(
        11, surrogate.components, dtype=torch.float64
    )
    with torch.no_grad():
        program = torch.export.export(
            _Program(surrogate), (example,), dynamic_shapes=({0: torch.export.Dim("n", min=2)},)
        )
    with replaced(path) as temporary:
        torch.export.save(program, temporary)
