"""Attention among tokens: integrals on every mesh, what tokens are, bounds, training."""

import itertools

import firedrake as fd
import numpy as np
import pytest
import torch
from layers import (
    check_file_and_mesh,
    column,
    graded_changes,
    processed,
    random_network,
    relative,
    rough_sizes,
    smooth,
    trained_error,
)

from spon.processors import Attention
from spon.processors.attention import _Layer

SMALL = {"channels": 8, "layers": 2, "tokens": 5, "heads": 2, "frequencies": 1}


def network(space, bcs=(), source=None, **options):
    return random_network(Attention(**{**SMALL, **options}), space, bcs, source)


@pytest.mark.parametrize("degree", [1, 2])
def test_refinement_halves_the_change_of_the_output(degree):
    spaces = [fd.FunctionSpace(fd.UnitSquareMesh(n, n), "CG", degree) for n in (8, 16, 32, 64)]
    net = network(spaces[0], fd.DirichletBC(spaces[0], 0.0, 1))
    outputs = [processed(net.on(V.mesh()), smooth(V)) for V in spaces]
    changes = [relative(a, b) for a, b in itertools.pairwise(outputs)]
    assert changes[0] > 1e-6
    assert changes[-1] < 0.02
    assert changes[2] < 0.6 * changes[1] and changes[2] < 0.3 * changes[0]


def test_a_locally_refined_mesh_gives_the_same_output():
    changes = graded_changes(network)
    assert changes[-1] < 0.05
    assert changes[-1] < 0.4 * changes[0]


def test_rough_inputs_give_bounded_outputs():
    sizes = rough_sizes(network)
    # Means of more and more independent values: they do not grow.
    assert max(sizes) < 1.5 * sizes[0]


def layer_without_attention(channels, tokens):
    """Tokens go back as they are, and the pointwise network is zero."""
    layer = _Layer(channels, tokens, heads=1, places=3).double()
    with torch.no_grad():
        attend = [layer.attend.fixed, *layer.attend.value.parameters()]
        for weight in (*attend, *layer.pointwise.parameters()):
            weight.zero_()
        for linear in (layer.values, layer.join):
            linear.weight.copy_(torch.eye(channels))
            linear.bias.zero_()
    return layer


def test_one_assignment_for_all_makes_tokens_the_mean_over_the_domain():
    x = np.concatenate([np.linspace(0, 0.3, 9), np.linspace(0.3, 1, 5)[1:]])
    space = fd.FunctionSpace(fd.TensorRectangleMesh(x, x), "CG", 1)
    layer, geometry = layer_without_attention(3, tokens=4), network(space).geometry
    with torch.no_grad():
        layer.assign[2].weight.zero_()
        fields = torch.randn(space.dim(), 2, 3, dtype=torch.float64)
        change = layer(fields, geometry.features(), geometry.weights) - fields
    u = fd.Function(space)
    for sample, channel in itertools.product(range(2), range(3)):
        u.dat.data[:] = fields[:, sample, channel].numpy()
        mean = torch.full((space.dim(),), fd.assemble(u * fd.dx), dtype=torch.float64)
        # The domain owns a quarter of each token, less its floor.
        assert torch.allclose(change[:, sample, channel], mean, rtol=1e-4, atol=1e-6)


def test_sharp_assignments_make_means_over_parts_of_the_domain():
    layer = layer_without_attention(1, tokens=2)
    with torch.no_grad():
        # One token for each side of zero, by the first coordinate.
        layer.assign[0].weight.copy_(torch.tensor([[1e3, 0.0, 0.0], [-1e3, 0.0, 0.0]]))
        layer.assign[0].bias.zero_()
        layer.assign[2].weight.copy_(torch.eye(2))
        layer.assign[2].bias.zero_()
        places = torch.tensor([[-1.0, 3, 0], [2, 1, 0], [-0.5, 2, 0], [4, 0, 0]]).double()
        weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
        x = torch.tensor([5.0, 7.0, 1.0, 10.0], dtype=torch.float64)[:, None, None]
        change = (layer(x, places, weights) - x).flatten()
    left, right = (0.1 * 5 + 0.3 * 1) / 0.4, (0.2 * 7 + 0.4 * 10) / 0.6
    expected = torch.tensor([left, right, left, right], dtype=torch.float64)
    assert torch.allclose(change, expected, rtol=1e-4)


def test_a_token_that_owns_nothing_does_no_harm():
    layer = layer_without_attention(4, tokens=3).float()
    with torch.no_grad():
        layer.assign[2].bias[0] = -1e4
    x, places = torch.randn(30, 2, 4, requires_grad=True), torch.randn(30, 3)
    out = layer(x, places, torch.full((30,), 1 / 30))
    (out * torch.randn_like(out)).sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(x.grad).all()
    assert all(torch.isfinite(w.grad).all() for w in layer.parameters())


def test_the_order_of_the_tokens_does_not_matter():
    space = fd.FunctionSpace(fd.UnitSquareMesh(6, 6), "CG", 1)
    net = network(space)
    x = column(smooth(space))
    with torch.no_grad():
        before = net.processor([x], net.geometry)
        for layer in net.processor.hidden:
            orders = [torch.randperm(5), torch.randperm(5)]
            rows = torch.cat([orders[0], 5 + orders[1]])
            for weight in layer.assign[2].parameters():
                weight.copy_(weight[rows])
            for matrix, order in zip(layer.attend.fixed, orders, strict=True):
                matrix.copy_(matrix[order][:, order])
        after = net.processor([x], net.geometry)
    assert torch.allclose(after, before, rtol=1e-12, atol=1e-12)


def test_training_learns_the_poisson_equation():
    processor = Attention(channels=8, layers=2, tokens=32)
    assert trained_error(processor, rate=1e-2, steps=250) < 0.08


def test_a_file_and_another_mesh_keep_the_network(tmp_path):
    check_file_and_mesh(network, tmp_path / "net.spon")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"channels": 30, "heads": 4}, ValueError, "channels=30 must be a multiple of heads=4"),
        ({"tokens": 1}, ValueError, "tokens must be at least 2"),
        ({"heads": "2"}, TypeError, "heads must be an integer, got '2'"),
    ],
)
def test_wrong_options_say_what_was_expected(options, error, message):
    with pytest.raises(error, match=message):
        Attention(**options)
