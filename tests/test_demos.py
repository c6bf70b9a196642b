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


@pytest.mark.parametrize("demo", DEMOS, ids=lambda p: p.stem)
def test_a_demo_runs_and_leaves_its_results(demo):
    out = demo.parent / "output" / f"{demo.stem}_quick"
    shutil.rmtree(out, ignore_errors=True)  # or it would go on from the last run
    environment = {**os.environ, "PYTHONWARNINGS": "error::DeprecationWarning:__main__"}
    run = subprocess.run(
        [sys.executable, demo, "--quick"], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "relative L2 error on 10 unseen samples" in run.stdout
    report = json.loads((out / "report.json").read_text())
    assert report["boundary_violation"] == 0.0
    assert 0 < report["mean_error"] < 2
    suffixes = {p.suffix for p in out.iterdir()}
    assert {".png", ".pvd", ".csv", ".h5", ".spon", ".pt"} <= suffixes


@pytest.mark.parametrize("demo", DEMOS, ids=lambda p: p.stem)
def test_a_demo_is_short(demo):
    assert 30 <= len(demo.read_text().splitlines()) <= 100
