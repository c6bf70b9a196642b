"""Scripts on several MPI processes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_ALLOWED = {
    "OMP_NUM_THREADS": "1",
    # Open MPI 4 and 5: as root (containers), and more processes than cores.
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PYTHONPATH": str(ROOT),
}


def environment():
    """Without what MPI left in ours: the processes start an MPI of their own."""
    inherited = ("OMPI_", "PMIX", "PRTE", "PMI")
    return {k: v for k, v in os.environ.items() if not k.startswith(inherited)} | _ALLOWED


def run_script(script, folder, *arguments, processes=2, more=None, timeout=300):
    """Run a script on so many processes, in a folder, and return what it printed.

    Skips the test where there is no MPI; fails with the end of the errors where the script does.
    """
    if processes > 1 and shutil.which("mpiexec") is None:
        pytest.skip("mpiexec is not on the path")
    launcher = [] if processes == 1 else ["mpiexec", "-n", str(processes)]
    path = Path(folder) / "script.py"
    path.write_text(script)
    done = subprocess.run(
        [*launcher, sys.executable, str(path), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment() | (more or {}),
        timeout=timeout,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"exit code {done.returncode}: {done.stderr[-3000:]}", pytrace=False)
    return done.stdout
