"""Trainable parameters of materials, as one vector."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spon.fem.external_symbols import Weights

__all__ = ["Parameters", "trainable"]


def trainable(material: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The leaf tensors that require a gradient in a material, with their names.

    They are looked for among the parameters of modules, the fields of dataclasses, the laws of an
    RVE (its ``materials``), the modules that are attributes of a surrogate, and the surrogate of a
    guarded one.

    Parameters
    ----------
    material : Material
    name : str, optional
        Beginning of the names.

    Yields
    ------
    str, Tensor
    """
    if isinstance(material, Tensor):
        if material.requires_grad:
            yield name, material
    elif isinstance(material, nn.Module):
        for key, value in material.named_parameters():
            yield from trainable(value, f"{name}.{key}")
    elif dataclasses.is_dataclass(material) and not isinstance(material, type):
        for f in dataclasses.fields(material):
            yield from trainable(getattr(material, f.name), f"{name}.{f.name}")
    elif isinstance(getattr(material, "materials", None), Mapping):
        for tag, law in material.materials.items():
            yield from trainable(law, f"{name}.materials[{tag}]")
    elif hasattr(material, "surrogate"):
        yield from trainable(material.surrogate, f"{name}.surrogate")
    else:
        for key, value in vars(material).items() if hasattr(material, "__dict__") else ():
            if isinstance(value, Tensor | nn.Module):
                yield from trainable(value, f"{name}.{key}")


class Parameters:
    """Every trainable parameter of some materials, each once, as one vector.

    Parameters
    ----------
    materials : sequence of Material

    Attributes
    ----------
    names : list of str
        Of the tensors.
    tensors : list of Tensor
        Leaves that require a gradient.

    Raises
    ------
    TypeError
        If one is not float64.
    """

    def __init__(self, materials: Sequence[Any]) -> None:
        self.materials = list(materials)
        self.names: list[str] = []
        self.tensors: list[Tensor] = []
        for material in materials:
            for name, tensor in trainable(material, type(material).__name__):
                if any(tensor is t for t in self.tensors):
                    continue
                if tensor.dtype != torch.float64:
                    raise TypeError(
                        f"The parameter {name} is {tensor.dtype}: Newton's method and its "
                        "derivatives need float64, call .double()."
                    )
                if not tensor.is_leaf:
                    raise TypeError(
                        f"The parameter {name} was computed from other tensors: give the material "
                        "tensors of its own (torch.tensor(..., requires_grad=True)), and apply the "
                        "chain rule to their gradient."
                    )
                self.names.append(name)
                self.tensors.append(tensor)
        self._weights = Weights(self) if self.tensors else None

    def __len__(self) -> int:
        return self.weight_count

    @property
    def weight_count(self) -> int:
        """Number of parameters, scalar by scalar."""
        return sum(t.numel() for t in self.tensors)

    def weights(self) -> Tensor:
        """Their values, shape (count,)."""
        if not self.tensors:
            return torch.zeros(0, dtype=torch.float64)
        return torch.cat([t.detach().reshape(-1) for t in self.tensors])

    @torch.no_grad()
    def set_weights(self, weights: Tensor) -> None:
        """Overwrite them."""
        for tensor, part in zip(self.tensors, self.split(weights), strict=True):
            tensor.copy_(part)

    def split(self, weights: Tensor) -> list[Tensor]:
        """A vector in the shapes of the tensors."""
        parts = torch.split(weights, [t.numel() for t in self.tensors])
        return [p.reshape(t.shape) for p, t in zip(parts, self.tensors, strict=True)]

    @cached_property
    def function(self) -> Any:
        """The parameters as a Function, the control of a gradient by pyadjoint.

        Before each solve, what was changed since the last one wins: the tensors or this.

        Raises
        ------
        ValueError
            If there are none.
        """
        if self._weights is None:
            raise ValueError(
                "No material has trainable parameters: give a law tensors with requires_grad=True, "
                "LinearElastic(K=torch.tensor(3.0, dtype=torch.float64, requires_grad=True), ...)."
            )
        return self._weights.function

    def synchronise(self) -> None:
        """Bring tensors and Function together.

        Raises
        ------
        ValueError
            If both were changed, to different values.
        """
        if self._weights is not None:
            self._weights.synchronise()

    def pull_back(self, points: Any, strain: Tensor, seed: Tensor) -> Tensor:
        """Derivative of ``sum(seed * stress)`` by the parameters at fixed strains.

        A material may have a method ``pull_back(strain, seed, tensors)`` that returns the
        derivative by each tensor, or a method ``differentiable_stress(strain)``; otherwise torch
        differentiates the stress that it answers with.

        Parameters
        ----------
        points : Points
        strain, seed : Tensor, shape (n, c)
            At the points of this process.

        Returns
        -------
        Tensor, shape (count,)
            Summed over all processes.

        Raises
        ------
        NotImplementedError
            If the stress of a material is not differentiable by its parameters.
        """
        total = [torch.zeros_like(t) for t in self.tensors]
        for material, where in points.groups:
            mine = [t for _, t in trainable(material)]
            if not mine or not len(strain[where]):
                continue
            parts = _pulled(material, mine, strain[where], seed[where])
            for tensor, part in zip(mine, parts, strict=True):
                place = next(k for k, t in enumerate(self.tensors) if t is tensor)
                if part is not None:
                    total[place] += part
        flat = torch.cat([t.reshape(-1) for t in total])
        if points.comm.size > 1:
            flat = torch.from_numpy(np.asarray(points.comm.allreduce(flat.numpy())))
        return flat


def _pulled(material: Any, tensors: list[Tensor], strain: Tensor, seed: Tensor) -> Sequence[Any]:
    own = getattr(material, "pull_back", None)
    if own is not None:
        parts: Sequence[Any] = own(strain, seed, tensors)
        return parts
    with torch.enable_grad():
        followed = getattr(material, "differentiable_stress", None)
        stress = material(strain).stress if followed is None else followed(strain)
        if not stress.requires_grad:
            raise NotImplementedError(
                f"The stress of {type(material).__name__} does not follow its trainable parameters "
                "through torch: give it a method pull_back(strain, seed, tensors) that returns the "
                "derivative of sum(seed * stress) by each of them."
            )
        return torch.autograd.grad(stress, tensors, seed, allow_unused=True)
