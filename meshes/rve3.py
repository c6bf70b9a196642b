"""A unit cell with three round inclusions of two sizes.

The third representative volume element of Eivazi et al., *EquiNO* (2025): 13.4 % inclusion.
Quadrilaterals of degree 2, so that the interfaces are round.

Facets: 1 left, 2 right, 3 bottom, 4 top (matched). Cells: 1 matrix, 2 inclusion.
"""

from __future__ import annotations

from pathlib import Path

from drawing import drawing, run
from unit_cell import unit_cell

DISKS = [(0.0, -0.25, 0.1), (0.25, 0.15, 0.15), (-0.25, 0.25, 0.1)]
SIZE = 0.05


def make(path: Path, size: float = SIZE) -> None:
    """Mesh the cell with quadrilaterals."""
    with drawing("rve3", size, quads=True) as shape:
        unit_cell(shape, [shape.disk(*disk) for disk in DISKS])
        shape.write(path, order=2)


if __name__ == "__main__":
    run(make, "rve3", SIZE)
