"""A unit cell with one elliptic inclusion, its long axis 30 degrees above the horizontal.

The second representative volume element of Eivazi et al., *EquiNO* (2025): 19.3 % inclusion.
Quadrilaterals of degree 2, so that the interface is round.

Facets: 1 left, 2 right, 3 bottom, 4 top (matched). Cells: 1 matrix, 2 inclusion.
"""

from __future__ import annotations

import math
from pathlib import Path

from drawing import drawing, run
from unit_cell import unit_cell

LONG, SHORT, ANGLE = 0.35, 0.1754, 30.0
SIZE = 0.05


def make(path: Path, size: float = SIZE) -> None:
    """Mesh the cell with quadrilaterals."""
    with drawing("rve2", size, quads=True) as shape:
        ellipse = shape.disk(0, 0, LONG, SHORT)
        shape.occ.rotate([(2, ellipse)], 0, 0, 0, 0, 0, 1, math.radians(ANGLE))
        unit_cell(shape, [ellipse])
        shape.write(path, order=2)


if __name__ == "__main__":
    run(make, "rve2", SIZE)
