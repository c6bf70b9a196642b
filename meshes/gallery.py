"""Draw all meshes with their tags into ``gallery.png``. Needs meshio and matplotlib."""

from __future__ import annotations

import io
import sys
from itertools import product
from pathlib import Path
from typing import Any

import meshio
import numpy as np
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Line3DCollection, Poly3DCollection
from PIL import Image

ROWS = [["bracket", "bracket3d", "gear"], ["plate", "plate_quads"], ["rve1", "rve2", "rve3"]]
ROWS += [["fibres3d", "particles3d", "cook"], ["lprofile", "holes"]]
COLUMNS = 12  # of the grid: as many as any number of meshes in a row divides
HEIGHTS = (1, 0.85, 1, 1, 0.85)
LINES = ["#1f6fb4", "#e6550d", "#31a354", "#8a8f98", "#8e5bb5", "#c9a227"]
FILLS = ["#dfe6ee", "#f4d8a6"]


def draw(folder: Path) -> None:
    """Write ``gallery.png`` beside the meshes."""
    figure = Figure(figsize=(12, 18.5), layout="constrained")
    grid = figure.add_gridspec(len(ROWS), COLUMNS, height_ratios=HEIGHTS)
    places = [
        (name, (row, slice(at * COLUMNS // len(names), (at + 1) * COLUMNS // len(names))))
        for row, names in enumerate(ROWS)
        for at, name in enumerate(names)
    ]
    for name, place in places:
        mesh = meshio.read(folder / f"{name}.msh")
        space = any(block.dim == 3 for block in mesh.cells)
        axes = figure.add_subplot(grid[place], projection="3d" if space else None)
        (_in_space if space else _in_plane)(axes, mesh)
        cells = sum(len(block.data) for block in mesh.cells if block.dim == (3 if space else 2))
        narrow = place[1].stop - place[1].start < COLUMNS // 2
        title = f"{name}\n" if narrow else f"{name}: "
        axes.set_title(f"{title}{cells:,} cells, {len(mesh.points):,} nodes", fontsize=10)
        inclusions = space and len(mesh.field_data) > 6  # what is drawn is not the boundary
        for label, (tag, dim) in mesh.field_data.items():
            if dim == (2 if space else 1) and not inclusions:
                axes.plot([], [], color=LINES[tag - 1], lw=4, label=f"{tag} {label}")
        if not inclusions:
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, 0)}
            axes.legend(fontsize=7, frameon=False, ncols=2 if narrow else 5, **below)
        axes.set_axis_off()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=100)
    # 64 colours are enough, and a third of the size
    palette = Image.Quantize.FASTOCTREE
    Image.open(picture).convert("RGB").quantize(64, method=palette).save(
        folder / "gallery.png", optimize=True
    )


def _tagged(mesh: Any, *kinds: str) -> Any:
    for block, tags in zip(mesh.cells, mesh.cell_data["gmsh:physical"], strict=True):
        if block.type in kinds:
            yield block.data, tags


def _in_plane(axes: Any, mesh: Any) -> None:
    points = mesh.points[:, :2]
    for cells, tags in _tagged(mesh, "triangle", "quad", "quad9"):
        fills = [FILLS[tag - 1] for tag in tags]
        corners = 4 if cells.shape[1] == 9 else cells.shape[1]
        outline = np.concatenate(
            [
                _edge(points[cells], k, (k + 1) % corners, corners + k)[:, :-1]
                for k in range(corners)
            ],
            axis=1,
        )
        axes.add_collection(PolyCollection(outline, fc=fills, ec="0.55", lw=0.25))
    for lines, tags in _tagged(mesh, "line", "line3"):
        colours = [LINES[tag - 1] for tag in tags]
        axes.add_collection(LineCollection(_edge(points[lines], 0, 1, 2), colors=colours, lw=2))
    axes.set_aspect("equal")
    axes.autoscale_view()


def _edge(nodes: Any, start: int, end: int, middle: int) -> Any:
    """Points along an edge of all cells, (cells, points, 2); straight without a node in between."""
    t = np.linspace(0, 1, 6 if middle < nodes.shape[1] else 2)[:, None]
    first, last = nodes[:, None, start], nodes[:, None, end]
    if middle >= nodes.shape[1]:
        return (1 - t) * first + t * last
    half = nodes[:, None, middle]
    return (1 - t) * (1 - 2 * t) * first + 4 * t * (1 - t) * half + t * (2 * t - 1) * last


def _surfaces(mesh: Any) -> Any:
    """What is drawn of a body: its tagged boundary, or the inclusions where there are some."""
    for cells, tags in _tagged(mesh, "tetra10"):
        filled = cells[tags == 2]
        faces = [(0, 1, 2, 4, 5, 6), (0, 1, 3, 4, 8, 7), (0, 2, 3, 6, 9, 7), (1, 2, 3, 5, 9, 8)]
        facets = np.concatenate([filled[:, face] for face in faces])
        _, first, count = np.unique(
            np.sort(facets, axis=1), axis=0, return_index=True, return_counts=True
        )
        facets = facets[first[count == 1]]
        quarters = [(0, 3, 5), (3, 1, 4), (5, 4, 2), (3, 4, 5)]
        yield np.concatenate([facets[:, part] for part in quarters]), None
        return
    yield from _tagged(mesh, "triangle")


def _in_space(axes: Any, mesh: Any) -> None:
    for facets, tags in _surfaces(mesh):
        corners = mesh.points[facets]
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        light = 0.7 + 0.3 * np.abs(normal @ [0.3, -0.5, 0.8])
        own = [FILLS[1]] * len(facets) if tags is None else [LINES[tag - 1] for tag in tags]
        colours = np.array([to_rgb(colour) for colour in own]) * light[:, None]
        edges = "0.5" if tags is None else "0.3"
        axes.add_collection3d(Poly3DCollection(corners, fc=colours, ec=edges, lw=0.2))
        if tags is None:
            ends = np.array(list(product((-0.5, 0.5), repeat=3)))
            frame = [(a, b) for a in ends for b in ends if np.abs(a - b).sum() == 1]
            axes.add_collection3d(Line3DCollection(frame, colors="0.3", lw=0.8))
    low, high = mesh.points.min(axis=0), mesh.points.max(axis=0)
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
    axes.set_box_aspect(high - low, zoom=1.05)
    axes.view_init(elev=28, azim=-50)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
