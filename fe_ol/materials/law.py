"""A law is an energy: what all laws share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import ufl
from torch import Tensor

from fe_ol.materials.algebra import TorchMaths, UFLMaths
from fe_ol.materials.derivation import Columns, Derived, derive
from fe_ol.materials.protocol import Response
from fe_ol.voigt import checked_strain

__all__ = ["EnergyLaw"]

_CHUNK = 8192  # columns of this length stay in the cache between two operations


def _plane(e: Columns) -> list[list[Any]]:
    return [[e[0], e[2] / 2, 0], [e[2] / 2, e[1], 0], [0, 0, 0]]


def _plane_thickness(e: Columns) -> list[list[Any]]:
    return [[e[0], e[2] / 2, 0], [e[2] / 2, e[1], 0], [0, 0, e[3]]]


def _solid(e: Columns) -> list[list[Any]]:
    xx, yy, zz, yz, xz, xy = e[0], e[1], e[2], e[3] / 2, e[4] / 2, e[5] / 2
    return [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]


def _plane_gradient(f: Columns) -> list[list[Any]]:
    return [[f[0], f[1], 0], [f[2], f[3], 0], [0, 0, 1]]


def _plane_gradient_thickness(f: Columns) -> list[list[Any]]:
    return [[f[0], f[1], 0], [f[2], f[3], 0], [0, 0, f[4]]]


def _solid_gradient(f: Columns) -> list[list[Any]]:
    return [[f[0], f[1], f[2]], [f[3], f[4], f[5]], [f[6], f[7], f[8]]]


_EMBEDDINGS: dict[bool, dict[int, Callable[[Columns], list[list[Any]]]]] = {
    False: {3: _plane, 4: _plane_thickness, 6: _solid},
    True: {4: _plane_gradient, 5: _plane_gradient_thickness, 9: _solid_gradient},
}


class EnergyLaw:
    """A law given by its (incremental) energy; subclasses are frozen dataclasses of parameters.

    A subclass writes `potential`, once; the stress and the tangent for the finite elements and the
    networks (torch), and the expressions for UFL forms follow from it. It serves plane strain and
    three dimensions, by the number of strain components; `PlaneStress` makes plane stress of it.

    Attributes
    ----------
    dim : None
        A law serves 2 and 3 dimensions.
    finite : bool
        Whether the strain is the deformation gradient.
    history : bool
    """

    dim: ClassVar[int | None] = None
    finite: ClassVar[bool] = False
    history: ClassVar[bool] = False

    # ---- what a subclass writes --------------------------------------------------------------

    @staticmethod
    def potential(e: Any, p: Mapping[str, Any], maths: Any, state: Columns = ()) -> Any:
        """Energy per volume.

        Parameters
        ----------
        e : 3 x 3 nested lists of scalars
            Strain tensor, or deformation gradient.
        p : mapping
            The parameters by their names.
        maths : Maths
            Functions; see `fe_ol.materials.algebra`.
        state : sequence of scalars
            Of a law with history: the state at the beginning of the step.
        """
        raise NotImplementedError

    def __call__(self, strain: Any, state: Tensor | None = None, tangent: bool = True) -> Response:
        """Stress and tangent of many points.

        Parameters
        ----------
        strain : array, shape (n, c) or (c,)
            In the conventions of `fe_ol.voigt`: plane strain or solid.
        state : Tensor, shape (n, s), optional
        tangent : bool, optional

        Returns
        -------
        Response
            Differentiable by torch in the strain, and in parameters that are tensors.

        Raises
        ------
        TypeError, ValueError
            If the strain is not float64, not finite, or of another shape.
        """
        x, single = checked_strain(strain, self.sizes(), type(self).__name__)
        before = self._checked_state(x, state)
        if x.requires_grad or not len(x) or any(isinstance(v, Tensor) for v in self._values()):
            parts = [self.columns(x.T, before, tangent)]
        else:
            parts = [
                self.columns(
                    x[i : i + _CHUNK].T.contiguous(),
                    None if before is None else before[:, i : i + _CHUNK],
                    tangent,
                )
                for i in range(0, len(x), _CHUNK)
            ]
        stresses, moduli, states = zip(*parts, strict=True)
        stress = torch.cat(stresses, -1).T
        modulus = torch.cat(moduli, -1).permute(2, 0, 1) if tangent else None
        after = torch.cat(states, -1).T if self.history else None
        if single:
            stress = stress[0]
            modulus = None if modulus is None else modulus[0]
            after = None if after is None else after[0]
        return Response(stress, modulus, after)

    def columns(
        self, strain: Tensor, state: Tensor | None = None, tangent: bool = True
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The same, unchecked and with the components first, as the solvers hold them.

        Parameters
        ----------
        strain : Tensor, shape (c, ...)
        state : Tensor, shape (s, ...)
            For laws with history only.
        tangent : bool, optional

        Returns
        -------
        stress : Tensor, shape (c, ...)
        tangent : Tensor, shape (c, c, ...), or None
        state : Tensor, shape (s, ...), or None
        """
        size, like = len(strain), strain[0]
        derived = self._derived(size)
        arguments = [*strain, *self._values(), *(() if state is None else state)]
        after = self.next_state(strain, state) if self.history else None
        if not tangent:
            return _stacked(derived.stress(arguments), like), None, after
        stress, modulus = derived.both(arguments)
        flat = [x for row in modulus for x in row]
        return (
            _stacked(stress, like),
            _stacked(flat, like).reshape(size, size, *like.shape),
            after,
        )

    def next_state(self, strain: Tensor, state: Tensor | None) -> Tensor:
        """State at the end of a step, components first; for laws with history."""
        raise NotImplementedError

    @classmethod
    def state_size(cls, strain_size: int) -> int:
        """Number of state variables of a point."""
        return 0

    # ---- what follows ------------------------------------------------------------------------

    def initial_state(self, n: int, strain_size: int = 3) -> Tensor | None:
        """State of points at rest.

        Parameters
        ----------
        n : int
            Number of points.
        strain_size : int, optional
            Components of the strains to come.

        Returns
        -------
        Tensor, shape (n, s), or None for a law without history
        """
        if not self.history:
            return None
        return torch.zeros(n, self.state_size(strain_size), dtype=torch.float64)

    def energy(self, strain: Any, state: Tensor | None = None) -> Tensor:
        """Energy per volume at each point, differentiable by torch.

        Parameters
        ----------
        strain : array, shape (n, c) or (c,)
        state : Tensor, shape (n, s), optional

        Returns
        -------
        Tensor, shape (n,) or ()
        """
        x, single = checked_strain(strain, self.sizes(), type(self).__name__)
        before = self._checked_state(x, state)
        embed = _EMBEDDINGS[self.finite][x.shape[1]]
        columns = [] if before is None else list(before)
        w = self.potential(embed(list(x.T)), self._named(), TorchMaths, columns)
        return w[0] if single else w

    def ufl_energy(self, strain: Any, state: Sequence[Any] = ()) -> Any:
        """Energy per volume as a UFL expression.

        Parameters
        ----------
        strain : UFL tensor, shape (2, 2) or (3, 3)
            ``sym(grad(u))``, or ``Identity(d) + grad(u)`` for a law of finite strains. In two
            dimensions this is plane strain.
        state : sequence of UFL scalars, optional

        Returns
        -------
        UFL scalar
        """
        d = strain.ufl_shape[0]
        if strain.ufl_shape not in ((2, 2), (3, 3)):
            raise ValueError(f"Expected a 2 x 2 or 3 x 3 UFL tensor, got {strain.ufl_shape}.")
        corner = 1 if self.finite else 0
        e = [
            [strain[i, j] if max(i, j) < d else (corner if i == j else 0) for j in range(3)]
            for i in range(3)
        ]
        return self.potential(e, self._named(), UFLMaths, state)

    def ufl_stress(self, strain: Any, state: Sequence[Any] = ()) -> Any:
        """Stress as a UFL tensor: the derivative of the energy (first Piola at finite strain)."""
        e = ufl.variable(strain)
        stress = ufl.diff(self.ufl_energy(e, state), e)
        # An energy may be written with one of two equal shear strains: each has half of the stress.
        return stress if self.finite else ufl.sym(stress)

    def sizes(self) -> tuple[int, ...]:
        """Numbers of strain components that the law takes."""
        return tuple(_EMBEDDINGS[self.finite])

    @classmethod
    def parameter_names(cls) -> tuple[str, ...]:
        """Names of the parameters in their order."""
        return tuple(f.name for f in dataclasses.fields(cls))  # type: ignore[arg-type]

    def _values(self) -> list[Any]:
        return [getattr(self, name) for name in self.parameter_names()]

    def _named(self) -> dict[str, Any]:
        return dict(zip(self.parameter_names(), self._values(), strict=True))

    def _derived(self, size: int) -> Derived:
        return derive(type(self), size, _EMBEDDINGS[self.finite][size])  # type: ignore[arg-type]

    def _checked_state(self, x: Tensor, state: Tensor | None) -> Tensor | None:
        """The state with components first."""
        if not self.history:
            return None
        if state is None:
            state = self.initial_state(len(x), x.shape[1])
        assert state is not None
        state = state[None] if state.ndim == 1 else state
        expected = (len(x), self.state_size(x.shape[1]))
        if tuple(state.shape) != expected or state.dtype != torch.float64:
            raise ValueError(
                f"{type(self).__name__} expected a float64 state of shape {expected} for this "
                f"strain, got {state.dtype} of shape {tuple(state.shape)}: pass what the last step "
                "returned, or initial_state(n, strain_size)."
            )
        return state.T


def plain(value: Any) -> float:
    """A parameter as a number, also of a tensor that requires a gradient."""
    return float(value.detach() if isinstance(value, Tensor) else value)


def require_positive(law: Any, *names: str, least: float = 0.0) -> None:
    """Refuse parameters that are not positive numbers.

    Raises
    ------
    ValueError
    """
    for name in names:
        value = plain(getattr(law, name))
        if not math.isfinite(value) or value <= least:
            raise ValueError(
                f"{type(law).__name__} expected {name} > {least:g}, got {name}={value}."
            )


def _stacked(values: Sequence[Any], like: Tensor) -> Tensor:
    if torch.is_grad_enabled() and any(isinstance(v, Tensor) and v.requires_grad for v in values):
        return torch.stack([torch.as_tensor(v, dtype=like.dtype).expand_as(like) for v in values])
    out = like.new_empty(len(values), *like.shape)
    for target, value in zip(out, values, strict=True):
        if isinstance(value, Tensor):
            target.copy_(value)
        else:
            target.fill_(value)
    return out
