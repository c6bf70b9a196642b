"""Pictures of what a network predicts: beside the reference, and how errors are spread.

Figures are drawn with matplotlib's Agg canvas and never touch pyplot or the backend in use.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from spon.fem.triangulation import Triangulation, triangulate
from spon.rendering import draw_surface

__all__ = ["compare", "histogram"]

Array = NDArray[np.float64]

_STYLE = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "savefig.dpi": 130,
}
_INPUT, _FIELD, _SIGNED, _SIZE = "cividis", "viridis", "RdBu_r", "magma_r"
_INK = "#303030"


@dataclass(frozen=True)
class _Panel:
    """One of the pictures: a scalar on a possibly deformed triangulation."""

    title: str
    shape: Triangulation
    points: Array
    values: Array
    norm: Normalize
    colours: str
    label: str = ""
    arrows: Array | None = None


def compare(
    reference: Any,
    prediction: Any,
    path: str | os.PathLike[str],
    input: Any = None,
    title: str | None = None,
    deform: bool | float | None = None,
) -> Path:
    """Draw input, reference, prediction and their pointwise difference side by side.

    Reference and prediction share one colour scale. A vector field is drawn by its magnitude, a
    displacement on the deformed mesh; the difference is then the magnitude of the difference.
    In 3D the surface is drawn.

    Parameters
    ----------
    reference, prediction : firedrake.Function
        Scalars or vectors with the same number of components on one mesh; the elements may
        differ.
    path : path
        Picture to write; the ending chooses the format (``.png``, ``.pdf``, ``.svg``).
    input : firedrake.Function, optional
        What the network was given.
    title : str, optional
        Title of the whole picture.
    deform : bool or float, optional
        Factor by which vectors displace the mesh; True chooses one and False is 0. By default
        continuous vectors with a component for each direction do.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    TypeError
        If something else than functions is given.
    ValueError
        If the two functions cannot be compared, or hold NaN or infinity.
    """
    path = Path(path)
    shape = triangulate(reference, prediction)
    true, guess = shape.values
    if true.shape != guess.shape:
        raise ValueError(
            f"reference has {_components(true)} and prediction {_components(guess)}: "
            "expected functions with the same number of components"
        )
    for name, values in (("reference", true), ("prediction", guess)):
        _check_finite(name, values)
    factor = _factor(deform, shape, true)
    with matplotlib.rc_context(_STYLE):
        panels = [] if input is None else [_input_panel(input)]
        panels += _panels(shape, true, guess, factor)
        figure = _draw(panels, title)
        return _save(figure, path)


def histogram(
    errors: Any,
    path: str | os.PathLike[str],
    title: str | None = None,
    label: str = "relative error",
) -> Path:
    """Draw how the errors of samples are spread, with their median and 95th percentile.

    Parameters
    ----------
    errors : array or tensor, shape (samples,), or dict of them
        Errors, at least 0; a dict draws one histogram for each name.
    path : path
        Picture to write.
    title : str, optional
        Title of the picture.
    label : str, optional
        What the errors are.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    ValueError
        If there are no errors, or some are negative or not finite.
    """
    several = errors if isinstance(errors, Mapping) else {"": errors}
    groups = {str(name): _errors(values) for name, values in several.items()}
    if not groups:
        raise ValueError("histogram needs at least one set of errors, got an empty dict")
    everything = np.concatenate(list(groups.values()))
    low, high = float(everything.min()), float(everything.max())
    logarithmic = low > 0 and high > 30 * low
    if high - low <= 1e-12 * high:
        low, high = 0.9 * low, 1.1 * high if high else 1.0
    spaced = np.geomspace if logarithmic else np.linspace
    count = int(np.clip(np.ceil(2 * np.cbrt(len(everything) / len(groups))) + 4, 8, 60))
    bins = spaced(low, high, count)
    colours = colormaps["viridis"](np.linspace(0.25, 0.85, len(groups)))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        axes = figure.add_subplot()
        for (name, values), colour in zip(groups.items(), colours, strict=True):
            middle, most = np.median(values), np.percentile(values, 95)
            text = f"median {middle:.3g}, 95 % below {most:.3g}"
            text = f"{name}: {text}" if name else text
            axes.hist(values, bins=bins, color=colour, alpha=0.65, edgecolor="white", label=text)
            axes.axvline(middle, color=colour, lw=1.6)
            axes.axvline(most, color=colour, lw=1.6, ls=(0, (4, 2)))
        if logarithmic:
            axes.set_xscale("log")
        axes.set(xlabel=label, ylabel="samples")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1))
        if title:
            figure.suptitle(title, fontweight="bold")
        return _save(figure, Path(path))


def _errors(values: Any) -> Array:
    values = values.detach().cpu().numpy() if hasattr(values, "detach") else values
    values = np.asarray(values, dtype=np.float64).ravel()
    if not len(values):
        raise ValueError("histogram needs at least one error, got none")
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(f"errors are finite and at least 0, got {values.min()} to {values.max()}")
    return values


def _components(values: Array) -> str:
    return "1 component" if values.ndim == 1 else f"a vector of {values.shape[1]} components"


def _check_finite(name: str, values: Array) -> None:
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise ValueError(f"{name} has {bad} of {values.size} values that are NaN or infinite")


def _size(values: Array) -> Array:
    return values if values.ndim == 1 else np.linalg.norm(values, axis=1)


def _factor(deform: bool | float | None, shape: Triangulation, values: Array) -> float:
    """By how much a vector field displaces the mesh; 0 for not at all."""
    fits = values.ndim == 2 and values.shape[1] == shape.points.shape[1]
    if deform is None:
        deform = fits and shape.continuous[0]
    if deform is False:
        return 0.0
    if not fits:
        raise ValueError(
            f"deform={deform} needs a vector with {shape.points.shape[1]} components, "
            f"reference has {_components(values)}"
        )
    if deform is not True:
        return float(deform)
    largest = float(_size(values).max())
    if largest == 0:
        return 0.0
    wanted = 0.08 * float(np.ptp(shape.points, axis=0).max()) / largest
    power = 10.0 ** np.floor(np.log10(wanted))
    # a round number, and true to scale where that can be seen
    return (
        1.0 if 0.4 < wanted < 2 else float(power * max(k for k in (1, 2, 5) if k * power <= wanted))
    )


def _norm(*values: Array, symmetric: bool = False) -> Normalize:
    low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    if symmetric:
        high = max(-low, high)
        low = -high
    if high - low <= 1e-12 * max(abs(low), abs(high)):  # a constant field
        width = 0.5 * abs(high) or 1.0
        low, high = low - width, high + width
    return Normalize(low, high)


def _input_panel(f: Any) -> _Panel:
    shape = triangulate(f)
    values = shape.values[0]
    _check_finite("input", values)
    plane = values.ndim == 2 and values.shape[1] == shape.points.shape[1] == 2
    size = _size(values)
    label = "" if values.ndim == 1 else "magnitude"
    arrows = values if plane and size.max() > 0 else None
    return _Panel("input", shape, shape.points, size, _norm(size), _INPUT, label, arrows)


def _panels(shape: Triangulation, true: Array, guess: Array, factor: float) -> list[_Panel]:
    norm = _norm(_size(true), _size(guess))
    gap = guess - true
    scalar = true.ndim == 1
    where = [shape.points + factor * v if factor else shape.points for v in (true, guess)]
    what = f", deformed × {factor:g}" if factor not in (0.0, 1.0) else ""
    label = "" if scalar else "magnitude"
    difference = "difference"
    if shape.points.shape[1] == 2 and (whole := _norm_l2(shape, true)) > 0:
        difference += f", {100 * _norm_l2(shape, gap) / whole:.2g} % in L2"
    signs = _norm(gap, symmetric=True) if scalar else Normalize(0, float(_size(gap).max()) or 1.0)
    shades = _SIGNED if scalar else _SIZE
    return [
        _Panel(f"reference{what}", shape, where[0], _size(true), norm, _FIELD, label),
        _Panel(f"prediction{what}", shape, where[1], _size(guess), norm, _FIELD, label),
        _Panel(difference, shape, where[0], _size(gap), signs, shades, label),
    ]


def _norm_l2(shape: Triangulation, values: Array) -> float:
    """L2 norm of the piecewise linear interpolant, exactly."""
    a, b, c = (shape.points[shape.triangles[:, k]] for k in range(3))
    (ux, uy), (vx, vy) = (b - a).T, (c - a).T
    area = 0.5 * np.abs(ux * vy - uy * vx)
    corners = values.reshape(len(values), -1)[shape.triangles]
    square = (corners**2).sum(axis=1) + corners.sum(axis=1) ** 2
    return float(np.sqrt((area[:, None] * square).sum() / 12))


def _draw(panels: list[_Panel], title: str | None) -> Figure:
    """The panels in a row, or two by two where they are wide."""
    extent = np.ptp(panels[-1].points, axis=0)
    space = len(extent) == 3
    ratio = 0.9 if space else float(np.clip(extent[1] / extent[0], 0.25, 3.0))
    columns = 2 if ratio < 0.75 and len(panels) == 4 else len(panels)
    rows = -(-len(panels) // columns)
    width = 12.5 / columns if rows == 1 else 5.2
    figure = Figure(
        figsize=(columns * width, rows * (width * ratio + 0.75) + 0.3), layout="compressed"
    )
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(rows, columns)
    places = [grid[k // columns, k % columns] for k in range(len(panels))]
    # all but the prediction: a wild one leaves the frame instead of shrinking the others
    calm = [panel.points for k, panel in enumerate(panels) if k != len(panels) - 2]
    frame = np.concatenate([*calm, panels[-1].shape.points])
    draw = _draw_space if space else _draw_plane
    axes = [draw(figure, at, panel, frame) for panel, at in zip(panels, places, strict=True)]
    for panel, ax in zip(panels, axes, strict=True):
        ax.set_title(panel.title, color=_INK, loc="left")
        mappable = ScalarMappable(panel.norm, colormaps[panel.colours])
        bar = figure.colorbar(
            mappable, ax=ax, orientation="horizontal", aspect=28, pad=0.03, shrink=0.9
        )
        bar.set_label(panel.label, fontsize=8, color=_INK)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=2, labelsize=8, color=_INK, labelcolor=_INK)
        bar.ax.xaxis.get_major_locator().set_params(nbins=5)
        bar.formatter.set_powerlimits((-2, 4))
    if title:
        figure.suptitle(title, fontweight="bold", color=_INK)
    return figure


def _draw_plane(figure: Figure, place: Any, panel: _Panel, frame: Array) -> Any:
    axes = figure.add_subplot(place)
    x, y = panel.points.T
    colours = colormaps[panel.colours]
    axes.tripcolor(
        x,
        y,
        panel.shape.triangles,
        panel.values,
        norm=panel.norm,
        cmap=colours,
        shading="gouraud",
        rasterized=True,
    )
    if len(panel.shape.edges) < 60_000:
        edges = LineCollection(
            list(panel.points[panel.shape.edges]), colors="black", lw=0.25, alpha=0.1
        )
        axes.add_collection(edges)
    outline = panel.points[panel.shape.outline]
    axes.add_collection(LineCollection(list(outline), colors=_INK, lw=0.7, capstyle="round"))
    if panel.points is not panel.shape.points:
        rest = panel.shape.points[panel.shape.outline]
        axes.add_collection(
            LineCollection(list(rest), colors="0.6", lw=0.6, ls=(0, (4, 2)), zorder=0.5)
        )
    if panel.arrows is not None:
        few = _spread(panel.points)
        axes.quiver(x[few], y[few], *panel.arrows[few].T, color="white", width=0.005, pivot="mid")
    low, high = frame.min(axis=0), frame.max(axis=0)
    margin = 0.03 * (high - low).max()
    axes.set(xlim=(low[0] - margin, high[0] + margin), ylim=(low[1] - margin, high[1] + margin))
    axes.set_aspect("equal")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def _draw_space(figure: Figure, place: Any, panel: _Panel, frame: Array) -> Any:
    return draw_surface(
        figure,
        place,
        panel.points,
        panel.shape.triangles,
        panel.shape.edges,
        panel.values,
        panel.norm,
        colormaps[panel.colours],
        frame,
    )


def _spread(points: Array, across: int = 14) -> NDArray[np.int64]:
    """One point in each box of a coarse grid."""
    step = np.ptp(points, axis=0).max() / across
    boxes = np.floor((points - points.min(axis=0)) / step).astype(np.int64)
    return np.unique(boxes, axis=0, return_index=True)[1]


def _save(figure: Figure, path: Path) -> Path:
    """Write under a temporary name in the same folder, then rename."""
    if not path.suffix:
        raise ValueError(f"{path}: the ending chooses the format; expected .png, .pdf or .svg")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        figure.savefig(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path
