"""What a macroscopic problem takes: checks of arguments, with messages that help."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

import firedrake as fd
import numpy as np

from fe_ol.identity import STRETCHES

__all__ = ["checked_materials", "checked_space", "listed", "load_factors", "problem_space"]


def problem_space(mesh: Any, degree: int = 2) -> Any:
    """The space of displacements that `MacroProblem` makes on a mesh.

    Parameters
    ----------
    mesh : firedrake mesh
    degree : int, optional

    Returns
    -------
    FunctionSpace
        Continuous vectors of that degree.
    """
    return fd.VectorFunctionSpace(mesh, "CG", degree)


def load_factors(load_steps: int | Iterable[float]) -> list[float]:
    """The load factors that an argument of `MacroProblem.solve` means.

    Raises
    ------
    ValueError
        If it is neither a number of steps nor a sequence of numbers.
    """
    if isinstance(load_steps, int | np.integer) and not isinstance(load_steps, bool):
        if load_steps < 1:
            raise ValueError(f"load_steps must be at least 1, got {load_steps}.")
        return [(k + 1) / int(load_steps) for k in range(int(load_steps))]
    values: list[float] = []
    with contextlib.suppress(TypeError, ValueError):
        values = [float(x) for x in load_steps]  # type: ignore[union-attr]
    if not values or not np.isfinite(values).all():
        raise ValueError(
            f"load_steps is a number of steps or a sequence of load factors, got {load_steps!r}."
        )
    return values


def listed(bcs: Any) -> list[Any]:
    """One thing, several, or None, as a list."""
    if bcs is None:
        return []
    return list(bcs) if isinstance(bcs, list | tuple) else [bcs]


def checked_space(given: Any, degree: int) -> Any:
    """The space of displacements that was given, or that of a mesh.

    Raises
    ------
    TypeError, ValueError
        If it cannot be one.
    """
    if isinstance(given, fd.MeshGeometry):
        given = problem_space(given, degree)
    if not hasattr(given, "ufl_element") or not hasattr(given, "dof_dset"):
        raise TypeError(
            f"MacroProblem takes a Firedrake mesh or FunctionSpace, got {type(given).__name__}."
        )
    mesh = given.mesh().unique()
    d = int(mesh.geometric_dimension)
    if d not in (2, 3) or mesh.topological_dimension != d:
        raise ValueError(
            f"A macroscopic problem lives in 2 or 3 dimensions, this mesh has cells of dimension "
            f"{mesh.topological_dimension} in {d}D."
        )
    if given.value_shape != (d,):
        raise ValueError(
            f"A displacement in {d}D has {d} components, functions of the space given have the "
            f"shape {given.value_shape}: use a VectorFunctionSpace."
        )
    return given


def checked_materials(material: Any, dim: int) -> dict[int, Any]:
    """Materials by cell tag; a single one has the tag 0.

    Raises
    ------
    TypeError, ValueError
        If one is no material, or they do not fit each other or the dimension.
    """
    materials = dict(material) if isinstance(material, Mapping) else {0: material}
    if not materials:
        raise ValueError("material is empty: give a material, or one for each cell tag.")
    for m in materials.values():
        if not callable(m) or not hasattr(m, "finite") or not hasattr(m, "history"):
            raise TypeError(
                f"A material is called with strains and has the attributes dim, finite and history "
                f"(fe_ol.materials.Material); {type(m).__name__} has not."
            )
        source = getattr(getattr(m, "surrogate", m), "source", None)
        if isinstance(source, dict) and source.get(STRETCHES, False):
            raise ValueError(
                f"{type(m).__name__} was made of stretches and knows no rotations: give the "
                "problem fe_ol.Objective(material), which turns it with the body."
            )
        if getattr(m, "dim", None) not in (None, dim):
            raise ValueError(
                f"The material {type(m).__name__} has {m.dim} dimensions, the mesh has {dim}."
            )
    kinds = {bool(m.finite) for m in materials.values()}
    if len(kinds) > 1:
        raise ValueError(
            "Materials of small and of finite strains do not go together in one problem: "
            + ", ".join(
                f"{type(m).__name__} is of {'finite' if m.finite else 'small'} strains"
                for m in materials.values()
            )
            + "."
        )
    return materials
