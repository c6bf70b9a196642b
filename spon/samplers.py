"""Random input functions for `spon.generate`.

A sampler is made for one function space and is called with a function of that space and a
``numpy.random.Generator``; it overwrites the function. The same generator state gives the same
function.

Examples
--------
>>> field = spon.samplers.GaussianRandomField(V, length=0.2)       # doctest: +SKIP
>>> field(f, np.random.default_rng(0))                             # doctest: +SKIP
>>> spon.generate(problem, {"f": field}, n=100, path="data.h5")    # doctest: +SKIP
"""

from spon.fem.gaussian import GaussianRandomField, RandomBoundaryData, TwoPhase
from spon.fem.inclusions import PlacementError, RandomInclusions
from spon.fem.samplers import Constant, FieldSampler, Uniform

__all__ = [
    "Constant",
    "FieldSampler",
    "GaussianRandomField",
    "PlacementError",
    "RandomBoundaryData",
    "RandomInclusions",
    "TwoPhase",
    "Uniform",
]
