"""A triangular mounting bracket: three bolt holes at the wall, a window, a loaded arm.

For linear elasticity (load to displacement) and for anything on a domain with corners and holes.
The wall is at x = 0, the arm's top at y = 1.

Facets: 1 clamped (rims of the wall bolts), 2 loaded (top of the arm), 3 holes (the free rims),
4 outer (the rest of the outline). Cells: 1 body.
"""

from __future__ import annotations

import math
from pathlib import Path

from drawing import drawing, run

OUTLINE = [(0, 0), (0.22, 0), (1, 0.78), (1, 1), (0, 1)]
WINDOW = [(0.24, 0.24), (0.76, 0.76), (0.24, 0.76)]
OUTLINE_RADIUS, WINDOW_RADIUS = 0.06, 0.05
BOLTS = [(0.12, 0.16, 0.045), (0.12, 0.52, 0.045), (0.12, 0.88, 0.045)]
HOLES = [(0.5, 0.88, 0.05), (0.86, 0.86, 0.07)]
SIZE = 0.026


def make(path: Path, size: float = SIZE) -> None:
    """Mesh the bracket with triangles."""
    with drawing("bracket", size) as shape:
        round_holes = [shape.disk(*hole) for hole in BOLTS + HOLES]
        window = shape.outline(WINDOW, WINDOW_RADIUS)
        body = shape.cut(shape.outline(OUTLINE, OUTLINE_RADIUS), [*round_holes, window])
        shape.tag_cells("body", 1, [body])
        shape.tag_facets("clamped", 1, lambda x, y, z: _on(BOLTS, x, y))
        shape.tag_facets("loaded", 2, lambda x, y, z: y > 1 - 1e-6)
        shape.tag_facets("holes", 3, lambda x, y, z: _on(HOLES, x, y) or _in_window(x, y))
        shape.tag_facets("outer", 4, lambda x, y, z: True)
        shape.refine("clamped", shape.size / 2, reach=0.12)
        shape.refine("holes", shape.size / 1.5, reach=0.1)
        shape.write(path)


def _on(circles: list[tuple[float, float, float]], x: float, y: float) -> bool:
    return any(abs(math.hypot(x - a, y - b) - r) < 1e-6 for a, b, r in circles)


def _in_window(x: float, y: float) -> bool:
    return x > 0.24 - 1e-6 and y < 0.76 + 1e-6 and y > x - 1e-6


if __name__ == "__main__":
    run(make, "bracket", SIZE)
