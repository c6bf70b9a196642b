"""Cells of degree 2: bending a mesh through nodes, and gmsh files of order 2."""

from __future__ import annotations

from ast import literal_eval
from itertools import product
from math import pi
from pathlib import Path

import h5py
import meshio
import numpy as np
import pytest
from firedrake import (
    Constant,
    ExtrudedMesh,
    Function,
    FunctionSpace,
    IntervalMesh,
    PeriodicUnitSquareMesh,
    SpatialCoordinate,
    UnitCubeMesh,
    UnitIcosahedralSphereMesh,
    UnitSquareMesh,
    VectorFunctionSpace,
    as_vector,
    assemble,
    ds,
    dx,
    sin,
)
from processes import run_script

from spon.fem import curved_mesh, mesh_tags, read_mesh, signature
from spon.fem.gmsh_file import cell_nodes, scan_gmsh
from spon.fem.meshfile import read_space, write_meshes
from spon.fem.second_order import CORNERS, between, complete, is_straight, turned_over

CELLS = 3
MESHES = {
    "triangle": lambda: UnitSquareMesh(CELLS, CELLS),
    "quad": lambda: UnitSquareMesh(CELLS, CELLS, quadrilateral=True),
    "tetra": lambda: UnitCubeMesh(CELLS, CELLS, CELLS),
    "hexahedron": lambda: UnitCubeMesh(CELLS, CELLS, CELLS, hexahedral=True),
    "periodic triangle": lambda: PeriodicUnitSquareMesh(CELLS, CELLS),
    "periodic quad": lambda: PeriodicUnitSquareMesh(CELLS, CELLS, quadrilateral=True),
}
SHAPES = {"triangle": "triangle", "quadrilateral": "quad", "tetrahedron": "tetra"}
SHAPES |= {"hexahedron": "hexahedron"}


def _waves(x, sine):
    """A displacement that leaves the corners of the lattice where they are."""
    total = sum(sine(pi * CELLS * c) ** 2 for c in x)
    return [0.02 / CELLS * (k + 1) * total for k in range(len(x))]


def _nodes(mesh, rng) -> np.ndarray:
    """Straight cells of degree 2 in gmsh's order, shuffled, from another corner each time."""
    shape = SHAPES[mesh.ufl_cell().cellname]
    family = "DG" if shape in ("triangle", "tetra") else "DQ"
    V = VectorFunctionSpace(mesh, family, 1, variant="equispaced")
    corners = Function(V).interpolate(SpatialCoordinate(mesh)).dat.data_ro[V.cell_node_list]
    if family == "DQ":  # Firedrake counts the last direction first, gmsh goes round
        lattice = list(product((0, 1), repeat=corners.shape[2]))
        corners = corners[:, [lattice.index(corner) for corner in CORNERS[shape]]]
        turns = [[1, 2, 3, 0], [3, 2, 1, 0], [0, 3, 2, 1]]
        if shape == "hexahedron":
            turns = [[*turn, *(4 + k for k in turn)] for turn in turns] + [[4, 5, 6, 7, 0, 1, 2, 3]]
    else:
        turns = [rng.permutation(corners.shape[1]).tolist() for _ in range(4)]
    rows = rng.permutation(len(corners))
    corners = np.stack([corners[row][turns[row % len(turns)]] for row in rows])
    return np.stack([corners[:, list(around)].mean(axis=1) for around in between(shape)], axis=1)


@pytest.mark.parametrize("name", MESHES)
def test_bent_coordinates_are_the_field_through_the_nodes(name):
    mesh, rng = MESHES[name](), np.random.default_rng(0)
    nodes = _nodes(mesh, rng)
    nodes += np.stack(_waves(np.moveaxis(nodes, 2, 0), np.sin), axis=2)
    bent = curved_mesh(mesh, nodes)
    V = bent.coordinates.function_space()
    assert V.ufl_element().embedded_superdegree >= 2
    assert bent.name == mesh.name
    x = SpatialCoordinate(mesh)
    exact = Function(VectorFunctionSpace(mesh, V.ufl_element().sub_elements[0]))
    exact.interpolate(x + as_vector(_waves(list(x), sin)))
    np.testing.assert_allclose(bent.coordinates.dat.data_ro, exact.dat.data_ro, atol=1e-14)


@pytest.mark.parametrize("shape", ["quad", "hexahedron"])
def test_completed_cells_agree_with_a_serendipity_field(shape):
    """Any polynomial of degree 2, and x y^2, is in the serendipity space: its centres are exact."""
    corners = np.array(CORNERS[shape], dtype=float)
    full = np.stack([corners[list(around)].mean(axis=0) for around in between(shape)])
    x, y = full[:, 0], full[:, 1]
    fields = [1 + x - 2 * y, x * y, x**2 - y**2, x * y**2]
    if shape == "hexahedron":
        fields = [*fields, full[:, 2] ** 2, full.prod(axis=1), x * y * full[:, 2] ** 2]
    values = np.stack(fields, axis=1)[None]
    short = values[:, : {"quad": 8, "hexahedron": 20}[shape]]
    np.testing.assert_allclose(complete(shape, short), values, atol=1e-15)
    assert complete(shape, values) is values


def test_cells_that_turn_over_are_found():
    square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], dtype=float)
    nodes = np.stack([square[list(around)].mean(axis=0) for around in between("quad")])
    nodes = np.stack([nodes, nodes, nodes])
    nodes[1, 4] = (0.5, 0.9)  # the middle of the lower edge, pulled above the centre
    nodes[2, 4] = (0.5, 0.1)
    assert turned_over("quad", nodes).tolist() == [1]
    assert not is_straight("quad", nodes)
    assert is_straight("quad", nodes[:1])


def test_nodes_that_do_not_fit_are_refused():
    mesh = UnitSquareMesh(2, 2)
    nodes = _nodes(mesh, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"expected shape \(cells, nodes, 2\), got \(8, 12\)"):
        curved_mesh(mesh, nodes.reshape(8, 12))
    with pytest.raises(ValueError, match="triangle cells of degree 2 have 6 nodes, not 3"):
        curved_mesh(mesh, nodes[:, :3])
    with pytest.raises(ValueError, match="nodes of 7 cells for a mesh of 8 cells"):
        curved_mesh(mesh, nodes[1:])
    with pytest.raises(ValueError, match="2 cells of the mesh are not among the cells given"):
        curved_mesh(mesh, nodes[[0, 0, 2, 3, 4, 5, 6, 7]])
    with pytest.raises(ValueError, match=r"8 cells .* Are these the nodes of this mesh"):
        curved_mesh(mesh, nodes + 0.3)
    middle = nodes[:, :3].mean(axis=1, keepdims=True)
    smaller = middle + 0.5 * (nodes - middle)  # the right middles of the cells, other corners
    with pytest.raises(ValueError, match="8 cells of the mesh are not among the cells given"):
        curved_mesh(mesh, smaller)
    folded = nodes.copy()
    folded[3, 3:] = folded[3, [2, 0, 1]]
    with pytest.raises(ValueError, match="1 of 8 cells turn over when they are bent, the first"):
        curved_mesh(mesh, folded)
    extruded = ExtrudedMesh(IntervalMesh(2, 1.0), 2)
    with pytest.raises(NotImplementedError, match="bending an extruded mesh: expected a mesh of"):
        curved_mesh(extruded, nodes)
    with pytest.raises(NotImplementedError, match="bending interval cells"):
        curved_mesh(IntervalMesh(2, 1.0), nodes)


def test_a_surface_in_space_is_bent():
    """The sphere through nodes on it: area 4 pi, 16 times closer with half the edges."""
    errors = []
    for level in (2, 3):
        sphere = UnitIcosahedralSphereMesh(level, degree=1)
        nodes = _nodes(sphere, np.random.default_rng(0))
        nodes /= np.linalg.norm(nodes, axis=2, keepdims=True)
        errors.append(abs(assemble(Constant(1.0) * dx(domain=curved_mesh(sphere, nodes))) - 4 * pi))
    assert errors[1] < errors[0] / 14


@pytest.mark.parametrize("name", ["triangle", "periodic quad"])
def test_a_bent_mesh_goes_through_a_file(tmp_path, name):
    mesh = MESHES[name]()
    nodes = _nodes(mesh, np.random.default_rng(0))
    nodes += np.stack(_waves(np.moveaxis(nodes, 2, 0), np.sin), axis=2)
    V = FunctionSpace(curved_mesh(mesh, nodes, name="bent"), "CG", 2)
    with h5py.File(tmp_path / "mesh.h5", "w") as target:
        write_meshes(target, [V.mesh()])
    W = read_space(tmp_path / "mesh.h5", 0, "bent", signature(V))
    back, there = W.mesh().coordinates, V.mesh().coordinates
    assert back.function_space().ufl_element() == there.function_space().ufl_element()
    np.testing.assert_array_equal(back.dat.data_ro, there.dat.data_ro)


# Files


def _gmsh():
    try:
        import gmsh
    except (ImportError, OSError) as error:
        pytest.skip(f"gmsh does not load: {error}")
    return gmsh


def _write(path: Path, size: float, kind: str = "triangle", **more) -> None:
    """A disk of radius 0.3 in a square, a ball in a cube, or a quarter of a tube (in bricks)."""
    gmsh = _gmsh()
    gmsh.initialize(interruptible=False)
    try:
        options = {"General.Verbosity": 0, "Mesh.MeshSizeMax": size}
        options |= {"Mesh.MshFileVersion": more.get("version", 2.2)}
        options |= {"Mesh.Binary": more.get("binary", 0)}
        options |= {"Mesh.SecondOrderIncomplete": more.get("incomplete", 0)}
        options |= {"Mesh.RecombineAll": int(kind == "quad")}
        options |= {"Mesh.SubdivisionAlgorithm": int(kind == "quad")}
        for name, value in options.items():
            gmsh.option.setNumber(name, value)
        occ, dim = gmsh.model.occ, 3 if kind in ("tetra", "hexahedron") else 2
        if kind == "hexahedron":
            _tube(gmsh, size)
        else:
            if dim == 2:
                outer, inner = occ.addRectangle(-0.5, -0.5, 0, 1, 1), occ.addDisk(0, 0, 0, 0.3, 0.3)
            else:
                outer, inner = occ.addBox(-0.5, -0.5, -0.5, 1, 1, 1), occ.addSphere(0, 0, 0, 0.3)
            occ.fragment([(dim, outer)], [(dim, inner)])
            occ.synchronize()
            rest = [tag for _, tag in gmsh.model.getEntities(dim) if tag != inner]
            gmsh.model.addPhysicalGroup(dim, rest, 1, "matrix")
            gmsh.model.addPhysicalGroup(dim, [inner], 2, "inclusion")
            sides = gmsh.model.getBoundary(gmsh.model.getEntities(dim), oriented=False)
            gmsh.model.addPhysicalGroup(dim - 1, [tag for _, tag in sides], 3, "sides")
        gmsh.model.mesh.generate(dim)
        gmsh.model.mesh.setOrder(more.get("order", 2))
        gmsh.write(str(path))
    finally:
        gmsh.finalize()


def _tube(gmsh, size: float) -> None:
    occ, around = gmsh.model.occ, max(round(1 / size), 1)
    ends = [occ.addPoint(*place) for place in ((1, 0, 0), (2, 0, 0), (0, 2, 0), (0, 1, 0))]
    centre = occ.addPoint(0, 0, 0)
    curves = [occ.addLine(ends[0], ends[1]), occ.addCircleArc(ends[1], centre, ends[2])]
    curves += [occ.addLine(ends[2], ends[3]), occ.addCircleArc(ends[3], centre, ends[0])]
    face = occ.addPlaneSurface([occ.addCurveLoop(curves)])
    occ.remove([(0, centre)])
    made = occ.extrude([(2, face)], 0, 0, 1, numElements=[2], recombine=True)
    occ.synchronize()
    for curve, count in zip(curves, (2, 2 * around, 2, 2 * around), strict=True):
        gmsh.model.mesh.setTransfiniteCurve(curve, count + 1)
    gmsh.model.mesh.setTransfiniteSurface(face)
    gmsh.model.mesh.setRecombine(2, face)
    body = [tag for dim, tag in made if dim == 3]
    gmsh.model.addPhysicalGroup(3, body, 2, "tube")


EXACT = {"triangle": pi * 0.09, "quad": pi * 0.09, "tetra": 4 / 3 * pi * 0.027}
EXACT |= {"hexahedron": pi / 4 * 3}
SIZES = {"triangle": (0.12, 0.06), "quad": (0.12, 0.06), "tetra": (0.16, 0.08)}
SIZES |= {"hexahedron": (0.5, 0.25)}


def _inclusion(mesh) -> float:
    return float(assemble(Constant(1.0) * dx(2, domain=mesh)))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("triangle", {}),
        ("triangle", {"version": 4.1}),
        ("triangle", {"version": 4.0}),
        ("triangle", {"binary": 1}),
        ("triangle", {"version": 4.1, "binary": 1}),
        ("quad", {}),
        ("quad", {"incomplete": 1}),
        ("tetra", {}),
        ("hexahedron", {}),
        ("hexahedron", {"incomplete": 1, "version": 4.1}),
    ],
    ids=str,
)
def test_curved_files_are_of_fourth_order(tmp_path, kind, options):
    """Degree 2 misses the volume behind a curve by h^4; the boundary of the whole is straight."""
    errors = []
    for size in SIZES[kind]:
        _write(tmp_path / "part.msh", size, kind, **options)
        mesh = read_mesh(tmp_path / "part.msh")
        errors.append(abs(_inclusion(mesh) - EXACT[kind]))
        if kind != "hexahedron":
            assert assemble(Constant(1.0) * dx(domain=mesh)) == pytest.approx(1.0, rel=1e-13)
    assert errors[0] < 1e-2 * EXACT[kind]
    assert errors[1] < errors[0] / (8 if kind == "tetra" else 13)


@pytest.mark.filterwarnings("error")
def test_curved_or_straight_is_a_choice(tmp_path):
    path = tmp_path / "part.msh"
    _write(path, 0.2)
    straight, curved = read_mesh(path, curved=False), read_mesh(path, name="bent")
    assert curved.name == "bent"
    assert straight.coordinates.function_space().ufl_element().embedded_superdegree == 1
    assert straight.num_cells() == curved.num_cells()
    missing = [EXACT["triangle"] - _inclusion(mesh) for mesh in (straight, curved)]
    assert 0 < missing[1] < missing[0] / 100
    tag = mesh_tags(path)["sides"][1]
    assert assemble(Constant(1.0) * ds(tag, domain=curved)) == pytest.approx(4.0)


@pytest.mark.filterwarnings("error")
def test_unused_points_beside_curved_cells(tmp_path):
    path = tmp_path / "loose.msh"
    _write(path, 0.2)
    head, tail = path.read_text().split("$Nodes\n")
    count, rest = tail.split("\n", 1)
    path.write_text(f"{head}$Nodes\n{int(count) + 1}\n{int(count) + 9} 5 5 0\n{rest}")
    assert scan_gmsh(path).loose == 1
    assert _inclusion(read_mesh(path)) == pytest.approx(EXACT["triangle"], rel=1e-4)


def test_other_formats_become_straight_with_a_warning(tmp_path):
    _write(tmp_path / "part.msh", 0.2)
    source = meshio.read(tmp_path / "part.msh")
    cells = [("triangle6", source.cells_dict["triangle6"])]
    tags = {"cell_tags": [source.cell_data_dict["gmsh:physical"]["triangle6"]]}
    meshio.Mesh(source.points, cells, cell_data=tags).write(tmp_path / "part.vtu")
    with pytest.warns(UserWarning, match="read as straight lines. Curved edges are kept from gmsh"):
        mesh = read_mesh(tmp_path / "part.vtu")
    straight = read_mesh(tmp_path / "part.msh", curved=False)
    assert _inclusion(mesh) == pytest.approx(_inclusion(straight), rel=1e-12)


def test_nodes_of_a_file_lie_on_the_circle(tmp_path):
    for options in ({}, {"version": 4.1}, {"version": 4.1, "binary": 1}, {"binary": 1}):
        _write(tmp_path / "part.msh", 0.2, **options)
        nodes = cell_nodes(tmp_path / "part.msh", "triangle6")
        middles = nodes[:, :3][:, [[0, 1], [1, 2], [0, 2]]].mean(axis=2)
        moved = np.linalg.norm(nodes[:, 3:] - middles, axis=2) > 1e-6
        assert moved.any()
        radius = np.linalg.norm(nodes[:, 3:][moved], axis=1)
        np.testing.assert_allclose(radius, 0.3, atol=1e-12)
    with pytest.raises(ValueError, match=r"has no quad9 cells; it has .*triangle6"):
        cell_nodes(tmp_path / "part.msh", "quad9")
    text = "$MeshFormat\n2.2 0 8\n$EndMeshFormat\n$Nodes\n3\n1 0 0 0\n2 1 0 0\n3 0 1 0\n$EndNodes\n"
    (tmp_path / "hole.msh").write_text(text + "$Elements\n1\n1 2 2 1 1 1 2 7\n$EndElements\n")
    with pytest.raises(
        ValueError, match="its triangle cells use nodes that \\$Nodes does not list"
    ):
        cell_nodes(tmp_path / "hole.msh", "triangle")


def test_a_file_with_a_cell_that_turns_over_is_refused(tmp_path):
    places = ["0 0 0", "1 0 0", "0 1 0", "0.5 0.9 0", "0.5 0.5 0", "0 0.5 0"]
    nodes = [f"{n} {place}" for n, place in enumerate(places, 1)]
    lines = ["$MeshFormat", "2.2 0 8", "$EndMeshFormat", "$Nodes", "6", *nodes, "$EndNodes"]
    lines += ["$Elements", "1", "1 9 2 1 1 1 2 3 4 5 6", "$EndElements", ""]
    path = tmp_path / "folded.msh"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"1 of 1 cells turn over .* With curved=False they are"):
        read_mesh(path)
    assert read_mesh(path, curved=False).num_cells() == 1


PARALLEL = """
import sys
from firedrake import COMM_WORLD, Constant, SpatialCoordinate, assemble, dx
from spon.fem import read_mesh

results = [COMM_WORLD.size]
for path in sys.argv[2:]:
    mesh = read_mesh(path)
    x = SpatialCoordinate(mesh)
    measures = (Constant(1.0) * dx(2, domain=mesh), x[0]**2 * x[1]**2 * dx(1), x[1]**4 * dx(2))
    results += [float(assemble(form)) for form in measures]
    try:
        read_mesh(path, required_tags="clamped")
    except ValueError as error:
        results.append("refused")
with open(f"{sys.argv[1]}/{COMM_WORLD.rank}.txt", "w") as file:
    file.write(repr(results))
"""


@pytest.mark.parallel
def test_two_processes_bend_the_same_mesh(tmp_path):
    folder = Path(__file__).parents[1] / "meshes"
    paths = [folder / f"{name}.msh" for name in ("rve1", "rve2", "particles3d")]
    run_script(PARALLEL, tmp_path, tmp_path, *paths)
    expected: list = [2]
    for path in paths:
        mesh = read_mesh(path)
        x = SpatialCoordinate(mesh)
        measures = [Constant(1.0) * dx(2, domain=mesh)]
        measures += [x[0] ** 2 * x[1] ** 2 * dx(1), x[1] ** 4 * dx(2)]
        expected += [float(assemble(form)) for form in measures] + ["refused"]
    for rank in range(2):
        found = literal_eval((tmp_path / f"{rank}.txt").read_text())
        for value, exact in zip(found, expected, strict=True):
            assert value == exact if isinstance(exact, str) else value == pytest.approx(exact)
