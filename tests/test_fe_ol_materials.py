"""Material laws: stress and tangent against the energy and against differences."""

import pytest
import torch

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
