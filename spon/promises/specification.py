"""What a user promises, before it is known whether it can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Specification"]

_THROUGH = ("potential", "projection")


@dataclass(frozen=True)
class Specification:
    """The promises of a decoder, as its keywords take them."""

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
        one where that is zero.
        """
        lower, upper = self.bounds or (None, None)
        if lower is not None and upper is not None:
            return 0.05 * (upper - lower)
        one = lower if lower is not None else upper
        return 0.05 * (abs(one) if one else 1.0)

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
