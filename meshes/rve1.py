"""A unit cell with fibres in a square array: one in the middle, a quarter of one at each corner.

The first representative volume element of Eivazi et al., *EquiNO* (2025): the fibres fill 55 %.
Quadrilaterals of degree 2, so that the interfaces are round.

Facets: 1 left, 2 right, 3 bottom, 4 top (matched). Cells: 1 matrix, 2 inclusion.
"""

from __future__ import annotations

from pathlib import Path

from drawing import drawing, run
from unit_cell import images, unit_cell

RADIUS = 0.295864
CENTRES = [(0.0, 0.0), (0.5, 0.5)]
SIZE = 0.05


def make(path: Path, size: float = SIZE) -> None:
    """Mesh the cell with quadrilaterals."""
    with drawing("rve1", size, quads=True) as shape:
        places = [place for centre in CENTRES for place in images(centre, RADIUS)]
        unit_cell(shape, [shape.disk(x, y, RADIUS) for x, y in places])
        shape.write(path, order=2)


if __name__ == "__main__":
    run(make, "rve1", SIZE)
