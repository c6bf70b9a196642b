"""Generation of data: any order, any number of processes and any number of kills, one file."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from firedrake import (
    COMM_WORLD,
    DirichletBC,
    Ensemble,
    Function,
    FunctionSpace,
    LinearVariationalProblem,
    LinearVariationalSolver,
    NonlinearVariationalProblem,
    NonlinearVariationalSolver,
    TestFunction,
    TrialFunction,
    UnitSquareMesh,
    as_vector,
    assemble,
    dx,
    grad,
    inner,
    solve,
)
from processes import environment, run_script

from spon import samplers
from spon.datasets import Dataset
from spon.fem.problem import Problem
from spon.fem.spaces import to_function, to_tensor
from spon.generation import GenerationError, RunMismatchError, generate

# A nonlinear solve, so that a starting value left over from another sample would show.
SCRIPT = r"""
import sys, time
from pathlib import Path
from firedrake import *
from spon import samplers
from spon.fem.problem import Problem
from spon.generation import generate

path, ns, wait = sys.argv[1], sys.argv[2].split(","), float(sys.argv[3])
ensemble = Ensemble(COMM_WORLD, 1) if COMM_WORLD.size > 1 else None
mesh = UnitSquareMesh(6, 6, comm=ensemble.comm if ensemble else COMM_WORLD)
V, F = FunctionSpace(mesh, "CG", 1), FunctionSpace(mesh, "DG", 0)
f, u, v = Function(F), Function(V), TestFunction(V)
equation = (1 + u**2) * inner(grad(u), grad(v)) * dx - f * v * dx
solver = NonlinearVariationalSolver(
    NonlinearVariationalProblem(equation, u, DirichletBC(V, 0, 1)),
    solver_parameters={"snes_rtol": 1e-6},
)
count = 0

def solve_it():
    global count
    count += 1
    time.sleep(wait)
    solver.solve()

sampler = {"f": samplers.GaussianRandomField(F, 0.3, std=5.0)}
for n in ns:
    data = generate(Problem({"f": f}, {"u": u}, solve_it), sampler, int(n), path, seed=3,
                    ensemble=ensemble, progress=False)
    sys.stdout.write(f"samples {len(data)} solves {count}\n")
    sys.stdout.flush()
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    folder = tmp_path_factory.mktemp("script")
    (folder / "run.py").write_text(SCRIPT)

    def start(path, n="12", wait=0.0, processes=1):
        launcher = [] if processes == 1 else ["mpiexec", "-n", str(processes)]
        return subprocess.Popen(
            [*launcher, sys.executable, str(folder / "run.py"), str(path), str(n), str(wait)],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(*args, **kwargs):
        out, err = start(*args, **kwargs).communicate(timeout=240)
        assert "samples" in out, err
        return [int(line.split()[3]) for line in out.splitlines() if line.startswith("samples")]

    undisturbed = folder / "undisturbed.h5"
    assert run(undisturbed) == [12]
    return SimpleNamespace(start=start, run=run, undisturbed=undisturbed)


def test_kill_and_restart_give_the_same_file(script, tmp_path):
    path = tmp_path / "data.h5"
    process = script.start(path, wait=0.2)
    try:
        parts = tmp_path / "data.h5.parts"
        end = time.monotonic() + 120
        while len(list(parts.glob("*.npz"))) < 4 and time.monotonic() < end:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done = len(list(parts.glob("*.npz")))
    assert 4 <= done < 12 and not path.exists()
    # The second call finds the file, and nothing left to do.
    assert script.run(path, n="12,12") == [12 - done, 12 - done]
    assert path.read_bytes() == script.undisturbed.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["data.h5"]


def test_extension_gives_the_same_file(script, tmp_path):
    path = tmp_path / "data.h5"
    assert script.run(path, n="5,12") == [5, 12]
    assert path.read_bytes() == script.undisturbed.read_bytes()


def test_two_processes_give_the_same_file(script, tmp_path):
    path = tmp_path / "data.h5"
    assert script.run(path, processes=2) == [6, 6]
    assert path.read_bytes() == script.undisturbed.read_bytes()


# ---- in this process


@pytest.fixture
def poisson():
    mesh = UnitSquareMesh(5, 5)
    V, F = FunctionSpace(mesh, "CG", 2), FunctionSpace(mesh, "CG", 1)
    f, g, u = Function(F), Function(V), Function(V)
    w, v = TrialFunction(V), TestFunction(V)
    form, load = inner(grad(w), grad(v)) * dx, f * v * dx
    solver = LinearVariationalSolver(
        LinearVariationalProblem(form, load, u, DirichletBC(V, g, "on_boundary"))
    )
    problem = Problem({"f": f}, {"u": u}, solver.solve, boundary=g)
    sampler = {
        "f": samplers.GaussianRandomField(F, 0.3),
        "boundary": samplers.RandomBoundaryData(V, "on_boundary", 0.5),
    }
    return SimpleNamespace(problem=problem, sampler=sampler, V=V, F=F, f=f, g=g, u=u)


def test_samples_solve_the_problem(poisson, tmp_path):
    data = generate(poisson.problem, poisson.sampler, 3, tmp_path / "d.h5", 7, progress=False)
    assert len(data) == 3 and data.mesh() is poisson.V.mesh() and not data.failures
    assert data.keys.tolist() == [[7, 0], [7, 1], [7, 2]]
    [fs], us, gs = data.tensors()
    assert gs is not None
    for f, u, g in zip(fs, us, gs, strict=True):
        f, u, g = to_function(f, poisson.F), to_function(u, poisson.V), to_function(g, poisson.V)
        expected = Function(poisson.V)
        v = TestFunction(poisson.V)
        residual = inner(grad(expected), grad(v)) * dx - f * v * dx
        solve(residual == 0, expected, DirichletBC(poisson.V, g, "on_boundary"))
        assert np.sqrt(assemble((u - expected) ** 2 * dx)) < 1e-9
    # The random numbers are those that the documentation promises.
    rng = np.random.default_rng([7, 2])
    assert (poisson.sampler["f"].sample(rng) == fs[2].numpy()).all()
    assert (poisson.sampler["boundary"].sample(rng) == gs[2].numpy()).all()
    # The file says how it was made.
    [run] = Dataset.load(tmp_path / "d.h5").runs
    assert run["seed"] == 7 and run["sampler"]["f"]["length"] == 0.3
    assert run["versions"].keys() == {"spon", "firedrake"}


def refuse():
    raise AssertionError("solved again")


def test_file_that_is_there_is_used_or_refused(poisson, tmp_path):
    path = tmp_path / "d.h5"
    problem, sampler = poisson.problem, poisson.sampler
    first = generate(problem, sampler, 3, path, progress=False)
    idle = Problem(problem.inputs, problem.outputs, refuse, problem.boundary)
    again = generate(idle, sampler, 3, path, progress=False)
    assert (again.outputs["u"] == first.outputs["u"]).all()
    assert len(generate(idle, sampler, 2, path, progress=False)) == 2
    with pytest.raises(RunMismatchError, match="seed is 0, not 1"):
        generate(problem, sampler, 3, path, seed=1, progress=False)
    other = sampler | {"f": samplers.GaussianRandomField(poisson.F, 0.4)}
    with pytest.raises(RunMismatchError, match="another run: sampler is"):
        generate(problem, other, 3, path, progress=False)


def test_a_file_that_is_used_is_announced(poisson, tmp_path, caplog, capfd):
    path = tmp_path / "d.h5"
    problem, sampler = poisson.problem, poisson.sampler
    with caplog.at_level(logging.INFO, logger="spon"):
        generate(problem, sampler, 3, path)
        assert "Using" not in caplog.text + capfd.readouterr().err
        generate(problem, sampler, 2, path, progress=False)
        [line] = [r.getMessage() for r in caplog.records if "Using" in r.getMessage()]
        assert "Using" not in capfd.readouterr().err
        generate(problem, sampler, 4, path)
        assert "Using 3 samples of" in capfd.readouterr().err
    for part in (
        "Using 2 samples of",
        "d.h5",
        f"made {time.strftime('%Y-')}",
        "spon ",
        "firedrake ",
    ):
        assert part in line
    assert "description=" in line and "another path" in line


def test_parts_of_another_run_are_refused(poisson, tmp_path):
    calls = 0

    def stop_at_the_third():
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        poisson.problem.solve()

    stopped = Problem({"f": poisson.f}, {"u": poisson.u}, stop_at_the_third, poisson.g)
    with pytest.raises(KeyboardInterrupt):
        generate(stopped, poisson.sampler, 5, tmp_path / "d.h5", progress=False)
    assert len(list((tmp_path / "d.h5.parts").glob("*.npz"))) == 2
    with pytest.raises(RunMismatchError, match="samples of another run: seed is 0, not 2"):
        generate(stopped, poisson.sampler, 5, tmp_path / "d.h5", seed=2, progress=False)
    described = Problem(
        {"f": poisson.f},
        {"u": poisson.u},
        poisson.problem.solve,
        poisson.g,
        description={"kappa": 2.0},
    )
    with pytest.raises(RunMismatchError, match="kappa"):
        generate(described, poisson.sampler, 5, tmp_path / "d.h5", progress=False)
    assert len(generate(stopped, poisson.sampler, 5, tmp_path / "d.h5", progress=False)) == 5
    assert calls == 3 + 3


def test_kill_while_the_file_is_put_together(poisson, tmp_path, monkeypatch):
    path = tmp_path / "d.h5"

    def stop(*names):
        if Path(names[1]) == path:
            raise KeyboardInterrupt
        return replace(*names)

    replace = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            generate(poisson.problem, poisson.sampler, 3, path, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["d.h5.parts"]
    idle = Problem({"f": poisson.f}, {"u": poisson.u}, refuse, poisson.g)
    assert len(generate(idle, poisson.sampler, 3, path, progress=False)) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["d.h5"]


def test_kill_while_the_parts_are_removed(poisson, tmp_path):
    path = tmp_path / "d.h5"
    generate(poisson.problem, poisson.sampler, 3, path, progress=False)
    # Half a folder, under the name that it has while it is removed.
    rest = tmp_path / "d.h5.parts.old"
    rest.mkdir()
    (rest / "00000001.npz").write_bytes(b"")
    assert len(generate(poisson.problem, poisson.sampler, 4, path, progress=False)) == 4
    assert [p.name for p in tmp_path.iterdir()] == ["d.h5"]


@pytest.fixture
def fragile():
    """u^2 = f has no solution where f < 0: Newton's method does not converge."""
    mesh = UnitSquareMesh(2, 2)
    V, R = FunctionSpace(mesh, "CG", 1), FunctionSpace(mesh, "DG", 0)
    f, u, v, one = Function(R), Function(V), TestFunction(V), Function(V).assign(1.0)
    solver = NonlinearVariationalSolver(
        NonlinearVariationalProblem((u**2 - f) * v * dx, u),
        solver_parameters={"snes_max_it": 20},
    )
    problem = Problem({"f": f}, {"u": u}, solver.solve, initial={"u": one})
    return problem, samplers.Uniform(R, -1.0, 2.0)


def test_failed_solves_are_recorded_and_skipped(fragile, tmp_path, caplog):
    problem, sampler = fragile
    path = tmp_path / "d.h5"
    with caplog.at_level(logging.WARNING, logger="spon"):
        data = generate(problem, {"f": sampler}, 20, path, progress=False)
    signs = sampler.draw(20)[:, 0]
    expected = [i for i in range(20) if signs[i] < 0]
    assert 0 < len(expected) < 20
    assert [failure.index for failure in data.failures] == expected
    assert all("ConvergenceError" in failure.message for failure in data.failures)
    assert len(data) == 20 - len(expected)
    assert f"Sample {expected[0]} failed" in caplog.text
    # A failure leaves no trace in the next sample: the outputs start from 1 each time.
    assert (data.outputs["u"] > 0).all()
    assert np.allclose(data.outputs["u"][:, :1] ** 2, data.inputs["f"][:, :1], rtol=1e-6)
    back = Dataset.load(path)
    assert back.failures == data.failures and set(back.keys[:, 1]).isdisjoint(expected)
    # A longer run keeps both.
    longer = generate(problem, {"f": sampler}, 25, path, progress=False)
    assert longer.failures[: len(expected)] == data.failures
    assert len(longer) + len(longer.failures) == 25


def test_an_input_that_cannot_be_drawn_is_a_failure(poisson, tmp_path):
    def unlucky(f, rng):
        f.assign(rng.uniform(-1.0, 1.0))
        if f.dat.data_ro[0] < 0:
            raise ArithmeticError("no room for the inclusions")

    problem = Problem({"f": poisson.f}, {"u": poisson.u}, lambda: poisson.u.assign(1.0))
    data = generate(problem, {"f": unlucky}, 10, tmp_path / "d.h5", progress=False)
    draws = [np.random.default_rng([0, i]).uniform(-1.0, 1.0) for i in range(10)]
    assert [f.index for f in data.failures] == [i for i in range(10) if draws[i] < 0]
    assert "no room" in data.failures[0].message and len(data) + len(data.failures) == 10

    def mistaken(f, rng):
        raise NameError("smapler")

    with pytest.raises(NameError, match="smapler"):
        generate(problem, {"f": mistaken}, 2, tmp_path / "e.h5", progress=False)


def test_none_of_the_first_samples_of_a_file(poisson, tmp_path):
    def unlucky(f, rng):
        f.assign(1.0)
        calls.append(1)
        if len(calls) <= 2:
            raise ArithmeticError("no room")

    calls = []
    problem = Problem({"f": poisson.f}, {"u": poisson.u}, lambda: poisson.u.assign(1.0))
    assert len(generate(problem, {"f": unlucky}, 5, tmp_path / "d.h5", progress=False)) == 3
    with pytest.raises(GenerationError, match=r"None of the first 2 samples.*no room"):
        generate(problem, {"f": unlucky}, 2, tmp_path / "d.h5", progress=False)


def test_boundary_data_belong_to_an_output(poisson, tmp_path):
    p = Function(poisson.F)
    problem = Problem(
        {"f": poisson.f}, {"p": p, "u": poisson.u}, poisson.problem.solve, boundary=poisson.g
    )
    data = generate(problem, poisson.sampler, 2, tmp_path / "d.h5", progress=False)
    assert data.boundary_of == "u" and data.select(outputs=["p"]).boundary is None


def test_nan_is_a_failure(poisson, tmp_path):
    def solve_badly():
        poisson.u.assign(np.nan if poisson.f.dat.data_ro[0] > 0 else 1.0)

    problem = Problem({"f": poisson.f}, {"u": poisson.u}, solve_badly)
    sampler = {"f": samplers.Uniform(poisson.F, -1.0, 1.0)}
    data = generate(problem, sampler, 10, tmp_path / "d.h5", progress=False)
    assert 0 < len(data.failures) < 10
    assert "outputs.u are NaN" in data.failures[0].message
    assert (data.inputs["f"][:, 0] <= 0).all()
    always = {"f": samplers.Uniform(poisson.F, 1.0, 2.0)}
    with pytest.raises(GenerationError, match=r"None of the 3 samples.*NaN"):
        generate(problem, always, 3, tmp_path / "e.h5", progress=False)


def test_a_mistake_in_the_script_is_not_a_failed_sample(poisson, tmp_path):
    def mistaken():
        raise NameError("slover")

    with pytest.raises(NameError, match="slover"):
        generate(
            Problem({"f": poisson.f}, {"u": poisson.u}, mistaken),
            {"f": poisson.sampler["f"]},
            3,
            tmp_path / "d.h5",
            progress=False,
        )


def test_results_do_not_depend_on_the_order(poisson, tmp_path):
    """A solver that starts from what it finds in the output."""

    def creep():
        poisson.u.assign(0.5 * poisson.u + 1.0)

    poisson.u.assign(7.0)
    problem = Problem({"f": poisson.f}, {"u": poisson.u}, creep)
    data = generate(problem, {"f": poisson.sampler["f"]}, 3, tmp_path / "d.h5", progress=False)
    assert (data.outputs["u"] == 1.0).all()
    started = Problem(
        {"f": poisson.f}, {"u": poisson.u}, creep, initial={"u": Function(poisson.V).assign(4.0)}
    )
    data = generate(started, {"f": poisson.sampler["f"]}, 3, tmp_path / "e.h5", progress=False)
    assert (data.outputs["u"] == 3.0).all()
    with pytest.raises(RunMismatchError, match="initial is"):
        generate(problem, {"f": poisson.sampler["f"]}, 3, tmp_path / "e.h5", progress=False)


def test_sampler_for_all_inputs_at_once(poisson, tmp_path):
    def both(rng):
        value = rng.uniform()
        poisson.f.assign(value)
        poisson.g.assign(2 * value)

    data = generate(poisson.problem, both, 3, tmp_path / "d.h5", progress=False)
    assert data.boundary is not None
    assert np.allclose(2 * data.inputs["f"][:, 0], data.boundary[:, 0])
    assert "both" in data.runs[0]["sampler"]


def test_progress_bar_can_be_silenced(poisson, tmp_path, capfd):
    generate(poisson.problem, poisson.sampler, 2, tmp_path / "a.h5", progress=False)
    assert "generate" not in capfd.readouterr().err
    generate(poisson.problem, poisson.sampler, 2, tmp_path / "b.h5")
    assert "2/2" in capfd.readouterr().err


def test_vector_and_mixed_spaces(tmp_path):
    mesh = UnitSquareMesh(3, 3)
    W = FunctionSpace(mesh, "RT", 1) * FunctionSpace(mesh, "DG", 0)
    F = FunctionSpace(mesh, "DG", 0)
    f, w = Function(F), Function(W)
    s, p = w.subfunctions

    def darcy():
        p.assign(f)
        s.project(as_vector([f, 2.0]))

    data = generate(
        Problem({"f": f}, {"w": w}, darcy),
        {"f": samplers.Uniform(F, 1.0, 2.0)},
        3,
        tmp_path / "d.h5",
        progress=False,
    )
    back = Dataset.load(tmp_path / "d.h5")
    V = back.space("w")
    assert V.dim() == W.dim() and (back.outputs["w"] == data.outputs["w"]).all()
    assert (back.outputs["w"][2] == to_tensor(w)).all()
    assert (back.outputs["w"][:, -F.dim() :] == back.inputs["f"]).all()


# ---- wrong calls


def test_wrong_problems(poisson):
    f, u, g = poisson.f, poisson.u, poisson.g
    solve_it = poisson.problem.solve
    with pytest.raises(TypeError, match=r"inputs\['f'\] must be a Firedrake Function, got float"):
        Problem({"f": 1.0}, {"u": u}, solve_it)
    with pytest.raises(TypeError, match="inputs must map names"):
        Problem(f, {"u": u}, solve_it)
    with pytest.raises(ValueError, match="outputs is empty"):
        Problem({"f": f}, {}, solve_it)
    with pytest.raises(TypeError, match="solve must be callable"):
        Problem({"f": f}, {"u": u}, None)
    with pytest.raises(ValueError, match="'u' is also an output"):
        Problem({"u": u}, {"w": u}, solve_it)
    with pytest.raises(ValueError, match=r"\['f'\] are used for an input and an output"):
        Problem({"f": f}, {"f": u}, solve_it)
    with pytest.raises(ValueError, match=r"boundary lives in CG 1 .* must live in .*CG 2"):
        Problem({"f": f}, {"u": u}, solve_it, boundary=f)
    with pytest.raises(ValueError, match="another Function than the outputs"):
        Problem({"f": f}, {"u": u}, solve_it, boundary=u)
    with pytest.raises(ValueError, match="Give the input another name"):
        Problem({"boundary": f}, {"u": u}, solve_it, boundary=g)
    with pytest.raises(TypeError, match="description must hold"):
        Problem({"f": f}, {"u": u}, solve_it, g, description={"mesh": poisson.V})
    with pytest.raises(ValueError, match=r"initial names 'w', but the outputs are \['u'\]"):
        Problem({"f": f}, {"u": u}, solve_it, initial={"w": u})
    with pytest.raises(ValueError, match=r"initial\['u'\] lives in CG 1"):
        Problem({"f": f}, {"u": u}, solve_it, initial={"u": f})


def test_wrong_calls(poisson, tmp_path):
    problem, sampler, path = poisson.problem, poisson.sampler, tmp_path / "d.h5"
    with pytest.raises(TypeError, match=r"must be a spon\.Problem"):
        generate(problem.solve, sampler, 3, path)
    with pytest.raises(ValueError, match="n must be at least 1"):
        generate(problem, sampler, 0, path)
    with pytest.raises(TypeError, match="n must be an integer"):
        generate(problem, sampler, 2.5, path)
    with pytest.raises(ValueError, match="seed must be at least 0"):
        generate(problem, sampler, 3, path, seed=-1)
    with pytest.raises(ValueError, match=r"names \['f'\], the problem needs \['boundary', 'f'\]"):
        generate(problem, {"f": sampler["f"]}, 3, path)
    with pytest.raises(TypeError, match=r"fills one function; say which: sampler=\{'f'"):
        generate(problem, sampler["f"], 3, path)
    with pytest.raises(TypeError, match=r"sampler\['f'\] must be callable"):
        generate(problem, sampler | {"f": 1.0}, 3, path)
    with pytest.raises(TypeError, match="ensemble must be"):
        generate(problem, sampler, 3, path, ensemble=COMM_WORLD)
    elsewhere = samplers.GaussianRandomField(poisson.V, 0.3)
    with pytest.raises(ValueError, match=r"made for CG 2 .* lives in CG 1"):
        generate(problem, sampler | {"f": elsewhere}, 3, path, progress=False)
    path.write_text("something else")
    with pytest.raises(ValueError, match="not an HDF5 file"):
        generate(problem, sampler, 3, path)


def test_ensemble_of_one(poisson, tmp_path):
    data = generate(
        poisson.problem,
        poisson.sampler,
        2,
        tmp_path / "d.h5",
        ensemble=Ensemble(COMM_WORLD, 1),
        progress=False,
    )
    assert len(data) == 2


DISTRIBUTED = r"""
import sys
from firedrake import *
from spon import samplers
from spon.fem.problem import Problem
from spon.generation import generate

def refused(**options):
    try:
        generate(problem, {"f": lambda f, rng: None}, 2, sys.argv[1], progress=False, **options)
    except (NotImplementedError, ValueError) as error:
        sys.stdout.write(f"{error}\n")

try:
    V = FunctionSpace(UnitSquareMesh(4, 4), "CG", 1)
    problem = Problem({"f": Function(V)}, {"u": Function(V)}, lambda: None)
except NotImplementedError as error:
    sys.stdout.write(f"{error}\n")
V = FunctionSpace(UnitSquareMesh(4, 4, comm=COMM_SELF), "CG", 1)
problem = Problem({"f": Function(V)}, {"u": Function(V)}, lambda: None)
refused()
refused(ensemble=Ensemble(COMM_WORLD, 2))
"""


def test_distributed_meshes_are_refused(tmp_path):
    said = run_script(DISTRIBUTED, tmp_path, tmp_path / "d.h5")
    assert "distributed over 2" in said
    assert "This runs on 2 processes" in said
    assert "Each member of the ensemble has 2 processes" in said
