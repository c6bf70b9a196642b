"""Make every mesh of this folder again: ``python meshes/make.py [folder]``. Needs gmsh."""

from __future__ import annotations

import sys
from pathlib import Path

import bracket
import bracket3d
import cook
import fibres3d
import gear
import holes
import lprofile
import particles3d
import plate
import rve1
import rve2
import rve3

MESHES = {
    "bracket": bracket.make,
    "bracket3d": bracket3d.make,
    "plate": plate.make,
    "plate_quads": plate.make_quads,
    "gear": gear.make,
    "cook": cook.make,
    "lprofile": lprofile.make,
    "holes": holes.make,
    "rve1": rve1.make,
    "rve2": rve2.make,
    "rve3": rve3.make,
    "fibres3d": fibres3d.make,
    "particles3d": particles3d.make,
}


def main(folder: Path) -> None:
    """Write all meshes into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in MESHES.items():
        path = folder / f"{name}.msh"
        make(path)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
