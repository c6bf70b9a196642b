"""Fields of a macroscopic problem as Functions, as VTK files and as a picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import firedrake as fd
import matplotlib
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from pyadjoint import stop_annotating
from torch import Tensor

from fe_ol.macro.system import System
from fe_ol.voigt import component_names, pairs, stress_names
from spon.fem.triangulation import triangulate
from spon.history import replaced
from spon.rendering import draw_surface

__all__ = ["draw", "point_fields", "smooth", "von_mises"]


def von_mises(stress: Tensor, dim: int, strain: Tensor | None = None) -> Tensor:
    """Equivalent stress of von Mises.

    In two dimensions the stress across the plane is not known to a homogenised material; it is
    taken as zero, as in plane stress.

    Parameters
    ----------
    stress : Tensor, shape (n, c)
        In the conventions of `fe_ol.voigt`.
    dim : int
    strain : Tensor, shape (n, c), optional
        Deformation gradients: the stress is then the first Piola stress P, and that of Cauchy,
        ``P F^T / det F``, is taken.

    Returns
    -------
    Tensor, shape (n,)
    """
    finite = strain is not None
    s = stress.new_zeros(len(stress), 3, 3)
    for k, (i, j) in enumerate(pairs(dim, finite)):
        s[:, i, j] = stress[:, k]
        if not finite:
            s[:, j, i] = stress[:, k]
    if strain is not None:
        F = torch.eye(3, dtype=stress.dtype).repeat(len(stress), 1, 1)
        for k, (i, j) in enumerate(pairs(dim, True)):
            F[:, i, j] = strain[:, k]
        s = s @ F.mT / torch.linalg.det(F)[:, None, None]
    mean = torch.einsum("nii->n", s) / 3
    deviator = s - mean[:, None, None] * torch.eye(3, dtype=stress.dtype)
    return (1.5 * deviator.square().sum((1, 2))).sqrt()


def smooth(system: System, values: Tensor, name: str, degree: int | None = None) -> Any:
    """Values at the points as a discontinuous polynomial in each cell, by least squares.

    Parameters
    ----------
    system : System
    values : Tensor, shape (n,) or (n, k)
        At the points of this process.
    name : str
    degree : int, optional
        One below that of the displacement by default.

    Returns
    -------
    Function
    """
    size = 1 if values.ndim == 1 else values.shape[1]
    if degree is None:
        degree = max(int(system.space.ufl_element().degree()) - 1, 0)
    mesh = system.space.mesh().unique()
    with stop_annotating():
        family = "DG" if mesh.ufl_cell().cellname in ("triangle", "tetrahedron") else "DQ"
        one = fd.FunctionSpace(mesh, family, degree)
        W = one if values.ndim == 1 else fd.VectorFunctionSpace(mesh, family, degree, dim=size)
        data = fd.Function(system.scalars)
        w, v = fd.TrialFunction(one), fd.TestFunction(one)
        dx = fd.dx(domain=mesh, degree=system.degree)
        result, part = fd.Function(W, name=name), fd.Function(one)
        problem = fd.LinearVariationalProblem(fd.inner(w, v) * dx, fd.inner(data, v) * dx, part)
        # The mass matrix couples the dofs of one cell only.
        options = {"ksp_type": "preonly", "pc_type": "bjacobi", "sub_pc_type": "ilu"}
        solver = fd.LinearVariationalSolver(problem, solver_parameters=options)
        for k, column in enumerate(values.reshape(len(values), size).T):
            data.dat.data_wo[:] = column.numpy()
            solver.solve()
            target = result.dat.data_wo
            target.reshape(len(target), size)[:, k] = part.dat.data_ro
    return result


def point_fields(system: System, equivalent: Tensor) -> list[Any]:
    """Stress and strain component by component, and the von Mises stress, for a file.

    Parameters
    ----------
    system : System
    equivalent : Tensor, shape (n,)
        Von Mises stress at the points of this process.

    Returns
    -------
    list of Function
    """
    dim, finite = system.dim, system.finite
    fields = [smooth(system, equivalent, "von Mises stress")]
    for f, names in (
        (system.stress, stress_names(dim, finite)),
        (system.strain, component_names(dim, finite)),
    ):
        columns = torch.from_numpy(f.dat.data_ro.copy()).T
        for column, name in zip(columns, names, strict=True):
            fields.append(smooth(system, column, name))
    return fields


def draw(
    displacement: Any,
    values: Any,
    path: str | os.PathLike[str],
    label: str,
    deform: float | None = None,
) -> Path:
    """Draw a scalar field on the deformed body; in 3D on its surface.

    Parameters
    ----------
    displacement, values : Function
        A vector and a scalar on one mesh.
    path : path
        Picture to write; the ending chooses the format.
    label : str
        Of the colours.
    deform : float, optional
        Factor on the displacement; by default 1, or what makes it visible.

    Returns
    -------
    Path
    """
    shape = triangulate(displacement, values)
    if deform is None:
        largest = float(np.abs(shape.values[0]).max())
        wanted = 0.08 * float(np.ptp(shape.points, axis=0).max()) / largest if largest else 1.0
        deform = 1.0 if wanted < 3 else float(10.0 ** np.floor(np.log10(wanted)))
    moved = shape.points + deform * shape.values[0]
    field = shape.values[1]
    low, high = float(field.min()), float(field.max())
    norm = Normalize(low, high if high > low else low + 1.0)
    colours = colormaps["viridis"]
    extent = np.ptp(np.concatenate([shape.points, moved]), axis=0)
    ratio = 0.9 if len(extent) == 3 else float(np.clip(extent[1] / extent[0], 0.25, 3.0))
    with matplotlib.rc_context({"font.size": 9, "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(5.5, 5.5 * ratio + 0.8), layout="compressed", facecolor="white")
        FigureCanvasAgg(figure)
        place = figure.add_gridspec(1, 1)[0]
        if len(extent) == 3:
            axes = draw_surface(
                figure, place, moved, shape.triangles, shape.edges, field, norm, colours, moved
            )
        else:
            axes = figure.add_subplot(place)
            x, y = moved.T
            axes.tripcolor(
                x, y, shape.triangles, field, norm=norm, cmap=colours, shading="gouraud",
                rasterized=True,
            )  # fmt: skip
            for segments, style in (
                (moved[shape.edges], {"colors": "black", "lw": 0.25, "alpha": 0.15}),
                (moved[shape.outline], {"colors": "#303030", "lw": 0.7}),
                (shape.points[shape.outline], {"colors": "0.6", "lw": 0.6, "ls": (0, (4, 2))}),
            ):
                axes.add_collection(LineCollection(list(segments), **style))
            axes.autoscale_view()
            axes.set_aspect("equal")
            axes.set_axis_off()
        title = "" if deform == 1 else f"deformed × {deform:g}"
        axes.set_title(title, loc="left")
        figure.colorbar(
            ScalarMappable(norm, colours), ax=axes, orientation="horizontal", aspect=28, pad=0.03,
            label=label,
        )  # fmt: skip
        with replaced(path) as scratch:
            figure.savefig(scratch, dpi=130)
    return Path(path)
