"""Surrogates for other codes: stress and tangent as one program, for torch or as ONNX."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fe_ol.surrogates.blackbox import BlackBox
from fe_ol.surrogates.equino import EquiNO
from spon.history import replaced

__all__ = ["export", "require_format"]

_SUFFIXES = (".pt2", ".onnx")
_FOR_ONNX = ("onnx", "onnxscript")


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


class _DoubleNumbers(TorchFunctionMode):
    """Numbers become float64 tensors: torch's ONNX exporter would round them to float32."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        args = tuple(
            torch.tensor(x, dtype=torch.float64) if isinstance(x, float) else x for x in args
        )
        return func(*args, **(kwargs or {}))


def export(surrogate: Any, path: str | os.PathLike[str]) -> None:
    """Write the network of a surrogate as a ``torch.export`` program or as an ONNX model.

    ``torch.export.load(path).module()(strain)`` gives stress and tangent for float64 strains of
    any number, in C++ through AOTInductor as well. The ONNX model has the input ``strain (n, c)``
    and the outputs ``stress (n, c)`` and ``tangent (n, c, c)``, float64 too; to write one takes the
    extra ``onnx``. To run them takes neither fe_ol nor Firedrake.

    Parameters
    ----------
    surrogate : EquiNO or BlackBox
        Without correction steps: these evaluate the laws.
    path : path
        Ends in ``.pt2`` or in ``.onnx``.

    Raises
    ------
    TypeError
        If it is another kind of surrogate.
    ValueError
        If it has correction steps, or the name ends otherwise.
    ImportError
        If a package that writes ONNX is missing.
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
    require_format(path)
    example = surrogate.reference + 0.1 * surrogate.radius * torch.ones(
        11, surrogate.components, dtype=torch.float64
    )
    with torch.no_grad(), _DoubleNumbers():
        program = torch.export.export(
            _Program(surrogate), (example,), dynamic_shapes=({0: torch.export.Dim("n", min=2)},)
        )
    with replaced(path) as temporary:
        if Path(path).suffix == ".pt2":
            torch.export.save(program, temporary)
        else:
            _write_onnx(program, temporary)


def require_format(path: str | os.PathLike[str]) -> None:
    """Refuse a name whose ending is not known, and ONNX without what writes it.

    Raises
    ------
    ValueError
        If the name ends otherwise.
    ImportError
        If a package is missing.
    """
    suffix = Path(path).suffix
    if suffix not in _SUFFIXES:
        raise ValueError(f"The file's name must end in .pt2 or .onnx, got {os.fspath(path)!r}.")
    missing = [name for name in _FOR_ONNX if importlib.util.find_spec(name) is None]
    if suffix == ".onnx" and missing:
        raise ImportError(
            f"To write ONNX takes {' and '.join(missing)}, which cannot be imported: install the "
            'extra, pip install "spon[onnx]", or export to a name that ends in .pt2.'
        )


def _write_onnx(program: Any, path: Any) -> None:
    log = logging.getLogger("torch.onnx")
    level = log.level
    # Of packages that are not there and not needed.
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Of torch, about torch.
            warnings.simplefilter("ignore")
            model = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=["strain"],
                output_names=["stress", "tangent"],
            )
    finally:
        log.setLevel(level)
    assert model is not None
    model.save(path)
