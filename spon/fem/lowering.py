"""From an integral in UFL to a graph of scalars at quadrature points."""

from __future__ import annotations

from functools import singledispatchmethod
from typing import Any

import numpy as np
import ufl
import ufl.classes as uc
from firedrake import Constant
from tsfc import ufl_utils
from tsfc.modified_terminals import analyse_modified_terminal, is_modified_terminal

from spon.fem.entities import (
    Entities,
    UntranslatableError,
    block_size,
    derivative_directions,
    element_size,
)
from spon.fem.snapshot import Snapshot
from spon.scalars import Graph, Unknown

__all__ = ["ARGUMENT", "IntegralGraph", "integrals_of"]

ARGUMENT = "argument"
_COMPARISONS = {uc.LT: "lt", uc.LE: "le", uc.GT: "gt", uc.GE: "ge", uc.EQ: "eq", uc.NE: "ne"}
_FUNCTIONS = {"ln": "log", **{n: n for n in ("sqrt", "exp", "sin", "cos", "tan", "sinh", "cosh")},
              **{n: n for n in ("tanh", "asin", "acos", "atan", "erf")}}  # fmt: skip
_PASSED_ON = (uc.Variable, uc.Conj, uc.Real)


def integrals_of(
    form: Any, snapshot: Snapshot, coordinates_vary: bool = False
) -> list[tuple[Any, Entities]]:
    """The integrands of a form, lowered to reference values, each with its entities.

    Parameters
    ----------
    form : ufl.Form
    snapshot : Snapshot
    coordinates_vary : bool
        Whether the coordinates are unknown: volumes and areas of cells are expressions then.

    Raises
    ------
    NotImplementedError
        If the integral is of a kind that the torch backend does not have.
    """
    options = {"preserve_geometry_types": ()} if coordinates_vary else {}
    data = ufl_utils.compute_form_data(form, do_replace_functions=False, **options)
    regions: dict[Any, set[Any]] = {}
    for d in data.integral_data:
        numbered = {i for i in d.subdomain_id if i != "otherwise"}
        regions.setdefault((d.domain, d.integral_type), set()).update(numbered)
    result = []
    for d in data.integral_data:
        if d.integral_type not in ("cell", "exterior_facet", "interior_facet"):
            raise UntranslatableError(
                f"The torch backend has no integrals of type {d.integral_type}."
            )
        if len(ufl.domain.extract_domains(form)) > 1:
            raise UntranslatableError("The torch backend takes forms on one mesh.")
        if d.integral_type == "interior_facet" and d.domain.ufl_cell().cellname == "hexahedron":
            raise UntranslatableError(
                "The torch backend has no integrals over interior facets of hexahedra."
            )
        ids = tuple(sorted(regions[d.domain, d.integral_type]))
        indices = _entity_indices(form, d, ids)
        for integral in d.integrals:
            metadata = integral.metadata()
            scheme = metadata.get("quadrature_rule", "default")
            degree = metadata.get("quadrature_degree", metadata.get("estimated_polynomial_degree"))
            entities = Entities(d.domain, d.integral_type, indices, degree, scheme, snapshot)
            # Orientations inside absolute values do not matter, and need not be known.
            result.append((ufl_utils.simplify_abs(integral.integrand(), False), entities))
    return result


def _entity_indices(form: Any, data: Any, ids: tuple[Any, ...]) -> np.ndarray:
    given = form.subdomain_data().get(data.domain, {}).get(data.integral_type, [None])
    given = [s for s in given if s is not None]
    if given:
        return np.asarray(given[0].indices)
    found = []
    for region in data.subdomain_id:
        known = {data.integral_type: ids} if ids else None
        part = data.domain.measure_set(data.integral_type, region, known)
        whole = not hasattr(part, "superset")
        found.append(np.arange(part.size) if whole else np.asarray(part.indices))
    return np.concatenate(found)


class IntegralGraph:
    """The scalar graph of one integrand.

    Parameters
    ----------
    integrand : ufl.Expr
        Lowered by `integrals_of`.
    entities : Entities
    unknowns : dict
        Function (or ``"coordinates"``) -> name of the unknown. All others are known.

    Attributes
    ----------
    graph : Graph
        The keys of its terms are pairs (component, derivative).
    root : int
    spaces : dict
        Name of an unknown, or `ARGUMENT` -> its function space.
    """

    def __init__(self, integrand: Any, entities: Entities, unknowns: dict[Any, Any]) -> None:
        self.entities, self.graph, self._unknowns = entities, Graph(), unknowns
        self.spaces: dict[Any, Any] = {}
        self._memo: dict[Any, int] = {}
        self._alive: list[Any] = []
        self.root = self.scalar(integrand, (), {})

    def scalar(self, e: Any, component: tuple[int, ...], bound: dict[Any, int]) -> int:
        """Node of a component of an expression whose free indices have these values."""
        free = tuple(bound[i] for i in map(_index, e.ufl_free_indices))
        key = (id(e), component, free)
        if key not in self._memo:
            self._alive.append(e)  # an id must not be given to another expression
            if not isinstance(e, uc.Indexed) and is_modified_terminal(e):
                self._memo[key] = self._terminal(e, component)
            else:
                self._memo[key] = self._visit(e, component, bound)
        return self._memo[key]

    # ---- operators ---------------------------------------------------------------------------

    @singledispatchmethod
    def _visit(self, e: Any, component: tuple[int, ...], bound: dict[Any, int]) -> int:
        if isinstance(e, _PASSED_ON):
            return self.scalar(e.ufl_operands[0], component, bound)
        raise UntranslatableError(f"The torch backend cannot translate {type(e).__name__} in {e}.")

    def _operands(self, e: Any, bound: dict[Any, int]) -> list[int]:
        return [self.scalar(o, (), bound) for o in e.ufl_operands]

    @_visit.register
    def _(self, e: uc.Indexed, component: tuple[int, ...], bound: dict[Any, int]) -> int:
        tensor, multi = e.ufl_operands
        picked = tuple(bound[_index(i)] if isinstance(i, uc.Index) else int(i) for i in multi)
        return self.scalar(tensor, picked, bound)

    @_visit.register
    def _(self, e: uc.ComponentTensor, component: tuple[int, ...], bound: dict[Any, int]) -> int:
        body, multi = e.ufl_operands
        own = {_index(i): c for i, c in zip(multi, component, strict=True)}
        return self.scalar(body, (), {**bound, **own})

    @_visit.register
    def _(self, e: uc.IndexSum, component: tuple[int, ...], bound: dict[Any, int]) -> int:
        body, (index,) = e.ufl_operands
        total = self.graph.number(0.0)
        for value in range(e.dimension()):
            own = {**bound, _index(index): value}
            total = self.graph.add(total, self.scalar(body, component, own))
        return total

    @_visit.register
    def _(self, e: uc.ListTensor, component: tuple[int, ...], bound: dict[Any, int]) -> int:
        return self.scalar(e.ufl_operands[component[0]], component[1:], bound)

    @_visit.register
    def _(self, e: uc.Sum, component: tuple[int, ...], bound: dict[Any, int]) -> int:
        a, b = (self.scalar(o, component, bound) for o in e.ufl_operands)
        return self.graph.add(a, b)

    @_visit.register
    def _(self, e: uc.Product, component: tuple[int, ...], bound: dict[Any, int]) -> int:
        return self.graph.mul(*self._operands(e, bound))

    @_visit.register
    def _(self, e: uc.Division, component: tuple[int, ...], bound: dict[Any, int]) -> int:
        a, b = e.ufl_operands
        return self.graph.div(self.scalar(a, component, bound), self.scalar(b, (), bound))

    @_visit.register
    def _(self, e: uc.Power, component: tuple[int, ...], bound: dict[Any, int]) -> int:
        return self.graph.power(*self._operands(e, bound))

    @_visit.register
    def _(self, e: uc.Abs, component: tuple[int, ...], bound: dict[Any, int]) -> int:
        return self.graph.function("abs", *self._operands(e, bound))

    @_visit.register
    def _(self, e: uc.MathFunction, component: tuple[int, ...], bound: dict[Any, int]) -> int:
        if e._name not in _FUNCTIONS:
            raise UntranslatableError(f"The torch backend has no function {e._name}.")
        return self.graph.function(_FUNCTIONS[e._name], *self._operands(e, bound))

    @_visit.register
    def _(self, e: uc.Atan2, component: tuple[int, ...], bound: dict[Any, int]) -> int:
        return self.graph.function("atan2", *self._operands(e, bound))

    @_visit.register
    def _(self, e: uc.MinValue, component: tuple[int, ...], bound: dict[Any, int]) -> int:
        return self.graph.function("min", *self._operands(e, bound))

    @_visit.register
    def _(self, e: uc.MaxValue, component: tuple[int, ...], bound: dict[Any, int]) -> int:
        return self.graph.function("max", *self._operands(e, bound))

    @_visit.register
    def _(self, e: uc.Conditional, component: tuple[int, ...], bound: dict[Any, int]) -> int:
        condition, yes, no = e.ufl_operands
        return self.graph.where(
            self._condition(condition, bound),
            self.scalar(yes, component, bound),
            self.scalar(no, component, bound),
        )

    def _condition(self, e: Any, bound: dict[Any, int]) -> int:
        if type(e) in _COMPARISONS:
            return self.graph.function(_COMPARISONS[type(e)], *self._operands(e, bound))
        if isinstance(e, uc.AndCondition | uc.OrCondition):
            name = "and" if isinstance(e, uc.AndCondition) else "or"
            return self.graph.function(name, *(self._condition(o, bound) for o in e.ufl_operands))
        if isinstance(e, uc.NotCondition):
            return self.graph.function("not", self._condition(e.ufl_operands[0], bound))
        raise UntranslatableError(f"The torch backend cannot translate {type(e).__name__}.")

    # ---- terminals ---------------------------------------------------------------------------

    def _terminal(self, e: Any, component: tuple[int, ...]) -> int:
        graph = self.graph
        if isinstance(e, uc.Zero):
            return graph.number(0.0)
        if isinstance(e, uc.ScalarValue):
            return graph.number(float(e._value))
        if isinstance(e, uc.Identity):
            return graph.number(float(component[0] == component[1]))
        if isinstance(e, uc.PermutationSymbol):
            return graph.number(float(e[component]))
        modified = analyse_modified_terminal(e)
        terminal, side = modified.terminal, modified.restriction
        if isinstance(terminal, Constant):
            values = self.entities.snapshot.array(terminal.dat).reshape(terminal.ufl_shape)
            return graph.number(float(values[component]))
        orders = modified.local_derivatives
        directions = component[len(component) - orders :]
        derivative = derivative_directions(directions, self.entities.mesh.topological_dimension)
        value = component[: len(component) - orders]
        shape = e.ufl_shape[: len(component) - orders]
        flat = int(np.ravel_multi_index(value, shape)) if shape else 0
        if isinstance(terminal, uc.SpatialCoordinate):
            X = ufl.domain.extract_unique_domain(terminal).coordinates
            return self._function(X, "coordinates", flat, derivative, side)
        if isinstance(terminal, uc.Argument):
            self.spaces[ARGUMENT] = terminal.function_space()
            return self._unknown(ARGUMENT, terminal.function_space(), flat, derivative, side)
        if isinstance(terminal, uc.Coefficient):
            return self._function(terminal, terminal, flat, derivative, side)
        return self._geometry(terminal, component, flat, side)

    def _function(self, f: Any, key: Any, flat: int, derivative: Any, side: Any) -> int:
        V = f.function_space()
        if key in self._unknowns:
            name = self._unknowns[key]
            self.spaces[name] = V
            return self._unknown(name, V, flat, derivative, side)
        block, index, component = _locate(V, flat)
        return self.graph.field(
            ("function", f.count(), flat, derivative, side),
            lambda: self.entities.values(f, block, index, component, derivative, side),
        )

    def _unknown(self, name: Any, V: Any, flat: int, derivative: Any, side: Any) -> int:
        block, index, component = _locate(V, flat)
        part = V.subspaces[block]
        if part.ufl_element().family() == "Real":
            if any(derivative):
                return self.graph.number(0.0)
            side = None
        else:
            # A table of zeros (a derivative of constants) is no dependence.
            table = self.entities.table(part, component, derivative, side)
            if not table.any():
                return self.graph.number(0.0)
        return self.graph.term(Unknown(name, block, index, side), (component, derivative))

    def _geometry(self, terminal: Any, component: tuple[int, ...], flat: int, side: Any) -> int:
        """Quantities of the cell or facet; on affine cells one value for all points."""
        entities, kind = self.entities, type(terminal)
        cell = entities.cell

        def values() -> np.ndarray:
            if kind is uc.QuadratureWeight:
                return entities.weights
            if kind is uc.CellCoordinate:
                return entities.reference_points(side)[..., flat]
            if kind is uc.FacetCoordinate:
                return entities.points[None, :, flat]
            if kind is uc.ReferenceNormal:
                normals = [cell.compute_reference_normal(entities.dimension, f)
                           for f in range(entities._face_count)]  # fmt: skip
                return entities.per_face(normals, side)[:, None, flat]
            if kind is uc.CellFacetJacobian:
                jacobians = [_facet_jacobian(cell, f) for f in range(entities._face_count)]
                return entities.per_face(jacobians, side)[:, component[0], component[1], None]
            if kind is uc.ReferenceCellVolume:
                return np.full((1, 1), cell.volume())
            if kind is uc.ReferenceFacetVolume:
                return np.full((1, 1), cell.construct_subelement(entities.dimension).volume())
            if kind is uc.CellOrientation:
                numbers = entities.mesh.cell_orientations().dat.data_ro.reshape(-1)
                return np.where(numbers[entities.cells(side)] == 1, -1.0, 1.0)[:, None]
            if kind is uc.CellVertices:
                return self._vertices(side)[:, component[0], component[1]][:, None]
            if kind is uc.CellEdgeVectors:
                edges = sorted(cell.get_topology()[1].items())
                start, end = edges[component[0]][1]
                corners = self._vertices(side)
                return (corners[:, start] - corners[:, end])[:, component[1]][:, None]
            if kind is uc.CellVolume:
                return _measure(entities.on_cells(side, "default"), ufl.dx(domain=entities.mesh))
            if kind is uc.FacetArea:
                measure = ufl.Measure(entities.kind, domain=entities.mesh)
                return _measure(entities, measure)
            raise UntranslatableError(f"The torch backend has no {kind.__name__}.")

        if "coordinates" in self._unknowns and kind in (uc.CellVertices, uc.CellEdgeVectors,
                                                        uc.CellVolume, uc.FacetArea):  # fmt: skip
            raise UntranslatableError(
                f"The torch backend has no derivative of {kind.__name__} by the coordinates."
            )
        return self.graph.field((kind.__name__, component, side), values)

    def _vertices(self, side: Any) -> np.ndarray:
        """Corners of the cell of each entity, shape (entities, corners, geometric dimension)."""
        mesh = self.entities.mesh
        corners = self.entities.on_cells(side, _Corners(self.entities.cell))
        zero = (0,) * mesh.topological_dimension
        columns = [
            corners.values(mesh.coordinates, 0, i, 0, zero, None)
            for i in range(mesh.geometric_dimension)
        ]
        return np.stack(columns, axis=-1)


class _Corners:
    """The corners of the reference cell in the place of a quadrature rule."""

    def __init__(self, cell: Any) -> None:
        from finat.point_set import PointSet

        self.point_set = PointSet(np.asarray(cell.get_vertices(), dtype=float))


def _measure(entities: Entities, measure: Any) -> np.ndarray:
    """Volume of each cell or area of each facet, shape (entities, 1)."""
    integrand, degree = ufl_utils.one_times(measure)
    integrand = ufl_utils.simplify_abs(integrand, False)
    at_points = entities.restrict(degree)
    if measure.integral_type() == "interior_facet":
        integrand = ufl.algorithms.apply_restrictions.apply_restrictions(integrand)
    built = IntegralGraph(integrand, at_points, {})
    values = built.graph.values(built.root)
    shape = (entities.count, at_points.weights.shape[1])
    return np.broadcast_to(values, shape).sum(axis=1, keepdims=True)


def _facet_jacobian(cell: Any, face: int) -> np.ndarray:
    to_cell = cell.get_entity_transform(cell.get_dimension() - 1, face)
    dimension = cell.get_dimension() - 1
    origin = np.asarray(to_cell(np.zeros(dimension)))
    return np.stack([np.asarray(to_cell(row)) - origin for row in np.eye(dimension)], axis=1)


def _locate(V: Any, flat: int) -> tuple[int, int, int]:
    """Part of a mixed space, component at the nodes and of the element, of a reference value."""
    for block, part in enumerate(V.subspaces):
        own = element_size(part)
        size = block_size(part) * own
        if flat < size:
            return block, flat // own, flat % own
        flat -= size
    raise IndexError(flat)


def _index(i: Any) -> int:
    return i.count() if isinstance(i, uc.Index) else int(i)
