"""Draw all meshes with their tags into ``gallery.png``. Needs meshio and matplotlib."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import meshio
import numpy as np
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from PIL import Image

NAMES = ["bracket", "bracket3d", "gear", "plate", "plate_quads"]
PLACES = [(0, slice(0, 2)), (0, slice(2, 4)), (0, slice(4, 6)), (1, slice(0, 3)), (1, slice(3, 6))]
LINES = ["#1f6fb4", "#e6550d", "#31a354", "#8a8f98", "#8e5bb5"]
FILLS = ["#dfe6ee", "#f4d8a6"]


def draw(folder: Path) -> None:
    """Write ``gallery.png`` beside the meshes."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    grid = figure.add_gridspec(2, 6, height_ratios=(1, 0.85))
    for name, place in zip(NAMES, PLACES, strict=True):
        mesh = meshio.read(folder / f"{name}.msh")
        space = "tetra" in mesh.cells_dict
        axes = figure.add_subplot(grid[place], projection="3d" if space else None)
        (_in_space if space else _in_plane)(axes, mesh)
        cells = sum(len(block.data) for block in mesh.cells if block.dim == (3 if space else 2))
        axes.set_title(f"{name}: {cells:,} cells, {len(mesh.points):,} vertices", fontsize=10)
        for label, (tag, dim) in mesh.field_data.items():
            if dim == (2 if space else 1):
                axes.plot([], [], color=LINES[tag - 1], lw=4, label=f"{tag} {label}")
        axes.legend(fontsize=7, frameon=False, ncols=5, loc="upper center", bbox_to_anchor=(0.5, 0))
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
    for cells, tags in _tagged(mesh, "triangle", "quad"):
        fills = [FILLS[tag - 1] for tag in tags]
        axes.add_collection(PolyCollection(points[cells], fc=fills, ec="0.55", lw=0.25))
    for lines, tags in _tagged(mesh, "line"):
        colours = [LINES[tag - 1] for tag in tags]
        axes.add_collection(LineCollection(points[lines], colors=colours, lw=2))
    axes.set_aspect("equal")
    axes.autoscale_view()


def _in_space(axes: Any, mesh: Any) -> None:
    for facets, tags in _tagged(mesh, "triangle"):
        corners = mesh.points[facets]
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        light = 0.7 + 0.3 * np.abs(normal @ [0.3, -0.5, 0.8])
        colours = np.array([to_rgb(LINES[tag - 1]) for tag in tags]) * light[:, None]
        axes.add_collection3d(Poly3DCollection(corners, fc=colours, ec="0.3", lw=0.2))
    low, high = mesh.points.min(axis=0), mesh.points.max(axis=0)
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
    axes.set_box_aspect(high - low, zoom=1.05)
    axes.view_init(elev=28, azim=-50)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
