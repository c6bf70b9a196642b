"""A spur gear: 16 involute teeth, a bore with a key slot, six lightening holes.

A domain that nobody would call simple, with thin teeth and sharp corners. The pitch circle has
radius 1. One flank carries the load of the neighbour's tooth.

Facets: 1 bore (with the key slot), 2 loaded (one flank), 3 teeth (the rest of the outline),
4 holes. Cells: 1 hub, 2 rim.
"""

from __future__ import annotations

import math
from pathlib import Path

from drawing import Shape, drawing, run

TEETH, PRESSURE_ANGLE = 16, math.radians(20)
MODULE = 2 / TEETH
TIP, ROOT, BASE = 1 + MODULE, 1 - 1.25 * MODULE, math.cos(PRESSURE_ANGLE)
BORE, HUB = 0.28, 0.42
SLOT_WIDTH, SLOT_TOP = 0.14, 0.36
HOLES = [
    (0.62 * math.cos(k * math.pi / 3), 0.62 * math.sin(k * math.pi / 3), 0.12) for k in range(6)
]
SIZE = 0.075


def make(path: Path, size: float = SIZE) -> None:
    """Mesh the gear with triangles."""
    with drawing("gear", size) as shape:
        half = SLOT_WIDTH / 2
        slot = shape.outline([(-half, 0), (half, 0), (half, SLOT_TOP), (-half, SLOT_TOP)])
        holes = [shape.disk(*hole) for hole in HOLES]
        blank = shape.cut(_toothed(shape), [*holes, shape.disk(0, 0, BORE), slot])
        rim, hub = shape.split(blank, [shape.cut(shape.disk(0, 0, HUB), _bore(shape))])
        shape.tag_cells("hub", 1, hub)
        shape.tag_cells("rim", 2, rim)
        shape.tag_facets("bore", 1, lambda x, y, z: math.hypot(x, y) < HUB)
        shape.tag_facets("loaded", 2, _on_loaded_flank)
        shape.tag_facets("teeth", 3, lambda x, y, z: math.hypot(x, y) > ROOT - 1e-6)
        shape.tag_facets("holes", 4, lambda x, y, z: True)
        shape.refine("teeth", shape.size / 2, reach=0.25)
        shape.refine("bore", shape.size / 2, reach=0.2)
        shape.refine("holes", shape.size / 1.5, reach=0.15)
        shape.write(path)


def _bore(shape: Shape) -> list[int]:
    half = SLOT_WIDTH / 2
    slot = shape.outline([(-half, 0), (half, 0), (half, SLOT_TOP), (-half, SLOT_TOP)])
    return [shape.disk(0, 0, BORE), slot]


def _toothed(shape: Shape) -> int:
    """The outline: root arc, radial line, involute, tip arc, involute, radial line; 16 times."""
    occ, step, curves = shape.occ, 2 * math.pi / TEETH, []
    centre = occ.addPoint(0, 0, 0)

    def point(radius: float, angle: float) -> int:
        return int(occ.addPoint(radius * math.cos(angle), radius * math.sin(angle), 0))

    feet = [
        (point(ROOT, k * step - _half(BASE)), point(ROOT, k * step + _half(BASE)))
        for k in range(TEETH)
    ]
    radii = [BASE + (TIP - BASE) * (i / 12) ** 2 for i in range(13)]  # denser where it bends
    for k, (left, right) in enumerate(feet):
        up = [point(r, k * step - _half(r)) for r in radii]
        down = [point(r, k * step + _half(r)) for r in reversed(radii)]
        curves += [occ.addLine(left, up[0]), occ.addSpline(up)]
        curves += [occ.addCircleArc(up[-1], centre, down[0]), occ.addSpline(down)]
        curves += [occ.addLine(down[-1], right)]
        curves += [occ.addCircleArc(right, centre, feet[(k + 1) % TEETH][0])]
    return shape.surface(curves)


def _half(radius: float) -> float:
    """Half of a tooth's angle at a radius: the involute of the base circle."""
    at = math.acos(min(1.0, BASE / radius))
    return math.pi / (2 * TEETH) + _involute(PRESSURE_ANGLE) - _involute(at)


def _involute(angle: float) -> float:
    return math.tan(angle) - angle


def _on_loaded_flank(x: float, y: float, z: float) -> bool:
    """The upper flank of the tooth that points along +x."""
    radius, angle = math.hypot(x, y), math.atan2(y, x)
    return radius > BASE - 1e-6 and abs(angle - _half(radius)) < 1e-4


if __name__ == "__main__":
    run(make, "gear", SIZE)
