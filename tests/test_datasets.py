"""A data set's file: arrays, signatures, and meshes that come back with the same dofs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from firedrake import (
    CheckpointFile,
    DirichletBC,
    ExtrudedMesh,
    Function,
    FunctionSpace,
    IcosahedralSphereMesh,
    Mesh,
    MeshHierarchy,
    PeriodicUnitSquareMesh,
    SpatialCoordinate,
    UnitCubeMesh,
    UnitIntervalMesh,
    UnitSquareMesh,
    VectorFunctionSpace,
    as_vector,
    assemble,
    ds,
    dx,
    inner,
)

from spon.datasets import Dataset, DatasetFileError, Failure
from spon.fem import read_mesh
from spon.fem.meshfile import MeshFileError
from spon.fem.spaces import signature

MESHES = Path(__file__).parents[1] / "meshes"


def curved(mesh):
    """Degree-2 coordinates that bend the mesh."""
    x = SpatialCoordinate(mesh)
    bent = as_vector([x[0] + 0.2 * x[1] ** 2, *(x[i] for i in range(1, mesh.geometric_dimension))])
    return Mesh(Function(VectorFunctionSpace(mesh, "CG", 2)).interpolate(bent), name="curved")


def oriented(mesh):
    """H(div) spaces on a surface need to know its outside."""
    mesh.init_cell_orientations(SpatialCoordinate(mesh))
    return mesh


CASES = {
    "interval": (lambda: UnitIntervalMesh(5), [("CG", 3), ("DG", 1)]),
    "triangle": (
        lambda: UnitSquareMesh(4, 3, name="triangles"),
        [("CG", 1), ("CG", 4), ("DG", 2), ("RT", 1), ("BDM", 2), ("N1curl", 2)],
    ),
    "quadrilateral": (
        lambda: UnitSquareMesh(3, 4, quadrilateral=True),
        [("CG", 3), ("DQ", 1), ("RTCF", 2), ("RTCE", 1)],
    ),
    "tetrahedron": (
        lambda: UnitCubeMesh(2, 2, 2),
        [("CG", 3), ("DG", 0), ("RT", 2), ("N1curl", 2)],
    ),
    "hexahedron": (lambda: UnitCubeMesh(2, 2, 2, hexahedral=True), [("CG", 3), ("DQ", 1)]),
    "curved triangle": (lambda: curved(UnitSquareMesh(3, 3)), [("CG", 3), ("N1curl", 2)]),
    "curved quadrilateral": (
        lambda: curved(UnitSquareMesh(3, 3, quadrilateral=True)),
        [("CG", 2), ("RTCF", 1)],
    ),
    "curved tetrahedron": (lambda: curved(UnitCubeMesh(2, 2, 2)), [("CG", 3), ("RT", 1)]),
    "periodic": (lambda: PeriodicUnitSquareMesh(4, 4), [("CG", 2), ("RT", 1)]),
    "sphere": (lambda: oriented(IcosahedralSphereMesh(1.0, 1, 2)), [("CG", 2), ("RT", 1)]),
    "extruded": (lambda: ExtrudedMesh(UnitSquareMesh(2, 2), 3), [("CG", 2)]),
    "refined": (lambda: MeshHierarchy(UnitSquareMesh(2, 2), 1)[1], [("CG", 2), ("RT", 1)]),
}


def random_functions(V, n, seed=0):
    rng = np.random.default_rng(seed)
    functions = [Function(V) for _ in range(n)]
    for f in functions:
        for part in f.subfunctions:
            part.dat.data_wo[...] = rng.standard_normal(part.dat.data_ro.shape)
    return functions


@pytest.mark.parametrize("case", CASES)
def test_mesh_comes_back_with_the_same_dofs(case, tmp_path):
    make, elements = CASES[case]
    mesh = make()
    fields = {
        f"f{i}": random_functions(FunctionSpace(mesh, *element), 2, seed=i)
        for i, element in enumerate(elements)
    }
    path = tmp_path / "data.h5"
    Dataset.from_functions(fields, {"u": random_functions(FunctionSpace(mesh, "CG", 1), 2)}).save(
        path
    )
    data = Dataset.load(path)
    assert data.mesh() is not mesh
    for name, functions in fields.items():
        V = data.space(name)
        assert V.mesh() is data.mesh()
        assert signature(V) == data.signatures[name]
        # The same coefficients are the same function: its norm and its moments with the
        # coordinates, integrated on the mesh that was read.
        ours = Function(V)
        ours.dat.data_wo[...] = data.inputs[name][1].numpy().reshape(ours.dat.data_ro.shape)
        x, y = SpatialCoordinate(V.mesh()), SpatialCoordinate(mesh)
        theirs = functions[1]
        a = assemble(inner(ours, ours) * x[0] ** 2 * dx)
        b = assemble(inner(theirs, theirs) * y[0] ** 2 * dx)
        assert a == pytest.approx(b, rel=1e-12)


@pytest.mark.parametrize("file", sorted(MESHES.glob("*.msh")), ids=lambda f: f.stem)
def test_gmsh_tags_survive(file, tmp_path):
    mesh = read_mesh(file)
    V = FunctionSpace(mesh, "CG", 2)
    functions = random_functions(V, 1)
    Dataset.from_functions({"f": functions}, {"u": functions}).save(tmp_path / "data.h5")
    W = Dataset.load(tmp_path / "data.h5").space("u")
    tags = [int(tag) for tag in mesh.topology.exterior_facets.unique_markers]
    assert tags == [int(tag) for tag in W.mesh().topology.exterior_facets.unique_markers]
    for tag in tags:
        assert (DirichletBC(V, 0, tag).nodes == DirichletBC(W, 0, tag).nodes).all()
        lengths = [assemble(1 * ds(tag, domain=m)) for m in (mesh, W.mesh())]
        assert lengths[0] == pytest.approx(lengths[1], rel=1e-13)
    cell_tags = mesh.topology_dm.getLabelIdIS("Cell Sets").getIndices()
    for tag in cell_tags:
        areas = [assemble(1 * dx(int(tag), domain=m)) for m in (mesh, W.mesh())]
        assert areas[0] == pytest.approx(areas[1], rel=1e-13)


@pytest.fixture(scope="module")
def mesh():
    return UnitSquareMesh(3, 3)


@pytest.fixture
def data(mesh):
    F, U = FunctionSpace(mesh, "DG", 0), FunctionSpace(mesh, "CG", 1)
    boundary = random_functions(U, 10, seed=2)
    return Dataset.from_functions(
        {"f": random_functions(F, 10), "g": random_functions(U, 10, seed=3)},
        {"u": random_functions(U, 10, seed=1)},
        boundary,
    )


def test_file_holds_everything(data, tmp_path):
    data.failures = (Failure(3, "no convergence"),)
    data.save(tmp_path / "a" / "data.h5")
    back = Dataset.load(tmp_path / "a" / "data.h5")
    assert list(back.inputs) == ["f", "g"] and list(back.outputs) == ["u"]
    for name in data.inputs:
        assert (back.inputs[name] == data.inputs[name]).all()
    assert (back.outputs["u"] == data.outputs["u"]).all()
    assert back.boundary is not None and (back.boundary == data.boundary).all()
    assert back.signatures == data.signatures
    assert back.failures == data.failures and back.runs == data.runs
    assert (back.keys == -1).all() and len(back) == 10
    # Nothing but the file is left in the folder.
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["data.h5"]
    # Plain HDF5 for everybody else, and Firedrake's checkpoint.
    with h5py.File(tmp_path / "a" / "data.h5") as file:
        assert file["spon/inputs/f"].shape == (10, 18)
        assert json.loads(file["spon/inputs/f"].attrs["signature"])["cell"] == "triangle"
    with CheckpointFile(str(tmp_path / "a" / "data.h5"), "r") as checkpoint:
        assert checkpoint.load_mesh(data.mesh().name).num_cells() == 18


def test_saving_what_was_loaded_keeps_the_mesh(data, tmp_path):
    data.save(tmp_path / "a.h5")
    part = Dataset.load(tmp_path / "a.h5")[2:5]
    part.save(tmp_path / "b.h5")
    os.remove(tmp_path / "a.h5")
    back = Dataset.load(tmp_path / "b.h5")
    assert (back.inputs["f"] == data.inputs["f"][2:5]).all()
    assert signature(back.space("f")) == data.signatures["f"]
    with pytest.raises(FileNotFoundError, match=r"a\.h5.*does not exist"):
        part.mesh()


def test_two_meshes_of_one_name(tmp_path):
    hierarchy = MeshHierarchy(UnitSquareMesh(2, 2), 1)
    assert hierarchy[0].name == hierarchy[1].name
    spaces = [FunctionSpace(m, "CG", 1) for m in hierarchy]
    Dataset.from_functions(
        {"f": random_functions(spaces[0], 2)}, {"u": random_functions(spaces[1], 2)}
    ).save(tmp_path / "data.h5")
    data = Dataset.load(tmp_path / "data.h5")
    assert data.mesh("f").num_cells() == 8 and data.mesh("u").num_cells() == 32


def test_arrays_are_read_without_building_a_mesh(data, tmp_path):
    data.save(tmp_path / "data.h5")
    script = (
        "import firedrake, sys\n"
        "def refuse(*args, **kwargs): raise SystemExit('a mesh file was opened')\n"
        "firedrake.CheckpointFile.__init__ = refuse\n"
        "from spon.datasets import Dataset\n"
        "print(len(Dataset.load(sys.argv[1]).split((0.5, 0.5))[0]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "data.h5")],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "5", done.stderr


def test_a_mesh_with_other_dofs_is_refused(data, tmp_path):
    path = tmp_path / "data.h5"
    data.save(path)
    with h5py.File(path, "r+") as file:
        attributes = file["spon/outputs/u"].attrs
        changed = json.loads(attributes["signature"]) | {"dofs": "0" * 64}
        attributes["signature"] = json.dumps(changed)
    with pytest.raises(MeshFileError, match=r"CG 1 .*\[00000000\].*this mesh gives CG 1"):
        Dataset.load(path).mesh()
    with h5py.File(path, "r+") as file:
        del file["topologies"]
    with pytest.raises(MeshFileError, match="cannot read the mesh"):
        Dataset.load(path).mesh("f")


def test_parts(data):
    assert len(data[3]) == 1 and len(data[2:7]) == 5 and len(data[[1, 1, 4]]) == 3
    assert (data[torch.tensor([4, 2])].outputs["u"] == data.outputs["u"][[4, 2]]).all()
    assert (data[data.outputs["u"][:, 0] > 0].outputs["u"][:, 0] > 0).all()
    assert data[2:4].mesh() is data.mesh()
    assert len(list(data)) == 10
    with pytest.raises(IndexError):
        data[10]
    a, b = data.split((0.7, 0.3), seed=1)
    rows = torch.cat([a.outputs["u"], b.outputs["u"]])
    assert (len(a), len(b)) == (7, 3)
    assert sorted(rows[:, 0].tolist()) == sorted(data.outputs["u"][:, 0].tolist())
    again, _ = data.split((0.7, 0.3), seed=1)
    other, _ = data.split((0.7, 0.3), seed=2)
    assert (again.inputs["f"] == a.inputs["f"]).all()
    assert (other.inputs["f"] != a.inputs["f"]).any()


def test_tensors(data):
    inputs, output, boundary = data.tensors(torch.float32)
    assert [x.shape for x in inputs] == [(10, 18), (10, 16)] and output.shape == (10, 16)
    assert boundary is not None and {x.dtype for x in (*inputs, output, boundary)} == {
        torch.float32
    }
    two = Dataset(
        data.inputs,
        {"u": data.outputs["u"], "v": data.outputs["u"]},
        data.input_signatures,
        {"u": data.signatures["u"], "v": data.signatures["u"]},
    )
    with pytest.raises(ValueError, match=r"\['u', 'v'\]"):
        two.tensors()
    assert two.select(inputs=["g"], outputs=["v"]).tensors()[1].shape == (10, 16)


def test_concatenation(data):
    data.failures = (Failure(3, "no"),)
    both = Dataset.concatenate([data[:4], data[4:]])
    assert (both.inputs["g"] == data.inputs["g"]).all()
    assert both.run.tolist() == [0] * 4 + [1] * 6 and [f.run for f in both.failures] == [0, 1]
    assert both.mesh() is data.mesh()
    other = data.select(inputs=["f"])
    with pytest.raises(ValueError, match=r"has the inputs \['f'\], the first one has \['f', 'g'\]"):
        Dataset.concatenate([data, other])
    V = FunctionSpace(UnitSquareMesh(2, 2), "CG", 1)
    f = random_functions(V, 2)
    elsewhere = Dataset.from_functions({"f": f}, {"u": f})
    here = Dataset.from_arrays(
        {"f": data.outputs["u"]},
        {"u": data.outputs["u"]},
        {"f": data.space("u"), "u": data.space("u")},
    )
    with pytest.raises(ValueError, match="belongs to CG 1 on 8 triangles"):
        Dataset.concatenate([here, elsewhere])
    with pytest.raises(ValueError, match="no data set"):
        Dataset.concatenate([])


def test_signatures_alone_have_no_mesh(data):
    bare = Dataset.from_arrays({"f": data.inputs["f"]}, {"u": data.outputs["u"]}, data.signatures)
    with pytest.raises(RuntimeError, match="no mesh for 'u'"):
        bare.mesh()
    bare.attach({"u": data.space("u")})
    assert bare.mesh() is data.mesh()
    with pytest.raises(ValueError, match="The space for 'f' is CG 1"):
        bare.attach({"f": data.space("u")})


def test_boundary_data_stay_with_their_output(mesh, tmp_path):
    # As many dofs, but another space: the width of the array does not tell them apart.
    other = UnitSquareMesh(3, 3, diagonal="right")
    U, P = FunctionSpace(mesh, "CG", 1), FunctionSpace(other, "CG", 1)
    assert U.dim() == P.dim() and signature(U) != signature(P)
    f, g = random_functions(U, 4), random_functions(U, 4, seed=1)
    outputs = {"p": random_functions(P, 4), "u": random_functions(U, 4, seed=2)}
    data = Dataset.from_functions({"f": f}, outputs, g)
    data.save(tmp_path / "data.h5")
    for d in (data, Dataset.load(tmp_path / "data.h5"), data[:2], data.select(outputs=["u", "p"])):
        assert d.boundary_of == "u"
        assert d.select(outputs=["p"]).boundary is None
        assert (d.select(outputs=["u"]).boundary == d.boundary).all()
    with pytest.raises(ValueError, match=r"boundary functions are in CG 1 .*'p': 'CG 1"):
        Dataset.from_functions({"f": f}, {"p": outputs["p"]}, g)
    with pytest.raises(ValueError, match="in the space of the output 'p'"):
        Dataset.from_functions({"f": f}, outputs, g, boundary_of="p")
    with pytest.raises(ValueError, match="boundary: "):
        Dataset.from_functions({"f": f}, outputs, [g[0], outputs["p"][0]])


def test_boundary_data_of_one_of_two_outputs_in_a_space(mesh):
    V = FunctionSpace(mesh, "CG", 1)
    f, g = random_functions(V, 4), random_functions(V, 4, seed=1)
    data = Dataset.from_functions({"f": f}, {"c": f, "mu": g}, g)
    assert data.boundary_of is None and data.select(outputs=["mu", "c"]).boundary is not None
    with pytest.raises(ValueError, match=r"any of the outputs \['c', 'mu'\].*boundary_of = 'c'"):
        data.select(outputs=["mu"])
    named = Dataset.from_functions({"f": f}, {"c": f, "mu": g}, g, boundary_of="c")
    assert named.select(outputs=["mu"]).boundary is None
    with pytest.raises(ValueError, match="belong to 'c', those of the first one to None"):
        Dataset.concatenate([data, named])
    with pytest.raises(ValueError, match="boundary_of='v' is no output"):
        Dataset.from_arrays(
            data.inputs, data.outputs, data.signatures, data.boundary, boundary_of="v"
        )


def test_inputs_in_no_space(mesh, tmp_path):
    U = FunctionSpace(mesh, "CG", 1)
    rng = np.random.default_rng(0)
    values, images, u = (rng.standard_normal((6, *s)) for s in [(5, 2), (4, 3), (U.dim(),)])
    spaces = {"x": None, "i": None, "f": U, "u": U}
    data = Dataset.from_arrays({"x": values, "i": images, "f": u}, {"u": u}, spaces)
    data.save(tmp_path / "data.h5")
    back = Dataset.load(tmp_path / "data.h5")
    assert back.input_signatures == {"x": None, "i": None, "f": signature(U)}
    assert list(back.inputs) == ["x", "i", "f"]
    assert (back.inputs["x"].numpy() == values).all() and (back.inputs["i"].numpy() == images).all()
    assert "i: values of shape (4, 3)" in repr(back)
    inputs, _, _ = back.tensors(torch.float32)
    assert [tuple(x.shape) for x in inputs] == [(6, 5, 2), (6, 4, 3), (6, U.dim())]
    first, last = back.split((0.5, 0.5), seed=2)
    both = Dataset.concatenate([first, last])
    assert both.inputs["i"].shape == (6, 4, 3)
    assert sorted(both.inputs["x"][:, 0, 0].tolist()) == sorted(values[:, 0, 0].tolist())
    assert signature(back.space("f")) == signature(U)
    with pytest.raises(RuntimeError, match=r"'x' is in no function space.*\(5, 2\)"):
        back.space("x")
    with pytest.raises(ValueError, match=r"data belong to values of shape \(5, 2\)"):
        back.attach({"x": U})
    narrow = {"x": values, "i": images[:, :2], "f": u}
    narrow = Dataset.from_arrays(narrow, {"u": u}, spaces)
    with pytest.raises(ValueError, match=r"belongs to values of shape \(2, 3\)"):
        Dataset.concatenate([data, narrow])
    with pytest.raises(ValueError, match="The output 'u' needs a function space"):
        Dataset.from_arrays({"f": u}, {"u": u}, {"f": U, "u": None})
    with pytest.raises(ValueError, match=r"'x' has shape \(6,\), expected \(n, ...\)"):
        Dataset.from_arrays({"x": values[:, 0, 0]}, {"u": u}, spaces)
    images[3, 1, 1] = np.nan
    with pytest.raises(ValueError, match="'i' holds NaN or infinity in 1 samples: 3"):
        Dataset.from_arrays({"i": images}, {"u": u}, spaces)


def test_a_mesh_that_is_gone_is_not_lost_silently(data, tmp_path):
    data.save(tmp_path / "a.h5")
    back = Dataset.load(tmp_path / "a.h5")[:4]
    os.remove(tmp_path / "a.h5")
    with pytest.raises(FileNotFoundError, match=r"meshes of \['f', 'g', 'u'\].*is gone.*attach"):
        back.save(tmp_path / "b.h5")
    assert not list(tmp_path.iterdir())
    back.attach({name: data.space(name) for name in ("f", "g", "u")}).save(tmp_path / "b.h5")
    assert signature(Dataset.load(tmp_path / "b.h5").space("u")) == data.signatures["u"]
    # Without a mesh from the start there is none to lose.
    Dataset.from_arrays(data.inputs, data.outputs, data.signatures).save(tmp_path / "c.h5")


def test_bad_files(data, tmp_path):
    with pytest.raises(FileNotFoundError, match="no data set at"):
        Dataset.load(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(DatasetFileError, match="not an HDF5 file"):
        Dataset.load(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(DatasetFileError, match=r"not a data set of spon; it holds \['x'\]"):
        Dataset.load(tmp_path / "other.h5")
    data.save(tmp_path / "data.h5")
    with h5py.File(tmp_path / "data.h5", "r+") as file:
        del file["spon/samples/run"]
    with pytest.raises(DatasetFileError, match="damaged"):
        Dataset.load(tmp_path / "data.h5")
    with h5py.File(tmp_path / "data.h5", "r+") as file:
        file["spon"].attrs["version"] = 99
    with pytest.raises(DatasetFileError, match=r"format version 99.*reads version 1"):
        Dataset.load(tmp_path / "data.h5")


def test_wrong_calls(data, mesh):
    F, U = data.space("f"), data.space("u")
    f, u = np.zeros((4, 18)), np.zeros((4, 16))
    spaces = {"f": F, "u": U}
    with pytest.raises(ValueError, match=r"'f' has shape \(4, 16\), expected \(n, 18\) for DG 0"):
        Dataset.from_arrays({"f": u}, {"u": u}, spaces)
    with pytest.raises(ValueError, match=r"same number of samples, got {'f': 3, 'u': 4}"):
        Dataset.from_arrays({"f": f[:3]}, {"u": u}, spaces)
    bad = f.copy()
    bad[2, 5] = np.nan
    with pytest.raises(ValueError, match="'f' holds NaN or infinity in 1 samples: 2"):
        Dataset.from_arrays({"f": bad}, {"u": u}, spaces)
    with pytest.raises(ValueError, match=r"spaces lacks \['u'\]"):
        Dataset.from_arrays({"f": f}, {"u": u}, {"f": F})
    with pytest.raises(ValueError, match="inputs is empty"):
        Dataset.from_arrays({}, {"u": u}, spaces)
    with pytest.raises(TypeError, match="inputs must map names"):
        Dataset.from_arrays([f], {"u": u}, spaces)
    with pytest.raises(ValueError, match="'a b' is no name"):
        Dataset.from_arrays({"a b": f}, {"u": u}, spaces)
    with pytest.raises(ValueError, match=r"boundary has shape \(4, 18\)"):
        Dataset.from_arrays({"f": f}, {"u": u}, spaces, boundary=f)
    with pytest.raises(ValueError, match="at least 1"):
        Dataset.from_arrays({"f": f[:0]}, {"u": u[:0]}, spaces)
    with pytest.raises(TypeError, match=r"'u'.*got one Function|'u'.*sequence"):
        Dataset.from_functions({"f": random_functions(F, 2)}, {"u": Function(U)})
    with pytest.raises(ValueError, match=r"'f'.*one space"):
        Dataset.from_functions({"f": [Function(F), Function(U)]}, {"u": random_functions(U, 2)})
    with pytest.raises(ValueError, match="sum to at most 1"):
        data.split((0.8, 0.4))
    with pytest.raises(ValueError, match=r"cannot be divided.*\[10, 0\]"):
        data.split((0.99, 0.01))
    with pytest.raises(KeyError, match="no field 'w'"):
        data.space("w")
