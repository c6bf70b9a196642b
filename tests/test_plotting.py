"""Pictures, and the triangulations and files behind them."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import torch
from firedrake import (
    Cofunction,
    Function,
    FunctionSpace,
    SpatialCoordinate,
    TensorFunctionSpace,
    UnitCubeMesh,
    UnitIntervalMesh,
    UnitSquareMesh,
    VectorFunctionSpace,
    VTKFile,
    as_vector,
    norm,
    sin,
)
from firedrake.adjoint import (
    Tape,
    continue_annotation,
    get_working_tape,
    pause_annotation,
    set_working_tape,
)
from PIL import Image

from spon import plotting, rendering
from spon.fem.triangulation import triangulate
from spon.fem.vtk import write_vtk

MESHES = {
    "triangle": lambda: UnitSquareMesh(3, 2),
    "quadrilateral": lambda: UnitSquareMesh(3, 2, quadrilateral=True),
    "tetrahedron": lambda: UnitCubeMesh(2, 1, 1),
    "hexahedron": lambda: UnitCubeMesh(2, 1, 1, hexahedral=True),
}


def _bulge(mesh):
    """The mesh with its right part pulled out: y grows by x/2, so the area is 5/4."""
    X = SpatialCoordinate(mesh)
    mesh.coordinates.interpolate(as_vector([X[0], X[1] * (1 + X[0] / 2), *list(X)[2:]]))
    return mesh


def _area(points, triangles):
    points = np.pad(points, ((0, 0), (0, 3 - points.shape[1])))[triangles]
    cross = np.cross(points[:, 1] - points[:, 0], points[:, 2] - points[:, 0])
    return np.linalg.norm(cross, axis=1).sum() / 2


def _length(points, segments):
    return np.linalg.norm(points[segments[:, 0]] - points[segments[:, 1]], axis=1).sum()


def _picture(path):
    return np.asarray(Image.open(path).convert("RGB"), dtype=float)


def _not_blank(path):
    """Many colours, and a margin that is white."""
    pixels = _picture(path)
    assert pixels.std() > 20
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200
    assert (pixels[0] == 255).all()
    return pixels


# Triangulations


@pytest.mark.parametrize("degree", [1, 2, 3])
@pytest.mark.parametrize("cell", MESHES)
def test_values_and_measures_of_a_triangulation(cell, degree):
    mesh = MESHES[cell]()
    dim = mesh.geometric_dimension
    X = SpatialCoordinate(mesh)
    f = Function(FunctionSpace(mesh, "CG", degree)).interpolate(X[0] ** degree + 2 * X[1])
    g = Function(VectorFunctionSpace(mesh, "DG", 0, dim=2)).interpolate(as_vector([3, 4]))
    shape = triangulate(f, g)
    x, y = shape.points[:, 0], shape.points[:, 1]
    np.testing.assert_allclose(shape.values[0], x**degree + 2 * y, atol=1e-13)
    np.testing.assert_allclose(shape.values[1], np.tile([3.0, 4.0], (len(x), 1)), atol=1e-13)
    assert shape.continuous == [True, False]
    assert _area(shape.points, shape.triangles) == pytest.approx(1 if dim == 2 else 6)
    if dim == 2:
        diagonals = 6 * np.hypot(1 / 3, 1 / 2) if cell == "triangle" else 0
        assert _length(shape.points, shape.outline) == pytest.approx(4)
        assert _length(shape.points, shape.edges) == pytest.approx(4 + 1 + 2 + diagonals)
    else:
        assert len(shape.outline) == 0
        on_surface = np.isclose(shape.points * (1 - shape.points), 0).any(axis=1)
        assert on_surface.all()
        assert set(shape.triangles.ravel()) == set(range(len(shape.points)))


def test_slanted_cells_and_rotated_fields():
    mesh = _bulge(MESHES["quadrilateral"]())
    X = SpatialCoordinate(mesh)
    f = Function(FunctionSpace(mesh, "CG", 1)).interpolate(X[1])
    shape = triangulate(f, degree=4)
    assert _area(shape.points, shape.triangles) == pytest.approx(1.25)
    np.testing.assert_allclose(shape.values[0], shape.points[:, 1], atol=1e-13)
    mesh = MESHES["triangle"]()
    X = SpatialCoordinate(mesh)
    flux = Function(FunctionSpace(mesh, "RT", 1)).interpolate(as_vector([1 + X[0], 2 + X[1]]))
    shape = triangulate(flux)
    np.testing.assert_allclose(shape.values[0], shape.points + [1, 2], atol=1e-12)
    assert shape.continuous == [False]


def test_jumps_stay():
    mesh = UnitSquareMesh(2, 1, quadrilateral=True)
    f = Function(FunctionSpace(mesh, "DQ", 0))
    f.dat.data[:] = [1.0, 5.0]
    shape = triangulate(f)
    middle = np.isclose(shape.points[:, 0], 0.5)
    assert set(np.round(shape.values[0][middle], 12)) == {1.0, 5.0}
    assert set(np.round(shape.values[0], 12)) == {1.0, 5.0}


def test_drawing_is_not_taped():
    mesh = MESHES["triangle"]()
    f = Function(FunctionSpace(mesh, "CG", 2))
    old = get_working_tape()
    tape = Tape()
    set_working_tape(tape)
    continue_annotation()
    try:
        triangulate(f)
        assert tape.get_blocks() == []
        f.assign(1.0)  # so the tape was running
        assert len(tape.get_blocks()) == 1
    finally:
        pause_annotation()
        set_working_tape(old)


def test_refused_functions():
    mesh = MESHES["triangle"]()
    V = FunctionSpace(mesh, "CG", 1)
    f = Function(V, name="f")
    with pytest.raises(ValueError, match="expected at least one function to draw"):
        triangulate()
    with pytest.raises(TypeError, match=r"got Tensor: spon\.fem\.to_function\(x, V\) makes one"):
        triangulate(torch.zeros(3))
    with pytest.raises(TypeError, match="expected Firedrake Functions, got Cofunction"):
        triangulate(Cofunction(V.dual()))
    with pytest.raises(ValueError, match=r"mixed space; draw its parts, f\.subfunctions"):
        triangulate(Function(V * V))
    with pytest.raises(ValueError, match=r"is a tensor of shape \(2, 2\)"):
        triangulate(Function(TensorFunctionSpace(mesh, "CG", 1)))
    with pytest.raises(ValueError, match="live on several meshes"):
        triangulate(f, Function(FunctionSpace(MESHES["triangle"](), "CG", 1)))
    with pytest.raises(ValueError, match="degree is the number of parts of each edge"):
        triangulate(f, degree=0)
    with pytest.raises(NotImplementedError, match="drawing on interval cells; expected triangle"):
        triangulate(Function(FunctionSpace(UnitIntervalMesh(2), "CG", 1)))


# Pictures


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved, oldest first."""
    saved = []
    save = plotting._save

    def keep(figure, path):
        saved.append(figure)
        return save(figure, path)

    monkeypatch.setattr(plotting, "_save", keep)
    return saved


def _bars(figure):
    """Ranges of the colour bars, in the order of the panels."""
    axes = [ax for ax in figure.axes if hasattr(ax, "_colorbar")]
    return [(ax._colorbar.vmin, ax._colorbar.vmax) for ax in axes]


def _titles(figure):
    return [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left")]


@pytest.mark.parametrize("cell", ["triangle", "quadrilateral"])
def test_scalar_fields(tmp_path, figures, cell):
    mesh = MESHES[cell]()
    X = SpatialCoordinate(mesh)
    u = Function(FunctionSpace(mesh, "CG", 2)).interpolate(1 + X[0])
    v = Function(FunctionSpace(mesh, "CG", 1)).interpolate(1 + 2 * X[0])
    f = Function(FunctionSpace(mesh, "DG", 0)).interpolate(sin(5 * X[0]))
    path = tmp_path / "new" / "plot.png"
    assert plotting.compare(u, v, path, input=f, title="Title") == path
    _not_blank(path)
    assert [file.name for file in path.parent.iterdir()] == ["plot.png"]
    _, true, guess, gap = _bars(figures[0])
    assert true == guess == pytest.approx((1, 3))
    assert gap == pytest.approx((-1, 1))
    # |x| / |1 + x| in L2 over [0, 1]
    wrong = 100 * np.sqrt((1 / 3) / (7 / 3))
    assert _titles(figures[0]) == [
        "input",
        "reference",
        "prediction",
        f"difference, {wrong:.2g} % in L2",
    ]
    panels = [ax for ax in figures[0].axes if not hasattr(ax, "_colorbar")]
    assert len(panels) == 4
    assert {ax.get_aspect() for ax in panels} == {1.0}
    assert len({ax.get_xlim() + ax.get_ylim() for ax in panels}) == 1


def test_l2_norm_is_that_of_firedrake():
    mesh = _bulge(MESHES["triangle"]())
    X = SpatialCoordinate(mesh)
    f = Function(VectorFunctionSpace(mesh, "CG", 1)).interpolate(as_vector([X[0] * X[1], 1 - X[1]]))
    shape = triangulate(f)
    assert plotting._norm_l2(shape, shape.values[0]) == pytest.approx(norm(f), rel=1e-12)


def test_displacements_deform_the_mesh(tmp_path, figures):
    mesh = MESHES["triangle"]()
    X = SpatialCoordinate(mesh)
    V = VectorFunctionSpace(mesh, "CG", 1)
    u = Function(V).interpolate(as_vector([0 * X[0], -1e-3 * X[0]]))
    v = Function(V).interpolate(as_vector([0 * X[0], -2e-3 * X[0]]))
    plotting.compare(u, v, tmp_path / "a.png", input=u)
    _not_blank(tmp_path / "a.png")
    # 8 % of the width 1 over 1e-3 is 80: rounded down to 50
    assert _titles(figures[0])[1:3] == ["reference, deformed × 50", "prediction, deformed × 50"]
    assert _titles(figures[0])[3] == "difference, 1e+02 % in L2"
    assert _bars(figures[0])[1:] == [pytest.approx((0, 2e-3))] * 2 + [pytest.approx((0, 1e-3))]
    points = [ax.collections[0]._triangulation for ax in figures[0].axes[:4]]
    assert points[0].y.min() == pytest.approx(0)
    assert points[1].y.min() == pytest.approx(-0.05)
    assert points[2].y.min() == pytest.approx(-0.10)
    plotting.compare(u, v, tmp_path / "b.png", deform=7)
    assert _titles(figures[1])[0] == "reference, deformed × 7"
    plotting.compare(u, v, tmp_path / "c.png", deform=False)
    assert _titles(figures[2])[0] == "reference"


def test_fluxes_do_not_deform_the_mesh(tmp_path, figures):
    mesh = MESHES["triangle"]()
    flux = Function(FunctionSpace(mesh, "RT", 1)).interpolate(as_vector([1, 0]))
    plotting.compare(flux, flux, tmp_path / "flux.png")
    assert _titles(figures[0]) == ["reference", "prediction", "difference, 0 % in L2"]


def test_constant_and_vanishing_fields(tmp_path):
    mesh = MESHES["triangle"]()
    zero = Function(VectorFunctionSpace(mesh, "CG", 1))
    one = Function(FunctionSpace(mesh, "CG", 1)).assign(1.0)
    for f in (zero, one):
        plotting.compare(f, f, tmp_path / "same.png", input=f)
        assert _picture(tmp_path / "same.png").std() > 20


@pytest.mark.parametrize("with_pyvista", [True, False], ids=["pyvista", "matplotlib"])
@pytest.mark.parametrize("cell", ["tetrahedron", "hexahedron"])
def test_surfaces(tmp_path, monkeypatch, figures, cell, with_pyvista):
    if with_pyvista and not rendering.pyvista_works():
        pytest.skip("pyvista is not installed or draws nothing without a screen")
    monkeypatch.setattr(rendering, "pyvista_works", lambda: with_pyvista)
    mesh = MESHES[cell]()
    X = SpatialCoordinate(mesh)
    u = Function(VectorFunctionSpace(mesh, "CG", 1)).interpolate(as_vector([0, 0, 0.01 * X[0]]))
    f = Function(FunctionSpace(mesh, "DG", 0)).interpolate(X[0])
    plotting.compare(u, u, tmp_path / "space.png", input=f, title="Space")
    pixels = _not_blank(tmp_path / "space.png")
    colourful = np.ptp(pixels, axis=2) > 60
    assert colourful.mean() > 0.05
    assert _titles(figures[0]) == [
        "input",
        "reference, deformed × 5",
        "prediction, deformed × 5",
        "difference",
    ]


def test_the_users_matplotlib_is_left_alone(tmp_path):
    import matplotlib.pyplot as plt

    backend, settings = matplotlib.get_backend(), dict(matplotlib.rcParams)
    f = Function(FunctionSpace(MESHES["triangle"](), "CG", 1))
    plotting.compare(f, f, tmp_path / "a.pdf")
    plotting.histogram([0.1, 0.2], tmp_path / "b.svg")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    assert b"<svg" in (tmp_path / "b.svg").read_bytes()
    assert matplotlib.get_backend() == backend
    assert dict(matplotlib.rcParams) == settings
    assert plt.get_fignums() == []


def test_refused_comparisons(tmp_path):
    mesh = MESHES["triangle"]()
    V = FunctionSpace(mesh, "CG", 1)
    scalar, vector = Function(V), Function(VectorFunctionSpace(mesh, "CG", 1))
    path = tmp_path / "a.png"
    with pytest.raises(ValueError, match="reference has 1 component and prediction a vector of 2"):
        plotting.compare(scalar, vector, path)
    with pytest.raises(ValueError, match="deform=True needs a vector with 2 components"):
        plotting.compare(scalar, scalar, path, deform=True)
    with pytest.raises(ValueError, match="the ending chooses the format"):
        plotting.compare(scalar, scalar, tmp_path / "picture")
    wrong = Function(V)
    wrong.dat.data[0] = np.nan
    with pytest.raises(
        ValueError, match=r"prediction has \d+ of \d+ values that are NaN or infinite"
    ):
        plotting.compare(scalar, wrong, path)
    assert not any(tmp_path.iterdir())


def test_a_failed_picture_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "h.png"
    plotting.histogram([0.1, 0.2], path)
    before = path.read_bytes()

    def fail(self, draft, **options):
        draft.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(plotting.Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plotting.histogram([0.3, 0.2], path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["h.png"]


@pytest.mark.parametrize("spread", [1.0, 100.0, 0.0])
def test_histogram(tmp_path, figures, spread):
    rng = np.random.default_rng(0)
    errors = torch.tensor(0.01 * (1 + spread * rng.random(200)))
    plotting.histogram(errors, tmp_path / "h.png", title="Errors")
    assert _picture(tmp_path / "h.png").std() > 20
    axes = figures[0].axes[0]
    assert sum(bar.get_height() for bar in axes.patches) == 200
    assert axes.get_xscale() == ("log" if spread == 100 else "linear")
    text = axes.get_legend().get_texts()[0].get_text()
    assert text.startswith(f"median {float(errors.quantile(0.5)):.3g}, 95 % below")


def test_histogram_of_several(tmp_path, figures):
    plotting.histogram({"MLP": [0.2, 0.3, 0.4], "Spectral": np.array([0.1])}, tmp_path / "h.png")
    axes = figures[0].axes[0]
    assert sum(bar.get_height() for bar in axes.patches) == 4
    assert [t.get_text().split(":")[0] for t in axes.get_legend().get_texts()] == [
        "MLP",
        "Spectral",
    ]


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        ([], "histogram needs at least one error, got none"),
        ({}, "got an empty dict"),
        ([0.1, -0.2], "errors are finite and at least 0, got -0.2 to 0.1"),
        ([0.1, np.nan], "errors are finite and at least 0"),
    ],
)
def test_refused_histograms(tmp_path, errors, message):
    with pytest.raises(ValueError, match=message):
        plotting.histogram(errors, tmp_path / "h.png")


# Files for ParaView


def _functions():
    mesh = MESHES["triangle"]()
    X = SpatialCoordinate(mesh)
    u = Function(FunctionSpace(mesh, "CG", 3), name="u").interpolate(X[0] ** 3 + X[1])
    q = Function(FunctionSpace(mesh, "RT", 1), name="q").interpolate(as_vector([1 + X[0], X[1]]))
    return u, q


def test_vtk_files_hold_the_functions(tmp_path):
    pyvista = pytest.importorskip("pyvista")
    u, q = _functions()
    assert write_vtk(tmp_path / "out", u, q, time=2.5) == tmp_path / "out.pvd"
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["out", "out.pvd", "out_0.vtu"]
    reader = pyvista.get_reader(tmp_path / "out.pvd")
    assert reader.time_values == [2.5]
    data = reader.read()[0]
    x, y, _ = data.points.T
    np.testing.assert_allclose(data["u"], x**3 + y, atol=1e-6)
    np.testing.assert_allclose(data["q"], np.stack([1 + x, y, 0 * x], axis=1), atol=1e-6)
    assert data.n_cells == 12


def test_vtk_single_file_mixed_and_linear(tmp_path):
    pyvista = pytest.importorskip("pyvista")
    u, q = _functions()
    w = Function(u.function_space() * q.function_space(), name="w")
    w.subfunctions[0].assign(u)
    w.subfunctions[1].assign(q)
    path = write_vtk(tmp_path / "w.vtu", w, degree=1)
    assert [file.name for file in tmp_path.iterdir()] == ["w.vtu"]
    data = pyvista.read(path)
    assert set(data.array_names) == {"w[0]", "w[1]"}
    assert data.n_points <= 36  # three for each cell: no cell is curved
    np.testing.assert_allclose(data["w[1]"][:, 0], 1 + data.points[:, 0], atol=1e-6)
    # a projection: the mean is kept, 1/4 + 1/2
    triangles = data.cells.reshape(-1, 4)[:, 1:]
    points = data.points[triangles].astype(float)
    areas = [_area(p, np.array([[0, 1, 2]])) for p in points]
    mean = data["w[0]"][triangles].mean(axis=1) @ areas
    assert mean == pytest.approx(0.75, abs=1e-6)


def test_a_failed_vtk_leaves_the_old_one(tmp_path, monkeypatch):
    u, _ = _functions()
    write_vtk(tmp_path / "out.pvd", u)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    def fail(self, *functions, **options):
        raise OSError("disk full")

    monkeypatch.setattr(VTKFile, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        write_vtk(tmp_path / "out.pvd", u)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_refused_vtk(tmp_path):
    u, q = _functions()
    V, path = u.function_space(), tmp_path / "out.pvd"
    mesh = V.mesh()
    with pytest.raises(ValueError, match="write_vtk needs at least one function"):
        write_vtk(path)
    with pytest.raises(ValueError, match=r"expected the ending \.pvd or \.vtu, got '\.txt'"):
        write_vtk(tmp_path / "out.txt", u)
    with pytest.raises(ValueError, match=r"one process and no time; write a \.pvd instead"):
        write_vtk(tmp_path / "out.vtu", u, time=1.0)
    with pytest.raises(ValueError, match="degree: expected >= 1, got 0"):
        write_vtk(path, u, degree=0)
    with pytest.raises(TypeError, match=r"got Tensor: make one with spon\.fem\.to_function"):
        write_vtk(path, torch.zeros(3))
    with pytest.raises(TypeError, match=r"is a load or residual \(dual\)"):
        write_vtk(path, Cofunction(V.dual()))
    with pytest.raises(ValueError, match=r"has shape \(5,\); VTK files hold scalars, vectors"):
        write_vtk(path, Function(VectorFunctionSpace(mesh, "CG", 1, dim=5)))
    with pytest.raises(ValueError, match="several functions are called 'u'; rename them"):
        write_vtk(path, u, u)
    other = Function(FunctionSpace(MESHES["triangle"](), "CG", 1), name="other")
    with pytest.raises(ValueError, match="live on several meshes; write one file for each mesh"):
        write_vtk(path, q, other)
    assert not any(tmp_path.iterdir())
