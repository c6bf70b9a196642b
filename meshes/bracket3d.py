"""An angle bracket in 3D: a wall plate and a base plate with bolt holes, a fillet and a rib.

For elasticity on tetrahedra, small enough for a laptop. The wall is at x = 0, the floor at z = 0.

Facets: 1 clamped (the back, at the wall), 2 loaded (top of the base plate), 3 holes (the bores),
4 outer. Cells: 1 body.
"""

from __future__ import annotations

import math
from pathlib import Path

from drawing import drawing, run

LENGTH, HEIGHT, WIDTH, THICKNESS, FILLET = 1.0, 0.9, 0.7, 0.14, 0.1
RIB = [(0.14, 0.14), (0.74, 0.14), (0.14, 0.66)]  # x, z
RIB_WIDTH = 0.12
BASE_BOLTS = [(0.78, 0.2), (0.78, 0.5)]  # x, y
WALL_BOLTS = [(0.2, 0.65), (0.5, 0.65)]  # y, z
BOLT_RADIUS = 0.085
SIZE = 0.1


def make(path: Path, size: float = SIZE) -> None:
    """Mesh the angle bracket with tetrahedra."""
    t = THICKNESS
    profile = [(0, 0), (LENGTH, 0), (LENGTH, t), (t, t, FILLET), (t, HEIGHT), (0, HEIGHT)]
    with drawing("bracket3d", size) as shape:
        occ = shape.occ
        angle = _extruded(occ, shape.outline(profile), 0, WIDTH)
        rib = _extruded(occ, shape.outline(RIB), (WIDTH - RIB_WIDTH) / 2, RIB_WIDTH)
        (body,), _ = occ.fuse([(3, angle)], [(3, rib)])
        bores = [occ.addCylinder(x, y, -1, 0, 0, 2, BOLT_RADIUS) for x, y in BASE_BOLTS]
        bores += [occ.addCylinder(-1, y, z, 2, 0, 0, BOLT_RADIUS) for y, z in WALL_BOLTS]
        body = shape.cut(body[1], bores, dim=3)
        shape.tag_cells("body", 1, [body], dim=3)
        shape.tag_facets("clamped", 1, lambda x, y, z: x < 1e-6, dim=2)
        shape.tag_facets("loaded", 2, lambda x, y, z: abs(z - t) < 1e-6, dim=2)
        shape.tag_facets("holes", 3, _on_bore, dim=2)
        shape.tag_facets("outer", 4, lambda x, y, z: True, dim=2)
        shape.refine("holes", shape.size / 2, reach=0.1, dim=2)
        shape.write(path)


def _extruded(occ, surface: int, y: float, width: float) -> int:  # type: ignore[no-untyped-def]
    """The volume over a surface that was drawn in (x, z), between y and y + width."""
    occ.rotate([(2, surface)], 0, 0, 0, 1, 0, 0, math.pi / 2)
    occ.translate([(2, surface)], 0, y, 0)
    return next(tag for dim, tag in occ.extrude([(2, surface)], 0, width, 0) if dim == 3)


def _on_bore(x: float, y: float, z: float) -> bool:
    base = any(abs(math.hypot(x - a, y - b) - BOLT_RADIUS) < 1e-6 for a, b in BASE_BOLTS)
    wall = any(abs(math.hypot(y - a, z - b) - BOLT_RADIUS) < 1e-6 for a, b in WALL_BOLTS)
    return base or wall


if __name__ == "__main__":
    run(make, "bracket3d", SIZE)
