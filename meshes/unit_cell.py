"""What the scripts of unit cells share: inclusions in a square or a cube, and matched sides.

A cell is [-1/2, 1/2] in every direction. An inclusion that is cut by a side goes on at the side
opposite; its images are drawn here. Sides are matched node by node (``$Periodic``), so that
readers make one of two opposite sides, and a periodic function space needs no constraints.

Facets: 1 left, 2 right, 3 bottom, 4 top, 5 back, 6 front. Cells: 1 matrix, 2 inclusion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import gmsh
from drawing import Shape

__all__ = ["ball", "images", "unit_cell"]

SIDES = [(0, "left", "right"), (1, "bottom", "top"), (2, "back", "front")]
NEAR = 1e-6
ROUND = 8  # elements around a circle, at least: fewer turn over at the tip of an ellipse


def images(centre: Sequence[float], reach: Sequence[float] | float) -> list[tuple[float, ...]]:
    """Places of all copies of an inclusion that touch the cell, itself among them.

    `reach` is half its extent in each direction. A side that it only touches would leave a
    needle, so such a place is refused.
    """
    reaches = [reach] * len(centre) if isinstance(reach, int | float) else list(reach)
    places: list[list[float]] = []
    for x, r in zip(centre, reaches, strict=True):
        gaps = [abs(abs(x + shift) - r - 0.5) for shift in (-1, 0, 1)]
        if min(gaps) < NEAR:
            raise ValueError(f"an inclusion at {tuple(centre)} touches a side of the cell")
        places.append([x + shift for shift in (-1, 0, 1) if abs(x + shift) - r < 0.5])
    return list(product(*places))


def ball(shape: Shape, centre: Sequence[float], radius: float) -> int:
    """A ball whose poles and seam lie askew, so that no side of the cell runs along them."""
    tag = shape.occ.addSphere(*centre, radius)
    shape.occ.rotate([(3, tag)], *centre, 1, 2, 0.5, 0.7)
    return int(tag)


def unit_cell(shape: Shape, inclusions: Sequence[int], dim: int = 2) -> None:
    """The cell with the parts of `inclusions` that lie in it: cut, tagged, sides matched."""
    occ = shape.occ
    if dim == 2:
        cell = occ.addRectangle(-0.5, -0.5, 0, 1, 1)
    else:
        cell = occ.addBox(-0.5, -0.5, -0.5, 1, 1, 1)
    gmsh.option.setNumber("Mesh.MeshSizeFromCurvature", ROUND)
    pieces, origin = occ.fragment([(dim, cell)], [(dim, tag) for tag in inclusions])
    inside = {tag for _, tag in origin[0]}
    filled = {tag for parts in origin[1:] for _, tag in parts}
    occ.remove([piece for piece in pieces if piece[1] not in inside], recursive=True)
    shape.tag_cells("matrix", 1, sorted(inside - filled), dim)
    shape.tag_cells("inclusion", 2, sorted(inside & filled), dim)
    for axis, low, high in SIDES[:dim]:
        shape.tag_facets(low, 2 * axis + 1, _side(axis, -0.5), dim - 1)
        shape.tag_facets(high, 2 * axis + 2, _side(axis, 0.5), dim - 1)
        _match(axis, dim - 1)


def _side(axis: int, place: float) -> Callable[..., bool]:
    return lambda *at: abs(at[axis] - place) < NEAR


def _match(axis: int, dim: int) -> None:
    """Let the upper side be meshed as the lower one, piece by piece."""
    shift = [1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    shift[4 * axis + 3] = 1.0
    lower, upper = (
        [(piece, _measured(dim, piece)) for piece in _pieces(dim, 2 * axis + tag)] for tag in (1, 2)
    )
    for piece, at in upper:
        wanted = [x - (k == axis) for k, x in enumerate(at)]
        for partner, place in lower:
            if max(abs(x - y) for x, y in zip(place, wanted, strict=True)) < NEAR:
                gmsh.model.mesh.setPeriodic(dim, [piece], [partner], shift)
                break
        else:
            raise ValueError(f"nothing lies opposite the piece of the boundary at {at[:3]}")


def _pieces(dim: int, group: int) -> list[int]:
    return list(gmsh.model.getEntitiesForPhysicalGroup(dim, group))


def _measured(dim: int, piece: int) -> list[float]:
    """Centre and size: a ring around a disk has the same centre as the disk."""
    occ = gmsh.model.occ
    return [*occ.getCenterOfMass(dim, piece), occ.getMass(dim, piece)]
