"""Pictures of surfaces in space: by pyvista where it works, otherwise by matplotlib."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any

import numpy as np
from matplotlib.colors import LightSource, Normalize
from mpl_toolkits.mplot3d.art3d import Line3DCollection, Poly3DCollection
from numpy.typing import NDArray

__all__ = ["draw_surface", "pyvista_works"]

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

_TOWARDS_VIEWER = np.array([1.0, -1.2, 0.9]) / np.linalg.norm([1.0, -1.2, 0.9])

# A broken OpenGL ends the process rather than raise, so another process tries it.
_TRIAL = """
import pyvista
plotter = pyvista.Plotter(off_screen=True, window_size=(40, 40))
plotter.add_mesh(pyvista.Cube())
assert plotter.screenshot(return_img=True).std() > 0
"""


@functools.cache
def pyvista_works() -> bool:
    """Whether pyvista is installed and draws without a screen; tried once, in a few seconds."""
    try:
        trial = subprocess.run([sys.executable, "-c", _TRIAL], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return trial.returncode == 0


def draw_surface(
    figure: Any,
    place: Any,
    points: Array,
    triangles: Indices,
    edges: Indices,
    values: Array,
    norm: Normalize,
    colours: Any,
    frame: Array,
) -> Any:
    """Draw values on a surface into one place of a figure.

    Parameters
    ----------
    figure : matplotlib Figure
    place : matplotlib SubplotSpec
    points : array, shape (points, 3)
    triangles : integer array, shape (triangles, 3)
    edges : integer array, shape (segments, 2)
        The mesh, as thin lines.
    values : array, shape (points,)
    norm : matplotlib Normalize
    colours : matplotlib Colormap
    frame : array, shape (any, 3)
        Points that have to be in the picture, so that several pictures have one scale.

    Returns
    -------
    matplotlib Axes
    """
    if pyvista_works():
        axes = figure.add_subplot(place)
        axes.imshow(_photograph(points, triangles, edges, values, norm, colours, frame))
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        return axes
    axes = figure.add_subplot(place, projection="3d")
    corners = points[triangles]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-300)
    # the triangles are oriented anyhow, so both sides are lit alike
    light = 0.75 + 0.25 * np.abs(normal @ LightSource(azdeg=290, altdeg=50).direction)
    faces = colours(norm(values[triangles].mean(axis=1)))
    faces[:, :3] *= light[:, None]
    axes.add_collection3d(Poly3DCollection(corners, facecolors=faces, edgecolors=faces, lw=0.2))
    axes.add_collection3d(Line3DCollection(points[edges], colors="black", lw=0.3, alpha=0.08))
    low, high = frame.min(axis=0), frame.max(axis=0)
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
    axes.set_box_aspect(np.maximum(high - low, 1e-3 * (high - low).max()))
    axes.view_init(elev=28, azim=-50)
    axes.set_axis_off()
    return axes


def _photograph(
    points: Array,
    triangles: Indices,
    edges: Indices,
    values: Array,
    norm: Normalize,
    colours: Any,
    frame: Array,
) -> NDArray[np.uint8]:
    """An image of the surface on white, seen from far away, (height, width, 3)."""
    import pyvista

    surface = pyvista.PolyData.from_regular_faces(points, triangles)
    surface["values"] = values
    across = np.cross(-_TOWARDS_VIEWER, (0, 0, 1))
    across /= np.linalg.norm(across)
    up = np.cross(across, -_TOWARDS_VIEWER)
    low = np.array([(frame @ axis).min() for axis in (across, up)])
    high = np.array([(frame @ axis).max() for axis in (across, up)])
    width, height = 1.04 * (high - low)
    scale = 1000 / max(width, height)
    size = (max(int(scale * width), 50), max(int(scale * height), 50))
    plotter = pyvista.Plotter(off_screen=True, window_size=size)
    try:
        plotter.set_background("white")
        actor = plotter.add_mesh(
            surface,
            scalars="values",
            cmap=colours,
            clim=(norm.vmin, norm.vmax),
            show_scalar_bar=False,
            ambient=0.45,
            diffuse=0.6,
            specular=0.0,
        )
        # push the faces back a little, or half of each line hides behind them
        actor.mapper.SetResolveCoincidentTopologyToPolygonOffset()
        actor.mapper.SetRelativeCoincidentTopologyPolygonOffsetParameters(2, 2)
        lines = pyvista.PolyData(points, lines=np.insert(edges, 0, 2, axis=1).ravel())
        plotter.add_mesh(lines, color="black", opacity=0.15, line_width=1)
        sharp = surface.clean().extract_feature_edges(feature_angle=35, non_manifold_edges=False)
        if sharp.n_points:
            plotter.add_mesh(sharp, color="#303030", line_width=2, show_scalar_bar=False)
        middle = (low + high) @ np.stack([across, up]) / 2
        plotter.enable_parallel_projection()
        plotter.camera.focal_point = middle
        plotter.camera.position = middle + 10 * np.ptp(frame, axis=0).max() * _TOWARDS_VIEWER
        plotter.camera.up = up
        plotter.camera.parallel_scale = height / 2
        plotter.reset_camera_clipping_range()
        plotter.enable_anti_aliasing("ssaa")
        return np.asarray(plotter.screenshot(return_img=True))
    finally:
        plotter.close()
