"""The element of functions that are given by their values at quadrature points."""

from __future__ import annotations

from typing import Any

from finat.ufl import FiniteElement

__all__ = ["point_element"]


def point_element(cell: Any, degree: int) -> FiniteElement:
    """A scalar element whose dofs are values at the points of a quadrature.

    Parameters
    ----------
    cell : UFL cell
    degree : int
        Of the quadrature, for ``dx(degree=degree)``.

    Returns
    -------
    FiniteElement
    """
    if cell.cellname != "hexahedron":
        return FiniteElement("Quadrature", cell, degree=degree, quad_scheme="default")
    # Firedrake has no quadrature elements there: this one's nodes are the same Gauss points.
    return FiniteElement("DQ", cell, degree // 2, variant="spectral")
