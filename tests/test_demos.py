"""The demos run from start to end, leave what they promise, and are read as documentation."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DEMOS = sorted((ROOT / "demos").glob("*.py"))


def reports(demo):
    """Whether a demo trains a network on samples and reports how good it is."""
    return "spon.report(" in demo.read_text()


def run(demo):
    """Run a demo for the tests; what it printed, and the folder with its results."""
    out = demo.parent / "output" / f"{demo.stem}_quick"
    shutil.rmtree(out, ignore_errors=True)  # or it would go on from the last run
    environment = {**os.environ, "PYTHONWARNINGS": "error::DeprecationWarning:__main__"}
    done = subprocess.run(
        [sys.executable, demo, "--quick"], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, out


@pytest.mark.parametrize("demo", [d for d in DEMOS if reports(d)], ids=lambda p: p.stem)
def test_a_demo_runs_and_leaves_its_results(demo):
    printed, out = run(demo)
    assert "relative L2 error on 10 unseen samples" in printed
    report = json.loads((out / "report.json").read_text())
    assert report["boundary_violation"] == 0.0
    assert 0 < report["mean_error"] < 2
    suffixes = {p.suffix for p in out.iterdir()}
    assert {".png", ".pvd", ".csv", ".h5", ".spon", ".pt"} <= suffixes


def test_the_corrected_gradient_is_right_where_the_other_is_not():
    _, out = run(ROOT / "demos" / "corrected_gradient.py")
    report = json.loads((out / "report.json").read_text())
    assert report["orders"]["spon's"] > 1.95 > 1.5 > report["orders"]["Firedrake's"]
    assert max(report["errors"]["spon's"]) < 1e-12
    assert max(report["errors"]["Firedrake's"]) > 0.1
    assert (out / "gradient.png").exists()


def test_the_law_in_the_solve_comes_closer():
    _, out = run(ROOT / "demos" / "network_in_a_solve.py")
    assert json.loads((out / "report.json").read_text())["law_error"] < 0.2
    assert (out / "law.png").exists()


def test_the_cell_has_its_tangent():
    _, out = run(ROOT / "demos" / "rve_tangent.py")
    report = json.loads((out / "report.json").read_text())
    assert report["tangent_error"] < 1e-7 and report["hill_mandel"] < 1e-10
    assert {".png", ".pvd", ".json"} <= {p.suffix for p in out.iterdir()}


def test_the_membrane_is_near_to_its_cells():
    _, out = run(ROOT / "demos" / "cook_equino.py")
    report = json.loads((out / "report.json").read_text())
    assert report["largest_error"] < 0.05 and max(report["iterations"]) <= 5
    assert {".png", ".pvd", ".json", ".h5", ".fe_ol"} <= {p.suffix for p in out.iterdir()}


def test_the_guarded_plate_keeps_its_tolerance():
    _, out = run(ROOT / "demos" / "guarded_plate.py")
    report = json.loads((out / "report.json").read_text())
    assert report["reach"] > 1.5
    assert report["unguarded"] > report["tolerance"] > report["guarded"]
    assert report["second"] <= report["first"] / 10
    assert {".png", ".pvd", ".json"} <= {p.suffix for p in out.iterdir()}


def test_every_demo_is_run():
    others = {d.stem for d in DEMOS if not reports(d)}
    assert others == {
        "cook_equino",
        "corrected_gradient",
        "fibre_stiffness",
        "guarded_plate",
        "network_in_a_solve",
        "rve_tangent",
    }


@pytest.mark.parametrize("demo", DEMOS, ids=lambda p: p.stem)
def test_a_demo_is_short(demo):
    assert 30 <= len(demo.read_text().splitlines()) <= 100
