"""Surrogates of RVEs: materials that answer without a finite element solve."""

from fe_ol.surrogates.blackbox import BlackBox
from fe_ol.surrogates.equino import EquiNO
from fe_ol.surrogates.field_network import FieldNetwork
from fe_ol.surrogates.interpolation import Interpolation
from fe_ol.surrogates.reduced_solve import ReducedSolve
from fe_ol.surrogates.vpionet import VPIONet

__all__ = ["BlackBox", "EquiNO", "FieldNetwork", "Interpolation", "ReducedSolve", "VPIONet"]
