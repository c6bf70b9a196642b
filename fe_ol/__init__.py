"""Operator learning inside FE² multiscale simulation.

A *material* takes strains and gives stresses and tangents: a law (`fe_ol.materials`), a
representative volume element (`RVE`), or a surrogate of one (`EquiNO` and its rivals).
"""

from fe_ol.cell.equilibrium import NoEquilibriumError
from fe_ol.guarded import Guarded, GuardError, GuardWarning
from fe_ol.macro import ArcLength, LoadStepError, MacroProblem, MacroResult
from fe_ol.materials import (
    EnergyLaw,
    J2Plasticity,
    LinearElastic,
    Material,
    NeoHookean,
    NonlinearElastic,
    PlaneStress,
    Response,
)
from fe_ol.objective import Objective
from fe_ol.rve import RVE, Solutions
from fe_ol.snapshots import Snapshots
from fe_ol.surrogates import (
    BlackBox,
    EquiNO,
    FieldNetwork,
    Interpolation,
    ReducedSolve,
    VPIONet,
)
from fe_ol.surrogates.kinds import load

__all__ = [
    "RVE",
    "ArcLength",
    "BlackBox",
    "EnergyLaw",
    "EquiNO",
    "FieldNetwork",
    "GuardError",
    "GuardWarning",
    "Guarded",
    "Interpolation",
    "J2Plasticity",
    "LinearElastic",
    "LoadStepError",
    "MacroProblem",
    "MacroResult",
    "Material",
    "NeoHookean",
    "NoEquilibriumError",
    "NonlinearElastic",
    "Objective",
    "PlaneStress",
    "ReducedSolve",
    "Response",
    "Snapshots",
    "Solutions",
    "VPIONet",
    "load",
]
