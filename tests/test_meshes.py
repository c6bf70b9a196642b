"""The meshes of meshes/ against the formulas of their geometry, and reading mesh files."""

from __future__ import annotations

import subprocess
import sys
from ast import literal_eval
from dataclasses import dataclass, field
from math import acos, asin, cos, hypot, pi, radians, sqrt, tan
from pathlib import Path

import meshio
import numpy as np
import pytest
from firedrake import Constant, Function, FunctionSpace, assemble, ds, dx
from processes import run_script
from scipy.special import ellipe

from spon.fem.gmsh_file import scan_gmsh
from spon.fem.meshes import mesh_tags, read_mesh

FOLDER = Path(__file__).parents[1] / "meshes"
NAMES = ["bracket", "bracket3d", "plate", "plate_quads", "gear"]
CURVED = [
    "lprofile",
    "holes",
    "rve1",
    "rve2",
    "rve3",
    "fibres3d",
    "particles3d",
]  # test_rve_meshes.py
SHAPES = {"bracket3d": "tetra", "plate_quads": "quad"}


@dataclass
class Geometry:
    """Exact measures. Of each tag: straight length, and arcs as (radius, angle)."""

    volume: float
    turning: float  # sum of the angles of all arcs, times the thickness in 3D
    straight: dict[str, float] = field(default_factory=dict)
    arcs: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    bends: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # in "straight"
    cells: dict[str, float] = field(default_factory=dict)
    flat: dict[str, float] = field(default_factory=dict)  # area of plane facets around holes


def _rounded(points: list[tuple[float, float]], radius: float) -> tuple[float, float]:
    """Area and straight length of a convex polygon with rounded corners."""
    x, y = np.array(points).T
    area = 0.5 * abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))
    length = 0.0
    for k in range(len(points)):
        a, b = (np.subtract(points[k - j], points[k]) for j in (1, len(points) - 1))
        length += hypot(*a)
        angle = acos(a @ b / hypot(*a) / hypot(*b))
        area -= radius**2 * (1 / tan(angle / 2) - (pi - angle) / 2)
        length -= 2 * radius / tan(angle / 2)
    return area, length


def _bracket() -> Geometry:
    outer, outline = _rounded([(0, 0), (0.22, 0), (1, 0.78), (1, 1), (0, 1)], 0.06)
    window, sides = _rounded([(0.24, 0.24), (0.76, 0.76), (0.24, 0.76)], 0.05)
    loaded = 1 - 2 * 0.06
    return Geometry(
        volume=outer - window - pi * (3 * 0.045**2 + 0.05**2 + 0.07**2),
        turning=7 * 2 * pi,
        straight={"clamped": 0, "loaded": loaded, "holes": sides, "outer": outline - loaded},
        arcs={
            "clamped": 3 * [(0.045, 2 * pi)],
            "holes": [(0.05, 2 * pi), (0.07, 2 * pi), (0.05, 2 * pi)],
            "outer": [(0.06, 2 * pi)],
        },
    )


def _bracket3d() -> Geometry:
    t, width, bore, fillet = 0.14, 0.7, 0.085, 0.1**2 * (1 - pi / 4)
    profile = 1.0 * t + t * (0.9 - t) + fillet
    rib = 0.6 * 0.52 / 2 - fillet
    circle = pi * bore**2
    return Geometry(
        volume=profile * width + rib * 0.12 - 4 * circle * t,
        turning=4 * 2 * pi * t + pi / 2 * width,
        flat={
            "clamped": width * 0.9 - 2 * circle,
            "loaded": (1 - t - 0.1) * width - 2 * circle - 0.12 * (0.6 - 0.1),
            "holes": 4 * 2 * pi * bore * t,
        },
    )


def _plate() -> Geometry:
    radii = [0.12, 0.08, 0.09, 0.15, 0.09]
    slot, sides = _rounded([(0.62, 0.2), (1.02, 0.2), (1.02, 0.36), (0.62, 0.36)], 0.06)
    a, b = 0.15, 0.08
    oval = 4 * a * ellipe(1 - b**2 / a**2)
    insert = pi * (0.26**2 - 0.15**2 + 0.11**2)
    volume = 2.0 - slot - pi * a * b - pi * sum(r**2 for r in radii)
    return Geometry(
        volume=volume,
        turning=7 * 2 * pi,
        straight={"left": 1, "right": 1, "bottom": 2, "top": 2, "holes": sides + oval},
        arcs={"holes": [(r, 2 * pi) for r in [*radii, 0.06]]},
        bends={"holes": [(b**2 / a, 2 * pi)]},
        cells={"insert": insert, "matrix": volume - insert},
    )


def _gear() -> Geometry:
    teeth, alpha = 16, radians(20)
    tip, root, base = 1 + 2 / teeth, 1 - 1.25 * 2 / teeth, cos(alpha)
    roll = sqrt((tip / base) ** 2 - 1)  # the involute's parameter at the tip

    def half(radius: float) -> float:
        at = acos(base / radius)
        return pi / (2 * teeth) + (tan(alpha) - alpha) - (tan(at) - at)

    top, bottom = 2 * half(tip), 2 * pi / teeth - 2 * half(base)
    # the area under an involute is base^2 roll^3 / 6, its length base roll^2 / 2
    blank = teeth * (base**2 * roll**3 / 3 + tip**2 * top / 2 + root**2 * bottom / 2)
    flank = base * roll**2 / 2
    r, h = 0.28, 0.07
    bore = pi * r**2 + 2 * h * 0.36 - (h * sqrt(r**2 - h**2) + r**2 * asin(h / r))
    sides = 2 * (0.36 - sqrt(r**2 - h**2)) + 2 * h
    volume = blank - bore - 6 * pi * 0.12**2
    hub = pi * 0.42**2 - bore
    return Geometry(
        volume=volume,
        turning=8 * 2 * pi + teeth * 2 * roll,
        straight={
            "bore": sides,
            "loaded": flank,
            "teeth": teeth * 2 * (base - root + flank) - flank,
        },
        arcs={
            "bore": [(r, 2 * pi - 2 * asin(h / r))],
            "teeth": [(tip, teeth * top), (root, teeth * bottom)],
            "holes": 6 * [(0.12, 2 * pi)],
        },
        bends={"loaded": [(0.1, roll)], "teeth": 31 * [(0.1, roll)]},
        cells={"hub": hub, "rim": volume - hub},
    )


GEOMETRY = {"bracket": _bracket, "bracket3d": _bracket3d, "plate": _plate, "gear": _gear}


def _measure(mesh, measure) -> float:
    return float(assemble(Constant(1.0) * measure(domain=mesh)))


def _longest_edge(name: str) -> float:
    mesh = meshio.read(FOLDER / f"{name}.msh")
    shape = SHAPES.get(name, "triangle")
    points = mesh.points[mesh.cells_dict[shape]]
    pairs = [(i, j) for i in range(points.shape[1]) for j in range(i)]
    if shape == "quad":
        pairs = [(0, 1), (1, 2), (2, 3), (3, 0)]
    return max(np.linalg.norm(points[:, i] - points[:, j], axis=1).max() for i, j in pairs)


@pytest.fixture(scope="module")
def meshes():
    return {name: read_mesh(FOLDER / f"{name}.msh") for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_volume_is_that_of_the_geometry(meshes, name):
    """A chord of length h cuts off h^2/12 times the angle by which the curve turns."""
    exact = GEOMETRY[name.removesuffix("_quads")]()
    longest = 0.1 if name == "bracket3d" else _longest_edge(name)  # 0.1 on its curved faces
    allowed = exact.turning * longest**2 / 12
    assert allowed < 0.03 * exact.volume
    assert _measure(meshes[name], dx) == pytest.approx(exact.volume, abs=allowed)


@pytest.mark.parametrize("name", ["bracket", "plate", "plate_quads", "gear"])
def test_lengths_by_tag(meshes, name):
    """A chord of length h is shorter than its arc by h^2/24 times the angle over the radius."""
    exact = GEOMETRY[name.removesuffix("_quads")]()
    source = meshio.read(FOLDER / f"{name}.msh")
    tags = mesh_tags(FOLDER / f"{name}.msh", dim=1)
    assert set(tags) == set(exact.straight) | set(exact.arcs)
    for tag_name, (_, tag) in tags.items():
        arcs = exact.arcs.get(tag_name, [])
        bends = arcs + exact.bends.get(tag_name, [])
        whole = exact.straight.get(tag_name, 0) + sum(r * angle for r, angle in arcs)
        lines = source.points[source.cells_dict["line"]]
        lines = lines[source.cell_data_dict["gmsh:physical"]["line"] == tag]
        h = np.linalg.norm(lines[:, 1] - lines[:, 0], axis=1).max()
        missing = sum(angle * h**2 / 24 / r for r, angle in bends) * 1.1 + 1e-6
        length = _measure(meshes[name], lambda domain, tag=tag: ds(tag, domain=domain))
        assert missing < 0.08 * whole
        assert whole - missing <= length <= whole + 1e-6, tag_name


def test_areas_by_tag_in_3d(meshes):
    exact = _bracket3d()
    tags = mesh_tags(FOLDER / "bracket3d.msh", dim=2)
    whole = _measure(meshes["bracket3d"], ds)
    parts = {
        name: _measure(meshes["bracket3d"], lambda domain, tag=tag: ds(tag, domain=domain))
        for name, (_, tag) in tags.items()
    }
    assert sum(parts.values()) == pytest.approx(whole, rel=1e-12)
    for name, area in exact.flat.items():
        assert parts[name] == pytest.approx(area, rel=0.04), name


@pytest.mark.parametrize("name", ["plate", "plate_quads", "gear"])
def test_areas_of_materials(meshes, name):
    exact = GEOMETRY[name.removesuffix("_quads")]()
    tags = mesh_tags(FOLDER / f"{name}.msh", dim=2)
    allowed = 3 * 2 * pi * _longest_edge(name) ** 2 / 12 + 0.01
    for material, area in exact.cells.items():
        tag = tags[material][1]
        own = _measure(meshes[name], lambda domain, tag=tag: dx(tag, domain=domain))
        assert own == pytest.approx(area, abs=allowed), material


@pytest.mark.parametrize("name", NAMES)
def test_every_facet_and_cell_has_a_tag(meshes, name):
    mesh, tags = meshes[name], mesh_tags(FOLDER / f"{name}.msh")
    dim = mesh.topological_dimension
    for measure, own in ((dx, dim), (ds, dim - 1)):
        numbers = tuple(tag for at, tag in tags.values() if at == own)
        tagged = _measure(mesh, lambda domain, m=measure, n=numbers: m(n, domain=domain))
        assert tagged == pytest.approx(_measure(mesh, measure), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_size_of_the_file_and_shape_of_the_elements(name):
    path = FOLDER / f"{name}.msh"
    assert path.stat().st_size < 300_000
    mesh = meshio.read(path)
    shape = SHAPES.get(name, "triangle")
    points = mesh.points[mesh.cells_dict[shape]]
    assert 1_000 < len(mesh.points) < 2_500
    if shape == "tetra":
        assert 2_000 < len(points) < 4_000
        assert _dihedral_angles(points).min() > 10
        assert _dihedral_angles(points).max() < 165
        return
    corners = points.shape[1]
    ahead = np.stack([points[:, (k + 1) % corners] - points[:, k] for k in range(corners)], axis=1)
    behind = np.roll(-ahead, 1, axis=1)
    cosine = (
        (ahead * behind).sum(2) / np.linalg.norm(ahead, axis=2) / np.linalg.norm(behind, axis=2)
    )
    angles = np.degrees(np.arccos(cosine))
    assert angles.min() > 28
    assert angles.max() < (166 if shape == "quad" else 110)


def _dihedral_angles(points: np.ndarray) -> np.ndarray:
    normals = []
    for out in range(4):
        a, b, c = (points[:, k] for k in range(4) if k != out)
        normal = np.cross(b - a, c - a)
        inward = ((points[:, out] - a) * normal).sum(1) > 0
        normal[inward] *= -1
        normals.append(normal / np.linalg.norm(normal, axis=1, keepdims=True))
    cosine = [-(normals[i] * normals[j]).sum(1) for i in range(4) for j in range(i)]
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def _gmsh_or_skip():
    try:
        import gmsh
    except (ImportError, OSError) as error:
        pytest.skip(f"gmsh does not load: {error}")
    return gmsh


def test_scripts_make_the_same_meshes_again(tmp_path):
    _gmsh_or_skip()
    for k in range(2):
        command = [sys.executable, str(FOLDER / "make.py"), str(tmp_path / str(k))]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    for name in [*NAMES, "cook", *CURVED]:
        first, second = ((tmp_path / str(k) / f"{name}.msh").read_bytes() for k in range(2))
        assert first == second
        new, committed = scan_gmsh(tmp_path / f"0/{name}.msh"), scan_gmsh(FOLDER / f"{name}.msh")
        assert new.names == committed.names
        assert set(new.kinds) == set(committed.kinds)
        for shape, count in committed.kinds.items():  # another gmsh may place points differently
            assert new.kinds[shape] == pytest.approx(count, rel=0.05)


def test_scripts_refine(tmp_path):
    """Half the size brings the area four times closer to that of the geometry."""
    _gmsh_or_skip()
    exact, errors = _gear().volume, []
    for size in (0.1, 0.05):
        path = tmp_path / f"{size}.msh"
        command = [sys.executable, str(FOLDER / "gear.py"), "--size", str(size), "--out", str(path)]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        errors.append(abs(_measure(read_mesh(path), dx) - exact))
    assert errors[1] < 0.4 * errors[0]


# Reading


def _integrals(mesh, tags: dict[str, tuple[int, int]]) -> dict[str, float]:
    dim = mesh.topological_dimension
    return {
        name: _measure(
            mesh, lambda domain, m=dx if at == dim else ds, tag=tag: m(tag, domain=domain)
        )
        for name, (at, tag) in tags.items()
    }


def _blocks_by_tag(source) -> list[tuple[str, np.ndarray, int]]:
    found = []
    for block, tags in zip(source.cells, source.cell_data["gmsh:physical"], strict=True):
        found += [(block.type, block.data[tags == tag], int(tag)) for tag in np.unique(tags)]
    return found


def _write(source, path: Path) -> None:
    """Write with the tags where each format keeps them."""
    blocks = _blocks_by_tag(source)
    cells = [(kind, data) for kind, data, _ in blocks]
    tags = [np.full(len(data), tag) for _, data, tag in blocks]
    if path.suffix == ".inp":
        names = {(dim, tag): name for name, (tag, dim) in source.field_data.items()}
        dims = {"line": 1, "triangle": 2, "quad": 2, "tetra": 3}
        sets, start = {}, 0
        for kind, data, tag in blocks:
            # the writer wants numbers over all blocks of the file
            sets[names[dims[kind], tag]] = (kind, start, len(data))
            start += len(data)
        _write_abaqus(source.points, cells, sets, path)
        return
    array = "medit:ref" if path.suffix == ".mesh" else "gmsh:physical"
    mesh = meshio.Mesh(source.points, cells, cell_data={array: tags})
    if path.suffix == ".med":  # one block a shape; families count down, each for one dimension
        kinds = list(dict.fromkeys(kind for kind, _ in cells))
        merged = [(kind, np.concatenate([d for k, d in cells if k == kind])) for kind in kinds]
        families = [
            np.concatenate(
                [np.full(len(d), -k) for k, (own, d, _) in enumerate(blocks, 1) if own == kind]
            )
            for kind in kinds
        ]
        mesh = meshio.Mesh(source.points, merged, cell_data={"cell_tags": families})
        dims = {"line": 1, "triangle": 2, "quad": 2, "tetra": 3}
        names = {(dim, tag): name for name, (tag, dim) in source.field_data.items()}
        mesh.cell_tags = {
            -k: [names[dims[kind], tag]] for k, (kind, _, tag) in enumerate(blocks, 1)
        }
    mesh.write(path)


def _write_abaqus(points, cells, sets, path: Path) -> None:
    types = {"line": "T3D2", "triangle": "CPS3", "quad": "CPS4", "tetra": "C3D4"}
    lines = ["*HEADING", "*NODE"]
    lines += [f"{i}, {x!r}, {y!r}, {z!r}" for i, (x, y, z) in enumerate(points.tolist(), 1)]
    number = 1
    for (kind, data), name in zip(cells, sets, strict=True):
        lines.append(f"*ELEMENT, TYPE={types[kind]}, ELSET={name}")
        for nodes in (data + 1).tolist():
            lines.append(", ".join(map(str, [number, *nodes])))
            number += 1
    path.write_text("\n".join([*lines, ""]))


@pytest.mark.parametrize("suffix", [".vtu", ".vtk", ".xdmf", ".med", ".mesh", ".inp"])
@pytest.mark.parametrize("name", ["plate", "plate_quads", "bracket3d"])
def test_other_formats_keep_volumes_and_tags(meshes, tmp_path, name, suffix):
    original = FOLDER / f"{name}.msh"
    path = tmp_path / f"{name}{suffix}"
    _write(meshio.read(original), path)
    mesh = read_mesh(path)
    assert mesh.geometric_dimension == meshes[name].geometric_dimension
    assert mesh.num_cells() == meshes[name].num_cells()
    assert mesh.num_vertices() == meshes[name].num_vertices()
    expected = _integrals(meshes[name], mesh_tags(original))
    tags = mesh_tags(path) if suffix in (".med", ".inp") else mesh_tags(original)
    assert set(tags) == set(expected)
    assert _integrals(mesh, tags) == pytest.approx(expected, rel=1e-9)


def _square(order: int = 1, version: float = 4.1, binary: int = 0, **more) -> None:
    """Two squares side by side, the right one in quadrilaterals if mixed."""
    gmsh = _gmsh_or_skip()
    gmsh.initialize(interruptible=False)
    try:
        gmsh.option.setNumber("General.Verbosity", 0)
        gmsh.option.setNumber("Mesh.MshFileVersion", version)
        gmsh.option.setNumber("Mesh.Binary", binary)
        gmsh.option.setNumber("Mesh.MeshSizeMax", 0.4)
        gmsh.option.setNumber("Mesh.SaveAll", more.get("loose", 0))
        occ = gmsh.model.occ
        z = more.get("z", 0)
        first, second = occ.addRectangle(0, 0, z, 1, 1), occ.addRectangle(1, 0, z, 1, 1)
        occ.fragment([(2, first)], [(2, second)])
        if more.get("loose"):
            occ.addPoint(5, 5, z)
        occ.synchronize()
        gmsh.model.addPhysicalGroup(2, [first], 7, more.get("left", "left half"))
        gmsh.model.addPhysicalGroup(2, [first, second] if more.get("overlap") else [second], 8, "r")
        bottom = gmsh.model.getEntitiesInBoundingBox(-1e-3, -1e-3, z - 1, 1.001, 1e-3, z + 1, 1)
        gmsh.model.addPhysicalGroup(1, [tag for _, tag in bottom], 3, "bottom")
        if more.get("mixed"):
            gmsh.model.mesh.setRecombine(2, second)
        gmsh.model.mesh.generate(more.get("dim", 2))
        gmsh.model.mesh.setOrder(order)
        gmsh.write(str(more["path"]))
    finally:
        gmsh.finalize()


@pytest.mark.parametrize(
    "options",
    [
        {"version": 2.2},
        {"version": 4.1},
        {"version": 2.2, "binary": 1},
        {"version": 4.1, "binary": 1},
        {"version": 4.0},
        {"version": 4.1, "z": 1.5},
    ],
    ids=str,
)
def test_gmsh_versions(tmp_path, options):
    path = tmp_path / "square.msh"
    _square(path=path, **options)
    mesh = read_mesh(path, name="square", required_tags=("left half", 3))
    assert mesh.name == "square"
    assert mesh.geometric_dimension == 2
    expected = {"left half": 1.0, "r": 1.0, "bottom": 1.0}
    assert _integrals(mesh, mesh_tags(path)) == pytest.approx(expected, rel=1e-12)
    f = Function(FunctionSpace(mesh, "DG", 0)).assign(2.0)
    assert float(assemble(f * dx)) == pytest.approx(4.0)


@pytest.mark.parametrize("version", [2.2, 4.1])
def test_cells_of_degree_three_become_straight_with_a_warning(tmp_path, version):
    path = tmp_path / "curved.msh"
    _square(path=path, order=3, version=version)
    with pytest.warns(UserWarning, match=r"\(triangle10\); their edges are read as straight lines"):
        mesh = read_mesh(path)
    assert _integrals(mesh, mesh_tags(path))["left half"] == pytest.approx(1.0)


@pytest.mark.parametrize("version", [2.2, 4.1])
def test_cells_of_degree_two_with_straight_edges_need_no_field_of_degree_two(tmp_path, version):
    path = tmp_path / "straight.msh"
    _square(path=path, order=2, version=version)
    mesh = read_mesh(path)
    assert mesh.coordinates.function_space().ufl_element().embedded_superdegree == 1
    assert _integrals(mesh, mesh_tags(path))["left half"] == pytest.approx(1.0)


@pytest.mark.parametrize("version", ["2.2", "4.1"])
def test_points_that_no_cell_uses_are_dropped(tmp_path, version):
    path = tmp_path / "loose.msh"
    places = ["0 0 0", "1 0 0", "0 1 0", "1 1 0", "7 7 7"]
    if version == "2.2":
        nodes = ["5", *(f"{n} {place}" for n, place in zip([1, 2, 3, 4, 9], places, strict=True))]
        elements = ["3", "1 1 2 3 1 1 2", "2 2 2 4 1 1 2 3", "3 2 2 5 1 2 4 3"]
        sections = {"MeshFormat": ["2.2 0 8"]}
    else:
        curve, left, right = "1 0 0 0 1 0 0 1 3 0", "1 0 0 0 1 1 0 1 4 0", "2 0 0 0 1 1 0 1 5 0"
        nodes = ["1 5 1 9", "2 1 0 5", "1", "2", "3", "4", "9", *places]
        elements = ["3 3 1 3", "1 1 1 1", "1 1 2", "2 1 2 1", "2 1 2 3", "2 2 2 1", "3 2 4 3"]
        sections = {"MeshFormat": ["4.1 0 8"], "Entities": ["0 1 2 0", curve, left, right]}
    sections |= {"Nodes": nodes, "Elements": elements}
    lines = [line for n, own in sections.items() for line in (f"${n}", *own, f"$End{n}")]
    path.write_text("\n".join([*lines, ""]))
    assert scan_gmsh(path).loose == 1
    mesh = read_mesh(path, required_tags=(3, 4, 5))
    assert (mesh.num_vertices(), mesh.geometric_dimension) == (4, 2)
    assert _measure(mesh, lambda domain: dx(5, domain=domain)) == pytest.approx(0.5)


def test_tags_by_dimension(tmp_path):
    path = tmp_path / "same.msh"
    _square(path=path, left="bottom")
    with pytest.raises(ValueError, match=r"'bottom' stands for tag .* choose with dim="):
        mesh_tags(path)
    assert mesh_tags(path, dim=1) == {"bottom": (1, 3)}
    assert mesh_tags(path, dim=2)["bottom"] == (2, 7)


def test_named_array_of_tags(tmp_path):
    points = [[0, 0, 2], [1, 0, 2], [1, 1, 2], [0, 1, 2], [9, 9, 9]]
    cells = [("triangle", [[0, 1, 2], [0, 2, 3]]), ("line", [[0, 1]])]
    data = {"material": [np.array([4, 6]), np.array([5])]}
    path = tmp_path / "two.vtu"
    meshio.Mesh(np.array(points, dtype=float), cells, cell_data=data).write(path)
    mesh = read_mesh(path, tag_data="material", required_tags=(4, 5, 6))
    assert mesh.geometric_dimension == 2
    assert _measure(mesh, lambda domain: dx(6, domain=domain)) == pytest.approx(0.5)
    assert _measure(mesh, lambda domain: ds(5, domain=domain)) == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"no cell array 'stuff'; it has \['material'\]"):
        read_mesh(path, tag_data="stuff")


def _refused(tmp_path, kind: str) -> tuple[Path, dict]:
    """A file that is not a mesh, and arguments for read_mesh."""
    path = tmp_path / f"{kind}.msh"
    options: dict = {}
    triangle = ("triangle", [[0, 1, 2], [1, 3, 2]])
    corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [2, 0], [2, 1.0]])
    if kind in ("mixed", "overlap"):
        _square(path=path, version=2.2, **{kind: True})
    elif kind == "no cells":
        _square(path=path, dim=1)
    elif kind == "cut short":
        path.write_bytes((FOLDER / "plate.msh").read_bytes()[:150_000])
    elif kind == "damaged":
        text = (FOLDER / "plate.msh").read_text()
        path.write_text(text.replace("$EndElements", "1 2 3\n$EndElements"))
    elif kind == "text":
        path.write_text("not a mesh")
    elif kind == "old":
        path.write_text("$MeshFormat\n3 0 8\n$EndMeshFormat\n")
    elif kind in ("stl", "h5", "xyz"):
        path = tmp_path / f"part.{kind}"
        path.write_text("solid")
    elif kind == "bad vtu":
        path = tmp_path / "bad.vtu"
        path.write_text("<VTKFile>")
    elif kind == "folder":
        path = tmp_path / "folder.msh"
        path.mkdir()
    elif kind == "tag_data":
        path, options = FOLDER / "plate.msh", {"tag_data": "material"}
    elif kind == "tags":
        path, options = FOLDER / "plate.msh", {"required_tags": ("left", "clamped", 9)}
    elif kind == "sets":
        path = tmp_path / "sets.vtu"
        parts = [("triangle", [[0, 1, 2]]), ("quad", [[1, 4, 5, 3]])]
        meshio.Mesh(corners, parts).write(path)
    else:
        path = tmp_path / "bad.vtu"
        cells, data = [triangle], {}
        if kind == "halves":
            data = {"cell_tags": [np.array([1.5, 2])]}
        elif kind == "signs":
            data = {"cell_tags": [np.array([-1, 2])]}
        elif kind == "apart":
            cells = [("triangle", [[0, 1, 2], [3, 4, 5]])]
        elif kind == "stray":
            cells = [triangle, ("line", [[4, 5]])]
            data = {"cell_tags": [np.array([1, 1]), np.array([6])]}
        elif kind == "twice":
            cells = [triangle, ("line", [[0, 1], [1, 0]])]
            data = {"cell_tags": [np.array([1, 1]), np.array([2, 3])]}
        elif kind == "repeated":
            cells = [("triangle", [[0, 1, 2], [1, 3, 2], [0, 1, 2], [2, 1, 0]])]
        elif kind == "degenerate":
            cells = [("triangle", [[0, 1, 2], [1, 2, 2]])]
        elif kind == "nan":
            corners[0] = np.nan
        points = np.pad(corners, ((0, 0), (0, 1)))
        meshio.Mesh(points, cells, cell_data=data).write(path)
    return path, options


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("mixed", r"mixes quad and triangle cells \(.*\); a mesh has cells of one shape"),
        ("overlap", r"lists \d+ cells more than once: physical groups overlap"),
        ("no cells", r"has no cells: it holds .*line.* In gmsh: mesh the surface"),
        ("cut short", r"is cut short in section \$Elements: write the mesh again"),
        ("damaged", r"is damaged in \$Elements or \$Nodes: 4182 elements announced, 4183 found"),
        ("text", r"is not a gmsh mesh file: it does not begin with \$MeshFormat"),
        ("old", r"is gmsh format 3; save it in format 4.1 or 2.2"),
        ("stl", r"\.stl files describe the surface of a body, not a mesh of its volume"),
        ("h5", r"open a Firedrake checkpoint with firedrake.CheckpointFile"),
        ("xyz", r"unknown mesh format '\.xyz'\. Formats that can be read: \.msh"),
        ("bad vtu", r"meshio cannot read .*bad\.vtu"),
        ("tag_data", r"tag_data is for formats other than \.msh"),
        (
            "tags",
            r"lacks the tags 'clamped', 9\. It has cells: 1 \(matrix\), 2 \(insert\); facets: 1",
        ),
        ("sets", r"mixes quad and triangle cells \(1 triangle, 1 quad\)"),
        ("halves", r"tags are whole numbers, one for each cell; 'cell_tags' is not"),
        ("signs", r"'cell_tags' has positive and negative tags"),
        ("apart", r"no two cells share a point \(2 cells, 6 points\)"),
        ("stray", r"1 facets with tags \[6\] are not sides of any cell"),
        ("twice", r"1 facets are listed more than once, the first with tags \[2, 3\]"),
        ("repeated", r"facets lie between more than two cells\. Are cells listed twice"),
        ("degenerate", r"has cells that use one point twice"),
        ("nan", r"has points that are not finite numbers"),
    ],
)
def test_refused_files(tmp_path, kind, message):
    path, options = _refused(tmp_path, kind)
    with pytest.raises(ValueError, match=message):
        read_mesh(path, **options)


def test_refused_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.msh does not exist \(looked in"):
        read_mesh(tmp_path / "missing.msh")
    with pytest.raises(FileNotFoundError, match="is a folder, not a mesh file"):
        read_mesh(_refused(tmp_path, "folder")[0])
    with pytest.raises(TypeError, match="path: expected a file name, got int"):
        read_mesh(3)
    with pytest.raises(TypeError, match=r"expected names \(str\) or numbers \(int\), got float"):
        read_mesh(FOLDER / "plate.msh", required_tags=(1.5,))


def test_one_required_tag_needs_no_tuple():
    read_mesh(FOLDER / "gear.msh", required_tags="loaded")
    with pytest.raises(ValueError, match=r"lacks the tags 'clamped'"):
        read_mesh(FOLDER / "gear.msh", required_tags="clamped")


def test_overlapping_cell_sets(tmp_path):
    path = tmp_path / "sets.inp"
    lines = ["*NODE", "1, 0, 0, 0", "2, 1, 0, 0", "3, 0, 1, 0", "4, 1, 1, 0", "5, 2, 0, 0"]
    lines += ["*ELEMENT, TYPE=CPS3, ELSET=all", "1, 1, 2, 3", "2, 2, 4, 3", "3, 2, 5, 4"]
    lines += ["*ELSET, ELSET=one", "1, 2", "*ELSET, ELSET=two", "3"]
    path.write_text("\n".join([*lines, ""]))
    assert mesh_tags(path) == {"one": (2, 1), "two": (2, 2)}
    assert _integrals(read_mesh(path), mesh_tags(path)) == pytest.approx({"one": 1.0, "two": 0.5})
    path.write_text("\n".join([*lines[:-1], "2, 3", ""]))
    with pytest.raises(ValueError, match="cell sets 'one' and 'two' overlap; a cell has one tag"):
        read_mesh(path)


PARALLEL = """
import sys
from firedrake import COMM_WORLD, Constant, Function, FunctionSpace, assemble, ds, dx
from spon.fem.meshes import read_mesh
from spon.fem.vtk import write_vtk

folder = sys.argv[1]
mesh = read_mesh(folder + "/plate.vtu", required_tags=(1, 2, 5))
f = Function(FunctionSpace(mesh, "CG", 1), name="f")
write_vtk(folder + "/out.pvd", f)
areas = [assemble(Constant(1.0) * m(domain=mesh)) for m in (dx(2), ds(5))]
try:
    read_mesh(folder + "/plate.vtu", required_tags="clamped")
except ValueError as error:
    areas.append("refused")
with open(f"{folder}/{COMM_WORLD.rank}.txt", "w") as file:
    file.write(repr([COMM_WORLD.size, *(a if isinstance(a, str) else float(a) for a in areas)]))
"""


@pytest.mark.parallel
def test_two_processes_share_a_mesh(tmp_path, meshes):
    _write(meshio.read(FOLDER / "plate.msh"), tmp_path / "plate.vtu")
    run_script(PARALLEL, tmp_path, tmp_path)
    exact = [
        _measure(meshes["plate"], lambda domain, m=m: m(domain=domain)) for m in (dx(2), ds(5))
    ]
    for rank in range(2):
        size, *areas, refused = literal_eval((tmp_path / f"{rank}.txt").read_text())
        assert (size, refused) == (2, "refused")
        assert areas == pytest.approx(exact, rel=1e-12)
    assert (tmp_path / "out.pvd").exists()
    assert len(list((tmp_path / "out").iterdir())) == 3
