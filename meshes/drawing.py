"""What the mesh scripts share: outlines with rounded corners, tags, and a reproducible file.

Every script here has one function ``make(path, size)``, and looks like this::

    with drawing("plate", size) as shape:
        body = shape.cut(shape.outline(corners, radius), [shape.disk(x, y, r)])
        shape.tag_cells("body", 1, [body])
        shape.tag_facets("holes", 2, lambda x, y, z: ...)
        shape.write(path)

Lengths have no unit: a part is about 1 wide. ``size`` is the edge length of the elements.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import gmsh

__all__ = ["Shape", "drawing", "run"]

HERE = Path(__file__).parent
DIGITS = 9  # of a coordinate in the file: far below any element's size, and small files


@contextmanager
def drawing(name: str, size: float, quads: bool = False) -> Iterator[Shape]:
    """Open gmsh with settings under which the same script makes the same file."""
    if not size > 0:
        raise ValueError(f"size is the edge length of the elements: expected > 0, got {size}")
    if quads:
        size *= 2  # every edge is halved in the end
    gmsh.initialize(interruptible=False)
    try:
        settings = {
            "General.Verbosity": 2,
            "General.NumThreads": 1,  # several threads insert points in any order
            "Mesh.RandomSeed": 1,
            "Mesh.MeshSizeMax": size,
            "Mesh.MeshSizeExtendFromBoundary": 1,
            "Mesh.Algorithm": 6,
            "Mesh.Smoothing": 10,
            "Mesh.MshFileVersion": 2.2,
        }
        for option, value in settings.items():
            gmsh.option.setNumber(option, value)
        gmsh.model.add(name)
        yield Shape(size, quads)
    finally:
        gmsh.finalize()


class Shape:
    """A part that is being drawn: thin names over gmsh's OpenCASCADE kernel."""

    def __init__(self, size: float, quads: bool) -> None:
        self.size, self.quads, self.occ = size, quads, gmsh.model.occ
        self._fields: list[int] = []

    def outline(self, corners: Sequence[tuple[float, ...]], radius: float = 0.0) -> int:
        """Surface inside a polygon ``(x, y)`` or ``(x, y, own radius)`` with rounded corners."""
        points = [corner[:2] for corner in corners]
        radii = [corner[2] if len(corner) > 2 else radius for corner in corners]
        arcs = [
            self._corner(points[i - 1], points[i], points[(i + 1) % len(points)], radii[i])
            for i in range(len(points))
        ]
        curves = []
        for (_, arc, end), (start, _, _) in zip(arcs, arcs[1:] + arcs[:1], strict=True):
            curves += [*arc, self.occ.addLine(end, start)]
        return self.surface(curves)

    def _corner(
        self,
        before: tuple[float, ...],
        at: tuple[float, ...],
        after: tuple[float, ...],
        radius: float,
    ) -> tuple[int, list[int], int]:
        """First point, arc and last point of one corner of an outline."""
        if radius == 0:
            point = self.occ.addPoint(*at, 0)
            return point, [], point
        to, fro = _direction(at, before), _direction(at, after)
        half = math.acos(to[0] * fro[0] + to[1] * fro[1]) / 2
        reach, depth = radius / math.tan(half), radius / math.sin(half)
        middle = _direction((0, 0), (to[0] + fro[0], to[1] + fro[1]))
        first = self.occ.addPoint(at[0] + reach * to[0], at[1] + reach * to[1], 0)
        last = self.occ.addPoint(at[0] + reach * fro[0], at[1] + reach * fro[1], 0)
        centre = self.occ.addPoint(at[0] + depth * middle[0], at[1] + depth * middle[1], 0)
        return first, [self.occ.addCircleArc(first, centre, last)], last

    def surface(self, curves: Sequence[int]) -> int:
        """Surface inside a closed chain of curves."""
        return self.occ.addPlaneSurface([self.occ.addCurveLoop(list(curves))])

    def disk(self, x: float, y: float, radius: float, other: float | None = None) -> int:
        """Disk, or an ellipse of half axes ``radius >= other``."""
        return self.occ.addDisk(x, y, 0, radius, radius if other is None else other)

    def cut(self, body: int, holes: Sequence[int], dim: int = 2) -> int:
        """`body` without `holes`."""
        pieces, _ = self.occ.cut([(dim, body)], [(dim, hole) for hole in holes])
        if len(pieces) != 1:
            raise ValueError(f"the holes cut the part into {len(pieces)} pieces")
        return int(pieces[0][1])

    def split(self, body: int, parts: Sequence[int]) -> tuple[list[int], list[int]]:
        """Cut `parts` out of `body` and keep them, sharing vertices: ``(rest, parts)``."""
        _, origin = self.occ.fragment([(2, body)], [(2, part) for part in parts])
        inside = {tag for piece in origin[1:] for _, tag in piece}
        return [tag for _, tag in origin[0] if tag not in inside], sorted(inside)

    def tag_cells(self, name: str, tag: int, parts: Sequence[int], dim: int = 2) -> None:
        """Name the cells of some parts."""
        self.occ.synchronize()
        gmsh.model.addPhysicalGroup(dim, list(parts), tag, name)

    def tag_facets(self, name: str, tag: int, where: Callable[..., bool], dim: int = 1) -> None:
        """Name the boundary pieces whose every sample point fulfils ``where(x, y, z)``.

        A piece belongs to the first tag that takes it: a facet listed twice in a file would be
        two facets to its readers.
        """
        self.occ.synchronize()
        cells = gmsh.model.getEntities(dim + 1)
        taken = {
            piece
            for _, group in gmsh.model.getPhysicalGroups(dim)
            for piece in gmsh.model.getEntitiesForPhysicalGroup(dim, group)
        }
        mine = [
            piece
            for _, piece in gmsh.model.getBoundary(cells, combined=True, oriented=False)
            if piece not in taken and all(where(*point) for point in _samples(dim, piece))
        ]
        if not mine:
            raise ValueError(f"no piece of the boundary is {name!r}")
        gmsh.model.addPhysicalGroup(dim, mine, tag, name)

    def refine(self, name: str, size: float, reach: float, dim: int = 1) -> None:
        """Elements of edge length `size` at a tagged boundary, growing over the length `reach`."""
        tags = {
            gmsh.model.getPhysicalName(*group): group for group in gmsh.model.getPhysicalGroups()
        }
        pieces = gmsh.model.getEntitiesForPhysicalGroup(*tags[name])
        field = gmsh.model.mesh.field
        distance, threshold = field.add("Distance"), field.add("Threshold")
        field.setNumbers(distance, "CurvesList" if dim == 1 else "SurfacesList", list(pieces))
        field.setNumber(distance, "Sampling", 40)
        for option, value in {
            "InField": distance,
            "SizeMin": size,
            "SizeMax": self.size,
            "DistMin": 0.0,
            "DistMax": reach,
        }.items():
            field.setNumber(threshold, option, value)
        self._fields.append(threshold)

    def write(self, path: Path, order: int = 1) -> None:
        """Mesh the part and write gmsh 2.2 text, under a temporary name first.

        Elements of order 2 follow curved boundaries. One that turned over is repaired by moving
        nodes inside, or refused.
        """
        dim, field = gmsh.model.getDimension(), gmsh.model.mesh.field
        smallest = field.add("Min")
        field.setNumbers(smallest, "FieldsList", self._fields)
        field.setAsBackgroundMesh(smallest)
        if self.quads:
            gmsh.option.setNumber("Mesh.RecombineAll", 1)
            gmsh.option.setNumber("Mesh.RecombinationAlgorithm", 1)
            gmsh.option.setNumber(
                "Mesh.SubdivisionAlgorithm", 1
            )  # 4 from a quad, 3 from a triangle
        gmsh.model.mesh.generate(dim)
        if dim == 3:
            gmsh.model.mesh.optimize("Netgen")
        gmsh.model.mesh.setOrder(order)
        if dim == 3 and order > 1:
            gmsh.option.setNumber("Mesh.HighOrderFixBoundaryNodes", 1)
            gmsh.model.mesh.optimize("HighOrderElastic")
        _check_jacobians(dim)
        path = Path(path)
        draft = path.with_name(f".{path.stem}.{os.getpid()}.msh")
        try:
            gmsh.write(str(draft))
            draft.write_text(_rounded(draft.read_text()))
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)


def _check_jacobians(dim: int) -> None:
    elements = [tag for tags in gmsh.model.mesh.getElements(dim)[1] for tag in tags]
    bad = sum(value <= 0 for value in gmsh.model.mesh.getElementQualities(elements, "minSJ"))
    if bad:
        raise ValueError(f"{bad} of {len(elements)} elements turn over: choose another size")


def _direction(start: Sequence[float], end: Sequence[float]) -> tuple[float, float]:
    x, y = end[0] - start[0], end[1] - start[1]
    length = math.hypot(x, y)
    return x / length, y / length


def _samples(dim: int, piece: int) -> list[tuple[float, ...]]:
    """Points of a curve, or of a surface's edges."""
    curves = [piece]
    if dim == 2:
        curves = [tag for _, tag in gmsh.model.getBoundary([(2, piece)], oriented=False)]
    points = []
    for curve in curves:
        (start,), (end,) = gmsh.model.getParametrizationBounds(1, curve)
        places = [start + (end - start) * i / 6 for i in range(7)]
        values = gmsh.model.getValue(1, curve, places)
        points += [tuple(values[i : i + 3]) for i in range(0, len(values), 3)]
    return points


def _rounded(text: str) -> str:
    """The file with coordinates of `DIGITS` digits."""
    head, rest = text.split("$Nodes\n")
    nodes, tail = rest.split("$EndNodes\n")
    count, *lines = nodes.splitlines()
    short = [count]
    for line in lines:
        number, *place = line.split()
        # + 0.0 turns the -0.0 that rounding may leave into 0.0
        short.append(" ".join([number, *(f"{round(float(x), DIGITS) + 0.0:.10g}" for x in place)]))
    return f"{head}$Nodes\n" + "\n".join(short) + f"\n$EndNodes\n{tail}"


def run(make: Callable[[Path, float], None], name: str, size: float) -> None:
    """The command line of a mesh script: ``python meshes/plate.py --size 0.02 --out fine.msh``."""
    parser = argparse.ArgumentParser(description=make.__doc__)
    parser.add_argument("--size", type=float, default=size, help=f"element size ({size})")
    parser.add_argument("--out", type=Path, default=HERE / f"{name}.msh", help="file to write")
    given = parser.parse_args()
    make(given.out, given.size)
    print(f"{given.out}: {given.out.stat().st_size / 1000:.0f} kB")
