"""Frame indifference by construction: a material is asked for stretches, and turned with the body.

A rotation after a deformation turns the stress and changes nothing else, ``P(R F) = R P(F)``, for
laws, for cells of them, and for what a surrogate ought to learn. With the polar decomposition
``F = R U`` it is enough to know the material for the right stretch tensors U (Truesdell and Noll
1965, section 19): six components instead of nine, and no error however far the body turns.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fe_ol.materials.protocol import Response
from fe_ol.surrogates.base import LocalFields
from fe_ol.voigt import checked_strain

__all__ = ["Objective"]

# What a load step tells a material (`Guarded` for example), with strains and without.
_TOLD, _PASSED = ("review", "converged"), ("rejected", "forget", "learn", "report")


class _Polar(NamedTuple):
    """F = R U, and the spectral decomposition of U."""

    gradient: Tensor
    rotation: Tensor
    stretch: Tensor
    values: Tensor
    vectors: Tensor


@dataclasses.dataclass(eq=False)
class Objective:
    """A material of finite strain that turns with the body exactly.

    Parameters
    ----------
    material : Material
        Of finite strain and without history: a surrogate made of snapshots with
        ``stretches=True``, a `Guarded` one, an RVE, a law. It is asked for symmetric deformation
        gradients only.

    Raises
    ------
    ValueError
        If the material is one of small strains, which know no rotations.
    NotImplementedError
        If it has a history.
    """

    material: Any

    finite = True
    history = False

    def __post_init__(self) -> None:
        name = type(self.material).__name__
        if not self.material.finite:
            raise ValueError(
                f"Objective is for deformation gradients, {name} takes small strains, which know "
                "no rotations: use it as it is."
            )
        if self.material.history:
            raise NotImplementedError(
                f"{name} has a history, whose state would have to be turned, too."
            )

    @property
    def dim(self) -> int | None:
        """As the material's."""
        dim: int | None = self.material.dim
        return dim

    def initial_state(self, n: int) -> Any:
        """As the material's."""
        return self.material.initial_state(n)

    def __call__(self, strain: Any, state: Any = None, tangent: bool = True) -> Response:
        """First Piola stress and its derivative.

        Parameters
        ----------
        strain : Tensor or array, shape (n, c) or (c,)
            Deformation gradients, row by row.
        state : Tensor, optional
            For the material (where an RVE starts its solve).
        tangent : bool, optional

        Returns
        -------
        Response

        Raises
        ------
        ArithmeticError
            If a deformation gradient has a determinant that is not positive.
        """
        x, single = checked_strain(strain, (4, 9), type(self).__name__)
        response = self._asked(self.material, x.detach(), state, tangent)
        if single:
            slope = response.tangent
            return Response(response.stress[0], None if slope is None else slope[0], response.state)
        return response

    def __getattr__(self, name: str) -> Any:
        # What the material has not, this has not: load steps ask by name. `material` itself is not
        # there yet while a copy is made.
        if name == "material" or name not in (*_TOLD, *_PASSED, "trial", "pull_back"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        own = getattr(self.material, name)
        if name in _PASSED:
            return own
        if name == "trial":
            return lambda strain, state=None: self._asked(own, strain, state, True)
        if name == "pull_back":
            return lambda strain, seed, tensors: self._pulled_back(own, strain, seed, tensors)
        return lambda strain, state=None: own(polar(strain).stretch.flatten(1), state)

    def differentiable_stress(self, strain: Tensor) -> Tensor:
        """Stress as a function of the weights or parameters that torch follows.

        Parameters
        ----------
        strain : Tensor, shape (n, c)
            Nothing is derived by it.

        Returns
        -------
        Tensor, shape (n, c)
        """
        frame = polar(strain.detach())
        own = getattr(self.material, "differentiable_stress", None)
        stretch = frame.stretch.flatten(1)
        stress = self.material(stretch).stress if own is None else own(stretch)
        return turned(frame.rotation, stress)

    def estimate(self, strain: Any) -> Tensor:
        """Estimated relative error of the stress, of materials that have an estimate.

        Parameters
        ----------
        strain : Tensor or array, shape (n, c)

        Returns
        -------
        Tensor, shape (n,)
        """
        found: Tensor = self.material.estimate(self.stretches(strain))
        return found

    def fields(self, strain: Any) -> LocalFields:
        """Fluctuation, local deformation gradient and local stress of a surrogate, turned.

        Parameters
        ----------
        strain : Tensor or array, shape (n, c)

        Returns
        -------
        LocalFields
        """
        x, _ = checked_strain(strain, (4, 9), type(self).__name__)
        frame = polar(x.detach())
        fields = self.material.fields(frame.stretch.flatten(1))
        n, d = len(frame.rotation), frame.rotation.shape[1]
        nodes = fields.fluctuation.reshape(n, -1, d)
        return LocalFields(
            torch.einsum("nij,npj->npi", frame.rotation, nodes).reshape(n, -1),
            turned(frame.rotation, fields.strain),
            turned(frame.rotation, fields.stress),
        )

    def stretches(self, strain: Any) -> Tensor:
        """The right stretch tensors, for which the material is asked.

        Parameters
        ----------
        strain : Tensor or array, shape (n, c) or (c,)

        Returns
        -------
        Tensor, shape (n, c)
            Symmetric and positive definite, row by row.
        """
        x, _ = checked_strain(strain, (4, 9), type(self).__name__)
        return polar(x.detach()).stretch.flatten(1)

    def _asked(self, ask: Any, strain: Tensor, state: Any, tangent: bool) -> Response:
        with torch.no_grad():
            frame = polar(strain)
            stretch = frame.stretch.flatten(1)
            response = ask(stretch) if state is None else ask(stretch, state)
            stress = turned(frame.rotation, response.stress)
            slope = _slope(frame, response) if tangent else None
        return Response(stress, slope, response.state)

    def _pulled_back(self, own: Any, strain: Tensor, seed: Tensor, tensors: Any) -> Any:
        frame = polar(strain)
        back = turned(frame.rotation.transpose(1, 2), seed)
        return own(frame.stretch.flatten(1), back, tensors)


def polar(strain: Tensor) -> _Polar:
    """Polar decomposition of deformation gradients, shape (n, c).

    Raises
    ------
    ArithmeticError
        If a determinant is not positive.
    """
    d = math.isqrt(strain.shape[1])
    gradient = strain.reshape(-1, d, d)
    bad = ~(torch.linalg.det(gradient) > 0)
    if bad.any():
        first = strain[bad][0]
        raise ArithmeticError(
            f"{int(bad.sum())} of {len(strain)} deformation gradients turn the body inside out, "
            f"the first is {[float(f'{v:.4g}') for v in first]}."
        )
    squares, vectors = torch.linalg.eigh(gradient.transpose(1, 2) @ gradient)
    values = squares.sqrt()
    stretch = (vectors * values[:, None]) @ vectors.transpose(1, 2)
    rotation = gradient @ (vectors / values[:, None]) @ vectors.transpose(1, 2)
    return _Polar(gradient, rotation, stretch, values, vectors)


def turned(rotation: Tensor, tensors: Tensor) -> Tensor:
    """``R T`` for tensors T row by row, shape (n, c) or (n, p, c)."""
    n, d = rotation.shape[:2]
    product = rotation[:, None] @ tensors.reshape(n, -1, d, d)
    return product.reshape(tensors.shape)


def _slope(frame: _Polar, response: Response) -> Tensor:
    """Derivative of ``R S(U)`` by F, from that of S by U.

    The derivative of U follows from ``U dU + dU U = dF^T F + F^T dF`` in the eigenvectors of U,
    where the sums of eigenvalues on the left are never zero, and that of R from ``F = R U``.
    """
    assert response.tangent is not None
    n, d = frame.values.shape
    c = d * d
    v, r = frame.vectors[:, None], frame.rotation[:, None]
    change = torch.eye(c, dtype=torch.float64).reshape(1, c, d, d)
    half = (frame.gradient[:, None] @ v).transpose(2, 3) @ (change @ v)
    sums = frame.values[:, :, None] + frame.values[:, None]
    stretch = v @ ((half + half.transpose(2, 3)) / sums[:, None]) @ v.transpose(2, 3)
    inverse = (v / frame.values[:, None, None]) @ v.transpose(2, 3)
    rotation = (change - r @ stretch) @ inverse
    own = torch.einsum("nsu,nku->nks", response.tangent, stretch.reshape(n, c, c))
    stress = response.stress.reshape(n, 1, d, d)
    slope = rotation @ stress + r @ own.reshape(n, c, d, d)
    return slope.reshape(n, c, c).transpose(1, 2).contiguous()
