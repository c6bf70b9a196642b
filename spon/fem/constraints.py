"""What a decoder promises on the boundary: which dofs are prescribed, and to what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import ufl
from firedrake import Constant, DirichletBC, Function, FunctionSpace, SpatialCoordinate, assemble
from firedrake import interpolate as ufl_interpolate
from firedrake.bcs import BCBase
from tsfc.ufl_utils import extract_firedrake_constants
from ufl.algorithms import extract_coefficients

from spon.fem.spaces import mesh_of, name_of, require_serial, to_function

__all__ = [
    "ValuesOnOneMesh",
    "bc_from_json",
    "bc_to_json",
    "bcs_from_values",
    "boundary_violation",
    "captured_value",
    "checked_bcs",
    "constant_value",
    "essential_values",
    "frozen_value",
    "has_own_nodes",
    "move_bc",
    "moved_value",
]

_OWN_NODES = (
    "The boundary condition on {} holds at nodes of its own, which are numbers on one mesh, not at "
    "those of its tags: give it for the other mesh, {}."
)


def is_rule(bcs: Any) -> bool:
    """Whether conditions are given as a function of the space."""
    return callable(bcs) and not isinstance(bcs, DirichletBC)


def checked_bcs(U: Any, bcs: Any, owner: str = "decoder") -> list[Any]:
    """Bring what a user gave as boundary conditions into a list, and check it.

    Parameters
    ----------
    U : FunctionSpace
        The space of the owner.
    bcs : None, DirichletBC, sequence of DirichletBC, or callable
        A callable takes `U` and returns one of the others.
    owner : str, optional
        How messages call what the conditions are for.

    Returns
    -------
    list of DirichletBC

    Raises
    ------
    TypeError
        If something other than a ``DirichletBC`` is given.
    ValueError
        If a condition belongs to another space, or constrains no dof at all.
    """
    if is_rule(bcs):
        bcs = bcs(U)
    if bcs is None:
        return []
    if isinstance(bcs, DirichletBC):
        bcs = [bcs]
    if not isinstance(bcs, Sequence):
        raise TypeError(
            f"Expected a DirichletBC, a sequence of them or a function of the space that returns "
            f"them, got {type(bcs).__name__}."
        )
    for bc in bcs:
        if not isinstance(bc, DirichletBC):
            raise TypeError(f"Expected DirichletBC objects, found a {type(bc).__name__}.")
        if bc.parent_function_space != U:
            raise ValueError(
                f"A boundary condition belongs to {_describe(bc.parent_function_space)}, the "
                f"{owner} to {_describe(U)}: build the condition on the space of the {owner}."
            )
        _check_tags(bc)
        if len(bc.nodes) == 0:
            raise ValueError(
                f"The boundary condition on {bc.sub_domain} constrains no dof of {_describe(U)}: "
                f"{_why_none(bc)}."
            )
    return list(bcs)


def essential_values(U: Any, bcs: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Dofs that boundary conditions prescribe, and their values.

    Firedrake applies the conditions itself, one after the other, so that sub-spaces, components
    and overlapping boundaries mean here what they mean in a solve.

    Parameters
    ----------
    U : FunctionSpace
    bcs : sequence of DirichletBC on `U` or its sub-spaces

    Returns
    -------
    mask : array of bool, shape (U.dim(),)
        True where the dof is prescribed.
    values : array, shape (U.dim(),)
        Prescribed values, zero elsewhere.

    Raises
    ------
    ValueError
        If a prescribed value is NaN.
    """
    require_serial(mesh_of(U), "A decoder")
    free, values = Function(U), Function(U)
    for part in free.subfunctions:
        part.dat.data_wo[...] = 1.0
    for bc in bcs:
        bc.zero(free)
        bc.apply(values)
    mask, flat = _flat(free) == 0, _flat(values)
    bad = int((~np.isfinite(flat)).sum())
    if bad:
        raise ValueError(
            f"The boundary values are NaN or infinite on {bad} dofs of {_describe(U)}."
        )
    return mask, flat


def boundary_violation(f: Any, bcs: Sequence[Any]) -> float:
    """Largest difference between a function's dofs and what boundary conditions prescribe.

    Parameters
    ----------
    f : Function
    bcs : sequence of DirichletBC on the space of `f` or its sub-spaces

    Returns
    -------
    float
        Zero without conditions.
    """
    expected = f.copy(deepcopy=True)
    for bc in bcs:
        bc.apply(expected)
    return float(np.abs(_flat(f) - _flat(expected)).max())


def has_own_nodes(bc: Any) -> bool:
    """Whether a condition holds at other nodes than those of its boundary tags.

    The usual way to pin a single node is a subclass with a property `nodes`.
    """
    tagged = BCBase(bc.function_space(), bc.sub_domain).nodes
    return not np.array_equal(np.unique(bc.nodes), np.unique(tagged))


def bc_to_json(bc: Any) -> dict[str, Any]:
    """Describe a boundary condition; ``value`` is None unless it is constant."""
    sub_domain = [list(s) if isinstance(s, tuple) else s for s in bc.sub_domain]
    data = {
        "indices": list(bc._indices),
        "sub_domain": sub_domain,
        "value": constant_value(bc._original_arg),
    }
    return data | {"own_nodes": True} if has_own_nodes(bc) else data


def bc_from_json(U: Any, data: dict[str, Any]) -> Any:
    """Build the condition that `bc_to_json` described on a space.

    Raises
    ------
    ValueError
        If the value of the condition was not constant, it held at nodes of its own, or the mesh
        lacks its boundary tag.
    """
    _require_tagged_nodes(data)
    if data["value"] is None:
        raise ValueError(
            f"The boundary condition on {data['sub_domain']} has values that vary in space, which "
            "a file of another mesh does not hold: give the conditions of this mesh with bcs=."
        )
    bc = DirichletBC(_sub_space(U, data["indices"]), data["value"], _tags(data["sub_domain"]))
    _check_tags(bc)
    return bc


def bcs_from_values(U: Any, described: Sequence[dict[str, Any]], values: np.ndarray) -> list[Any]:
    """Build described conditions whose values are given as the dofs of a function.

    Parameters
    ----------
    U : FunctionSpace
    described : sequence of dict
        What `bc_to_json` returned for each condition.
    values : array, shape (U.dim(),)
        Prescribed values on the constrained dofs, anything elsewhere.

    Returns
    -------
    list of DirichletBC

    Raises
    ------
    ValueError
        If a condition held at nodes of its own.
    """
    for data in described:
        _require_tagged_nodes(data)
    g = to_function(torch.from_numpy(values), U)
    bcs = []
    for data in described:
        space, tags = _sub_space(U, data["indices"]), _tags(data["sub_domain"])
        if data["value"] is None:
            bcs.append(ValuesOnOneMesh(space, _sub_space(g, data["indices"]), tags))
        else:
            bcs.append(DirichletBC(space, data["value"], tags))
    return bcs


class ValuesOnOneMesh(DirichletBC):
    """A condition whose values are known at the boundary dofs of its mesh and nowhere else."""


def captured_value(bc: Any) -> Any:
    """The value of a condition now, safe from later changes of a Function or a Constant."""
    return None if isinstance(bc, ValuesOnOneMesh) else frozen_value(bc._original_arg)


def frozen_value(value: Any) -> Any:
    """A number, a Function or an expression as it is now, whatever is assigned later.

    Functions inside an expression are left: it belongs to their mesh, and is not carried over.
    """
    if isinstance(value, Function):
        space = value.function_space()
        # Not `copy`, which fails for a component of a vector function.
        return Function(FunctionSpace(mesh_of(space), space.ufl_element())).interpolate(value)
    constant = constant_value(value)
    if constant is not None:
        return constant
    expression = ufl.as_tensor(value) if isinstance(value, Sequence) else value
    now = {c: _copied(c) for c in extract_firedrake_constants(expression)}
    return ufl.replace(expression, now)


def _copied(constant: Any) -> Any:
    return Constant(constant.dat.data_ro.copy().reshape(constant.ufl_shape))


def move_bc(bc: Any, value: Any, U: Any) -> Any:
    """The same condition on the same element of another mesh.

    Constants are taken over, expressions of the coordinates are evaluated on the new mesh, and
    functions are interpolated to it.

    Parameters
    ----------
    bc : DirichletBC
    value : number, UFL expression or Function
        What `captured_value` returned.
    U : FunctionSpace
        On the new mesh.

    Raises
    ------
    ValueError
        If the values cannot be moved, the condition holds at nodes of its own, or the mesh lacks
        the boundary tag.
    """
    if has_own_nodes(bc):
        raise ValueError(
            _OWN_NODES.format(list(bc.sub_domain), "bcs=lambda U: MyCondition(U, ...)")
        )
    if isinstance(bc, ValuesOnOneMesh):
        raise ValueError(
            f"The boundary condition on {bc.sub_domain} has values that vary in space and comes "
            "from a file, which holds them on its own mesh only: give the conditions of the other "
            "mesh with bcs=."
        )
    space = _sub_space(U, list(bc._indices))
    if constant_value(value) is None:
        value = moved_value(value, bc.function_space(), space)
    moved = DirichletBC(space, value, bc.sub_domain)
    _check_tags(moved)
    return moved


def moved_value(value: Any, old: Any, new: Any) -> Any:
    """A function or an expression of the coordinates on the mesh of another space.

    Raises
    ------
    ValueError
        If an expression holds functions of the old mesh.
    """
    try:
        if isinstance(value, Function):
            return assemble(ufl_interpolate(value, FunctionSpace(mesh_of(new), new.ufl_element())))
        expression = ufl.as_tensor(value) if isinstance(value, Sequence) else ufl.as_ufl(value)
        if extract_coefficients(expression):
            raise NotImplementedError("the expression contains functions of the old mesh")
        change = {SpatialCoordinate(mesh_of(old)): SpatialCoordinate(mesh_of(new))}
        return ufl.replace(expression, change)
    except Exception as error:
        raise ValueError(
            f"The values of the boundary condition cannot be moved to the other mesh ({error}): "
            "give the decoder its conditions as a function of the space, bcs=lambda U: "
            "DirichletBC(U, ..., tag)."
        ) from error


def constant_value(value: Any) -> Any:
    """A number or nested lists of numbers, or None where the value is not constant."""
    expression = ufl.as_tensor(value) if isinstance(value, Sequence | np.ndarray) else value
    expression = ufl.as_ufl(expression)
    if ufl.domain.extract_domains(expression) or extract_coefficients(expression):
        return None
    shape = expression.ufl_shape
    flat = [float(expression[i] if i else expression) for i in np.ndindex(*shape)]
    return np.asarray(flat).reshape(shape).tolist()


def _require_tagged_nodes(data: dict[str, Any]) -> None:
    if data.get("own_nodes"):
        raise ValueError(_OWN_NODES.format(data["sub_domain"], "bcs= at loading"))


def _sub_space(U: Any, indices: Sequence[int]) -> Any:
    for index in indices:
        U = U.sub(index)
    return U


def _tags(sub_domain: Sequence[Any]) -> tuple[Any, ...] | str:
    tags = tuple(tuple(s) if isinstance(s, list) else s for s in sub_domain)
    return tags[0] if len(tags) == 1 and isinstance(tags[0], str) else tags


def _check_tags(bc: Any) -> None:
    wanted = {t for s in bc.sub_domain for t in (s if isinstance(s, tuple) else (s,))}
    mesh = mesh_of(bc.parent_function_space)
    known = {int(t) for t in mesh.exterior_facets.unique_markers}
    known |= {int(t) for t in mesh.interior_facets.unique_markers}
    missing = sorted(t for t in wanted if not isinstance(t, str) and t not in known)
    if missing:
        raise ValueError(
            f"The mesh has no boundary tag {', '.join(map(str, missing))}; its tags are "
            f"{sorted(known)}."
        )


def _why_none(bc: Any) -> str:
    mesh = mesh_of(bc.parent_function_space)
    if len(BCBase(FunctionSpace(mesh, "CG", 1), bc.sub_domain).nodes):
        return "this element has no dofs on the boundary (discontinuous spaces have none)"
    return (
        "the mesh has no facets there (a periodic or closed mesh has no boundary): leave the "
        "condition out"
    )


def _describe(V: Any) -> str:
    return f"{name_of(V)} with {V.dim()} dofs"


def _flat(f: Any) -> np.ndarray:
    return np.concatenate([part.dat.data_ro.reshape(-1) for part in f.subfunctions])
