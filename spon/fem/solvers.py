"""Solvers as batched, differentiable torch functions."""

from spon.fem.factor import SingularMatrixError
from spon.fem.linear_solver import LinearSolver
from spon.fem.newton import SolveReport
from spon.fem.nonlinear_solver import NonlinearSolver

__all__ = ["LinearSolver", "NonlinearSolver", "SingularMatrixError", "SolveReport"]
