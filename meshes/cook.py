"""Cook's membrane: a tapered panel, clamped at its left edge, pulled upwards at its right one.

The classic test of bending and shear (R. D. Cook, J. Struct. Div. ASCE 100, 1974). Lengths are in
mm: 48 wide, 44 high at the left and 16 at the right. A lattice of quadrilaterals.

Facets: 1 clamped (left), 2 loaded (right), 3 free (the other two). Cells: 1 body.
"""

from __future__ import annotations

from pathlib import Path

import gmsh
from drawing import drawing, run

WIDTH, LEFT, RIGHT = 48.0, 44.0, 16.0
SIZE = 3.0


def make(path: Path, size: float = SIZE) -> None:
    """Mesh the membrane with a lattice of quadrilaterals, as many upwards as to the right."""
    with drawing("cook", size) as shape:
        body = shape.outline([(0, 0), (WIDTH, LEFT), (WIDTH, LEFT + RIGHT), (0, LEFT)])
        shape.tag_cells("body", 1, [body])
        shape.tag_facets("clamped", 1, lambda x, y, z: x < 1e-6)
        shape.tag_facets("loaded", 2, lambda x, y, z: x > WIDTH - 1e-6)
        shape.tag_facets("free", 3, lambda x, y, z: True)
        across = max(round(WIDTH / shape.size), 1)
        for _, curve in gmsh.model.getBoundary([(2, body)], oriented=False):
            gmsh.model.mesh.setTransfiniteCurve(curve, across + 1)
        gmsh.model.mesh.setTransfiniteSurface(body)
        gmsh.model.mesh.setRecombine(2, body)
        shape.write(path)


if __name__ == "__main__":
    run(make, "cook", SIZE)
