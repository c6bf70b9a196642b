"""Steps that fail, steps along the arc, files to resume from, several processes."""

import gc
import json
from functools import cache

import numpy as np
import pytest
import torch
from firedrake import (
    DirichletBC,
    Identity,
    RectangleMesh,
    TestFunction,
    UnitSquareMesh,
    assemble,
    derivative,
    ds,
    dx,
    errornorm,
    grad,
    norm,
)
from firedrake.petsc import PETSc
from processes import run_script
from test_macro import RUBBER, SATURATING, Recording, square

from fe_ol.macro import (
    ArcLength,
    LoadStepError,
    MacroFileError,
    MacroProblem,
    problem_space,
)
from fe_ol.materials import J2Plasticity, LinearElastic, NeoHookean, NonlinearElastic

ARCH = NeoHookean.from_young(1.0, 0.3)
PLASTIC = J2Plasticity(K=100.0, G=50.0, yield_stress=1.0, hardening=10.0)


def difference(f, g):
    return errornorm(f, g) / norm(f)


PRESSED = UnitSquareMesh(3, 3, quadrilateral=True)


def compressed(steps, **options):
    """A block pressed to less than a third of its height between plates that hold it."""
    V = problem_space(PRESSED)
    bcs = [DirichletBC(V, 0, 3), DirichletBC(V, (0, -0.7), 4)]
    problem = MacroProblem(V, RUBBER, bcs=bcs, tolerance=1e-11, **options)
    return problem, problem.solve(steps, progress=False)


def test_cut_back_and_growth():
    """One step is too much; cut back it ends where many steps end."""
    _, result = compressed(1)
    step = result[-1]
    assert step.cutbacks >= 1
    assert "NaN" in next(a.reason for a in step.attempts if not a.converged)
    sizes = np.diff([0.0, *(a.factor for a in step.attempts if a.converged)])
    assert abs(sizes.sum() - 1) < 1e-12
    assert sizes[1] > 1.5 * sizes[0] or step.attempts[-1].factor == 1.0
    _, many = compressed(12)
    assert many.cutbacks == 0
    assert difference(many.displacement, result.displacement) < 1e-9


def test_growth_after_trouble():
    """A material that fails for strains far from the last converged ones."""

    class Cautious(Recording):
        def __call__(self, strain, state=None):
            last = self.converged_at[-1][0] if self.converged_at else torch.zeros_like(strain)
            # At the beginning it is more easily frightened.
            limit = 0.004 if len(self.converged_at) < 3 else 0.1
            if float((strain - last).abs().max()) > limit:
                raise ArithmeticError("too far")
            return super().__call__(strain, state)

    material = Cautious(LinearElastic(K=2.0, G=1.0))
    V = problem_space(square(2))
    bcs = [DirichletBC(V.sub(0), 0, 1), DirichletBC(V.sub(1), 0, 3), DirichletBC(V.sub(0), 0.04, 2)]
    problem = MacroProblem(V, material, bcs=bcs)
    step = problem.solve(1, progress=False)[-1]
    assert material.rejections == step.cutbacks >= 4
    sizes = np.diff([0.0, *(a.factor for a in step.attempts if a.converged)])
    assert sizes[0] <= 1 / 16 and sizes.max() >= 1 / 4
    assert len(material.converged_at) == len(sizes)
    assert all("too far" in a.reason for a in step.attempts if not a.converged)


def test_a_step_that_cannot_be_taken():
    material = Recording(SATURATING)
    material.limit = 0.01
    V = problem_space(square(2))
    problem = MacroProblem(V, material, bcs=[DirichletBC(V, 0, 1), DirichletBC(V, (0.1, 0), 2)])
    with pytest.raises(LoadStepError, match=r"Load step 2: .*too far.*smaller steps") as caught:
        problem.solve([0.01, 1.0], progress=False)
    assert len(caught.value.result) == 1
    # The body is where the last part that converged left it.
    last = material.converged_at[-1][0]
    assert torch.allclose(problem.system.strains(), last, atol=1e-14)


def test_callbacks_outlive_garbage_from_a_failure(monkeypatch):
    """Tracebacks that refer to themselves hold the solver that PETSc passes to its callbacks."""

    class Older(PETSc.SNES):
        def setFunction(self, *args, **kargs):
            gc.collect(0)  # the solver is of an older generation than its callbacks
            super().setFunction(*args, **kargs)

    class Tangled(Recording):
        def __call__(self, strain, state=None):
            try:
                return super().__call__(strain, state)
            except ArithmeticError as caught:
                error = caught  # noqa: F841
                raise

        def rejected(self):
            super().rejected()
            if self.rejections == 1:
                assert gc.collect(0) > 0
                found.append(set(problem.newton.snes.getDict()))

    found = []
    monkeypatch.setattr(PETSc, "SNES", Older)
    material = Tangled(SATURATING)
    material.limit = 0.01
    V = problem_space(square(2))
    gc.collect()
    gc.disable()
    try:
        bcs = [DirichletBC(V, 0, 1), DirichletBC(V, (0.1, 0), 2)]
        problem = MacroProblem(V, material, bcs=bcs)
        with pytest.raises(LoadStepError, match="too far"):
            problem.solve([1.0], progress=False)
    finally:
        gc.enable()
    assert found[0] >= {"__function__", "__jacobian__", "__converged__"}


def arch(rise=0.06, thickness=0.03):
    """A shallow arch, clamped at both ends (1 and 2)."""
    mesh = RectangleMesh(16, 1, 1.0, 1.0, quadrilateral=True)
    x = mesh.coordinates.dat.data
    x[:, 1] = rise * np.sin(np.pi * x[:, 0]) + thickness * (x[:, 1] - 0.5)
    return mesh


def arch_load(V):
    return -1e-4 * TestFunction(V)[1] * ds(4)


@cache
def snapped():
    """The path of the arch under a load from above, until the load is what it was twice before."""
    V = problem_space(arch())
    clamps = [DirichletBC(V, 0, 1), DirichletBC(V, 0, 2)]
    problem = MacroProblem(V, ARCH, bcs=clamps, loads=arch_load(V), tolerance=1e-11)
    path = ArcLength(first=0.2, until=1.0, steps=60, largest=2.0)
    return problem, problem.solve(arc_length=path, progress=False), path


def test_snap_through():
    """The load rises, falls and rises again, and all of it is equilibrium."""
    problem, result, _ = snapped()
    factors, reactions = result.factors, result.reactions(1) + result.reactions(2)
    assert factors[-1] == 1.0
    peak = int(np.argmax(np.diff(factors) < 0))
    valley = peak + int(np.argmin(factors[peak:]))
    assert 0 < peak < valley < len(factors) - 1
    assert factors[valley] < 0.9 * factors[peak]
    # The clamps carry the load, whose sum is its density times the length of the upper side.
    mesh = problem.space.mesh().unique()
    whole = 1e-4 * assemble(1.0 * ds(4, domain=mesh))
    assert np.abs(reactions[:, 1] - factors * whole).max() < 1e-9 * whole
    # Each point of the path is a stationary point of the energy, as UFL writes it.
    u = problem.system.function(problem.system.values())
    energy = ARCH.ufl_energy(Identity(2) + grad(u)) * dx(degree=problem.system.degree)
    force = derivative(energy, u)
    for step in result.steps:
        u.assign(step.displacement)
        residual = assemble(force - step.factor * arch_load(problem.space))
        for bc in problem.system.conditions.zero:
            bc.zero(residual)
        assert np.abs(residual.dat.data_ro).max() < 1e-9 * whole
    # Downwards all the way.
    heights = [step.displacement.dat.data_ro[:, 1].min() for step in result.steps]
    assert (np.diff(heights) < 0).all() and heights[-1] < -0.1


def test_arc_length_follows_prescribed_displacements():
    """What is scaled may be a displacement; the path is then that of load steps."""
    V = problem_space(square(3))
    bcs = [DirichletBC(V, 0, 1), DirichletBC(V, (0.2, 0.1), 2)]
    problem = MacroProblem(V, RUBBER, bcs=bcs, tolerance=1e-11)
    result = problem.solve(arc_length=ArcLength(first=0.3, until=1.0), progress=False)
    assert result.factors[-1] == 1.0 and len(result) > 2
    other = problem.solve(result.factors, progress=False)
    for a, b in zip(result.steps, other.steps, strict=True):
        assert difference(b.displacement, a.displacement) < 1e-9


def stretched():
    """A plastic body with two ways to hold it."""
    V = problem_space(square(2))
    bcs = [DirichletBC(V, 0, 1), DirichletBC(V.sub(0), 0.05, 2)]
    return MacroProblem(V, PLASTIC, bcs=bcs, tolerance=1e-11)


def test_resumed_after_a_kill(tmp_path):
    """With history: the same as in one go."""
    factors, path = [0.3, 0.6, 1.0, 0.5, -0.2], tmp_path / "run.h5"
    whole = stretched().solve(factors, progress=False)
    first = stretched()
    first.solve(factors[:2], checkpoint=path, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["run.h5"]
    second = stretched()
    result = second.solve(factors, checkpoint=path, progress=False)
    assert len(result) == 5 and second.points.calls < 5 * 6
    for a, b in zip(whole.steps, result.steps, strict=True):
        assert difference(a.displacement, b.displacement) < 1e-12
        assert np.allclose(a.reactions[2], b.reactions[2], rtol=1e-9)
        assert a.iterations == b.iterations
    # Nothing is left to do: nothing is done.
    third = stretched()
    done = third.solve(factors, checkpoint=path, progress=False)
    assert [s.iterations for s in done.steps] == [s.iterations for s in result.steps]
    assert np.allclose(third.stress().dat.data_ro, second.stress().dat.data_ro, atol=1e-12)
    # Anew, if that is wanted.
    assert len(third.solve([0.1], checkpoint=path, resume=False, progress=False)) == 1


def test_resumed_along_the_arc(tmp_path):
    problem, whole, _ = snapped()
    settings = {"first": 0.2, "until": 1.0, "largest": 2.0}
    path = tmp_path / "arc.h5"
    for steps in (3, 60):
        result = problem.solve(
            arc_length=ArcLength(steps=steps, **settings), checkpoint=path, progress=False
        )
    assert len(result) == len(whole)
    assert np.allclose(result.factors, whole.factors, atol=1e-10)
    assert difference(whole.displacement, result.displacement) < 1e-9


def test_a_file_of_another_problem(tmp_path):
    path = tmp_path / "run.h5"
    V = problem_space(square(2))

    def problem(law=SATURATING, value=0.1):
        return MacroProblem(V, law, bcs=[DirichletBC(V, 0, 1), DirichletBC(V, (value, 0), 2)])

    problem().solve([0.5], checkpoint=path, progress=False)
    with pytest.raises(MacroFileError, match=r"another problem: the materials is .*0\.1.* there"):
        problem(NonlinearElastic(K=2.0, a1=0.2, a2=0.05)).solve(
            [0.5], checkpoint=path, progress=False
        )
    with pytest.raises(MacroFileError, match="the boundary conditions is"):
        problem(value=0.2).solve([0.5], checkpoint=path, progress=False)
    with pytest.raises(MacroFileError, match=r"load factors \[0.5\], load_steps begins with"):
        problem().solve([0.4, 0.5], checkpoint=path, progress=False)
    with pytest.raises(MacroFileError, match="the arc length is None there"):
        problem().solve(arc_length=ArcLength(), checkpoint=path, progress=False)
    path.write_text("something else")
    with pytest.raises(MacroFileError, match="not an HDF5 file"):
        problem().solve([0.5], checkpoint=path, progress=False)


SCRIPT = """
import json, sys
import numpy as np
import torch
from firedrake import *
from firedrake.adjoint import Control, ReducedFunctional, continue_annotation
from fe_ol.macro import MacroFileError, MacroProblem, problem_space
from fe_ol.materials import NeoHookean

mesh = UnitSquareMesh(5, 4)
D = FunctionSpace(mesh, "DG", 0)
left = Function(D).interpolate(conditional(SpatialCoordinate(mesh)[0] < 0.5, 1.0, 0.0))
mesh = RelabeledMesh(mesh, [left, Function(D).interpolate(1 - left)], [1, 2])
x, V = SpatialCoordinate(mesh), problem_space(mesh)
mu = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
laws = {1: NeoHookean(mu=mu, lam=2.0), 2: NeoHookean(mu=3.0, lam=2.0)}
bcs = [DirichletBC(V, 0, 1), DirichletBC(V.sub(0), 0.3, 2)]
problem = MacroProblem(V, laws, bcs=bcs, tractions={4: (0, -0.2)}, tolerance=1e-12)
continue_annotation()
first = problem.solve([0.5], checkpoint=sys.argv[1], progress=False, annotate=False)
resumed = problem.solve([0.5, 1.0], checkpoint=sys.argv[1], progress=False, annotate=False)
result = problem.solve([0.5, 1.0], progress=False)
u = result.displacement
J = assemble(inner(u, u) ** 2 * dx)
gradient = ReducedFunctional(J, Control(problem.parameters.function)).derivative()
nodes, values = Function(V).interpolate(x).dat.data_ro, u.dat.data_ro
moments = [nodes[:, 0]**i * nodes[:, 1]**j @ values for i in range(4) for j in range(4)]
numbers = [*mesh.comm.allreduce(np.array(moments)).ravel()]
numbers += [*result.reactions(1).ravel(), *result.reactions(2).ravel(), *gradient.dat.data_ro]
numbers += [*result.iterations, norm(resumed.displacement - u)]
numbers += [assemble(problem.von_mises() * dx(degree=2))]
if mesh.comm.size == 2:
    try:
        problem.solve([0.5], checkpoint=sys.argv[2], progress=False, annotate=False)
    except MacroFileError as error:
        assert "the number of processes is 1 there and 2 here" in str(error)
    else:
        raise SystemExit("a file of one process was taken")
if mesh.comm.rank == 0:
    print("numbers " + json.dumps([float(v) for v in numbers]))
"""


@pytest.mark.parallel
def test_two_processes_find_the_same(tmp_path):
    """Displacements, reactions and a gradient, to 1e-10; a file belongs to one number of them."""
    found = []
    for processes in (1, 2):
        said = run_script(SCRIPT, tmp_path, f"{processes}.h5", "1.h5", processes=processes)
        line = next(x for x in said.splitlines() if x.startswith("numbers"))
        found.append(np.array(json.loads(line.removeprefix("numbers "))))
    assert len(found[0]) == len(found[1]) > 25
    assert np.abs(found[0] - found[1]).max() < 1e-10
