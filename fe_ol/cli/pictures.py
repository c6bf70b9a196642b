"""The course of a training as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fe_ol.surrogates.optimise import Course
from spon.history import replaced

__all__ = ["draw_courses"]


def draw_courses(courses: Mapping[str, Course], path: Path) -> None:
    """Draw losses over the epochs, on a logarithmic axis where they are positive.

    Parameters
    ----------
    courses : mapping of str to Course
        By the names of the networks.
    path : Path
        The ending chooses the format.
    """
    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    positive = all(loss > 0 for course in courses.values() for loss in course.loss)
    # An energy may be negative.
    scale = "log" if positive else "linear"
    axes = figure.add_subplot(xlabel="epoch", ylabel="loss", yscale=scale)
    for name, course in courses.items():
        epochs = range(1, len(course.loss) + 1)
        axes.plot(epochs, course.loss, label=f"{name}, {course.seconds:.0f} s")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with replaced(path) as temporary:
        figure.savefig(temporary, dpi=150)
