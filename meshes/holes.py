"""A plate 2 x 1 with three round holes, for FE²: few cells of degree 2, so that holes are round.

Facets: 1 left, 2 right, 3 outer (bottom and top), 4 holes. Cells: 1 body.
"""

from __future__ import annotations

from pathlib import Path

from drawing import drawing, run

LENGTH, HEIGHT = 2.0, 1.0
HOLES = [(0.5, 0.62, 0.17), (1.05, 0.36, 0.14), (1.55, 0.6, 0.2)]
SIZE = 0.1


def make(path: Path, size: float = SIZE) -> None:
    """Mesh the plate with quadrilaterals."""
    with drawing("holes", size, quads=True) as shape:
        sheet = shape.outline([(0, 0), (LENGTH, 0), (LENGTH, HEIGHT), (0, HEIGHT)])
        shape.tag_cells("body", 1, [shape.cut(sheet, [shape.disk(*hole) for hole in HOLES])])
        shape.tag_facets("left", 1, lambda x, y, z: x < 1e-6)
        shape.tag_facets("right", 2, lambda x, y, z: x > LENGTH - 1e-6)
        shape.tag_facets("outer", 3, lambda x, y, z: y < 1e-6 or y > HEIGHT - 1e-6)
        shape.tag_facets("holes", 4, lambda x, y, z: True)
        shape.refine("holes", shape.size / 1.6, reach=0.12)
        shape.write(path, order=2)


if __name__ == "__main__":
    run(make, "holes", SIZE)
