"""A training run that is killed, twice, and started again ends with the same bits."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
EPOCHS, ITERATIONS = 12, 60

SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
import torch
from torch import nn
from spon.training import fit

folder, pause = Path(sys.argv[1]), float(sys.argv[2])


class Data:
    def __init__(self, n):
        g = torch.Generator().manual_seed(1)
        self.x = torch.randn(n, 6, generator=g)
        self.y = torch.randn(n, 4, generator=g)

    def __len__(self):
        return len(self.y)

    def tensors(self, dtype):
        return (self.x.to(dtype),), self.y.to(dtype), None


def slow_mse(prediction, target):
    time.sleep(pause)
    return (prediction - target).square().mean()


torch.manual_seed(0)
net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 4))
fit(net, Data(50), slow_mse, validation=0.2, epochs={epochs}, batch_size=8, lr=0.01,
    lbfgs={iterations}, clip=1.0, checkpoint=folder / "run.pt", log=folder / "log.csv",
    plot=folder / "plot.png", progress=False)
torch.save(net.state_dict(), folder / "weights.pt")
"""


def start(tmp_path, name, pause):
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(root=str(ROOT), epochs=EPOCHS, iterations=ITERATIONS))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(folder), str(pause)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def epochs_logged(folder):
    log = folder / "log.csv"
    return max(0, len(log.read_text().splitlines()) - 1) if log.exists() else 0


def kill_after(tmp_path, name, epochs):
    process = start(tmp_path, name, pause=0.01)
    deadline = time.monotonic() + 120
    while epochs_logged(tmp_path / name) < epochs:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.003)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    assert not (tmp_path / name / "weights.pt").exists()


def finish(tmp_path, name):
    _, errors = start(tmp_path, name, pause=0.0).communicate(timeout=120)
    folder = tmp_path / name
    assert (folder / "weights.pt").exists(), errors
    with open(folder / "log.csv", newline="") as file:
        rows = [{**row, "seconds": None} for row in csv.DictReader(file)]
    return torch.load(folder / "weights.pt", weights_only=True), rows


def test_killed_runs_end_with_the_same_bits(tmp_path):
    kill_after(tmp_path, "killed", 4)
    kill_after(tmp_path, "killed", EPOCHS + 2)  # in the rounds of L-BFGS
    weights, rows = finish(tmp_path, "killed")
    expected_weights, expected_rows = finish(tmp_path, "whole")
    assert rows == expected_rows
    assert len(rows) == EPOCHS + ITERATIONS // 10
    assert all(torch.equal(weights[name], value) for name, value in expected_weights.items())
    # What a kill in the middle of writing may leave behind is overwritten and taken away.
    names = ["log.csv", "plot.png", "run.pt", "weights.pt"]
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == names
