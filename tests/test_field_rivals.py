"""Rivals of EquiNO that give the fluctuation: VPIONet and the operator network on the cell."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from firedrake import (
    Function,
    SpatialCoordinate,
    UnitSquareMesh,
    as_vector,
    cos,
    pi,
    sin,
)
from small_rve import FINITE, INCLUSION, LAWS, shared_rve, shared_snapshots, small_mesh, small_rve

import spon
from fe_ol.cell.places import Places
from fe_ol.materials import J2Plasticity, LinearElastic
from fe_ol.rve import RVE
from fe_ol.snapshots import sample_strains
from fe_ol.surrogates import EquiNO, FieldNetwork, VPIONet
from fe_ol.surrogates.field_base import CellPoints
from fe_ol.surrogates.field_loss import CellEnergy
from fe_ol.voigt import rest_strain
from spon import fem

SIZES = {"functions": 8, "width": 16, "depth": 2, "trunk_width": 24, "trunk_depth": 2}
SHORT = SIZES | {"samples": 4, "epochs": 1, "progress": False}


def relative(a, b):
    return (a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)


def spectral():
    return spon.processors.Spectral(channels=8, layers=2, modes=20)


@cache
def unseen():
    strain = sample_strains(8, 3, 0.04, seed=11)
    return strain, shared_rve().solve(strain)


@cache
def vpionet(energy="potential"):
    options = {"samples": 40, "epochs": 150, "batch": 10, "rate": 1.5e-2, "progress": False}
    return VPIONet.fit(shared_rve(), energy=energy, **SIZES, **options)


@cache
def field_network():
    options = {"samples": 20, "epochs": 10, "processor": spectral(), "progress": False}
    return FieldNetwork.fit(shared_rve(), **options)


@cache
def supervised():
    options = {"epochs": 10, "processor": spectral(), "progress": False}
    return FieldNetwork.fit(shared_rve(), shared_snapshots(), **options)


def tangent_by_differences(material, strain, step=1e-6):
    eye = step * torch.eye(strain.shape[1], dtype=torch.float64)
    columns = [material(strain + h).stress - material(strain - h).stress for h in eye]
    return torch.stack(columns, 2) / (2 * step)


# ---- what is made small ------------------------------------------------------------------------


def minimiser(rve, strain, kind):
    """The fluctuation with the least energy, by a descent in all dofs."""
    points = CellPoints.of(rve)
    energy = CellEnergy(points, rest_strain(rve.dim, rve.finite), kind)
    size = energy.sizes(strain)
    w = torch.zeros(len(strain), rve.space.dim(), dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS(
        [w],
        max_iter=400,
        history_size=60,
        tolerance_grad=1e-10,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure():
        descent.zero_grad()
        local = strain[:, None] + rve.gradient(w)[:, points.order]
        value = energy(local, size).sum()
        value.backward()
        return value

    descent.step(closure)
    return w.detach()


def test_only_the_potential_has_the_right_minimiser():
    rve, strain = shared_rve(), torch.tensor([[0.01, -0.03, 0.04]], dtype=torch.float64)
    exact = rve.solve(strain).stress
    errors = {}
    for kind in ("potential", "published"):
        local = strain[:, None] + rve.gradient(minimiser(rve, strain, kind))
        errors[kind] = float(relative(rve.law(local), exact))
    assert errors["potential"] < 1e-4
    # 3 to 27 % was found for such cells.
    assert 0.02 < errors["published"] < 0.3


def test_networks_trained_by_the_potential_are_closer():
    strain, exact = unseen()
    errors = {}
    for energy in ("potential", "published"):
        errors[energy] = relative(vpionet(energy).fields(strain).stress, exact.stress).mean()
    assert errors["potential"] < 0.7 * errors["published"], errors
    assert errors["potential"] < 0.05, errors


# ---- materials ---------------------------------------------------------------------------------


@pytest.mark.parametrize("homogenisation", ["energy", "mean"])
@pytest.mark.parametrize("make", [vpionet, field_network, supervised])
def test_a_field_network_is_a_material(make, homogenisation, monkeypatch):
    material, (strain, exact) = make(), unseen()
    monkeypatch.setattr(material, "homogenisation", homogenisation)
    answer = material(strain)
    slopes = tangent_by_differences(material, strain)
    assert float(relative(answer.tangent, slopes).max()) < 1e-7
    assert float(relative(answer.stress, exact.macro_stress).median()) < 0.05
    torch.testing.assert_close(material.differentiable_stress(strain), answer.stress)
    torch.testing.assert_close(material(-strain).stress, -answer.stress)
    rest = torch.zeros(1, 3, dtype=torch.float64)
    assert float(material(rest).stress.abs().max()) < 1e-9
    # The fluctuations of the undeformed cell are exact.
    assert float(relative(material(rest).tangent, shared_rve()(rest).tangent)) < 1e-7
    assert material(strain[:0]).tangent.shape == (0, 3, 3)
    assert material(strain[0]).tangent.shape == (3, 3)


def test_the_derivative_of_the_energy_is_closer_and_symmetric():
    material, (strain, exact) = vpionet(), unseen()
    errors = {}
    try:
        for material.homogenisation in ("mean", "energy"):
            answer = material(strain)
            errors[material.homogenisation] = relative(answer.stress, exact.macro_stress).mean()
    finally:
        material.homogenisation = "energy"
    assert errors["energy"] < 0.6 * errors["mean"], errors
    torch.testing.assert_close(answer.tangent, answer.tangent.mT, rtol=1e-12, atol=1e-8)


def test_stress_is_the_derivative_of_the_energy():
    material, step = vpionet(), 1e-6
    strain, points = unseen()[0], material.points
    energy = CellEnergy(points, material.reference, "potential")

    def homogenised(x):
        with torch.no_grad():
            return energy.energy(x[:, None] + material.gradient(material.coefficients(x)))

    eye = step * torch.eye(3, dtype=torch.float64)
    slope = torch.stack([homogenised(strain + h) - homogenised(strain - h) for h in eye], 1)
    assert float(relative(material(strain).stress, slope / (2 * step)).max()) < 1e-7


@pytest.mark.parametrize("kind", [VPIONet, FieldNetwork])
def test_linear_cells_are_exact_without_a_network(kind):
    laws = {1: LinearElastic(K=4780.0, G=400.0), 2: LinearElastic(**INCLUSION)}
    rve, strain = RVE(small_mesh(), laws), unseen()[0]
    if kind is VPIONet:
        material = VPIONet.fit(rve, **SHORT)
        parameters = [material.branch.weights[-1], material.branch.biases[-1]]
    else:
        material = FieldNetwork.fit(rve, processor=spectral(), samples=4, epochs=1, progress=False)
        parameters = list(material.network.parameters())
    assert float(material.residual(rve, strain).min()) > 1e-6
    with torch.no_grad():
        for parameter in parameters:
            parameter.zero_()
    exact, fields = rve.solve(strain), material.fields(strain)
    for mine, right in (
        (material(strain).stress, exact.macro_stress),
        (material(strain).tangent, exact.tangent),
        (fields.stress, exact.stress),
        (fields.strain, exact.strain),
        (fields.fluctuation, exact.fluctuation),
    ):
        assert float(relative(mine, right).max()) < 1e-8
    assert float(material.residual(rve, strain).max()) < 1e-9


def test_equilibrium_is_missed_and_measured():
    rve, (strain, exact) = shared_rve(), unseen()
    for make in (vpionet, field_network):
        residual = make().residual(rve, strain)
        assert float(residual.min()) > 1e-4
        assert float(residual.max()) < 0.5
    # The same measure of the exact stress is round-off.
    stress = exact.stress
    force = rve.divergence(stress).norm(dim=1) / rve.divergence(stress.abs()).norm(dim=1)
    assert float(force.max()) < 1e-9


# ---- fields ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [vpionet, field_network, supervised])
def test_fluctuations_are_periodic(make):
    # Gauss: the mean gradient of a field is what its values differ by on opposite sides.
    rve, strain = shared_rve(), unseen()[0]
    fields = make().fields(strain)
    part = rve.gradient(fields.fluctuation)
    torch.testing.assert_close(strain[:, None] + part, fields.strain, rtol=0, atol=1e-14)
    torch.testing.assert_close(rve.law(fields.strain), fields.stress)
    mean = (part * rve.weights[:, None]).sum(1)
    assert float(mean.abs().max()) < 1e-14


@pytest.mark.parametrize("kind", [VPIONet, FieldNetwork])
def test_linear_displacements_hold_on_the_boundary(kind):
    rve, strain = RVE(UnitSquareMesh(3, 3), LAWS[1], boundary="linear"), unseen()[0]
    options = SHORT if kind is VPIONet else {"samples": 4, "epochs": 1, "processor": spectral()}
    material = kind.fit(rve, **(options | {"progress": False}))
    values = fem.to_function(material.fields(strain).fluctuation, rve.space)
    for f in values:
        on_boundary = f.dat.data_ro[rve.space.boundary_nodes("on_boundary")]
        assert abs(on_boundary).max() == 0
        assert abs(f.dat.data_ro).max() > 0


@pytest.mark.parametrize("family", ["CG", "S"])
def test_values_at_nodes_become_the_field(family):
    errors = []
    for n in (4, 8):
        rve = RVE(small_mesh(n), LAWS, family=family)
        x, y = SpatialCoordinate(rve.space.mesh())
        wave = as_vector([sin(2 * pi * x) * cos(2 * pi * y), cos(2 * pi * x)])
        places = Places(rve, 1, interface=False)
        cos_x, sin_x, cos_y, _ = places.features.T
        values = torch.stack([sin_x * cos_y, cos_x], 1)
        found = rve.gradient(places.fluctuations(values[None]))
        cell = rve._cell
        exact = fem.to_tensor(Function(cell.points).interpolate(cell.strain_of(wave)))
        error = (found - exact.reshape(found.shape)).square().sum((0, 2)) @ rve.weights
        errors.append(float(error.sqrt()))
    # Gradients of quadratic elements converge with the square of the edge.
    assert errors[0] / errors[1] > 3.3, errors


def test_places_know_the_interface():
    rve = shared_rve()
    features = Places(rve, 1, interface=True).features
    cos_x, sin_x, cos_y, sin_y, share, signed, distance = features.T
    x = torch.remainder(torch.atan2(sin_x, cos_x) / (2 * torch.pi), 1.0)
    y = torch.remainder(torch.atan2(sin_y, cos_y) / (2 * torch.pi), 1.0)
    # The rectangle's edges are x = 0, x = 1/2, y = 0, y = 3/4, and so are their periodic images.
    inside = (x > 1e-9) & (x < 0.5 - 1e-9) & (y > 1e-9) & (y < 0.75 - 1e-9)
    exact = torch.stack([x, 0.5 - x, y, 0.75 - y]).amin(0)
    torch.testing.assert_close(distance[inside], exact[inside])
    torch.testing.assert_close(signed[inside], exact[inside])
    assert bool((share[inside] == 1).all())
    beyond = (x > 0.5 + 1e-9) & (y > 0) & (y < 0.75)
    right = torch.stack([x - 0.5, 1 - x]).amin(0)
    torch.testing.assert_close(signed[beyond], -right[beyond])


def test_deformation_gradients():
    rve = RVE(small_mesh(3), FINITE, degree=1)
    material = VPIONet.fit(rve, radius=0.1, **(SHORT | {"samples": 40, "epochs": 60, "batch": 20}))
    gradient = rest_strain(2, True) + sample_strains(3, 4, 0.1, seed=4)
    answer = material(gradient)
    slopes = tangent_by_differences(material, gradient)
    assert float(relative(answer.tangent, slopes).max()) < 1e-7
    assert float(relative(answer.stress, rve(gradient).stress).max()) < 0.05


# ---- files and errors --------------------------------------------------------------------------


@pytest.mark.parametrize("make", [vpionet, field_network])
def test_files(make, tmp_path):
    material, (strain, _) = make(), unseen()
    material.save(tmp_path / "rival")
    again = type(material).load(tmp_path / "rival", shared_rve())
    for mine, right in (
        (again(strain).stress, material(strain).stress),
        (again(strain).tangent, material(strain).tangent),
        (again.fields(strain).fluctuation, material.fields(strain).fluctuation),
    ):
        torch.testing.assert_close(mine, right, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"made for another RVE"):
        type(material).load(tmp_path / "rival", small_rve(3))
    name = type(material).__name__
    with pytest.raises(ValueError, match=rf"of the kind {name}, not EquiNO"):
        EquiNO.load(tmp_path / "rival")


def test_which_files_need_the_rve(tmp_path):
    strain = unseen()[0]
    vpionet().save(tmp_path / "alone")
    alone = VPIONet.load(tmp_path / "alone")
    torch.testing.assert_close(alone(strain).tangent, vpionet()(strain).tangent)
    field_network().save(tmp_path / "network")
    with pytest.raises(ValueError, match=r"lives on the mesh of its RVE: give it"):
        FieldNetwork.load(tmp_path / "network")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"energy": "strain"}, r"energy must be one of .*potential.* got 'strain'"),
        ({"homogenisation": "sum"}, r"homogenisation must be one of .* got 'sum'"),
        ({"functions": 0}, r"functions must be at least 1, got 0"),
        ({"periods": 0}, r"periods must be at least 1, got 0"),
        ({"batch": 0}, r"batch must be at least 1, got 0"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        VPIONet.fit(shared_rve(), **(SHORT | options))


@pytest.mark.parametrize("kind", [VPIONet, FieldNetwork])
def test_rves_that_are_refused(kind):
    mesh = small_mesh(3)
    plastic = RVE(mesh, J2Plasticity(K=100.0, G=50.0, yield_stress=1.0, hardening=1.0))
    with pytest.raises(NotImplementedError, match=r"have a history"):
        kind.fit(plastic)
    plane_stress = RVE(mesh, LAWS, plane="stress")
    with pytest.raises(TypeError, match=r"tag 1, PlaneStress, has none: make it an EnergyLaw"):
        kind.fit(plane_stress)
    with pytest.raises(ValueError, match=r"NeoHookean, is of finite strain: use .potential"):
        kind.fit(RVE(mesh, FINITE), energy="published")


def test_snapshots_of_another_rve_are_refused():
    with pytest.raises(ValueError, match=r"The snapshots are of another RVE"):
        FieldNetwork.fit(small_rve(3), shared_snapshots())
