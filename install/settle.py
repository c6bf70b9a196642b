#!/usr/bin/env python3
"""Make the compiled packages of this environment find each other here.

petsc4py and Firedrake record, when they are compiled, the folder of the environment that they were
compiled in: in the search path of each extension module and in petsc4py's ``petsc.cfg``. Installed
from a cached wheel into another environment they would load PETSc from the first one, or from
nowhere once that one is deleted. Here every entry that points into a ``site-packages`` becomes
relative to the module itself; entries of build folders that are gone are dropped.

Run it with the environment's own Python. Needs ``patchelf``. Running it twice changes nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

PACKAGES = ("petsc4py", "firedrake", "h5py", "pyop2")


def relocated(entries: Iterable[str], module: Path, site: Path) -> list[str]:
    """Return the search path of one extension module with nothing left of other environments.

    Parameters
    ----------
    entries
        The search path that is recorded in the module.
    module
        The module's file, somewhere under ``site``.
    site
        The ``site-packages`` folder of this environment.
    """
    kept: list[str] = []
    for entry in entries:
        _, found, tail = entry.partition("/site-packages/")
        if found and not entry.startswith("$ORIGIN"):
            if not (site / tail).is_dir():
                continue
            entry = "$ORIGIN/" + os.path.relpath(site / tail, module.parent)
        elif not entry.startswith("$ORIGIN") and not Path(entry).is_dir():
            continue
        if entry and entry not in kept:
            kept.append(entry)
    return kept


def settle_module(module: Path, site: Path) -> bool:
    """Rewrite the search path of one extension module; return whether it had to be."""
    shown = subprocess.run(
        ["patchelf", "--print-rpath", str(module)], capture_output=True, text=True, check=True
    )
    before = [entry for entry in shown.stdout.strip().split(":") if entry]
    after = relocated(before, module, site)
    if after == before:
        return False
    # A new file in the old one's place: the old one may be shared with the cache by a hard link.
    fresh = module.with_suffix(".settling")
    command = ["patchelf", "--set-rpath", ":".join(after), "--output", str(fresh), str(module)]
    subprocess.run(command, check=True)
    fresh.chmod(module.stat().st_mode)
    fresh.replace(module)
    return True


def settle_petsc_config(site: Path) -> bool:
    """Point petsc4py's record of PETSC_DIR at the PETSc of this environment."""
    config = site / "petsc4py" / "lib" / "petsc.cfg"
    wanted = f"PETSC_DIR  = {site / 'petsc'}\nPETSC_ARCH = \n"
    if not (site / "petsc").is_dir() or not config.exists() or config.read_text() == wanted:
        return False
    fresh = config.with_suffix(".settling")
    fresh.write_text(wanted)
    fresh.replace(config)
    return True


def main() -> int:
    """Settle every compiled package of the running interpreter's environment."""
    site = Path(sysconfig.get_path("platlib"))
    changed = sum(
        settle_module(module, site)
        for package in PACKAGES
        for module in sorted((site / package).rglob("*.so"))
    )
    changed += settle_petsc_config(site)
    print(f"settle: {changed} files changed in {site}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
