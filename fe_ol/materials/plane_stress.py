"""Plane stress: the thickness strain that makes the thickness stress vanish."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fe_ol.materials.law import EnergyLaw
from fe_ol.materials.protocol import Response
from fe_ol.voigt import checked_strain

__all__ = ["PlaneStress"]


@dataclass(frozen=True)
class PlaneStress:
    """A law in plane stress.

    At each point Newton's method finds the strain (or stretch) across the plane at which the
    stress across the plane vanishes; all points at once. The tangent is condensed.

    Parameters
    ----------
    law : EnergyLaw
    tolerance : float, optional
        Stress across the plane, relative to the largest stress or modulus times strain.
    max_iterations : int, optional

    Raises
    ------
    TypeError
        If `law` is not an `EnergyLaw`.
    """

    law: EnergyLaw
    tolerance: float = 1e-13
    max_iterations: int = 50

    dim: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not isinstance(self.law, EnergyLaw):
            raise TypeError(
                f"PlaneStress makes plane stress of a law, got {type(self.law).__name__}: give it "
                "one of fe_ol.materials, or another subclass of EnergyLaw."
            )

    @property
    def finite(self) -> bool:
        """Whether strains are deformation gradients."""
        return self.law.finite

    @property
    def history(self) -> bool:
        """Whether the answer depends on a state."""
        return self.law.history

    @property
    def _size(self) -> int:
        return 4 if self.law.finite else 3

    def sizes(self) -> tuple[int, ...]:
        """Numbers of strain components that the law takes."""
        return (self._size,)

    def state_size(self, strain_size: int = 3) -> int:
        """Number of state variables of a point."""
        return self.law.state_size(self._size + 1)

    def initial_state(self, n: int, strain_size: int = 3) -> Tensor | None:
        """State of `n` points at rest."""
        return self.law.initial_state(n, self._size + 1)

    def __call__(self, strain: Any, state: Tensor | None = None, tangent: bool = True) -> Response:
        """Stress and tangent of many points; see `EnergyLaw`.

        Raises
        ------
        ArithmeticError
            If no thickness strain is found at some point.
        """
        x, single = checked_strain(strain, self.sizes(), repr(self))
        before = self.law._checked_state(torch.cat([x, x[:, :1]], 1) if self.history else x, state)
        stress, modulus, after = self.columns(x.T, before, tangent)
        if not torch.isfinite(stress).all():
            bad = int((~torch.isfinite(stress).all(0)).nonzero()[0])
            raise ArithmeticError(
                f"{self!r}: no thickness strain was found for strain number {bad}, "
                f"{x[bad].tolist()}: use smaller steps."
            )
        moved = None if modulus is None else modulus.permute(2, 0, 1)
        stress, after = stress.T, None if after is None else after.T
        if single:
            stress = stress[0]
            moved, after = (None if v is None else v[0] for v in (moved, after))
        return Response(stress, moved, after)

    def thickness(self, strain: Any, state: Tensor | None = None) -> Tensor:
        """Strain (or stretch) across the plane.

        Parameters
        ----------
        strain : array, shape (n, c)
        state : Tensor, shape (n, s), optional

        Returns
        -------
        Tensor, shape (n,)
        """
        x, _ = checked_strain(strain, self.sizes(), repr(self))
        before = self.law._checked_state(torch.cat([x, x[:, :1]], 1) if self.history else x, state)
        return self._search(x.T, before)

    def columns(
        self, strain: Tensor, state: Tensor | None = None, tangent: bool = True
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The same with the components first; see `EnergyLaw.columns`.

        A point without a solution has the stress NaN.
        """
        with torch.no_grad():
            zz = self._search(strain, state)
        c = self._size
        stress, modulus, after = self.law.columns(torch.cat([strain, zz[None]]), state)
        assert modulus is not None
        if torch.is_grad_enabled() and (strain.requires_grad or stress.requires_grad):
            # One more step makes zz a function of the strain with the right derivative.
            zz = zz - stress[c] / modulus[c, c].detach()
            stress, modulus, after = self.law.columns(torch.cat([strain, zz[None]]), state)
            assert modulus is not None
        if not tangent:
            return stress[:c], None, after
        coupling = modulus[:c, c]
        condensed = modulus[:c, :c] - coupling[:, None] * (modulus[c, :c] / modulus[c, c])[None]
        return stress[:c], condensed, after

    def _search(self, strain: Tensor, state: Tensor | None) -> Tensor:
        c, rest = self._size, 1.0 if self.finite else 0.0
        zz = torch.full_like(strain[0], rest)
        best = torch.full_like(zz, torch.inf)
        for _ in range(self.max_iterations):
            stress, modulus, _ = self.law.columns(torch.cat([strain, zz[None]]), state)
            assert modulus is not None
            size = stress.abs().amax(0) + modulus[c, c] * 1e-3 * (strain.abs().amax(0) - rest).abs()
            off = stress[c].abs()
            done = (off <= self.tolerance * size) | (off == 0)
            if done.all():
                return zz
            # Round-off may lie above the tolerance: a point that no longer gains has arrived.
            done |= (off >= best) & (off <= 1e3 * self.tolerance * size)
            best = torch.minimum(best, off)
            move = torch.where(done, torch.zeros_like(zz), stress[c] / modulus[c, c])
            if done.all():
                return zz
            new = zz - move
            # A stretch stays positive: go half the way to zero at most.
            zz = torch.maximum(new, zz / 2) if self.finite else new
        return torch.where(done, zz, torch.full_like(zz, torch.nan))
