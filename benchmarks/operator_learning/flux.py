"""Darcy flow on the plate with holes: from a coefficient, constant in each cell, to the flux."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from firedrake import (
    Constant,
    DirichletBC,
    FacetNormal,
    Function,
    FunctionSpace,
    LinearVariationalProblem,
    LinearVariationalSolver,
    SpatialCoordinate,
    TestFunction,
    TestFunctions,
    TrialFunction,
    TrialFunctions,
    VectorFunctionSpace,
    as_vector,
    div,
    ds,
    dx,
    exp,
    grad,
    inner,
    interpolate,
)
from scipy.spatial import cKDTree
from torch import Tensor

import spon
from operator_learning.facet_fluxes import FacetFluxes
from operator_learning.finite_elements import RelativeL2, cpu, positions, row, solutions
from operator_learning.plate import MESHES, coarser_meshes, image, vertex_means
from operator_learning.problems import Level, Problem, Samples, pairs
from operator_learning.tracers import Arrivals, Tracers
from spon import fem
from spon.fem.maps import points_inside
from spon.fem.norms import gram
from spon.samplers import GaussianRandomField
from spon.sparse import SparseMap

__all__ = ["DarcyFlux"]

PARTS = {"left": 1, "right": 2, "sides": (3, 4), "holes": 5}
_WALLS = (3, 4, 5)
_FEW = 16  # samples that the slow solver gets; its time is scaled to all of them
_PLACES = 2  # points on a facet where the image is read
_TRACERS, _DRAWN = 40, 2  # one in so many is drawn
_MUMPS = {
    "mat_type": "aij",
    "ksp_type": "preonly",
    "pc_type": "lu",
    "pc_factor_mat_solver_type": "mumps",
    "mat_mumps_icntl_14": 200,
}
_PROMISES = {"divergence_free": True, "through": "projection"}


@dataclass
class DarcyFlux(Problem):
    """The flux in RT 1 for pressure 1 at the left and 0 at the right end, walls elsewhere.

    A network of points or pixels makes two values at each. The flux of a facet is the integral of
    the normal component of what is interpolated between them, by Gauss' rule: with this the
    network is trained and measured.
    """

    title: ClassVar[str] = "Flux on the plate with holes"
    networks: ClassVar[tuple[str, ...]] = (
        "Spectral",
        "Resolvent",
        "Spectral without promise",
        "FNO",
        "DeepONet",
        "message passing",
        "POD + MLP",
    )
    double: ClassVar[bool] = True
    fluxes: FacetFluxes = field(kw_only=True)

    @classmethod
    def make(cls, name: str, quick: bool, length: float = 0.25, std: float = 1.0) -> DarcyFlux:
        """Draw coefficients and solve; see `problems.make`."""
        counts = (48, 16, 16) if quick else (1000, 100, 100)
        plate = fem.read_mesh(MESHES / "plate.msh", required_tags=("left", "right"))
        V, U = FunctionSpace(plate, "DG", 0), FunctionSpace(plate, "RT", 1)
        fluxes = FacetFluxes.of(U, PARTS, "left", "right")
        level = _level(V, U, fluxes)
        sampler = GaussianRandomField(V, length=length, std=std)
        solve = _solver(U, V)
        inputs = [sampler.draw(n, seed) for seed, n in enumerate(counts)]
        train, held, test = (Samples(k.float(), solve(k).float(), level) for k in inputs)
        about = {
            "train": counts[0],
            "validation": counts[1],
            "coefficient": sampler.describe(),
            "tracers": _TRACERS,
        }
        return cls(
            name, train, held, {"mesh": test}, seconds=300.0, epochs=300, about=about, fluxes=fluxes
        )

    @cached_property
    def tracers(self) -> Tracers:
        """Particles along the inflow."""
        return Tracers(self.fluxes, _TRACERS)

    @cached_property
    def _true(self) -> dict[str, Arrivals]:
        """What particles do in the true fluxes of the tests."""
        return {key: self.tracers(s.y.double().numpy()) for key, s in self.tests.items()}

    @cached_property
    def projection(self) -> spon.Decoder:
        """To the nearest flux without sources or leaks."""
        return spon.Decoder(self.level.U, bcs=self.level.rule, **_PROMISES)

    def measures(self, test: str, prediction: Tensor) -> dict[str, Tensor]:
        """Errors, what is lost (`FacetFluxes.violations`), and tracers (`Tracers.compare`).

        ``projected`` is the error after the projection that a decoder with promises ends with:
        what a network would gain from it as it is.
        """
        samples, u = self.tests[test], prediction.double()
        values = u.numpy()
        found = self.fluxes.violations(values)
        found |= self.tracers.compare(self.tracers(values), self._true[test])
        projected = samples.level.error(self.projection(u), samples.y.double())
        return {
            **super().measures(test, prediction),
            "projected": projected,
            **{name: torch.from_numpy(x) for name, x in found.items()},
        }

    def shown(self, prediction: Tensor) -> dict[str, Any]:
        """Paths of some particles in the first flux, and how they end."""
        found = self.tracers(prediction[:1].double().numpy(), paths=True)
        return {
            "paths": [_text(path) for path in found.paths[::_DRAWN]],
            "ends": found.part[0, ::_DRAWN].tolist(),
        }

    def reference(self) -> dict[str, Any]:
        """The same measures and paths for the fluxes that are learned, from finite elements."""
        y = self.tests["mesh"].y
        measured = self.measures("mesh", y).items()
        return {
            "measures": {
                k: {"mean": float(v.mean()), "largest": float(v.max())} for k, v in measured
            },
            "shown": {**self.shown(y), "outline": self._outline()},
        }

    def _outline(self) -> list[str]:
        """Both ends of each facet of the boundary, as in `shown`."""
        ends = self.fluxes.ends(np.concatenate(list(self.fluxes.parts.values())))
        return [_text(both) for both in ends]

    def floors(self) -> dict[str, Any]:
        """What the points and the pixels of the rivals cannot represent of the true fluxes."""
        level, mass = self.level, gram(self.level.U).to_scipy()
        assert level.from_points is not None and level.grid.from_grid is not None
        target = self.tests["mesh"].y.double()
        maps = {"points": level.from_points, "pixels": level.grid.from_grid}
        return {
            key: float(level.error(_nearest(m.to_scipy(), mass, target), target).mean())
            for key, m in maps.items()
        }

    def solvers(self, quick: bool) -> list[dict[str, Any]]:
        """Our solver on coarser meshes and on that of training, and the mixed method there."""
        test = self.tests["mesh"]
        k, rows = test.x.double(), []
        for name, mesh in [*coarser_meshes(), ("plate.msh", self.level.mesh)]:
            same = mesh is self.level.mesh
            V, U = FunctionSpace(mesh, "DG", 0), FunctionSpace(mesh, "RT", 1)
            down = None if same else _coefficients_at(self.level.V, V)
            up = None if same else self._fluxes_from(U)
            makers: list[tuple[str, Any, int]] = [("spon.fem.LinearSolver, CR 1", _solver, len(k))]
            if same:
                makers.append(("Firedrake, MUMPS, RT 1 x DG 0", _mixed, _FEW))
            for solver, make, count in makers:
                some = k[:count]

                def run(solve: Any, x: Tensor, down: Any = down, up: Any = up) -> Tensor:
                    found: Tensor = solve(x if down is None else down.batch(x))
                    return found if up is None else up.batch(found)

                run(make(U, V), some[:2])  # compiled outside the clock
                solve, setup = cpu(partial(make, U, V))
                found, spent = cpu(partial(run, solve, some))
                error = test.level.error(found, test.y[:count].double())
                errors = {"error": float(error.mean())}
                rows.append(row(solver, name, U, errors, len(k), setup, spent * len(k) / len(some)))
        return rows

    def _fluxes_from(self, U: Any) -> SparseMap:
        """From the flux on another mesh to that on the mesh of training."""
        points, dofs = self.fluxes.from_values(_PLACES)
        # Beside the other mesh, at a hole, the field is read at the nearest centre of a cell.
        inside = points_inside(U.mesh(), points)
        Q = VectorFunctionSpace(U.mesh(), "DG", 0)
        centres = Function(Q).interpolate(SpatialCoordinate(U.mesh())).dat.data_ro
        points[~inside] = centres[cKDTree(centres).query(points[~inside])[1]]
        values = fem.evaluation_map(U, points).to_scipy().tocsr()
        return SparseMap(dofs @ sp.vstack([values[0::2], values[1::2]]))


def _level(V: Any, U: Any, fluxes: FacetFluxes) -> Level:
    """Points are the vertices of the mesh.

    Centres of cells were tried, too: they can represent each flux exactly, vertices to 1 %, but
    DeepONet and message passing, with neighbours across facets, were not more accurate on them,
    and slower.
    """
    P = FunctionSpace(V.mesh(), "CG", 1)
    at, dofs = fluxes.from_values(_PLACES)
    grid = image(V, at)
    assert grid.from_grid is not None

    def to_dofs(values: SparseMap) -> SparseMap:
        """From both components to the fluxes, by way of the points of the facets."""
        return SparseMap(dofs @ sp.block_diag([values.to_scipy()] * 2), torch.float32)

    return Level(
        name="mesh",
        inputs=V.dim(),
        outputs=U.dim(),
        points=torch.from_numpy(positions(P)).float(),
        edges=pairs(P.cell_node_list),
        grid=replace(grid, from_grid=to_dofs(grid.from_grid)),
        error=RelativeL2(U),
        components=2,
        from_points=to_dofs(fem.evaluation_map(P, at)),
        sampled=SparseMap(fluxes.centres(), torch.float32),
        promises=_PROMISES,
        mesh=V.mesh(),
        V=V,
        U=U,
        rule=_closed,
        to_points=vertex_means(P, V),
    )


def _closed(U: Any) -> Any:
    """Nothing flows through the sides and the holes."""
    return DirichletBC(U, as_vector((0.0, 0.0)), _WALLS)


def _text(path: np.ndarray) -> str:
    """Every other point and the last one, in thousandths."""
    kept = np.unique(np.append(np.arange(0, len(path), 2), len(path) - 1))
    return " ".join(str(n) for n in np.rint(1000 * path[kept]).astype(int).ravel())


def _nearest(from_values: Any, mass: Any, target: Tensor) -> Tensor:
    """Best approximations by what a map reaches."""
    A = sp.csr_matrix(from_values, dtype=np.float64)
    normal = A.T @ mass @ A
    shift = 1e-12 * normal.diagonal().max() * sp.identity(A.shape[1])
    load = A.T @ (mass @ target.numpy().T)
    return torch.from_numpy((A @ sp.linalg.splu((normal + shift).tocsc()).solve(load)).T)


# ---- finite elements ---------------------------------------------------------------------------


def _solver(U: Any, V: Any) -> Callable[[Tensor], Tensor]:
    """Fluxes of the lowest-order mixed method, by way of a system that is definite.

    Without sources and with a coefficient that is constant in each cell, the flux is -k grad p of
    the nonconforming linear pressure (Marini 1985, *An inexpensive method for the evaluation of the
    solution of the lowest order Raviart-Thomas mixed method*), which costs a thirtieth.
    """
    mesh = V.mesh()
    C, k = FunctionSpace(mesh, "CR", 1), Function(V)
    p, q = TrialFunction(C), TestFunction(C)
    # A float would be taken as the value of the dofs, which are not values at points here.
    ends = [DirichletBC(C, Constant(1.0), 1), DirichletBC(C, Constant(0.0), 2)]
    form = exp(k) * inner(grad(p), grad(q)) * dx
    solve = fem.LinearSolver(form, ends, inputs=k, L=Constant(0.0) * q * dx)
    slopes = VectorFunctionSpace(mesh, "DG", 0)
    slope = fem.sparse_map(interpolate(grad(TrialFunction(C)), slopes))
    into_U = fem.interpolation_map(slopes, U)
    walls = _closed(U).nodes

    def fluxes(x: Tensor) -> Tensor:
        speed = -x.exp()[..., None] * slope.batch(solve(x)).reshape(len(x), -1, 2)
        u = into_U.batch(speed.flatten(1))
        u[:, walls] = 0.0  # they are, but for round-off
        return u

    return fluxes


def _mixed(U: Any, V: Any) -> Callable[[Tensor], Tensor]:
    """The mixed method itself, one sample after the other."""
    mesh = V.mesh()
    W, k = U * FunctionSpace(mesh, "DG", 0), Function(V)
    (f, p), (v, q), w = TrialFunctions(W), TestFunctions(W), Function(W)
    form = (exp(-k) * inner(f, v) - p * div(v) - div(f) * q) * dx
    load = -inner(v, FacetNormal(mesh)) * ds(1)
    closed = DirichletBC(W.sub(0), as_vector((0.0, 0.0)), _WALLS)
    problem = LinearVariationalProblem(form, load, w, closed)
    solver = LinearVariationalSolver(problem, solver_parameters=_MUMPS)
    return lambda x: solutions(solver, k, x, w.subfunctions[0])


def _coefficients_at(source: Any, target: Any) -> SparseMap:
    """Values in the cells of another mesh, those of the nearest cell where centres lie beside."""
    points = positions(target)
    inside = points_inside(source.mesh(), points)
    centres = positions(source)
    points[~inside] = centres[cKDTree(centres).query(points[~inside])[1]]
    return fem.evaluation_map(source, points)
