"""The comparison of operator networks: its loop, its records, its rivals, and one problem."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
# Beside the repository, where it is there at all.
DARCY = Path(os.environ.get("SPON_DARCY") or ROOT.parent / "shared" / "data" / "darcy")
sys.path.insert(0, str(ROOT / "benchmarks"))

from operator_learning import (  # noqa: E402
    accuracy_cost,
    cost_report,
    flux_report,
    harness,
    poisson,
    problems,
    report,
    small_darcy,
    training,
)
from operator_learning.ours import ABLATIONS, OURS  # noqa: E402
from operator_learning.rivals import RIVALS, missing  # noqa: E402

from spon import fem  # noqa: E402


def relative(prediction, target):
    return (prediction - target).norm(dim=1) / target.norm(dim=1)


def square_level(n):
    """n x n points of the unit square, without any finite elements."""
    corner = np.arange(n * n).reshape(n, n)
    cells = [corner[:-1, :-1], corner[1:, :-1], corner[:-1, 1:], corner[1:, 1:]]
    points = np.stack(np.divmod(np.arange(n * n), n), axis=1) / n
    return problems.Level(
        name=str(n), inputs=n * n, outputs=n * n, points=torch.from_numpy(points).float(),
        edges=problems.pairs(np.stack([c.ravel() for c in cells], axis=1)),
        grid=problems.Grid((n, n)), error=relative,
    )  # fmt: skip


class Smoothing(problems.Problem):
    """Five-point means of random smooth functions: every network can learn something of it."""

    title = "smoothing"

    @classmethod
    def make(cls, n=12, samples=40):
        waves = torch.cos(torch.pi * torch.outer(torch.arange(n) / n, torch.arange(3.0)))
        random = torch.randn(samples, 3, 3, generator=torch.Generator().manual_seed(0))
        x = waves @ random @ waves.T
        y = sum(torch.roll(x, shift, axis) for axis in (1, 2) for shift in (-1, 1)) / 4 + x
        data = problems.Samples(x.flatten(1), y.flatten(1), square_level(n))
        half = samples // 2
        return cls("smoothing", data[:half], data[half:], {"same": data[half:]}, 1.0, 3)

    def solvers(self, quick):
        return []


def test_pairs_are_the_neighbours_of_each_point():
    edges = problems.pairs([[0, 1, 2], [1, 2, 3]])
    neighbours = {r: sorted(edges[0][edges[1] == r].tolist()) for r in range(4)}
    assert neighbours == {0: [1, 2], 1: [0, 2, 3], 2: [0, 1, 3], 3: [1, 2]}


def test_the_rate_rises_and_falls():
    rates = [training.rate(x) for x in np.linspace(0, 1, 101)]
    top = int(np.argmax(rates))
    assert rates[top] == pytest.approx(1) and rates[-1] == pytest.approx(0, abs=1e-12)
    assert np.all(np.diff(rates[: top + 1]) > 0) and np.all(np.diff(rates[top:]) < 0)


def test_a_training_ends_by_epochs_or_by_seconds_and_keeps_the_best_weights():
    problem = Smoothing.make()
    model = RIVALS["message passing"].build(problem, channels=8, rounds=1)
    data = (problem.train, problem.validation, training.Optimiser(lr=2e-2, batch_size=5))
    long = training.train(model, *data, training.Budget(1000.0, 6), 0)
    assert long["epochs"] == 6 and long["steps"] == 24
    assert long["validation"] == min(e for _, e in long["curve"]) < 0.9
    error = relative(training.predict(model, problem.validation), problem.validation.y).mean()
    assert float(error) == pytest.approx(long["validation"], rel=1e-5)
    short = training.train(model, *data, training.Budget(0.05, 10**6), 0)
    assert 0.05 <= short["cpu_seconds"] < 0.5


def test_a_training_that_diverges_is_a_result_too(tmp_path):
    problem = Smoothing.make()
    network = harness.Network("wild", lambda p: _Wild(), lambda p: [{"model": {}, "training": {}}])
    records = harness.Records(tmp_path / "runs.jsonl")
    plan = harness.Plan(training.Budget(1.0, 2), seeds=(0,))
    assert harness.compare(problem, [network], plan, records) == []
    assert json.loads((tmp_path / "runs.jsonl").read_text())["validation"] is None


class _Wild(torch.nn.Linear):
    def __init__(self):
        super().__init__(1, 1)

    def forward(self, x, level):
        return super().forward(x[..., None])[..., 0] / 0.0


def test_finished_runs_are_not_run_again(tmp_path, capsys):
    problem, made = Smoothing.make(), []

    def build(p, **options):
        made.append(options)
        return RIVALS["POD + MLP"].build(p, **options)

    def settings(p):
        return [{"model": {"inputs": 8, "outputs": k, "width": 8}, "training": {}} for k in (2, 8)]

    network = harness.Network("pod", build, settings)
    plan = harness.Plan(training.Budget(60.0, 3), seeds=(0, 1, 2))
    path = tmp_path / "runs.jsonl"
    first = harness.compare(problem, [network], plan, harness.Records(path))
    assert len(made) == 5
    (result,) = first
    assert result["best"] == min(result["tried"], key=lambda t: t["validation"])["setting"]
    errors = [r["tests"]["same"]["error"]["mean"] for r in result["runs"]]
    found = result["summary"]["same"]["error"]
    assert found["mean"] == pytest.approx(np.mean(errors))
    assert found["deviation"] == pytest.approx(np.std(errors, ddof=1))
    # A kill in the middle of the last line costs that run alone.
    text = path.read_text()
    path.write_text(text[: text.rindex('"tests"')])
    second = harness.compare(problem, [network], plan, harness.Records(path))
    assert len(made) == 6 and len(harness.Records(path)._known) == 5
    assert harness.compare(problem, [network], plan, harness.Records(path)) == second
    harness.compare(problem, [network], plan, harness.Records(path, frozenset({"pod"})))
    assert len(made) == 11
    # Of another code they count, with a word about it.
    capsys.readouterr()
    other = replace(network, sources=(__file__,))
    harness.compare(problem, [other], plan, harness.Records(path))
    assert len(made) == 11 and "made by other code" in capsys.readouterr().out


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_learns(name):
    if name in missing():
        pytest.skip(f"{name} needs the extra 'benchmarks'")
    problem = Smoothing.make()
    settings = RIVALS[name].settings(problem)
    assert len(settings) >= 6
    for setting in settings:
        torch.manual_seed(0)
        model = RIVALS[name].build(problem, **setting["model"])
        assert model(problem.train.x[:2], problem.level).shape == (2, problem.level.outputs)
    optimiser = training.Optimiser(**settings[0]["training"])
    torch.manual_seed(0)
    model = RIVALS[name].build(problem, **settings[0]["model"])
    before = float(relative(training.predict(model, problem.train), problem.train.y).mean())
    training.train(model, problem.train, problem.train, optimiser, training.Budget(60.0, 15), 0)
    after = float(relative(training.predict(model, problem.train), problem.train.y).mean())
    assert after < 0.9 * before


def test_every_network_has_six_settings():
    for name, network in {**OURS, **ABLATIONS, **RIVALS}.items():
        assert "," not in name  # the command line takes several
        settings = network.settings(Smoothing.make())
        assert len(settings) >= 6, name
        assert len({json.dumps(s, sort_keys=True) for s in settings}) == len(settings), name
        for setting in settings:
            training.Optimiser(**setting["training"])


def test_a_missing_rival_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "neuralop", None)
    assert {"FNO", "TFNO"} <= set(missing())
    with pytest.raises(ImportError, match=r"comes from neuraloperator, .*'\.\[benchmarks\]'"):
        RIVALS["FNO"].build(Smoothing.make(), modes=4, width=4)


def command(*arguments):
    script = ROOT / "benchmarks" / "operator_learning" / "run.py"
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)


def test_missing_data_are_named(monkeypatch):
    run = command("--problem", "small_darcy", "--data", "nowhere")
    assert run.returncode == 1 and "nowhere does not hold darcy_train_16.npz" in run.stderr
    monkeypatch.delenv("SPON_DARCY", raising=False)
    with pytest.raises(FileNotFoundError, match=r"--data or the environment variable SPON_DARCY"):
        problems.make("small_darcy")


@pytest.mark.skipif(not DARCY.is_dir(), reason=f"the small Darcy set is not here: no {DARCY}")
def test_the_small_darcy_set_from_end_to_end(tmp_path):
    output = tmp_path / "result.json"
    networks = "Spectral,message passing,POD + MLP"
    run = command("--problem", "small_darcy", "--quick", "--data", DARCY, "--networks", networks,
                  "--cache", tmp_path, "--output", output)  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    record = json.loads(output.read_text())
    assert [n["network"] for n in record["results"]["networks"]] == networks.split(",")
    for network in record["results"]["networks"]:
        assert network["summary"]["runs"] == 2
        for test in ("16", "32"):
            assert 0.05 < network["summary"][test]["error"]["mean"] < 2
    # The set's own equation on its own points: what is known of the coefficient limits it.
    best = min(r["error"] for r in record["results"]["solvers"] if r["test"] == "32")
    assert best < 0.1
    (line,) = [x for x in report.network_table(record).splitlines() if "POD + MLP |" in x]
    pod = record["results"]["networks"][2]["summary"]
    assert f"{100 * pod['32']['error']['mean']:.3g}%" in line
    assert "**Spectral** | 2 |" in report.setting_table(record)
    assert "32 x 32, unseen" in report.solver_table(record)
    report.picture("small_darcy", record, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["poisson", "darcy_holes"])
def test_a_problem_from_end_to_end(name, tmp_path):
    output = tmp_path / "result.json"
    run = command("--problem", name, "--quick", "--networks", "POD + MLP", "--settings", "1",
                  "--cache", tmp_path, "--output", output)  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    record = json.loads(output.read_text())
    (network,) = record["results"]["networks"]
    assert 0.01 < network["summary"]["validation"]["mean"] < 2
    (tuned,) = network["tried"]
    assert tuned["cpu_seconds"] > 0
    floors = record["results"]["floors"]
    assert 0 < floors["best_approximation"] < floors["finite_elements"] < 0.1
    text = report.network_table(record) + report.floor(record) + report.paces(record)
    assert "POD + MLP" in text and report.notes(record).startswith("POD + MLP: ")


def test_settings_are_chosen_without_the_test_samples(tmp_path):
    problem = Smoothing.make()
    network = RIVALS["POD + MLP"]
    plan = harness.Plan(training.Budget(60.0, 2), seeds=(0,), settings=2)
    records = harness.Records(tmp_path / "runs.jsonl")
    harness.compare(problem, [network], plan, records)
    tests = [json.loads(x)["tests"] for x in records.path.read_text().splitlines()]
    assert tests[:2] == [None, None] and tests[2] is not None


def test_the_set_up_is_part_of_the_budget():
    problem = Smoothing.make()
    model = RIVALS["message passing"].build(problem, channels=8, rounds=1)
    data = (problem.train, problem.validation, training.Optimiser())
    found = training.train(model, *data, training.Budget(10.0, 10**6), 0, setup=9.9)
    assert found["curve"][0][0] == 9.9 and 10.0 <= found["cpu_seconds"] < 10.5


def test_a_linear_pod_starts_from_least_squares():
    problem = Smoothing.make()  # a linear map, of six or fewer modes
    model = RIVALS["POD + MLP"].build(problem, inputs=40, outputs=40, width=0, depth=0)
    found = training.predict(model, problem.validation)
    assert float(relative(found, problem.validation.y).max()) < 1e-3


def test_accuracy_against_cost(tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy_cost, "RESULTS", tmp_path)
    degrees = accuracy_cost.degrees(True, 0.1, 1)
    for space in degrees:
        (solver,) = space["solvers"]
        assert solver["dofs"] == 81 and 0.01 < solver["error"] < 0.3
        for n in space["networks"]:
            measured = n["runs"][0]["tests"]["unseen"]
            # What a network is off by is not far from the error in its space and its own.
            whole, own = (measured[k]["mean"] for k in ("against_reference", "error"))
            assert abs(whole - own) < 2 * solver["error"] * (1 + own)
    assert degrees[1]["solvers"][0]["error"] < degrees[0]["solvers"][0]["error"]
    settings = {json.dumps([n["setting"] for n in s["networks"]]) for s in degrees}
    assert len(settings) == 1
    record = {
        "settings": {"seconds": 0.1, "budgets": [0.1], "seeds": 1},
        "results": {"degrees": degrees, "levels": [
            {"network": "Graph", "pair": "messages", "seconds": 0.1, "dofs": 81,
             "runs": [{**degrees[0]["networks"][0]["runs"][0], "tests": {"mesh": {"error": {
                 "mean": 0.25}}}}]},
        ]},
    }  # fmt: skip
    assert "| Graph | 5,011 | 25.00% |" in cost_report._accuracy(record)
    cost_report._accuracy_picture(record, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_fluxes_from_end_to_end(tmp_path):
    output = tmp_path / "result.json"
    names = ("Spectral", "Spectral without promise", "message passing", "POD + MLP")
    problem = problems.make("darcy_flux", quick=True)
    plan = harness.Plan(training.Budget(0.5, 4), seeds=(0, 1), settings=1)
    networks = [{**OURS, **ABLATIONS, **RIVALS}[name] for name in names]
    records = harness.Records(tmp_path / "runs.jsonl")
    found = harness.compare(problem, networks, plan, records)
    kept, without, passing, pod = (n["summary"]["mesh"] for n in found)
    exact = ("cell_outflow", "cell_outflow_largest", "wall_flux", "wall_trace", "imbalance")
    for name in exact:
        assert kept[name]["largest"] < 1e-12, name
        assert passing[name]["least"] > 1e-3, name
    assert pod["cell_outflow"]["mean"] < 1e-6 and pod["wall_flux"]["mean"] < 1e-12
    assert without["wall_flux"]["mean"] == 0 and without["cell_outflow"]["mean"] > 1e-3
    assert kept["tracers_walls"]["mean"] == 0 and kept["tracers_inside"]["mean"] == 0
    assert kept["projected"]["mean"] == pytest.approx(kept["error"]["mean"], rel=1e-6)
    assert without["projected"]["mean"] < without["error"]["mean"]
    assert all(n["network"] in names and n["summary"]["runs"] == 2 for n in found)
    assert ["shown" in r for r in found[0]["runs"]] == [True, False]
    record = {
        "settings": {"title": problem.title, "tests": {"mesh": 16}},
        "results": {
            "networks": found, "solvers": [], "floors": problem.floors(),
            "reference": problem.reference(),
        },
    }  # fmt: skip
    output.write_text(json.dumps(record, allow_nan=False))
    tables = report.flux_tables("darcy_flux", json.loads(output.read_text()))
    assert "| **Spectral** | " in tables and "| *finite elements* | 100.0% | 0.0% |" in tables
    assert "at the vertices" in report.floor(record)
    flux_report.tracer_picture(record, found, tmp_path / "tracers.png")
    assert 10_000 < (tmp_path / "tracers.png").stat().st_size < 300_000


def test_the_networks_of_a_problem(monkeypatch):
    script = ROOT / "benchmarks" / "operator_learning" / "run.py"
    spec = importlib.util.spec_from_file_location("operator_learning_run", script)
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    monkeypatch.setattr(run, "missing", lambda: ["FNO"])
    every = [n.name for n in run.chosen(None, Smoothing.make())]
    assert every == [name for name in {**OURS, **RIVALS} if name != "FNO"]
    flux = run.problems.import_module("operator_learning.flux").DarcyFlux
    chosen = [n.name for n in run.chosen(None, flux)]
    assert chosen == [name for name in flux.networks if name != "FNO"]
    with pytest.raises(SystemExit, match="No network is called wrong"):
        run.chosen("Spectral,wrong", flux)


def test_how_soon_a_network_is_as_good_as_a_rival_in_the_end():
    def network(name, *curves):
        summary = {"runs": len(curves), "validation": {"mean": 0.5}}
        runs = [{"curve": curve} for curve in curves]
        return {"network": name, "ours": name == "fast", "summary": summary, "runs": runs}

    rival = network("message passing", [[10.0, 0.5]])
    fast = network("fast", [[3.0, 0.6], [7.0, 0.4], [9.0, 0.3]], [[3.0, 0.4], [7.0, 0.6]])
    never = network("never", [[10.0, 0.1]], [[10.0, 0.6]])
    record = {"results": {"networks": [rival, fast, never]}}
    assert "50%, is reached with every seed after: **fast** 7 s (" in report.pace(record)
    record["results"]["networks"].pop(1)
    assert report.pace(record).startswith("None reaches")


def test_problems_and_their_blocks_on_the_page():
    assert set(report.NAMES) == set(problems.PROBLEMS)
    page = (ROOT / "docs" / "benchmarks.md").read_text() + (ROOT / "README.md").read_text()
    for name in report.blocks(lambda record: ""):
        assert f"<!-- {name} -->" in page


def linear(points):
    return 1 + 2 * points[:, 0] - 3 * points[:, 1]


@pytest.mark.parametrize(("degree", "cells"), [(1, 5), (2, 3)])
def test_the_lattice_of_the_square_is_an_image(degree, cells):
    level = poisson._level(cells, degree)
    image = level.grid.image(linear(level.points)[None])
    side = cells * degree + 1
    at = torch.linspace(0, 1, side)
    expected = 1 + 2 * at[:, None] - 3 * at[None]
    torch.testing.assert_close(image[0, 0], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(level.grid.values(image)[0], linear(level.points))
    assert level.grid.ends[0] == pytest.approx(1 + 1 / (side - 1))


def test_the_floor_of_the_space_lies_below_the_finite_element_solution():
    floors = []
    for cells in (32, 64):  # a quarter of it
        problem = problems.make("poisson", quick=True, cells=cells)
        floor = problem.floors()
        assert 0 < floor["best_approximation"] < floor["finite_elements"]
        exact = problem.measures("unseen", problem.tests["unseen"].y)
        assert float(exact["error"].max()) < 1e-12
        assert float(exact["against_reference"].mean()) == pytest.approx(floor["finite_elements"])
        floors.append(floor)
    assert floors[1]["finite_elements"] < 0.5 * floors[0]["finite_elements"]


def test_the_plate_as_an_image_and_on_the_finer_mesh():
    problem = problems.make("darcy_holes", quick=True)
    coarse, fine = problem.level, problem.tests["refined"].level
    for level in (coarse, fine):
        width, height = level.grid.shape
        x, y = np.linspace(0, 2, width), np.linspace(0, 1, height)
        image = torch.from_numpy(1 + 2 * x[:, None] - 3 * y[None]).float()[None, None]
        torch.testing.assert_close(level.grid.values(image)[0], linear(level.points))
        assert 0.75 < float(level.grid.mask.mean()) < 0.95
        ones = level.grid.image(torch.ones(1, level.inputs)).flatten()
        torch.testing.assert_close(ones, level.grid.mask)
        points = level.to_points.batch(torch.ones(1, level.inputs))
        torch.testing.assert_close(points, torch.ones(1, level.outputs))
    lifted = fine.prolong.batch(linear(coarse.points)[None])[0]
    torch.testing.assert_close(lifted, linear(fine.points))
    both = [problem.tests[key].x for key in ("mesh", "refined")]
    torch.testing.assert_close(fine.restrict.batch(both[1]), both[0])


def test_the_half_open_grid_and_bilinear_functions():
    coarse = small_darcy._level(4)
    fine = small_darcy._level(8, coarse)
    bump = torch.sin(torch.pi * coarse.points).prod(1)[None]
    u = coarse.output_coefficients(bump)
    torch.testing.assert_close(coarse.values(u), bump)
    function = fem.to_function(u[0].double(), coarse.U)
    at = fem.evaluation_map(coarse.U, fine.points.numpy())(fem.to_tensor(function))
    torch.testing.assert_close(fine.prolong.batch(bump)[0], at.float())
    x = torch.arange(64.0)[None]
    expected = torch.arange(64).reshape(8, 8)[::2, ::2].flatten().float()
    torch.testing.assert_close(fine.restrict.batch(x)[0], expected)
    torch.testing.assert_close(fine.values(fine.coefficients(x)), x)
