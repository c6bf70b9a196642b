"""Material laws: stress and tangent against the energy and against differences."""

import pytest
import torch
from firedrake import Constant, UnitIntervalMesh, as_matrix, assemble, dx

from fe_ol import voigt
from fe_ol.identity import describe_law
from fe_ol.materials import (
    J2Plasticity,
    LinearElastic,
    NeoHookean,
    NonlinearElastic,
    PlaneStress,
)

LAWS = [
    LinearElastic(4.0e4, 3.0e4),
    NonlinearElastic(4.78e3, 50.0, 0.06),
    NeoHookean(1.0, 2.0),
    J2Plasticity(100.0, 50.0, 0.3, 5.0),
]
CASES = [(law, size) for law in LAWS for size in law.sizes()]
# The deformation gradient of no deformation, by number of components; 5 is plane with thickness.
REST = {4: [1.0, 0, 0, 1], 5: [1.0, 0, 0, 1, 1], 9: [1.0, 0, 0, 0, 1, 0, 0, 0, 1]}


def strains(law, size, n=40):
    generator = torch.Generator().manual_seed(size)
    x = 0.02 * torch.randn(n, size, generator=generator, dtype=torch.float64)
    return x + torch.tensor(REST[size], dtype=torch.float64) if law.finite else x


def differences(law, x, h=1e-6):
    step = h * torch.eye(x.shape[1], dtype=torch.float64)
    return torch.stack([(law(x + s).stress - law(x - s).stress) / (2 * h) for s in step], -1)


@pytest.mark.parametrize(("law", "size"), CASES, ids=str)
def test_stress_is_the_derivative_of_the_energy(law, size):
    x = strains(law, size).requires_grad_()
    (gradient,) = torch.autograd.grad(law.energy(x).sum(), x)
    torch.testing.assert_close(law(x.detach()).stress, gradient, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize(("law", "size"), CASES, ids=str)
def test_tangent_is_the_derivative_of_the_stress(law, size):
    x = strains(law, size)
    expected = differences(law, x)
    error = (law(x).tangent - expected).abs().max() / expected.abs().max()
    assert error < 1e-7


@pytest.mark.parametrize(("law", "size"), CASES, ids=str)
def test_nothing_at_rest(law, size):
    x = torch.tensor([REST[size] if law.finite else [0.0] * size], dtype=torch.float64)
    response = law(x)
    assert response.stress.abs().max() < 1e-13
    assert torch.isfinite(response.tangent).all()
    eigenvalues = torch.linalg.eigvalsh(response.tangent[0])
    # Rotations of a deformation gradient cost nothing; everything else does.
    assert (eigenvalues > (-1e-12 if law.finite else 1e-3)).all()


def test_the_nonlinear_law_is_that_of_the_source():
    """Eivazi and co-authors (2025), with the out-of-plane part counted in the norm."""
    K, a1, a2 = 4.78e3, 50.0, 0.06
    e = torch.tensor([[0.02, -0.01, 0.03]], dtype=torch.float64)
    trace = 0.01
    d = [0.02 - trace / 3, -0.01 - trace / 3, -trace / 3, 0.015]
    n = (d[0] ** 2 + d[1] ** 2 + d[2] ** 2 + 2 * d[3] ** 2) ** 0.5
    f = a1 / (a2 + n)
    expected = [K * trace + f * d[0], K * trace + f * d[1], f * d[3]]
    got = NonlinearElastic(K, a1, a2)(e).stress[0].tolist()
    assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_plane_stress(law):
    plane = PlaneStress(law)
    x = strains(law, 4 if law.finite else 3)
    thickness = plane.thickness(x)
    full = law(torch.cat([x, thickness[:, None]], 1)).stress
    assert full[:, -1].abs().max() < 1e-10 * full.abs().max()
    expected = differences(plane, x)
    error = (plane(x).tangent - expected).abs().max() / expected.abs().max()
    assert error < 1e-6


@pytest.mark.parametrize(("law", "dim"), [(law, d) for law in LAWS for d in (2, 3)], ids=str)
def test_energy_and_stress_are_those_of_the_ufl_expression(law, dim):
    size = voigt.strain_size(dim, law.finite)
    x = strains(law, size, 3)
    state = law.initial_state(1, size)
    values = [] if state is None else [Constant(v) for v in state[0].tolist()]
    mesh = UnitIntervalMesh(1)
    for row, energy, stress in zip(x, law.energy(x), law(x).stress, strict=True):
        e = as_matrix([[Constant(v) for v in r] for r in voigt.to_matrix(row, dim, law.finite)])
        found = assemble(law.ufl_energy(e, values) * dx(domain=mesh))
        assert found == pytest.approx(float(energy), rel=1e-11)
        s = law.ufl_stress(e, values)
        matrix = [[assemble(s[i, j] * dx(domain=mesh)) for j in range(dim)] for i in range(dim)]
        found = voigt.from_matrix(matrix, law.finite, stress=True)
        torch.testing.assert_close(found, stress, rtol=1e-10, atol=1e-10 * float(x.abs().max()))


def test_a_bar_yields_as_in_the_textbook():
    """Uniaxial stress beyond yield: sigma = E (strain - plastic), plastic = (sigma - Y) / H."""
    K, G, Y, H = 100.0, 50.0, 0.3, 5.0
    law, young = J2Plasticity(K, G, Y, H), 9 * K * G / (3 * K + G)
    for axial in (0.5 * Y / young, 0.02, 0.05):
        sigma = young * axial if young * axial < Y else (H * axial + Y) / (1 + H / young)
        plastic = max(0.0, (sigma - Y) / H)
        across = -(sigma / young) * (3 * K - 2 * G) / (2 * (3 * K + G)) - plastic / 2
        strain = torch.tensor([[axial, across, across, 0, 0, 0]], dtype=torch.float64)
        response = law(strain)
        expected = torch.tensor([[sigma, 0, 0, 0, 0, 0]], dtype=torch.float64)
        torch.testing.assert_close(response.stress, expected, rtol=1e-10, atol=1e-12)
        assert float(response.state[0, -1]) == pytest.approx(plastic, rel=1e-9, abs=1e-14)
        # Back to where the stress vanishes: elastic, the plastic strain stays.
        back = strain - torch.tensor(
            [[1, *[-(3 * K - 2 * G) / (2 * (3 * K + G))] * 2, 0, 0, 0]], dtype=torch.float64
        ) * (sigma / young)
        unloaded = law(back, response.state)
        assert unloaded.stress.abs().max() < 1e-12
        torch.testing.assert_close(unloaded.state, response.state, rtol=1e-12, atol=1e-16)


def test_a_rotation_turns_the_stress_of_a_neo_hookean_body():
    law = NeoHookean(1.0, 2.0)
    f = voigt.to_matrix(strains(law, 9, 5), 3, finite=True)
    turn = torch.linalg.matrix_exp(torch.tensor([[0, -1, 0.5], [1, 0, -0.3], [-0.5, 0.3, 0.0]]))
    turn = turn.double()
    turn = torch.linalg.qr(turn)[0]
    turned = law(voigt.from_matrix(turn @ f, finite=True)).stress
    stress = voigt.to_matrix(law(voigt.from_matrix(f, finite=True)).stress, 3, finite=True)
    torch.testing.assert_close(voigt.to_matrix(turned, 3, finite=True), turn @ stress)


def test_wrong_strains_are_refused():
    law = LAWS[1]
    with pytest.raises(TypeError, match=r"computes in float64, got a strain of torch.float32"):
        law(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"shape \(n, 3 or 4 or 6\), got \(2, 5\)"):
        law(torch.zeros(2, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"1 of 2 strains hold NaN or infinity.*number 1"):
        law([[0.0, 0.0, 0.0], [0.0, float("nan"), 0.0]])
    with pytest.raises(TypeError, match=r"array or nested lists of numbers, got str"):
        law("strain")
    with pytest.raises(ValueError, match=r"expected a float64 state of shape \(1, 5\)"):
        LAWS[3]([[0.0, 0.0, 0.0]], torch.zeros(1, 7, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"LinearElastic expected K > 0, got K=-1"):
        LinearElastic(-1.0, 1.0)
    with pytest.raises(TypeError, match=r"PlaneStress makes plane stress of a law, got str"):
        PlaneStress("law")


def test_a_law_is_described_by_its_parameters():
    assert describe_law(LAWS[0]) == {"law": "LinearElastic", "parameters": {"K": 4e4, "G": 3e4}}
    inner = describe_law(PlaneStress(LAWS[0]))["parameters"]["law"]
    assert inner == describe_law(LAWS[0])
    with pytest.raises(TypeError, match=r"law object is not a dataclass"):
        describe_law(object())
