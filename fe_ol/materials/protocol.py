"""What every material can do, be it a law, a representative volume element, or a surrogate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

__all__ = ["Material", "Response"]


@dataclass
class Response:
    """What a material answers.

    Attributes
    ----------
    stress : Tensor, shape (n, c)
        float64, in the conventions of `fe_ol.voigt`.
    tangent : Tensor, shape (n, c, c), or None
        d stress / d strain; None if the call asked for none.
    state : Tensor, shape (n, s), or None
        State at the end of the step, of a material with history (or a start for the next call).
    """

    stress: Tensor
    tangent: Tensor | None
    state: Tensor | None = None


@runtime_checkable
class Material(Protocol):
    """Strain in, stress and tangent out, for many points at once.

    Attributes
    ----------
    dim : int or None
        2 or 3; None for a law that serves both, by the number of strain components.
    finite : bool
        Whether strains are deformation gradients and stresses first Piola stresses.
    history : bool
        Whether the answer depends on a state, which is then passed from step to step.
    """

    finite: bool
    history: bool

    @property
    def dim(self) -> int | None:
        """Dimensions, None for both."""

    def __call__(self, strain: Any, state: Tensor | None = None, tangent: bool = True) -> Response:
        """Stress and tangent.

        Parameters
        ----------
        strain : array, shape (n, c) or (c,)
            float64. A single strain is answered without the axis n.
        state : Tensor, shape (n, s), optional
            State at the beginning of the step; that of `initial_state` by default.
        tangent : bool, optional
            False leaves the tangent out, where it is not needed and costs something.
        """
        ...

    def initial_state(self, n: int) -> Tensor | None:
        """State of `n` points at rest, None for a material without history."""
        ...
