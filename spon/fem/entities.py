"""What an integral runs over, and the values of known functions and of the geometry there.

Together with `spon.fem.lowering` this is where the torch execution of forms reads what is internal
to Firedrake, FInAT and TSFC.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import finat
import gem
import numpy as np
from finat.element_factory import as_fiat_cell
from finat.physically_mapped import NeedsCoordinateMappingElement
from finat.quadrature import make_quadrature
from gem.interpreter import evaluate as gem_evaluate

from spon.fem.snapshot import Snapshot
from spon.fem.spaces import name_of

__all__ = ["Entities", "UntranslatableError", "derivative_directions", "node_count"]


class UntranslatableError(NotImplementedError):
    """The torch backend cannot translate a part of a form."""


class Entities:
    """Cells or facets with a quadrature rule.

    Parameters
    ----------
    mesh : firedrake.MeshGeometry
    kind : {"cell", "exterior_facet", "interior_facet"}
    indices : array of int, shape (entities,)
        Cells or facets of that kind.
    degree : int
        Of the quadrature rule.
    scheme : str or finat quadrature rule
    snapshot : Snapshot
        The values of known functions.
    """

    def __init__(
        self,
        mesh: Any,
        kind: str,
        indices: np.ndarray,
        degree: Any,
        scheme: Any,
        snapshot: Snapshot,
    ) -> None:
        self.mesh, self.kind, self.indices, self.snapshot = mesh, kind, indices, snapshot
        self.cell = as_fiat_cell(mesh.ufl_cell())
        dimension = self.cell.get_dimension()
        if isinstance(dimension, tuple):
            raise UntranslatableError("Extruded meshes are for the native backend.")
        self.dimension = dimension if kind == "cell" else dimension - 1
        if isinstance(scheme, str):
            region = self.cell.construct_subcomplex(self.dimension)
            scheme = make_quadrature(region, degree, scheme=scheme)
        self.rule = scheme
        self._tables: dict[Any, list[dict[tuple[int, ...], np.ndarray]]] = {}

    @property
    def count(self) -> int:
        """Number of cells or facets."""
        return len(self.indices)

    @property
    def points(self) -> np.ndarray:
        """Points of the rule in the reference cell or facet, shape (points, dimension)."""
        return np.asarray(self.rule.point_set.points)

    @cached_property
    def weights(self) -> np.ndarray:
        """Weights of the rule, shape (1, points)."""
        return self._numbers(self.rule.weight_expression, ())[None]

    @cached_property
    def local_facets(self) -> np.ndarray:
        """Number of the facet within its cell, shape (facets, sides)."""
        facets = getattr(self.mesh, f"{self.kind}s")
        sides = 2 if self.kind == "interior_facet" else 1
        return facets.local_facet_dat.data_ro.reshape(-1, sides)[self.indices].astype(np.int64)

    def cells(self, side: str | None) -> np.ndarray:
        """The cell of each entity on one side, shape (entities,)."""
        if self.kind == "cell":
            return self.indices
        facets = getattr(self.mesh, f"{self.kind}s")
        sides = 2 if self.kind == "interior_facet" else 1
        cells: np.ndarray = np.asarray(facets.facet_cell).reshape(-1, sides)[self.indices]
        return cells[:, _side(side)]

    def nodes(self, V: Any, side: str | None) -> np.ndarray:
        """Nodes of a space that is not mixed on the cell of each entity, (entities, nodes)."""
        if V.ufl_element().family() == "Real":
            return np.zeros((self.count, 1), dtype=np.int64)
        if self.kind == "cell":
            nodes = V.cell_node_list
        else:
            nodes = getattr(V, f"{self.kind}_node_map")().values
        nodes = nodes[self.indices]
        if self.kind == "interior_facet":
            nodes = np.split(nodes, 2, axis=1)[_side(side)]
        return np.asarray(nodes, dtype=np.int64)

    # ---- tables ------------------------------------------------------------------------------

    def table(
        self, V: Any, component: int, derivative: tuple[int, ...], side: str | None
    ) -> np.ndarray:
        """Basis functions at the points, shape (1 or entities, 1 or points, nodes).

        Parameters
        ----------
        V : FunctionSpace
            Not mixed.
        component : int
            Of the reference values of its scalar-noded element.
        derivative : tuple of int
            Order of the derivative in each reference direction.
        """
        if V.ufl_element().family() == "Real":
            return np.ones((1, 1, 1)) if not any(derivative) else np.zeros((1, 1, 1))
        tables = self._tabulated(V, sum(derivative))
        values = np.stack([t[derivative][..., component] for t in tables])
        if len(tables) > 1:
            values = values[self.local_facets[:, _side(side)]]
        # What does not vary from point to point (derivatives on affine cells) is kept once.
        if values.shape[1] > 1 and np.abs(values - values[:, :1]).max() < 1e-14:
            values = values[:, :1]
        return values

    def _tabulated(self, V: Any, order: int) -> list[dict[tuple[int, ...], np.ndarray]]:
        """For each facet of the reference cell: derivative -> (points, nodes, components)."""
        key = (V.ufl_element(), order)
        if key not in self._tables:
            element = V.finat_element
            if isinstance(element, NeedsCoordinateMappingElement):
                raise UntranslatableError(
                    f"The torch backend does not evaluate {name_of(V)}, whose basis functions "
                    "depend on the shape of the cell in a way of their own."
                )
            faces = [0] if self.kind == "cell" else range(self._face_count)
            self._tables[key] = [self._tabulate(element, order, face) for face in faces]
        return self._tables[key]

    @property
    def _face_count(self) -> int:
        return len(self.cell.get_topology()[self.cell.get_dimension() - 1])

    def _tabulate(self, element: Any, order: int, face: int) -> dict[tuple[int, ...], np.ndarray]:
        try:
            found = element.basis_evaluation(
                order, self.rule.point_set, entity=(self.dimension, face)
            )
        except (NotImplementedError, ValueError, TypeError) as error:
            raise UntranslatableError(
                f"The torch backend cannot evaluate {type(element).__name__} at the points of an "
                f"integral over {self.kind.replace('_', ' ')}s ({error})."
            ) from error
        values = int(np.prod(element.value_shape, dtype=int))
        tables = {}
        for derivative, expression in found.items():
            if sum(derivative) == order:
                array = self._numbers(expression, expression.shape)
                array = array.reshape(len(array), -1, values)
                # Round-off in tables would make equal matrices unequal.
                for whole in (-1.0, 0.0, 1.0):
                    array[np.abs(array - whole) < 1e-14] = whole
                tables[derivative] = array
        return tables

    def _numbers(self, expression: Any, shape: tuple[int, ...]) -> np.ndarray:
        """A constant GEM expression at all points, shape (points, *shape)."""
        own = self.rule.point_set.indices
        rest = tuple(gem.Index(extent=n) for n in shape)
        scalar = gem.Indexed(expression, rest) if shape else expression
        if not set(own) <= set(scalar.free_indices):
            # Constant in some direction of the points: multiply by one there.
            ones = gem.Literal(np.ones(tuple(i.extent for i in own)))
            scalar = gem.Product(scalar, gem.Indexed(ones, own))
        (result,) = gem_evaluate([gem.ComponentTensor(scalar, own + rest)])
        array = np.asarray(result.arr, dtype=np.float64)
        return array.reshape(-1, *shape)

    # ---- values ------------------------------------------------------------------------------

    def values(
        self, f: Any, block: int, index: int, component: int, derivative: tuple[int, ...], side: Any
    ) -> np.ndarray:
        """A derivative of a known function, shape (1 or entities, 1 or points).

        Parameters
        ----------
        block, index, component : int
            Part of a mixed space, component of a vector of nodes, component of the element.
        """
        V = f.function_space().subspaces[block]
        dofs = self.snapshot.array(f.subfunctions[block].dat).reshape(-1, block_size(V))[:, index]
        table = self.table(V, component, derivative, side)
        if V.ufl_element().family() == "Real":
            return dofs[:1, None] * table[:, :, 0]
        local = dofs[self.nodes(V, side)]
        if len(table) == 1:
            return local @ table[0].T
        result: np.ndarray = np.einsum("cqn,cn->cq", table, local)
        return result

    def reference_points(self, side: str | None) -> np.ndarray:
        """Points in the reference cell, shape (1 or entities, points, dimension)."""
        if self.kind == "cell":
            return self.points[None]
        faces = []
        for face in range(self._face_count):
            to_cell = self.cell.get_entity_transform(self.dimension, face)
            faces.append([to_cell(p) for p in self.points])
        return np.asarray(faces)[self.local_facets[:, _side(side)]]

    def per_face(self, values: Sequence[Any], side: str | None) -> np.ndarray:
        """Pick what belongs to the facet of each entity out of a list for the reference cell."""
        return np.asarray(values, dtype=np.float64)[self.local_facets[:, _side(side)]]

    def restrict(self, degree: int) -> Entities:
        """The same entities with another degree of quadrature."""
        return Entities(self.mesh, self.kind, self.indices, degree, "default", self.snapshot)

    def on_cells(self, side: str | None, scheme: Any) -> Entities:
        """The cell of each entity on one side, with another quadrature."""
        return Entities(self.mesh, "cell", self.cells(side), 0, scheme, self.snapshot)


def block_size(V: Any) -> int:
    """Number of components at each node."""
    if V.ufl_element().family() == "Real":
        return int(V.dim())
    return int(V.block_size)


def element_size(V: Any) -> int:
    """Number of reference values of the element at each node of a space that is not mixed."""
    if V.ufl_element().family() == "Real":
        return 1
    element = V.finat_element
    if isinstance(element, finat.TensorFiniteElement):
        element = element.base_element
    return int(np.prod(element.value_shape, dtype=int))


def node_count(V: Any) -> int:
    """Number of nodes of a space that is not mixed."""
    return int(V.dim()) // block_size(V)


def derivative_directions(directions: Sequence[int], dimension: int) -> tuple[int, ...]:
    """Order of a derivative in each direction from the directions one after the other."""
    return tuple(sum(d == axis for d in directions) for axis in range(dimension))


def _side(side: str | None) -> int:
    return 1 if side == "-" else 0
