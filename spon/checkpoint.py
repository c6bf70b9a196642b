"""A network in one file: weights, architecture, spaces and boundary conditions. No pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from spon import fem
from spon.decoders import Decoder
from spon.encoders import Encoder
from spon.fem.constraints import bc_from_json, bcs_from_values
from spon.fem.promises_file import promises_from_json, promises_to_json
from spon.history import replaced
from spon.network import OperatorNetwork
from spon.processors import create
from spon.processors.weights import mark_fresh
from spon.signature import SpaceSignature

__all__ = ["load", "save"]

# 1: decoders without promises; 2: with promises; 3: with a margin that was taken from data.
_FORMAT = 3
_WEIGHTS, _DATA = "weights.", "data."
_PROMISES = _DATA + "promises."


def save(net: OperatorNetwork, path: str | os.PathLike[str]) -> None:
    """Write a network to one safetensors file.

    Parameters
    ----------
    net : OperatorNetwork
    path : path
        Written under a temporary name in the same folder and renamed.
    """
    tensors = {_WEIGHTS + k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
    tensors[_DATA + "boundary"] = net.decoder._exact_values
    tensors[_DATA + "constrained"] = net.decoder.constrained.cpu()
    promises = None
    if net.decoder.kept is not None:
        promises, belonging = promises_to_json(net.decoder.promises, net.decoder.kept)
        tensors |= {_PROMISES + k: v for k, v in belonging.items()}
    for i, encoder in enumerate(net._encoders):
        if encoder.points is not None:
            tensors[f"{_DATA}encoder.{i}.points"] = torch.from_numpy(encoder.points.copy())
    header = {
        # Older versions read what they can keep.
        "format": 1 if promises is None else 3 if _has_margin(net.decoder) else 2,
        "dtype": str(net.dtype).removeprefix("torch."),
        "processor": {"name": net.processor.name, "config": net.processor.config()},
        "fresh": net.fresh,
        "encoders": [_encoder_to_json(e) for e in net._encoders],
        "decoder": {
            "signature": net.decoder.signature.to_json(),
            "bcs": net.decoder.described,
            "promises": promises,
        },
    }
    with replaced(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata={"spon": json.dumps(header)})
        # safetensors makes files that only their owner can read.
        os.chmod(temporary, 0o666 & ~_umask())


def load(
    path: str | os.PathLike[str],
    mesh: Any,
    bcs: Any = None,
    same_mesh: bool = True,
    promises: Mapping[str, Any] | None = None,
) -> OperatorNetwork:
    """Read a network from a file onto a mesh.

    Parameters
    ----------
    path : path
        What `OperatorNetwork.save` wrote.
    mesh : firedrake.MeshGeometry
        The mesh of the network, or another one with ``same_mesh=False``.
    bcs : optional
        Boundary conditions for the decoder, as `Decoder` takes them. Needed on another mesh when
        the values of the saved ones vary in space.
    same_mesh : bool, optional
        Require that the mesh, and the numbering of its dofs, are those of the file (default).
    promises : mapping, optional
        Keywords of `Decoder` that replace promises of the file. Needed on another mesh for
        integrals, and for a divergence that varies in space.

    Returns
    -------
    OperatorNetwork

    Raises
    ------
    FileNotFoundError
        If there is no file.
    ValueError
        If it is not a network, of a newer format, or was made for another mesh or space; the
        message names both.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no network file {path}.")
    fem.require_mesh(mesh)
    header, tensors = _read(path)
    dtype = getattr(torch, header["dtype"])
    encoders = [
        _encoder_from_json(data, mesh, tensors.get(f"{_DATA}encoder.{i}.points"))
        for i, data in enumerate(header["encoders"])
    ]
    saved = SpaceSignature.from_json(header["decoder"]["signature"])
    _check_cells(saved, mesh)
    U = fem.space_from_element(mesh, saved.element)
    pairs = [
        (SpaceSignature.from_json(d["signature"]), e.signature)
        for d, e in zip(header["encoders"], encoders, strict=True)
    ]
    pairs.append((saved, fem.signature(U)))
    same = all(a == b for a, b in pairs)
    processor = create(header["processor"]["name"], header["processor"]["config"])
    if not same and (same_mesh or not processor.mesh_independent):
        raise ValueError(_refusal(path, pairs, processor.mesh_independent))
    given = bcs is not None
    if not given:
        described = header["decoder"]["bcs"]
        if same:
            bcs = bcs_from_values(U, described, tensors[_DATA + "boundary"].numpy())
        else:
            bcs = [bc_from_json(U, d) for d in described]
    kept = dict(promises or {})
    if header["decoder"].get("promises") is not None:
        belonging = {
            k.removeprefix(_PROMISES): v for k, v in tensors.items() if k.startswith(_PROMISES)
        }
        kept |= promises_from_json(header["decoder"]["promises"], belonging, same, kept)
    decoder = Decoder(U, bcs, **kept)
    if same and not given and not torch.equal(decoder.constrained, tensors[_DATA + "constrained"]):
        raise ValueError(
            f"{path} prescribes {int(tensors[_DATA + 'constrained'].sum())} dofs, the same tags "
            f"mean {int(decoder.constrained.sum())} dofs of this mesh: its boundary is tagged in "
            "another way. Load the mesh of the file, or give the conditions with bcs=."
        )
    net = OperatorNetwork(encoders, processor, decoder, dtype)
    weights = {k.removeprefix(_WEIGHTS): v for k, v in tensors.items() if k.startswith(_WEIGHTS)}
    if not _has_margin(decoder):  # other bounds than in the file may have been given
        weights = {k: v for k, v in weights.items() if not k.startswith("decoder.")}
    net.load_state_dict(weights)
    if header.get("fresh", False):
        mark_fresh(processor)
    return net


def _has_margin(decoder: Decoder) -> bool:
    return decoder.bounds is not None and decoder.bounds.margin.fitted


def _umask() -> int:
    # There is no way to read it without setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["spon"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not a network file of spon: expected what net.save(path) writes."
        ) from error
    if header["format"] > _FORMAT:
        raise ValueError(
            f"{path} has format {header['format']}, this version of spon reads up to {_FORMAT}: "
            "update spon."
        )
    return header, tensors


def _encoder_to_json(encoder: Encoder) -> dict[str, Any]:
    source = None if encoder.source is None else fem.signature(encoder.source).to_json()
    own_mesh = encoder.source is not None and fem.mesh_of(encoder.source) is not fem.mesh_of(
        encoder.space
    )
    return {
        "signature": encoder.signature.to_json(),
        "source": source,
        "source_on_own_mesh": own_mesh,
        "method": encoder.method,
        "grid": encoder.grid,
        "box": None if encoder.box is None else np.asarray(encoder.box).tolist(),
        "smoothing": encoder.smoothing,
    }


def _encoder_from_json(data: dict[str, Any], mesh: Any, points: Tensor | None) -> Encoder:
    signature = SpaceSignature.from_json(data["signature"])
    _check_cells(signature, mesh)
    source = None
    # A source on a mesh of its own is not in the file: the encoder then takes coefficients of its
    # own space, and functions of any other through `encode`.
    if data["source"] is not None and not data["source_on_own_mesh"]:
        source = fem.space_from_element(mesh, data["source"]["element"])
    return Encoder(
        fem.space_from_element(mesh, signature.element),
        source,
        data["method"],
        points=None if points is None else points.numpy(),
        grid=data["grid"],
        box=data["box"],
        smoothing=data["smoothing"],
    )


def _check_cells(saved: SpaceSignature, mesh: Any) -> None:
    cell, gdim = mesh.ufl_cell().cellname, int(mesh.geometric_dimension)
    if (cell, gdim) != (saved.cell, saved.geometric_dimension):
        raise ValueError(
            f"The network was made for {saved.describe()}, the mesh has {cell} cells in {gdim}D."
        )


def _refusal(path: Path, pairs: list[Any], movable: bool) -> str:
    saved, found = next((a, b) for a, b in pairs if a != b)
    text = (
        f"{path} holds a network for {saved.describe()}, the mesh given leads to "
        f"{found.describe()}."
    )
    if movable:
        return text + " Its weights serve on any mesh: pass same_mesh=False if this is intended."
    return text + " Its weights belong to the dofs of that mesh: load it onto the mesh of the file."
