"""The representative volume element: a mesh with laws that is itself a material."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fe_ol.cell import fields as cell_fields
from fe_ol.cell.arguments import checked_laws, strain_load
from fe_ol.cell.arguments import loads as given_loads
from fe_ol.cell.discretisation import Discretisation
from fe_ol.cell.equilibrium import Balance, Equilibrium, Load, NoEquilibriumError
from fe_ol.cell.point_laws import PointLaws
from fe_ol.cell.sensitivity import pull_back
from fe_ol.cell.solutions import Solutions, gathered, joined, stacked
from fe_ol.materials import Response
from fe_ol.voigt import checked_strain, rest_strain

__all__ = ["RVE", "Solutions"]


class RVE:
    """A representative volume element, solved by finite elements.

    The displacement is u = E x + fluctuation (F x + fluctuation at finite strain); the fluctuation
    is in equilibrium under the boundary condition. Newton's method works on PyTorch tensors with
    Firedrake's element matrices and MUMPS; the homogenised tangent follows from the factorised
    stiffness matrix (C. Miehe and A. Koch, 2002, eq. 38), without differences.

    Parameters
    ----------
    mesh : firedrake.Mesh
        On one process, periodic for ``boundary="periodic"``; see `spon.fem.read_mesh`.
    materials : mapping of int to Material, or Material
        A law for each cell tag, or one for all cells. All of small or all of finite strain.
    degree : int, optional
    boundary : {"periodic", "linear", "traction"}, optional
        Periodic fluctuations; no fluctuation on the outside (linear displacements, stiffest); or
        uniform tractions (softest).
    plane : {"strain", "stress"}, optional
        In two dimensions. For plane stress each law is wrapped in `PlaneStress`.
    family : {"CG", "S"}, optional
        Lagrange or, on quadrilaterals, serendipity elements.
    quadrature_degree : int, optional
        ``2 * degree`` by default.
    volume : float, optional
        Volume of the cell, for a mesh with holes. By default that of the mesh.
    tolerance : float, optional
        Of the nodal residual, relative to the nodal forces of the stresses if these had random
        signs.
    max_iterations : int, optional
        Of Newton's method, in a load step; then the step is halved.
    reuse : int, optional
        Conjugate gradient iterations that are tried with the one factorisation of the stiffness at
        rest, before a Newton iteration gets a factorisation of its own; 0 for none. By default 40
        in three dimensions, where factorisations are dear, and 0 in two.

    Attributes
    ----------
    space : FunctionSpace
        Of the fluctuations.
    weights : Tensor, shape (p,)
    tags : Tensor, shape (p,)
    materials : dict of int to Material
    volume : float
    dim : int
    finite, history : bool
    boundary, plane : str

    Raises
    ------
    TypeError
        If something is no mesh or no material.
    ValueError
        If tags and laws do not match, laws of small and finite strain are mixed, or the mesh does
        not suit the boundary condition.
    NotImplementedError
        If the mesh is distributed over processes.

    Examples
    --------
    >>> rve = fe_ol.RVE(spon.fem.read_mesh("meshes/rve1.msh"), {1: matrix, 2: fibre})
    ...                                                                     # doctest: +SKIP
    >>> rve([[0.02, 0.0, 0.0]]).stress                                     # doctest: +SKIP
    """

    def __init__(
        self,
        mesh: Any,
        materials: Mapping[int, Any] | Any,
        degree: int = 2,
        boundary: str = "periodic",
        plane: str = "strain",
        family: str = "CG",
        quadrature_degree: int | None = None,
        volume: float | None = None,
        tolerance: float = 1e-11,
        max_iterations: int = 15,
        reuse: int | None = None,
    ) -> None:
        laws = checked_laws(materials, plane)
        if not tolerance > 0:
            raise ValueError(f"tolerance must be positive, got {tolerance}.")
        if max_iterations < 1:
            raise ValueError(f"max_iterations must be at least 1, got {max_iterations}.")
        self.finite = next(iter(laws.values())).finite
        single = not isinstance(materials, Mapping)
        self._cell = cell = Discretisation(
            mesh,
            None if single else sorted(laws),
            self.finite,
            degree,
            family,
            quadrature_degree,
            boundary,
        )
        self.dim, self.boundary, self.plane = cell.dim, boundary, plane
        if plane == "stress" and self.dim != 2:
            raise ValueError(
                f'plane="stress" needs a mesh in two dimensions, this one has {self.dim}.'
            )
        for tag, law in laws.items():
            if law.dim not in (None, self.dim):
                raise ValueError(
                    f"The law of tag {tag}, {type(law).__name__}, has {law.dim} dimensions, the "
                    f"mesh has {self.dim}."
                )
        self.materials, self.space = laws, cell.space
        self.weights, self.tags = cell.weights, cell.tags
        self.volume = float(cell.weights.sum()) if volume is None else float(volume)
        if not self.volume > 0:
            raise ValueError(f"The volume of the cell must be positive, got {self.volume}.")
        self._laws = PointLaws(laws, cell.tags, cell.size)
        self.history = self._laws.history
        reuse = (40 if self.dim == 3 else 0) if reuse is None else int(reuse)
        self._equilibrium = Equilibrium(
            cell, self._laws, self.volume, tolerance, max_iterations, reuse
        )

    def __repr__(self) -> str:
        laws = ", ".join(f"{tag}: {type(law).__name__}" for tag, law in self.materials.items())
        return (
            f"RVE({self.dim}D, {self.space.dim()} dofs, {len(self.weights)} points, {{{laws}}}, "
            f"{self.boundary})"
        )

    # ---- a material ----------------------------------------------------------------------------

    def __call__(self, strain: Any, state: Tensor | None = None, tangent: bool = True) -> Response:
        """Homogenised stress and tangent.

        Parameters
        ----------
        strain : array, shape (n, c) or (c,)
            float64; mean strains, or mean deformation gradients.
        state : Tensor, shape (n, s), optional
            What the last call returned: the beginning of the step for laws with history, and a
            first guess for others.
        tangent : bool, optional

        Returns
        -------
        Response

        Raises
        ------
        fe_ol.cell.equilibrium.NoEquilibriumError
            An ArithmeticError, if Newton's method fails for a strain also in small load steps.
        """
        x, single = checked_strain(strain, (self._cell.size,), repr(self))
        starts = self._starts(len(x), state)
        stresses: list[Tensor] = []
        tangents: list[Tensor] = []
        states: list[Tensor] = []
        for row, start in zip(x.detach(), starts, strict=True):
            found = self._solved(strain_load(row), start, len(stresses))
            stresses.append(found.stress)
            states.append(joined(found))
            if tangent:
                tangents.append(self._equilibrium.tangent(found))
        c = self._cell.size
        stress, after = stacked(stresses, (c,)), stacked(states, (self._state_size,))
        modulus = stacked(tangents, (c, c)) if tangent else None
        if single:
            return Response(stress[0], None if modulus is None else modulus[0], after[0])
        return Response(stress, modulus, after)

    def initial_state(self, n: int) -> Tensor | None:
        """State of `n` cells at rest, shape (n, s); None without history."""
        return self._rest(n) if self.history else None

    # ---- solutions with their fields -----------------------------------------------------------

    def solve(
        self,
        strain: Any,
        stress: Any = None,
        state: Tensor | None = None,
        tangent: bool = True,
        comm: Any = None,
    ) -> Solutions:
        """Solve cells for mean strains, mean stresses, or some components of each.

        Parameters
        ----------
        strain : array, shape (n, c) or (c,)
            Mean strains. With `stress`, None or NaN marks components that are unknown.
        stress : array, shape (n, c) or (c,), optional
            Mean stresses; None or NaN where the strain is given. Uniaxial stress is
            ``strain=[0.01, None, None], stress=[None, 0, 0]``.
        state : Tensor, shape (n, s), optional
            As for calls.
        tangent : bool, optional
        comm : mpi4py communicator, optional
            Its processes share the cells, each with an RVE of its own whose mesh lives on
            ``COMM_SELF``, and all get all results.

        Returns
        -------
        Solutions

        Raises
        ------
        ValueError
            If a component has both strain and stress, or neither.
        fe_ol.cell.equilibrium.NoEquilibriumError
            If there is no equilibrium to be found for one of them.
        """
        loads = given_loads(strain, stress, self.dim, self.finite, repr(self))
        starts = self._starts(len(loads), state)
        mine = range(len(loads)) if comm is None else range(comm.rank, len(loads), comm.size)
        found, problem = {}, None
        for i in mine:
            try:
                balance = self._solved(loads[i], starts[i], i)
                modulus = self._equilibrium.tangent(balance) if tangent else None
            except Exception as error:
                # The other processes wait for this one, and must hear of it.
                if comm is None:
                    raise
                problem = error
                break
            found[i] = balance.released(), modulus
        if comm is None:
            return self._solutions(found, tangent)
        return gathered(sorted(found), self._solutions(found, tangent), problem, comm)

    def hill_mandel(self, solutions: Solutions) -> Tensor:
        """How far the mean work of the local stresses is from the work of their mean.

        Returns
        -------
        Tensor, shape (n,)
            |<stress : strain> - <stress> : E|, relative to the mean of |stress| |strain|.
        """
        rest = rest_strain(self.dim, self.finite)
        w = self.weights[:, None] / self.volume
        local, macro = solutions.strain - rest, solutions.macro_strain - rest
        work = (solutions.stress * local * w).sum((1, 2))
        sizes = (solutions.stress.norm(dim=2) * local.norm(dim=2) * w[:, 0]).sum(1)
        return (work - (solutions.macro_stress * macro).sum(1)).abs() / sizes.clamp_min(1e-300)

    # ---- linear maps and laws at the points ----------------------------------------------------

    def gradient(self, fluctuation: Tensor) -> Tensor:
        """Strains (or gradients) at the points of fluctuations.

        Parameters
        ----------
        fluctuation : Tensor, shape (n, V.dim())
            What the boundary condition does not admit is left out.

        Returns
        -------
        Tensor, shape (n, p, c)
        """
        return self._cell.gradient(self._cell.admissible(fluctuation))

    def divergence(self, stress: Tensor) -> Tensor:
        """Nodal forces of stresses on admissible fluctuations: zero is discrete equilibrium.

        Parameters
        ----------
        stress : Tensor, shape (n, p, c)

        Returns
        -------
        Tensor, shape (n, V.dim())
        """
        return self._cell.admissible(self._cell.divergence(stress))

    def law(self, strain: Tensor) -> Tensor:
        """Local stresses of local strains, differentiable; for laws without history.

        Parameters
        ----------
        strain : Tensor, shape (n, p, c)

        Returns
        -------
        Tensor, shape (n, p, c)
        """
        if self.history:
            raise ValueError(
                "This RVE has a law with history: its stress does not follow from the strain alone."
            )
        return self._laws.stress(strain)

    def pull_back(self, strain: Tensor, seed: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Derivative of ``sum(seed * stress)`` by tensors in the laws, at fixed mean strains.

        Parameters
        ----------
        strain, seed : Tensor, shape (n, c)
        tensors : sequence of Tensor
            Leaves that require a gradient, as in ``LinearElastic(K=tensor, G=tensor)``.

        Returns
        -------
        list of Tensor
            In the shapes of `tensors`.
        """
        if self.history:
            raise NotImplementedError(
                "The stress of laws with history depends on more than the last strain: its "
                "derivative by their parameters is not implemented."
            )
        x, _ = checked_strain(strain, (self._cell.size,), repr(self))
        total = [torch.zeros_like(t) for t in tensors]
        for i, (row, start) in enumerate(zip(x.detach(), self._starts(len(x), None), strict=True)):
            with torch.no_grad():
                balance = self._solved(strain_load(row), start, i)
            parts = pull_back(self._equilibrium, [balance], seed[i : i + 1], tensors)
            total = [a + b for a, b in zip(total, parts, strict=True)]
        return total

    # ---- fields to look at ---------------------------------------------------------------------

    def displacement(self, solutions: Solutions, i: int = 0) -> Any:
        """Displacement of one solution as a Function, discontinuous on a periodic mesh.

        Parameters
        ----------
        solutions : Solutions
        i : int, optional

        Returns
        -------
        Function
            E x + fluctuation, or (F - I) x + fluctuation.
        """
        return cell_fields.displacement(
            self._cell, solutions.macro_strain[i], solutions.fluctuation[i]
        )

    def field(self, values: Tensor, name: str = "stress") -> Any:
        """Values at the points as a discontinuous, piecewise linear Function.

        Parameters
        ----------
        values : Tensor, shape (p,) or (p, k)
        name : str, optional

        Returns
        -------
        Function
            Their L2 projection, cell by cell.
        """
        return cell_fields.projected(self._cell, values, name)

    def von_mises(self, solutions: Solutions, i: int = 0) -> Tensor:
        """Von Mises stress at the points of one solution, shape (p,); see `fe_ol.cell.fields`."""
        return cell_fields.von_mises(self, solutions, i)

    # ---- states --------------------------------------------------------------------------------

    def start(self, strain: Tensor, fluctuation: Tensor | None = None) -> Tensor:
        """States from which calls start, for laws without history.

        Parameters
        ----------
        strain : Tensor, shape (n, c)
        fluctuation : Tensor, shape (n, V.dim()), optional
            A guess, from a surrogate for example; zero by default.

        Returns
        -------
        Tensor, shape (n, s)
        """
        n = len(strain)
        if fluctuation is None:
            fluctuation = torch.zeros(n, int(self.space.dim()), dtype=torch.float64)
        local = self._laws.initial_state().expand(n, -1)
        return torch.cat([strain, fluctuation, local], 1)

    def split_state(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Mean strain (n, c) and fluctuation (n, V.dim()) of states of shape (n, s)."""
        c, dofs = self._cell.size, int(self.space.dim())
        return state[:, :c], state[:, c : c + dofs]

    # ---- inside --------------------------------------------------------------------------------

    @property
    def _state_size(self) -> int:
        return self._cell.size + int(self.space.dim()) + self._laws.state_size

    def _rest(self, n: int) -> Tensor:
        rest = rest_strain(self.dim, self.finite)
        fluctuation = torch.zeros(int(self.space.dim()), dtype=torch.float64)
        return torch.cat([rest, fluctuation, self._laws.initial_state()]).expand(n, -1)

    def _starts(self, n: int, state: Tensor | None) -> list[tuple[Tensor, Tensor, Tensor]]:
        if state is None:
            state = self._rest(n)
        state = state[None] if state.ndim == 1 else state
        if tuple(state.shape) != (n, self._state_size) or state.dtype != torch.float64:
            raise ValueError(
                f"The RVE expected a float64 state of shape {(n, self._state_size)}, got "
                f"{state.dtype} of shape {tuple(state.shape)}: pass what the last step returned."
            )
        c, dofs = self._cell.size, int(self.space.dim())
        return [(row[:c], row[c : c + dofs], row[c + dofs :]) for row in state.detach()]

    def _solved(self, load: Load, start: tuple[Tensor, Tensor, Tensor], i: int) -> Balance:
        try:
            return self._equilibrium.solve(load, start)
        except NoEquilibriumError as error:
            raise NoEquilibriumError(f"Cell number {i}: {error}") from error

    def _solutions(
        self, found: Mapping[int, tuple[Balance, Tensor | None]], tangent: bool
    ) -> Solutions:
        balances = [found[i][0] for i in sorted(found)]
        c, dofs, p = self._cell.size, int(self.space.dim()), len(self.weights)
        tangents = [t for t in (found[i][1] for i in sorted(found)) if t is not None]
        return Solutions(
            macro_strain=stacked([b.strain for b in balances], (c,)),
            macro_stress=stacked([b.stress for b in balances], (c,)),
            tangent=stacked(tangents, (c, c)) if tangent else None,
            fluctuation=stacked([b.fluctuation for b in balances], (dofs,)),
            strain=stacked([b.local_strain for b in balances], (p, c)),
            stress=stacked([b.local_stress for b in balances], (p, c)),
            state=stacked([joined(b) for b in balances], (self._state_size,)),
            iterations=torch.tensor([b.iterations for b in balances], dtype=torch.int64),
            cutbacks=torch.tensor([b.cutbacks for b in balances], dtype=torch.int64),
            errors=[b.errors for b in balances],
        )
