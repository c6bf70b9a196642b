"""A plate 2 x 1 with seven holes (round, oval, a slot) and two inserts of another material.

For Darcy flow (coefficient to pressure) from left to right, and for jumps of a coefficient that
the mesh follows. ``plate_quads.msh`` is the same plate in quadrilaterals.

Facets: 1 left, 2 right, 3 bottom, 4 top, 5 holes. Cells: 1 matrix, 2 insert.
"""

from __future__ import annotations

from pathlib import Path

from drawing import drawing, run

LENGTH, HEIGHT = 2.0, 1.0
DISKS = [(0.35, 0.68, 0.12), (0.3, 0.25, 0.08), (0.95, 0.76, 0.09), (1.3, 0.5, 0.15)]
DISKS += [(1.76, 0.2, 0.09)]
OVAL = (1.68, 0.78, 0.15, 0.08)
SLOT, SLOT_RADIUS = [(0.62, 0.2), (1.02, 0.2), (1.02, 0.36), (0.62, 0.36)], 0.06
COLLAR = (1.3, 0.5, 0.26)  # around the largest hole
INSERT = (0.66, 0.56, 0.11)
SIZE, QUAD_SIZE = 0.042, 0.045


def make(path: Path, size: float = SIZE, quads: bool = False) -> None:
    """Mesh the plate with triangles, or with quadrilaterals."""
    with drawing("plate", size, quads) as shape:
        sheet = shape.outline([(0, 0), (LENGTH, 0), (LENGTH, HEIGHT), (0, HEIGHT)])
        holes = [shape.disk(*hole) for hole in [*DISKS, OVAL]]
        body = shape.cut(sheet, [*holes, shape.outline(SLOT, SLOT_RADIUS)])
        collar = shape.cut(shape.disk(*COLLAR), [shape.disk(*DISKS[3])])
        matrix, inserts = shape.split(body, [collar, shape.disk(*INSERT)])
        shape.tag_cells("matrix", 1, matrix)
        shape.tag_cells("insert", 2, inserts)
        shape.tag_facets("left", 1, lambda x, y, z: x < 1e-6)
        shape.tag_facets("right", 2, lambda x, y, z: x > LENGTH - 1e-6)
        shape.tag_facets("bottom", 3, lambda x, y, z: y < 1e-6)
        shape.tag_facets("top", 4, lambda x, y, z: y > HEIGHT - 1e-6)
        shape.tag_facets("holes", 5, lambda x, y, z: True)
        shape.refine("holes", shape.size / 1.6, reach=0.15)
        shape.write(path)


def make_quads(path: Path, size: float = QUAD_SIZE) -> None:
    """Mesh the plate with quadrilaterals."""
    make(path, size, quads=True)


if __name__ == "__main__":
    run(make, "plate", SIZE)
