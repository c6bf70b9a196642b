"""The macroscopic problem: any mesh, any material, load steps by Newton's method."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import firedrake as fd
import numpy as np
import torch
from pyadjoint import annotate_tape, stop_annotating

from fe_ol.macro.adjoint import record, torch_solution
from fe_ol.macro.checks import checked_materials, checked_space, listed, load_factors
from fe_ol.macro.conditions import Conditions, Forces
from fe_ol.macro.course import Course
from fe_ol.macro.fields import draw, point_fields, smooth, von_mises
from fe_ol.macro.newton import Newton
from fe_ol.macro.parameters import Parameters
from fe_ol.macro.points import Points
from fe_ol.macro.result import MacroResult
from fe_ol.macro.steps import ArcLength
from fe_ol.macro.system import System, cell_tags, default_degree
from spon.fem import mesh_of, require_serial, signature, write_vtk

__all__ = ["MacroProblem"]


class MacroProblem:
    """A body in equilibrium, of any material of the protocol.

    At the load factor t the prescribed displacements are ``t * bcs + constant_bcs`` and the forces
    ``t * (loads + tractions + body_force) + constant_loads``. Forces do not follow the deformation.
    In two dimensions the body is one thick, and the material decides between plane strain and
    plane stress.

    Parameters
    ----------
    mesh_or_space : firedrake mesh or FunctionSpace
        A mesh, or the space of the displacements, with a component for each direction.
    material : Material, or mapping of cell tag to Material
        A law, a representative volume element, a surrogate. All of small or all of finite strains.
        Where the mesh is distributed, each process asks its own material for its own points; the
        mesh of a representative volume element then lives on ``COMM_SELF``.
    bcs : DirichletBC or sequence of DirichletBC
        With their values at the load factor 1; on `space`, or on its components
        ``problem_space(mesh).sub(0)``. Their values are read when `solve` begins.
    loads : ufl.Form or sequence of ufl.Form, optional
        Linear forms such as ``inner(t, v) * ds(2)``, at the load factor 1.
    tractions : mapping of boundary tag to vector, optional
        Forces per area, numbers or UFL expressions, at the load factor 1.
    body_force : vector, optional
        Force per volume, at the load factor 1.
    constant_bcs, constant_loads : optional
        The same at every load factor.
    degree : int, optional
        Of the displacements, if a mesh is given.
    quadrature_degree : int, optional
        By default what integrates the energy of a linear elastic body on undistorted cells: three
        points in a quadratic triangle, nine in a biquadratic quadrilateral.
    reactions : sequence of int, optional
        Further boundary tags whose reactions are recorded, besides those of the conditions.
    tolerance : float, optional
        Forces out of balance at which Newton's method ends, relative to the larger of the internal
        and the external forces, in the Euclidean norm of nodal forces with reactions.
    max_iterations : int, optional
        A step that needs more is cut back.
    line_search : str, optional
        ``"basic"`` for none; PETSc's ``"bt"``, ``"l2"``, ``"cp"``.
    max_cutbacks : int, optional
        How often a load step may be halved.
    solver_parameters : dict, optional
        PETSc options of the linear solver (MUMPS by default) and of SNES. In three dimensions
        ``{"ksp_type": "gmres", "ksp_rtol": 1e-8, "pc_type": "gamg"}`` is much faster beyond some
        20,000 dofs.

    Attributes
    ----------
    space : FunctionSpace
    displacement : Function
        The present displacement.
    parameters : Parameters
        Trainable parameters of the materials; ``parameters.function`` is a control on pyadjoint's
        tape.

    Raises
    ------
    TypeError, ValueError
        If the arguments do not fit each other; the message says which.

    Examples
    --------
    >>> V = problem_space(mesh)                                               # doctest: +SKIP
    >>> problem = MacroProblem(V, LinearElastic(K=1.0, G=0.5), bcs=DirichletBC(V, 0, 1),
    ...                        tractions={2: (0.0, 0.1)})                     # doctest: +SKIP
    >>> print(problem.solve(load_steps=10))                                   # doctest: +SKIP
    """

    def __init__(
        self,
        mesh_or_space: Any,
        material: Any,
        bcs: Any = (),
        loads: Any = (),
        *,
        tractions: Mapping[Any, Any] | None = None,
        body_force: Any = None,
        constant_bcs: Any = (),
        constant_loads: Any = (),
        degree: int = 2,
        quadrature_degree: int | None = None,
        reactions: Sequence[int] = (),
        tolerance: float = 1e-9,
        max_iterations: int = 20,
        line_search: str = "basic",
        max_cutbacks: int = 10,
        solver_parameters: Mapping[str, Any] | None = None,
    ) -> None:
        if not 0 < tolerance < 1 or max_iterations < 1 or max_cutbacks < 0:
            raise ValueError(
                "Expected 0 < tolerance < 1, max_iterations >= 1 and max_cutbacks >= 0, got "
                f"{tolerance}, {max_iterations}, {max_cutbacks}."
            )
        self.space = space = checked_space(mesh_or_space, degree)
        dim = int(space.value_size)
        materials = checked_materials(material, dim)
        with stop_annotating():
            conditions = Conditions(space, listed(bcs), listed(constant_bcs))
            forces = Forces(space, loads, tractions, body_force, constant_loads)
            self.system = System(
                space,
                next(iter(materials.values())).finite,
                default_degree(space) if quadrature_degree is None else int(quadrature_degree),
                conditions,
                forces,
                dict(solver_parameters or {}),
            )
            tags = _tags(self.system, material, materials)
            self.points = Points(materials, tags, self.system.components, self.system.comm)
            self.newton = Newton(self.system, self.points, tolerance, max_iterations, line_search)
            wanted = dict.fromkeys([*conditions.tags(), *map(int, reactions)])
            self.course = Course(self.system, self.points, self.newton, wanted, max_cutbacks)
        self.displacement = self.system.u

    @cached_property
    def parameters(self) -> Parameters:
        """Trainable parameters of the materials, found when they are first asked for.

        Raises
        ------
        TypeError
            If one is not float64, or no leaf.
        """
        return Parameters(self.points.materials)

    def solve(
        self,
        load_steps: int | Iterable[float] = 10,
        *,
        arc_length: ArcLength | None = None,
        start: Any = None,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = True,
        progress: bool = True,
        annotate: bool = True,
    ) -> MacroResult:
        """Load the body, from rest.

        Parameters
        ----------
        load_steps : int or sequence of float, optional
            Number of equal steps to the load factor 1, or the load factors one after the other
            (they may fall again).
        arc_length : ArcLength, optional
            Follow the path of displacement and load factor instead.
        start : Function, optional
            Displacement from which Newton's method starts in the first step, such as a surrogate's
            answer; the materials are at rest nevertheless. Zero by default.
        checkpoint : path, optional
            File that is written anew after every step.
        resume : bool, optional
            Go on from that file if it is there.
        progress : bool, optional
            Show a progress bar.
        annotate : bool, optional
            Whether the displacement of every step is recorded while pyadjoint records.

        Returns
        -------
        MacroResult

        Raises
        ------
        LoadStepError
            If a step fails, however small; it holds the steps until then.
        MacroFileError
            If the checkpoint is of another problem.
        NotImplementedError
            If pyadjoint records and a material has history, or an arc-length step is taken.
        """
        factors = load_factors(load_steps) if arc_length is None else None
        recording = annotate_tape({"annotate": annotate})
        if recording:
            self._require_recordable(arc_length)
        with stop_annotating():
            self._begin()
            if start is not None:
                self._start_from(start)
            steps = self.course.run(factors, arc_length, checkpoint, resume, progress)
        if recording:
            record(self, steps)
        return MacroResult(steps)

    def solve_torch(
        self, load_steps: int | Iterable[float] = 10, progress: bool = False
    ) -> torch.Tensor:
        """The displacement at the end, differentiable by torch.

        ``backward`` reaches the trainable parameters of the materials (`parameters`) by the adjoint
        of the last equilibrium: one linear solve.

        Parameters
        ----------
        load_steps, progress
            As in `solve`.

        Returns
        -------
        Tensor, shape (space.dim(),)

        Raises
        ------
        LoadStepError
            If a step fails.
        NotImplementedError
            If a material has history, or the mesh is distributed over several processes.
        """
        require_serial(mesh_of(self.space), "solve_torch")
        self._require_recordable(None)
        result = self.solve(load_steps, progress=progress, annotate=False)
        return torch_solution(self, result.displacement, result[-1].factor)

    @contextlib.contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Where another state is looked at; the present one comes back at the end."""
        kept = (self.system.values(), self.points.committed)
        given = (self.system.conditions.snapshot(), self.system.forces.snapshot())
        try:
            yield
        finally:
            self.system.set(kept[0])
            self.points.reject()
            self.points.restore(kept[1])
            self.system.conditions.restore(given[0])
            self.system.forces.restore(given[1])
            self.system.outdated()

    # ---- fields of the last converged step ------------------------------------------------------

    def strain(self) -> Any:
        """Strains at the quadrature points, a Function of vectors as in `fe_ol.voigt`."""
        self._evaluate()
        return self._copied(self.system.strain)

    def stress(self) -> Any:
        """Stresses at the quadrature points, a Function of vectors as in `fe_ol.voigt`."""
        self._evaluate()
        return self._copied(self.system.stress)

    def von_mises(self) -> Any:
        """Equivalent stress of von Mises at the quadrature points, a scalar Function.

        At finite strains that of Cauchy's stress. In two dimensions the stress across the plane
        counts as zero: a homogenised material does not know it.
        """
        with stop_annotating():
            f = fd.Function(self.system.scalars, name="von Mises stress")
            f.dat.data_wo[:] = self._equivalent().numpy()
        return f

    def field(self, values: torch.Tensor, name: str, means: bool = False) -> Any:
        """Values at the quadrature points as a Function to draw or to write.

        Parameters
        ----------
        values : Tensor, shape (n,) or (n, k)
            At the points of this process, in the order in which the materials are asked.
        name : str
        means : bool, optional
            The mean in each cell, which stays within the bounds of the values.

        Returns
        -------
        Function
            Polynomials in each cell, fitted by least squares, or the means.

        Raises
        ------
        ValueError
            If there is not one row for each point.
        """
        points = len(self.system.weights)
        if len(values) != points:
            raise ValueError(
                f"Expected values at the {points} quadrature points of this process, got "
                f"{len(values)}."
            )
        with stop_annotating():
            return smooth(self.system, values.double(), name, degree=0 if means else None)

    def write_vtk(self, path: str | os.PathLike[str]) -> Path:
        """Write displacement, stress, strain and von Mises stress for ParaView.

        Values at the points are written as polynomials in each cell, fitted by least squares.

        Parameters
        ----------
        path : path
            ``.pvd`` or ``.vtu``, see `spon.fem.write_vtk`.

        Returns
        -------
        Path
            The file to open.
        """
        self._evaluate()
        with stop_annotating():
            fields = point_fields(self.system, self._equivalent())
        return write_vtk(path, self.displacement, *fields)

    def plot(
        self, path: str | os.PathLike[str], deform: float | None = None, field: Any = None
    ) -> Path:
        """Draw the deformed body, coloured by the von Mises stress.

        Parameters
        ----------
        path : path
            Picture to write; the ending chooses the format.
        deform : float, optional
            Factor on the displacement; by default 1, or what makes it visible.
        field : Function, optional
            Another scalar field on the mesh; it is labelled by its name.

        Returns
        -------
        Path
        """
        label = "von Mises stress" if field is None else field.name()
        if field is None:
            field = smooth(self.system, self._equivalent(), label)
        return draw(self.displacement, field, path, label, deform)

    def _evaluate(self) -> None:
        with stop_annotating():
            self.system.evaluate(self.points)

    def _equivalent(self) -> torch.Tensor:
        self._evaluate()
        stress, strain = (
            torch.from_numpy(f.dat.data_ro.copy()) for f in (self.system.stress, self.system.strain)
        )
        return von_mises(stress, self.system.dim, strain if self.system.finite else None)

    def _copied(self, f: Any) -> Any:
        with stop_annotating():
            return f.copy(deepcopy=True)

    def _begin(self) -> None:
        """From rest, with the present values of loads, conditions and parameters."""
        if "parameters" in self.__dict__:
            self.parameters.synchronise()
        self.system.conditions.load(self.system.conditions.bcs)
        self.system.forces.load({f: f for f in self.system.forces.coefficients})
        self.reset()

    def _start_from(self, start: Any) -> None:
        if not isinstance(start, fd.Function) or start.function_space() != self.space:
            found = (
                signature(start.function_space()).describe()
                if isinstance(start, fd.Function)
                else type(start).__name__
            )
            raise ValueError(
                "start must be a Function in the space of the displacements, "
                f"{signature(self.space).describe()}; got {found}."
            )
        self.system.set(start.dat.data_ro.reshape(-1))
        self.system.outdated()

    def reset(self) -> None:
        """Back to rest: no displacement, materials in their initial state."""
        self.system.set(np.zeros_like(self.system.values()))
        self.points.reset()
        self.system.outdated()

    def _require_recordable(self, arc: ArcLength | None) -> None:
        advice = "pass annotate=False, or solve inside stop_annotating()."
        if self.points.history:
            names = [type(m).__name__ for m in self.points.materials if m.history]
            raise NotImplementedError(
                f"The tape does not follow materials with history ({', '.join(names)}): {advice}"
            )
        if arc is not None:
            raise NotImplementedError(f"The tape does not follow arc-length steps: {advice}")

    def __repr__(self) -> str:
        names = ", ".join(type(m).__name__ for m in self.points.materials)
        return f"MacroProblem({names}, {self.space.dim()} dofs)"


def _tags(system: System, given: Any, materials: dict[int, Any]) -> Any:
    if isinstance(given, Mapping):
        return cell_tags(system, list(materials))
    return system.weights.new_zeros(len(system.weights)).long()
