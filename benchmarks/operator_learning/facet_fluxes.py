"""Fluxes in RT 1 on triangles, by what flows through each facet, and how far they balance.

Within a triangle with outward fluxes F_j through the facets opposite its corners v_j the field is
u(x) = sum_j F_j (x - v_j) / (2 A), with A its area.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from firedrake import DirichletBC, FunctionSpace, TestFunction, TrialFunction, as_vector, div, dx
from numpy.typing import NDArray

from spon import fem

__all__ = ["FacetFluxes", "Floats", "Ints"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass
class FacetFluxes:
    """A triangulation, and the dofs of RT 1 on it as fluxes through facets.

    Attributes
    ----------
    corners : array, shape (vertices, 2)
    cells : array, shape (cells, 3), int
        Corners of each triangle.
    facets : array, shape (cells, 3), int
        The facet opposite to each corner; facets have the numbers of their dofs.
    scale : array, shape (cells, 3)
        Outward flux through a facet for a dof of one.
    areas : array, shape (cells,)
    parts : mapping of str to array of int
        Facets of the parts of the boundary; together all of it.
    inflow, outflow : str
        The parts that the flow enters and leaves through. All others are walls.
    """

    corners: Floats
    cells: Ints
    facets: Ints
    scale: Floats
    areas: Floats
    parts: Mapping[str, Ints]
    inflow: str
    outflow: str

    @classmethod
    def of(
        cls, U: Any, parts: Mapping[str, int | Sequence[int]], inflow: str, outflow: str
    ) -> FacetFluxes:
        """From a space and the tags of the parts of its boundary.

        Parameters
        ----------
        U : FunctionSpace
            RT 1 on triangles.
        parts : mapping of str to tag or tags
        inflow, outflow : str
            Keys of `parts`.

        Raises
        ------
        ValueError
            If the space is another one, or a part of the boundary has no name.
        """
        element, mesh = U.ufl_element(), U.mesh()
        if (element.family(), element.degree()) != ("Raviart-Thomas", 1) or (
            mesh.ufl_cell().cellname != "triangle"
        ):
            raise ValueError(f"Fluxes through facets need RT 1 on triangles, got {element}.")
        coordinates = mesh.coordinates
        cells = coordinates.function_space().cell_node_list.astype(np.int64)
        facets = U.cell_node_list.astype(np.int64)
        corners = coordinates.dat.data_ro.copy()
        Q = FunctionSpace(mesh, "DG", 0)
        outflows = fem.sparse_map(div(TrialFunction(U)) * TestFunction(Q) * dx).to_scipy().tocsr()
        row = np.repeat(Q.cell_node_list[:, :1], 3, axis=1)
        scale = np.asarray(outflows[row.ravel(), facets.ravel()]).reshape(-1, 3)
        edges = corners[cells[:, 1:]] - corners[cells[:, :1]]
        areas = 0.5 * np.abs(np.linalg.det(edges))
        none = as_vector((0.0, 0.0))
        named = {
            name: DirichletBC(U, none, tags).nodes.astype(np.int64) for name, tags in parts.items()
        }
        found = cls(corners, cells, facets, scale, areas, named, inflow, outflow)
        outer = np.flatnonzero(np.bincount(facets.ravel()) == 1)
        if not np.array_equal(np.sort(np.concatenate(list(named.values()))), outer):
            raise ValueError(f"The parts {', '.join(parts)} are not the whole boundary, once each.")
        return found

    @property
    def walls(self) -> list[str]:
        """Parts of the boundary that nothing flows through."""
        return [name for name in self.parts if name not in (self.inflow, self.outflow)]

    def outward(self, u: Floats) -> Floats:
        """Fluxes out of each cell through its facets.

        Parameters
        ----------
        u : array, shape (n, dofs)

        Returns
        -------
        array, shape (n, cells, 3)
        """
        found: Floats = u[:, self.facets] * self.scale
        return found

    def through(self, u: Floats, part: str) -> Floats:
        """Outward fluxes through the facets of a part of the boundary, shape (n, facets)."""
        cell, corner = self.owners(self.parts[part])
        found: Floats = u[:, self.parts[part]] * self.scale[cell, corner]
        return found

    def owners(self, facets: Ints) -> tuple[Ints, Ints]:
        """A cell of each facet, and the corner of that cell which it is opposite to."""
        place = np.empty(int(self.facets.max()) + 1, dtype=np.int64)
        place[self.facets.ravel()] = np.arange(self.facets.size)
        cell, corner = np.divmod(place[facets], 3)
        return cell, corner

    def ends(self, facets: Ints) -> Floats:
        """Both ends of facets, shape (facets, 2, 2)."""
        cell, corner = self.owners(facets)
        both = np.stack([(corner + 1) % 3, (corner + 2) % 3], axis=1)
        found: Floats = self.corners[self.cells[cell[:, None], both]]
        return found

    def violations(self, u: Floats) -> dict[str, Floats]:
        """What is lost, by its name, each of shape (n,).

        Parameters
        ----------
        u : array, shape (n, dofs)

        Returns
        -------
        dict
            ``cell_outflow``, ``cell_outflow_largest``: mean and maximum over the cells of the sum
            of its three outward fluxes, over half the sum of their sizes (what flows through it);
            between 0 and 2.
            ``wall_flux``: sizes of the fluxes through all facets of walls, over the inflow.
            ``wall_trace``: largest normal trace on a facet of walls, over the mean at the inflow.
            ``imbalance``: outflow minus inflow, over the inflow; its size.
        """
        outward = self.outward(u)
        through = np.maximum(0.5 * np.abs(outward).sum(-1), np.finfo(float).tiny)
        lost = np.abs(outward.sum(-1)) / through
        inflow = -self.through(u, self.inflow).sum(-1)
        outflow = self.through(u, self.outflow).sum(-1)
        walls = np.abs(np.concatenate([self.through(u, name) for name in self.walls], axis=1))
        lengths = np.concatenate([self._lengths(name) for name in self.walls])
        mean_trace = np.abs(inflow) / self._lengths(self.inflow).sum()
        return {
            "cell_outflow": lost.mean(-1),
            "cell_outflow_largest": lost.max(-1),
            "wall_flux": walls.sum(-1) / np.abs(inflow),
            "wall_trace": (walls / lengths).max(-1) / mean_trace,
            "imbalance": np.abs(outflow / inflow - 1.0),
        }

    def _lengths(self, part: str) -> Floats:
        ends = self.ends(self.parts[part])
        found: Floats = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=-1)
        return found

    def from_values(self, places: int) -> tuple[Floats, sp.csr_matrix]:
        """Dofs of a vector field from its values at points of Gauss' rule on each facet.

        Parameters
        ----------
        places : int
            Points on a facet.

        Returns
        -------
        points : array, shape (facets * places, 2)
        dofs : csr_matrix, shape (dofs, 2 * facets * places)
            From values at these points, one component after the other.
        """
        count = int(self.facets.max()) + 1
        every = np.arange(count)
        ends, (cell, corner) = self.ends(every), self.owners(every)
        step = ends[:, 1] - ends[:, 0]
        at, weights = np.polynomial.legendre.leggauss(places)
        points = ends[:, :1] + step[:, None] * (0.5 + 0.5 * at)[:, None]
        # The normal times the length, away from the opposite corner.
        normal = np.stack([step[:, 1], -step[:, 0]], axis=1)
        inner = self.corners[self.cells[cell, corner]] - ends[:, 0]
        normal *= -np.sign((normal * inner).sum(1, keepdims=True))
        normal /= self.scale[cell, corner][:, None]
        rows = np.repeat(every, places)
        parts = [
            sp.csr_matrix(
                ((normal[:, i, None] * (0.5 * weights)).ravel(), (rows, np.arange(len(rows)))),
                shape=(count, len(rows)),
            )
            for i in (0, 1)
        ]
        return points.reshape(-1, 2), sp.hstack(parts).tocsr()

    def centres(self) -> sp.csr_matrix:
        """Dofs to the field at the centres of the cells, one component after the other.

        Returns
        -------
        csr_matrix, shape (2 * cells, dofs)
        """
        where = self.corners[self.cells]
        offset = (where.mean(axis=1, keepdims=True) - where) / (2.0 * self.areas[:, None, None])
        rows = np.repeat(np.arange(len(self.cells)), 3)
        shape = (len(self.cells), int(self.facets.max()) + 1)
        parts = [
            sp.csr_matrix(
                ((offset[..., i] * self.scale).ravel(), (rows, self.facets.ravel())), shape
            )
            for i in (0, 1)
        ]
        return sp.vstack(parts).tocsr()
