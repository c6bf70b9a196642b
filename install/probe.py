#!/usr/bin/env python3
"""What this machine has: the numbers and names that ``install/setup.sh`` cannot know beforehand.

Standard library only: it runs before anything is installed.

Usage: ``probe.py options | key | hdf5 | requirements``
"""

from __future__ import annotations

import configparser
import hashlib
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "install" / "constraints.txt"

# Older releases of hypre lack functions that PETSc 3.26 calls (Debian 12 has 2.26).
OLDEST_HYPRE = (2, 29)


# Extras that the set-up does not install: the rivals of a benchmark, with much that they bring.
ON_REQUEST = {"benchmarks"}


class ProbeError(RuntimeError):
    """Something that the set-up needs is not on this machine."""


def command(*args: str) -> str:
    """Return what a command prints, or an empty string where it is missing or fails."""
    if shutil.which(args[0]) is None:
        return ""
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def multiarch() -> str:
    """Return the folder name of libraries for this architecture, such as ``x86_64-linux-gnu``."""
    return (
        command("gcc", "-print-multiarch")
        or command("dpkg-architecture", "-qDEB_HOST_MULTIARCH")
        or f"{platform.machine()}-linux-gnu"
    )


def library_folders() -> list[Path]:
    """Return the folders in which system libraries may lie, the most likely first."""
    return [Path(f) for f in (f"/usr/lib/{multiarch()}", "/usr/lib64", "/usr/lib")]


def first(candidates: list[Path], what: str, package: str) -> Path:
    """Return the first path that exists.

    Raises
    ------
    ProbeError
        If none exists; the message names the package that brings it.
    """
    for path in candidates:
        if path.exists():
            return path
    places = ", ".join(str(c) for c in candidates)
    raise ProbeError(f"{what} not found (looked at {places}); install {package}")


def library(name: str, package: str) -> Path:
    """Return the path of ``lib<name>.so``."""
    return first([f / f"lib{name}.so" for f in library_folders()], f"lib{name}.so", package)


def hdf5_folder() -> Path:
    """Return the folder of the HDF5 that was built on Open MPI (it has ``lib`` and ``include``)."""
    tails = ("hdf5/openmpi", "openmpi")
    folders = [f / tail for f in library_folders() for tail in tails]
    return first([f for f in folders if (f / "libhdf5.so").exists()] or folders[:1],
                 "HDF5 on Open MPI", "libhdf5-openmpi-dev")  # fmt: skip


def hypre_version(include: Path = Path("/usr/include/hypre")) -> tuple[int, ...]:
    """Return the version of the installed hypre, ``()`` where there is none."""
    header = include / "HYPRE_config.h"
    if not header.exists():
        return ()
    found = re.search(r'HYPRE_RELEASE_VERSION\s+"([\d.]+)"', header.read_text(errors="replace"))
    return tuple(int(n) for n in found.group(1).split(".")) if found else ()


def petsc_options() -> str:
    """Return PETSc's configure options for this machine.

    Lists are written ``[a,b]``: pip's build of PETSc splits the options at blanks.
    """
    hdf5 = hdf5_folder()
    hdf5_include = first([Path("/usr/include/hdf5/openmpi"), hdf5 / "include"],
                         "headers of HDF5 on Open MPI", "libhdf5-openmpi-dev")  # fmt: skip
    hdf5_libs = f"[{hdf5}/libhdf5_hl.so,{hdf5}/libhdf5.so]"
    scotch_include = first(
        [Path("/usr/include/scotch"), Path("/usr/include/scotch-int32"), Path("/usr/include")],
        "ptscotch.h", "libptscotch-dev")  # fmt: skip
    names = ("ptesmumps", "ptscotch", "ptscotcherr", "esmumps", "scotch", "scotcherr")
    scotch_libs = ",".join(str(library(name, "libptscotch-dev")) for name in names)
    library("dmumps", "libmumps-dev")
    library("scalapack-openmpi", "libscalapack-openmpi-dev")
    library("metis", "libmetis-dev")
    options = [
        "--with-fortran-bindings=0",
        "--with-debugging=0",
        "--with-cuda=0",  # an nvcc that lies around is not wanted
        "--with-hdf5=1",
        f"--with-hdf5-include={hdf5_include}",
        f"--with-hdf5-lib={hdf5_libs}",
        "--with-mumps=1",
        "--with-scalapack=1",
        "--with-scalapack-lib=-lscalapack-openmpi",
        "--with-ptscotch=1",
        f"--with-ptscotch-include={scotch_include}",
        f"--with-ptscotch-lib=[{scotch_libs}]",
        "--with-metis=1",
    ]
    if hypre_version() >= OLDEST_HYPRE:
        options += [
            "--with-hypre=1",
            "--with-hypre-include=/usr/include/hypre",
            f"--with-hypre-lib={library('HYPRE', 'libhypre-dev')}",
        ]
    options += ["--with-suitesparse=1", "--with-hwloc=1", "--with-zlib=1", "--with-x=0"]
    options += ["COPTFLAGS=-O3", "CXXOPTFLAGS=-O3", "FOPTFLAGS=-O3"]
    return " ".join(options)


def mpi() -> str:
    """Return flavour and version of the MPI that ``mpicc`` belongs to, such as ``openmpi4.1.4``.

    Raises
    ------
    ProbeError
        If there is no ``mpicc``, or it is not Open MPI's: the system's MUMPS, ScaLAPACK and HDF5
        are taken in their Open MPI builds, and two MPIs in one process do not work.
    """
    if shutil.which("mpicc") is None:
        raise ProbeError("mpicc not found; install libopenmpi-dev")
    found = re.search(r"Open MPI (\d[\w.]*)", command("mpicc", "--showme:version"))
    if found is None:
        raise ProbeError(
            f"{shutil.which('mpicc')} is not Open MPI's; make it so "
            "(on Debian: update-alternatives --set mpi /usr/bin/mpicc.openmpi)"
        )
    return f"openmpi{found.group(1)}"


def pinned(name: str) -> str:
    """Return the version that ``install/constraints.txt`` pins for a package."""
    for line in CONSTRAINTS.read_text().splitlines():
        left, _, right = line.partition("#")[0].partition("==")
        if left.strip().lower() == name.lower():
            return right.split(";")[0].strip()
    raise ProbeError(f"install/constraints.txt does not pin {name}")


def cache_key() -> str:
    """Return the name of the folder for wheels that were built on a machine like this one.

    System and version, architecture, Python, MPI, versions of what is compiled, and a hash of
    PETSc's options: wheels under one key fit each other and the system's libraries.
    """
    release = {}
    for line in Path("/etc/os-release").read_text().splitlines():
        left, _, right = line.partition("=")
        release[left] = right.strip('"')
    compiled = " ".join(f"{p}={pinned(p)}" for p in ("petsc", "petsc4py", "h5py", "firedrake"))
    digest = hashlib.sha256(f"{petsc_options()} {compiled}".encode()).hexdigest()[:10]
    return "-".join(
        [
            release.get("ID", "linux") + release.get("VERSION_ID", ""),
            platform.machine(),
            f"cp{sys.version_info.major}{sys.version_info.minor}",
            mpi(),
            f"petsc{pinned('petsc')}",
            digest,
        ]
    )


def requirements() -> str:
    """Return what the set-up installs, one requirement a line: all but the extras on request."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"].splitlines()
    for name, extra in config["options.extras_require"].items():
        if name not in ON_REQUEST:
            lines += extra.splitlines()
    return "\n".join(dict.fromkeys(line.strip() for line in lines if line.strip()))


def main(question: str) -> int:
    """Print the answer to one question; 1 and one line on stderr where there is none."""
    answers = {
        "options": petsc_options,
        "key": cache_key,
        "hdf5": lambda: str(hdf5_folder()),
        "requirements": requirements,
        "mpi": mpi,
    }
    if question not in answers:
        print(f"probe.py: no such question {question!r}; one of {', '.join(answers)}",
              file=sys.stderr)  # fmt: skip
        return 2
    try:
        print(answers[question]())
    except ProbeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) == 2 else ""))
