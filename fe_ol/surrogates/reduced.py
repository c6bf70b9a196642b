"""The RVE in the space of its modes, at few quadrature points: a solve without a network.

Two formulations of the same 16 or 32 unknowns.

``"energy"``: the fluctuation ``a`` makes the energy stationary among the modes (Galerkin,
Hernandez et al. 2014). The homogenised stress is the derivative of the minimum, so its error is of
second order in that of the modes, and its tangent is symmetric.

``"mismatch"``: ``a`` and the stress coefficients ``b`` minimise the distance between the stress of
the law and the combination of stress modes (EquiNO, Eivazi et al. 2025), by Gauss-Newton. The
homogenised stress is the mean of the combination.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fe_ol.modes import Modes, voigt_weights
from fe_ol.snapshots import Snapshots
from fe_ol.surrogates.laws import PointLaws
from fe_ol.surrogates.points import choose_points
from fe_ol.voigt import rest_strain

__all__ = ["FORMULATIONS", "ReducedModel", "ReducedState"]

FORMULATIONS = ("energy", "mismatch")
# Values held at once, points times components times modes: what stays in the cache.
_CHUNK = 1_000_000


@dataclass
class ReducedState:
    """What the reduced model says for some strains.

    Attributes
    ----------
    a : Tensor, shape (n, fluctuation modes)
    b : Tensor, shape (n, stress modes)
        Coefficients; the mean of the combination of stress modes is `stress`.
    stress : Tensor, shape (n, c)
    tangent : Tensor, shape (n, c, c)
    steps : int
        Newton or Gauss-Newton steps.
    """

    a: Tensor
    b: Tensor
    stress: Tensor
    tangent: Tensor
    steps: int


class ReducedModel:
    """Modes and laws at chosen points.

    Parameters
    ----------
    weights : Tensor, shape (m,)
    tags : Tensor of int, shape (m,)
        Ascending.
    strain_modes : Tensor, shape (m, c, na)
    stress_modes : Tensor, shape (m, c, nb)
    means : Tensor, shape (nb, c)
        Homogenised stresses of the stress modes, by all points.
    reference : Tensor, shape (c,)
        Strain of the undeformed state.
    factors : Tensor, shape (c,)
        Of the double contraction of stresses.
    volume : float
    laws : mapping of int to Material
    formulation : {"energy", "mismatch"}
    """

    def __init__(
        self,
        weights: Tensor,
        tags: Tensor,
        strain_modes: Tensor,
        stress_modes: Tensor,
        means: Tensor,
        reference: Tensor,
        factors: Tensor,
        volume: float,
        laws: Any,
        formulation: str = "energy",
    ) -> None:
        if formulation not in FORMULATIONS:
            raise ValueError(f"formulation must be one of {FORMULATIONS}, got {formulation!r}.")
        self.weights, self.tags = weights, tags
        self.strain_modes, self.stress_modes, self.means = strain_modes, stress_modes, means
        self.reference, self.factors, self.volume = reference, factors, volume
        self.laws, self.formulation = PointLaws(laws, tags), formulation
        c, na = strain_modes.shape[1:]
        self._rows = strain_modes.reshape(-1, na).T.contiguous()
        # Strain = extended @ (macro strain, a): one Gram matrix holds the tangent of the law's
        # mean, the coupling and the stiffness, and as a product with the tangents at the points
        # it is one dense matrix product for all strains.
        eye = torch.eye(c, dtype=torch.float64).expand(len(weights), c, c)
        extended = torch.cat((eye, strain_modes), 2)
        self._loads = (extended * weights[:, None, None]).reshape(-1, c + na)
        i, j = torch.triu_indices(c, c)
        k, l = torch.triu_indices(c + na, c + na)
        pairs = extended[:, i][:, :, k] * extended[:, j][:, :, l]
        pairs = pairs + (i != j)[:, None] * (extended[:, j][:, :, k] * extended[:, i][:, :, l])
        self._pairs = (pairs * weights[:, None, None]).reshape(-1, len(k))
        self._law_pairs, self._gram_pairs = (i, j), (k, l)
        scaled = stress_modes * (weights[:, None] * factors)[..., None]
        self._projection = scaled.reshape(-1, stress_modes.shape[2])
        self._stress_gram = self._projection.T @ stress_modes.reshape(-1, stress_modes.shape[2])
        # The smallest change of b that gives a wanted mean.
        self._lift = torch.linalg.pinv(means)
        self._start = self._at_reference()

    @classmethod
    def build(
        cls,
        rve: Any,
        snapshots: Snapshots,
        fluctuation: Modes,
        stress: Modes,
        points: int = 256,
        selection: str = "cubature",
        formulation: str = "energy",
        seed: int = 0,
    ) -> ReducedModel:
        """Choose points and keep what the modes are there.

        Parameters
        ----------
        rve : RVE
        snapshots : Snapshots
            Their stresses tell the cubature what has to be integrated.
        fluctuation, stress : Modes
        points : int, optional
            Largest number of points.
        selection : {"cubature", "qdeim", "random", "all"}, optional
            Points with weights of their own that integrate the products of modes and stresses;
            Q-DEIM points of the stress modes, or random points, with the quadrature weights; or
            all points.
        formulation : {"energy", "mismatch"}, optional
        seed : int, optional
            For random points.

        Returns
        -------
        ReducedModel

        Raises
        ------
        ValueError
            If a name is unknown, or the energy is asked for at points whose weights do not
            integrate it.
        """
        if formulation == "energy" and selection in ("qdeim", "random"):
            raise ValueError(
                f"The energy needs points that integrate it, {selection!r} points do not: choose "
                "selection='cubature' or 'all', or formulation='mismatch'."
            )
        chosen, weights = choose_points(
            rve, snapshots, fluctuation, stress, points, selection, seed
        )
        tags = torch.as_tensor(rve.tags).to(torch.int64)[chosen]
        return cls(
            weights=weights,
            tags=tags,
            strain_modes=fluctuation.fields[:, chosen].permute(1, 2, 0).contiguous(),
            stress_modes=stress.fields[:, chosen].permute(1, 2, 0).contiguous(),
            means=(stress.fields * rve.weights[:, None]).sum(1) / rve.volume,
            reference=rest_strain(rve.dim, rve.finite),
            factors=voigt_weights(rve.dim, rve.finite, strain=False),
            volume=float(rve.volume),
            laws=rve.materials,
            formulation=formulation,
        )

    @property
    def modes(self) -> tuple[int, int]:
        """Numbers of fluctuation and of stress modes."""
        return self.strain_modes.shape[2], self.stress_modes.shape[2]

    @property
    def linear(self) -> tuple[Tensor, Tensor]:
        """Derivatives of a and b by the strain in the undeformed state, (na, c) and (nb, c)."""
        return self._start[0], self._start[1]

    @property
    def stiffness(self) -> Tensor:
        """Second derivative of the energy by a in the undeformed state, shape (na, na)."""
        return self._start[2]

    def strain(self, strain: Tensor, a: Tensor) -> Tensor:
        """Local strain at the chosen points, shape (n, m, c)."""
        return strain[:, None] + (a @ self._rows).reshape(len(a), *self.strain_modes.shape[:2])

    def solve(
        self,
        strain: Tensor,
        a: Tensor | None = None,
        b: Tensor | None = None,
        steps: int | None = None,
        tolerance: float = 1e-10,
        largest: int = 30,
    ) -> ReducedState:
        """Solve for the coefficients, stress and tangent of some strains.

        Parameters
        ----------
        strain : Tensor, shape (n, c)
        a : Tensor, shape (n, na), optional
        b : Tensor, shape (n, nb), optional
            Where to start; from the linear law by default.
        steps : int, optional
            Exactly so many steps, or as many as `tolerance` needs (default). The tangent is that
            of the converged solution (implicit function theorem), taken at the last iterate.
        tolerance : float, optional
            Size of the last step, relative to the coefficients.
        largest : int, optional
            Number of steps after which there is no hope.

        Returns
        -------
        ReducedState

        Raises
        ------
        ArithmeticError
            If it does not converge, or the energy is not convex where it has gone; the message
            names the strain.
        """
        change = strain - self.reference
        a = change @ self._start[0].T if a is None else a
        b = change @ self._start[1].T if b is None else b
        parts = [
            self._solve(strain[i], a[i], b[i], steps, tolerance, largest)
            for i in self.chunks(len(strain))
        ]
        if len(parts) == 1:
            return parts[0]
        columns = {name: torch.cat([getattr(p, name) for p in parts]) for name in _FIELDS}
        return ReducedState(**columns, steps=max(p.steps for p in parts))

    def _solve(
        self,
        strain: Tensor,
        a: Tensor,
        b: Tensor,
        steps: int | None,
        tolerance: float,
        largest: int,
    ) -> ReducedState:
        step = self._energy_step if self.formulation == "energy" else self._mismatch_step
        last = torch.full((len(a),), torch.inf, dtype=torch.float64)
        for count in range(largest + 1):
            da, db, finish = step(strain, a, b)
            if count == steps:
                return finish(count)
            size = da.square().sum(1).sqrt()
            if steps is None:
                small = size <= tolerance * (a.square().sum(1).sqrt() + da.square().sum(1).sqrt())
                # A step that is round-off may grow again.
                if bool((small | (size <= 1e-13)).all()):
                    return finish(count)
                if not bool(torch.isfinite(size).all()):
                    last = size
                    break
                # Newton's steps shrink; where they do not, half of one is safer.
                damping = torch.where(size > last, 0.5, 1.0)[:, None]
                da, db, last = damping * da, damping * db, size
            a, b = a + da, b + db
        bad = int(torch.nan_to_num(last, nan=torch.inf).argmax())
        raise ArithmeticError(
            f"The reduced solve did not converge for the strain {strain[bad].tolist()}: after "
            f"{count} steps the last one was {float(last[bad]):.3g} long. Strains far outside the "
            "snapshots' box may have no solution among the modes."
        )

    def _energy_step(self, strain: Tensor, a: Tensor, b: Tensor) -> Any:
        c = strain.shape[1]
        stress, gram = self.moments(self.strain(strain, a))
        loads = stress.flatten(1) @ self._loads
        coupling, stiffness = gram[:, c:, :c], gram[:, c:, c:]
        factor = _cholesky(stiffness, strain)
        da = -torch.cholesky_solve(loads[:, c:, None], factor)[..., 0]

        def finish(count: int) -> ReducedState:
            mean = loads[:, :c] / self.volume
            answer = torch.cholesky_solve(coupling, factor)
            tangent = (gram[:, :c, :c] - coupling.transpose(1, 2) @ answer) / self.volume
            return ReducedState(a, self.project(stress, mean), mean, tangent, count)

        return da, torch.zeros_like(b), finish

    def _mismatch_step(self, strain: Tensor, a: Tensor, b: Tensor) -> Any:
        n, na = a.shape
        law, tangent = self.laws(self.strain(strain, a))
        root = (self.weights[:, None] * self.factors).sqrt()
        modes = (self.stress_modes * root[..., None]).flatten(0, 1)
        residual = (law * root).flatten(1) - b @ modes.T
        tangent = tangent * root[..., None]
        jacobian = (tangent @ self.strain_modes).flatten(1, 2)
        jacobian = torch.cat((jacobian, -modes.expand(n, -1, -1)), 2)
        normal = jacobian.transpose(1, 2) @ jacobian
        factor = _cholesky(normal, strain)
        step = -torch.cholesky_solve(jacobian.transpose(1, 2) @ residual[..., None], factor)[..., 0]

        def finish(count: int) -> ReducedState:
            loads = jacobian.transpose(1, 2) @ tangent.flatten(1, 2)
            slope = -torch.cholesky_solve(loads, factor)[:, na:]
            return ReducedState(a, b, b @ self.means, self.means.T @ slope, count)

        return step[:, :na], step[:, na:], finish

    def project(self, stress: Tensor, mean: Tensor | None = None) -> Tensor:
        """Coefficients of the combination of stress modes nearest to a stress.

        Parameters
        ----------
        stress : Tensor, shape (n, m, c)
            At the chosen points.
        mean : Tensor, shape (n, c), optional
            Homogenised stress that the combination is to have.

        Returns
        -------
        Tensor, shape (n, nb)
        """
        b = torch.linalg.solve(self._stress_gram, (stress.flatten(1) @ self._projection).T).T
        return b if mean is None else b + (mean - b @ self.means) @ self._lift

    def mismatch(self, strain: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Relative L2 distance between the stress of the law and the combination of modes.

        Parameters
        ----------
        strain : Tensor, shape (n, c)
        a : Tensor, shape (n, na)
        b : Tensor, shape (n, nb)

        Returns
        -------
        Tensor, shape (n,)
            Zero where the stress is zero.
        """
        parts = []
        for i in self.chunks(len(strain)):
            law = self.laws(self.strain(strain[i], a[i]))[0]
            parts.append(self._relative(law - self.combine(b[i]), law))
        return torch.cat(parts)

    def combine(self, b: Tensor) -> Tensor:
        """Combination of stress modes at the chosen points, shape (n, m, c)."""
        m, c, nb = self.stress_modes.shape
        return (b @ self.stress_modes.reshape(-1, nb).T).reshape(len(b), m, c)

    def contraction(self, stress: Tensor) -> Tensor:
        """Squared L2 norm of a stress at the chosen points, shape (n,)."""
        return (stress.square() @ self.factors) @ self.weights

    def _relative(self, difference: Tensor, size: Tensor) -> Tensor:
        tiny = torch.finfo(torch.float64).tiny
        return (self.contraction(difference) / self.contraction(size).clamp_min(tiny)).sqrt()

    def moments(self, strain: Tensor) -> tuple[Tensor, Tensor]:
        """Stresses at the chosen points, and second derivatives of the energy.

        Parameters
        ----------
        strain : Tensor, shape (n, m, c)
            Local strains.

        Returns
        -------
        stress : Tensor, shape (n, m, c)
        gram : Tensor, shape (n, c + na, c + na)
            By the macroscopic strain and then a, times the volume.
        """
        stress, tangent = self.laws(strain)
        n = len(strain)
        i, j = self._law_pairs
        upper = tangent[:, :, i, j].flatten(1) @ self._pairs
        k, l = self._gram_pairs
        size = self._loads.shape[1]
        gram = upper.new_empty(n, size, size)
        gram[:, k, l] = upper
        gram[:, l, k] = upper
        return stress, gram

    @torch.no_grad()
    def _at_reference(self) -> tuple[Tensor, Tensor, Tensor]:
        strain = self.reference[None]
        c, na = len(self.reference), self.modes[0]
        _, gram = self.moments(self.strain(strain, torch.zeros(1, na, dtype=torch.float64)))
        stiffness, coupling = gram[0, c:, c:], gram[0, c:, :c]
        slope = -torch.linalg.solve(stiffness, coupling)
        tangent = self.laws(strain[:, None].expand(1, len(self.weights), c))[1][0]
        eye = torch.eye(c, dtype=torch.float64)
        stress = (tangent @ (eye + self.strain_modes @ slope)).permute(2, 0, 1)
        mean = (gram[0, :c, :c] + coupling.T @ slope).T / self.volume
        if self.formulation == "mismatch":
            mean = None
        return slope, self.project(stress, mean).T, stiffness

    def chunks(self, n: int) -> Iterator[slice]:
        """Parts of `n` strains whose values at the points stay in the cache."""
        size = max(1, _CHUNK // (len(self.weights) * len(self.reference) ** 2))
        return (slice(i, i + size) for i in range(0, max(n, 1), size))


_FIELDS = ("a", "b", "stress", "tangent")


def _cholesky(matrices: Tensor, strain: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(matrices)
    if bool(info.any()):
        bad = int(info.nonzero()[0])
        raise ArithmeticError(
            f"The reduced solve failed for the strain {strain[bad].tolist()}: its matrix is not "
            "positive definite. Strains far outside the snapshots' box may have no solution among "
            "the modes; too few points, or modes that depend on one another, have none anywhere."
        )
    return factor
