"""What a decoder promises, as torch modules: each holds to round-off for every input.

`spon.fem.promises` builds them from spaces and boundary conditions; nothing here knows Firedrake.
"""

from spon.promises.base import InDouble, Promise, require_finite
from spon.promises.bounds import Bounds, Margin, fit_margins, soft_clip
from spon.promises.gradient_traces import GradientTraces
from spon.promises.integrals import Integrals
from spon.promises.particular import Particular
from spon.promises.pipeline import Pipeline
from spon.promises.potential import Potential
from spon.promises.projection import Projection
from spon.promises.specification import Specification
from spon.promises.symmetric import GroupAverage, Symmetric

__all__ = [
    "Bounds",
    "GradientTraces",
    "GroupAverage",
    "InDouble",
    "Integrals",
    "Margin",
    "Particular",
    "Pipeline",
    "Potential",
    "Projection",
    "Promise",
    "Specification",
    "Symmetric",
    "fit_margins",
    "require_finite",
    "soft_clip",
]
