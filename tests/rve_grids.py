"""The grids of the EquiNO benchmark's three RVEs, with their curved interfaces.

The grids and the reference results lie beside the repository, in ``shared/data/rve``, where they
are there at all; tests that need them skip otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from firedrake import Mesh

from spon.fem.curved import curved_mesh

GRIDS = Path(__file__).parents[2] / "shared" / "data" / "rve"


def grid_file(name: str) -> Path:
    """A file of the benchmark; skips the test where it is missing."""
    path = GRIDS / name
    if not path.exists():
        pytest.skip(f"the benchmark's grids are not here: no {path}")
    return path


def straight_rve(k: int) -> Any:
    """RVE 1, 2 or 3 as a periodic mesh with straight edges, tags 1 matrix and 2 inclusion."""
    return Mesh(str(grid_file(f"rve{k}_q4.msh")))


def curved_rve(k: int) -> Any:
    """RVE 1, 2 or 3 as a periodic mesh with DQ2 coordinates, tags 1 matrix and 2 inclusion."""
    with np.load(grid_file(f"rve{k}_grid.npz")) as grid:
        nodes = grid["nodes9"][grid["quad9"]]
    return curved_mesh(straight_rve(k), nodes)
