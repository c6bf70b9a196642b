"""What a macroscopic problem refuses, and what it says."""

import numpy as np
import pytest
import torch
from firedrake import (
    Constant,
    DirichletBC,
    FunctionSpace,
    IntervalMesh,
    TestFunction,
    TrialFunction,
    UnitCubeMesh,
    UnitSquareMesh,
    VectorFunctionSpace,
    as_vector,
    ds,
    dx,
    inner,
)
from test_macro import halves

from fe_ol.macro import ArcLength, LoadStepError, MacroProblem, problem_space
from fe_ol.materials import LinearElastic, NeoHookean, PlaneStress, Response

LAW = LinearElastic(K=2.0, G=1.0)
MESH = UnitSquareMesh(2, 2)
SPACE = problem_space(MESH)
CLAMP = DirichletBC(SPACE, 0, 1)


class Broken:
    """A law whose answer is spoiled."""

    dim, finite, history = 2, False, False

    def __init__(self, spoil):
        self.spoil = spoil

    def __call__(self, strain, state=None):
        return self.spoil(LAW(strain))


def problem(material=LAW, bcs=CLAMP, **options):
    return MacroProblem(SPACE, material, bcs, **options)


def test_the_mesh_and_the_space():
    with pytest.raises(TypeError, match="takes a Firedrake mesh or FunctionSpace, got str"):
        MacroProblem("mesh", LAW, CLAMP)
    with pytest.raises(ValueError, match=r"lives in 2 or 3 dimensions, this mesh .* dimension 1"):
        MacroProblem(IntervalMesh(2, 1.0), LAW, ())
    for V in (FunctionSpace(MESH, "CG", 1), VectorFunctionSpace(MESH, "CG", 1, dim=3)):
        with pytest.raises(ValueError, match="A displacement in 2D has 2 components, functions"):
            MacroProblem(V, LAW, DirichletBC(V, 0, 1))


def test_the_conditions():
    with pytest.raises(ValueError, match=r"No boundary conditions: .*singular"):
        MacroProblem(MESH, LAW)
    with pytest.raises(TypeError, match="bcs takes DirichletBCs, got Form: forces are loads="):
        problem(bcs=[inner(Constant((1.0, 0.0)), TestFunction(SPACE)) * ds(2)])
    other = VectorFunctionSpace(MESH, "CG", 1)
    with pytest.raises(ValueError, match="belongs to another space than the displacement"):
        problem(bcs=DirichletBC(other, 0, 1))


def test_the_loads():
    v, w = TestFunction(SPACE), TrialFunction(SPACE)
    with pytest.raises(TypeError, match="a form with 2 arguments"):
        problem(loads=inner(v, w) * dx)
    with pytest.raises(TypeError, match=r"got ListTensor\. Expressions go to tractions="):
        problem(loads=as_vector([1.0, 0.0]))
    with pytest.raises(ValueError, match="test function of a load belongs to another space"):
        problem(loads=TestFunction(VectorFunctionSpace(MESH, "CG", 1))[0] * dx)
    with pytest.raises(ValueError, match=r"tractions\[2\] has the shape \(3,\), expected \(2,\)"):
        problem(tractions={2: (0, 1, 2)})


def test_the_material():
    with pytest.raises(TypeError, match=r"attributes dim, finite and history .*; float has not"):
        problem(3.0)
    solid = UnitCubeMesh(1, 1, 1)
    with pytest.raises(ValueError, match="PlaneStress has 2 dimensions, the mesh has 3"):
        MacroProblem(solid, PlaneStress(LAW), DirichletBC(problem_space(solid), 0, 1))
    with pytest.raises(ValueError, match="NeoHookean is of finite strains"):
        problem({1: LAW, 2: NeoHookean(1.0, 1.0)})
    with pytest.raises(ValueError, match="material is empty"):
        problem({})
    with pytest.raises(ValueError, match="No cell of the mesh has the tag 7"):
        problem({7: LAW})


def test_cells_without_a_material():
    mesh = halves(UnitSquareMesh(2, 2))
    V = problem_space(mesh)
    with pytest.raises(ValueError, match=r"12 of 24 quadrature points .* cell tags \[1\]"):
        MacroProblem(V, {1: LAW}, DirichletBC(V, 0, 1))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: Response(r.stress, None), "answered without a tangent.*\\(24, 3, 3\\)"),
        (
            lambda r: Response(r.stress, r.tangent[:, :2]),
            r"a tangent torch.float64 of shape \(24, 2, 3\), expected .*\(24, 3, 3\)",
        ),
        (lambda r: Response(r.stress.float(), r.tangent), "a stress torch.float32"),
        (lambda r: Response(r.stress.numpy(), r.tangent), "a stress <class 'numpy.ndarray'>"),
    ],
)
def test_wrong_answers(spoil, message):
    with pytest.raises(ValueError, match=message):
        problem(Broken(spoil), tractions={2: (0.1, 0)}).solve(1, progress=False)


def test_nan_from_a_material():
    """It is counted, steps are cut back, and at last the reason is told."""

    def spoil(response):
        stress = response.stress.clone()
        stress[5:8] = torch.nan
        return Response(stress, response.tangent)

    calls = problem(Broken(spoil), tractions={2: (0.1, 0)}, max_cutbacks=2)
    with pytest.raises(LoadStepError, match="NaN or infinity at 3 of 24 points, the first for the"):
        calls.solve(1, progress=False)
    assert calls.points.calls == 3
    assert np.abs(calls.displacement.dat.data_ro).max() == 0


def test_errors_of_a_material_are_not_hidden():
    """What no smaller step can mend comes through as it was raised."""

    class Wrong(Broken):
        def __call__(self, strain, state=None):
            raise KeyError("a mistake in the law")

    with pytest.raises(KeyError, match="a mistake in the law"):
        problem(Wrong(None), tractions={2: (0.1, 0)}).solve(1, progress=False)


def test_a_body_that_is_not_held():
    """Only one component at one side: the other is free."""
    with pytest.raises(LoadStepError, match=r"the linear solver failed|Newton's method ended"):
        problem(bcs=DirichletBC(SPACE.sub(0), 0, 1), tractions={2: (0, 0.1)}, max_cutbacks=1).solve(
            1, progress=False
        )


def test_options():
    with pytest.raises(ValueError, match="0 < tolerance < 1"):
        problem(tolerance=0.0)
    held = problem(tractions={2: (0.1, 0)})
    for steps, message in (
        (0, "at least 1"),
        ([], "number of steps or a sequence"),
        ("ten", "number of steps or a sequence"),
        ([0.1, np.nan], "number of steps or a sequence"),
    ):
        with pytest.raises(ValueError, match=message):
            held.solve(steps, progress=False)
    with pytest.raises(ValueError, match="first != 0"):
        ArcLength(first=0.0)
    with pytest.raises(ValueError, match="steps >= 1"):
        ArcLength(steps=0)
    with pytest.raises(LoadStepError, match="no load and no condition is scaled"):
        problem().solve(arc_length=ArcLength(), progress=False)
    with pytest.raises(KeyError, match=r"only those at \[1\]: ask for it with .*reactions=\[2\]"):
        held.solve(1, progress=False).reactions(2)


def test_progress_can_be_seen(capsys):
    problem(tractions={2: (0.1, 0)}).solve(2, progress=True)
    assert "load steps: 100%" in capsys.readouterr().err
