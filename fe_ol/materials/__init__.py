"""Material laws: strain in, stress and consistent tangent out."""

from fe_ol.materials.elastic import LinearElastic, NonlinearElastic
from fe_ol.materials.hyperelastic import NeoHookean
from fe_ol.materials.law import EnergyLaw
from fe_ol.materials.plane_stress import PlaneStress
from fe_ol.materials.plasticity import J2Plasticity
from fe_ol.materials.protocol import Material, Response

__all__ = [
    "EnergyLaw",
    "J2Plasticity",
    "LinearElastic",
    "Material",
    "NeoHookean",
    "NonlinearElastic",
    "PlaneStress",
    "Response",
]
