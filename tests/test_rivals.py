"""The rivals of EquiNO: interpolation of mode coefficients, and the black box."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from small_rve import shared_rve, shared_snapshots, small_rve

from fe_ol.materials import NeoHookean, NonlinearElastic
from fe_ol.snapshots import sample_strains
from fe_ol.surrogates import BlackBox, EquiNO, Interpolation
from fe_ol.surrogates.export import export
from fe_ol.surrogates.laws import are_odd


def worst(a, b):
    return float(((a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).max())


@cache
def unseen():
    strain = sample_strains(12, 3, 0.04, seed=11)
    return strain, shared_rve()(strain)


@cache
def interpolation():
    return Interpolation.fit(shared_rve(), shared_snapshots(), 24)


@cache
def black_box():
    return BlackBox.fit(
        shared_rve(), n=100, width=24, depth=2, epochs=200, rate=6e-3, progress=False
    )


def tangent_by_differences(material, strain, step=1e-6):
    eye = step * torch.eye(3, dtype=torch.float64)
    columns = [material(strain + h).stress - material(strain - h).stress for h in eye]
    return torch.stack(columns, 2) / (2 * step)


@pytest.mark.parametrize("make", [interpolation, black_box])
def test_a_rival_is_a_material(make):
    material, (strain, exact) = make(), unseen()
    answer = material(strain)
    error = (answer.stress - exact.stress).norm(dim=1) / exact.stress.norm(dim=1)
    assert float(error.median()) < 2e-2
    assert worst(answer.tangent, tangent_by_differences(material, strain)) < 1e-7
    rest = material(torch.zeros(1, 3, dtype=torch.float64))
    assert float(rest.stress.abs().max()) < 1e-9
    assert material(strain[:0]).tangent.shape == (0, 3, 3)


def test_the_interpolation_meets_the_snapshots():
    rve, snapshots = shared_rve(), shared_snapshots()
    material = Interpolation.fit(rve, snapshots, 39)
    # What is left is the mode that was cut off.
    assert worst(material(snapshots.strain).stress, snapshots.macro_stress) < 1e-5
    fields = material.fields(snapshots.strain)
    scale = float(rve.divergence(fields.stress.abs()).abs().max())
    assert float(rve.divergence(fields.stress).abs().max()) < 1e-11 * scale
    mean = (fields.stress * rve.weights[:, None]).sum(1) / rve.volume
    torch.testing.assert_close(mean, material(snapshots.strain).stress, rtol=1e-8, atol=1e-8)


def test_tangents_in_the_loss_help_the_black_box():
    strain, exact = unseen()
    options = {"n": 16, "width": 24, "depth": 2, "epochs": 200, "progress": False}
    errors = []
    for weight in (1.0, 0.0):
        tangent = BlackBox.fit(shared_rve(), tangent_weight=weight, **options)(strain).tangent
        errors.append(float((tangent - exact.tangent).norm() / exact.tangent.norm()))
    assert errors[0] < 0.7 * errors[1], errors


@pytest.mark.parametrize("make", [interpolation, black_box])
def test_files_of_rivals(make, tmp_path):
    material, (strain, _) = make(), unseen()
    material.save(tmp_path / "rival")
    again = type(material).load(tmp_path / "rival", shared_rve())
    torch.testing.assert_close(again(strain).stress, material(strain).stress, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match=r"made for another RVE"):
        type(material).load(tmp_path / "rival", small_rve(3))
    name = type(material).__name__
    with pytest.raises(ValueError, match=rf"of the kind {name}, not EquiNO: .*fe_ol.{name}.load"):
        EquiNO.load(tmp_path / "rival")


@pytest.mark.parametrize("kind", ["coefficients", "energy", "black box"])
def test_an_exported_program_gives_the_same_answers(kind, tmp_path):
    strain, _ = unseen()
    material = black_box() if kind == "black box" else small_equino(kind)
    export(material, tmp_path / "surrogate.pt2")
    program = torch.export.load(tmp_path / "surrogate.pt2").module()
    for n in (2, 12):
        stress, tangent = program(strain[:n])
        answer = material(strain[:n])
        torch.testing.assert_close(stress, answer.stress, rtol=1e-12, atol=1e-10)
        torch.testing.assert_close(tangent, answer.tangent, rtol=1e-12, atol=1e-8)


@pytest.mark.parametrize("kind", ["coefficients", "energy", "black box"])
def test_an_onnx_model_gives_the_same_answers(kind, tmp_path):
    reference = pytest.importorskip("onnx.reference", reason="onnx is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    strain, _ = unseen()
    material = black_box() if kind == "black box" else small_equino(kind)
    export(material, tmp_path / "surrogate.onnx")
    model = reference.ReferenceEvaluator(str(tmp_path / "surrogate.onnx"))
    for n in (1, 12):
        stress, tangent = model.run(["stress", "tangent"], {"strain": strain[:n].numpy()})
        answer = material(strain[:n])
        assert worst(torch.from_numpy(stress), answer.stress) < 1e-12
        assert worst(torch.from_numpy(tangent), answer.tangent) < 1e-12


def test_what_onnx_takes_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"takes onnx and onnxscript, .*pip install .spon.onnx"):
        export(black_box(), tmp_path / "a.onnx")


def test_what_cannot_be_exported(tmp_path):
    with pytest.raises(TypeError, match=r"Only EquiNO and BlackBox.* got Interpolation"):
        export(interpolation(), tmp_path / "a.pt2")
    with pytest.raises(ValueError, match=r"must end in .pt2 or .onnx, got .*a.pt'"):
        export(black_box(), tmp_path / "a.pt")
    material = small_equino("coefficients")
    material.correction_steps = 1
    with pytest.raises(ValueError, match=r"correction_steps=1, which evaluate the laws"):
        export(material, tmp_path / "a.pt2")


def small_equino(head):
    options = {"width": 8, "depth": 2, "samples": 100, "epochs": 3, "head": head}
    return EquiNO.fit(shared_rve(), shared_snapshots(), 8, progress=False, **options)


def test_oddness_is_found_out():
    rest = torch.zeros(3, dtype=torch.float64)
    assert are_odd({1: NonlinearElastic(4780.0, 50.0, 0.06)}, rest, 0.04)
    identity = torch.tensor([1.0, 0, 0, 1], dtype=torch.float64)
    assert not are_odd({1: NeoHookean(1.0, 2.0)}, identity, 0.04)
