"""A network for the homogenised energy: the tangent of its stress is symmetric by construction."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Potential"]

# Strains below this share of the radius count as small.
_SMALL = 0.1


class Potential(nn.Module):
    """An energy of the strain, with its gradient and Hessian in dense products.

    With ``u = (strain - reference) / radius`` and ``q = |u|**2``::

        energy = x C x / 2 + scale * q**2 / (q + 0.01) * N(u, u / sqrt(q + 0.01)),

    ``N`` a multilayer perceptron with swish, even (``(N(u) + N(-u)) / 2``) for odd laws. Stress
    and tangent are those of the linear law at zero strain, by construction.

    Parameters
    ----------
    width, depth : int
        Of the hidden layers.
    even : bool
    reference : Tensor, shape (c,)
    radius : float
    elastic : Tensor, shape (c, c)
        Tangent of the undeformed state.
    scale : float
        Typical energy that the network has to add.
    seed : int, optional
    """

    reference: Tensor
    elastic: Tensor
    scale: Tensor

    def __init__(
        self,
        width: int,
        depth: int,
        even: bool,
        reference: Tensor,
        radius: float,
        elastic: Tensor,
        scale: float,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.width, self.depth, self.even, self.radius = width, depth, even, float(radius)
        self.register_buffer("reference", reference)
        self.register_buffer("elastic", 0.5 * (elastic + elastic.T))
        self.register_buffer("scale", torch.tensor(float(scale), dtype=torch.float64))
        generator = torch.Generator().manual_seed(seed)
        weights, biases = [], []
        for inner, outer in pairwise([2 * len(reference), *[width] * depth, 1]):
            random = torch.randn(outer, inner, generator=generator, dtype=torch.float64)
            weights.append(nn.Parameter(random / math.sqrt(inner)))
            biases.append(nn.Parameter(torch.zeros(outer, dtype=torch.float64)))
        self.weights, self.biases = nn.ParameterList(weights), nn.ParameterList(biases)

    def config(self) -> dict[str, Any]:
        """Sizes as JSON-able values."""
        return {
            "width": self.width,
            "depth": self.depth,
            "even": self.even,
            "radius": self.radius,
        }

    @classmethod
    def restored(cls, config: dict[str, Any], state: dict[str, Tensor]) -> Potential:
        """A network from its `config` and its ``state_dict``."""
        net = cls(
            **config,
            reference=state["reference"],
            elastic=state["elastic"],
            scale=float(state["scale"]),
        )
        net.load_state_dict(state)
        return net

    def forward(self, strain: Tensor) -> Tensor:
        """Stress, differentiable in the weights.

        Parameters
        ----------
        strain : Tensor, shape (n, c)

        Returns
        -------
        Tensor, shape (n, c)
        """
        return self._evaluate(strain, hessian=False)[1]

    def respond(self, strain: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Energy (n,), stress (n, c) and tangent (n, c, c)."""
        energy, stress, tangent = self._evaluate(strain, hessian=True)
        assert tangent is not None
        return energy, stress, tangent

    def _evaluate(self, strain: Tensor, hessian: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        x = strain - self.reference
        n, u = x.shape[0], x / self.radius
        value, slope, curvature = self._perceptron(torch.cat((u, -u)) if self.even else u, hessian)
        if self.even:
            value = 0.5 * (value[:n] + value[n:])
            slope = 0.5 * (slope[:n] - slope[n:])
            if curvature is not None:
                curvature = 0.5 * (curvature[:n] + curvature[n:])
        # The gate w(q) and its derivatives, with the chain rule q = u.u.
        q, s = u.square().sum(1, keepdim=True), _SMALL**2
        w, w1, w2 = q * q / (q + s), 1 - (s / (q + s)) ** 2, 2 * s * s / (q + s) ** 3
        gate_slope = 2 * w1 * u
        linear = x @ self.elastic
        energy = 0.5 * (x * linear).sum(1) + self.scale * (w * value)[:, 0]
        stress = linear + self.scale / self.radius * (w * slope + value * gate_slope)
        if curvature is None:
            return energy, stress, None
        eye = torch.eye(u.shape[1], dtype=u.dtype)
        gate_curvature = 2 * w1[..., None] * eye + 4 * w2[..., None] * _outer(u, u)
        mixed = _outer(slope, gate_slope)
        total = w[..., None] * curvature + mixed + mixed.transpose(1, 2)
        total = total + value[..., None] * gate_curvature
        return energy, stress, self.elastic + self.scale / self.radius**2 * total

    def _perceptron(self, u: Tensor, hessian: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Value (n, 1), gradient (n, c) and Hessian (n, c, c) of N by u."""
        n, c = u.shape
        q = u.square().sum(1, keepdim=True) + _SMALL**2
        h0, h1, h2 = q**-0.5, -0.5 * q**-1.5, 0.75 * q**-2.5
        hidden = torch.cat((u, h0 * u), 1)
        derivatives, curvatures = [], []
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            z = torch.addmm(bias, hidden, weight.T)
            gate = torch.sigmoid(z)
            hidden = z * gate
            derivatives.append(gate + hidden * (1 - gate))
            curvatures.append(gate * (1 - gate) * (2 + z * (1 - 2 * gate)))
        value = torch.addmm(self.biases[-1], hidden, self.weights[-1].T)
        adjoint, adjoints = self.weights[-1].expand(n, -1), []
        for weight, derivative in zip(
            reversed(self.weights[:-1]), reversed(derivatives), strict=True
        ):
            adjoints.append(adjoint)
            adjoint = (adjoint * derivative) @ weight
        first, second = adjoint[:, :c], adjoint[:, c:]
        along = (second * u).sum(1, keepdim=True)
        slope = first + h0 * second + 2 * h1 * along * u
        if not hessian:
            return value, slope, None
        eye = torch.eye(c, dtype=u.dtype)
        mixed = _outer(second, u)
        curvature = 2 * h1[..., None] * (mixed + mixed.transpose(1, 2) + along[..., None] * eye)
        curvature = curvature + (4 * h2 * along)[..., None] * _outer(u, u)
        direction = h0[..., None] * eye + 2 * h1[..., None] * _outer(u, u)
        tangents = torch.cat((eye.expand(n, c, c), direction), 2)
        layers = zip(self.weights[:-1], derivatives, curvatures, reversed(adjoints), strict=True)
        for weight, derivative, bend, back in layers:
            tangents = (tangents.reshape(n * c, weight.shape[1]) @ weight.T).reshape(
                n, c, len(weight)
            )
            curvature = curvature + (tangents * (bend * back)[:, None]) @ tangents.transpose(1, 2)
            tangents = tangents * derivative[:, None]
        return value, slope, curvature


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a[:, :, None] * b[:, None]
