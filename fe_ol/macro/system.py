"""The discrete equations of a macroscopic problem, and their evaluation.

Stress and tangent of the materials are data in Quadrature functions. The residual and the Jacobian
are UFL forms of these data, compiled once; an iteration runs kernels and asks the materials, and
does nothing symbolic.
"""

from __future__ import annotations

from typing import Any

import firedrake as fd
import numpy as np
import petsctools
import torch
import ufl
from finat.ufl import VectorElement
from firedrake import get_interpolator
from firedrake.assemble import get_assembler
from firedrake.petsc import DEFAULT_DIRECT_SOLVER_PARAMETERS, PETSc
from pyadjoint import stop_annotating
from torch import Tensor

from fe_ol.cell.points import point_element
from fe_ol.macro.conditions import Conditions, Forces
from fe_ol.macro.points import Answer, MaterialFailure, Points
from fe_ol.voigt import pairs
from spon.fem import mesh_of

__all__ = ["LinearFailure", "System", "cell_tags", "default_degree", "strain_of"]

_DIRECT = {"ksp_type": "preonly", "pc_type": "lu", **DEFAULT_DIRECT_SOLVER_PARAMETERS}


class LinearFailure(ArithmeticError):
    """The tangent could not be factorised, or the linear solver did not converge."""


def default_degree(space: Any) -> int:
    """Quadrature degree that integrates the linear elastic energy on undistorted cells."""
    degree = space.ufl_element().embedded_superdegree
    mesh = mesh_of(space)
    if mesh.ufl_cell().cellname in ("triangle", "tetrahedron"):
        curved = mesh.coordinates.function_space().ufl_element().degree() > 1
        return max(2 * (degree - 1), 1) + (2 if curved else 0)
    sub = space.ufl_element()
    power = max(_powers(sub), 1)
    return 2 * power


def _powers(element: Any) -> int:
    """Highest power of one coordinate, on cells that are products."""
    degree = element.degree()
    return max(degree) if isinstance(degree, tuple) else int(degree)


def strain_of(u: Any, dim: int, finite: bool, linear: bool = False) -> Any:
    """Strain of a displacement as a UFL vector in the conventions of `fe_ol.voigt`.

    Parameters
    ----------
    u : UFL vector
    dim : int
    finite : bool
    linear : bool, optional
        Without the identity of the deformation gradient.
    """
    g = fd.grad(u)
    if finite:
        one = fd.Identity(dim)
        return fd.as_vector([g[i, j] + (0 if linear else one[i, j]) for i, j in pairs(dim, True)])
    return fd.as_vector([g[i, j] + g[j, i] if i != j else g[i, i] for i, j in pairs(dim)])


class System:
    """Unknown, data at the points, residual and Jacobian.

    Parameters
    ----------
    space : FunctionSpace
        Of the displacement.
    finite : bool
    degree : int
        Quadrature degree.
    conditions : Conditions
    forces : Forces
    parameters : dict
        PETSc options of the linear solver and of SNES; a direct solver by default.

    Attributes
    ----------
    u : Function
        The unknown.
    strain, stress, tangent : Function
        Data at the points; the tangent row by row.
    weights : Tensor, shape (n,)
        Quadrature weights of the points of this process; their sum over all is the volume.
    ksp : PETSc.KSP
    """

    def __init__(
        self,
        space: Any,
        finite: bool,
        degree: int,
        conditions: Conditions,
        forces: Forces,
        parameters: dict[str, Any],
    ) -> None:
        mesh = mesh_of(space)
        self.space, self.degree, self.finite = space, degree, finite
        self.dim = int(mesh.geometric_dimension)
        self.conditions, self.forces = conditions, forces
        self.comm = mesh.comm
        scalar = point_element(mesh.ufl_cell(), degree)
        c = len(pairs(self.dim, finite))
        self.components = c
        self.scalars = fd.FunctionSpace(mesh, scalar)
        at_points = fd.FunctionSpace(mesh, VectorElement(scalar, dim=c))
        self.u = fd.Function(space, name="displacement")
        self.strain = fd.Function(at_points, name="strain")
        self.stress = fd.Function(at_points, name="stress")
        self.tangent = fd.Function(fd.FunctionSpace(mesh, VectorElement(scalar, dim=c * c)))
        self._direction = fd.Function(space)
        self._slope = fd.Function(at_points)
        dx = fd.dx(domain=mesh, degree=degree)
        v, w, C = fd.TestFunction(space), fd.TrialFunction(space), self.tangent
        matrix = ufl.as_matrix([[C[c * i + j] for j in range(c)] for i in range(c)])

        def slope(f: Any) -> Any:
            return strain_of(f, self.dim, finite, linear=True)

        def along(f: Any) -> Any:
            return fd.inner(fd.dot(matrix, slope(f)), slope(v)) * dx

        self.jacobian = fd.inner(fd.dot(matrix, slope(w)), slope(v)) * dx
        self._internal = get_assembler(fd.inner(self.stress, slope(v)) * dx)
        self._matrix_of = get_assembler(self.jacobian, bcs=conditions.zero, mat_type="aij")
        self._along = get_assembler(along(self._direction))
        transposed = fd.inner(fd.dot(ufl.transpose(matrix), slope(self._direction)), slope(v))
        self._along_transposed = get_assembler(transposed * dx)
        self._strain_run = _interpolation(strain_of(self.u, self.dim, finite), self.strain)
        self._slope_run = _interpolation(slope(self._direction), self._slope)
        one = fd.assemble(fd.TestFunction(self.scalars) * dx)
        self.weights = torch.from_numpy(one.dat.data_ro.copy())
        self._force = fd.Cofunction(space.dual())
        self._load = fd.Cofunction(space.dual())
        self._matrix: Any = None
        self.options = petsctools.OptionsManager({**_DIRECT, **parameters}, None)
        self.ksp: Any = None  # of SNES, which sets it
        with self.u.dat.vec_ro as vector:
            self.vector = vector.duplicate()
        self._fresh: np.ndarray | None = None
        self._factored = False

    # ---- the points ---------------------------------------------------------------------------

    def outdated(self) -> None:
        """Materials or states were changed: ask again at the next evaluation."""
        self._fresh, self._factored = None, False

    def evaluate(self, points: Points) -> None:
        """Ask the materials at the present displacement, unless that was the last question.

        Raises
        ------
        MaterialFailure
        """
        here = _values(self.u)
        same = self._fresh is not None and np.array_equal(here, self._fresh)
        if self.comm.allreduce(int(same)) == self.comm.size:
            return
        self.outdated()
        self.take(points.evaluate(self.strains()))

    def take(self, answer: Answer) -> None:
        """Take stresses and tangents that belong to the present displacement."""
        _write(answer.stress, self.stress)
        _write(answer.tangent, self.tangent)
        self._fresh = self.values()

    def strains(self) -> Tensor:
        """Strains at the points of this process, shape (n, c)."""
        self._strain_run()
        return _read(self.strain)

    def read_strains(self) -> Tensor:
        """Strains of the last evaluation, shape (n, c)."""
        return _read(self.strain)

    def slopes(self, direction: Any) -> Tensor:
        """Derivative of the strains along a displacement, shape (n, c)."""
        _copy(direction, self._direction)
        self._slope_run()
        return _read(self._slope)

    # ---- vectors of the dofs of this process ---------------------------------------------------

    def internal_force(self) -> np.ndarray:
        """Nodal forces of the stress."""
        self._internal.assemble(tensor=self._force)
        return _values(self._force)

    def residual(self, factor: float) -> np.ndarray:
        """Internal minus external forces, reactions included."""
        return self.internal_force() - self.forces.values(factor)

    def cleared(self, forces: np.ndarray) -> np.ndarray:
        """The same without the entries of prescribed dofs."""
        return np.where(self.conditions.fixed, 0.0, forces)

    def norm(self, values: np.ndarray) -> float:
        """Euclidean norm over all processes."""
        return float(np.sqrt(self.dot(values, values)))

    def dot(self, a: np.ndarray, b: np.ndarray) -> float:
        """Inner product over all processes."""
        return float(self.comm.allreduce(float(a @ b)))

    def along(self, direction: np.ndarray, transposed: bool = False) -> np.ndarray:
        """The whole tangent, or its transpose, times a displacement."""
        self._direction.dat.data_wo.reshape(-1)[:] = direction
        assembler = self._along_transposed if transposed else self._along
        assembler.assemble(tensor=self._load)
        return _values(self._load)

    # ---- the matrix ----------------------------------------------------------------------------

    def matrix(self) -> Any:
        """The Jacobian at the last evaluation, with the identity at prescribed dofs."""
        self._matrix = self._matrix_of.assemble(tensor=self._matrix)
        self._factored = False
        return self._matrix.petscmat

    def solve(
        self, force: np.ndarray, boundary: np.ndarray | None = None, transposed: bool = False
    ) -> np.ndarray:
        """Solve with the tangent at the last evaluation.

        Parameters
        ----------
        force : array, shape (dofs of this process,)
        boundary : array, shape (dofs of this process,), optional
            Displacement at prescribed dofs, zero elsewhere; zero by default.
        transposed : bool, optional

        Raises
        ------
        LinearFailure
        """
        if not self._factored:
            matrix = self.matrix()
            self.ksp.setOperators(matrix, matrix)
            self._factored = True
        if boundary is not None:
            force = force - self.along(boundary, transposed)
        b, x = self.vector.duplicate(), self.vector.duplicate()
        b.array_w[:] = self.cleared(force)
        with self.options.inserted_options():
            (self.ksp.solveTranspose if transposed else self.ksp.solve)(b, x)
        if self.ksp.getConvergedReason() < 0:
            raise LinearFailure(linear_message(self.ksp))
        solution = x.array_r.copy()
        return solution if boundary is None else solution + boundary

    def set(self, values: np.ndarray) -> None:
        """Set the displacement."""
        self.u.dat.data_wo.reshape(-1)[:] = values

    def values(self) -> np.ndarray:
        """The displacement."""
        return _values(self.u)

    def function(self, values: np.ndarray, name: str = "displacement") -> Any:
        """A displacement as a Function of its own."""
        with stop_annotating():
            f = fd.Function(self.space, name=name)
            f.dat.data_wo.reshape(-1)[:] = values
        return f


def linear_message(ksp: Any) -> str:
    """What to say of a linear solver that failed."""
    return (
        f"the linear solver failed (KSP reason {ksp.getConvergedReason()}): the tangent is "
        "singular, as in a body that is not held or at a limit point, or not made for that solver"
    )


def cell_tags(system: System, tags: list[int]) -> Tensor:
    """Cell tag of each point of this process.

    Parameters
    ----------
    system : System
    tags : list of int
        Tags that have a material.

    Returns
    -------
    Tensor, shape (n,)

    Raises
    ------
    ValueError
        If a tag marks no cell, or cells have no material.
    """
    mesh = mesh_of(system.space)
    v = fd.TestFunction(system.scalars)
    found = torch.full((len(system.weights),), -1, dtype=torch.int64)
    for tag in tags:
        share = fd.assemble(v * fd.dx(tag, domain=mesh, degree=system.degree)).dat.data_ro
        mine = torch.from_numpy(share.copy()).abs() > 0.5 * system.weights.abs()
        if not mesh.comm.allreduce(int(mine.sum())):
            raise ValueError(
                f"No cell of the mesh has the tag {tag!r} that a material is given for: see "
                "spon.fem.mesh_tags for the tags of a file."
            )
        found[mine] = tag
    without = mesh.comm.allreduce(int((found < 0).sum()))
    if without:
        points = mesh.comm.allreduce(len(found))
        raise ValueError(
            f"{without} of {points} quadrature points lie in cells without a material: the "
            f"materials are for the cell tags {tags}."
        )
    return found


def _interpolation(expression: Any, target: Any) -> Any:
    interpolator = get_interpolator(fd.interpolate(expression, target.function_space()))
    # The public `assemble` makes this callable each time, which takes longer than it runs.
    run = interpolator._get_callable(tensor=target)

    def quietly() -> None:
        with stop_annotating():
            run()

    return quietly


def _values(f: Any) -> np.ndarray:
    return np.array(f.dat.data_ro, dtype=np.float64).reshape(-1)


def _read(f: Any) -> Tensor:
    values = np.array(f.dat.data_ro, dtype=np.float64)
    return torch.from_numpy(values.reshape(len(values), -1))


def _write(values: Tensor, f: Any) -> None:
    target = f.dat.data_wo
    target[...] = values.numpy().reshape(target.shape)


def _copy(source: Any, target: Any) -> None:
    target.dat.data_wo[...] = source.dat.data_ro


# Names used by those who catch what an evaluation or a solve raises.
FAILURES = (MaterialFailure, LinearFailure, PETSc.Error)
