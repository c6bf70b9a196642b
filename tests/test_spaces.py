"""Functions to tensors and back, and the signature of a space, for all element families."""

import json

import numpy as np
import pytest
import torch
from families import FAMILIES, mesh_of_cells, random_function, space
from firedrake import (
    Cofunction,
    Function,
    FunctionSpace,
    TensorFunctionSpace,
    TestFunction,
    UnitSquareMesh,
    assemble,
    dx,
    inner,
)

from spon import fem
from spon.signature import SpaceSignature


@pytest.mark.parametrize(("cell", "family", "degree"), FAMILIES)
def test_the_order_is_that_of_the_assembled_vector(cell, family, degree):
    f = random_function(space(cell, family, degree))
    with f.dat.vec_ro as vector:
        np.testing.assert_array_equal(fem.to_tensor(f).numpy(), vector.array)


@pytest.mark.parametrize(("cell", "family", "degree"), FAMILIES)
def test_there_and_back_is_the_identity(cell, family, degree):
    V = space(cell, family, degree)
    fs = [random_function(V, seed) for seed in range(3)]
    x = fem.to_tensor(fs)
    assert x.shape == (3, V.dim())
    for f, g in zip(fs, fem.to_function(x, V), strict=True):
        for a, b in zip(f.subfunctions, g.subfunctions, strict=True):
            np.testing.assert_array_equal(a.dat.data_ro, b.dat.data_ro)


@pytest.mark.parametrize(("cell", "family", "degree"), FAMILIES)
def test_a_signature_survives_json_and_rebuilds_the_space(cell, family, degree):
    V = space(cell, family, degree)
    s = fem.signature(V)
    again = SpaceSignature.from_json(json.loads(json.dumps(s.to_json())))
    assert again == s
    assert fem.signature(fem.space_from_element(fem.mesh_of(V), again.element)) == s


def test_a_signature_tells_meshes_elements_and_geometry_apart():
    mesh = UnitSquareMesh(3, 3)
    V = FunctionSpace(mesh, "CG", 1)
    s = fem.signature(V)
    assert fem.signature(FunctionSpace(UnitSquareMesh(3, 3), "CG", 1)) == s
    assert fem.signature(FunctionSpace(mesh, "CG", 2)) != s
    assert fem.signature(FunctionSpace(mesh, "CG", 1, variant="equispaced")) != s
    assert fem.signature(FunctionSpace(UnitSquareMesh(3, 3, diagonal="right"), "CG", 1)) != s
    mesh.coordinates.dat.data[0] += 1e-3
    assert fem.signature(V) != s
    assert fem.signature(V).same_element(s)


def test_symmetric_tensors_and_cofunctions():
    mesh = mesh_of_cells("triangle")
    S = TensorFunctionSpace(mesh, "DG", 1, symmetry=True)
    s = fem.signature(S)
    assert s.dim == 3 * 3 * mesh.num_cells()
    assert fem.space_from_element(mesh, json.loads(json.dumps(s.element))) == S
    V = space("triangle", "Taylor-Hood", 2)
    load = assemble(inner(random_function(V), TestFunction(V)) * dx)
    again = fem.to_function(fem.to_tensor(load), V.dual())
    assert isinstance(again, Cofunction)
    for a, b in zip(load.subfunctions, again.subfunctions, strict=True):
        np.testing.assert_array_equal(a.dat.data_ro, b.dat.data_ro)


def test_tensors_do_not_alias_functions():
    V = space("triangle", "CG", 1)
    f = Function(V)
    x = fem.to_tensor(f)
    f.assign(1.0)
    assert x.abs().max() == 0
    g = fem.to_function(x, V)
    x += 1
    assert abs(g.dat.data_ro).max() == 0


def test_a_single_precision_tensor_that_needs_a_gradient_becomes_a_function():
    V = space("triangle", "CG", 1)
    f = random_function(V)
    x = fem.to_tensor(f, dtype=torch.float32).requires_grad_()
    assert x.dtype == torch.float32
    g = fem.to_function(x, V)
    np.testing.assert_allclose(g.dat.data_ro, f.dat.data_ro, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda V: fem.to_tensor(1.0), TypeError, "Expected a Function or a sequence.*got float"),
        (lambda V: fem.to_tensor([]), ValueError, "at least one function"),
        (lambda V: fem.to_tensor([Function(V), 3]), TypeError, "found a int"),
        (
            lambda V: fem.to_tensor([Function(V), Function(FunctionSpace(V.mesh(), "CG", 2))]),
            ValueError,
            "live in one space",
        ),
        (lambda V: fem.to_function(np.zeros(V.dim()), V), TypeError, "got ndarray"),
        (
            lambda V: fem.to_function(torch.zeros(V.dim(), dtype=torch.int64), V),
            TypeError,
            "got torch.int64",
        ),
        (lambda V: fem.to_function(torch.zeros(3), V), ValueError, r"shape \(3,\) for CG 1 with"),
        (lambda V: fem.space_on(V, None), TypeError, "Firedrake mesh, got NoneType"),
        (
            lambda V: fem.space_on(V, mesh_of_cells("quadrilateral")),
            ValueError,
            "mesh of triangle cells, this mesh has quadrilateral",
        ),
        (lambda V: SpaceSignature.from_json({"dim": 3}), ValueError, "fields .* got"),
    ],
)
def test_wrong_calls_say_what_was_given(call, error, message):
    with pytest.raises(error, match=message):
        call(space("triangle", "CG", 1))
