"""What a macroscopic problem is, so that a checkpoint of another one is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fe_ol.guarded import Guarded
from fe_ol.identity import identity
from fe_ol.macro.file import digest
from fe_ol.macro.parameters import trainable
from fe_ol.macro.points import Points
from fe_ol.macro.steps import ArcLength
from fe_ol.macro.system import System
from fe_ol.objective import Objective
from fe_ol.surrogates.base import Surrogate
from spon.fem import mesh_of
from spon.fem.spaces import name_of

__all__ = ["describe"]


def describe(system: System, points: Points, arc: ArcLength | None) -> dict[str, Any]:
    """Mesh, space, materials, conditions, loads and the kind of steps as JSON-able values.

    Parameters
    ----------
    system : System
    points : Points
    arc : ArcLength or None

    Returns
    -------
    dict
    """
    mesh = mesh_of(system.space)
    here = digest(mesh.coordinates.dat.data_ro, system.space.cell_node_map().values)
    conditions = digest(
        system.conditions.fixed, system.conditions.values(0.0), system.conditions.rate()
    )
    forces = digest(system.forces.values(0.0), system.forces.rate())
    facts: dict[str, Any] = {
        "the space": f"{name_of(system.space)} with {system.space.dim()} dofs",
        "the quadrature degree": system.degree,
        "the number of processes": system.comm.size,
        "the mesh": _together(system, here),
        "the boundary conditions": _together(system, conditions),
        "the loads": _together(system, forces),
        "the materials": [_material(m) for m in points.materials],
    }
    facts["the arc length"] = None
    if arc is not None:
        settings = dataclasses.asdict(arc)
        settings["until"] = repr(settings["until"])
        settings.pop("stop")
        settings.pop("steps")  # more steps along the same path are welcome
        facts["the arc length"] = settings
    return facts


def _together(system: System, mine: str) -> str:
    return "-".join(system.comm.allgather(mine))


def _material(material: Any) -> Any:
    """Class and parameters, as far as they are known."""
    name = type(material).__name__
    if isinstance(material, Objective):
        return {name: _material(material.material)}
    if dataclasses.is_dataclass(material):
        fields = {f.name: getattr(material, f.name) for f in dataclasses.fields(material) if f.init}
        return {name: {key: _value(value) for key, value in fields.items()}}
    facts: dict[str, Any] = {"material": name}
    if isinstance(material, Guarded):
        names = ("tolerance", "policy", "limit", "hysteresis")
        return facts | {
            "surrogate": _material(material.surrogate),
            **{key: getattr(material, key) for key in names},
        }
    if isinstance(material, Surrogate):
        facts["numbers"] = digest(*(t.detach().numpy() for t in _tensors(material)))
        facts["correction steps"] = getattr(material, "correction_steps", None)
    if hasattr(material, "space") and hasattr(material, "materials"):
        facts["rve"] = identity(material)
    if isinstance(getattr(material, "source", None), dict):
        facts["source"] = material.source
    weights = [t.detach().reshape(-1) for _, t in trainable(material)]
    if weights:
        facts["weights"] = digest(torch.cat(weights).numpy())
    return facts


def _tensors(thing: Any) -> Iterator[Tensor]:
    """All numbers that a surrogate holds, networks and reduced models inside it included."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, nn.Module):
        yield from thing.state_dict().values()
    elif type(thing).__module__.startswith("fe_ol.surrogates"):
        for _, part in sorted(vars(thing).items()):
            yield from _tensors(part)


def _value(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().tolist()
    return _material(value) if dataclasses.is_dataclass(value) else value
