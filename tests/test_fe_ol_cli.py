"""The command line of fe_ol: each command once on a coarse cell, and what it says to bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fe_ol.cli import app
from fe_ol.cli.cells import build_rve
from fe_ol.cli.checked import checked, takes
from fe_ol.cli.command import _gathered
from fe_ol.cli.laws import read_laws
from fe_ol.macro import problem_space
from fe_ol.macro.prescribed import prescribed
from fe_ol.materials import LinearElastic, NeoHookean, NonlinearElastic
from fe_ol.snapshots import Snapshots, sample_strains
from fe_ol.surrogates import EquiNO, ReducedSolve, store
from fe_ol.surrogates.kinds import KINDS, load
from spon.fem import read_mesh

ROOT = Path(__file__).resolve().parent.parent
CELL, BODY = ROOT / "meshes" / "rve3.msh", ROOT / "meshes" / "cook.msh"
COARSE = ["--laws", ROOT / "demos" / "laws.toml", "--degree", "1", "--family", "CG"]
# The right side of Cook's membrane.
HEIGHT = 16.0


def run(*words, code=0):
    """What a command printed; its exit status is as expected."""
    result = CliRunner().invoke(app, [str(w) for w in words])
    assert result.exit_code == code, result.output
    return result.output


def refused(*words, code=2):
    """The message of a command that ends with this status, in one line."""
    return " ".join(run(*words, code=code).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with snapshots and a hardly trained EquiNO."""
    out = tmp_path_factory.mktemp("cell")
    run("sample", CELL, *COARSE, "-n", "8", "--radius", "0.04", "--out", out / "s.h5", "--quiet")
    run(
        "fit", out / "s.h5", CELL, *COARSE, "--modes", "4", "-o", "epochs=3", "-o", "samples=50",
        "-o", "points=40", "--out", out / "cell.fe_ol", "--export", out / "cell.pt2", "--quiet",
    )  # fmt: skip
    return out


# ---- commands --------------------------------------------------------------------------------


@pytest.mark.parametrize("plane", ["strain", "stress"])
def test_rve_of_one_law_has_the_tangent_of_the_law(tmp_path, plane):
    E, nu = 73000.0, 0.22
    (tmp_path / "glass.json").write_text(json.dumps({"law": "LinearElastic", "E": E, "nu": nu}))
    run(
        "rve", "--strain", "0.001", "0", "-0.002", CELL, "--laws", tmp_path / "glass.json",
        "--degree", "1", "--plane", plane, "--out", tmp_path, "--quiet",
    )  # fmt: skip
    (solution,) = json.loads((tmp_path / "cell.json").read_text())["solutions"]
    if plane == "strain":
        factor, off, shear = E / (1 + nu) / (1 - 2 * nu), nu / (1 - nu), (1 - 2 * nu) / 2
        factor *= 1 - nu
        shear /= 1 - nu
    else:
        factor, off, shear = E / (1 - nu**2), nu, (1 - nu) / 2
    exact = factor * np.array([[1, off, 0], [off, 1, 0], [0, 0, shear]])
    np.testing.assert_allclose(solution["tangent"], exact, atol=1e-8 * E)
    stress = list(solution["stress"].values())
    np.testing.assert_allclose(stress, exact @ [0.001, 0, -0.002], rtol=1e-8)
    assert (tmp_path / "cell.png").stat().st_size > 10_000
    assert (tmp_path / "cell.pvd").exists()


def test_rve_with_prescribed_stress_prints_what_it_found(tmp_path):
    printed = run(
        "rve", CELL, *COARSE, "--strain", "-0.03", "free", "free", "--stress", "free", "0", "5",
        "--show", "xy", "--out", tmp_path,
    )  # fmt: skip
    record = json.loads((tmp_path / "cell.json").read_text())
    (solution,), (hill,) = record["solutions"], record["hill_mandel_errors"]
    assert solution["strain"]["E_xx"] == -0.03
    assert abs(solution["stress"]["s_yy"]) < 1e-8 and abs(solution["stress"]["s_xy"] - 5) < 1e-8
    assert hill < 1e-10
    assert f"{solution['iterations']} iterations" in printed and "E_xx = -0.03" in printed


def test_sampling_again_finds_the_file(folder):
    before = (folder / "s.h5").stat().st_mtime_ns
    printed = run("sample", CELL, *COARSE, "-n", "8", "--out", folder / "s.h5")
    assert "8 snapshots" in printed
    assert (folder / "s.h5").stat().st_mtime_ns == before
    message = refused("sample", CELL, *COARSE, "-n", "9", "--out", folder / "s.h5")
    assert "n is 8, not 9" in message and "Choose another path" in message


def test_what_is_exported_answers_like_what_is_saved(folder):
    surrogate = load(folder / "cell.fe_ol")
    assert type(surrogate) is EquiNO and len(surrogate.modes.stress) == 4
    strain = torch.tensor([[0.01, -0.02, 0.03], [0.0, 0.01, 0.0]], dtype=torch.float64)
    stress, tangent = torch.export.load(folder / "cell.pt2").module()(strain)
    response = surrogate(strain)
    torch.testing.assert_close(stress, response.stress, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(tangent, response.tangent, rtol=1e-10, atol=1e-8)
    assert (folder / "cell.loss.png").stat().st_size > 5_000


def test_evaluate_measures_what_a_solve_says(folder):
    run(
        "evaluate", folder / "cell.fe_ol", CELL, *COARSE, "-n", "2", "--out", folder / "report.json"
    )
    report = json.loads((folder / "report.json").read_text())
    # The box and its strains are those of the file; one solve by hand tells the error.
    strain = sample_strains(2, 3, 0.04, 1)
    rve = build_rve(CELL, COARSE[1], degree=1, family="CG")
    exact, answer = rve(strain).stress, load(folder / "cell.fe_ol", rve)(strain).stress
    by_hand = ((answer - exact).norm(dim=1) / exact.norm(dim=1)).max()
    assert report["errors"]["stress"]["largest"] == pytest.approx(float(by_hand), rel=1e-6)
    assert report["errors"]["equilibrium"]["largest"] < 1e-12
    assert 1e-3 < report["errors"]["local s_xx"]["median"] < 1
    assert (folder / "report.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("reduced", ["--modes", "4"]),
        ("interpolation", ["--modes", "4"]),
        ("blackbox", ["-o", "epochs=2"]),
        ("vpionet", ["-o", "epochs=2", "-o", "samples=10", "-o", "functions=2"]),
    ],
)
def test_every_kind_is_fitted_and_read_again(folder, tmp_path, kind, options):
    out, trained = tmp_path / f"{kind}.fe_ol", kind in ("blackbox", "vpionet")
    printed = run("fit", folder / "s.h5", CELL, *COARSE, "--kind", kind, *options, "--out", out)
    surrogate = load(out)
    assert type(surrogate).__name__.lower().startswith(kind) and "8 snapshots" in printed
    strain = Snapshots.load(folder / "s.h5").strain
    exact = Snapshots.load(folder / "s.h5").macro_stress
    errors = (surrogate(strain).stress - exact).norm(dim=1) / exact.norm(dim=1)
    assert errors.median() < (0.5 if trained else 0.01)
    assert out.with_name(f"{kind}.loss.png").exists() == trained


def test_a_reduced_solve_is_the_same_after_saving(folder, tmp_path):
    rve = build_rve(CELL, COARSE[1], degree=1, family="CG")
    first = ReducedSolve.fit(rve, Snapshots.load(folder / "s.h5"), modes=4, points=40)
    first.save(tmp_path / "reduced.fe_ol")
    second = ReducedSolve.load(tmp_path / "reduced.fe_ol", rve)
    strain = torch.tensor([[0.01, -0.02, 0.03]], dtype=torch.float64)
    torch.testing.assert_close(second(strain).tangent, first(strain).tangent, rtol=0, atol=0)
    assert second.fields(strain).stress.equal(first.fields(strain).stress)
    with pytest.raises(ValueError, match="kind ReducedSolve, not EquiNO"):
        EquiNO.load(tmp_path / "reduced.fe_ol")


def test_macro_holds_the_load_and_goes_on(folder, tmp_path):
    words = [
        "macro", BODY, "--cell", folder / "cell.fe_ol", "--clamp", "clamped", "--traction",
        "loaded", "0", "3", "--steps", "2", "--order", "1", "--out", tmp_path,
    ]  # fmt: skip
    assert "iterations" in run(*words)
    result = json.loads((tmp_path / "result.json").read_text())
    for step, factor in zip(result["steps"], (0.5, 1.0), strict=True):
        np.testing.assert_allclose(step["reactions"]["1"], [0, -factor * 3 * HEIGHT], atol=1e-5)
    assert (tmp_path / "body.png").stat().st_size > 10_000 and (tmp_path / "body.pvd").exists()
    before = (tmp_path / "steps.h5").stat().st_mtime_ns
    run(*words, "--quiet")
    assert (tmp_path / "steps.h5").stat().st_mtime_ns == before
    message = refused(*words, "--steps", "1")
    assert "other arguments" in message and "--steps" in message and "--no-resume" in message
    run(*words, "--steps", "1", "--no-resume", "--quiet")
    assert len(json.loads((tmp_path / "result.json").read_text())["steps"]) == 1


def test_a_guard_lets_the_cell_answer(folder, tmp_path):
    # Nothing satisfies this tolerance, so that the cell answers at all points; few of them.
    body = tmp_path / "square.msh"
    body.write_text(SQUARE)
    pull = ["--clamp", "1", "--move", "2", "0.01", "0", "--steps", "1", "--order", "1"]
    cell = ["--rve", CELL, *COARSE]
    guard = ["--cell", folder / "cell.fe_ol", "--guard", "fallback", "--tolerance", "1e-9"]
    printed = run("macro", body, *pull, *cell, *guard, "--out", tmp_path / "guarded")
    assert "guarded" in printed and (tmp_path / "guarded" / "guarded.png").exists()
    run("macro", body, *pull, *cell, "--quiet", "--out", tmp_path / "full")
    both = [json.loads((tmp_path / k / "result.json").read_text()) for k in ("guarded", "full")]
    assert both[0]["guard"][0]["guarded"] == both[0]["guard"][0]["points"]
    np.testing.assert_allclose(*(b["steps"][0]["reactions"]["2"] for b in both), rtol=1e-7)
    strict = ["--cell", folder / "cell.fe_ol", "--guard", "raise", "--tolerance", "1e-9"]
    message = refused("macro", body, *pull, *cell, *strict, "--out", tmp_path / "strict", code=1)
    assert "GuardError: 4 of 4 strains are beyond the surrogate" in message


SQUARE = """$MeshFormat
2.2 0 8
$EndMeshFormat
$Nodes
4
1 0 0 0
2 1 0 0
3 1 1 0
4 0 1 0
$EndNodes
$Elements
3
1 1 2 1 1 4 1
2 1 2 2 2 2 3
3 3 2 1 1 1 2 3 4
$EndElements
"""


def test_a_law_in_plane_stress_and_a_free_direction(tmp_path):
    (tmp_path / "square.msh").write_text(SQUARE)
    (tmp_path / "law.toml").write_text('law = "LinearElastic"\nE = 10.0\nnu = 0.3\n')
    run(
        "macro", tmp_path / "square.msh", "--laws", tmp_path / "law.toml", "--plane", "stress",
        "--move", "1", "0", "0", "--move", "2", "0.01", "free", "--steps", "1", "--order", "1",
        "--out", tmp_path, "--quiet",
    )  # fmt: skip
    (step,) = json.loads((tmp_path / "result.json").read_text())["steps"]
    # One bilinear square: u_y = c x (y - 1/2) has no force on the right side. By hand, with
    # plane stress moduli: e_yy = c x, 2 e_xy = c (y - 1/2), and the work of c vanishes.
    modulus = 10.0 / (1 - 0.3**2)
    c = -0.3 * 0.01 / 2 / (1 / 3 + 0.35 / 12)
    force = modulus * (0.01 + 0.3 * c / 2)
    np.testing.assert_allclose(step["reactions"]["2"], [force, 0], rtol=1e-6, atol=1e-9)


def test_the_module_runs_and_petsc_leaves_its_command_line_alone():
    environment = {k: v for k, v in os.environ.items() if k != "PETSC_OPTIONS"}
    command = [sys.executable, "-m", "fe_ol", "rve", CELL, *COARSE, "--strain", "0", "0.01", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "tangent" in done.stdout and done.stderr == ""


# ---- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strain", "0.01", "0"], "--strain of this cell has 3 components, got 2: 0.01,0."),
        (["--strain", "0.01", "0", "x"], "x"),
        (["--strain", "0.01", "free", "0"], '--strain takes numbers got "free"'),
        (["--strain", "0", "0", "0", "--show", "zz"], "--show takes one of ['xx', 'yy', 'xy']"),
        (["--strain", "0", "0", "0", "--boundary", "open"], "boundary"),
        (["--strain", "0", "0", "0", "--stress", "0", "0", "0"], "both strain and stress"),
        ([], "--strain"),
    ],
)
def test_rve_refuses(words, message):
    found = refused("rve", CELL, *COARSE, *words)
    assert message.replace('"', "'") in found.replace('"', "'"), found


def test_missing_files_are_named(folder, tmp_path):
    none = tmp_path / "none"
    strain = ["--strain", "0", "0", "0"]
    assert "There is no file of laws" in refused("rve", CELL, "--laws", none, *strain)
    assert str(none) in refused("rve", none, "--laws", COARSE[1], *strain)
    assert "no file of snapshots" in refused("fit", none, CELL, *COARSE, "--out", none)
    assert "There is no surrogate at" in refused("evaluate", none, CELL, *COARSE)
    assert "not a surrogate of fe_ol" in refused("evaluate", CELL, CELL, *COARSE)
    with pytest.raises(FileNotFoundError, match="no surrogate"):
        load(none)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kind", "gp"], "--kind takes one of ['reduced', 'equino',"),
        (["-o", "epoch=3"], "EquiNO.fit has no option 'epoch'; it takes ['batch',"),
        (["-o", "epochs=3.5"], "The option 'epochs' of EquiNO.fit is of type int, got 3.5."),
        (["-o", "epochs"], "--option takes NAME=VALUE, such as epochs=300, got 'epochs'."),
        (["-o", "epochs=3", "-o", "epochs=4"], "--option gives 'epochs' twice."),
        (["-o", "seed=3"], "EquiNO.fit has no option 'seed'"),
        (["--kind", "blackbox", "--modes", "3"], "BlackBox has no modes: leave out --modes."),
        (["--export", "cell.pt"], "The file's name must end in .pt2 or .onnx, got 'cell.pt'."),
        (["--export", "c.pt2", "--kind", "reduced"], "--export works for ('EquiNO', 'BlackBox')"),
        (["--export", "c.pt2", "-o", "correction_steps=1"], "leave out correction_steps"),
        (["--degree", "2"], "The snapshots are of another RVE"),
    ],
)
def test_fit_refuses_before_it_computes(folder, words, message):
    out = folder / "never.fe_ol"
    found = refused("fit", folder / "s.h5", CELL, *COARSE, "--out", out, *words)
    assert message in found, found
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "No material: give --cell FILE"),
        (["--guard", "fallback"], "--guard needs the surrogate (--cell)"),
        (["--move", "2"], "--move takes a boundary tag and a vector, such as 2 0.1 0; got '2'."),
        (["--move", "2", "1", "0", "0", *COARSE[:2]], "the boundary tag 2 has 2 components"),
        (["--move", "left", "1", "0"], "left"),
        (["--clamp", "77"], "77"),
        (["--traction", "2", "0", "free"], "--traction takes numbers got 'free'."),
        (["--plane", "curved", *COARSE[:2]], "--plane takes strain or stress, got 'curved'."),
    ],
)
def test_macro_refuses(tmp_path, words, message):
    found = refused("macro", BODY, "--out", tmp_path, *words)
    assert message in found, found


def test_a_failed_solve_ends_with_one_and_a_message(tmp_path):
    # Few iterations, for it to fail soon.
    laws = 'law = "NeoHookean"\nmu = 1\nlam = 2\n[rve]\nmax_iterations = 2\n'
    (tmp_path / "rubber.toml").write_text(laws)
    words = ["rve", CELL, "--laws", tmp_path / "rubber.toml", "--degree", "1"]
    message = refused(*words, "--strain", "-1", "0", "0", "1", code=1)
    assert "NoEquilibriumError: Cell number 0" in message


def test_the_trace_is_there_if_it_is_wanted(tmp_path):
    words = ["rve", CELL, "--laws", tmp_path / "none", "--strain", "0", "0", "0"]
    result = CliRunner().invoke(app, ["--traceback", *map(str, words)])
    assert isinstance(result.exception, FileNotFoundError)


# ---- parts ---------------------------------------------------------------------------------------


def test_lists_take_numbers_and_leave_arguments():
    words = ["--move", "left", "-1e-3", "free", "mesh.msh", "--strain=1", "2", "-q", "--clamp"]
    expected = ["--move=left,-1e-3,free", "mesh.msh", "--strain=1,2", "-q", "--clamp"]
    assert _gathered(words) == expected
    assert _gathered(["--clamp", "1", "2", "--clamp", "top", "m.msh"]) == [
        "--clamp=1,2", "--clamp=top", "m.msh",
    ]  # fmt: skip
    assert _gathered(["--strain", "--quiet"]) == ["--strain", "--quiet"]


def test_laws_of_the_demos_and_other_forms(tmp_path):
    laws, options = read_laws(ROOT / "demos" / "laws.toml")
    assert laws == {
        1: NonlinearElastic(K=4780.0, a1=50.0, a2=0.06),
        2: LinearElastic(K=43452.381, G=29918.0328),
    }
    assert options == {"family": "S"}
    (tmp_path / "a.json").write_text('{"7": {"law": "NeoHookean", "E": 3, "nu": 0.25}}')
    assert read_laws(tmp_path / "a.json") == ({7: NeoHookean(mu=1.2, lam=1.2)}, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1", "is not TOML"),
        ("", "holds no law"),
        ("[1]\nK = 1\n", "The law of tag 1 in .* is None, expected law = one of \\['J2Plast"),
        ('[1]\nlaw = "Response"\n', "is 'Response', expected law = one of"),
        ('[1]\nlaw = "LinearElastic"\nK = 1\n', r"takes \['G', 'K'\] or \['E', 'nu'\], got \['K'"),
        ('[1]\nlaw = "LinearElastic"\nK = 1\nG = "2"\n', "G is a number, got '2'"),
        ('[1]\nlaw = "LinearElastic"\nK = 1\nG = -2\n', "tag 1 in .*G"),
        ('[one]\nlaw = "LinearElastic"\nK = 1\nG = 2\n', "has the entry 'one'; expected a table"),
        ('rve = 3\nlaw = "LinearElastic"\n', "rve in .* is a table of options, got 3"),
    ],
)
def test_laws_are_refused(tmp_path, text, message):
    (tmp_path / "laws.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_laws(tmp_path / "laws.toml")


def test_options_are_checked_by_the_hints_of_the_function():
    def function(rate: float, odd: bool | None = None, **rest: int) -> None:
        """Nothing."""

    known = takes(function)
    assert checked({"rate": 3, "odd": None}, known, "f") == {"rate": 3.0, "odd": None}
    with pytest.raises(ValueError, match="'odd' of f is of type bool or none, got 1"):
        checked({"odd": 1}, known, "f")
    with pytest.raises(ValueError, match="'rate' of f is of type float, got True"):
        checked({"rate": True}, known, "f")
    with pytest.raises(ValueError, match=r"f has no option 'rest'; it takes \['odd', 'rate'\]"):
        checked({"rest": 1}, known, "f")


def test_prescribed_displacements_name_what_is_wrong():
    space = problem_space(read_mesh(BODY), 1)
    assert len(prescribed(space, {1: (0.0, 0.0), 2: (None, 0.1)})) == 2
    for vector in ((None, None), (0.1,)):
        with pytest.raises(ValueError, match="tag 2 has 2 components, one of them a number"):
            prescribed(space, {2: vector})


def test_a_file_of_an_unknown_kind_is_refused(tmp_path):
    store.write(tmp_path / "x.fe_ol", "Kriging", {}, {"a": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"of the kind 'Kriging', this fe_ol knows .*'EquiNO'"):
        load(tmp_path / "x.fe_ol")
    for kind in KINDS.values():
        assert callable(kind.save) and callable(kind.load) and callable(kind.fit)
