"""Conjugate gradients for a batch of systems, with one factorisation as preconditioner."""

from __future__ import annotations

import firedrake as fd
import torch
from torch import Tensor

from spon.fem.factor import Factor, SparseLU

__all__ = ["ConjugateGradients"]


class ConjugateGradients:
    """The inverses of symmetric positive definite matrices of one pattern.

    All systems advance together; a system that has converged stands still. Convergence is
    measured in the norm of the preconditioner, which does not depend on the mesh (Malek and
    Strakos 2015, *Preconditioning and the conjugate gradient method*, section 5).

    Parameters
    ----------
    lu : SparseLU
        The pattern.
    values : Tensor, shape (batch, nnz)
    preconditioner : Factor
        Of a matrix that is spectrally close to all of them.
    rtol : float
        By how much the preconditioned residual is to be reduced.
    max_iterations : int
    """

    def __init__(
        self, lu: SparseLU, values: Tensor, preconditioner: Factor, rtol: float, max_iterations: int
    ) -> None:
        self._lu, self._values, self._precondition = lu, values, preconditioner.solve
        self._rtol, self._max_iterations = rtol, max_iterations
        self.iterations = 0

    def solve(self, b: Tensor, transposed: bool = False) -> Tensor:
        """Solve for rows of shape (batch, dim); the matrices are their own transposes.

        Raises
        ------
        firedrake.ConvergenceError
            If a system does not converge, or a matrix is not positive definite.
        """
        r = b.clone()
        z = self._precondition(r)
        p, rz = z, (r * z).sum(1)
        # Asked in this direction, NaN is refused, too.
        if not (rz >= 0).all():
            bad = ~(rz >= 0)
            raise fd.ConvergenceError(
                f"Conjugate gradients: the load is not finite, or the preconditioner not positive "
                f"definite, in {int(bad.sum())} of {len(bad)} samples; the first is sample "
                f"{int(bad.nonzero()[0])}. Check the inputs and the reference=."
            )
        x, goal = torch.zeros_like(r), self._rtol**2 * rz
        active = rz > 0
        for iteration in range(1, self._max_iterations + 1):
            if not active.any():
                break
            self.iterations = iteration
            step = self._lu.multiply(self._values, p)
            curvature = (p * step).sum(1)
            self._require_positive(curvature, active)
            alpha = torch.where(active, rz / curvature, 0.0)[:, None]
            x = x.addcmul_(alpha, p)
            r = r.addcmul_(alpha, step, value=-1)
            z = self._precondition(r)
            rz_new = (r * z).sum(1)
            p = z.addcmul_((rz_new / rz)[:, None].nan_to_num_(0.0), p)
            rz = rz_new
            # Asked in this direction, NaN stays active and is reported.
            active = active & ~(rz <= goal)
        if active.any():
            reached = (rz / goal).sqrt()[active].max() * self._rtol
            raise fd.ConvergenceError(
                f"Conjugate gradients: {int(active.sum())} of {len(b)} samples did not converge in "
                f"{self._max_iterations} iterations; the worst was reduced by {float(reached):.1e}"
                f" of {self._rtol:.1e}. Give a reference= closer to the samples, raise "
                'max_iterations=, or use mode="factor".'
            )
        return x

    def _require_positive(self, curvature: Tensor, active: Tensor) -> None:
        bad = active & (curvature <= 0)
        if bad.any():
            raise fd.ConvergenceError(
                f"Conjugate gradients: the operator is not positive definite in {int(bad.sum())} "
                f"of {len(bad)} samples; the first is sample {int(bad.nonzero()[0])}. Check the "
                'inputs (a coefficient that is negative somewhere?), or use mode="factor".'
            )
