"""Linear functionals whose values a decoder promises, as rows of a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import ufl
from firedrake import Cofunction, FacetNormal, TestFunction, assemble, ds, dx, inner
from torch import Tensor
from ufl.core.expr import Expr
from ufl.form import BaseForm

from spon.fem.complexes import measure_of
from spon.fem.spaces import mesh_of, name_of, to_tensor
from spon.promises import require_finite
from spon.promises.specification import Specification

__all__ = ["Functionals", "is_recipe"]


class Functionals:
    """Means, fluxes and integrals of functions of a space.

    Parameters
    ----------
    U : FunctionSpace
    given : Specification
    means : bool
        Whether the means are among them (bounds keep them in another way).

    Attributes
    ----------
    rows : array, shape (m, U.dim())
    values : array, shape (m,)
    names : list of str
    """

    def __init__(self, U: Any, given: Specification, means: bool) -> None:
        self.space = U
        self.names: list[str] = []
        self._rows: list[np.ndarray] = []
        values: list[float] = []
        self._means = U.value_size if given.mean is not None else 0
        self._tags = list(given.flux)
        self._integrals = len(given.integrals)
        self._in_bounds = not means
        if given.mean is not None and means:
            values += self._add_means(given.mean)
        for tag, value in given.flux.items():
            self._add(f"the flux through {tag!r}", self._flux(tag))
            values.append(float(value))
        for i, (functional, value) in enumerate(given.integrals):
            self._add(f"integral {i}", self._integral(functional))
            values.append(float(value))
        self.rows = np.array(self._rows).reshape(len(self._rows), U.dim())
        self.values = np.array(values, dtype=np.float64)
        if not np.isfinite(self.values).all():
            raise ValueError(f"A prescribed mean, flux or integral is NaN or infinite: {values}.")

    def _add(self, name: str, row: np.ndarray) -> None:
        self.names.append(name)
        self._rows.append(row)

    def _add_means(self, mean: Any) -> list[float]:
        U = self.space
        if len(U) > 1:
            raise ValueError(f"The mean of a mixed space ({name_of(U)}) has no meaning: use parts.")
        wanted = np.asarray(mean, dtype=np.float64)
        if wanted.shape != tuple(U.value_shape):
            raise ValueError(
                f"Got a mean of shape {wanted.shape} for {name_of(U)} of value shape "
                f"{tuple(U.value_shape)}."
            )
        v, measure = TestFunction(U), measure_of(mesh_of(U))
        for index in np.ndindex(*U.value_shape):
            component = v[index] if index else v
            row = _row(component * dx) / measure
            self._add(f"the mean of component {index}" if index else "the mean", row)
        return wanted.ravel().tolist()

    def _flux(self, tag: Any) -> np.ndarray:
        U = self.space
        mesh = mesh_of(U)
        if len(U) > 1 or len(U.value_shape) > 1:
            raise ValueError(f"flux is for scalars and vectors, not {name_of(U)}.")
        known = {int(t) for t in mesh.exterior_facets.unique_markers}
        tags = tag if isinstance(tag, tuple) else (tag,)
        missing = [t for t in tags if t != "on_boundary" and t not in known]
        if missing:
            raise ValueError(
                f"flux names the boundary tag {missing[0]!r}; the mesh has {sorted(known)} (and "
                "'on_boundary')."
            )
        measure = ds if tag == "on_boundary" else ds(tag)
        v = TestFunction(U)
        return _row((inner(v, FacetNormal(mesh)) if U.value_shape else v) * measure)

    def _integral(self, functional: Any) -> np.ndarray:
        U = self.space
        if is_recipe(functional):
            functional = functional(TestFunction(U))
        if isinstance(functional, Tensor | np.ndarray):
            row = np.asarray(functional, dtype=np.float64)
        elif isinstance(functional, Cofunction):
            row = to_tensor(functional).numpy()
        elif isinstance(functional, ufl.Form) and len(functional.arguments()) == 1:
            if functional.arguments()[0].function_space() != U:
                raise ValueError(f"An integral has a test function of another space: {name_of(U)}.")
            row = _row(functional)
        else:
            raise TypeError(
                "integrals takes pairs (functional, value), with a function of the test function "
                "like lambda v: inner(v, w) * dx(1), or a form with one test function; got "
                f"{type(functional).__name__}."
            )
        if row.shape != (U.dim(),):
            raise ValueError(f"An integral has {row.shape} coefficients, {name_of(U)} {U.dim()}.")
        return row

    def collect(
        self, count: int, mean: Any = None, flux: Any = None, integrals: Any = None
    ) -> tuple[Tensor | None, Tensor | None, bool]:
        """Values for each sample: those of the functionals, and the means that bounds keep.

        Parameters
        ----------
        count : int
            Number of samples.
        mean : number or Tensor, shape (batch,) or (batch, components), optional
        flux : mapping from tag to number or Tensor of shape (batch,), optional
        integrals : number or Tensor, shape (batch, number of integrals), optional
            A number stands for all samples, where each has one.

        Returns
        -------
        values : Tensor, shape (batch, m), or None
        mean : Tensor, shape (batch, components), or None
        single : bool
            Whether any of them came in single precision, and has its rounding.

        Raises
        ------
        ValueError
            If the decoder has no such promise, a shape is wrong, or there is NaN or infinity.
        """
        if mean is None and flux is None and integrals is None:
            return None, None, False
        if flux is not None and (not isinstance(flux, Mapping) or set(flux) - set(self._tags)):
            raise ValueError(
                f"Expected flux for each sample as a mapping of the promised tags "
                f"{self._tags}, got {list(flux) if isinstance(flux, Mapping) else flux}."
            )
        # Numbers come along to where the tensors are.
        given = (mean, integrals, *(flux or {}).values())
        device = next((t.device for t in given if isinstance(t, Tensor)), torch.device("cpu"))
        columns = torch.tensor(self.values).to(device).expand(count, -1)
        parts, start, means = list(columns.unbind(1)), 0, None
        if mean is not None:
            rows = self._checked(mean, count, self._means, "mean").to(device)
            if self._in_bounds:
                means = rows
            else:
                parts[: self._means] = rows.unbind(1)
        start = 0 if self._in_bounds else self._means
        if flux is not None:
            for tag, value in flux.items():
                rows = self._checked(value, count, 1, f"flux {tag!r}").to(device)
                parts[start + self._tags.index(tag)] = rows[:, 0]
        start += len(self._tags)
        if integrals is not None:
            rows = self._checked(integrals, count, self._integrals, "integrals").to(device)
            parts[start:] = rows.unbind(1)
        return (torch.stack(parts, 1) if parts else None), means, any(map(_is_single, given))

    def _checked(self, given: Any, count: int, width: int, what: str) -> Tensor:
        if not width:
            raise ValueError(
                f"Got {what} for each sample, and the decoder makes no such promise: build it with "
                f"{what.split()[0]}=."
            )
        rows = torch.as_tensor(given, dtype=torch.float64)
        shape = tuple(rows.shape)
        if not shape and width == 1:
            rows = rows.expand(count, 1)
        elif shape and shape[0] == count:
            rows = rows.reshape(count, -1)
        if rows.shape != (count, width):
            expected = f"({count},), or a number" if width == 1 else f"({count}, {width})"
            raise ValueError(
                f"Got {what} of shape {shape} for {count} samples: expected {expected}."
            )
        return require_finite(rows, what)


def _row(form: Any) -> np.ndarray:
    return to_tensor(assemble(form)).numpy().copy()


def _is_single(given: Any) -> bool:
    # Numbers of Python are doubles, though torch makes float32 of them.
    typed = isinstance(given, Tensor | np.ndarray | np.generic)
    return typed and torch.as_tensor(given).dtype == torch.float32


def is_recipe(thing: Any) -> bool:
    """Whether something is a Python function; UFL expressions and forms can be called too."""
    return callable(thing) and not isinstance(thing, Expr | BaseForm)
