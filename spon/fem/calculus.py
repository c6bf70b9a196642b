"""Derivatives of a form by its coefficients and by the coordinates, in any order.

UFL keeps a derivative by the coordinates as a node until the form is pulled back to the reference
cell, and differentiates or replaces nothing inside such a node. So it must come last: a form is
kept here as a sum of plain forms, each with the directions in which the coordinates are still to be
moved. Derivatives commute, which is all that this needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ufl
from firedrake import SpatialCoordinate
from ufl.algorithms import expand_derivatives

__all__ = ["Differentiable"]


@dataclass(frozen=True)
class Differentiable:
    """A form, or a sum of forms, that can be differentiated further.

    Attributes
    ----------
    terms : tuple of (ufl.Form, tuple)
        Each form with the directions of its derivatives by the coordinates, which are functions or
        an argument in the space of the coordinates.
    """

    terms: tuple[tuple[Any, tuple[Any, ...]], ...]

    @classmethod
    def of(cls, form: Any) -> Differentiable:
        """A form without derivatives by the coordinates."""
        return cls(((expand_derivatives(form), ()),))

    def form(self) -> Any:
        """The form that UFL and Firedrake understand."""
        total = ufl.Form([])
        for form, directions in self.terms:
            if form.empty():
                continue
            x = SpatialCoordinate(form.ufl_domains()[0])
            for direction in directions:
                form = expand_derivatives(ufl.derivative(form, x, direction))
            total = total + form
        return total

    def replaced(self, old: Any, new: Any) -> Differentiable:
        """The same with one argument or function in the place of another."""
        return Differentiable(
            tuple(
                (ufl.replace(form, {old: new}), tuple(new if d == old else d for d in directions))
                for form, directions in self.terms
            )
        )

    def derivative(self, variable: Any, direction: Any) -> Differentiable:
        """The directional derivative by a Function or by the coordinates."""
        if isinstance(variable, SpatialCoordinate):
            return Differentiable(
                tuple((form, (*directions, direction)) for form, directions in self.terms)
            )
        result = []
        for form, directions in self.terms:
            changed = expand_derivatives(ufl.derivative(form, variable, direction))
            result.append((changed, directions))
            # The form is linear in each direction.
            for k, d in enumerate(directions):
                if d == variable:
                    result.append((form, (*directions[:k], direction, *directions[k + 1 :])))
        return Differentiable(tuple((f, d) for f, d in result if not f.empty()))

    def __add__(self, other: Differentiable) -> Differentiable:
        return Differentiable(self.terms + other.terms)
