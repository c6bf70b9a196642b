"""The unit cells and macro parts of meshes/ for FE², and the grids of the benchmark."""

from __future__ import annotations

import importlib
import subprocess
import sys
from math import log, pi
from pathlib import Path

import meshio
import numpy as np
import pytest
from firedrake import (
    Constant,
    Function,
    FunctionSpace,
    JacobianDeterminant,
    Measure,
    SpatialCoordinate,
    VectorFunctionSpace,
    assemble,
    cos,
    ds,
    dx,
    errornorm,
    sin,
)
from rve_grids import curved_rve, straight_rve

from spon.fem import mesh_tags, read_mesh

FOLDER = Path(__file__).parents[1] / "meshes"
FLAT, SOLID = ["rve1", "rve2", "rve3"], ["fibres3d", "particles3d"]
CELLS = [*FLAT, *SOLID]
FRACTIONS = {"rve1": 0.5500, "rve2": 0.1929, "rve3": 0.1335}  # of the published grids
SIDES = ["left", "right", "bottom", "top", "back", "front"]


CIRCLES = {
    "rve1": [(x, y, 0.295864) for x, y in [(0, 0), (-0.5, -0.5), (0.5, -0.5), (0.5, 0.5)]]
    + [(-0.5, 0.5, 0.295864)],
    "rve3": [(0.0, -0.25, 0.1), (0.25, 0.15, 0.15), (-0.25, 0.25, 0.1)],
}
VOLUMES = {
    "rve1": 2 * pi * 0.295864**2,
    "rve2": pi * 0.35 * 0.1754,
    "rve3": pi * (0.1**2 + 0.15**2 + 0.1**2),
    "fibres3d": 2 * pi * 0.25**2,
    "particles3d": 4 / 3 * pi * (0.26**3 + 0.16**3 + 0.24**3),
}


def _volume(mesh, measure: Measure = dx) -> float:
    return float(assemble(Constant(1.0) * measure(domain=mesh)))


@pytest.fixture(scope="module")
def meshes():
    return {name: read_mesh(FOLDER / f"{name}.msh") for name in CELLS}


@pytest.fixture(scope="module")
def files():
    return {name: meshio.read(FOLDER / f"{name}.msh") for name in CELLS}


def _cells(source) -> np.ndarray:
    return source.cells_dict["tetra10" if "tetra10" in source.cells_dict else "quad9"]


@pytest.mark.parametrize("name", CELLS)
def test_inclusions_have_their_volume(meshes, name):
    inclusion = _volume(meshes[name], dx(2))
    assert _volume(meshes[name]) == pytest.approx(1.0, rel=1e-13)
    assert _volume(meshes[name], dx(1)) + inclusion == pytest.approx(1.0, rel=1e-13)
    allowed = 5e-3 if name == "particles3d" else 2e-4  # it has only 8 elements around a ball
    assert inclusion == pytest.approx(VOLUMES[name], rel=allowed)
    if name in FRACTIONS:
        assert inclusion == pytest.approx(FRACTIONS[name], abs=6e-5)


@pytest.mark.parametrize("name", CIRCLES)
def test_interfaces_are_parabolas_through_three_points_of_a_circle(meshes, files, name):
    """The circle's segment over an arc of angle 2a has r^2 a^5 / 30 more area than a parabola's."""
    source, missing, covered = files[name], 0.0, 0.0
    quads = _cells(source)[source.cell_data_dict["gmsh:physical"]["quad9"] == 2]
    edges = np.concatenate([quads[:, [k, (k + 1) % 4, 4 + k]] for k in range(4)])
    ends = source.points[edges][..., :2]
    for x, y, r in CIRCLES[name]:
        on = (np.abs(np.hypot(ends[..., 0] - x, ends[..., 1] - y) - r) < 1e-7).all(axis=1)
        half = np.arcsin(np.linalg.norm(ends[on, 1] - ends[on, 0], axis=1) / 2 / r)
        missing += float((r**2 * half**5 / 30 * (1 - half**2 * 2 / 21)).sum())
        covered += float((r**2 * half).sum())
    assert covered == pytest.approx(VOLUMES[name], rel=1e-7)  # the arcs go all the way round
    assert missing > 1e-7
    found = VOLUMES[name] - _volume(meshes[name], dx(2))
    assert found == pytest.approx(missing, rel=0.02)


def _made(name: str, size: float, folder: Path):
    """A cell made anew by its script, in a process of its own."""
    try:
        importlib.import_module("gmsh")
    except (ImportError, OSError) as error:
        pytest.skip(f"gmsh does not load: {error}")
    path = folder / f"{name}-{size}.msh"
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--size", str(size), "--out", str(path)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return read_mesh(path)


def _wave(mesh):
    """A smooth function that is periodic in every direction."""
    x = SpatialCoordinate(mesh)
    value = sin(2 * pi * x[0]) * cos(2 * pi * x[1])
    return value if len(x) == 2 else value + cos(2 * pi * x[2])


@pytest.mark.parametrize(
    ("name", "sizes"),
    [(name, (0.06, 0.03, 0.015)) for name in FLAT]
    + [("fibres3d", (0.12, 0.06)), ("particles3d", (0.1, 0.06))],
)
def test_refinement(tmp_path, name, sizes):
    """Volumes converge at order 4, interpolation of degree 2 at order 3, on curved cells."""
    widths, volumes, waves = [], [], []
    for size in sizes:
        mesh = _made(name, size, tmp_path)
        widths.append(mesh.num_cells() ** (-1 / mesh.topological_dimension))
        volumes.append(abs(_volume(mesh, dx(2)) - VOLUMES[name]))
        V = FunctionSpace(mesh, "CG", 2)
        wave = _wave(mesh)
        difference = Function(V).interpolate(wave) - wave
        waves.append(float(assemble(difference**2 * dx(degree=6))) ** 0.5)
    finer = log(widths[0] / widths[-1])
    assert log(volumes[0] / volumes[-1]) / finer > 3.6, (widths, volumes)
    assert log(waves[0] / waves[-1]) / finer > 2.7, (widths, waves)


@pytest.mark.parametrize("name", SOLID)
def test_finer_cells_in_3d_have_the_dofs_for_benchmarks(tmp_path, name):
    mesh = _made(name, 0.1, tmp_path)
    assert VectorFunctionSpace(mesh, "CG", 2).dim() > 20_000


@pytest.mark.parametrize("name", CELLS)
def test_opposite_sides_match(files, name):
    """Node by node, those in the middle of edges too, with the tags 1 to 6 as in the table."""
    points, dim = files[name].points, 3 if name in SOLID else 2
    for axis in range(dim):
        low, high = (points[np.abs(points[:, axis] - at) < 1e-9] for at in (-0.5, 0.5))
        along = [k for k in range(3) if k != axis]
        low, high = (side[np.lexsort(side[:, along].round(7).T)] for side in (low, high))
        assert len(low) == len(high) > 10
        assert np.abs(low[:, along] - high[:, along]).max() < 3e-9  # files have nine digits


@pytest.mark.parametrize("name", CELLS)
def test_number_of_periodic_dofs(meshes, files, name):
    """On a torus V - E + F - C = 0. Quadrilaterals: E = 2F, so V = F. Tetrahedra: F = 2C."""
    mesh, source = meshes[name], files[name]
    cells, dim = _cells(source), mesh.topological_dimension
    corners = source.points[np.unique(cells[:, :4])]
    vertices = int((corners[:, :dim] < 0.5 - 1e-9).all(axis=1).sum())  # one of two sides
    if dim == 2:
        assert vertices == len(cells)
        assert FunctionSpace(mesh, "CG", 2).dim() == 4 * len(cells)
        assert FunctionSpace(mesh, "S", 2).dim() == 3 * len(cells)
    else:
        assert FunctionSpace(mesh, "CG", 1).dim() == vertices
        assert FunctionSpace(mesh, "CG", 2).dim() == 2 * vertices + len(cells)
    assert _volume(mesh, ds) == 0.0
    family = "DG" if dim == 3 else "DQ"
    expected = VectorFunctionSpace(mesh, family, 2, variant="equispaced").ufl_element()
    assert mesh.coordinates.function_space().ufl_element() == expected


@pytest.mark.parametrize("name", CELLS)
def test_no_cell_turns_over(meshes, name):
    mesh = meshes[name]
    Q = FunctionSpace(mesh, "Quadrature", 6)
    determinant = Function(Q).interpolate(JacobianDeterminant(mesh))
    values = determinant.dat.data_ro[Q.cell_node_list]
    assert (np.abs(values).min(axis=1) > 0.05 * np.abs(values).max(axis=1)).all()
    assert (np.sign(values) == np.sign(values[:, :1])).all()


@pytest.mark.parametrize("name", CELLS)
def test_tags(meshes, name):
    path, dim = FOLDER / f"{name}.msh", meshes[name].topological_dimension
    sides = {side: (dim - 1, tag) for tag, side in enumerate(SIDES[: 2 * dim], 1)}
    assert mesh_tags(path) == sides | {"matrix": (dim, 1), "inclusion": (dim, 2)}
    read_mesh(path, required_tags=("matrix", "inclusion", *sides))
    x = SpatialCoordinate(meshes[name])
    middle = sum(float(assemble(c**2 * dx(2, domain=meshes[name]))) for c in x)
    if name == "rve3":  # r^4 pi / 2 + r^2 pi d^2 for each circle
        exact = sum(pi * (r**4 / 2 + r**2 * (a**2 + b**2)) for a, b, r in CIRCLES[name])
        assert middle == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("name", [*CELLS, "cook", "lprofile", "holes"])
def test_files_are_small(name):
    assert (FOLDER / f"{name}.msh").stat().st_size < 400_000


def test_particles_that_touch_a_side_are_refused(tmp_path):
    code = "import unit_cell; unit_cell.images((0.3, 0.0), 0.2)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True, timeout=60
    )
    if "No module named 'gmsh'" in done.stderr or "cannot open shared object" in done.stderr:
        pytest.skip("gmsh does not load")
    assert "ValueError: an inclusion at (0.3, 0.0) touches a side of the cell" in done.stderr


# Macro parts


def test_cook():
    path = FOLDER / "cook.msh"
    mesh, tags = read_mesh(path, required_tags=("clamped", "loaded", "free")), mesh_tags(path)
    assert mesh.num_cells() == 256
    assert _volume(mesh) == pytest.approx((44 + 16) / 2 * 48)
    lengths = {name: _volume(mesh, ds(tag)) for name, (dim, tag) in tags.items() if dim == 1}
    slopes = (48**2 + 44**2) ** 0.5 + (48**2 + 16**2) ** 0.5
    assert lengths == pytest.approx({"clamped": 44, "loaded": 16, "free": slopes})
    x = SpatialCoordinate(mesh)
    assert assemble(x[0] * ds(tags["loaded"][1])) == pytest.approx(48 * 16)
    assert assemble(x[1] * ds(tags["loaded"][1])) == pytest.approx(52 * 16)


def test_lprofile():
    path = FOLDER / "lprofile.msh"
    mesh, tags = read_mesh(path, required_tags=("clamped", "loaded")), mesh_tags(path)
    assert 200 <= mesh.num_cells() <= 1000
    assert _volume(mesh) == pytest.approx(0.64 + 0.1**2 * (1 - pi / 4), rel=1e-6)
    lengths = {name: _volume(mesh, ds(tag)) for name, (dim, tag) in tags.items() if dim == 1}
    exact = {"clamped": 0.4, "loaded": 0.4, "fillet": pi / 2 * 0.1, "free": 1 + 1 + 0.5 + 0.5}
    assert lengths == pytest.approx(exact, rel=1e-5)


def test_holes():
    path = FOLDER / "holes.msh"
    mesh, tags = read_mesh(path, required_tags=("left", "right")), mesh_tags(path)
    assert 200 <= mesh.num_cells() <= 1000
    radii = (0.17, 0.14, 0.2)
    assert _volume(mesh) == pytest.approx(2 - pi * sum(r**2 for r in radii), rel=2e-5)
    lengths = {name: _volume(mesh, ds(tag)) for name, (dim, tag) in tags.items() if dim == 1}
    exact = {"left": 1, "right": 1, "outer": 4, "holes": 2 * pi * sum(radii)}
    assert lengths == pytest.approx(exact, rel=2e-5)


# The benchmark's grids


@pytest.mark.parametrize("k", [1, 2, 3])
def test_grids_of_the_benchmark_keep_their_curved_interfaces(k):
    bent, straight = curved_rve(k), straight_rve(k)
    assert _volume(bent) == pytest.approx(1.0, rel=1e-12)
    assert VectorFunctionSpace(bent, "S", 2).dim() == {1: 20736, 2: 12672, 3: 11232}[k]
    fraction = _volume(bent, dx(2))
    assert fraction == pytest.approx(FRACTIONS[f"rve{k}"], abs=5.1e-5)
    if k != 2:  # the ellipse of that grid is not quite one
        errors = [abs(_volume(mesh, dx(2)) - VOLUMES[f"rve{k}"]) for mesh in (straight, bent)]
        assert errors[1] < errors[0] / 100
    V = FunctionSpace(bent, "CG", 2)
    assert errornorm(_wave(bent), Function(V).interpolate(_wave(bent))) < 1e-4
