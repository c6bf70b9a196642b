"""The matrix of an interpolation, also where the interpolated function jumps between cells.

Firedrake interpolates cell by cell, and a dof that several cells share keeps the value of the last
of them. Its matrix is right as long as the cells agree. Where they do not (from a discontinuous
space or a gradient into a continuous one) it sums their columns. Here such matrices are assembled
into the broken version of the target, whose cells share nothing, and the row of the last cell is
taken for each dof.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import finat.ufl
import numpy as np
import scipy.sparse as sp
import ufl
from firedrake import Function, FunctionSpace, TrialFunction, assemble
from firedrake import interpolate as ufl_interpolate

from spon.fem.spaces import mesh_of, name_of

__all__ = ["interpolation_matrix"]

Export = Callable[[Any], sp.csr_matrix]


def interpolation_matrix(form: Any, export: Export) -> sp.csr_matrix:
    """Assemble an interpolation with one trial function.

    Parameters
    ----------
    form : firedrake.Interpolate
    export : callable
        From an assembled Firedrake matrix to scipy.

    Returns
    -------
    csr_matrix, shape (target.dim(), source.dim())

    Raises
    ------
    NotImplementedError
        If the cells disagree about shared dofs and the target has no broken version.
    """
    operand = form.ufl_operands[0]
    target = form.target_space
    (argument,) = (a for a in form.arguments() if a.number() == 1)
    source = argument.function_space()
    if mesh_of(source) is not mesh_of(target) or not _shares_dofs(target):
        return export(assemble(form, mat_type="aij"))
    if isinstance(operand, type(argument)):
        if source == target:
            return sp.identity(source.dim(), format="csr")
        if source.ufl_element() in ufl.H1:
            return export(assemble(form, mat_type="aij"))
    broken = _broken(target)
    if broken is None:
        matrix = export(assemble(form, mat_type="aij"))
        _require_agreement(matrix, operand, argument, target)
        return matrix
    values = export(assemble(ufl_interpolate(operand, broken), mat_type="aij"))
    return values[_row_of_last_cell(target, broken, export)]


def _shares_dofs(space: Any) -> bool:
    """Whether some dof belongs to several cells."""
    for part in space.subspaces:
        nodes = part.cell_node_map()
        if nodes is None or nodes.values.size > part.dof_dset.size:
            return True
    return False


def _broken(space: Any) -> Any:
    """The space with the same dofs in each cell, none of them shared; None if there is none."""
    if len(space) > 1:
        return None
    element = space.ufl_element()
    if space.mesh().ufl_cell().cellname != "hexahedron":
        return FunctionSpace(space.mesh(), finat.ufl.BrokenElement(element))
    # Firedrake takes no BrokenElement there. Up to degree 2 the nodes of Q are equispaced, and
    # those of equispaced DQ the same.
    scalar = element.sub_elements[0] if isinstance(element, finat.ufl.MixedElement) else element
    if scalar.family() != "Q" or (scalar.degree() > 2 and scalar.variant() != "equispaced"):
        return None
    dq = finat.ufl.FiniteElement("DQ", scalar.cell, scalar.degree(), variant="equispaced")
    shape = space.value_shape
    if shape:
        dq = finat.ufl.TensorElement(dq, shape=shape)
        if len(shape) == 1:
            dq = finat.ufl.VectorElement(dq.sub_elements[0], dim=shape[0])
    return FunctionSpace(space.mesh(), dq)


def _row_of_last_cell(space: Any, broken: Any, export: Export) -> np.ndarray:
    """For each dof of `space`, its dof in `broken` in the last cell that has it."""
    same = export(assemble(ufl_interpolate(TrialFunction(space), broken), mat_type="aij")).tocoo()
    nodes = broken.cell_node_map().values
    cell_of_node = np.empty(nodes.size, dtype=np.int64)
    cell_of_node[nodes.ravel()] = np.repeat(np.arange(len(nodes)), nodes.shape[1])
    block = broken.dim() // nodes.size
    one = np.abs(same.data - 1) < 1e-6
    rows, cols = same.row[one], same.col[one]
    order = np.argsort(cell_of_node[rows // block], kind="stable")
    last = np.full(space.dim(), -1, dtype=np.int64)
    last[cols[order]] = rows[order]
    if (last < 0).any():
        raise NotImplementedError(
            f"The dofs of {name_of(space)} are not those of its broken version: interpolate into a "
            "discontinuous space, or project."
        )
    return last


def _require_agreement(matrix: sp.csr_matrix, operand: Any, argument: Any, target: Any) -> None:
    """Compare the matrix with Firedrake's interpolation of one random function."""
    f = Function(argument.function_space())
    rng = np.random.default_rng(0)
    for part in f.subfunctions:
        part.dat.data_wo[...] = rng.standard_normal(part.dat.data_ro.shape)
    g = assemble(ufl_interpolate(ufl.replace(operand, {argument: f}), target))
    x, y = (np.concatenate([p.dat.data_ro.ravel() for p in h.subfunctions]) for h in (f, g))
    if np.abs(matrix @ x - y).max() > 1e-10 * max(np.abs(y).max(), 1e-300):
        raise NotImplementedError(
            f"Neighbouring cells disagree about the dofs of {name_of(target)} that they share, and "
            "the element has no broken version here: interpolate into a discontinuous space, or "
            "use the L2 projection (Encoder(..., method='project'))."
        )
