"""Materials that turn with the body: laws, cells, surrogates, guarded surrogates."""

from __future__ import annotations

import copy
import math
from functools import cache

import pytest
import torch
from firedrake import (
    DirichletBC,
    Function,
    FunctionSpace,
    PeriodicUnitSquareMesh,
    RectangleMesh,
    RelabeledMesh,
    SpatialCoordinate,
    as_vector,
    conditional,
    errornorm,
    norm,
)
from small_rve import shared_rve

from fe_ol import (
    RVE,
    EquiNO,
    Guarded,
    J2Plasticity,
    LinearElastic,
    MacroProblem,
    NeoHookean,
    Objective,
    ReducedSolve,
    Response,
    Snapshots,
)
from fe_ol.macro import MacroFileError, problem_space
from fe_ol.objective import polar
from spon.parts import RunMismatchError

LAW = NeoHookean.from_young(1.0, 0.3)


def gradients(dim: int, n: int = 6, size: float = 0.2, seed: int = 0) -> torch.Tensor:
    """Deformation gradients with large rotations, at random."""
    generator = torch.Generator().manual_seed(seed)
    eye = torch.eye(dim, dtype=torch.float64)
    near = eye + size * (2 * torch.rand(n, dim, dim, generator=generator).double() - 1)
    return (rotations(dim, n, seed + 1) @ near).flatten(1)


def rotations(dim: int, n: int, seed: int = 0, angle: float = 2.0) -> torch.Tensor:
    """Rotations as exponentials of skew matrices."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, dim, dim, generator=generator).double()
    return torch.linalg.matrix_exp(angle * (a - a.transpose(1, 2)))


def turned(rotation: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Products with tensors row by row."""
    d = rotation.shape[-1]
    return (rotation @ x.reshape(-1, d, d)).flatten(1)


@cache
def cell() -> RVE:
    """Two neo-Hookean solids in a small periodic cell."""
    mesh = PeriodicUnitSquareMesh(4, 4)
    x = SpatialCoordinate(mesh)
    D = FunctionSpace(mesh, "DG", 0)
    inside = conditional((x[0] - 0.5) ** 2 + (x[1] - 0.4) ** 2 < 0.1, 1.0, 0.0)
    hard = Function(D).interpolate(inside)
    mesh = RelabeledMesh(mesh, [Function(D).interpolate(1 - hard), hard], [1, 2])
    return RVE(mesh, {1: LAW, 2: NeoHookean.from_young(8.0, 0.3)})


@cache
def snapshots() -> Snapshots:
    """Stretches."""
    return Snapshots.sample(cell(), 40, radius=0.06, stretches=True, progress=False)


@cache
def network() -> EquiNO:
    """A surrogate that has seen stretches only."""
    options = {"modes": 6, "points": 64, "epochs": 300, "samples": 1000}
    return EquiNO.fit(cell(), snapshots(), progress=False, **options)


@pytest.mark.parametrize("dim", [2, 3])
def test_polar_decompositions(dim: int) -> None:
    """Against singular values; of stretches that are equal, and of the identity, too."""
    eye = torch.eye(dim, dtype=torch.float64)
    F = torch.cat([gradients(dim), turned(rotations(dim, 1), 1.3 * eye[None]), eye.reshape(1, -1)])
    frame = polar(F)
    left, values, right = torch.linalg.svd(F.reshape(-1, dim, dim))
    stretch = right.transpose(1, 2) @ (values[..., None] * right)
    torch.testing.assert_close(frame.rotation, left @ right, rtol=0, atol=1e-13)
    torch.testing.assert_close(frame.stretch, stretch, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dim", [2, 3])
def test_an_objective_law_is_what_it_was(dim: int) -> None:
    """Neo-Hooke needs no turning: stress and tangent do not change by it."""
    F = torch.cat([gradients(dim), torch.eye(dim, dtype=torch.float64).reshape(1, -1)])
    plain, through = LAW(F), Objective(LAW)(F)
    torch.testing.assert_close(through.stress, plain.stress, rtol=0, atol=1e-13)
    torch.testing.assert_close(through.tangent, plain.tangent, rtol=0, atol=1e-12)
    single = Objective(LAW)(F[0])
    assert (
        torch.equal(single.stress, through.stress[0]) and single.tangent.shape == (len(F[0]),) * 2
    )
    assert Objective(LAW)(F, tangent=False).tangent is None


def test_a_cell_is_objective_itself() -> None:
    F = gradients(2, n=3, size=0.05)
    plain, through = cell()(F), Objective(cell())(F)
    torch.testing.assert_close(through.stress, plain.stress, rtol=0, atol=1e-9)
    torch.testing.assert_close(through.tangent, plain.tangent, rtol=0, atol=1e-7)


class Crooked:
    """Some material that is not objective, to tell what Objective makes of it."""

    dim, finite, history = None, True, False

    def __call__(self, strain, state=None, tangent=True):
        c = strain.shape[1]
        A = torch.randn(c, c, generator=torch.Generator().manual_seed(5)).double()
        B = torch.randn(c, c, c, generator=torch.Generator().manual_seed(6)).double()
        stress = strain @ A.T + torch.einsum("sij,ni,nj->ns", B, strain, strain)
        slope = A + torch.einsum("sij,nj->nsi", B + B.transpose(1, 2), strain)
        return Response(stress, slope, None)


@pytest.mark.parametrize("dim", [2, 3])
def test_any_material_turns_with_the_body(dim: int) -> None:
    F, material = gradients(dim), Objective(Crooked())
    Q = rotations(dim, len(F), seed=9)
    answer, after = material(F), material(turned(Q, F))
    torch.testing.assert_close(after.stress, turned(Q, answer.stress), rtol=1e-12, atol=1e-12)
    plain = Crooked()
    assert float((plain(turned(Q, F)).stress - turned(Q, plain(F).stress)).abs().max()) > 0.1


@pytest.mark.parametrize("dim", [2, 3])
def test_tangents_of_any_material(dim: int) -> None:
    """By central differences, at equal stretches, too."""
    eye = torch.eye(dim, dtype=torch.float64)
    F = torch.cat([gradients(dim), turned(rotations(dim, 1), 1.1 * eye[None])])
    material, h = Objective(Crooked()), 1e-5
    tangent = material(F).tangent
    for k, direction in enumerate(torch.eye(dim * dim, dtype=torch.float64)):
        change = material(F + h * direction).stress - material(F - h * direction).stress
        torch.testing.assert_close(tangent[:, :, k], change / (2 * h), rtol=1e-7, atol=1e-7)


def test_stretches_are_what_is_sampled(tmp_path) -> None:
    some = Snapshots.sample(
        cell(), 4, radius=0.05, stretches=True, progress=False, path=tmp_path / "s.h5"
    )
    matrices = some.strain.reshape(-1, 2, 2)
    assert torch.equal(matrices, matrices.transpose(1, 2))
    assert float((some.strain - cell_at_rest()).abs().max()) <= 0.05
    assert Snapshots.load(tmp_path / "s.h5").stretches and some[:2].stretches
    more = some.draw(50, seed=3).reshape(-1, 2, 2)
    assert torch.equal(more, more.transpose(1, 2)) and len(more) == 50
    with pytest.raises(RunMismatchError, match="stretches is True, not False"):
        Snapshots.sample(cell(), 4, radius=0.05, progress=False, path=tmp_path / "s.h5")
    plain = Snapshots.sample(cell(), 2, radius=0.05, progress=False)
    assert not plain.stretches and float(plain.strain[:, 1].sub(plain.strain[:, 2]).abs().min()) > 0
    with pytest.raises(ValueError, match="do not join"):
        Snapshots.joined([some, plain])


def cell_at_rest() -> torch.Tensor:
    return torch.eye(2, dtype=torch.float64).flatten()


def test_a_network_of_stretches_serves_for_all_rotations() -> None:
    """Its error does not depend on the rotation; without Objective it is lost."""
    U = snapshots().draw(20, seed=4)
    exact = cell()(U).stress
    errors = []
    for angle in (0.0, 0.1, 2.0):
        Q = rotations(2, len(U), seed=2, angle=angle)
        off = Objective(network())(turned(Q, U)).stress - turned(Q, exact)
        errors.append(off.norm(dim=1) / exact.norm(dim=1))
    torch.testing.assert_close(errors[1], errors[0], rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(errors[2], errors[0], rtol=1e-6, atol=1e-10)
    assert float(errors[0].mean()) < 0.005
    Q = rotations(2, len(U), seed=2, angle=0.1)
    plain = network()(turned(Q, U)).stress - turned(Q, exact)
    assert float((plain.norm(dim=1) / exact.norm(dim=1)).mean()) > 0.05


def test_fields_turn_with_the_body() -> None:
    F = gradients(2, n=3, size=0.04)
    reduced = ReducedSolve.fit(cell(), snapshots(), modes=10, points=200)
    found, truth = Objective(reduced).fields(F), cell().solve(F)
    for a, b in ((found.fluctuation, truth.fluctuation), (found.stress, truth.stress)):
        assert float((a - b).norm() / b.norm()) < 0.02
    residual = cell().divergence(found.stress).norm(dim=1)
    assert float((residual / found.stress.flatten(1).norm(dim=1)).max()) < 1e-13
    mean = (found.strain * cell().weights[:, None]).sum(1) / cell().volume
    torch.testing.assert_close(mean, F, rtol=0, atol=1e-12)


@cache
def bar_space():
    """Quadratic displacements of a bar."""
    return problem_space(RectangleMesh(4, 2, 2.0, 1.0))


def bar(material, angle: float) -> MacroProblem:
    """A bar that is drawn out a little, its end turned by an angle."""
    V = bar_space()
    x = SpatialCoordinate(V.mesh())
    c, s = math.cos(angle), math.sin(angle)
    end = as_vector((1.04 * c * x[0] - s * x[1] - x[0], 1.04 * s * x[0] + c * x[1] - x[1]))
    bcs = [DirichletBC(V, 0, 1), DirichletBC(V, end, 2)]
    return MacroProblem(V, material, bcs=bcs, tolerance=1e-10)


def test_a_body_that_turns(tmp_path) -> None:
    """Full FE² and the network agree where the strain is in the box, the rotation far beyond."""
    material = Objective(network())
    problem = bar(material, 0.05)
    result = problem.solve(4, checkpoint=tmp_path / "bar.h5", progress=False)
    exact = bar(cell(), 0.05).solve(4, progress=False)
    size = norm(exact[-1].displacement)
    assert errornorm(exact[-1].displacement, result[-1].displacement) / size < 2e-3
    assert abs(result[-1].iterations - exact[-1].iterations) <= 1
    with pytest.raises(MacroFileError, match="materials"):
        bar(Objective(LAW), 0.05).solve(4, checkpoint=tmp_path / "bar.h5", progress=False)


def test_a_guarded_surrogate_sees_stretches_only() -> None:
    """What rotates is not suspicious; what is stretched is, and is answered by the cell."""
    guarded = Guarded(network(), cell(), tolerance=0.02)
    material = Objective(guarded)
    U = snapshots().draw(4, seed=4)
    far = torch.tensor([[1.2, 0.0, 0.0, 0.95]], dtype=torch.float64)
    F = turned(rotations(2, 5, seed=3), torch.cat([U, far]))
    response = material(F)
    assert guarded.active.tolist() == [False] * 4 + [True]
    exact = cell()(F[-1:]).stress[0]
    torch.testing.assert_close(response.stress[-1], exact, rtol=0, atol=1e-8)
    assert material.report is guarded.report
    guarded.report.clear()
    bar(material, 0.05).solve(2, progress=False)
    assert len(guarded.report.steps) == 2


def test_gradients_by_parameters() -> None:
    G = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    F, seed = gradients(2), torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()
    law = NeoHookean(mu=G, lam=2.0)
    (plain,) = torch.autograd.grad((seed * law(F).stress).sum(), G)
    (through,) = torch.autograd.grad((seed * Objective(law).differentiable_stress(F)).sum(), G)
    torch.testing.assert_close(through, plain, rtol=1e-12, atol=0)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="LinearElastic takes small strains"):
        Objective(LinearElastic(K=1.0, G=1.0))
    with pytest.raises(ArithmeticError, match="1 of 2 deformation gradients turn the body inside"):
        Objective(LAW)(torch.tensor([[1.0, 0, 0, 1.0], [-1.0, 0, 0, 1.0]], dtype=torch.float64))
    with pytest.raises(ValueError, match="laws of this RVE are of small strains"):
        Snapshots.sample(shared_rve(), 2, stretches=True, progress=False)
    for knows_stretches_only in (network(), Guarded(network(), cell(), tolerance=0.02)):
        with pytest.raises(ValueError, match=r"made of stretches .* fe_ol.Objective\(material\)"):
            bar(knows_stretches_only, 0.05)
    plastic = J2Plasticity(5.0, 2.0, yield_stress=1.0, hardening=0.1)
    with pytest.raises(ValueError, match="small strains"):
        Objective(plastic)
    with pytest.raises(AttributeError, match="no attribute 'review'"):
        _ = Objective(LAW).review
    assert copy.deepcopy(Objective(LAW)).dim is None
