"""A unit cell in 3D with three round particles: one whole, one cut by a side, one by the corners.

Tetrahedra of degree 2, so that the particles are round; they fill 14.9 %.

Facets: 1 left, 2 right, 3 bottom, 4 top, 5 back, 6 front (matched). Cells: 1 matrix, 2 inclusion.
"""

from __future__ import annotations

from pathlib import Path

from drawing import drawing, run
from unit_cell import ball, images, unit_cell

# x, y, z, radius
BALLS = [(-0.03, 0.02, -0.04, 0.26), (0.5, 0.03, -0.02, 0.16), (0.5, 0.5, 0.5, 0.24)]
SIZE = 0.2


def make(path: Path, size: float = SIZE) -> None:
    """Mesh the cell with tetrahedra."""
    with drawing("particles3d", size) as shape:
        balls = [
            ball(shape, place, radius)
            for *centre, radius in BALLS
            for place in images(centre, radius)
        ]
        unit_cell(shape, balls, dim=3)
        shape.write(path, order=2)


if __name__ == "__main__":
    run(make, "particles3d", SIZE)
