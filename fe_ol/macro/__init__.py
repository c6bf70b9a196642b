"""The macroscopic problem: any mesh, any material, load steps by Newton's method."""

from fe_ol.macro.checks import problem_space
from fe_ol.macro.file import MacroFileError
from fe_ol.macro.points import MaterialFailure
from fe_ol.macro.problem import MacroProblem
from fe_ol.macro.result import LoadStepError, MacroResult, Step
from fe_ol.macro.steps import ArcLength

__all__ = [
    "ArcLength",
    "LoadStepError",
    "MacroFileError",
    "MacroProblem",
    "MacroResult",
    "MaterialFailure",
    "Step",
    "problem_space",
]
