"""Networks, points, the reduced solve, and EquiNO, against the RVE and against closed forms."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
import torch
from small_rve import shared_rve, shared_snapshots, small_rve

from fe_ol.materials import LinearElastic
from fe_ol.modes import fluctuation_modes, stress_modes
from fe_ol.snapshots import sample_strains
from fe_ol.surrogates import EquiNO, ReducedSolve
from fe_ol.surrogates.branch import Architecture, Branch
from fe_ol.surrogates.laws import PointLaws
from fe_ol.surrogates.optimise import SOAP, Training, train
from fe_ol.surrogates.points import choose_points
from fe_ol.surrogates.potential import Potential
from fe_ol.surrogates.qdeim import cubature, qdeim


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def differences(function, x, step):
    """Central differences, (n, k) -> (n, k, c)."""
    columns = []
    for j in range(x.shape[1]):
        h = step * torch.eye(x.shape[1], dtype=torch.float64)[j]
        columns.append((function(x + h) - function(x - h)) / (2 * step))
    return torch.stack(columns, 2)


def worst(a, b):
    """Largest relative error of rows."""
    return float(((a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).max())


# ---- networks


def branch(c=3, **options):
    return Branch(
        Architecture(width=8, depth=2, **options),
        random(c, seed=1),
        0.04,
        random(5, c, seed=2),
        random(5, seed=3).abs(),
    )


@pytest.mark.parametrize("features", ["direction", "plain"])
@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("odd", [True, False])
def test_jacobian_of_a_branch(features, linear, odd):
    net = branch(features=features, linear=linear, odd=odd)
    torch.nn.init.normal_(net.biases[0])
    strain = (net.reference + 0.04 * random(6, 3)).requires_grad_()
    value = net(strain)
    slopes = [torch.autograd.grad(v.sum(), strain, retain_graph=True)[0] for v in value.T]
    exact = torch.stack(slopes, 1)
    got, jacobian = (t.detach() for t in net.value_and_jacobian(strain.detach()))
    torch.testing.assert_close(got, value.detach(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(jacobian, exact, rtol=1e-11, atol=1e-11)
    head = random(5, 2, seed=4)
    got, jacobian = (t.detach() for t in net.value_and_jacobian(strain.detach(), head))
    torch.testing.assert_close(got, value.detach() @ head, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        jacobian, torch.einsum("nkc,kq->nqc", exact, head), rtol=1e-11, atol=1e-11
    )


def test_an_odd_branch_is_odd_and_a_linear_one_right_at_zero():
    net = branch(odd=True)
    x = 0.04 * random(7, 3)
    torch.testing.assert_close(net(net.reference + x), -net(net.reference - x))
    value, jacobian = (t.detach() for t in net.value_and_jacobian(net.reference[None]))
    assert not value.any()
    torch.testing.assert_close(jacobian[0], net.slope, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("even", [True, False])
def test_stress_and_tangent_of_a_potential(even):
    elastic = random(6, 6, seed=2)
    elastic = elastic @ elastic.T
    net = Potential(7, 2, even, random(6, seed=1), 0.05, elastic, 0.7)
    torch.nn.init.normal_(net.biases[0])
    strain = (net.reference + 0.05 * random(4, 6)).requires_grad_()
    energy, stress, _ = net._evaluate(strain, hessian=False)
    exact = torch.autograd.grad(energy.sum(), strain, retain_graph=True)[0]
    torch.testing.assert_close(stress, exact, rtol=1e-11, atol=1e-11)
    rows = [torch.autograd.grad(s.sum(), strain, retain_graph=True)[0] for s in stress.T]
    got_energy, got_stress, tangent = net.respond(strain.detach())
    torch.testing.assert_close(got_energy, energy.detach())
    torch.testing.assert_close(got_stress, stress.detach())
    torch.testing.assert_close(tangent, torch.stack(rows, 1), rtol=1e-10, atol=1e-8)
    at_rest = net.respond(net.reference[None])
    assert not at_rest[1].any()
    torch.testing.assert_close(at_rest[2][0], elastic, rtol=1e-9, atol=1e-9)


def test_unknown_architectures_are_refused():
    with pytest.raises(ValueError, match=r"features must be one of .*got 'cubic'"):
        Architecture(features="cubic")
    with pytest.raises(ValueError, match=r"width and depth must be at least 1, got 0 and 3"):
        Architecture(width=0)
    with pytest.raises(ValueError, match=r"optimiser must be one of .*got 'sgd'"):
        Training(optimiser="sgd")


# ---- training


def regression(seed=0):
    x = random(64, 4, seed=5)
    net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
    net = net.double()
    for i, p in enumerate(net.parameters()):
        p.data = 0.3 * random(*p.shape, seed=seed + i)
    wanted = torch.sin(x @ random(4, 2, seed=9))
    return net, (x, wanted), lambda a, b: (net(a) - b).square().mean()


@pytest.mark.parametrize(("optimiser", "same"), [("soap", True), ("adam", False)])
def test_soap_does_not_care_how_the_inputs_are_turned(optimiser, same):
    x, wanted = random(64, 3, seed=5), random(64, 3, seed=6)
    turn = torch.linalg.qr(random(3, 3, seed=3))[0]
    ends = []
    for inputs in (x, x @ turn):
        net = torch.nn.Linear(3, 3).double()
        torch.nn.init.zeros_(net.weight)
        torch.nn.init.zeros_(net.bias)
        training = Training(epochs=30, batch=16, rate=0.03, optimiser=optimiser)

        def loss(a, b, net=net):
            return (net(a) - b).square().mean()

        ends.append(train(net, (inputs, wanted), loss, training, progress=False).loss)
    np.testing.assert_allclose(ends[0][0], ends[1][0], rtol=0.1)
    assert np.allclose(*ends, rtol=1e-6, atol=0) == same


def test_lbfgs_refines():
    net, samples, loss = regression()
    course = train(net, samples, loss, Training(epochs=10, batch=16, refine=100), progress=False)
    assert len(course.loss) == 11
    assert course.loss[-1] == pytest.approx(loss(*samples).item())
    assert course.loss[-1] < 0.1 * course.loss[-2]


def test_one_step_of_soap_on_a_diagonal_problem_is_adams():
    # With a gradient of rank one and a fresh basis the rotated gradient has one entry, and Adam's
    # first step has the size of the rate in its direction.
    p = torch.nn.Parameter(torch.zeros(3, 2, dtype=torch.float64))
    left, right = random(3, seed=1), random(2, seed=2)
    p.grad = torch.outer(left, right)
    SOAP([p], lr=0.1).step()
    direction = torch.outer(left / left.norm(), right / right.norm())
    torch.testing.assert_close(p.data, -0.1 * direction, rtol=1e-6, atol=1e-7)


def test_an_interrupted_training_gives_the_same_numbers(tmp_path):
    training = Training(epochs=24, batch=16)
    net, samples, loss = regression()
    train(net, samples, loss, training, progress=False)
    file = tmp_path / "state"
    other, samples, other_loss = regression()
    calls = []

    def killed(*rows):
        calls.append(1)
        if len(calls) > 4 * 15:
            raise KeyboardInterrupt
        return other_loss(*rows)

    with pytest.raises(KeyboardInterrupt):
        train(other, samples, killed, training, progress=False, checkpoint=file)
    assert file.exists()
    fresh, samples, fresh_loss = regression(seed=50)
    train(fresh, samples, fresh_loss, training, progress=False, checkpoint=file)
    assert not file.exists()
    for a, b in zip(net.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)


# ---- points


def test_qdeim_interpolates_where_the_modes_are_told_apart():
    # Three bumps that do not overlap: one point in each, at the top.
    x = torch.linspace(0, 3, 301, dtype=torch.float64)
    modes = torch.stack(
        [torch.where((x - k - 0.5).abs() < 0.5, 1 - 2 * (x - k - 0.5).abs(), 0.0) for k in range(3)]
    )[..., None]
    assert torch.equal(qdeim(modes, 3), torch.tensor([50, 150, 250]))
    more = qdeim(modes, 10)
    assert len(more.unique()) == 10
    with pytest.raises(ValueError, match=r"count must lie between 1 and 301, got 0"):
        qdeim(modes, 0)


def test_cubature_integrates_like_all_points():
    # Polynomials of degree 9 on a fine grid: few positive weights suffice (Tchakaloff).
    x, weights = np.polynomial.legendre.leggauss(200)
    powers = torch.from_numpy(np.polynomial.legendre.legvander(x, 9).T.copy())
    weights = torch.from_numpy(weights)
    points, few = cubature(powers, weights, 40, tolerance=1e-11)
    assert len(points) <= 20 and (few > 0).all()
    torch.testing.assert_close(powers[:, points] @ few, powers @ weights, rtol=0, atol=1e-9)


def test_points_of_an_rve():
    rve, snapshots = shared_rve(), shared_snapshots()
    modes = fluctuation_modes(rve, snapshots, 6), stress_modes(rve, snapshots, 6)
    for selection in ("cubature", "qdeim", "random", "all"):
        points, weights = choose_points(rve, snapshots, *modes, 40, selection)
        tags = torch.as_tensor(rve.tags)[points]
        assert torch.equal(tags, tags.sort()[0]) and (weights > 0).all()
        assert len(points) == (len(rve.weights) if selection == "all" else min(40, len(points)))
        assert float(weights.sum()) == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match=r"one of .*'cubature'.* got 'corners'"):
        choose_points(rve, snapshots, *modes, 40, "corners")
    with pytest.raises(ValueError, match=r"integrate it, 'qdeim' points do not"):
        ReducedSolve.fit(rve, snapshots, 6, selection="qdeim")


def test_point_laws_differentiate_by_the_laws_own_tangent():
    rve = shared_rve()
    laws = PointLaws(rve.materials, torch.tensor([1, 1, 2]))
    strain = (0.03 * random(2, 3, 3)).requires_grad_()
    weights = random(2, 3, 3, seed=1)
    (gradient,) = torch.autograd.grad((laws.stress(strain) * weights).sum(), strain)
    for j in range(3):
        h = 1e-6 * torch.eye(3, dtype=torch.float64)[j]
        change = (laws(strain + h)[0] - laws(strain - h)[0]) / 2e-6
        torch.testing.assert_close(
            gradient[..., j], (change * weights).sum(2).detach(), rtol=1e-6, atol=1e-4
        )


def test_laws_with_history_are_refused():
    class Historic(LinearElastic):
        history = True

    with pytest.raises(NotImplementedError, match=r"tags \[1\] have a history"):
        PointLaws({1: Historic(K=1.0, G=1.0)}, torch.tensor([1]))


# ---- the reduced solve


@cache
def unseen():
    """Strains in the box and the RVE's answers."""
    strain = sample_strains(12, 3, 0.04, seed=11)
    return strain, shared_rve()(strain)


@cache
def reduced(formulation="energy", selection="cubature", modes=16):
    return ReducedSolve.fit(
        shared_rve(),
        shared_snapshots(),
        modes,
        points=120,
        formulation=formulation,
        selection=selection,
    )


def test_an_energy_that_is_not_convex_is_named(monkeypatch):
    model = reduced().model
    laws = model.laws
    monkeypatch.setattr(model, "laws", lambda strain: (laws(strain)[0], -laws(strain)[1]))
    with pytest.raises(ArithmeticError, match=r"strain \[0.01, 0.0, 0.02\]: its matrix is not pos"):
        model.solve(torch.tensor([[0.01, 0.0, 0.02]], dtype=torch.float64))


def test_all_modes_and_points_give_the_snapshots_back():
    rve, snapshots = shared_rve(), shared_snapshots()
    material = ReducedSolve.fit(rve, snapshots, 30, selection="all")
    strain = snapshots.strain[:6]
    answer, exact = material(strain), rve(strain)
    assert worst(answer.stress, exact.stress) < 1e-6
    assert worst(answer.tangent, exact.tangent) < 1e-4
    fields = material.fields(strain)
    torch.testing.assert_close(
        fields.strain[:, :, :],
        strain[:, None] + rve.gradient(fields.fluctuation),
        rtol=1e-9,
        atol=1e-11,
    )


@pytest.mark.parametrize(
    ("formulation", "selection", "bound"),
    [
        ("energy", "all", 1e-3),
        ("energy", "cubature", 1e-3),
        ("mismatch", "all", 1e-2),
        ("mismatch", "cubature", 1e-2),
    ],
)
def test_the_reduced_solve_is_near_the_rve(formulation, selection, bound):
    strain, exact = unseen()
    answer = reduced(formulation, selection)(strain)
    assert worst(answer.stress, exact.stress) < bound
    assert worst(answer.tangent, exact.tangent) < bound


def test_the_energy_errs_less_than_the_mismatch():
    strain, exact = unseen()
    errors = [worst(reduced(f, "all")(strain).stress, exact.stress) for f in ("energy", "mismatch")]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize(("formulation", "tolerance"), [("energy", 1e-7), ("mismatch", 3e-3)])
def test_tangent_of_the_reduced_solve(formulation, tolerance):
    # That of the mismatch leaves out the curvature of the law, as Gauss and Newton do.
    strain, _ = unseen()
    material = reduced(formulation)
    exact = differences(lambda x: material(x).stress, strain, 1e-6)
    assert worst(material(strain).tangent, exact) < tolerance


def test_the_energy_has_a_symmetric_tangent():
    tangent = reduced()(unseen()[0]).tangent
    torch.testing.assert_close(tangent, tangent.transpose(1, 2), rtol=0, atol=1e-8)


def test_a_solve_without_hope_says_where():
    material = reduced()
    with pytest.raises(ArithmeticError, match=r"did not converge for the strain \[0.03"):
        material.model.solve(0.03 * torch.ones(1, 3, dtype=torch.float64), largest=1)


# ---- EquiNO


OPTIONS = {"width": 24, "depth": 2, "samples": 600, "epochs": 250, "batch": 150, "points": 120}


@cache
def trained(**options):
    return EquiNO.fit(shared_rve(), shared_snapshots(), progress=False, **(OPTIONS | options))


def corrected(material, steps=1):
    return EquiNO(
        material.model,
        material.fluctuation,
        material.stress,
        material.source,
        material.radius,
        material.modes,
        steps,
    )


def test_equino_is_near_the_rve_and_nearer_with_a_correction():
    strain, exact = unseen()
    material = trained()
    assert material.fluctuation.architecture.odd
    error = worst(material(strain).stress, exact.stress)
    assert error < 1e-2
    assert worst(material(strain).tangent, exact.tangent) < 3e-2
    better = corrected(material)(strain)
    assert worst(better.stress, exact.stress) < 1e-3
    assert worst(better.tangent, exact.tangent) < 2e-3


@pytest.mark.parametrize("head", ["coefficients", "energy"])
def test_tangent_of_equino(head):
    strain, exact = unseen()
    material = trained(head=head)
    assert worst(material(strain).stress, exact.stress) < 2e-2
    answer = differences(lambda x: material(x).stress, strain, 1e-6)
    assert worst(material(strain).tangent, answer) < 1e-7
    if head == "energy":
        tangent = material(strain).tangent
        torch.testing.assert_close(tangent, tangent.transpose(1, 2), rtol=0, atol=1e-8)


def test_tangent_after_a_correction():
    strain, _ = unseen()
    material = corrected(trained())
    answer = differences(lambda x: material(x).stress, strain, 1e-6)
    # The implicit function theorem holds at the solution, which one step nearly reaches.
    assert worst(material(strain).tangent, answer) < 1e-3
    material = corrected(trained(), 3)
    answer = differences(lambda x: material(x).stress, strain, 1e-6)
    assert worst(material(strain).tangent, answer) < 1e-6


def test_equino_at_rest():
    rest = torch.zeros(1, 3, dtype=torch.float64)
    exact = shared_rve()(rest).tangent
    for material in (trained(), corrected(trained()), trained(head="energy")):
        answer = material(rest)
        assert float(answer.stress.abs().max()) < 1e-10
        assert worst(answer.tangent, exact) < 1e-3
        assert float(material.mismatch(rest)) == 0


@pytest.mark.parametrize("steps", [0, 1])
def test_fields_are_periodic_in_equilibrium_and_have_the_macroscopic_means(steps):
    rve, (strain, _) = shared_rve(), unseen()
    material = corrected(trained(), steps)
    fields = material.fields(strain)
    scale = rve.divergence(fields.stress.abs()).abs().max()
    assert float(rve.divergence(fields.stress).abs().max()) < 1e-12 * float(scale)
    mean = (fields.stress * rve.weights[:, None]).sum(1) / rve.volume
    torch.testing.assert_close(mean, material(strain).stress, rtol=1e-9, atol=1e-9)
    local = (fields.strain * rve.weights[:, None]).sum(1) / rve.volume
    torch.testing.assert_close(local, strain, rtol=0, atol=1e-13)
    # Hill and Mandel, with the strain of any other state.
    work = torch.einsum("npc,mpc,p->nm", fields.stress, fields.strain, rve.weights) / rve.volume
    torch.testing.assert_close(work, mean @ strain.T, rtol=1e-9, atol=1e-9)
    exact = rve.solve(strain)
    size = (exact.stress.square().sum(2) @ rve.weights).sqrt()
    assert (
        float((((fields.stress - exact.stress).square().sum(2) @ rve.weights).sqrt() / size).max())
        < 5e-2
    )


def test_the_mismatch_tells_where_the_box_ends():
    strain, _ = unseen()
    material = trained()
    inside, outside = material.mismatch(strain), material.mismatch(3 * strain)
    assert float(inside.max()) < 5e-2
    assert float(outside.median()) > 3 * float(inside.median())


def test_the_published_loss_trains_without_solutions():
    strain, exact = unseen()
    material = trained(target="mismatch", formulation="mismatch", epochs=60)
    assert list(material.courses) == ["both"]
    course = material.courses["both"].loss
    assert course[-1] < 0.1 * course[0]
    # What the loss asks for, and what it is meant to bring.
    assert float(material.mismatch(strain).median()) < 5e-2
    error = (material(strain).stress - exact.stress).norm(dim=1) / exact.stress.norm(dim=1)
    assert float(error.median()) < 6e-2


def test_every_improvement_can_be_switched_off():
    strain, exact = unseen()
    for options in (
        {"features": "plain"},
        {"linear": False},
        {"odd": False},
        {"scaling": False},
        {"relative": False},
        {"macro_weight": 0.0},
        {"optimiser": "adam"},
        {"weighted": False},
        {"refine": 5},
    ):
        material = EquiNO.fit(
            shared_rve(), shared_snapshots(), progress=False, **(OPTIONS | {"epochs": 60} | options)
        )
        typical = exact.stress.norm(dim=1).mean()
        error = (material(strain).stress - exact.stress).norm(dim=1).mean() / typical
        assert float(error) < 0.5, options


def test_a_file_holds_a_surrogate(tmp_path):
    strain, _ = unseen()
    for name, material in {"a": trained(), "b": trained(head="energy")}.items():
        material.save(tmp_path / name)
        for again in (
            EquiNO.load(tmp_path / name),
            EquiNO.load(tmp_path / name, shared_rve()),
        ):
            assert torch.equal(again(strain).stress, material(strain).stress)
            assert torch.equal(again(strain).tangent, material(strain).tangent)
            assert torch.equal(again.fields(strain).stress, material.fields(strain).stress)
            torch.testing.assert_close(
                again.mismatch(strain), material.mismatch(strain), rtol=1e-9, atol=0
            )
    trained().save(tmp_path / "compact", fields=False)
    assert (tmp_path / "compact").stat().st_size < 0.5 * (tmp_path / "a").stat().st_size
    with pytest.raises(ValueError, match=r"saved without its modes.*fields=True"):
        EquiNO.load(tmp_path / "compact").fields(strain)
    raw = (tmp_path / "a").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]["fe_ol"]
    facts = json.loads(header)
    assert facts["box"] == {"center": [0.0, 0.0, 0.0], "radius": 0.04}
    assert facts["rve"]["laws"]["2"]["law"] == "LinearElastic"
    assert {"strain", "stress", "units"} <= set(facts["conventions"])


def test_foreign_files_and_rves_are_refused(tmp_path):
    material, file = trained(), tmp_path / "surrogate"
    material.save(file)
    with pytest.raises(ValueError, match=r"made for another RVE: its space is .*128 dofs"):
        EquiNO.load(file, small_rve(3))
    other = small_rve()
    other.materials[2] = LinearElastic(K=1.0, G=1.0)
    with pytest.raises(ValueError, match=r"made for another RVE: laws is"):
        EquiNO.load(file, other)
    with pytest.raises(FileNotFoundError, match=r"no surrogate at .*nothing"):
        EquiNO.load(tmp_path / "nothing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match=r"text' is not a surrogate of fe_ol"):
        EquiNO.load(tmp_path / "text")
    with pytest.raises(ValueError, match=r"of another RVE"):
        EquiNO.fit(small_rve(3), shared_snapshots())


def test_wrong_uses_are_refused():
    material = trained()
    with pytest.raises(TypeError, match=r"float64"):
        material(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"\(n, 3\).*\(2, 6\)"):
        material(np.zeros((2, 6)))
    with pytest.raises(ValueError, match=r"NaN"):
        material([[0.0, float("nan"), 0.0]])
    with pytest.raises(ValueError, match=r"no history: state must be None"):
        material([[0.0, 0.0, 0.0]], state=torch.zeros(1, 1))
    with pytest.raises(TypeError, match=r"no option 'colour'; the networks take .*'width'"):
        EquiNO.fit(shared_rve(), shared_snapshots(), colour="red")
    with pytest.raises(ValueError, match=r"40 snapshots span \d+ modes, 60 were asked for"):
        EquiNO.fit(shared_rve(), shared_snapshots(), modes=60)
    with pytest.raises(ValueError, match=r"correction_steps must not be negative, got -1"):
        corrected(material, -1)


def test_a_single_strain_and_no_strain():
    material = trained()
    strain, _ = unseen()
    one = material(strain[0])
    assert one.stress.shape == (3,) and one.tangent.shape == (3, 3)
    torch.testing.assert_close(one.stress, material(strain).stress[0])
    assert material(strain[0], tangent=False).tangent is None
    assert material.initial_state(4) is None
    for none in (m(strain[:0]) for m in (material, corrected(material), reduced())):
        assert none.stress.shape == (0, 3) and none.tangent.shape == (0, 3, 3)
