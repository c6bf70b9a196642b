"""What the problems share: positions of dofs, errors in L2, and clocks around solvers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from firedrake import Function, SpatialCoordinate, VectorFunctionSpace
from torch import Tensor

from spon import losses

__all__ = ["CHOLESKY", "RelativeL2", "cpu", "positions", "row", "solutions"]

CHOLESKY = {
    "ksp_type": "preonly",
    "pc_type": "cholesky",
    "pc_factor_mat_solver_type": "mumps",
}


def positions(V: Any) -> np.ndarray:
    """Where the dofs of a scalar space of point values lie, shape (V.dim(), 2)."""
    mesh = V.mesh()
    X = VectorFunctionSpace(mesh, V.ufl_element())
    x: np.ndarray = Function(X).interpolate(SpatialCoordinate(mesh)).dat.data_ro.copy()
    return x


class RelativeL2:
    """Relative errors of coefficient vectors in the L2 norm, shape (batch,)."""

    def __init__(self, V: Any) -> None:
        self._loss = losses.RelativeError(V, "L2")

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Errors of predictions (batch, V.dim()) against targets of the same shape and dtype."""
        return self._loss.per_sample(prediction, target)


def cpu(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns and the CPU seconds that it took."""
    start = time.process_time()
    result = call()
    return result, time.process_time() - start


def row(
    solver: str, mesh: str, V: Any, errors: dict[str, float], batch: int, setup: float, solve: float
) -> dict[str, Any]:
    """One row of `Problem.solvers`.

    Parameters
    ----------
    solver, mesh : str
    V : FunctionSpace
        Of the solution.
    errors : dict of str to float
    batch : int
        Number of samples that were solved.
    setup : float
        CPU seconds once for all samples, with a factorisation that they share.
    solve : float
        CPU seconds of all samples, with what brings them onto this mesh and back.
    """
    return {
        "solver": solver,
        "mesh": mesh,
        "dofs": V.dim(),
        **errors,
        "ms": 1e3 * (setup + solve) / batch,
        "setup_ms": 1e3 * setup,
        "solve_ms": 1e3 * solve / batch,
        "batch": batch,
    }


def solutions(solver: Any, inputs: Any, given: Tensor, found: Any) -> Tensor:
    """Solve with plain Firedrake for one sample after the other.

    Parameters
    ----------
    solver : LinearVariationalSolver
    inputs : Function
        Takes the coefficients of a sample.
    given : Tensor, shape (n, dim)
    found : Function
        The solution of `solver`.

    Returns
    -------
    Tensor, shape (n, dim of found)
    """
    out = []
    for x in given.numpy():
        inputs.dat.data[:] = x
        solver.solve()
        out.append(found.dat.data_ro.copy())
    return torch.from_numpy(np.stack(out))
