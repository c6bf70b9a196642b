"""Surrogates of RVEs: materials that answer without a finite element solve."""

from fe_ol.surrogates.blackbox import BlackBox
from fe_ol.surrogates.equino import EquiNO
from fe_ol.surrogates.interpolation import Interpolation
from fe_ol.surrogates.reduced_solve import ReducedSolve

__all__ = ["BlackBox", "EquiNO", "Interpolation", "ReducedSolve"]
