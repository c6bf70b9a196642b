"""Macroscopic problems against patch tests, Firedrake's own solves, and closed forms."""

from functools import cache

import numpy as np
import pytest
import torch
from dense_rve import DenseRVE
from firedrake import (
    DirichletBC,
    Function,
    FunctionSpace,
    Identity,
    NonlinearVariationalProblem,
    NonlinearVariationalSolver,
    PeriodicUnitSquareMesh,
    RelabeledMesh,
    SpatialCoordinate,
    TestFunction,
    TrialFunction,
    UnitCubeMesh,
    UnitSquareMesh,
    VectorFunctionSpace,
    as_vector,
    assemble,
    conditional,
    derivative,
    div,
    ds,
    dx,
    errornorm,
    grad,
    inner,
    norm,
    sin,
    solve,
    sym,
)

from fe_ol.macro import ArcLength, MacroProblem, problem_space
from fe_ol.macro.fields import von_mises
from fe_ol.materials import (
    J2Plasticity,
    LinearElastic,
    NeoHookean,
    NonlinearElastic,
    PlaneStress,
    Response,
)
from fe_ol.voigt import pairs

ELASTIC, SATURATING = LinearElastic(K=2.0, G=1.0), NonlinearElastic(K=2.0, a1=0.1, a2=0.05)
RUBBER = NeoHookean(mu=1.0, lam=2.0)


@cache
def square(n=4, quadrilateral=False):
    """A square whose inner vertices are moved, so that no two cells are alike."""
    mesh = UnitSquareMesh(n, n, quadrilateral=quadrilateral)
    return moved(mesh)


@cache
def cube():
    return moved(UnitCubeMesh(2, 2, 2))


def moved(mesh):
    x = mesh.coordinates.dat.data
    inside = ((x > 1e-9) & (x < 1 - 1e-9)).all(1)
    x[inside] += np.random.default_rng(0).uniform(-0.05, 0.05, x.shape)[inside]
    return mesh


def halves(mesh):
    """The tags 1 and 2 in the left and the right half."""
    D = FunctionSpace(mesh, "DG", 0)
    left = Function(D).interpolate(conditional(SpatialCoordinate(mesh)[0] < 0.5, 1.0, 0.0))
    return RelabeledMesh(mesh, [left, Function(D).interpolate(1 - left)], [1, 2])


def difference(f, g):
    """Relative, in L2."""
    return errornorm(f, g) / norm(f)


def firedrake_solution(energy, V, bcs, load=None, factors=(1.0,), scaled=None):
    """Minimiser of an energy by Firedrake's own solver; `scaled(t)` gives the conditions at t."""
    u = Function(V)
    F = derivative(energy(u), u)
    for t in factors:
        residual = F if load is None else F - t * load
        problem = NonlinearVariationalProblem(residual, u, bcs if scaled is None else scaled(t))
        options = {"snes_rtol": 1e-14, "snes_atol": 1e-14, "snes_linesearch_type": "basic"}
        NonlinearVariationalSolver(problem, solver_parameters=options).solve()
    return u


@pytest.mark.parametrize("law", [ELASTIC, SATURATING, RUBBER], ids=lambda law: type(law).__name__)
@pytest.mark.parametrize(
    "mesh", [square, lambda: square(3, True), cube], ids=["tri", "quad", "tet"]
)
def test_patch(law, mesh):
    """Linear boundary values give a linear displacement, and the stress of that strain."""
    mesh = mesh()
    d = mesh.geometric_dimension
    gradient = 0.1 * np.array([[0.3, 0.7, -0.4], [-0.2, 0.5, 0.1], [0.6, -0.3, -0.2]])[:d, :d]
    V = problem_space(mesh, 2 if d == 2 else 1)
    x = SpatialCoordinate(mesh)
    exact = as_vector([sum(gradient[i, j] * x[j] for j in range(d)) for i in range(d)])
    problem = MacroProblem(V, law, bcs=DirichletBC(V, exact, "on_boundary"), tolerance=1e-12)
    result = problem.solve(2, progress=False)
    assert difference(Function(V).interpolate(exact), result.displacement) < 1e-12
    if law.finite:
        strain = [gradient[i, j] + (i == j) for i, j in pairs(d, True)]
    else:
        strain = [gradient[i, j] + (i != j) * gradient[j, i] for i, j in pairs(d)]
    expected = law(strain).stress.numpy()
    scale = np.abs(expected).max()
    assert np.abs(problem.strain().dat.data_ro - strain).max() < 1e-12
    assert np.abs(problem.stress().dat.data_ro - expected).max() < 1e-11 * scale
    # All dofs of degree 1 and 2 on the boundary would leave nothing to solve for.
    assert (~problem.system.conditions.fixed).sum() >= 2


def test_linear_elasticity_equals_firedrake():
    """Two materials, loads of all kinds, and conditions on one component."""
    mesh = halves(square(4))
    V = problem_space(mesh)
    laws = {1: ELASTIC, 2: LinearElastic(K=20.0, G=5.0)}
    x, v = SpatialCoordinate(mesh), TestFunction(V)
    bcs = [DirichletBC(V, as_vector([0, 0.1 * x[1]]), 1), DirichletBC(V.sub(1), 0.05, 3)]
    kept = DirichletBC(V.sub(0), 0.02, 2)
    traction, weight = as_vector([0.1 * x[0], -0.2]), as_vector([0.0, -0.3])
    problem = MacroProblem(
        V,
        laws,
        bcs=bcs,
        tractions={4: traction},
        body_force=(0, -0.3),
        loads=inner(as_vector([x[1], 0]), v) * ds(4),
        constant_bcs=kept,
        constant_loads=0.1 * v[0] * dx,
    )
    result = problem.solve([0.5, 1.0], progress=False)
    u, w = Function(V), TrialFunction(V)
    a = sum(
        inner(law.ufl_stress(sym(grad(w))), sym(grad(v))) * dx(tag) for tag, law in laws.items()
    )
    L = inner(traction + as_vector([x[1], 0]), v) * ds(4) + inner(weight, v) * dx + 0.1 * v[0] * dx
    solve(a == L, u, [*bcs, kept])
    assert difference(u, result.displacement) < 1e-10
    assert result.iterations[0] == 1
    # At half the factor everything but the constant part is half.
    half = Function(V)
    L_half = 0.5 * (L - 0.1 * v[0] * dx) + 0.1 * v[0] * dx
    halved = [
        DirichletBC(V, as_vector([0, 0.05 * x[1]]), 1),
        DirichletBC(V.sub(1), 0.025, 3),
        kept,
    ]
    solve(a == L_half, half, halved)
    assert difference(half, result[0].displacement) < 1e-10


def test_hexahedra():
    """Where Firedrake has no quadrature elements."""
    V = problem_space(UnitCubeMesh(2, 2, 2, hexahedral=True), 1)
    clamped, pull = DirichletBC(V, 0, 1), (0.1, 0.05, 0.0)
    problem = MacroProblem(V, ELASTIC, bcs=clamped, tractions={2: pull}, tolerance=1e-12)
    result = problem.solve(1, progress=False)
    load = inner(as_vector(pull), TestFunction(V)) * ds(2)
    measure = dx(degree=problem.system.degree)
    u = firedrake_solution(lambda u: ELASTIC.ufl_energy(sym(grad(u))) * measure, V, clamped, load)
    assert difference(u, result.displacement) < 1e-10
    assert float(problem.system.weights.sum()) == pytest.approx(1.0, rel=1e-13)


def test_neo_hookean_equals_firedrake():
    """Stretched and sheared by half its length: the energy's minimiser."""
    V = problem_space(square(4))
    clamped = DirichletBC(V, 0, 1)
    problem = MacroProblem(V, RUBBER, bcs=[clamped, DirichletBC(V, (0.5, 0.2), 2)], tolerance=1e-12)
    result = problem.solve(5, progress=False)
    u = firedrake_solution(
        lambda u: RUBBER.ufl_energy(Identity(2) + grad(u)) * dx(degree=problem.system.degree),
        V,
        None,
        factors=np.arange(1, 31) / 30,
        scaled=lambda t: [clamped, DirichletBC(V, (0.5 * t, 0.2 * t), 2)],
    )
    assert difference(u, result.displacement) < 1e-9
    assert all(1.8 < step.order < 2.6 for step in result.steps if np.isfinite(step.order))
    assert any(np.isfinite(step.order) for step in result.steps)
    assert "residuals" in str(result) and len(str(result).splitlines()) == 6


def test_neo_hookean_in_space_with_a_line_search():
    """In three dimensions, with dead loads."""
    V = problem_space(cube(), 1)
    v = TestFunction(V)
    load = inner(as_vector([0.1, 0.05, -0.1]), v) * ds(2)
    clamped = DirichletBC(V, 0, 1)
    problem = MacroProblem(
        V, RUBBER, bcs=clamped, loads=load, line_search="bt", tolerance=1e-12, quadrature_degree=2
    )
    result = problem.solve(1, progress=False)
    u = firedrake_solution(
        lambda u: RUBBER.ufl_energy(Identity(3) + grad(u)) * dx(degree=2), V, clamped, load
    )
    assert difference(u, result.displacement) < 1e-9
    # The reaction balances the load.
    assert np.allclose(result[-1].reactions[1], [-0.1, -0.05, 0.1], atol=1e-9)


def test_manufactured_solution_converges():
    """Quadratic elements: third order in L2."""
    errors = []
    for n in (4, 8, 16):
        mesh = UnitSquareMesh(n, n)
        V = problem_space(mesh)
        x, y = SpatialCoordinate(mesh)
        exact = as_vector([0.1 * sin(2 * x + y), 0.1 * sin(x * y)])
        force = -div(RUBBER.ufl_stress(Identity(2) + grad(exact)))
        problem = MacroProblem(
            V, RUBBER, bcs=DirichletBC(V, exact, "on_boundary"), body_force=force
        )
        result = problem.solve(1, progress=False)
        errors.append(errornorm(exact, result.displacement, degree_rise=2))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert orders[-1] > 2.9, (errors, orders)


def uniaxial(E, yield_stress, hardening, strains):
    """Stress in a bar with isotropic hardening, strain by strain."""
    plastic = hardened = 0.0
    stresses = []
    for strain in strains:
        trial = E * (strain - plastic)
        over = abs(trial) - (yield_stress + hardening * hardened)
        if over > 0:
            flow = over / (E + hardening)
            plastic += flow * np.sign(trial)
            hardened += flow
            trial = E * (strain - plastic)
        stresses.append(trial)
    return np.array(stresses)


@pytest.mark.parametrize("dim", [2, 3])
def test_plastic_bar(dim):
    """Loaded, unloaded, compressed: the uniaxial closed form, in space and in plane stress."""
    law = J2Plasticity(K=100.0, G=50.0, yield_stress=1.0, hardening=10.0)
    E = 9 * 100.0 * 50.0 / (3 * 100.0 + 50.0)
    mesh = UnitCubeMesh(1, 1, 1) if dim == 3 else UnitSquareMesh(2, 2)
    V = problem_space(mesh, 1)
    # Faces 1, 3, 5 are those at zero; 2 is the end.
    bcs = [DirichletBC(V.sub(i), 0, 2 * i + 1) for i in range(dim)]
    bcs.append(DirichletBC(V.sub(0), 1.0, 2))
    factors = [0.005, 0.02, 0.04, 0.03, 0.02, -0.03]
    problem = MacroProblem(V, law if dim == 3 else PlaneStress(law), bcs=bcs, tolerance=1e-11)
    result = problem.solve(factors, progress=False)
    expected = uniaxial(E, 1.0, 10.0, factors)
    assert np.abs(result.reactions(2)[:, 0] - expected).max() < 1e-9
    assert abs(expected[-1]) > 1.0 and expected[-1] < 0
    assert np.allclose(problem.von_mises().dat.data_ro, abs(expected[-1]), atol=1e-9)
    # From rest again: the same.
    again = problem.solve(factors, progress=False)
    assert np.allclose(again.reactions(2), result.reactions(2), atol=1e-12)


def test_nested_solves_of_a_homogeneous_cell():
    """FE² with one law everywhere in the cell is that law."""
    cell = halves(PeriodicUnitSquareMesh(3, 3, quadrilateral=True))
    rve = DenseRVE(cell, {1: SATURATING, 2: SATURATING})
    V = problem_space(UnitSquareMesh(1, 1))
    bcs = DirichletBC(V, 0, 1)
    found = [
        MacroProblem(V, m, bcs=bcs, tractions={2: (0.0, -0.02)}, tolerance=1e-11).solve(
            2, progress=False
        )
        for m in (rve, SATURATING)
    ]
    assert difference(found[1].displacement, found[0].displacement) < 1e-8
    assert found[0].iterations == found[1].iterations
    assert found[0].material_seconds > found[0].other_seconds


class Recording:
    """A law that takes down what it is told, and gives a warm start back."""

    dim, finite, history = None, False, False

    def __init__(self, law):
        self.law, self.states, self.converged_at, self.rejections = law, [], [], 0
        self.limit = np.inf

    def __call__(self, strain, state=None):
        self.states.append(state)
        if float(strain.abs().max()) > self.limit:
            raise ArithmeticError("too far")
        response = self.law(strain)
        return Response(response.stress, response.tangent, strain.clone())

    def converged(self, strain, state):
        self.converged_at.append((strain.clone(), state))

    def rejected(self):
        self.rejections += 1


def test_converged_states_are_told_from_trials():
    material = Recording(SATURATING)
    V = problem_space(square(2))
    problem = MacroProblem(V, material, bcs=DirichletBC(V, 0, 1), tractions={2: (0.05, 0.0)})
    result = problem.solve(3, progress=False)
    assert len(material.converged_at) == 3 < len(material.states)
    assert material.rejections == 0
    # The strains at the end are those of the displacement, the state is that of these strains.
    for step, (strain, state) in zip(result.steps, material.converged_at, strict=True):
        x = assemble(sym(grad(step.displacement))[0, 0] * dx)
        assert abs(float(strain[:, 0] @ problem.system.weights) - x) < 1e-12
        assert torch.equal(state, strain)
    # What it gave back comes with the next call.
    assert material.states[0] is None
    assert all(state is not None for state in material.states[1:])


class Switching(Recording):
    """Another law, once a step has converged with the first one."""

    def __init__(self, first, second):
        super().__init__(second)
        self.answers, self.forgotten = first, 0

    def trial(self, strain, state=None):
        response = self.answers(strain)
        return Response(response.stress, response.tangent)

    def review(self, strain, state=None):
        stand = self.answers is self.law
        self.answers = self.law
        return stand

    def forget(self):
        self.forgotten += 1


@pytest.mark.parametrize("arc", [None, ArcLength(first=1.0, steps=1)], ids=["load", "arc"])
def test_a_step_goes_on_where_a_review_changes_the_answers(arc):
    material = Switching(ELASTIC, SATURATING)
    V = problem_space(square(2))
    options = {"bcs": DirichletBC(V, 0, 1), "tractions": {2: (0.05, 0.0)}, "tolerance": 1e-11}
    result = MacroProblem(V, material, **options).solve(1, arc_length=arc, progress=False)
    step = result[-1]
    assert step.attempts[-1].reviews == 1 and material.forgotten == 1
    assert len(material.converged_at) == 1 and not material.states
    # The residual fell, jumped at the review, and fell again.
    jumps = np.diff(np.log10(np.array(step.residuals) + 1e-16)) > 5
    assert jumps.sum() == 1 and step.residuals[-1] < 1e-11
    other = MacroProblem(V, SATURATING, **options).solve([step.factor], progress=False)
    assert difference(other.displacement, result.displacement) < 1e-9


def test_von_mises_against_formulas():
    s = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    xx, yy, zz, yz, xz, xy = s.T
    expected = (
        ((xx - yy) ** 2 + (yy - zz) ** 2 + (zz - xx) ** 2) / 2 + 3 * (yz**2 + xz**2 + xy**2)
    ).sqrt()
    assert torch.allclose(von_mises(s, 3), expected)
    plane = s[:, [0, 1, 5]]
    assert torch.allclose(
        von_mises(plane, 2), (xx**2 - xx * yy + yy**2 + 3 * xy**2).sqrt(), atol=1e-12
    )
    # A rotation after the deformation turns Cauchy's stress and leaves its invariants.
    F = torch.tensor([[1.1, 0.2, 0.0, 0.9]], dtype=torch.float64)
    c, n = np.cos(0.7), np.sin(0.7)
    R = torch.tensor([[c, -n], [n, c]], dtype=torch.float64)
    turned = (R @ F.reshape(2, 2)).reshape(1, 4)
    values = [von_mises(RUBBER(f).stress, 2, f) for f in (F, turned)]
    assert torch.allclose(*values)


def test_fields_and_pictures(tmp_path):
    V = problem_space(square(3, True))
    problem = MacroProblem(V, ELASTIC, bcs=DirichletBC(V, 0, 1), tractions={2: (0.1, 0.0)})
    problem.solve(1, progress=False)
    assert problem.plot(tmp_path / "body.png").stat().st_size > 5000
    assert problem.write_vtk(tmp_path / "body.vtu").stat().st_size > 1000
    text = (tmp_path / "body.vtu").read_bytes()
    for name in (b"displacement", b"von Mises stress", b"s_xy", b"2 E_xy"):
        assert name in text
    # The integral of the stress times the strain is twice the energy, that is the load's work.
    stress, strain = problem.stress(), problem.strain()
    inside = (stress.dat.data_ro * strain.dat.data_ro).sum(1) @ problem.system.weights.numpy()
    work = assemble(0.1 * problem.displacement[0] * ds(2))
    assert abs(inside - work) < 1e-10 * work


@pytest.mark.parametrize("element", [("CG", 1), ("CG", 3), ("S", 2)])
def test_other_elements(element):
    """A space of the user's."""
    family, degree = element
    mesh = UnitSquareMesh(3, 3, quadrilateral=family == "S")
    V = VectorFunctionSpace(mesh, family, degree)
    v, w, u = TestFunction(V), TrialFunction(V), Function(V)
    bcs, load = DirichletBC(V, 0, 1), 0.1 * v[1] * ds(2)
    result = MacroProblem(V, ELASTIC, bcs=bcs, loads=load).solve(1, progress=False)
    solve(inner(ELASTIC.ufl_stress(sym(grad(w))), sym(grad(v))) * dx == load, u, bcs)
    assert difference(u, result.displacement) < 1e-10
