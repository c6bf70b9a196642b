"""What surrogates that give a fluctuation have in common: stress and tangent by the laws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fe_ol.surrogates.base import LocalFields, Surrogate
from fe_ol.surrogates.laws import PointLaws

__all__ = ["HOMOGENISATIONS", "CellPoints", "FieldSurrogate"]

HOMOGENISATIONS = ("energy", "mean")
# Entries of local tangents that are held at once.
_CHUNK = 4_000_000


class CellPoints:
    """All quadrature points of a cell with their laws, ordered by tag.

    Parameters
    ----------
    weights : Tensor, shape (p,)
        In the RVE's order, as all that comes from outside.
    tags : Tensor of int, shape (p,)
    laws : mapping of int to Material
    volume : float

    Attributes
    ----------
    order, inverse : Tensor of int64, shape (p,)
        ``fields[:, order]`` is ordered by tag, ``fields[:, inverse]`` as the RVE has it again.
    """

    def __init__(
        self, weights: Tensor, tags: Tensor, laws: Mapping[int, Any], volume: float
    ) -> None:
        tags = torch.as_tensor(tags)
        self.order = torch.argsort(tags, stable=True)
        self.inverse = torch.argsort(self.order)
        self.weights, self.tags = weights[self.order], tags[self.order]
        self.laws, self.volume = PointLaws(laws, self.tags), volume

    @classmethod
    def of(cls, rve: Any) -> CellPoints:
        """The points of an RVE."""
        return cls(rve.weights, rve.tags, rve.materials, rve.volume)

    def mean(self, values: Tensor) -> Tensor:
        """Volume mean of (n, p, ...), shape (n, ...)."""
        return torch.tensordot(self.weights, values, ([0], [1])) / self.volume


class FieldSurrogate(Surrogate):
    """A network gives the fluctuation, the laws give the stress.

    With q(E) the coefficients of the fluctuation, e = E + grad w(q) and A = de/dE, the homogenised
    energy is W(E) = <Psi(e)>. The homogenised stress is the mean <sigma>, as published, or dW/dE =
    <A^T sigma> ("energy"): they agree in equilibrium, and out of it the error of dW/dE is of second
    order in that of the fluctuation, and its tangent symmetric. The tangent is the exact derivative
    of either. **Nothing keeps the stress field to equilibrium**: `residual` measures by how much
    it is missed.

    Parameters
    ----------
    source : dict
    reference : Tensor, shape (c,)
    radius : float
    points : CellPoints
    homogenisation : {"energy", "mean"}, optional

    Raises
    ------
    ValueError
        If `homogenisation` is unknown.
    """

    def __init__(
        self,
        source: dict[str, Any],
        reference: Tensor,
        radius: float,
        points: CellPoints,
        homogenisation: str = "energy",
    ) -> None:
        super().__init__(source, reference, radius)
        if homogenisation not in HOMOGENISATIONS:
            raise ValueError(
                f"homogenisation must be one of {HOMOGENISATIONS}, got {homogenisation!r}."
            )
        self.points, self.homogenisation = points, homogenisation

    # ---- what a subclass writes ----------------------------------------------------------------

    def coefficients(self, strain: Tensor) -> Tensor:
        """Coefficients (n, k) of the fluctuation, differentiable; twice by the strain."""
        raise NotImplementedError

    def coefficients_and_slopes(self, strain: Tensor) -> tuple[Tensor, Tensor]:
        """The same with their derivatives (n, k, c) by the strain, differentiable once."""
        raise NotImplementedError

    def gradient(self, coefficients: Tensor) -> Tensor:
        """Strains (n, p, c) of fluctuations, at the points ordered by tag; linear."""
        raise NotImplementedError

    def forces(self, stress: Tensor) -> Tensor:
        """The weighted adjoint of `gradient`: (n, p, c), ordered by tag, to (n, k)."""
        raise NotImplementedError

    def fluctuation(self, coefficients: Tensor) -> Tensor:
        """Coefficients (n, V.dim()) in the RVE's space."""
        raise NotImplementedError

    # ---- a material ----------------------------------------------------------------------------

    def _respond(self, strain: Tensor) -> tuple[Tensor, Tensor]:
        n, c = strain.shape
        rows = max(1, _CHUNK // (len(self.points.weights) * c * c))
        if n <= rows:
            return self._evaluate(strain)
        parts = [self._evaluate(strain[i : i + rows]) for i in range(0, n, rows)]
        stresses, tangents = zip(*parts, strict=True)
        return torch.cat(stresses), torch.cat(tangents)

    def _evaluate(self, strain: Tensor) -> tuple[Tensor, Tensor]:
        n, c = strain.shape
        q, slopes = self.coefficients_and_slopes(strain)
        stress, modulus = self.points.laws(strain[:, None] + self.gradient(q))
        # A[n, p, i, a]: what a unit of the macroscopic strain a does to the local strain i.
        parts = self.gradient(slopes.transpose(1, 2).flatten(0, 1))
        local = parts.reshape(n, c, len(self.points.weights), c).permute(0, 2, 3, 1) + torch.eye(
            c, dtype=strain.dtype
        )
        mean = self.points.mean(stress)
        if self.homogenisation == "mean":
            return mean, self.points.mean(modulus @ local)
        forces = self.forces(stress) / self.points.volume
        tangent = self.points.mean(local.transpose(2, 3) @ modulus @ local)
        curvature = self._curvature(strain, forces)
        return mean + (forces[:, None] @ slopes)[:, 0], tangent + curvature

    def _curvature(self, strain: Tensor, forces: Tensor) -> Tensor:
        """Second derivative of ``forces . q(strain)`` with the forces held, shape (n, c, c)."""
        if not len(strain):
            return strain.new_zeros(0, strain.shape[1], strain.shape[1])
        with torch.enable_grad():
            x = strain.detach().requires_grad_()
            work = (forces.detach() * self.coefficients(x)).sum()
            (slope,) = torch.autograd.grad(work, x, create_graph=True)
            rows = [
                torch.autograd.grad(slope[:, i].sum(), x, retain_graph=True)[0]
                for i in range(x.shape[1])
            ]
        return torch.stack(rows, 1)

    def differentiable_stress(self, strain: Tensor) -> Tensor:
        """Homogenised stress as a function that torch follows once, to the weights too.

        Parameters
        ----------
        strain : Tensor, shape (n, c)

        Returns
        -------
        Tensor, shape (n, c)
        """
        q, slopes = self.coefficients_and_slopes(strain)
        stress = self.points.laws.stress(strain[:, None] + self.gradient(q))
        mean = self.points.mean(stress)
        if self.homogenisation == "mean":
            return mean
        return mean + (self.forces(stress)[:, None] @ slopes)[:, 0] / self.points.volume

    # ---- fields --------------------------------------------------------------------------------

    def fields(self, strain: Any) -> LocalFields:
        """Fluctuation, local strain, and the laws' stress of it.

        Parameters
        ----------
        strain : Tensor or array, shape (n, c)

        Returns
        -------
        LocalFields
            The stress is that of the laws and not in equilibrium; see `residual`.
        """
        x = self._checked(strain)[0]
        with torch.no_grad():
            q = self.coefficients(x)
            local = x[:, None] + self.gradient(q)
            stress = self.points.laws.stress(local)
            back = self.points.inverse
            return LocalFields(self.fluctuation(q), local[:, back], stress[:, back])

    def residual(self, rve: Any, strain: Any) -> Tensor:
        """How far the stress fields are from discrete equilibrium.

        Parameters
        ----------
        rve : RVE
            The one that the surrogate stands for.
        strain : Tensor or array, shape (n, c)

        Returns
        -------
        Tensor, shape (n,)
            Nodal forces relative to what they would be if the stresses had random signs: of the
            size of one without any balance, round-off in equilibrium.
        """
        stress = self.fields(strain).stress
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (stress.shape[1], 1), generator=generator).double() * 2 - 1
        sizes = rve.divergence(stress.abs() * signs).norm(dim=1)
        found: Tensor = rve.divergence(stress).norm(dim=1) / sizes.clamp_min(1e-300)
        return found
