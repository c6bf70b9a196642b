"""What a body is loaded with: prescribed displacements and forces, and the factor on both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import firedrake as fd
import numpy as np
import ufl
from firedrake.assemble import get_assembler
from ufl.algorithms import extract_coefficients

from spon.fem import mesh_of

__all__ = ["Conditions", "Forces"]


class Conditions:
    """Prescribed displacements, ``constant + factor * scaled``.

    Parameters
    ----------
    space : FunctionSpace
    scaled : sequence of DirichletBC
        Values at the load factor 1.
    constant : sequence of DirichletBC
        Values at every load factor; where a dof has both, these hold.

    Attributes
    ----------
    bcs : list of DirichletBC
        The user's, the scaled ones first.
    zero : list of DirichletBC
        The same with the value zero.
    fixed : bool array, shape (dofs of this process,)
        Which dofs are prescribed.
    owner : integer array, shape (dofs of this process,)
        Number of the condition that decides on a dof, -1 for none.

    Raises
    ------
    TypeError
        If something is not a DirichletBC.
    ValueError
        If there is none, or one belongs to another space.
    """

    def __init__(self, space: Any, scaled: Sequence[Any], constant: Sequence[Any]) -> None:
        self.bcs = [*scaled, *constant]
        self._scaled_count = len(scaled)
        for bc in self.bcs:
            if not isinstance(bc, fd.DirichletBC):
                raise TypeError(
                    f"bcs takes DirichletBCs, got {type(bc).__name__}: forces are loads=, "
                    "tractions= or body_force=."
                )
            if _whole(bc.function_space()) != space:
                raise ValueError(
                    "A DirichletBC belongs to another space than the displacement: make it on "
                    "problem.space, or give the problem your space instead of a mesh."
                )
        if not self.bcs:
            raise ValueError(
                "No boundary conditions: the body could move freely and the tangent is singular. "
                "Give bcs=DirichletBC(V, value, tag); V is the space that was given, or "
                "problem_space(mesh, degree)."
            )
        self.zero = [bc.reconstruct(g=0.0) for bc in self.bcs]
        self._scaled, self._constant = fd.Function(space), fd.Function(space)
        self.owner = np.full(self._scaled.dat.data_ro.size, -1)
        for k, bc in enumerate(self.zero):
            marker = fd.Function(space).assign(1.0)
            bc.apply(marker)
            self.owner[marker.dat.data_ro.reshape(-1) == 0] = k
        self.fixed = self.owner >= 0
        self.load(self.bcs)

    def load(self, bcs: Sequence[Any]) -> None:
        """Take the values of conditions like those of the problem."""
        for part in (self._scaled, self._constant):
            part.assign(0.0)
        for bc in bcs[: self._scaled_count]:
            bc.apply(self._scaled)
        for bc, zero in list(zip(bcs, self.zero, strict=True))[self._scaled_count :]:
            bc.apply(self._constant)
            zero.apply(self._scaled)

    def values(self, factor: float) -> np.ndarray:
        """Prescribed displacements, shape (dofs of this process,); zero at the other dofs."""
        return self._constant.dat.data_ro.reshape(-1) + factor * self._scaled.dat.data_ro.reshape(
            -1
        )

    def rate(self) -> np.ndarray:
        """Derivative of `values` by the factor."""
        return self._scaled.dat.data_ro.reshape(-1).copy()

    def snapshot(self) -> tuple[np.ndarray, ...]:
        """The values that are loaded."""
        return self._constant.dat.data_ro.copy(), self._scaled.dat.data_ro.copy()

    def restore(self, values: tuple[np.ndarray, ...]) -> None:
        """Load what `snapshot` returned."""
        for f, x in zip((self._constant, self._scaled), values, strict=True):
            f.dat.data_wo[...] = x

    def weight(self, index: int, factor: float) -> float:
        """Derivative of the prescribed values by those of one condition."""
        return factor if index < self._scaled_count else 1.0

    def clear(self, cofunction: Any) -> None:
        """Set the entries of prescribed dofs to zero."""
        for bc in self.zero:
            bc.zero(cofunction)

    def tags(self) -> list[int]:
        """Boundary tags of the conditions, each once."""
        found: dict[int, None] = {}
        for bc in self.bcs:
            marks = bc.sub_domain if isinstance(bc.sub_domain, tuple | list) else [bc.sub_domain]
            found.update({int(m): None for m in marks if isinstance(m, int | np.integer)})
        return list(found)


class Forces:
    """Loads that do not follow the deformation, ``constant + factor * scaled``.

    Parameters
    ----------
    space : FunctionSpace
    loads, constant : ufl.Form or sequence of ufl.Form
        Linear forms with a test function of `space`.
    tractions : mapping of boundary tag to vector expression
        Scaled; forces per area of the undeformed boundary.
    body_force : vector expression, optional
        Scaled; force per undeformed volume.

    Attributes
    ----------
    coefficients : list of Function
        The functions in the forms.

    Raises
    ------
    TypeError
        If a load is not a linear form.
    ValueError
        If its test function is of another space, or a traction has another number of components.
    """

    def __init__(
        self,
        space: Any,
        loads: Any = (),
        tractions: Mapping[Any, Any] | None = None,
        body_force: Any = None,
        constant: Any = (),
    ) -> None:
        v = fd.TestFunction(space)
        scaled = [_checked(form, space) for form in _listed(loads)]
        for tag, value in (tractions or {}).items():
            scaled.append(fd.inner(_vector(value, space, f"tractions[{tag!r}]"), v) * fd.ds(tag))
        if body_force is not None:
            scaled.append(fd.inner(_vector(body_force, space, "body_force"), v) * fd.dx)
        kept = [_checked(form, space) for form in _listed(constant)]
        self.space, self._forms = space, [_sum(scaled), _sum(kept)]
        coordinates = mesh_of(space).coordinates
        found: dict[Any, None] = {}
        for form in self._forms:
            if form is not None:
                found.update(dict.fromkeys(extract_coefficients(form)))
        self.coefficients = [f for f in found if f is not coordinates]
        # The tape's values go into copies; the user's functions are never touched.
        self.copies = {f: f.copy(deepcopy=True) for f in self.coefficients}
        self._own = [None if f is None else ufl.replace(f, self.copies) for f in self._forms]
        self._assemblers = [None if f is None else get_assembler(f) for f in self._own]
        self._vectors = [fd.Cofunction(space.dual()) for _ in self._forms]

    def load(self, values: Mapping[Any, Any]) -> None:
        """Take the values of the coefficients and assemble."""
        for f, value in values.items():
            for a, b in zip(value.subfunctions, self.copies[f].subfunctions, strict=True):
                b.dat.data_wo[...] = a.dat.data_ro
        for assembler, vector in zip(self._assemblers, self._vectors, strict=True):
            if assembler is not None:
                assembler.assemble(tensor=vector)

    def values(self, factor: float) -> np.ndarray:
        """Nodal forces, shape (dofs of this process,)."""
        scaled, constant = (f.dat.data_ro.reshape(-1) for f in self._vectors)
        return constant + factor * scaled

    def rate(self) -> np.ndarray:
        """Derivative of `values` by the factor."""
        return self._vectors[0].dat.data_ro.reshape(-1).copy()

    def snapshot(self) -> tuple[np.ndarray, ...]:
        """The nodal forces that are loaded."""
        return tuple(f.dat.data_ro.copy() for f in self._vectors)

    def restore(self, values: tuple[np.ndarray, ...]) -> None:
        """Load what `snapshot` returned."""
        for f, x in zip(self._vectors, values, strict=True):
            f.dat.data_wo[...] = x

    def gradient(self, adjoint: Any, f: Any, factor: float) -> Any:
        """Derivative of ``forces(factor) . adjoint`` by a coefficient, a Cofunction."""
        copy, total = self.copies[f], None
        for form, weight in zip(self._own, (factor, 1.0), strict=True):
            if form is not None and copy in extract_coefficients(form):
                part = fd.assemble(fd.derivative(fd.action(form, adjoint), copy))
                part *= weight
                total = part if total is None else total.assign(total + part)
        return total


def _whole(space: Any) -> Any:
    """The space that a component belongs to."""
    while space.parent is not None:
        space = space.parent
    return space


def _listed(forms: Any) -> list[Any]:
    if forms is None:
        return []
    return list(forms) if isinstance(forms, list | tuple) else [forms]


def _checked(form: Any, space: Any) -> Any:
    if not isinstance(form, ufl.Form) or len(form.arguments()) != 1:
        what = (
            f"a form with {len(form.arguments())} arguments"
            if isinstance(form, ufl.Form)
            else type(form).__name__
        )
        raise TypeError(
            "A load is a linear form with a test function of the displacement, such as "
            f"inner(t, v) * ds(2); got {what}. Expressions go to tractions={{tag: t}} or "
            "body_force=."
        )
    if form.arguments()[0].function_space() != space:
        raise ValueError(
            "The test function of a load belongs to another space than the displacement: make it "
            "with TestFunction(V) of the space that the problem was given."
        )
    return form


def _vector(value: Any, space: Any, what: str) -> Any:
    d = space.value_size
    vector = value
    if not hasattr(value, "ufl_shape"):
        vector = fd.as_vector([x if hasattr(x, "ufl_shape") else fd.Constant(x) for x in value])
    if vector.ufl_shape != (d,):
        raise ValueError(f"{what} has the shape {vector.ufl_shape}, expected ({d},).")
    return vector


def _sum(forms: Sequence[Any]) -> Any:
    return sum(forms[1:], start=forms[0]) if forms else None
