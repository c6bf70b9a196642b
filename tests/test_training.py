"""The training loop: its numbers, its files, its refusals."""

from __future__ import annotations

import contextlib
import csv
import math
import os
import subprocess
import sys
from datetime import timedelta
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.optim import lr_scheduler

from spon.history import History
from spon.training import TrainingDivergedError, evaluate, fit

ROOT = Path(__file__).resolve().parents[1]
QUIET = {"progress": False, "dtype": torch.float64}


class Data:
    """The part of a dataset that training uses."""

    def __init__(self, x, y, boundary=None):
        self.inputs, self.output, self.boundary = {"f": x}, y, boundary

    def __len__(self):
        return len(self.output)

    def tensors(self, dtype):
        boundary = None if self.boundary is None else self.boundary.to(dtype)
        return (self.inputs["f"].to(dtype),), self.output.to(dtype), boundary


class Net(nn.Module):
    """Two layers with dropout and a calibration, like a small operator network."""

    def __init__(self, seed=0, dropout=0.0, width=8):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Linear(5, width), nn.Linear(width, 3)
        self.dropout = nn.Dropout(dropout)
        self.never_used = nn.Parameter(torch.ones(2))
        self.register_buffer("scale", torch.zeros(()))
        self.batches = []

    @property
    def calibrated(self):
        return bool(self.scale != 0)

    def calibrate(self, inputs, output):
        self.scale.fill_(output.std())

    def forward(self, x, boundary=None):
        if self.training:
            self.batches.append(x[:, 0].tolist())
        y = self.last(self.dropout(torch.tanh(self.first(x)))) * self.scale
        return y if boundary is None else y + boundary


class Mse:
    """Mean squared error that knows its samples, and can be told to fail."""

    def __init__(self, fail_at=None):
        self.calls, self.fail_at = 0, fail_at

    def per_sample(self, prediction, target):
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        return (prediction - target).square().mean(1)

    def __call__(self, prediction, target):
        return self.per_sample(prediction, target).mean()


def make_data(n=40, seed=0, noise=0.0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=g, dtype=torch.float64)
    y = torch.stack([x.sum(1), torch.sin(x[:, 0]), x[:, 1] * x[:, 2]], 1)
    return Data(x, y + noise * torch.randn(n, 3, generator=g, dtype=torch.float64))


def weights(net):
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def read_log(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# -- the numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "constant"])
def test_full_batches_are_the_textbook_loop(schedule, clip):
    data, epochs, lr = make_data(30), 12, 0.02
    net, reference = Net(), Net().double()
    history = fit(net, data, Mse(), None, epochs, 30, lr, 0.05, schedule, clip=clip, **QUIET)
    reference.calibrate(None, data.output)
    optimiser = torch.optim.AdamW(reference.parameters(), lr, weight_decay=0.05, foreach=False)
    scheduler = {
        "onecycle": lambda: lr_scheduler.OneCycleLR(optimiser, lr, epochs),
        "cosine": lambda: lr_scheduler.CosineAnnealingLR(optimiser, epochs),
        "constant": lambda: lr_scheduler.LambdaLR(optimiser, lambda _: 1.0),
    }[schedule]()
    best, kept, rates = math.inf, None, []
    for _ in range(epochs):
        rates.append(scheduler.get_last_lr()[0])
        optimiser.zero_grad()
        loss = (reference(data.inputs["f"]) - data.output).square().mean()
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(reference.parameters(), clip)
        optimiser.step()
        scheduler.step()
        if loss.item() < best:
            best, kept = loss.item(), weights(reference).clone()
    torch.testing.assert_close(weights(net), kept, rtol=1e-11, atol=1e-13)
    assert history.best == pytest.approx(best, rel=1e-11)
    np.testing.assert_allclose(history.lr, rates, rtol=1e-12)


def test_each_epoch_meets_each_sample_once_in_an_order_of_its_own():
    data, net, again, other = make_data(23), Net(), Net(), Net()
    fit(net, data, Mse(), None, epochs=3, batch_size=5, **QUIET)
    fit(again, data, Mse(), None, epochs=3, batch_size=5, **QUIET)
    fit(other, data, Mse(), None, epochs=3, batch_size=5, seed=1, **QUIET)
    assert [len(batch) for batch in net.batches] == 3 * [5, 5, 5, 5, 3]
    epochs = [list(chain(*net.batches[i : i + 5])) for i in (0, 5, 10)]
    assert all(sorted(e) == sorted(data.inputs["f"][:, 0].tolist()) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert again.batches == net.batches
    assert other.batches != net.batches


def test_a_short_last_batch_counts_with_the_mean_of_its_samples():
    data, net, reference = make_data(23), Net(), Net().double()
    fit(net, data, Mse(), None, 1, 5, 0.02, schedule="constant", **QUIET)
    reference.calibrate(None, data.output)
    optimiser = torch.optim.AdamW(reference.parameters(), 0.02, weight_decay=1e-4)
    names = data.inputs["f"][:, 0].tolist()
    for batch in net.batches:
        rows = [names.index(name) for name in batch]
        optimiser.zero_grad()
        prediction = reference(data.inputs["f"][rows])
        nn.functional.mse_loss(prediction, data.output[rows]).backward()
        optimiser.step()
    torch.testing.assert_close(weights(net), weights(reference), rtol=1e-11, atol=1e-13)


def test_lbfgs_finds_the_least_squares_solution():
    data = make_data(40, noise=0.1)
    net = nn.Linear(5, 3)
    fit(net, data, Mse(), None, epochs=0, lbfgs=60, batch_size=7, **QUIET)
    x = np.column_stack([data.inputs["f"].numpy(), np.ones(40)])
    solution = np.linalg.lstsq(x, data.output.numpy(), rcond=None)[0].T
    found = torch.cat([net.weight, net.bias[:, None]], 1).detach().numpy()
    np.testing.assert_allclose(found, solution, rtol=1e-7, atol=1e-9)


def test_lbfgs_lowers_what_adamw_left():
    net = Net()
    history = fit(net, make_data(), Mse(), 0.2, epochs=5, lbfgs=25, **QUIET)
    assert len(history) == 5 + 3
    assert history.train[-1] < 0.5 * min(history.train[:5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_is_that_which_was_asked_for(dtype):
    net = Net()
    history = fit(net, make_data(), Mse(), epochs=3, lbfgs=3, dtype=dtype, progress=False)
    assert {p.dtype for p in net.parameters()} == {dtype}
    assert history.train[-1] < history.train[0]
    assert evaluate(net, make_data(), Mse()).dtype == dtype


def test_the_network_holds_the_weights_of_the_best_validation_epoch():
    data, net = make_data(30, noise=3.0), Net(width=64)
    history = fit(net, data, Mse(), 0.3, 400, 8, 0.02, schedule="constant", patience=15, **QUIET)
    assert history.stopped_early
    assert len(history) == history.best_epoch + 15
    assert history.best == min(history.validation) < history.start
    held = torch.tensor(history.validation_samples)
    assert len(held) == 9
    value = evaluate(net, data, Mse())[held].mean().item()
    assert value == pytest.approx(history.best, rel=1e-12)


def test_weights_that_training_makes_worse_are_kept():
    """Those of a first training, or of a linear fit, stay if nothing better is met."""
    data, held, net = make_data(30), make_data(9, seed=5), Net()
    fit(net, data, Mse(), held, epochs=300, lr=0.02, **QUIET)
    before, start = weights(net), evaluate(net, held, Mse()).mean().item()
    history = fit(net, data, Mse(), held, epochs=2, lr=0.5, schedule="constant", **QUIET)
    assert min(history.validation) > 2 * start
    assert torch.equal(weights(net), before)
    assert history.best_epoch == 0
    assert history.best == history.start == pytest.approx(start, rel=1e-12)


def test_validation_samples_are_not_trained_on():
    data, net = make_data(20), Net()
    history = fit(net, data, Mse(), 0.25, epochs=2, batch_size=4, **QUIET)
    held = set(data.inputs["f"][history.validation_samples, 0].tolist())
    assert len(held) == 5
    assert not held & set(list(chain(*net.batches)))
    assert len(set(list(chain(*net.batches)))) == 15


def test_validation_data_of_their_own():
    data, other, net = make_data(20), make_data(9, seed=5), Net()
    history = fit(net, data, Mse(), other, epochs=2, **QUIET)
    assert history.validation_samples == []
    assert history.best == pytest.approx(evaluate(net, other, Mse()).mean().item(), rel=1e-12)


def test_boundary_values_reach_the_network():
    data = make_data(10)
    shifted = Data(data.inputs["f"], data.output + 3.0, torch.full((10, 3), 3.0))
    net = Net().double()
    net.calibrate(None, data.output)
    torch.testing.assert_close(evaluate(net, shifted, Mse()), evaluate(net, data, Mse()))
    fit(net, shifted, Mse(), None, epochs=1, **QUIET)


def test_a_plain_mean_loss_trains_to_the_same_weights():
    data, net, plain = make_data(23), Net(), Net()
    arguments = {"epochs": 4, "batch_size": 5, "lbfgs": 4, **QUIET}
    fit(net, data, Mse(), **arguments)
    fit(plain, data, nn.functional.mse_loss, **arguments)
    torch.testing.assert_close(weights(plain), weights(net), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        evaluate(plain, data, nn.functional.mse_loss), evaluate(plain, data, Mse())
    )


def test_a_schedule_of_ones_own_is_stepped_each_epoch():
    history = fit(
        Net(),
        make_data(),
        Mse(),
        epochs=5,
        lr=0.1,
        schedule=lambda optimiser: lr_scheduler.StepLR(optimiser, 2, 0.5),
        **QUIET,
    )
    np.testing.assert_allclose(history.lr, [0.1, 0.1, 0.05, 0.05, 0.025])


def test_a_plateau_schedule_is_told_the_validation_loss():
    told = []

    class Plateau(lr_scheduler.ReduceLROnPlateau):
        def step(self, metrics, epoch=None):
            told.append(metrics)
            super().step(metrics)

    def schedule(optimiser):
        return Plateau(optimiser, factor=0.1, patience=0, threshold=1e9, threshold_mode="abs")

    history = fit(Net(), make_data(), Mse(), epochs=4, lr=0.1, schedule=schedule, **QUIET)
    assert told == history.validation
    np.testing.assert_allclose(history.lr, [0.1, 0.1, 0.01, 0.001])


def test_evaluate_leaves_the_network_as_it_was():
    net = Net(dropout=0.5).train()
    net.calibrate(None, torch.tensor([1.0, 2.0]))
    before = weights(net)
    first = evaluate(net, make_data(), Mse(), batch_size=7)
    assert torch.allclose(first, evaluate(net, make_data(), Mse()))
    assert net.training
    assert torch.equal(weights(net), before)
    assert not first.requires_grad


def test_evaluate_leaves_the_mode_of_each_part():
    net = Net(dropout=0.5).train()
    net.calibrate(None, torch.tensor([1.0, 2.0]))
    net.dropout.eval()
    evaluate(net, make_data(), Mse())
    assert net.training and net.first.training and not net.dropout.training
    with pytest.raises(KeyboardInterrupt):
        evaluate(net, make_data(), Mse(fail_at=1))
    assert net.training and not net.dropout.training


def test_the_random_numbers_of_the_caller_are_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    net = Net(dropout=0.2)
    torch.manual_seed(3)
    fit(net, make_data(), Mse(), epochs=2, **QUIET)
    assert torch.equal(torch.rand(4), expected)


# -- files and resumption ------------------------------------------------------------------------


def test_log_and_plot_tell_the_course(tmp_path):
    log, plot = tmp_path / "new" / "log.csv", tmp_path / "losses.png"
    history = fit(Net(), make_data(), Mse(), epochs=4, lbfgs=15, log=log, plot=plot, **QUIET)
    rows = read_log(log)
    assert list(rows[0]) == ["epoch", "train", "validation", "lr", "seconds"]
    for name in rows[0]:
        assert [float(row[name]) for row in rows] == getattr(history, name)
    assert plot.read_bytes().startswith(b"\x89PNG")
    history.plot(tmp_path / "losses.svg")
    assert "training" in (tmp_path / "losses.svg").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["losses.png", "losses.svg", "new"]


@pytest.mark.parametrize(("shift", "scale"), [(1.0, "log"), (-0.5, "linear"), (-5.0, "linear")])
def test_losses_that_are_negative_are_seen(tmp_path, monkeypatch, shift, scale):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    monkeypatch.setattr("spon.history.replaced", contextlib.nullcontext)
    history = History()
    for i in range(4):
        history.add(shift + 1.0 / (i + 1), math.nan, 0.1, 1.0 * i)
    history.plot(tmp_path / "losses.png")
    (axes,) = drawn[0].axes
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    assert low < min(history.train) < max(history.train) < high


def test_the_log_leaves_validation_blank_without_validation(tmp_path):
    fit(Net(), make_data(), Mse(), None, 2, log=tmp_path / "log.csv", **QUIET)
    assert [row["validation"] for row in read_log(tmp_path / "log.csv")] == ["", ""]


@pytest.mark.parametrize("schedule", ["onecycle", "constant"])
# 12 epochs of 5 batches and 1 validation; then rounds of ten or more closures of 5 batches.
@pytest.mark.parametrize("fail_at", [2, 33, 74, 150, 220])
def test_an_interrupted_run_goes_on_to_the_same_numbers(tmp_path, schedule, fail_at):
    def arguments(name):
        return {
            "epochs": 12,
            "lbfgs": 35,
            "batch_size": 8,
            "lr": 0.02,
            "schedule": schedule,
            "log": tmp_path / f"{name}.csv",
            "checkpoint": tmp_path / f"{name}.pt",
            **QUIET,
        }

    net, data = Net(dropout=0.1), make_data(44)
    history = fit(net, data, Mse(), **arguments("whole"))
    with pytest.raises(KeyboardInterrupt):
        fit(Net(dropout=0.1), data, Mse(fail_at), **arguments("parts"))
    resumed = Net(seed=7, dropout=0.1)
    second = fit(resumed, data, Mse(), **arguments("parts"))
    if fail_at == 2:
        # Before the first checkpoint there is nothing to resume: other first weights count.
        assert not torch.equal(weights(resumed), weights(net))
        return
    assert torch.equal(weights(resumed), weights(net))
    assert resumed.scale == net.scale
    for name in ("epoch", "train", "validation", "lr", "best_epoch", "validation_samples"):
        assert getattr(second, name) == getattr(history, name)
    assert second.seconds == sorted(second.seconds)
    drop = ("epoch", "train", "validation", "lr")
    rows = [
        [[row[k] for k in drop] for row in read_log(tmp_path / f"{n}.csv")]
        for n in ("whole", "parts")
    ]
    assert rows[0] == rows[1]


def test_a_finished_run_is_not_run_again(tmp_path):
    arguments = {"epochs": 3, "lbfgs": 5, "checkpoint": tmp_path / "run.pt", **QUIET}
    net, again, loss = Net(), Net(seed=4), Mse()
    first = fit(net, make_data(), Mse(), **arguments)
    second = fit(again, make_data(), loss, **arguments)
    assert loss.calls == 0
    assert torch.equal(weights(again), weights(net))
    assert second == first


def test_patience_is_remembered(tmp_path):
    arguments = {
        "epochs": 300,
        "lr": 0.05,
        "schedule": "constant",
        "patience": 4,
        "checkpoint": tmp_path / "run.pt",
        **QUIET,
    }
    data = make_data(20, noise=3.0)
    first = fit(Net(), data, Mse(), 0.3, **arguments)
    assert first.stopped_early
    second = fit(Net(), data, Mse(), 0.3, **arguments)
    assert second == first


def test_patience_is_remembered_in_the_rounds_of_lbfgs(tmp_path):
    arguments = {"epochs": 5, "lbfgs": 500, "patience": 3, "checkpoint": tmp_path / "c.pt", **QUIET}
    data, loss = make_data(40, noise=3.0), Mse()
    first = fit(Net(width=64), data, Mse(), 0.3, **arguments)
    assert first.stopped_early
    assert 5 < len(first) < 55
    second = fit(Net(width=64), data, loss, 0.3, **arguments)
    assert second == first
    assert loss.calls == 0


def test_the_log_forgets_epochs_after_the_checkpoint(tmp_path):
    log, path = tmp_path / "log.csv", tmp_path / "run.pt"
    arguments = {"log": log, "checkpoint": path, "checkpoint_every": 3, **QUIET}
    with pytest.raises(KeyboardInterrupt):
        fit(Net(), make_data(10), Mse(fail_at=6), None, 8, **arguments)
    assert [int(row["epoch"]) for row in read_log(log)] == [1, 2, 3, 4, 5]
    fit(Net(), make_data(10), Mse(), None, 8, **arguments)
    assert [int(row["epoch"]) for row in read_log(log)] == list(range(1, 9))


def test_a_run_with_the_constant_schedule_can_be_prolonged(tmp_path):
    arguments = {"schedule": "constant", "checkpoint": tmp_path / "run.pt", **QUIET}
    net, whole = Net(), Net()
    fit(Net(), make_data(), Mse(), epochs=3, **arguments)
    fit(net, make_data(), Mse(), epochs=6, **arguments)
    fit(whole, make_data(), Mse(), epochs=6, schedule="constant", **QUIET)
    assert torch.equal(weights(net), weights(whole))


@pytest.mark.parametrize("every", [3, timedelta(seconds=1e6)])
def test_checkpoints_can_be_rarer(tmp_path, every):
    path = tmp_path / "run.pt"
    seen = []

    class Watching(Mse):
        def per_sample(self, prediction, target):
            seen.append(path.stat().st_mtime_ns if path.exists() else None)
            return super().per_sample(prediction, target)

    fit(Net(), make_data(10), Watching(), None, 7, checkpoint=path, checkpoint_every=every, **QUIET)
    assert len(set(seen)) == (3 if every == 3 else 1)
    content = torch.load(path, weights_only=True)
    assert content["state"]["history"]["epoch"] == list(range(1, 8))


def test_progress_is_shown_and_silenced(capfd):
    fit(Net(), make_data(), Mse(), epochs=2, progress=True)
    shown = capfd.readouterr().err
    assert "training" in shown
    assert "validation=" in shown
    fit(Net(), make_data(), Mse(), epochs=2, progress=False)
    assert capfd.readouterr().err == ""


# -- two processes -------------------------------------------------------------------------------

SCRIPT = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
import torch
from test_training import Mse, Net, fit, make_data
net = Net(seed={seed})
history = fit(net, make_data(37), Mse(), validation=0.1, epochs=6, batch_size=4, lr=0.02,
              clip=0.5, lbfgs=12, dtype=torch.float64, progress=False, log={folder!r} + "/log.csv",
              checkpoint={folder!r} + "/run.pt", plot={folder!r} + "/plot.png")
rank = int(__import__("os").environ["RANK"])
torch.save({{"net": net.state_dict(), "history": history.to_dict()}}, {folder!r} + f"/{{rank}}.pt")
"""


def test_two_processes_train_like_one_with_twice_the_batch(tmp_path):
    # 33 training samples in global batches of 8: the last one has a single sample, and one
    # process none.
    script = tmp_path / "train.py"
    script.write_text(
        SCRIPT.format(tests=str(ROOT / "tests"), root=str(ROOT), folder=str(tmp_path), seed=0)
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
    ]
    run = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    net = Net()
    history = fit(net, make_data(37), Mse(), 0.1, 6, 8, 0.02, clip=0.5, lbfgs=12, **QUIET)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, value in net.state_dict().items():
        assert torch.equal(first["net"][name], second["net"][name])
        torch.testing.assert_close(first["net"][name], value, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(first["history"]["train"], history.train, rtol=1e-9)
    np.testing.assert_allclose(first["history"]["validation"], history.validation, rtol=1e-9)
    assert len(read_log(tmp_path / "log.csv")) == len(history)
    # One process goes on where two left off: the file knows the global batch.
    resumed = Net(seed=9)
    fit(
        resumed,
        make_data(37),
        Mse(),
        0.1,
        6,
        8,
        0.02,
        clip=0.5,
        lbfgs=12,
        checkpoint=tmp_path / "run.pt",
        **QUIET,
    )
    assert torch.equal(
        weights(resumed),
        torch.cat([first["net"][name].reshape(-1) for name, _ in net.named_parameters()]),
    )


# -- with functions ------------------------------------------------------------------------------


def test_an_operator_network_learns_a_poisson_solve(tmp_path):
    import firedrake as fd

    from spon.datasets import Dataset
    from spon.decoders import Decoder
    from spon.encoders import Encoder
    from spon.network import OperatorNetwork
    from spon.processors import MLP

    mesh = fd.UnitSquareMesh(4, 4)
    F, U = fd.FunctionSpace(mesh, "DG", 0), fd.FunctionSpace(mesh, "CG", 2)
    f, u, v, solution = fd.Function(F), fd.TrialFunction(U), fd.TestFunction(U), fd.Function(U)
    bcs = fd.DirichletBC(U, fd.Constant(0.5), "on_boundary")
    problem = fd.LinearVariationalProblem(
        fd.inner(fd.grad(u), fd.grad(v)) * fd.dx, f * v * fd.dx, solution, bcs
    )
    solver, generator = fd.LinearVariationalSolver(problem), np.random.default_rng(0)
    sources, solutions = [], []
    for _ in range(60):
        f.dat.data[:] = 20 * generator.standard_normal(F.dim())
        solver.solve()
        sources.append(f.copy(deepcopy=True))
        solutions.append(solution.copy(deepcopy=True))
    data = Dataset.from_functions(inputs={"f": sources}, outputs={"u": solutions})

    def network():
        torch.manual_seed(0)
        return OperatorNetwork(Encoder(F), MLP(), Decoder(U, bcs=bcs))

    net, again = network(), network()
    arguments = {"epochs": 12, "lbfgs": 10, "checkpoint": tmp_path / "run.pt", **QUIET}
    history = fit(net, data, **arguments)
    assert history.best < 0.5 * history.validation[0]
    errors = evaluate(net, data)
    for i in history.validation_samples:
        error = fd.errornorm(solutions[i], net(sources[i])) / fd.norm(solutions[i])
        assert errors[i].item() == pytest.approx(error, rel=1e-10)
    assert fit(again, data, **arguments) == history
    assert torch.equal(weights(again), weights(net))
    with pytest.raises(ValueError, match=r"output 'u' is CG 2.*built for CG 1"):
        fit(OperatorNetwork(Encoder(F), MLP(), Decoder(fd.FunctionSpace(mesh, "CG", 1))), data)


# -- refusals ------------------------------------------------------------------------------------


def with_nan():
    data = make_data(6)
    data.inputs["f"][4, 2] = math.nan
    return data


def uneven():
    data = make_data(6)
    data.inputs["f"] = data.inputs["f"][:5]
    return data


class Spaced(Net):
    def check_data(self, data):
        raise ValueError("CG 1 is not CG 2")


def frozen():
    return Net().requires_grad_(False)


WRONG = {
    "empty": ({"data": make_data(0)}, ValueError, "training set is empty"),
    "no dataset": ({"data": 1}, TypeError, "spon.Dataset as training, got int"),
    "nan": ({"data": with_nan()}, ValueError, "NaN or infinity: input 'f' of sample 4"),
    "uneven": ({"data": uneven()}, ValueError, "5 samples of input 'f' and 6 of the output"),
    "spaces": ({"net": Spaced()}, ValueError, "CG 1 is not CG 2"),
    "frozen": ({"net": frozen()}, ValueError, "Net has no trainable weights"),
    "default loss": ({"loss": None}, ValueError, "Net has no decoder.*pass loss="),
    "loss": ({"loss": "L2"}, TypeError, r"loss must be callable.*got str"),
    "vector loss": (
        {"loss": lambda p, t: (p - t).square().mean(1)},
        ValueError,
        r"must return a scalar.*shape \(4,\)",
    ),
    "float loss": ({"loss": lambda p, t: 1.0}, ValueError, "must return a scalar.*float"),
    "batch_size": ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
    "half batch": ({"batch_size": 1.5}, TypeError, "batch_size must be a whole number, got 1.5"),
    "epochs": ({"epochs": -1}, ValueError, "epochs must be at least 0, got -1"),
    "nothing": ({"epochs": 0}, ValueError, "epochs=0 and lbfgs=0 leave nothing to do"),
    "lr": ({"lr": 0.0}, ValueError, "lr must be a positive number, got 0.0"),
    "weight_decay": ({"weight_decay": -1.0}, ValueError, "non-negative number, got -1.0"),
    "clip": ({"clip": math.nan}, ValueError, "clip must be a positive number, got nan"),
    "patience": ({"patience": 0}, ValueError, "patience must be at least 1"),
    "schedule": ({"schedule": "step"}, ValueError, "Unknown schedule 'step'.*'onecycle'"),
    "scheduler": ({"schedule": lambda o: None}, TypeError, "return a scheduler.*NoneType"),
    "fraction": ({"validation": 1.0}, ValueError, "validation=1.0 must be a fraction between"),
    "no fraction": ({"validation": 0}, ValueError, "validation=0 must be.*validation"),
    "too few": ({"data": make_data(1)}, ValueError, "of 1 samples leaves none to train on"),
    "validation nan": ({"validation": with_nan()}, ValueError, "validation set holds NaN"),
    "dtype": ({"dtype": torch.float16}, ValueError, "float32 or torch.float64, got torch.float16"),
    "every": ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be at least 1"),
    "folder": ({"log": ROOT}, ValueError, "is a folder: give the name of a file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_say_what_is_wrong(name):
    arguments, kind, message = WRONG[name]
    full = {"net": Net(), "data": make_data(), "loss": Mse(), "epochs": 1, **QUIET, **arguments}
    with pytest.raises(kind, match=message):
        fit(**full)


def test_divergence_says_when_and_leaves_the_best_weights(tmp_path):
    class Exploding(Mse):
        def per_sample(self, prediction, target):
            values = super().per_sample(prediction, target)
            return values * math.inf if self.calls > 3 * 7 + 2 else values

    net, good = Net(), Net()
    arguments = {"validation": None, "batch_size": 8, "schedule": "constant", **QUIET}
    with pytest.raises(
        TrainingDivergedError, match=r"epoch 4 .*smaller lr.*clip.*epoch 3, the best"
    ):
        fit(net, make_data(56), Exploding(), epochs=9, checkpoint=tmp_path / "c.pt", **arguments)
    fit(good, make_data(56), Mse(), epochs=3, **arguments)
    assert torch.equal(weights(net), weights(good))
    # The file holds the last good epoch.
    assert torch.load(tmp_path / "c.pt", weights_only=True)["state"]["history"]["epoch"][-1] == 3


def small_network(bcs=None):
    import firedrake as fd

    from spon.decoders import Decoder
    from spon.encoders import Encoder
    from spon.network import OperatorNetwork
    from spon.processors import MLP

    V = fd.FunctionSpace(fd.UnitSquareMesh(2, 2), "CG", 1)
    torch.manual_seed(0)
    return OperatorNetwork(Encoder(V), MLP(), Decoder(V, bcs=bcs))


def random_data(net, n=12):
    from spon.datasets import Dataset

    V = net.decoder.space
    x = torch.randn(n, V.dim(), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Dataset.from_arrays({"f": x}, {"u": x.flip(1)}, {"f": V, "u": V})


def test_weights_of_nan_are_a_divergence_with_the_default_loss():
    net = small_network()
    data = random_data(net)
    net.calibrate((data.inputs["f"],), data.outputs["u"])
    for weight in net.parameters():
        weight.data.fill_(torch.nan)
    with pytest.raises(TrainingDivergedError, match="not finite in epoch 1"):
        fit(net, data, epochs=2, **QUIET)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (None, "decoder: 'CG 1 .* 3 prescribed dofs .*CG 1 .* 0 prescribed dofs"),
        ((1.0, 1), "decoder: 'CG 1 .* 3 prescribed dofs .*CG 1 .* 3 prescribed dofs"),
        ((0.0, 2), "decoder: 'CG 1 .* 3 prescribed dofs .*CG 1 .* 3 prescribed dofs"),
    ],
    ids=["none", "values", "side"],
)
def test_a_checkpoint_of_another_decoder_is_refused(tmp_path, condition, message):
    import firedrake as fd

    def network(condition):
        return small_network(condition and (lambda U: fd.DirichletBC(U, *condition)))

    net, path = network((0.0, 1)), tmp_path / "run.pt"
    data = random_data(net)
    history = fit(net, data, epochs=1, checkpoint=path, **QUIET)
    with pytest.raises(ValueError, match=message):
        fit(network(condition), data, epochs=1, checkpoint=path, **QUIET)
    assert fit(network((0.0, 1)), data, epochs=1, checkpoint=path, **QUIET) == history


def test_a_checkpoint_of_another_encoder_is_refused(tmp_path):
    import firedrake as fd

    from spon.decoders import Decoder
    from spon.encoders import Encoder
    from spon.network import OperatorNetwork
    from spon.processors import MLP

    mesh, path = fd.UnitSquareMesh(2, 3), tmp_path / "run.pt"
    V, W = fd.FunctionSpace(mesh, "CG", 1), fd.FunctionSpace(mesh, "DG", 0)
    # The data fit both, and so do the weights.
    assert V.dim() == W.dim()
    points = np.random.default_rng(0).uniform(0.0, 1.0, (100, 2))
    data = values_at_points(points, V)

    def network(space, points=points):
        torch.manual_seed(0)
        return OperatorNetwork(Encoder(space, points=points), MLP(), Decoder(V))

    fit(network(V), data, epochs=1, checkpoint=path, **QUIET)
    with pytest.raises(ValueError, match=r"encoders: \['CG 1 on .*\] in the file, \['DG 0 on"):
        fit(network(W), data, epochs=1, checkpoint=path, **QUIET)
    with pytest.raises(ValueError, match=r"encoders: \['CG 1 on .*\] in the file, \['CG 1 on"):
        fit(network(V, points[::-1]), data, epochs=1, checkpoint=path, **QUIET)
    fit(network(V), data, epochs=1, checkpoint=path, **QUIET)


def values_at_points(points, V, n=12):
    from spon.datasets import Dataset

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, len(points), generator=generator, dtype=torch.float64)
    u = torch.randn(n, V.dim(), generator=generator, dtype=torch.float64)
    return Dataset.from_arrays({"f": x}, {"u": u}, {"f": None, "u": V})


@pytest.mark.parametrize("kind", ["points", "image"])
def test_inputs_in_no_space_are_learned_from(tmp_path, kind):
    import firedrake as fd

    from spon.datasets import Dataset
    from spon.decoders import Decoder
    from spon.encoders import Encoder
    from spon.network import OperatorNetwork
    from spon.processors import MLP

    V = fd.FunctionSpace(fd.UnitSquareMesh(3, 3), "CG", 1)
    generator = np.random.default_rng(0)
    coefficients = torch.from_numpy(generator.standard_normal((60, 2)))
    if kind == "points":
        points = generator.uniform(0.0, 1.0, (40, 2))
        encoder, shape = Encoder(V, points=points, smoothing=1e-6), (40,)
    else:
        encoder, shape = Encoder(V, grid=(6, 5), box=[(0, 1), (0, 1)], smoothing=1e-6), (6, 5)
        points = np.stack(
            np.meshgrid((np.arange(6) + 0.5) / 6, (np.arange(5) + 0.5) / 5, indexing="ij"), -1
        ).reshape(-1, 2)
    # Linear functions of x and y at the points, and twice the same functions in V.
    x = (coefficients @ torch.from_numpy(points).T).reshape(60, *shape)
    nodes = torch.tensor(V.mesh().coordinates.dat.data_ro)
    data = Dataset.from_arrays({"f": x}, {"u": 2 * coefficients @ nodes.T}, {"f": None, "u": V})
    data.save(tmp_path / "data.h5")
    data, test = Dataset.load(tmp_path / "data.h5").split((0.8, 0.2))
    torch.manual_seed(0)
    net = OperatorNetwork(encoder, MLP(), Decoder(V))
    fit(net, data, epochs=60, **QUIET)
    assert evaluate(net, test).mean() < 0.1


REFUSED = {
    "network": ({"net": Net(width=9)}, r"another network.*'first.weight', \(8, 5\).*\(9, 5\)"),
    "lr": ({"lr": 0.5}, "other settings .lr: 0.002 in the file, 0.5 here"),
    "epochs": ({"epochs": 4}, "epochs: 3 in the file, 4 here"),
    "data": ({"data": make_data(seed=3)}, r"training data: '36 samples \[.*36 samples \["),
    "loss": ({"loss": nn.L1Loss()}, r"loss: 'Mse' in the file, 'L1Loss\(\)' here"),
    "dtype": ({"dtype": torch.float32}, "dtype: 'torch.float64' in the file, 'torch.float32'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, name):
    path = tmp_path / "run.pt"
    arguments = {"net": Net(), "data": make_data(), "loss": Mse(), "epochs": 3, **QUIET}
    fit(**arguments, checkpoint=path)
    before = path.read_bytes()
    changes, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        fit(**{**arguments, **changes}, checkpoint=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "run.pt"
    if content is None:
        torch.save({"weights": 1}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(RuntimeError, match=r"run\.pt.*training checkpoint.*Delete it"):
        fit(Net(), make_data(), Mse(), epochs=1, checkpoint=path, **QUIET)
