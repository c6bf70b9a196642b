"""The inputs and the output of a pyadjoint ReducedFunctional as rows of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from firedrake import Cofunction, Constant, Function
from pyadjoint import AdjFloat
from torch import Tensor

from spon.fem.spaces import mesh_of, name_of, require_serial, to_function, to_tensor

__all__ = ["Slot"]


class Slot:
    """A control or the functional: between pyadjoint's object and a row of numbers.

    Parameters
    ----------
    thing : Function, Cofunction, Constant or AdjFloat
    what : str
        Its name in messages.

    Raises
    ------
    TypeError
        If `thing` is of another kind.
    NotImplementedError
        If its mesh is distributed over several processes.
    """

    def __init__(self, thing: Any, what: str) -> None:
        self.what = what
        self.space = None
        self.kind: Any
        if isinstance(thing, Function | Cofunction):
            self.kind, self.space = type(thing), thing.function_space()
            require_serial(mesh_of(self.space), "fem_operator")
            self.shape: tuple[int, ...] = (int(self.space.dim()),)
        elif isinstance(thing, Constant):
            self.kind, self.shape = Constant, tuple(thing.ufl_shape)
        elif isinstance(thing, AdjFloat):
            self.kind, self.shape = AdjFloat, ()
        else:
            raise TypeError(
                f"fem_operator takes Functions, Cofunctions, Constants and floats, {what} is a "
                f"{type(thing).__name__}."
            )
        self.size = int(np.prod(self.shape))

    def describe(self) -> str:
        """Kind and space, for messages."""
        if self.space is None:
            return f"{self.what}: {self.kind.__name__} of shape {self.shape}"
        return f"{self.what}: {self.kind.__name__} in {name_of(self.space)} with {self.size} dofs"

    def batched(self, x: Any) -> bool:
        """Whether a tensor has a batch axis; what is no tensor of this slot is refused."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            found = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(
                f"{self.describe()}: expected a real floating-point tensor, got {found}."
            )
        shape = tuple(x.shape)
        if shape not in (self.shape, (*shape[:1], *self.shape)) or len(shape) < len(self.shape):
            expected = ", ".join(map(str, self.shape))
            raise ValueError(
                f"{self.describe()}: got a tensor of shape {shape}, expected "
                f"{self.shape} or (batch{', ' if expected else ','}{expected})."
            )
        if not torch.isfinite(x.detach()).all():
            raise ValueError(f"{self.describe()}: the tensor holds NaN or infinity.")
        return len(shape) > len(self.shape)

    def make(self, row: np.ndarray, dual: bool = False) -> Any:
        """An object of the kind, or of its dual, that holds the numbers."""
        if self.space is not None:
            space = self.space.dual() if dual else self.space
            return to_function(torch.from_numpy(np.ascontiguousarray(row)), space)
        if self.kind is AdjFloat:
            return AdjFloat(row[0])
        return Constant(row.reshape(self.shape) if self.shape else row[0])

    def read(self, thing: Any) -> Tensor:
        """The numbers of an object of the kind or of its dual."""
        if isinstance(thing, Function | Cofunction):
            return to_tensor(thing)
        if isinstance(thing, Constant):
            thing = thing.dat.data_ro
        return torch.as_tensor(np.array(thing, dtype=np.float64).reshape(-1))
