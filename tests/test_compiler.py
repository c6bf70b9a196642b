"""The flag that keeps GCC 12 from making kernels that crash."""

import os
import subprocess
import sys

import pytest

# What PyOP2 compiles with once there is a mesh, on a machine that has the fault or has it not.
SCRIPT = """
import pathlib, subprocess, sys
import firedrake
from pyop2.compilation import Compiler
avx512, version, first = sys.argv[1] == "yes", sys.argv[2], sys.argv[3]
read, run = pathlib.Path.read_text, subprocess.run
def read_text(path, *a, **k):
    return "avx512f" * avx512 if str(path) == "/proc/cpuinfo" else read(path, *a, **k)
def pretend(command, *a, **k):
    answers = {"--version": "gcc (Debian) " + version, "-dumpversion": version}
    if command[0] == Compiler().cc and command[1] in answers:
        return subprocess.CompletedProcess(command, 0, answers[command[1]], "")
    return run(command, *a, **k)
pathlib.Path.read_text, subprocess.run = read_text, pretend
if first == "mesh":
    firedrake.UnitIntervalMesh(1)
import spon.fem
wide = spon.fem.compiler.widest("int x;").splitlines()[0]
pathlib.Path.read_text, subprocess.run = read, run
if first == "spon":
    firedrake.UnitIntervalMesh(1)
from pyop2.configuration import configuration
print(configuration["cflags"])
print(wide)
"""


@pytest.mark.parametrize(
    ("avx512", "version", "first", "flags", "wanted"),
    [
        ("yes", "12", "spon", "", "-mno-avx512f"),
        ("yes", "12", "mesh", "", "-mno-avx512f"),
        ("yes", "12", "spon", "-g", "-g -mno-avx512f"),
        ("yes", "12", "spon", "-mavx512f", "-mavx512f"),
        ("yes", "13", "spon", "", ""),
        ("no", "12", "spon", "", ""),
    ],
)
def test_kernels_are_compiled_with_the_flag_where_it_is_needed(
    avx512, version, first, flags, wanted
):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, avx512, version, first],
        capture_output=True, text=True, env={**os.environ, "PYOP2_CFLAGS": flags},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    flags_in_use, first_line = done.stdout.splitlines()
    assert flags_in_use.strip() == wanted
    # Our own loops keep the widest registers where the flag takes them from all others.
    pragma = '#pragma GCC target("avx512f")'
    assert first_line == (pragma if wanted.endswith("-mno-avx512f") else "int x;")
