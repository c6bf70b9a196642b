"""What this installation has and lacks: ``python -m spon.doctor``.

Prints what was found, runs a self-check of some ten seconds, and says what to mend. Nothing is
imported before it is looked at: a package that is missing or broken is reported, not a crash.
Exit status 0 if all is well, 1 if something has to be mended.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

SETUP = "run `bash install/setup.sh` in the project's folder"
MARKS = {"ok": "ok  ", "note": "note", "mend": "MEND"}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Parameters
    ----------
    subject
        What was looked at.
    state
        ``"ok"``, ``"note"`` (worth knowing, nothing to do) or ``"mend"``.
    text
        What was found.
    remedy
        What to do about it; empty where there is nothing to do.
    """

    subject: str
    state: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"  {MARKS[self.state]}  {self.subject:<12} {self.text}"
        return f"{line}\n{'':<20} -> {self.remedy}" if self.remedy else line


def load(name: str) -> ModuleType:
    """Import a package by name (the doctor knows Firedrake only by name)."""
    return importlib.import_module(name)


def version(package: str) -> str:
    """Return the version of an installed package.

    Raises
    ------
    importlib.metadata.PackageNotFoundError
        If it is not installed.
    """
    return importlib.metadata.version(package)


def look_at_python() -> list[Finding]:
    """Report the interpreter and the number of threads that numerical libraries will use."""
    where = f"{platform.python_version()} at {sys.executable}"
    state, remedy = ("ok", "") if sys.version_info >= (3, 11) else ("mend", "use Python >= 3.11")
    threads = os.environ.get("OMP_NUM_THREADS")
    found = [Finding("Python", state, where, remedy)]
    cores = f"{os.cpu_count()} cores, OMP_NUM_THREADS "
    if threads:
        found.append(Finding("threads", "ok", cores + f"= {threads}"))
    else:
        found.append(
            Finding("threads", "note", cores + "is not set",
                    "`export OMP_NUM_THREADS=1`: small problems run faster, and mpiexec needs it")
        )  # fmt: skip
    return found


def look_at_firedrake() -> list[Finding]:
    """Report Firedrake and the versions it stands on."""
    begun = time.perf_counter()
    load("firedrake")
    took = time.perf_counter() - begun
    return [Finding("Firedrake", "ok", f"{version('firedrake')} (imported in {took:.1f} s)")]


def look_at_petsc() -> list[Finding]:
    """Report PETSc, the packages it was built with, and those that would be missed."""
    load("petsc4py")
    petsc = load("petsc4py.PETSc")
    release = ".".join(map(str, petsc.Sys.getVersion()))
    known = ("mumps", "superlu_dist", "hypre", "ptscotch", "metis", "parmetis", "umfpack",
             "scalapack", "hdf5", "hwloc")  # fmt: skip
    packages = [name for name in known if petsc.Sys.hasExternalPackage(name)]
    scalar = petsc.ScalarType().dtype
    found = [Finding("PETSc", "ok", f"{release}, {scalar}, with {', '.join(packages) or 'none'}")]
    if scalar.kind != "f":
        found.append(Finding("PETSc", "mend", f"its scalars are {scalar}", "spon needs real ones"))
    needed = {"mumps": "direct solves in parallel", "hdf5": "writing meshes and functions"}
    for name, purpose in needed.items():
        if name not in packages:
            found.append(Finding("PETSc", "mend", f"built without {name}: no {purpose}", SETUP))
    if "hypre" not in packages:
        found.append(Finding("PETSc", "note", "built without hypre: use gamg where you want AMG"))
    return found


def look_at_mpi() -> list[Finding]:
    """Report the MPI library that mpi4py uses, and whether ``mpiexec`` starts two processes."""
    mpi = load("mpi4py.MPI")
    library = " ".join(mpi.Get_library_version().replace("\0", "").split(",")[0].split())
    found = [Finding("MPI", "ok", f"{library} (mpi4py {version('mpi4py')})")]
    mpiexec = shutil.which("mpiexec")
    if mpiexec is None:
        return [*found, Finding("mpiexec", "mend", "not found", "install openmpi-bin")]
    if mpi.COMM_WORLD.size > 1:
        return [*found, Finding("mpiexec", "ok", f"{mpi.COMM_WORLD.size} processes run this")]
    code = "from mpi4py.MPI import COMM_WORLD as w; n = w.allreduce(1); w.rank or print(n)"
    command = [mpiexec, *oversubscribe(mpiexec), "-n", "2", sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=launcher_environment()
    )
    if done.returncode == 0 and done.stdout.split() == ["2"]:
        return [*found, Finding("mpiexec", "ok", f"two processes see each other ({mpiexec})")]
    if done.returncode == 0:
        text, remedy = "the processes do not see each other", "mpiexec and mpi4py differ in MPI"
    else:
        text, remedy = last_line(done.stderr or done.stdout), "see `mpiexec -n 2 hostname`"
    return [*found, Finding("mpiexec", "mend", text, remedy)]


def launcher_environment() -> dict[str, str]:
    """Return the environment to start ``mpiexec`` in.

    A process that has started MPI leaves its own rank and namespace in the environment; an
    ``mpiexec`` that inherits them takes itself for a part of that job and fails.
    """
    environment = dict(os.environ)
    if {"PMIX_NAMESPACE", "PMIX_RANK", "OMPI_COMM_WORLD_RANK"} & environment.keys():
        ours = ("OMPI_", "PMIX_", "ORTE_", "PRTE_")
        environment = {k: v for k, v in environment.items() if not k.startswith(ours)}
    if os.geteuid() == 0:
        environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return environment


def oversubscribe(mpiexec: str) -> list[str]:
    """Return the option that lets Open MPI start more processes than there are cores."""
    shown = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, check=False)
    return ["--oversubscribe"] if "Open MPI" in shown.stdout or "OpenRTE" in shown.stdout else []


def look_at_h5py() -> list[Finding]:
    """Report h5py, and write a file through the parallel driver."""
    h5py = load("h5py")
    text = f"{version('h5py')} on HDF5 {h5py.version.hdf5_version}"
    if not h5py.get_config().mpi:
        return [Finding("h5py", "mend", f"{text}, without MPI: no parallel files", SETUP)]
    np, mpi = load("numpy"), load("mpi4py.MPI")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"check{mpi.COMM_WORLD.rank}.h5"
        written = np.arange(7.0)
        with h5py.File(path, "w", driver="mpio", comm=mpi.COMM_SELF) as file:
            file["x"] = written
        with h5py.File(path, "r") as file:
            same = np.array_equal(file["x"][:], written)
    if not same:
        return [Finding("h5py", "mend", f"{text} reads back other numbers than it wrote", SETUP)]
    return [Finding("h5py", "ok", f"{text}, parallel; wrote and read a file")]


def look_at_torch() -> list[Finding]:
    """Report torch and the GPU, and compare a sparse product with a dense one."""
    torch = load("torch")
    found = [Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")]
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(30, 20, generator=generator, dtype=torch.float64)
    dense[dense < 0.8] = 0.0
    x = torch.rand(20, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    difference = (sparse_rows(torch, dense) @ x - dense @ x).abs().max().item()
    if difference > 1e-13:
        found.append(
            Finding("torch", "mend", f"a sparse product is wrong by {difference:.1e}", SETUP)
        )
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        found.append(Finding("GPU", "ok", f"{torch.cuda.device_count()}: {', '.join(names)}"))
    else:
        found.append(Finding("GPU", "note", "none that torch can use; everything runs on the CPU"))
    return found


def sparse_rows(torch: ModuleType, dense: object) -> object:
    """Return a matrix in compressed rows, without torch's notice that those are in beta."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return dense.to_sparse_csr()  # type: ignore[attr-defined]


def look_at_others() -> list[Finding]:
    """Report the remaining packages; some are wanted only for some jobs."""
    needed = ("numpy", "scipy", "safetensors", "tqdm", "matplotlib", "typer")
    optional = {"meshio": "foreign mesh formats", "gmsh": "making meshes", "pyvista": "3D pictures"}
    present, found = [], []
    for name in (*needed, *optional):
        try:
            present.append(f"{name} {version(name)}")
        except importlib.metadata.PackageNotFoundError:
            if name in optional:
                found.append(Finding("packages", "note", f"no {name}: no {optional[name]}"))
            else:
                found.append(Finding("packages", "mend", f"no {name}", f"pip install {name}"))
    return [Finding("packages", "ok", ", ".join(present)), *found]


def check_poisson() -> list[Finding]:
    """Solve a Poisson problem with a known solution at two mesh sizes; the rate must be two."""
    fd = load("firedrake")
    begun = time.perf_counter()
    errors = []
    for n in (8, 16):
        mesh = fd.UnitSquareMesh(n, n)
        space = fd.FunctionSpace(mesh, "CG", 1)
        x, y = fd.SpatialCoordinate(mesh)
        exact = fd.sin(fd.pi * x) * fd.sin(fd.pi * y)
        u, v = fd.Function(space), fd.TestFunction(space)
        form = (fd.inner(fd.grad(u), fd.grad(v)) - 2 * fd.pi**2 * exact * v) * fd.dx(degree=4)
        fd.solve(form == 0, u, fd.DirichletBC(space, 0, "on_boundary"))
        errors.append(fd.errornorm(exact, u))
    ratio, took = errors[0] / errors[1], time.perf_counter() - begun
    text = f"Poisson: error falls by {ratio:.2f} when h is halved (4 expected), {took:.1f} s"
    if 3.5 < ratio < 4.5:
        return [Finding("self-check", "ok", text)]
    return [Finding("self-check", "mend", text, SETUP)]


def last_line(text: str) -> str:
    """Return the last line of a text that is not blank, shortened."""
    lines = [line.strip() for line in text.splitlines() if line.strip(" -=\n")]
    return lines[-1][:160] if lines else "it says nothing"


CHECKS: dict[str, Callable[[], list[Finding]]] = {
    "Python": look_at_python,
    "MPI": look_at_mpi,
    "Firedrake": look_at_firedrake,  # before PETSc: it wants to initialise PETSc itself
    "PETSc": look_at_petsc,
    "h5py": look_at_h5py,
    "torch": look_at_torch,
    "packages": look_at_others,
    "self-check": check_poisson,
}


def examine(subject: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """Run one check; whatever goes wrong in it becomes a finding.

    Parameters
    ----------
    subject
        Shown in front of what went wrong.
    check
        Returns findings, or raises anything.
    """
    try:
        return check()
    except ModuleNotFoundError as error:
        return [Finding(subject, "mend", f"{error.name} is not installed", SETUP)]
    except Exception as error:
        # A diagnosis has to survive whatever a broken installation throws.
        what = f"{type(error).__name__}: {last_line(str(error))}"
        return [Finding(subject, "mend", what, SETUP)]


def main() -> int:
    """Print the report; return 1 if something has to be mended, else 0."""
    print(f"spon's doctor on {platform.platform()}")
    sick = 0
    for subject, check in CHECKS.items():
        for finding in examine(subject, check):
            print(finding, flush=True)
            sick += finding.state == "mend"
    print("all is well" if not sick else f"{sick} to mend: see the arrows above")
    return 1 if sick else 0


if __name__ == "__main__":
    sys.exit(main())
