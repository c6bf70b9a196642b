"""A unit cell in 3D with fibres along z: one in the middle, a quarter of one at each vertical edge.

Tetrahedra of degree 2, so that the fibres are round. A plane section is a square array like
``rve1``, less full: the fibres fill 39.3 %.

Facets: 1 left, 2 right, 3 bottom, 4 top, 5 back, 6 front (matched). Cells: 1 matrix, 2 inclusion.
"""

from __future__ import annotations

from pathlib import Path

from drawing import drawing, run
from unit_cell import images, unit_cell

RADIUS = 0.25
CENTRES = [(0.0, 0.0), (0.5, 0.5)]
SIZE = 0.2


def make(path: Path, size: float = SIZE) -> None:
    """Mesh the cell with tetrahedra."""
    with drawing("fibres3d", size) as shape:
        places = [place for centre in CENTRES for place in images(centre, RADIUS)]
        fibres = [shape.occ.addCylinder(x, y, -0.5, 0, 0, 1, RADIUS) for x, y in places]
        unit_cell(shape, fibres, dim=3)
        shape.write(path, order=2)


if __name__ == "__main__":
    run(make, "fibres3d", SIZE)
