"""A flag that keeps one compiler from making kernels that crash."""

from __future__ import annotations

import subprocess
from pathlib import Path

from firedrake import parameters
from pyop2.compilation import Compiler
from pyop2.configuration import configuration

__all__ = ["avoid_misaligned_stacks", "widest"]

_FLAG = "-mno-avx512f"
# Whether the flag is there because of us.
_forbidden = False
_WIDE = ("avx512f", "avx512dq", "avx512bw", "avx512vl")


def avoid_misaligned_stacks() -> bool:
    """Tell GCC 12 to leave the AVX-512 registers alone.

    With them and ``-O3``, as PyOP2 has it, GCC 12.2 leaves the stack of some interpolation kernels
    (strains of vectors of degree 2 on tetrahedra) unaligned and stores to it as if it were aligned:
    about every other process died. ``-mstackrealign`` does not help. Anybody who has an opinion on
    AVX-512 in ``PYOP2_CFLAGS`` is left alone.

    Firedrake initialises PyOP2 with its own parameters at the first mesh, and what stands in the
    configuration of PyOP2 before is lost; after that the parameters are not read any more. So the
    flag goes into both.

    Returns
    -------
    bool
        Whether the flag is set by this call.
    """
    options = parameters["pyop2_options"]
    if "avx512" in options["cflags"] or not _has_avx512() or _gcc_version() != 12:
        return False
    global _forbidden
    _forbidden = True
    options["cflags"] = configuration["cflags"] = f"{options['cflags']} {_FLAG}".strip()
    return True


def widest(source: str) -> str:
    """C code of our own with the registers that `avoid_misaligned_stacks` forbids to all other.

    Its loops are written for vectors of 64 bytes: in halves they take several times as long.

    Parameters
    ----------
    source : str

    Returns
    -------
    str
    """
    if not _forbidden:
        return source
    present = Path("/proc/cpuinfo").read_text().split()
    targets = ",".join(name for name in _WIDE if name in present)
    return f'#pragma GCC target("{targets}")\n{source}'


def _has_avx512() -> bool:
    try:
        return "avx512f" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _gcc_version() -> int | None:
    """Major version of the C compiler if it is GCC."""
    try:
        lines = subprocess.run(
            [Compiler().cc, "--version"], capture_output=True, text=True, check=True
        ).stdout
        if not lines.startswith("gcc"):
            return None
        version = subprocess.run(
            [Compiler().cc, "-dumpversion"], capture_output=True, text=True, check=True
        ).stdout
        return int(version.split(".")[0])
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None
