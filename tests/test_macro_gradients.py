"""Gradients through macroscopic problems: Taylor remainders, differences, closed forms."""

import numpy as np
import pytest
import torch
from firedrake import (
    DirichletBC,
    Function,
    SpatialCoordinate,
    TestFunction,
    UnitSquareMesh,
    as_vector,
    assemble,
    ds,
    dx,
    inner,
    sin,
)
from firedrake.adjoint import (
    Control,
    ReducedFunctional,
    Tape,
    continue_annotation,
    pause_annotation,
    set_working_tape,
)
from small_rve import small_mesh
from test_macro import halves, square

from fe_ol.macro import ArcLength, MacroProblem, problem_space
from fe_ol.macro.parameters import Parameters
from fe_ol.materials import (
    J2Plasticity,
    LinearElastic,
    NeoHookean,
    NonlinearElastic,
    PlaneStress,
    Response,
)
from fe_ol.rve import RVE
from fe_ol.surrogates import BlackBox
from fe_ol.surrogates.branch import Architecture, Branch
from spon.fem import fem_operator


def leaf(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def tape():
    with set_working_tape(Tape()) as tape:
        continue_annotation()
        yield tape
        pause_annotation()


class Loaded:
    """A body with everything that a gradient may be taken by."""

    def __init__(self, finite=False):
        mesh = halves(square(4))
        self.space = V = problem_space(mesh)
        x = SpatialCoordinate(mesh)
        if finite:
            laws = {1: NeoHookean(leaf(1.0), leaf(2.0)), 2: NeoHookean(3.0, leaf(1.0))}
        else:
            soft = NonlinearElastic(leaf(2.0), leaf(0.1), leaf(0.05))
            laws = {1: soft, 2: LinearElastic(leaf(2.0), 1.0)}
        self.load = Function(V).interpolate(as_vector([0.02 * x[1], -0.05 + 0.01 * x[0]]))
        self.pull = Function(V).interpolate(as_vector([0.03 + 0.01 * sin(x[1]), 0.01 * x[1]]))
        self.kept = Function(V.sub(1)).interpolate(0.01 * x[0])
        bcs = [DirichletBC(V, 0, 1), DirichletBC(V, self.pull, 2)]
        self.problem = MacroProblem(
            V,
            laws,
            bcs=bcs,
            loads=inner(self.load, TestFunction(V)) * dx,
            constant_bcs=DirichletBC(V.sub(1), self.kept, 3),
            tolerance=1e-12,
        )

    def functional(self):
        result = self.problem.solve([0.5, 1.0], progress=False)
        u, half = result.displacement, result[0].displacement
        return assemble(100 * inner(u, u) ** 2 * dx + half[0] ** 2 * ds(4) + u[1] * dx)


@pytest.mark.parametrize("finite", [False, True], ids=["small", "finite"])
@pytest.mark.parametrize("what", ["load", "pull", "kept", "parameters"])
def test_taylor_remainders(tape, what, finite):
    body = Loaded(finite)
    reduced_to = body.functional()
    control = body.problem.parameters.function if what == "parameters" else getattr(body, what)
    at = control.copy(deepcopy=True)
    h = control.copy(deepcopy=True)
    rng = np.random.default_rng(1)
    size = 0.1 * np.abs(at.dat.data_ro)
    size = size if what == "parameters" else size.max()
    h.dat.data_wo[...] = size * rng.uniform(-1, 1, at.dat.data_ro.shape)
    reduced = ReducedFunctional(reduced_to, Control(control))
    pause_annotation()
    before = body.problem.parameters.weights()
    found = remainders(reduced, at, h)
    assert found[0] > 0.9 and found[1] > 1.95, found
    # What the materials hold is not touched by replays.
    assert torch.equal(body.problem.parameters.weights(), before)


def remainders(reduced, at, h):
    """Orders of the remainders without and with the gradient."""
    value = reduced(at)
    slope = float(
        reduced.derivative(apply_riesz=False).dat.data_ro.reshape(-1) @ h.dat.data_ro.reshape(-1)
    )
    assert slope != 0
    without, with_gradient = [], []
    for k in range(1, 4):
        moved = at.copy(deepcopy=True)
        moved.dat.data_wo[...] += 0.5**k * h.dat.data_ro
        change = reduced(moved) - value
        without.append(abs(change))
        with_gradient.append(abs(change - 0.5**k * slope))
    reduced(at)
    return [min(np.log2(np.array(r[:-1]) / r[1:])) for r in (without, with_gradient)]


def test_a_stiffness_in_closed_form(tape):
    """A bar under a pull: u = F L / E, so du/dE = -u / E."""
    E, nu = 10.0, 0.3
    law = LinearElastic(K=leaf(E / (3 * (1 - 2 * nu))), G=leaf(E / (2 * (1 + nu))))
    V = problem_space(UnitSquareMesh(2, 2))
    bcs = [DirichletBC(V.sub(0), 0, 1), DirichletBC(V.sub(1), 0, 3)]
    problem = MacroProblem(V, PlaneStress(law), bcs=bcs, tractions={2: (0.1, 0.0)})
    assert problem.parameters.names == ["PlaneStress.law.K", "PlaneStress.law.G"]
    u = problem.solve(1, progress=False).displacement
    end = assemble(u[0] * ds(2))
    assert abs(end - 0.1 / E) < 1e-12
    gradient = ReducedFunctional(end, Control(problem.parameters.function)).derivative()
    # Along K and G in proportion Young's modulus moves alone.
    along = float(gradient.dat.data_ro @ problem.parameters.weights().numpy())
    assert abs(along + end) < 1e-10


def test_torch_backward():
    """The torch door: Taylor remainders by one parameter tensor after the other."""
    V = problem_space(square(3))
    factor = leaf([1.0, 1.0, 1.0])

    class Scaled:
        """A law whose parameters are one tensor."""

        dim, finite, history = None, False, False

        def __init__(self):
            self.factor = factor

        def __call__(self, strain, state=None):
            a, b, c = self.factor
            return NonlinearElastic(K=2.0 * a, a1=0.1 * b, a2=0.05 * c)(strain)

    problem = MacroProblem(
        V, Scaled(), DirichletBC(V, 0, 1), tractions={2: (0.02, 0.01)}, tolerance=1e-12
    )
    weight = torch.linspace(0, 1, V.dim(), dtype=torch.float64)
    u = problem.solve_torch(2)
    ((u * weight).sum() + 10 * u.square().sum()).backward()
    for k in range(3):
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                factor[k] += step
                v = problem.solve_torch(2)
                values.append(float((v * weight).sum() + 10 * v.square().sum()))
                factor[k] -= step
        slope = (values[0] - values[1]) / 2e-5
        assert abs(slope - float(factor.grad[k])) < 1e-7 * abs(slope) + 1e-9
    # What was changed in between would give the gradient of another problem.
    u = problem.solve_torch(1)
    with torch.no_grad():
        factor += 0.1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        u.sum().backward()


def test_the_tape_in_torch(tape):
    """Through spon's operator for tapes: a batch of loads, each with its gradient."""
    body = Loaded()
    value = body.functional()
    operator = fem_operator(ReducedFunctional(value, Control(body.load)))
    pause_annotation()
    x = torch.from_numpy(body.load.dat.data_ro.reshape(1, -1).copy())
    batch = torch.cat([x, 0.5 * x]).requires_grad_()
    values = operator(batch).reshape(-1)
    assert abs(float(values[0].detach()) - float(value)) < 1e-9 * abs(float(value))
    (gradient,) = torch.autograd.grad(values.sum(), batch)
    assert float((gradient[0] - gradient[1]).abs().max()) > 1e-3 * float(gradient.abs().max())
    direction = torch.cos(torch.arange(x.numel(), dtype=torch.float64)) * x.abs().max()
    for k in range(2):
        h, ends = 1e-3 * direction, []
        with torch.no_grad():
            for sign in (1, -1):
                ends.append(float(operator((batch[k] + sign * h)[None])))
        slope = float(gradient[k] @ h)
        assert abs((ends[0] - ends[1]) / 2 - slope) < 1e-5 * abs(slope)


class Replaced:
    """A material that brings its own derivative by its parameter."""

    dim, finite, history = None, False, False

    def __init__(self):
        self.stiffness = leaf(2.0)

    def __call__(self, strain, state=None):
        response = LinearElastic(K=1.0, G=1.0)(strain)
        k = float(self.stiffness.detach())
        return Response(k * response.stress.detach(), k * response.tangent.detach())


def test_materials_that_torch_cannot_follow(tape):
    V = problem_space(square(2))
    material = Replaced()
    problem = MacroProblem(V, material, DirichletBC(V, 0, 1), tractions={2: (0.02, 0.01)})
    u = problem.solve(1, progress=False).displacement
    value = assemble(inner(u, u) * dx)
    reduced = ReducedFunctional(value, Control(problem.parameters.function))
    with pytest.raises(NotImplementedError, match=r"Replaced does not follow .*pull_back"):
        reduced.derivative()

    def pull_back(strain, seed, tensors):
        assert tensors[0] is material.stiffness

        return [(seed * LinearElastic(K=1.0, G=1.0)(strain).stress).sum()]

    material.pull_back = pull_back
    # A linear body: the displacement is the inverse of the stiffness.
    assert abs(float(reduced.derivative().dat.data_ro[0]) + 2 * value / 2.0) < 1e-10 * value


def test_a_stiffness_inside_of_a_cell(tape):
    """Through nested solves, as in an identification of the fibre's stiffness."""
    laws = {1: NonlinearElastic(4.0, 0.2, leaf(0.05)), 2: LinearElastic(K=40.0, G=leaf(30.0))}
    rve = RVE(small_mesh(4), laws)
    V = problem_space(UnitSquareMesh(1, 1), 1)
    problem = MacroProblem(
        V, rve, DirichletBC(V, 0, 1), tractions={2: (0.02, 0.05)}, tolerance=1e-12
    )
    u = problem.solve(1, progress=False).displacement
    value = assemble(inner(u, u) * dx)
    control = problem.parameters.function
    assert [n.rsplit(".", 1)[1] for n in problem.parameters.names] == ["a2", "G"]
    reduced = ReducedFunctional(value, Control(control))
    pause_annotation()
    at, h = control.copy(deepcopy=True), control.copy(deepcopy=True)
    h.dat.data_wo[...] *= [0.2, -0.3]
    found = remainders(reduced, at, h)
    assert found[0] > 0.9 and found[1] > 1.95, found


def test_weights_of_a_surrogate():
    """By torch, with networks in the state of their birth."""
    slope = LinearElastic(K=2.0, G=1.0)([0.0, 0.0, 0.0]).tangent
    network = Branch(
        Architecture(width=5, depth=2),
        torch.zeros(3).double(),
        0.05,
        slope,
        0.01 * torch.ones(3).double(),
    )
    surrogate = BlackBox(network, {"dim": 2, "finite": False}, 0.05)
    V = problem_space(square(2))
    problem = MacroProblem(
        V, surrogate, DirichletBC(V, 0, 1), tractions={2: (0.02, 0.05)}, tolerance=1e-12
    )
    assert len(problem.parameters) == sum(p.numel() for p in network.parameters())
    problem.solve_torch(2).square().sum().backward()
    gradient = torch.cat([t.grad.reshape(-1) for t in problem.parameters.tensors])
    at, ends = problem.parameters.weights(), []
    direction = torch.randn(len(at), generator=torch.Generator().manual_seed(0)).double()
    for step in (1e-4, -1e-4):
        problem.parameters.set_weights(at + step * direction)
        ends.append(float(problem.solve_torch(2).detach().square().sum()))
    slope = float(gradient @ direction)
    assert abs((ends[0] - ends[1]) / 2e-4 - slope) < 1e-5 * abs(slope)


def test_what_the_tape_cannot_follow(tape):
    V = problem_space(square(2))
    law = J2Plasticity(K=100.0, G=50.0, yield_stress=1.0, hardening=10.0)
    problem = MacroProblem(V, law, DirichletBC(V, 0, 1), tractions={2: (0.02, 0.01)})
    with pytest.raises(NotImplementedError, match=r"history \(J2Plasticity\).*annotate=False"):
        problem.solve(1, progress=False)
    problem.solve(1, progress=False, annotate=False)
    with pytest.raises(NotImplementedError, match="history"):
        problem.solve_torch(1)
    elastic = MacroProblem(
        V, LinearElastic(1.0, 1.0), DirichletBC(V, 0, 1), tractions={2: (0.02, 0.01)}
    )
    with pytest.raises(NotImplementedError, match="arc-length"):
        elastic.solve(arc_length=ArcLength(), progress=False)
    with pytest.raises(ValueError, match="No material has trainable parameters"):
        _ = elastic.parameters.function


def test_parameters_are_found_once():
    shared = leaf(1.0)
    laws = [LinearElastic(K=shared, G=leaf(2.0)), LinearElastic(K=shared, G=3.0)]
    found = Parameters(laws)
    assert len(found) == 2 and found.tensors[0] is shared
    with pytest.raises(TypeError, match="float32"):
        Parameters([LinearElastic(K=torch.tensor(1.0, requires_grad=True), G=1.0)])
    with pytest.raises(TypeError, match="computed from other tensors"):
        Parameters([LinearElastic(K=2 * shared, G=1.0)])
