"""Displacements that are prescribed at boundary tags, from plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import firedrake as fd

__all__ = ["prescribed"]


def prescribed(space: Any, displacements: Mapping[int, Sequence[float | None]]) -> list[Any]:
    """Boundary conditions for `MacroProblem`.

    Parameters
    ----------
    space : FunctionSpace
        Of vectors.
    displacements : mapping of boundary tag to vector
        One number for each direction, at the load factor 1; None where the body may move.

    Returns
    -------
    list of DirichletBC

    Raises
    ------
    ValueError
        If a vector has another number of components, or prescribes nothing.
    """
    d, out = int(space.value_size), []
    for tag, vector in displacements.items():
        if len(vector) != d or all(value is None for value in vector):
            raise ValueError(
                f"The displacement at the boundary tag {tag} has {d} components, one of them a "
                f"number at least; got {list(vector)}."
            )
        if None in vector:
            out += [
                fd.DirichletBC(space.sub(i), value, tag)
                for i, value in enumerate(vector)
                if value is not None
            ]
        else:
            out.append(fd.DirichletBC(space, tuple(vector), tag))
    return out
