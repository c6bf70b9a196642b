"""The small network from a strain to mode coefficients, and its derivative without autograd."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Architecture", "Branch"]

_FEATURES = ("direction", "plain")
_HEADS = ("coefficients", "energy")
# Below this share of the box's radius the network's part grows quadratically.
_GATE = 0.1


@dataclass(frozen=True)
class Architecture:
    """What a branch network looks like.

    Attributes
    ----------
    width, depth : int
        Width and number of the hidden layers (swish).
    features : {"direction", "plain"}
        Direction and magnitude of the strain, since the map is nearly homogeneous of degree one;
        or the strain over the radius of the box, as published.
    linear : bool
        Add the exact linear law of the undeformed state, so that stress and tangent are right at
        zero strain by construction; the network's part grows like the square of the strain.
    odd : bool or None
        Odd by construction: a strain of the other sign gives the other sign. None: if the laws
        are odd, which is tried.
    scaling : bool
        One scale for each coefficient, or one for all.
    head : {"coefficients", "energy"}
        The homogenised stress is that of the stress modes; or the derivative of an energy that a
        third network gives, which makes the tangent symmetric.
    """

    width: int = 64
    depth: int = 3
    features: str = "direction"
    linear: bool = True
    odd: bool | None = None
    scaling: bool = True
    head: str = "coefficients"

    def __post_init__(self) -> None:
        if self.features not in _FEATURES:
            raise ValueError(f"features must be one of {_FEATURES}, got {self.features!r}.")
        if self.head not in _HEADS:
            raise ValueError(f"head must be one of {_HEADS}, got {self.head!r}.")
        if self.width < 1 or self.depth < 1:
            raise ValueError(
                f"width and depth must be at least 1, got {self.width} and {self.depth}."
            )


class Branch(nn.Module):
    """A network from a strain to coefficients.

    With ``x = strain - reference`` and ``r = |x| / radius``::

        y(x) = L x + g(r) * scale * N(features(x)),   g(r) = r**2 / (r + 0.1),

    or without L and g; ``N`` a multilayer perceptron with swish, made odd by
    ``(N(x) - N(-x)) / 2`` where that is asked for.

    Parameters
    ----------
    architecture : Architecture
        With `odd` decided.
    reference : Tensor, shape (c,)
    radius : float
    slope : Tensor, shape (k, c)
        The linear law L.
    scale : Tensor, shape (k,)
    seed : int, optional
    """

    reference: Tensor
    slope: Tensor
    scale: Tensor

    def __init__(
        self,
        architecture: Architecture,
        reference: Tensor,
        radius: float,
        slope: Tensor,
        scale: Tensor,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.architecture, self.radius = architecture, float(radius)
        self.register_buffer("reference", reference)
        self.register_buffer("slope", slope.contiguous())
        self.register_buffer("scale", scale)
        generator = torch.Generator().manual_seed(seed)
        c, k = len(reference), len(scale)
        first = c + 1 if architecture.features == "direction" else c
        sizes = [first, *[architecture.width] * architecture.depth, k]
        weights, biases = [], []
        for inner, outer in pairwise(sizes):
            random = torch.randn(outer, inner, generator=generator, dtype=torch.float64)
            weights.append(nn.Parameter(random / math.sqrt(inner)))
            biases.append(nn.Parameter(torch.zeros(outer, dtype=torch.float64)))
        self.weights, self.biases = nn.ParameterList(weights), nn.ParameterList(biases)

    def config(self) -> dict[str, Any]:
        """The architecture and the radius as JSON-able values."""
        return {"architecture": dataclasses.asdict(self.architecture), "radius": self.radius}

    @classmethod
    def restored(cls, config: dict[str, Any], state: dict[str, Tensor]) -> Branch:
        """A network from its `config` and its ``state_dict``."""
        net = cls(
            Architecture(**config["architecture"]),
            state["reference"],
            config["radius"],
            state["slope"],
            state["scale"],
        )
        net.load_state_dict(state)
        return net

    def forward(self, strain: Tensor) -> Tensor:
        """Coefficients.

        Parameters
        ----------
        strain : Tensor, shape (n, c)

        Returns
        -------
        Tensor, shape (n, k)
        """
        x = strain - self.reference
        y = self._perceptron(self._features(x))
        if self.architecture.odd:
            y = 0.5 * (y - self._perceptron(self._features(-x)))
        y = y * self.scale
        if self.architecture.linear:
            return x @ self.slope.T + self._gate(self._magnitude(x)) * y
        return y

    def value_and_jacobian(
        self, strain: Tensor, head: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Coefficients and their derivatives by the strain, in one pass of dense products.

        Parameters
        ----------
        strain : Tensor, shape (n, c)
        head : Tensor, shape (k, q), optional
            Combinations of the coefficients to return instead of them, which makes the last layer
            so much narrower.

        Returns
        -------
        value : Tensor, shape (n, q)
        jacobian : Tensor, shape (n, q, c)
        """
        n, c = strain.shape
        x = strain - self.reference
        last, bias = self.weights[-1] * self.scale[:, None], self.biases[-1] * self.scale
        slope = self.slope
        if head is not None:
            last, bias, slope = head.T @ last, head.T @ bias, head.T @ slope
        both = torch.cat((x, -x)) if self.architecture.odd else x
        hidden, slopes = self._features_and_slopes(both)
        for weight, offset in zip(self.weights[:-1], self.biases[:-1], strict=True):
            z = torch.addmm(offset, hidden, weight.T)
            gate = torch.sigmoid(z)
            hidden = z * gate
            derivative = gate + hidden * (1 - gate)
            slopes = slopes.flatten(0, 1) @ weight.T
            # Sizes as shapes, which torch.export can leave open.
            slopes = slopes.reshape(z.shape[0], c, weight.shape[0]) * derivative[:, None]
        if self.architecture.odd:
            # x and -x: the values are subtracted, the derivatives by x added.
            hidden, slopes = 0.5 * (hidden[:n] - hidden[n:]), 0.5 * (slopes[:n] + slopes[n:])
            bias = torch.zeros_like(bias)
        value = torch.addmm(bias, hidden, last.T)
        jacobian = (slopes.flatten(0, 1) @ last.T).reshape(n, c, len(last))
        jacobian = jacobian.transpose(1, 2)
        if not self.architecture.linear:
            return value, jacobian
        r = self._magnitude(x)
        factor = self._gate(r)
        gradient = (1 - (_GATE / (r + _GATE)) ** 2) * x / (r * self.radius**2)
        jacobian = factor[..., None] * jacobian + value[..., None] * gradient[:, None] + slope
        return x @ slope.T + factor * value, jacobian

    def _perceptron(self, x: Tensor) -> Tensor:
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = nn.functional.silu(torch.addmm(bias, x, weight.T))
        return torch.addmm(self.biases[-1], x, self.weights[-1].T)

    def _magnitude(self, x: Tensor) -> Tensor:
        # Not quite zero at zero, where the direction has to be something.
        return ((x / self.radius).square().sum(1, keepdim=True) + 1e-24).sqrt()

    def _features(self, x: Tensor) -> Tensor:
        scaled = x / self.radius
        if self.architecture.features == "plain":
            return scaled
        r = self._magnitude(x)
        return torch.cat((scaled / r, r - 1), 1)

    def _features_and_slopes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (n, f), and their derivatives (n, c, f) by the strain."""
        n, c = x.shape
        eye = torch.eye(c, dtype=x.dtype) / self.radius
        features = self._features(x)
        if self.architecture.features == "plain":
            return features, eye.expand(n, c, c)
        r, direction = self._magnitude(x)[..., None], features[:, :c]
        outer = direction[:, :, None] * direction[:, None] / self.radius
        return features, torch.cat(((eye - outer) / r, direction[..., None] / self.radius), 2)

    @staticmethod
    def _gate(r: Tensor) -> Tensor:
        return r * r / (r + _GATE)
