"""What a user promises, before it is known whether it can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np

__all__ = ["MARGIN", "Specification"]

MARGIN = 0.05  # of the range of values, or of their size
_THROUGH = ("potential", "projection")


@dataclass(frozen=True)
class Specification:
    """The promises of a decoder, as its keywords take them.

    Attributes
    ----------
    divergence_free, curl_free : bool
        The derivative vanishes in each cell.
    divergence : number, UFL expression, Function, callable or Tensor, optional
        What the divergence is in each cell.
    mean : number or sequence, optional
        Mean over the domain, in the shape of the values.
    integrals : tuple of (functional, float)
        Functionals and their values; any sequence of pairs is taken.
    flux : dict from tags to float
        Integrals over parts of the boundary; any mapping is taken.
    bounds : tuple of (float or None, float or None), optional
        Lower and upper bound of each component.
    symmetric : bool
        Tensors are symmetric.
    symmetry : tuple of (A, b)
        Maps x -> A x + b of a group; any sequence of pairs is taken.
    through : {"potential", "projection"}
        How a divergence or a curl is kept.

    Raises
    ------
    TypeError
        If integrals, flux, bounds or symmetry are of another form.
    """

    divergence_free: bool = False
    curl_free: bool = False
    divergence: Any = None
    mean: Any = None
    integrals: Sequence[tuple[Any, float]] = ()
    flux: Mapping[Any, float] = field(default_factory=dict)
    bounds: tuple[float | None, float | None] | None = None
    symmetric: bool = False
    symmetry: Sequence[tuple[Any, Any]] = ()
    through: str = "potential"

    def __post_init__(self) -> None:
        integrals = _pairs("integrals", "(functional, value)", self.integrals)
        values = [_number(f"The value of integral {i}", v) for i, (_, v) in enumerate(integrals)]
        given = {
            "integrals": tuple((f, v) for (f, _), v in zip(integrals, values, strict=True)),
            "flux": _flux(self.flux),
            "bounds": _bounds(self.bounds),
            "symmetry": tuple(
                (_copied("symmetry", A), _copied("symmetry", b))
                for A, b in _pairs("symmetry", "(A, b)", self.symmetry)
            ),
            "mean": None if self.mean is None else _copied("mean", self.mean),
        }
        for name, value in given.items():
            object.__setattr__(self, name, value)  # the class is frozen

    @property
    def empty(self) -> bool:
        """Whether nothing is promised."""
        return not (
            self.has_field
            or self.symmetric
            or self.symmetry
            or self.integrals
            or self.flux
            or self.mean is not None
            or self.bounds is not None
        )

    @property
    def has_field(self) -> bool:
        """Whether the divergence or the curl is known in each cell."""
        return self.divergence_free or self.curl_free or self.divergence is not None

    @property
    def margin(self) -> float:
        """Distance from the bounds at which values begin to be bent.

        A twentieth of the range. With one bound there is no range: a twentieth of the bound, or of
        one where that is zero, until data say how far from it values lie (`Margin`).
        """
        lower, upper = self.bounds or (None, None)
        if lower is not None and upper is not None:
            return MARGIN * (upper - lower)
        one = lower if lower is not None else upper
        return MARGIN * (abs(one) if one else 1.0)

    def check_composition(self) -> None:
        """Refuse promises that contradict each other whatever the space.

        Raises
        ------
        ValueError
            Naming the two, and what to do.
        """
        if self.through not in _THROUGH:
            raise ValueError(f"through must be one of {_THROUGH}, got {self.through!r}.")
        if self.through == "projection" and not self.has_field:
            raise ValueError(
                'through="projection" says how a divergence or a curl is kept, and none is '
                "promised: leave it out."
            )
        if self.divergence_free and self.divergence is not None:
            raise ValueError(
                "divergence_free=True and divergence= contradict each other: give one; "
                "divergence=0 is the same as divergence_free=True."
            )
        if self.curl_free and (self.divergence_free or self.divergence is not None):
            raise ValueError(
                "curl_free and a known divergence together leave almost nothing to learn and hold "
                "in no single element: choose one; for a potential flow take a decoder of the "
                "potential and solve for it."
            )
        if self.symmetry and (self.has_field or self.symmetric):
            raise ValueError(
                "symmetry= is kept for scalars and vectors of CG and DG, not together with a known "
                "divergence or curl or with symmetric=True: leave one out."
            )
        if self.bounds is None:
            return
        lower, upper = self.bounds
        if lower is None and upper is None:
            raise ValueError("bounds=(None, None) promises nothing: leave bounds out.")
        numbers = [b for b in self.bounds if b is not None]
        if not all(math.isfinite(b) for b in numbers) or sorted(set(numbers)) != numbers:
            raise ValueError(
                f"bounds must be two finite numbers in ascending order (None for no bound), got "
                f"{self.bounds}."
            )
        if self.has_field:
            raise ValueError(
                "bounds contradict divergence_free, curl_free or divergence=: a bounded change of "
                "such a field has another derivative. Bound a scalar of another decoder."
            )
        if self.flux or self.integrals:
            raise ValueError(
                "bounds go together with mean=, not with flux= or integrals=: correcting those "
                "would leave the bounds. Leave one of the two out."
            )


def _pairs(name: str, form: str, given: Any) -> tuple[Any, ...]:
    if isinstance(given, str | Mapping) or not hasattr(given, "__iter__"):
        raise TypeError(
            f"{name} must be a sequence of pairs {form}, got {type(given).__name__}: put the pairs "
            "into a list."
        )
    pairs = tuple(given)
    for i, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            length = f" of {len(pair)}" if isinstance(pair, tuple | list) else ""
            raise TypeError(
                f"{name} must be a sequence of pairs {form}, got {type(pair).__name__}{length} as "
                f"{name}[{i}]."
            )
    return pairs


def _copied(name: str, given: Any) -> Any:
    """Numbers in lists: an array may change later, what is promised does not."""
    try:
        return np.asarray(given, dtype=np.float64).tolist()
    except (TypeError, ValueError, RuntimeError) as error:  # the last for tensors with gradients
        raise TypeError(
            f"{name}= takes numbers or arrays of them, got {given!r}. Give values to differentiate "
            "by at the call, for each sample."
        ) from error


def _flux(given: Any) -> dict[Any, float]:
    if not isinstance(given, Mapping):
        raise TypeError(
            "flux must be a mapping from boundary tags to values, {1: 0.5} for example, got "
            f"{type(given).__name__}."
        )
    return {tag: _number(f"The flux through {tag!r}", value) for tag, value in given.items()}


def _bounds(given: Any) -> tuple[float | None, float | None] | None:
    if given is None:
        return None
    pair = tuple(given) if hasattr(given, "__iter__") else ()
    if len(pair) != 2 or not all(b is None or isinstance(b, Real) for b in pair):
        raise TypeError(
            "bounds must be a pair (lower, upper) of numbers for all components, with None for no "
            f"bound, got {given!r}."
        )
    lower, upper = (b if b is None or isinstance(b, int | float) else float(b) for b in pair)
    return lower, upper


def _number(what: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{what} must be a number, got {value!r}.") from error
