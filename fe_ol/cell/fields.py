"""Fields of a cell as Firedrake Functions, for pictures and files."""

from __future__ import annotations

from typing import Any

import firedrake as fd
import torch
from torch import Tensor

from fe_ol.cell.discretisation import Discretisation
from fe_ol.voigt import pairs, to_matrix
from spon import fem

__all__ = ["displacement", "projected", "von_mises"]


def displacement(cell: Discretisation, strain: Tensor, fluctuation: Tensor) -> Any:
    """E x + fluctuation, or (F - I) x + fluctuation at finite strain.

    Parameters
    ----------
    cell : Discretisation
    strain : Tensor, shape (c,)
    fluctuation : Tensor, shape (dofs,)

    Returns
    -------
    Function
        Vector-valued, discontinuous (E x is, on a periodic mesh).
    """
    mesh, degree = cell.space.mesh(), cell.space.ufl_element().embedded_superdegree
    matrix = to_matrix(strain[None], cell.dim, cell.finite)[0]
    if cell.finite:
        matrix = matrix - torch.eye(cell.dim, dtype=torch.float64)
    x = fd.SpatialCoordinate(mesh)
    u = fd.dot(fd.Constant(matrix.tolist()), x) + cell.function(fluctuation)
    space = fd.VectorFunctionSpace(mesh, _discontinuous(mesh), min(degree, 2))
    return fd.Function(space, name="displacement").interpolate(u)


def projected(cell: Discretisation, values: Tensor, name: str) -> Any:
    """Values at the quadrature points as a discontinuous, piecewise linear Function.

    Parameters
    ----------
    cell : Discretisation
    values : Tensor, shape (p,) or (p, k)
    name : str

    Returns
    -------
    Function
        Scalar or vector-valued: the L2 projection in each cell.
    """
    mesh = cell.space.mesh()
    p = len(cell.weights)
    if values.shape[0] != p or values.ndim > 2:
        raise ValueError(
            f"Expected values of shape ({p},) or ({p}, k), one row for each quadrature point, got "
            f"{tuple(values.shape)}."
        )
    columns = values.reshape(p, -1).T
    scalar = fd.FunctionSpace(mesh, _discontinuous(mesh), 1)
    points = fd.FunctionSpace(mesh, cell.scalar_element)
    u, v = fd.TrialFunction(scalar), fd.TestFunction(scalar)
    measure = fd.dx(degree=cell.quadrature_degree)
    mass = fem.LinearSolver(fd.inner(u, v) * measure)
    to_points = fem.sparse_map(fd.interpolate(u, points))
    coefficients = mass(to_points.T.batch((columns * cell.weights).contiguous()))
    if values.ndim == 1:
        return _named(fem.to_function(coefficients[0], scalar), name)
    space = fd.VectorFunctionSpace(mesh, _discontinuous(mesh), 1, dim=len(columns))
    return _named(fem.to_function(coefficients.T.reshape(-1), space), name)


def von_mises(rve: Any, solutions: Any, i: int) -> Tensor:
    """Von Mises stress at the points of an RVE.

    In plane strain the stress across the plane is that of the law's energy, in plane stress it is
    zero. At finite strain it is that of the Cauchy stress P F^T / det F; in plane stress P F^T is
    then divided by the stretch of the plane alone.

    Parameters
    ----------
    rve : RVE
    solutions : Solutions
    i : int

    Returns
    -------
    Tensor, shape (p,)
    """
    c = solutions.stress.shape[2]
    local, strain = solutions.stress[i], solutions.strain[i]
    stress = torch.zeros(len(local), 3, 3, dtype=torch.float64)
    for column, (row, col) in enumerate(pairs(rve.dim, rve.finite)):
        stress[:, row, col] = local[:, column]
        if not rve.finite:
            stress[:, col, row] = local[:, column]
    if rve.dim == 2 and rve.plane == "strain":
        if rve.history:
            raise NotImplementedError(
                "The stress across the plane of a law with history depends on how it was reached: "
                "von Mises stresses are available without history, in plane stress and in 3D."
            )
        rest = 1.0 if rve.finite else 0.0
        wide = torch.cat([strain, torch.full_like(strain[:, :1], rest)], 1)
        for tag, law in rve.materials.items():
            mine = rve.tags == tag
            stress[mine, 2, 2] = law(wide[mine], tangent=False).stress[:, c]
    if rve.finite:
        F = torch.eye(3, dtype=torch.float64).repeat(len(strain), 1, 1)
        F[:, : rve.dim, : rve.dim] = to_matrix(strain, rve.dim, True)
        stress = stress @ F.transpose(1, 2) / torch.linalg.det(F)[:, None, None]
    trace = torch.einsum("pii->p", stress)
    deviator = stress - trace[:, None, None] / 3 * torch.eye(3, dtype=torch.float64)
    return (1.5 * deviator.square().sum((1, 2))).sqrt()


def _discontinuous(mesh: Any) -> str:
    return "DG" if mesh.ufl_cell().is_simplex else "DQ"


def _named(function: Any, name: str) -> Any:
    function.rename(name)
    return function
