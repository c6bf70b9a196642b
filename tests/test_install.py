"""The set-up: what it probes, how it fails, that pins and ranges agree, and the doctor."""

from __future__ import annotations

import configparser
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

from spon import doctor

ROOT = Path(__file__).resolve().parent.parent
INSTALL = ROOT / "install"


def script(name: str) -> ModuleType:
    """Import one of the scripts in install/, which is not a package."""
    spec = importlib.util.spec_from_file_location(f"install_{name}", INSTALL / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


probe, settle = script("probe"), script("settle")


def constraints(name: str = "constraints.txt") -> dict[str, str]:
    text = (INSTALL / name).read_text()
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return dict(line.split("==") for line in lines if line and not line.startswith("-c"))


def ranges() -> list[Requirement]:
    return [Requirement(line) for line in probe.requirements().splitlines()]


@pytest.mark.parametrize("requirement", ranges(), ids=lambda r: r.name)
def test_pin_lies_in_range(requirement: Requirement) -> None:
    pin = constraints()[requirement.name.lower()]
    assert requirement.specifier.contains(pin)


def test_requirements_hold_every_extra_but_those_on_request() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    text = config["options"]["install_requires"]
    extras = dict(config["options.extras_require"])
    on_request = [extras.pop(name) for name in probe.ON_REQUEST]
    text += "".join(extras.values())
    names = {re.split(r"[<>=\[ ]", line)[0] for line in text.split("\n") if line}
    assert {r.name for r in ranges()} == names
    assert {"firedrake", "torch", "pytest", "gmsh"} <= names
    # Pinned beside the others: a pin there must not ask for another set-up, nor contradict one.
    pins = constraints("constraints-benchmarks.txt")
    for line in "".join(on_request).strip().splitlines():
        requirement = Requirement(line)
        assert requirement.name not in names
        assert requirement.specifier.contains(pins[requirement.name])
    assert not pins.keys() & constraints().keys()


@pytest.mark.parametrize(
    ("header", "version"),
    [
        ('#define HYPRE_RELEASE_VERSION "2.26.0"\n', (2, 26, 0)),
        (
            '#define HYPRE_RELEASE_NAME "hypre"\n#define HYPRE_RELEASE_VERSION   "2.32.0"',
            (2, 32, 0),
        ),
        ("nothing of the kind", ()),
    ],
)
def test_hypre_version(tmp_path: Path, header: str, version: tuple[int, ...]) -> None:
    (tmp_path / "HYPRE_config.h").write_text(header)
    assert probe.hypre_version(tmp_path) == version
    assert probe.hypre_version(tmp_path / "absent") == ()


def fake_libraries(folder: Path) -> None:
    (folder / "hdf5" / "openmpi").mkdir(parents=True)
    names = ["ptesmumps", "ptscotch", "ptscotcherr", "esmumps", "scotch", "scotcherr"]
    names += ["dmumps", "scalapack-openmpi", "metis", "HYPRE", "hdf5/openmpi/libhdf5"]
    for name in names:
        path = folder / (f"lib{name}.so" if "/" not in name else f"{name}.so")
        path.touch()


@pytest.mark.parametrize(
    ("hypre", "offered"),
    [((2, 26, 0), False), ((2, 28, 0), False), ((2, 32, 0), True), ((), False)],
)
def test_options_take_hypre_only_if_it_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hypre: tuple[int, ...], offered: bool
) -> None:
    fake_libraries(tmp_path)
    monkeypatch.setattr(probe, "library_folders", lambda: [tmp_path])
    monkeypatch.setattr(probe, "hypre_version", lambda: hypre)
    exists = probe.first
    monkeypatch.setattr(  # headers lie in /usr/include, which the test does not want to look at
        probe, "first", lambda c, w, p: c[0] if "/usr/include" in str(c[0]) else exists(c, w, p)
    )
    options = probe.petsc_options()
    assert ("--with-hypre=1" in options) is offered
    assert f"[{tmp_path}/hdf5/openmpi/libhdf5_hl.so,{tmp_path}/hdf5/openmpi/libhdf5.so]" in options
    # pip's build of PETSc splits at blanks, so that none may stand inside an option
    assert all(o.startswith("--with-") or "OPTFLAGS=-O3" in o for o in options.split(" "))


def test_missing_library_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "library_folders", lambda: [tmp_path])
    with pytest.raises(probe.ProbeError, match=r"libdmumps\.so not found .* install libmumps-dev"):
        probe.library("dmumps", "libmumps-dev")


def test_another_mpi_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(probe, "command", lambda *args: "MPICH 4.2")
    with pytest.raises(probe.ProbeError, match="is not Open MPI's; make it so"):
        probe.mpi()
    monkeypatch.setattr(probe, "command", lambda *args: "mpicc: Open MPI 5.0.7 (Language: C)")
    assert probe.mpi() == "openmpi5.0.7"


def test_search_paths_become_relative(tmp_path: Path) -> None:
    site = tmp_path / "lib" / "python3.13" / "site-packages"
    module = site / "firedrake" / "cython" / "dmcommon.so"
    for folder in ("petsc/lib", "firedrake/cython", "libsupermesh/lib"):
        (site / folder).mkdir(parents=True)
    old = "/elsewhere/.venv/lib/python3.11/site-packages"
    before = [f"{old}/petsc/lib", "/tmp/pip-build-env-xyz/overlay", f"{old}/libsupermesh/lib",
              f"{site}/petsc/lib", f"{old}/Rtree.libs", str(tmp_path), "$ORIGIN/../x"]  # fmt: skip
    after = settle.relocated(before, module, site)
    assert after == ["$ORIGIN/../../petsc/lib", "$ORIGIN/../../libsupermesh/lib", str(tmp_path),
                     "$ORIGIN/../x"]  # fmt: skip
    assert settle.relocated(after, module, site) == after


def test_this_environment_is_settled() -> None:
    """No compiled package of the project's own environment looks into another one."""
    site = Path(sys.prefix) / f"lib/python{sys.version_info.major}.{sys.version_info.minor}"
    site = site / "site-packages"
    if not (Path(sys.prefix) / ".spon-key").exists():
        pytest.skip("this environment was not made by install/setup.sh")
    for package in settle.PACKAGES:
        for module in (site / package).rglob("*.so"):
            shown = subprocess.run(
                ["patchelf", "--print-rpath", module], capture_output=True, text=True, check=True
            )
            assert "site-packages" not in shown.stdout, module


# ---- setup.sh on machines that lack something, played by commands that only say so ----------


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Return a copy of what setup.sh needs, and beside it ``bin`` with commands to be faked."""
    shutil.copytree(INSTALL, tmp_path / "install", ignore=shutil.ignore_patterns("*.log"))
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    (tmp_path / "bin").mkdir()
    return tmp_path


def fake(machine: Path, name: str, body: str) -> None:
    path = machine / "bin" / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def set_up(machine: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{machine}/bin:{os.environ['PATH']}", **variables}
    environment["SPON_CACHE"] = str(machine / "cache")
    return subprocess.run(
        ["bash", str(machine / "install" / "setup.sh")],
        capture_output=True, text=True, timeout=120, check=False, env=environment,
    )  # fmt: skip


def test_without_root_it_prints_one_command(machine: Path) -> None:
    fake(machine, "id", "echo 1000")
    fake(machine, "sudo", "exit 1")
    fake(machine, "dpkg-query", "exit 1")
    fake(machine, "dpkg", "exit 1")
    fake(machine, "apt-get", "echo apt-get was called >&2; exit 1")
    fake(machine, "apt-cache", "echo '  Candidate: 1.0'")
    done = set_up(machine)
    assert done.returncode == 1
    commands = [line for line in done.stderr.splitlines() if "sudo apt-get" in line]
    assert len(commands) == 1
    for package in ("libhdf5-openmpi-dev", "patchelf", "libptscotch-dev", "gfortran"):
        assert package in commands[0].split()
    assert "libhypre-dev" not in commands[0]  # the candidate is too old
    assert "apt-get was called" not in done.stderr
    assert not (machine / ".venv").exists()


def test_failure_is_one_line_with_cause_and_log(machine: Path) -> None:
    fake(machine, "mpicc", "echo 'MPICH version 4.0'")
    done = set_up(machine, SPON_NO_SYSTEM="1")
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1
    assert "Probable cause: " in lines[0]
    assert f"Log: {machine}/install/setup.log" in lines[0]


def test_too_old_python_is_refused(machine: Path) -> None:
    fake(machine, "python3.old", "exit 1")
    done = set_up(machine, SPON_PYTHON="python3.old")
    assert done.returncode == 1
    assert "no Python >= 3.11 found" in done.stderr


def test_stamp_follows_what_decides(machine: Path) -> None:
    def stamp() -> str:
        shown = subprocess.run(
            ["sh", str(machine / "install" / "stamp.sh")],
            capture_output=True, text=True, check=True, cwd="/",
        )  # fmt: skip
        return shown.stdout.strip()

    before = stamp()
    assert re.fullmatch(r"[0-9a-f]{12}", before)
    with open(machine / "install" / "constraints.txt", "a") as file:
        file.write("something==1.0\n")
    assert stamp() != before


# ---- the doctor --------------------------------------------------------------------------------


def run_doctor(prelude: str = "") -> subprocess.CompletedProcess[str]:
    code = f"{prelude}\nimport sys\nfrom spon import doctor\nsys.exit(doctor.main())"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False,
        cwd=ROOT,
    )  # fmt: skip


def test_doctor_finds_this_environment_well() -> None:
    done = run_doctor()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all is well" in done.stdout
    for subject in ("Firedrake", "PETSc", "MPI", "h5py", "torch", "threads", "GPU", "self-check"):
        assert subject in done.stdout


@pytest.mark.parametrize("package", ["torch", "h5py"])
def test_doctor_reports_a_missing_package(package: str) -> None:
    found = doctor.examine(package, lambda: [doctor.load(f"no_such_{package}")])  # type: ignore
    assert [f.state for f in found] == ["mend"]
    assert f"no_such_{package} is not installed" in found[0].text
    assert "install/setup.sh" in found[0].remedy


def test_doctor_survives_without_firedrake_and_torch() -> None:
    done = run_doctor("import sys; sys.modules.update(firedrake=None, torch=None)")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "firedrake is not installed" in done.stdout
    assert "torch is not installed" in done.stdout
    assert "to mend" in done.stdout


def test_doctor_survives_anything() -> None:
    def broken() -> list[doctor.Finding]:
        raise OSError("first line\nlibpetsc.so.3.26: cannot open shared object file\n")

    found = doctor.examine("PETSc", broken)
    assert found[0].state == "mend"
    assert "OSError: libpetsc.so.3.26: cannot open shared object file" in found[0].text
