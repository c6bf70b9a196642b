"""What all field samplers have in common, and the two simplest."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from firedrake import Function
from torch import Tensor

from spon.fem.problem import fill
from spon.fem.spaces import mesh_of, require_serial, signature

__all__ = ["Constant", "FieldSampler", "Uniform", "interval", "positive"]


class FieldSampler(ABC):
    """Fills functions of one space with random coefficients.

    Parameters
    ----------
    V : FunctionSpace
        On a mesh that lives on one process.

    Raises
    ------
    TypeError
        If `V` is no function space.
    NotImplementedError
        If the mesh is distributed.
    """

    def __init__(self, V: Any) -> None:
        if not hasattr(V, "mesh") or not hasattr(V, "ufl_element"):
            raise TypeError(
                f"{type(self).__name__} needs a FunctionSpace first, got {type(V).__name__}."
            )
        require_serial(mesh_of(V), type(self).__name__)
        self.space = V

    def __call__(self, function: Any, rng: np.random.Generator) -> None:
        """Overwrite `function` with a sample.

        Parameters
        ----------
        function : Function
            In the sampler's space.
        rng : numpy.random.Generator

        Raises
        ------
        TypeError, ValueError
            If `function` is none, or lives in another space.
        """
        if not isinstance(function, Function):
            raise TypeError(
                f"{type(self).__name__} fills a Function, got {type(function).__name__}."
            )
        V = function.function_space()
        if self.space != V:
            raise ValueError(
                f"{type(self).__name__} was made for {signature(self.space).describe()}, the "
                f"function lives in {signature(V).describe()}."
            )
        fill(function, self.sample(rng))

    @abstractmethod
    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the coefficients of one sample.

        Returns
        -------
        array, shape (V.dim(),), float64
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Name and settings as JSON-able values; kept in the data set."""

    def draw(self, n: int, seed: int = 0) -> Tensor:
        """Draw the samples that `spon.generate` would draw with this sampler alone.

        Returns
        -------
        Tensor, shape (n, V.dim()), float64
        """
        rows = [self.sample(np.random.default_rng([seed, i])) for i in range(n)]
        return torch.from_numpy(np.stack(rows))


class Constant(FieldSampler):
    """The same function, always.

    Parameters
    ----------
    V : FunctionSpace
        Any, also mixed.
    value : float, UFL expression or Function
        For a vector-valued space an expression such as ``as_vector([0, -1])``.
    """

    def __init__(self, V: Any, value: Any) -> None:
        super().__init__(V)
        self._values = nodal_values(V, value)
        self._value = value

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the coefficients of one sample, shape (V.dim(),)."""
        return self._values.copy()

    def describe(self) -> dict[str, Any]:
        """Name and settings as JSON-able values."""
        return {"sampler": "Constant", "value": describe_value(self._value, self._values)}


class Uniform(FieldSampler):
    """A function that is constant in space, with a value drawn uniformly from an interval.

    Parameters
    ----------
    V : FunctionSpace
        Scalar or vector-valued, with point evaluations as dofs (CG, DG, ...), or Real. Components
        are independent.
    low, high : float
        Ends of the interval.
    log : bool, optional
        Whether the logarithm of the value is uniform instead.

    Raises
    ------
    ValueError
        If the interval is empty, or `log` is set and `low` is not positive.
    """

    def __init__(self, V: Any, low: float, high: float, log: bool = False) -> None:
        super().__init__(V)
        self.low, self.high = interval("low, high", (low, high))
        self.log = bool(log)
        if self.log and self.low <= 0:
            raise ValueError(f"With log=True the interval must be positive, got low={low}.")
        if V.ufl_element().family() != "Real":
            require_points(V, "Uniform")

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the coefficients of one sample, shape (V.dim(),)."""
        low, high = (np.log(self.low), np.log(self.high)) if self.log else (self.low, self.high)
        value = rng.uniform(low, high, size=int(self.space.value_size))
        value = np.exp(value) if self.log else value
        return np.tile(value, self.space.dim() // self.space.value_size)

    def describe(self) -> dict[str, Any]:
        """Name and settings as JSON-able values."""
        return {"sampler": "Uniform", "low": self.low, "high": self.high, "log": self.log}


def require_points(V: Any, what: str) -> None:
    """Refuse spaces whose dofs are not values at points, component by component.

    Raises
    ------
    NotImplementedError
        For Raviart-Thomas, Nedelec, mixed and similar spaces.
    """
    if len(V) > 1:
        raise NotImplementedError(
            f"{what} does not fill mixed spaces: sample each part in its own space."
        )
    element = V.finat_element
    if (
        getattr(element, "mapping", None) != "affine"
        or V.dim() % V.value_size
        or (V.block_size != V.value_size)
    ):
        raise NotImplementedError(
            f"{what} needs dofs that are values at points (CG, DG, and vectors of them), "
            f"{signature(V).describe()} has others. Sample in such a space and let the form take "
            "the function from there."
        )


def nodal_values(V: Any, value: Any) -> np.ndarray:
    """Coefficients in `V` of a number, a UFL expression or a Function of `V`.

    Returns
    -------
    array, shape (V.dim(),)
    """
    if isinstance(value, int | float):
        value = float(value)
        if not np.isfinite(value):
            raise ValueError(f"Expected a finite value, got {value}.")
    f = Function(V)
    same = isinstance(value, Function) and value.function_space() == V
    if same or (isinstance(value, float) and V.value_size == 1):
        f.assign(value)
    else:
        try:
            f.interpolate(value)
        except Exception as error:
            raise ValueError(
                f"{value!r} cannot be interpolated into {signature(V).describe()}: {error}"
            ) from error
    return np.concatenate([part.dat.data_ro.reshape(-1) for part in f.subfunctions])


def describe_value(value: Any, values: np.ndarray) -> Any:
    """A JSON-able description: numbers as they are, expressions as text and a hash of values."""
    if isinstance(value, int | float):
        return float(value)
    return {"values": hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]}


def number(name: str, value: Any) -> float:
    """A finite number of any sign.

    Raises
    ------
    TypeError, ValueError
        If it is no number, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}.")
    if not np.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}.")
    return float(value)


def positive(name: str, value: Any) -> float:
    """A positive finite number.

    Raises
    ------
    TypeError, ValueError
        If it is no number, or not positive and finite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}.")
    if not (value > 0 and np.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, got {value}.")
    return float(value)


def interval(name: str, ends: Any) -> tuple[float, float]:
    """A pair of finite numbers in order; one number stands for both ends.

    Raises
    ------
    TypeError, ValueError
        If it is neither, or the ends are in the wrong order.
    """
    if isinstance(ends, int | float | np.number) and not isinstance(ends, bool):
        ends = (ends, ends)
    try:
        low, high = (float(end) for end in ends)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a number or a pair of numbers, got {ends!r}.") from error
    if not (np.isfinite([low, high]).all() and low <= high):
        raise ValueError(f"{name} must be finite with low <= high, got {low} and {high}.")
    return low, high
