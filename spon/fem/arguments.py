"""What the call of a solver is given: essential conditions, and rows of coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from firedrake import Constant, Function
from firedrake.mesh import MeshGeometry
from torch import Tensor
from tsfc.ufl_utils import extract_firedrake_constants
from ufl import SpatialCoordinate, as_tensor
from ufl.algorithms import extract_coefficients, extract_type
from ufl.core.expr import Expr

from spon.fem.constraints import checked_bcs, essential_values
from spon.fem.spaces import name_of

__all__ = ["Essential", "Rows", "checked_inputs", "describe_input"]


class Essential:
    """The essential conditions of a space.

    Parameters
    ----------
    V : FunctionSpace
    bcs : None, DirichletBC or sequence of DirichletBC
    inputs : sequence
        The inputs of the solver, on which the values of the conditions must not depend.

    Attributes
    ----------
    bcs : list of DirichletBC
    prescribed : bool Tensor, shape (V.dim(),)
    free : int array
        The dofs that are not prescribed.
    values : Tensor, shape (V.dim(),)
        Prescribed values, as they are when the solver is made; zero elsewhere.

    Raises
    ------
    TypeError, ValueError
        If a condition does not fit the space, or its values depend on an input.
    """

    def __init__(self, V: Any, bcs: Any, inputs: Sequence[Any] = ()) -> None:
        self.bcs = checked_bcs(V, bcs, "solver")
        for bc in self.bcs:
            if any(x is thing for x in _parts_of(bc._original_arg) for thing in inputs):
                raise ValueError(
                    f"The values of the boundary condition on {bc.sub_domain} depend on an input. "
                    "Values that differ from sample to sample are given to the call: "
                    "solver(..., boundary=values), with values of shape (batch, "
                    f"{V.dim()}); the condition itself then only says where."
                )
        moving = any(isinstance(x, MeshGeometry | SpatialCoordinate) for x in inputs)
        self._moving = moving and any(
            isinstance(x, SpatialCoordinate) for bc in self.bcs for x in _parts_of(bc._original_arg)
        )
        mask, values = essential_values(V, self.bcs)
        self._name = f"{name_of(V)} with {V.dim()} dofs"
        self.prescribed, self.values = torch.from_numpy(mask), torch.from_numpy(values)
        self.free = np.flatnonzero(~mask)

    def lift(self, boundary: Tensor | None, batch: int) -> Tensor:
        """Functions with the prescribed values, zero elsewhere, shape (batch, V.dim())."""
        if boundary is None:
            return self.values.expand(batch, -1)
        return torch.where(self.prescribed, boundary, 0.0)

    def check(self, boundary: Any) -> None:
        """Refuse values where no dof is prescribed, and their absence where they would move."""
        if boundary is None and self._moving:
            raise ValueError(
                "The values of a boundary condition depend on the coordinates, which are an input: "
                "give the values of the moved mesh to the call, solver(..., boundary=values)."
            )
        if boundary is not None and not self.bcs:
            raise ValueError(
                f"boundary= was given, but the solver has no boundary conditions on {self._name}: "
                "say where with bcs=DirichletBC(V, 0, tags)."
            )


def _parts_of(value: Any) -> list[Any]:
    """What the value of a condition is made of."""
    expression = as_tensor(value) if isinstance(value, Sequence) else value
    if not isinstance(expression, Expr):
        return [value]
    return [
        value,
        *extract_coefficients(expression),
        *extract_firedrake_constants(expression),
        *extract_type(expression, SpatialCoordinate),
    ]


class Rows:
    """The tensors of a call, checked and brought to float64 rows of one batch.

    Parameters
    ----------
    who : str
        Name of the solver, for messages.
    names, sizes : sequences
        What is expected, in order.
    """

    def __init__(self, who: str, names: Sequence[str], sizes: Sequence[int]) -> None:
        self._who, self._names, self._sizes = who, list(names), list(sizes)

    def __call__(self, xs: Sequence[Any], **extra: Any) -> Call:
        """Check the tensors.

        Parameters
        ----------
        xs : sequence of Tensor, shapes (batch, dim) or (dim,)
        **extra : (Tensor or None, int)
            Further optional tensors and their sizes, by name.

        Raises
        ------
        TypeError
            If something is no tensor, or dtypes or devices differ.
        ValueError
            If the number of tensors, a shape or a batch size is wrong, or values are NaN or
            infinite.
        """
        if len(xs) != len(self._names):
            wanted = ", ".join(self._names) or "none"
            raise ValueError(
                f"{self._who} takes {len(self._names)} tensors ({wanted}), got {len(xs)}."
            )
        given = list(zip(self._names, xs, self._sizes, strict=True))
        given += [(name, x, size) for name, (x, size) in extra.items() if x is not None]
        batch: int | None = None
        first: tuple[str, Tensor] | None = None
        for name, x, size in given:
            if not isinstance(x, Tensor):
                raise TypeError(
                    f"{self._who} expected a tensor for {name}, got {type(x).__name__}: "
                    "spon.fem.to_tensor makes one of a Function."
                )
            if x.dtype not in (torch.float32, torch.float64):
                raise TypeError(f"{self._who} takes float32 or float64, got {x.dtype} for {name}.")
            if first is not None and (x.dtype, x.device) != (first[1].dtype, first[1].device):
                raise TypeError(
                    f"{self._who} got {first[1].dtype} on {first[1].device} for {first[0]} and "
                    f"{x.dtype} on {x.device} for {name}: bring all to one dtype and device."
                )
            if x.ndim not in (1, 2) or x.shape[-1] != size:
                raise ValueError(
                    f"{self._who} got a tensor of shape {tuple(x.shape)} for {name}: expected "
                    f"(batch, {size}) or ({size},)."
                )
            if x.ndim == 2 and batch is not None and len(x) != batch:
                raise ValueError(
                    f"{self._who} got a batch of {len(x)} for {name}, and of {batch} for the "
                    "tensors before it: all must be of one batch, or without a batch axis."
                )
            batch = len(x) if x.ndim == 2 else batch
            first = first or (name, x)
            self._require_finite(name, x.detach())
        return Call(batch, first[1] if first else None)

    def _require_finite(self, name: str, x: Tensor) -> None:
        # One sum is cheaper than a look at each entry.
        if torch.isfinite(x.sum()) or torch.isfinite(x).all():
            return
        if x.ndim == 1:
            raise ValueError(f"{self._who} got NaN or infinity in {name}.")
        bad = (~torch.isfinite(x).all(1)).nonzero()[:, 0].tolist()
        raise ValueError(
            f"{self._who} got NaN or infinity in {name}, in {len(bad)} of {len(x)} samples; the "
            f"first is sample {bad[0]}."
        )


class Call:
    """Batch size, dtype and device of one call."""

    def __init__(self, batch: int | None, like: Tensor | None) -> None:
        self.batch = 1 if batch is None else batch
        self._batched, self._like = batch is not None, like

    def rows(self, x: Tensor | None) -> Any:
        """As float64 on the CPU, shape (batch, dim); differentiable."""
        if x is None:
            return None
        x = x.to("cpu", torch.float64)
        return x if x.ndim == 2 else x.expand(self.batch, -1)

    def result(self, u: Tensor) -> Tensor:
        """In the dtype, on the device and with the batch axis of what was given."""
        u = u if self._batched or self._like is None else u[0]
        return u if self._like is None else u.to(self._like)


def checked_inputs(inputs: Any) -> list[Any]:
    """One input or a sequence of them as a list.

    Raises
    ------
    TypeError
        If one is neither a Function, nor a Constant, nor a mesh.
    """
    given = list(inputs) if isinstance(inputs, Sequence) else [inputs]
    for number, thing in enumerate(given):
        if not isinstance(thing, Function | Constant | MeshGeometry | SpatialCoordinate):
            raise TypeError(
                f"Input {number} is a {type(thing).__name__}: expected a Function, a Constant, or "
                "a mesh for its coordinates."
            )
    return given


def describe_input(thing: Any) -> tuple[str, int]:
    """Name and number of coefficients of an input."""
    if isinstance(thing, SpatialCoordinate):
        thing = thing.ufl_domain()
    if isinstance(thing, MeshGeometry):
        return "the coordinates", int(thing.coordinates.function_space().dim())
    if isinstance(thing, Constant):
        return f"a Constant of shape {thing.ufl_shape}", int(np.prod(thing.ufl_shape, dtype=int))
    V = thing.function_space()
    return f"{thing.name()!r} in {name_of(V)}", int(V.dim())
