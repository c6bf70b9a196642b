"""The report measures what it says: on broken decoders, with the boundary data of the samples."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from firedrake import (
    DirichletBC,
    Function,
    FunctionSpace,
    LinearVariationalProblem,
    LinearVariationalSolver,
    TestFunction,
    TrialFunction,
    UnitSquareMesh,
    dx,
    errornorm,
    grad,
    inner,
    norm,
)

from spon import reporting, samplers
from spon.datasets import Dataset
from spon.decoders import Decoder
from spon.encoders import Encoder
from spon.fem.problem import Problem
from spon.fem.spaces import to_function, to_tensor
from spon.generation import generate
from spon.network import OperatorNetwork
from spon.processors import MLP
from spon.reporting import report


@pytest.fixture(scope="module")
def poisson(tmp_path_factory):
    V = FunctionSpace(UnitSquareMesh(3, 3), "CG", 1)
    f, g, u = Function(V), Function(V), Function(V)
    w, v = TrialFunction(V), TestFunction(V)
    solver = LinearVariationalSolver(
        LinearVariationalProblem(
            inner(grad(w), grad(v)) * dx, f * v * dx, u, DirichletBC(V, g, "on_boundary")
        )
    )
    seen = []

    def solve():
        solver.solve()
        seen.append([to_tensor(x).numpy() for x in (f, g, u)])

    problem = Problem({"f": f}, {"u": u}, solve, boundary=g)
    sampler = {
        "f": samplers.GaussianRandomField(V, 0.3),
        "boundary": samplers.RandomBoundaryData(V, "on_boundary", 0.5),
    }
    path = tmp_path_factory.mktemp("report") / "d.h5"
    data = generate(problem, sampler, 5, path, progress=False)
    return SimpleNamespace(V=V, f=f, g=g, u=u, problem=problem, data=data, seen=seen)


@pytest.fixture
def net(poisson):
    torch.manual_seed(0)
    return OperatorNetwork(
        Encoder(poisson.V),
        MLP(),
        Decoder(poisson.V, bcs=DirichletBC(poisson.V, 0, "on_boundary")),
        dtype=torch.float32,
    )


def without_boundary(poisson):
    data = poisson.data
    return Dataset.from_arrays(data.inputs, data.outputs, {"f": poisson.V, "u": poisson.V})


class Broken(Decoder):
    """Its functions miss a prescribed value of the last of five samples."""

    def function(self, x, boundary=None):
        functions = super().function(x, boundary)
        # All five at once, or the last one in batches of two.
        if len(functions) in (1, 5):
            functions[-1].dat.data[int(self.constrained.nonzero()[-1])] -= 0.25
        return functions


@pytest.mark.parametrize("batch", [2, 64])
@pytest.mark.parametrize("with_boundary", [True, False])
def test_a_broken_decoder_is_found_out(poisson, net, with_boundary, batch, monkeypatch):
    monkeypatch.setattr(reporting, "_BATCH", batch)
    data = poisson.data if with_boundary else without_boundary(poisson)
    assert report(net, data, repeats=1).boundary_violation == 0.0
    net.decoder.__class__ = Broken
    assert report(net, data, repeats=1).boundary_violation == pytest.approx(0.25, abs=1e-12)


def test_errors_are_those_of_the_functions(poisson, net):
    data = poisson.data
    net.train()
    found = report(net, data, repeats=1, norm="H1")
    assert net.training and found.norm == "H1" and found.solver_seconds is None
    net.eval()
    for i in range(len(data)):
        f, u, g = (
            to_function(x[i], poisson.V)
            for x in (data.inputs["f"], data.outputs["u"], data.boundary)
        )
        expected = errornorm(u, net(f, boundary=g), "H1") / norm(u, "H1")
        assert found.errors[i].item() == pytest.approx(expected, rel=1e-4)


def test_single_calls_are_timed_with_boundary_data_in_evaluation_mode(poisson, net):
    calls = []

    def spy(module, args, kwargs):
        calls.append((args, kwargs.get("boundary"), module.training, torch.is_grad_enabled()))

    net.train()
    with net.register_forward_pre_hook(spy, with_kwargs=True):
        report(net, poisson.data, repeats=2)
    assert not any(training or gradients for *_, training, gradients in calls)
    singles = [(args, b) for args, b, *_ in calls if isinstance(args[0], Function)]
    assert len(singles) == 3
    for args, boundary in singles:
        assert (to_tensor(args[0]) == poisson.data.inputs["f"][0]).all()
        assert (to_tensor(boundary) == poisson.data.boundary[0]).all()


def test_the_solver_is_timed_on_the_samples_and_leaves_no_trace(poisson, net):
    data = poisson.data
    for k, function in enumerate((poisson.f, poisson.g, poisson.u)):
        function.assign(3.0 + k)
    poisson.seen.clear()
    found = report(net, data, poisson.problem, repeats=1)
    assert found.solver_seconds > 0 and len(poisson.seen) == len(data)
    for i, (f, g, u) in enumerate(poisson.seen):
        assert (f == data.inputs["f"][i].numpy()).all()
        assert (g == data.boundary[i].numpy()).all()
        assert np.allclose(u, data.outputs["u"][i].numpy(), atol=1e-12)
    for k, function in enumerate((poisson.f, poisson.g, poisson.u)):
        assert (function.dat.data_ro == 3.0 + k).all()


def test_a_failing_solver_leaves_no_trace_either(poisson, net):
    def fail():
        raise RuntimeError("no licence")

    poisson.f.assign(3.0)
    problem = Problem({"f": poisson.f}, {"u": poisson.u}, fail, boundary=poisson.g)
    with pytest.raises(RuntimeError, match="no licence"):
        report(net, poisson.data, problem, repeats=1)
    assert (poisson.f.dat.data_ro == 3.0).all()


def test_data_at_points(poisson):
    V, points = poisson.V, poisson.V.mesh().coordinates.dat.data_ro.copy()
    data = poisson.data
    at_points = Dataset.from_arrays(
        {"f": data.inputs["f"]}, data.outputs, {"f": None, "u": V}, data.boundary
    )
    bcs = DirichletBC(V, 0, "on_boundary")
    net = OperatorNetwork(Encoder(V, points=points), MLP(), Decoder(V, bcs=bcs))
    found = report(net, at_points, repeats=1)
    assert found.boundary_violation == 0.0 and found.single_seconds > 0


def test_the_report_is_text_and_a_file(poisson, net, tmp_path):
    found = report(net, poisson.data, poisson.problem, repeats=1)
    found.save(tmp_path / "results" / "report.json")
    assert json.loads((tmp_path / "results" / "report.json").read_text()) == found.to_json()
    assert [p.name for p in (tmp_path / "results").iterdir()] == ["report.json"]
    assert "5 unseen samples" in str(found) and "finite elements" in str(found)
