"""What the comparison measures of fluxes: sources, leaks, balance, and where particles go."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from firedrake import (
    FacetNormal,
    Function,
    FunctionSpace,
    SpatialCoordinate,
    UnitSquareMesh,
    as_vector,
    assemble,
    div,
    dot,
    ds,
    dx,
)

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from operator_learning import flux, problems  # noqa: E402
from operator_learning.facet_fluxes import FacetFluxes  # noqa: E402
from operator_learning.tracers import INSIDE, Tracers  # noqa: E402

from spon import fem  # noqa: E402

PARTS = {"left": 1, "right": 2, "sides": (3, 4)}


@pytest.fixture(scope="module")
def square():
    """RT 1 on the unit square, crossed from left to right."""
    mesh = UnitSquareMesh(7, 5)
    U = FunctionSpace(mesh, "RT", 1)
    return U, FacetFluxes.of(U, PARTS, "left", "right")


@pytest.fixture(scope="module")
def plate():
    """The problem of the comparison with few samples."""
    return problems.make("darcy_flux", quick=True)


def values(U, expression):
    x, y = SpatialCoordinate(U.mesh())
    return Function(U).interpolate(as_vector(expression(x, y))).dat.data_ro.copy()[None]


def random(U, count=1):
    return np.random.default_rng(0).standard_normal((count, U.dim()))


def test_fluxes_through_facets_are_the_integrals_of_the_normal_trace(square):
    U, fluxes = square
    u = random(U)
    f, n = Function(U), FacetNormal(U.mesh())
    f.dat.data[:] = u[0]
    for name, tags in PARTS.items():
        expected = assemble(dot(f, n) * ds(tags))
        assert fluxes.through(u, name).sum() == pytest.approx(expected, abs=1e-13)
    lost = np.sort(fluxes.outward(u)[0].sum(-1))
    constant = FunctionSpace(U.mesh(), "DG", 0)
    density = Function(constant).interpolate(div(f)).dat.data_ro
    np.testing.assert_allclose(lost, np.sort(density / (2 * 7 * 5)), atol=1e-13)


def test_the_field_in_a_cell_is_that_of_the_fluxes(square):
    U, fluxes = square
    u = random(U)
    centres = fluxes.corners[fluxes.cells].mean(axis=1)
    expected = fem.evaluation_map(U, centres)(torch.from_numpy(u[0])).numpy().reshape(-1, 2)
    found = (fluxes.centres() @ u[0]).reshape(2, -1).T
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_values_on_facets_make_the_flux_that_they_are_of(square):
    _, fluxes = square
    points, dofs = fluxes.from_values(2)

    def field(x, y):
        return 1 + x * y - y**3, x**2 + 2 * y  # cubic on a facet: exact with two points

    u = (dofs @ np.concatenate(field(*points.T)))[None]
    assert fluxes.through(u, "left").sum() == pytest.approx(-0.75)
    # Gauss' theorem in each cell, div u = y + 2.
    inside = 2 + fluxes.corners[fluxes.cells].mean(axis=1)[:, 1]
    np.testing.assert_allclose(fluxes.outward(u)[0].sum(-1), fluxes.areas * inside, atol=1e-13)


def test_a_flux_without_sources_is_balanced_to_round_off(square):
    _, fluxes = square
    points, dofs = fluxes.from_values(2)
    x, y = points.T
    # The stream function y + y (1 - y) (1 + x y): nothing crosses y = 0 and y = 1.
    u = [2 - 2 * y + 2 * x * y - 3 * x * y**2, -(y**2) * (1 - y)]
    found = fluxes.violations((dofs @ np.concatenate(u))[None])
    for name in ("cell_outflow", "cell_outflow_largest", "wall_flux", "wall_trace", "imbalance"):
        assert found[name].shape == (1,) and found[name] < 1e-13, name


def test_what_is_lost_is_what_the_field_loses(square):
    U, fluxes = square
    # div u = 1/2, and a tenth of the inflow of one goes out at the top.
    found = fluxes.violations(values(U, lambda x, y: (1 + 0.4 * x, 0.1 * y)))
    assert found["imbalance"] == pytest.approx(0.4)
    assert found["wall_flux"] == pytest.approx(0.1)
    assert found["wall_trace"] == pytest.approx(0.1)
    # Away from the left a cell's flux is larger, so that it loses a smaller share. The lower
    # triangles of 1/7 x 1/5 have 0.25/35 of outflow.
    outward = fluxes.outward(values(U, lambda x, y: (1 + 0.4 * x, 0.1 * y)))[0]
    np.testing.assert_allclose(outward.sum(-1), 0.25 / 35, rtol=1e-12)
    shares = 0.25 / 35 / (0.5 * np.abs(outward).sum(-1))
    assert found["cell_outflow"] == pytest.approx(shares.mean())
    assert found["cell_outflow_largest"] == pytest.approx(shares.max())
    source = fluxes.violations(values(U, lambda x, y: (x - 0.5, y - 0.5)))
    assert source["cell_outflow_largest"] == pytest.approx(2.0)  # nothing comes in


def test_other_spaces_and_boundaries_are_refused(square):
    U, _ = square
    with pytest.raises(ValueError, match="RT 1 on triangles, got"):
        FacetFluxes.of(FunctionSpace(U.mesh(), "RT", 2), PARTS, "left", "right")
    with pytest.raises(ValueError, match="left, right are not the whole boundary"):
        FacetFluxes.of(U, {"left": 1, "right": 2}, "left", "right")


def test_particles_in_a_uniform_flow(square):
    U, fluxes = square
    tracers = Tracers(fluxes, 9)
    found = tracers(values(U, lambda x, y: (2.0, 0.0)), paths=True)
    heights = (np.arange(9) + 0.5) / 9
    assert (found.part == "right").all()
    np.testing.assert_allclose(found.where[0], np.stack([np.ones(9), heights], 1), atol=1e-12)
    np.testing.assert_allclose(found.time, 0.5, rtol=1e-12)
    for path, height in zip(found.paths, heights, strict=True):
        assert path[0, 0] == 0 and len(path) > 10
        np.testing.assert_allclose(path[:, 1], height, atol=1e-12)
    slope = tracers(values(U, lambda x, y: (1.0, 0.3)))
    high = heights > 0.7
    assert (slope.part[0] == np.where(high, "sides", "right")).all()
    expected = np.stack([np.ones(9), heights + 0.3], 1)[~high]
    np.testing.assert_allclose(slope.where[0][~high], expected, atol=1e-12)
    np.testing.assert_allclose(slope.time[0][high], (1 - heights[high]) / 0.3, rtol=1e-12)


def test_particles_in_a_flow_with_sources(square):
    U, fluxes = square
    tracers = Tracers(fluxes, 8)
    # Faster and faster: x(t) = (exp(0.4 t) - 1) / 0.4 and y(t) = y(0) exp(0.4 t), RT 1 has it all.
    found = tracers(values(U, lambda x, y: (1 + 0.4 * x, 0.4 * y)))
    heights = (np.arange(8) + 0.5) / 8
    out = 1.4 * heights < 1
    np.testing.assert_allclose(found.time[0][out], np.log(1.4) / 0.4, rtol=1e-12)
    np.testing.assert_allclose(found.where[0][out, 1], 1.4 * heights[out], atol=1e-12)
    assert (found.part[0] == np.where(out, "right", "sides")).all()
    # Drawn to a point inside, and never back.
    sink = tracers(values(U, lambda x, y: (0.6 - x, 0.47 - y)))
    assert (sink.part == INSIDE).all() and np.isinf(sink.time).all()
    np.testing.assert_allclose(sink.where[0], np.tile([0.6, 0.47], (8, 1)), atol=1e-12)
    assert (tracers(values(U, lambda x, y: (-1.0, 0.0))).part == "left").all()
    still = tracers(np.zeros((1, U.dim())))
    assert (still.part == INSIDE).all()
    # A wall without flux holds what is drawn to it.
    wall = tracers(values(U, lambda x, y: (0.01, -3.0 * y)))
    assert "sides" not in wall.part


def test_how_well_particles_arrive(square):
    U, fluxes = square
    tracers = Tracers(fluxes, 10)
    straight = tracers(values(U, lambda x, y: (1.0, 0.0)))
    slope = tracers(values(U, lambda x, y: (2.0, 0.4)))
    found = tracers.compare(slope, straight)
    assert found["tracers_out"] == pytest.approx(0.8)
    assert found["tracers_walls"] == pytest.approx(0.2) and found["tracers_inside"] == 0
    assert found["arrival_distance"] == pytest.approx(0.2)
    assert found["travel_time"] == pytest.approx(0.5)
    lost = tracers.compare(tracers(values(U, lambda x, y: (-1.0, 0.0))), straight)
    assert lost["tracers_out"] == 0 and lost["tracers_back"] == 1 and np.isnan(lost["travel_time"])


def below(fluxes, u, part, heights):
    """The size of what crosses a vertical part of the boundary below some heights."""
    ends = fluxes.ends(fluxes.parts[part])[..., 1]
    order = np.argsort(ends.min(axis=1))
    nodes = np.append(ends.min(axis=1)[order], ends.max())
    crossing = np.abs(fluxes.through(u, part)[0])[order]
    return np.interp(heights, nodes, np.append(0.0, np.cumsum(crossing)))


def test_particles_keep_their_share_of_the_flow_and_sweep_the_whole_plate(plate):
    fluxes, u = plate.fluxes, plate.tests["mesh"].y[:1].double().numpy()
    tracers = Tracers(fluxes, 2000)
    found = tracers(u)
    assert (found.part == "right").all()
    start = (np.arange(2000) + 0.5) / 2000
    under = below(fluxes, u, "left", start)
    # Without sources or leaks as much passes below a particle at the end as at the start.
    arrived = below(fluxes, u, "right", found.where[0, :, 1])
    total = below(fluxes, u, "left", 1.0)
    np.testing.assert_allclose(arrived, under, atol=1e-6 * total)
    # What flows between two particles, times its time, is the area between them.
    edges = below(fluxes, u, "left", np.arange(2001) / 2000)
    area = (np.diff(edges) * found.time[0]).sum()
    assert area == pytest.approx(fluxes.areas.sum(), rel=5e-3)


def test_the_fluxes_that_are_learned_are_those_of_the_mixed_method(plate):
    level, test = plate.level, plate.tests["mesh"]
    mixed = flux._mixed(level.U, level.V)(test.x[:3].double())
    torch.testing.assert_close(test.y[:3].double(), mixed, rtol=1e-5, atol=1e-7)
    found = plate.fluxes.violations(mixed.numpy())
    assert max(float(x.max()) for x in found.values()) < 1e-9
    reference = plate.reference()["measures"]
    assert reference["tracers_out"]["mean"] == 1 and reference["cell_outflow"]["mean"] < 1e-6
    assert reference["projected"]["largest"] < 1e-6


def test_points_and_pixels_of_the_plate(plate):
    level = plate.level
    u = values(level.U, lambda x, y: (1 + 2 * x - 3 * y, 3 * x + y))[0]
    at = level.points
    both = torch.stack([1 + 2 * at[:, 0] - 3 * at[:, 1], 3 * at[:, 0] + at[:, 1]])
    found = level.gather(both[None])[0]
    torch.testing.assert_close(found.double(), torch.from_numpy(u), rtol=0, atol=2e-6)
    width, height = level.grid.shape
    x, y = np.meshgrid(np.linspace(0, 2, width), np.linspace(0, 1, height), indexing="ij")
    image = torch.from_numpy(np.stack([1 + 2 * x - 3 * y, 3 * x + y])).float()[None]
    found = level.grid.values(image)[0]
    torch.testing.assert_close(found.double(), torch.from_numpy(u), rtol=0, atol=2e-6)
    floors = plate.floors()
    assert 0 < floors["pixels"] < floors["points"] < 0.02


def test_values_at_the_centres_have_the_mean_of_the_field(plate):
    level = plate.level
    f = Function(level.U)
    f.dat.data[:] = plate.tests["mesh"].y[0].double().numpy()
    centres = level.sampled.double().batch(torch.from_numpy(f.dat.data_ro.copy())[None])
    level.sampled.float()
    weights = torch.from_numpy(plate.fluxes.areas)
    x, y = (centres.reshape(2, -1) * weights).sum(1)
    assert float(x) == pytest.approx(assemble(f[0] * dx)) and float(y) == pytest.approx(
        assemble(f[1] * dx), abs=1e-10
    )
