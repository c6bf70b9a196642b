"""Finite elements on the mesh of an RVE: what its solver needs of Firedrake, made once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import firedrake as fd
import numpy as np
import torch
from finat.ufl import TensorElement, VectorElement
from torch import Tensor

from fe_ol.cell.points import point_element
from fe_ol.voigt import pairs, strain_size
from spon import fem
from spon.fem.matrices import BatchMatrix
from spon.fem.snapshot import Snapshot

__all__ = ["BOUNDARIES", "Discretisation"]

BOUNDARIES = ("periodic", "linear", "traction")
# A facet belongs to the outside of the cell if it lies on its bounding box this closely.
_ON_BOX = 1e-8
# The strain above which a motion is none of a rigid body.
_STRAINED = 1e-9


class Discretisation:
    """Space, quadrature, strains and stiffness matrices of a cell.

    Parameters
    ----------
    mesh : firedrake.Mesh
        On one process. A periodic one for periodic fluctuations.
    tags : sequence of int or None
        Tags of the cells that have a law; None for all cells.
    finite : bool
        Deformation gradients instead of small strains.
    degree : int
    family : str
        "CG", or "S" (serendipity) on quadrilaterals.
    quadrature_degree : int or None
    boundary : {"periodic", "linear", "traction"}
        What the fluctuation fulfils: periodicity; zero on the boundary; or only that its mean
        gradient vanishes (uniform tractions).

    Attributes
    ----------
    space : FunctionSpace
        Of the fluctuations, vectors of `degree`.
    points : FunctionSpace
        Vectors of Voigt components at the quadrature points; p points, c components.
    weights : Tensor, shape (p,)
        Quadrature weights with the volume element.
    tags : Tensor, shape (p,)
        int64, the tag of the cell around each point; 0 where one law serves all cells.
    pointers, columns : int arrays
        Pattern of the stiffness matrices, as CSR.
    free : int array
        Dofs that are unknowns: what is prescribed, and rigid motions, are left out.
    constraint : Tensor, shape (k, dofs), or None
        Linear functionals of the fluctuation that vanish ("traction").

    Raises
    ------
    NotImplementedError
        If the mesh is distributed, or neither plane nor solid.
    ValueError
        If tags have no cell or cells no tag, or the mesh does not suit `boundary`.
    """

    def __init__(
        self,
        mesh: Any,
        tags: Sequence[int] | None,
        finite: bool,
        degree: int,
        family: str,
        quadrature_degree: int | None,
        boundary: str,
    ) -> None:
        self.dim = _checked_dimension(mesh)
        _check_boundary(mesh, boundary)
        self.finite, self.size = finite, strain_size(self.dim, finite)
        if degree < 1:
            raise ValueError(f"degree must be at least 1, got {degree}.")
        self.quadrature_degree = 2 * degree if quadrature_degree is None else quadrature_degree
        self.space = _space(mesh, family, degree)
        self.scalar_element = point_element(mesh.ufl_cell(), self.quadrature_degree)
        self.points = fd.FunctionSpace(mesh, VectorElement(self.scalar_element, dim=self.size))
        self.weights, self.tags = self._weights(mesh, tags)
        trial = fd.TrialFunction(self.space)
        self._gradient = fem.sparse_map(fd.interpolate(self.strain_of(trial), self.points))
        self._matrix = self._stiffness()
        self.pointers, self.columns = self._matrix.pointers, self._matrix.columns
        self._close(mesh, boundary)

    def strain_of(self, u: Any) -> Any:
        """Voigt strain (or gradient, row by row) of a displacement as a UFL vector."""
        g = fd.grad(u)
        return fd.as_vector(
            [
                g[i, j] if self.finite or i == j else g[i, j] + g[j, i]
                for i, j in pairs(self.dim, self.finite)
            ]
        )

    def gradient(self, fluctuation: Tensor) -> Tensor:
        """Strains at the points, shape (n, p, c), of fluctuations of shape (n, dofs)."""
        strains: Tensor = self._gradient.batch(fluctuation)
        return strains.reshape(len(fluctuation), len(self.weights), self.size)

    def divergence(self, stress: Tensor) -> Tensor:
        """Nodal forces, shape (n, dofs), of stresses of shape (n, p, c)."""
        forces: Tensor = self._gradient.T.batch((stress * self.weights[:, None]).flatten(1))
        return forces

    def stiffness(self, modulus: Tensor) -> Tensor:
        """Entries of the stiffness matrix, in the order of the pattern.

        Parameters
        ----------
        modulus : Tensor, shape (p, c, c)
            Tangents at the points.

        Returns
        -------
        Tensor, shape (nnz,)
        """
        values: Tensor = self._matrix.values([modulus.reshape(1, -1)], 1)[0]
        return values

    def admissible(self, fluctuation: Tensor) -> Tensor:
        """The part of a fluctuation, or of nodal forces, that the boundary condition admits."""
        if self._held is not None:
            fluctuation = fluctuation.clone()
            fluctuation[:, self._held] = 0.0
        if self.constraint is not None:
            excess = torch.linalg.solve(self._gram, self.constraint @ fluctuation.T)
            fluctuation = fluctuation - (self.constraint.T @ excess).T
        return fluctuation

    def centred(self, fluctuation: Tensor) -> Tensor:
        """A fluctuation without the rigid motions that the boundary condition leaves open."""
        if not len(self._rigid):
            return fluctuation
        share = torch.linalg.solve(self._rigid_gram, self._moments @ fluctuation.T)
        return fluctuation - share.T @ self._rigid

    def function(self, values: Tensor, name: str = "fluctuation") -> Any:
        """Coefficients of shape (dofs,) as a Firedrake Function."""
        f = fd.Function(self.space, name=name)
        fem.fill(f, values.detach().numpy())
        return f

    # ---- what is made once --------------------------------------------------------------------

    def _weights(self, mesh: Any, tags: Sequence[int] | None) -> tuple[Tensor, Tensor]:
        test = fd.TestFunction(fd.FunctionSpace(mesh, self.scalar_element))

        def share(*tag: int) -> np.ndarray:
            form = test * fd.dx(*tag, domain=mesh, degree=self.quadrature_degree)
            values: np.ndarray = fd.assemble(form).dat.data_ro.copy()
            return values

        whole = share()
        if tags is None:
            return torch.from_numpy(whole), torch.zeros(len(whole), dtype=torch.int64)
        found = np.zeros(len(whole), dtype=np.int64)
        covered = np.zeros(len(whole), dtype=bool)
        known = _tags(mesh)
        for tag in tags:
            if tag not in known:
                raise ValueError(
                    f"A law is given for the cell tag {tag!r}, but the mesh has the tags "
                    f"{known or 'of no cells'}: give one law for each, or one law alone for all."
                )
            mine = share(tag) != 0
            found[mine], covered = tag, covered | mine
        if not covered.all():
            raise ValueError(
                f"{int((~covered).sum())} of {len(whole)} quadrature points lie in cells without a "
                f"law: laws are given for the tags {sorted(tags)}, the mesh has {known}."
            )
        return torch.from_numpy(whole), torch.from_numpy(found)

    def _stiffness(self) -> BatchMatrix:
        V = self.space
        element = TensorElement(self.scalar_element, shape=(self.size, self.size))
        modulus = fd.Function(fd.FunctionSpace(V.mesh(), element))
        u, v = self.strain_of(fd.TrialFunction(V)), self.strain_of(fd.TestFunction(V))
        form = fd.inner(fd.dot(modulus, u), v) * fd.dx(degree=self.quadrature_degree)
        return BatchMatrix(form, [modulus], Snapshot(form, [modulus]))

    def _close(self, mesh: Any, boundary: str) -> None:
        """Boundary condition and rigid motions."""
        V, dofs = self.space, int(self.space.dim())
        self._held, self.constraint = None, None
        if boundary == "linear":
            u, v = fd.TrialFunction(V), fd.TestFunction(V)
            degree = 2 * V.ufl_element().embedded_superdegree
            on_outside = fem.sparse_map(_outside(mesh) * fd.inner(u, v) * fd.ds(degree=degree))
            self._held = np.flatnonzero(on_outside.to_scipy().diagonal() > 0)
        self._rigid = self._rigid_motions(boundary)
        if boundary == "traction":
            self.constraint = rows = self._boundary_strains(mesh)
            self._gram = rows @ rows.T
        if boundary == "periodic":
            self._check_period(mesh)
        held = np.array([], dtype=np.int64) if self._held is None else self._held
        if len(self._rigid):
            u, v = fd.TrialFunction(V), fd.TestFunction(V)
            mass = fem.sparse_map(fd.inner(u, v) * fd.dx(degree=self.quadrature_degree))
            self._moments = mass.batch(self._rigid)
            self._rigid_gram = self._moments @ self._rigid.T
            # The dofs at which rigid motions differ most: holding them leaves no motion open.
            held = _pivots(self._rigid.numpy())
        self.free = np.setdiff1d(np.arange(dofs), held)

    def _check_period(self, mesh: Any) -> None:
        """Whether uniform stresses are in equilibrium, as they are without a boundary."""
        if mesh.exterior_facets.set.total_size:
            return  # that of holes
        unit = torch.eye(self.size, dtype=torch.float64)[:, None]
        forces = self.divergence(unit.expand(-1, len(self.weights), -1))
        sizes = self.weights.sum() / self.weights.mean() ** (1 / self.dim) / len(self.weights)
        if float(forces.abs().max()) > _STRAINED * 1e3 * float(sizes):
            raise ValueError(
                "The sides of this periodic mesh do not fit together: uniform stresses are not in "
                "equilibrium on it. Firedrake's periodic meshes need three cells in each direction."
            )

    def _rigid_motions(self, boundary: str) -> Tensor:
        """Motions without strain that the boundary condition admits, shape (k, dofs)."""
        V, dim = self.space, self.dim
        if boundary == "linear":
            return torch.zeros(0, int(V.dim()), dtype=torch.float64)
        motions = [fd.Constant([float(i == k) for i in range(dim)]) for k in range(dim)]
        if boundary == "traction" and not self.finite:
            x = fd.SpatialCoordinate(V.mesh())
            for i in range(dim):
                for j in range(i):
                    turn = [fd.Constant(0.0)] * dim
                    turn[i], turn[j] = x[j], -x[i]
                    motions.append(fd.as_vector(turn))
        if V.ufl_element().family() == "S":
            # The dofs of serendipity elements are no values at nodes.
            direct = {"ksp_type": "preonly", "pc_type": "lu"}
            found = [fd.project(motion, V, solver_parameters=direct) for motion in motions]
        else:
            found = [fd.Function(V).interpolate(motion) for motion in motions]
        rigid = torch.stack([fem.to_tensor(f) for f in found])
        # On curved cells a space need not have rotations, and then they are not open either.
        return rigid[self.gradient(rigid).abs().amax((1, 2)) < _STRAINED]

    def _boundary_strains(self, mesh: Any) -> Tensor:
        """Mean strains times the volume, as integrals over the outside, shape (c, dofs)."""
        v, n = fd.TestFunction(self.space), fd.FacetNormal(mesh)
        rows = []
        for i, j in pairs(self.dim, self.finite):
            pair = v[i] * n[j] if self.finite or i == j else v[i] * n[j] + v[j] * n[i]
            form = _outside(mesh) * pair * fd.ds(degree=self.quadrature_degree)
            rows.append(fem.to_tensor(fd.assemble(form)))
        return torch.stack(rows)


def _space(mesh: Any, family: str, degree: int) -> Any:
    cells = mesh.ufl_cell().cellname
    if family not in ("CG", "S") or (family == "S" and cells != "quadrilateral"):
        raise ValueError(
            f'family must be "CG", or "S" (serendipity) on quadrilaterals, got {family!r} on cells '
            f"of the kind {cells}."
        )
    return fd.VectorFunctionSpace(mesh, family, degree)


def _checked_dimension(mesh: Any) -> int:
    fem.require_mesh(mesh)
    fem.require_serial(mesh, "RVE")
    dim = int(mesh.geometric_dimension)
    if dim not in (2, 3) or mesh.topological_dimension != dim or mesh.extruded:
        raise NotImplementedError(
            f"An RVE is plane or solid and its mesh is not extruded; this mesh has cells of "
            f"dimension {mesh.topological_dimension} in {dim} dimensions"
            f"{', extruded' if mesh.extruded else ''}."
        )
    return dim


def _check_boundary(mesh: Any, boundary: str) -> None:
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary must be one of {BOUNDARIES}, got {boundary!r}.")
    sides = [0.0] * 2 * mesh.geometric_dimension
    if mesh.exterior_facets.set.total_size:
        # Of degree 2, because kernels for one point on faces of hexahedra do not compile.
        sides = [
            float(fd.assemble(side * fd.ds(domain=mesh, degree=2))) for side in _box_sides(mesh)
        ]
    if boundary == "periodic" and sum(sides) > 0:
        raise ValueError(
            "Periodic fluctuations need a mesh whose opposite sides are one, but on "
            f"{sum(sides):.6g} of its outside this mesh ends: read a gmsh file with $Periodic by "
            "spon.fem.read_mesh, take one of Firedrake's periodic meshes, or "
            'boundary="linear" or "traction".'
        )
    if boundary != "periodic" and min(sides) == 0:
        raise ValueError(
            f"boundary={boundary!r} needs a mesh with a boundary, on the sides of a box in every "
            "direction; sides of this one are identified, or no planes: read it without its "
            "periodicity."
        )


def _box_sides(mesh: Any) -> list[Any]:
    """For each side of the bounding box, one on it and zero elsewhere; for integrals over ds."""
    X = mesh.coordinates.dat.data_ro.reshape(-1, mesh.geometric_dimension)
    low, high = X.min(0), X.max(0)
    near = _ON_BOX * float((high - low).max())
    x = fd.SpatialCoordinate(mesh)
    return [
        fd.conditional(abs(x[i] - fd.Constant(float(end))) < near, 1.0, 0.0)
        for i in range(len(low))
        for end in (low[i], high[i])
    ]


def _outside(mesh: Any) -> Any:
    """One on the bounding box, zero on the boundaries of holes; for integrals over ds."""
    return reduce(fd.max_value, _box_sides(mesh))


def _tags(mesh: Any) -> list[int]:
    """Tags of cells of the mesh."""
    plex = mesh.topology_dm
    if not plex.hasLabel("Cell Sets"):
        return []
    label = plex.getLabelIdIS("Cell Sets")
    return sorted(int(tag) for tag in label.indices)


def _pivots(rigid: np.ndarray) -> np.ndarray:
    """One dof for each rigid motion such that the motions' values there are independent."""
    rows, chosen = rigid.copy(), []
    for _ in range(len(rows)):
        at = np.unravel_index(np.abs(rows).argmax(), rows.shape)
        chosen.append(int(at[1]))
        pivot = rows[at[0]] / rows[at[0], at[1]]
        rows = rows - np.outer(rows[:, at[1]], pivot)
    return np.sort(np.array(chosen))
