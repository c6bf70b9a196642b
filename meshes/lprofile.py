"""An L-shaped profile: a post, clamped at its top, and an arm that is loaded at its end.

The rounded inner corner, where the strain is largest, is resolved; a sharp one would make it
infinite. Quadrilaterals of degree 2, so that it is round.

Facets: 1 clamped (top of the post), 2 loaded (end of the arm), 3 fillet, 4 free. Cells: 1 body.
"""

from __future__ import annotations

import math
from pathlib import Path

from drawing import drawing, run

HEIGHT, LENGTH, WIDTH, FILLET = 1.0, 1.0, 0.4, 0.1
SIZE = 0.06


def make(path: Path, size: float = SIZE) -> None:
    """Mesh the profile with quadrilaterals."""
    w = WIDTH
    corners = [(0, 0), (LENGTH, 0), (LENGTH, w), (w, w, FILLET), (w, HEIGHT), (0, HEIGHT)]
    with drawing("lprofile", size, quads=True) as shape:
        shape.tag_cells("body", 1, [shape.outline(corners)])
        shape.tag_facets("clamped", 1, lambda x, y, z: y > HEIGHT - 1e-6)
        shape.tag_facets("loaded", 2, lambda x, y, z: x > LENGTH - 1e-6)
        shape.tag_facets("fillet", 3, _on_fillet)
        shape.tag_facets("free", 4, lambda x, y, z: True)
        shape.refine("fillet", shape.size / 2, reach=0.25)
        shape.write(path, order=2)


def _on_fillet(x: float, y: float, z: float) -> bool:
    centre = WIDTH + FILLET
    return abs(math.hypot(x - centre, y - centre) - FILLET) < 1e-6


if __name__ == "__main__":
    run(make, "lprofile", SIZE)
