"""Darcy flow on a plate with holes: from a coefficient, constant in each cell, to the pressure."""

from __future__ import annotations

import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from firedrake import (
    Constant,
    DirichletBC,
    Function,
    FunctionSpace,
    LinearVariationalProblem,
    LinearVariationalSolver,
    MeshHierarchy,
    TestFunction,
    TrialFunction,
    dx,
    exp,
    grad,
    inner,
)
from scipy.spatial import cKDTree
from torch import Tensor

from operator_learning.finite_elements import (
    CHOLESKY,
    RelativeL2,
    cpu,
    positions,
    row,
    solutions,
)
from operator_learning.problems import Grid, Level, Problem, Samples, pairs
from spon import fem
from spon.fem.maps import points_inside
from spon.fem.norms import gram
from spon.samplers import GaussianRandomField, TwoPhase
from spon.sparse import SparseMap

__all__ = ["MESHES", "DarcyHoles", "coarser_meshes", "image", "vertex_means"]

MESHES = Path(__file__).resolve().parents[2] / "meshes"
_SIZES = (0.168, 0.084)  # edges of the coarser meshes; those of plate.msh are 0.042 long
_FEW = 16  # samples that the slow solver gets; its time is scaled to all of them
_PIXELS = (61, 31)  # about as many as the mesh has nodes


@dataclass
class DarcyHoles(Problem):
    """Trained on `plate.msh`, tested there and on the same mesh refined twice.

    The input is the logarithm of the coefficient. The tests on both meshes are the same functions,
    so that what differs are the solutions of finite elements and the networks.
    """

    title: ClassVar[str] = "Darcy flow on the plate with holes"

    @classmethod
    def make(cls, name: str, quick: bool, coefficient: str, length: float = 0.25) -> DarcyHoles:
        """Draw coefficients and solve; see `problems.make`."""
        counts = (48, 16, 16) if quick else (1000, 100, 100)
        plate = fem.read_mesh(MESHES / "plate.msh", required_tags=("left", "right"))
        meshes = MeshHierarchy(plate, 1 if quick else 2)
        coarse = _level("mesh", meshes[0])
        fine = _finer(_level("refined", meshes[-1]), coarse)
        sampler = _sampler(coefficient, coarse.V, length)
        solve = _solver(coarse.U, coarse.V)
        inputs = [sampler.draw(n, seed) for seed, n in enumerate(counts)]
        train, held, test = (Samples(k.float(), solve(k).float(), coarse) for k in inputs)
        prolong = fem.interpolation_map(coarse.V, fine.V)
        k = prolong.batch(inputs[2])
        refined = Samples(k.float(), _in_parts(_solver(fine.U, fine.V), k).float(), fine)
        about = {
            "train": counts[0],
            "validation": counts[1],
            "coefficient": sampler.describe(),
            "refined_outputs": fine.outputs,
        }
        tests = {"mesh": test, "refined": refined}
        return cls(name, train, held, tests, seconds=300.0, epochs=300, about=about)

    def floors(self) -> dict[str, Any]:
        """What the space of `plate.msh` is off by, against the finest mesh."""
        coarse, fine = self.level, self.tests["refined"].level
        target = self.tests["refined"].y.double()
        mass = gram(fine.U)
        assert fine.prolong is not None
        up = fine.prolong.to_scipy().astype(np.float64)
        restricted = torch.from_numpy(up.T @ mass.batch(target).numpy().T)
        projected = torch.from_numpy(
            sp.linalg.splu((up.T @ mass.to_scipy() @ up).tocsc()).solve(restricted.numpy()).T
        )
        lift = SparseMap(up)
        solved = self.tests["mesh"].y.double()
        return {
            "best_approximation": float(fine.error(lift.batch(projected), target).mean()),
            "finite_elements": float(fine.error(lift.batch(solved), target).mean()),
            "reference": f"CG 1 on the refined mesh, {fine.outputs:,} dofs, "
            f"against {coarse.outputs:,}",
        }

    def solvers(self, quick: bool) -> list[dict[str, Any]]:
        """Our solver and a plain one on coarser meshes, on that of training, and on the finest."""
        test, refined = self.tests["mesh"], self.tests["refined"]
        fine = refined.level
        rows = []
        for name, mesh in [*coarser_meshes(), ("plate.msh", self.level.mesh)]:
            V, U = FunctionSpace(mesh, "DG", 0), FunctionSpace(mesh, "CG", 1)
            same = mesh is self.level.mesh
            down = None if same else _at(self.level.V, V)
            up = None if same else _at(U, self.level.U)
            few = test.x[:_FEW].double()
            for solve in (_ours, _plain):  # compiled outside the clock
                solve(U, V, few[:2], down, up)
            ours, *clock = _ours(U, V, test.x.double(), down, up)
            plain, *slow = _plain(U, V, few, down, up)
            torch.testing.assert_close(plain, ours[:_FEW], rtol=1e-6, atol=1e-9)
            assert fine.prolong is not None
            lifted = fine.prolong.double().batch(ours)
            fine.prolong.float()
            errors = {
                "error": float(test.level.error(ours, test.y.double()).mean()),
                "against_reference": float(fine.error(lifted, refined.y.double()).mean()),
            }
            where = (name, U, errors, len(test))
            rows.append(row("spon.fem.LinearSolver", *where, *clock))
            slow[1] *= len(test) / len(few)
            rows.append(row("Firedrake, MUMPS", *where, *slow))
        return rows


def _sampler(coefficient: str, V: Any, length: float) -> Any:
    if coefficient == "lognormal":
        return GaussianRandomField(V, length=length, std=1.0)
    if coefficient == "two-phase":
        return TwoPhase(V, length=length, low=0.0, high=math.log(10.0))
    raise ValueError(f"The coefficient is lognormal or two-phase, got {coefficient!r}.")


def _level(name: str, mesh: Any) -> Level:
    V, U = FunctionSpace(mesh, "DG", 0), FunctionSpace(mesh, "CG", 1)
    return Level(
        name=name,
        inputs=V.dim(),
        outputs=U.dim(),
        points=torch.from_numpy(positions(U)).float(),
        edges=pairs(U.cell_node_list),
        grid=image(V, positions(U)),
        error=RelativeL2(U),
        mesh=mesh,
        V=V,
        U=U,
        rule=_ends,
        to_points=vertex_means(U, V),
    )


def vertex_means(U: Any, V: Any) -> SparseMap:
    """Plain means of the values in the cells (`V`) around a vertex (`U`)."""
    cells = U.cell_node_list
    count, corners = cells.shape
    where = (cells.ravel(), np.repeat(V.cell_node_list[:, 0], corners))
    incidence = sp.csr_matrix((np.ones(count * corners), where), shape=(U.dim(), V.dim()))
    means = sp.diags(1.0 / np.asarray(incidence.sum(axis=1)).ravel()) @ incidence
    return SparseMap(means, torch.float32)


def _ends(U: Any) -> list[Any]:
    """One at the left end of the plate, zero at the right one."""
    return [DirichletBC(U, 1.0, 1), DirichletBC(U, 0.0, 2)]


def _finer(level: Level, train: Level) -> Level:
    """Fill in the maps from and to the level of training."""
    children = fem.interpolation_map(train.V, level.V).to_scipy()
    parents = sp.diags(1.0 / np.asarray(children.sum(axis=0)).ravel()) @ children.T
    level.restrict = SparseMap(parents, torch.float32)
    level.prolong = fem.interpolation_map(train.U, level.U, torch.float32)
    # An image is a network's own discretisation: it does not change with the mesh.
    return level


def image(V: Any, nodes: np.ndarray) -> Grid:
    """A regular image over the plate; the pressure comes back by bilinear interpolation."""
    axes = [np.linspace(0.0, end, n) for end, n in zip((2.0, 1.0), _PIXELS, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    inside = points_inside(V.mesh(), points)
    values = fem.evaluation_map(V, points[inside]).to_scipy()
    spread = sp.csr_matrix(
        (np.ones(inside.sum()), (np.flatnonzero(inside), np.arange(inside.sum()))),
        shape=(len(points), int(inside.sum())),
    )
    ends = tuple(float(a[-1] + a[1]) for a in axes)
    return Grid(
        _PIXELS,
        ends=(ends[0], ends[1]),
        to_grid=SparseMap(spread @ values, torch.float32),
        from_grid=SparseMap(_bilinear(axes, nodes), torch.float32),
        mask=torch.from_numpy(inside.astype(np.float32)),
    )


def _bilinear(axes: list[np.ndarray], nodes: np.ndarray) -> sp.csr_matrix:
    """Values of an image to values at the nodes, shape (nodes, pixels)."""
    columns, weights = np.zeros((len(nodes), 1), dtype=np.int64), np.ones((len(nodes), 1))
    for axis, x in zip(axes, nodes.T, strict=True):
        place = np.clip(x / axis[1], 0, len(axis) - 1)
        left = np.minimum(place.astype(np.int64), len(axis) - 2)
        right = (place - left)[:, None]
        columns = np.hstack([columns * len(axis) + left[:, None] + k for k in (0, 1)])
        weights = np.hstack([weights * (1.0 - right), weights * right])
    rows = np.repeat(np.arange(len(nodes)), columns.shape[1])
    shape = (len(nodes), len(axes[0]) * len(axes[1]))
    return sp.csr_matrix((weights.ravel(), (rows, columns.ravel())), shape=shape)


# ---- finite elements ---------------------------------------------------------------------------


def _forms(U: Any, k: Any) -> tuple[Any, Any]:
    p, q = TrialFunction(U), TestFunction(U)
    return exp(k) * inner(grad(p), grad(q)) * dx, Constant(0.0) * q * dx


def _solver(U: Any, V: Any) -> fem.LinearSolver:
    k = Function(V)
    a, L = _forms(U, k)
    return fem.LinearSolver(a, _ends(U), inputs=k, L=L)


def _in_parts(solve: Any, k: Tensor, size: int = 10) -> Tensor:
    """Factors of a large batch would all be kept at once."""
    return torch.cat([solve(part) for part in k.split(size)])


def _ours(
    U: Any, V: Any, k: Tensor, down: SparseMap | None, up: SparseMap | None
) -> tuple[Tensor, float, float]:
    """Pressures on the level of training, CPU seconds of the set-up and of all samples."""
    solve, setup = cpu(lambda: _solver(U, V))

    def run() -> Tensor:
        found = _in_parts(solve, k if down is None else down.batch(k))
        return found if up is None else up.batch(found)

    found, spent = cpu(run)
    return found, setup, spent


def _plain(
    U: Any, V: Any, k: Tensor, down: SparseMap | None, up: SparseMap | None
) -> tuple[Tensor, float, float]:
    """The same with a `LinearVariationalSolver`, one sample after the other."""

    def set_up() -> tuple[Any, Any, Any]:
        given, p = Function(V), Function(U)
        problem = LinearVariationalProblem(*_forms(U, given), p, _ends(U))
        solver = LinearVariationalSolver(problem, solver_parameters=CHOLESKY)
        solver.solve()
        return solver, given, p

    (solver, given, p), setup = cpu(set_up)

    def run() -> Tensor:
        found = solutions(solver, given, k if down is None else down.batch(k), p)
        return found if up is None else up.batch(found)

    found, spent = cpu(run)
    return found, setup, spent


def coarser_meshes() -> list[tuple[str, Any]]:
    """The plate with longer edges; none where gmsh is missing."""
    sys.path.insert(0, str(MESHES))
    try:
        import plate as drawing  # type: ignore[import-not-found]
    except ImportError as error:
        print(f"no coarser meshes of the plate, gmsh cannot be imported: {error}", flush=True)
        return []
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for size in _SIZES:
            path = Path(folder) / f"plate{size}.msh"
            drawing.make(path, size)
            found.append((f"edges of {size:g}", fem.read_mesh(path)))
    return found


def _at(source: Any, target: Any) -> SparseMap:
    """Interpolation between meshes; nodes beside the mesh take the value of the nearest node."""
    points = positions(target)
    inside = points_inside(source.mesh(), points)
    values = fem.evaluation_map(source, points[inside]).to_scipy().tocsr()
    nearest = cKDTree(positions(source)).query(points[~inside])[1] if not inside.all() else []
    beside = sp.csr_matrix(
        (np.ones(len(nearest)), (np.arange(len(nearest)), nearest)),
        shape=(len(nearest), source.dim()),
    )
    order = np.argsort(np.concatenate([np.flatnonzero(inside), np.flatnonzero(~inside)]))
    return SparseMap(sp.vstack([values, beside]).tocsr()[order])
