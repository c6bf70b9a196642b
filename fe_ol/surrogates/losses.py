"""What EquiNO's networks are trained to do: the reduced solutions, or the smallest mismatch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from fe_ol.surrogates.branch import Architecture
from fe_ol.surrogates.optimise import Training
from fe_ol.surrogates.potential import Potential
from fe_ol.surrogates.reduced import ReducedModel

__all__ = ["Losses", "losses_for", "potential_for"]

Task = tuple[str, nn.Module, Sequence[Tensor], Callable[..., Tensor]]


class Losses(Protocol):
    """Scales of the networks' outputs, and what is to be trained."""

    def scales(self, radius: float) -> dict[str, Tensor]:
        """Scale of each coefficient that the networks give."""
        ...

    def tasks(self, nets: nn.ModuleDict) -> Iterator[Task]:
        """Name, networks, samples and loss of each training."""
        ...


def losses_for(
    model: ReducedModel, strain: Tensor, architecture: Architecture, training: Training
) -> Losses:
    """The losses that a training asks for.

    Parameters
    ----------
    model : ReducedModel
    strain : Tensor, shape (n, c)
        The samples.
    architecture : Architecture
    training : Training

    Returns
    -------
    Losses
    """
    kind = _Solutions if training.target == "solutions" else _Mismatch
    return kind(model, strain, architecture, training)


def potential_for(
    model: ReducedModel,
    strain: Tensor,
    radius: float,
    architecture: Architecture,
    training: Training,
    seed: int,
) -> tuple[Potential, Task]:
    """A network for the energy, and its training on the stresses of the reduced solutions.

    Parameters
    ----------
    model : ReducedModel
    strain : Tensor, shape (n, c)
        The samples.
    radius : float
    architecture : Architecture
    training : Training
    seed : int

    Returns
    -------
    potential : Potential
    task : tuple
        Name, network, samples and loss of the training.
    """
    elastic = model.solve(model.reference[None], steps=0).tangent[0]
    stress = model.solve(strain).stress
    x = strain - model.reference
    rest = (stress - x @ elastic).square().sum(1).mean().sqrt()
    potential = Potential(
        architecture.width,
        architecture.depth,
        bool(architecture.odd),
        model.reference,
        radius,
        elastic,
        max(float(rest) * radius, 1e-300),
        seed,
    )
    size = stress.square() @ model.factors
    weight = 1 / (size.clamp_min(1e-300) if training.relative else size.mean().expand(len(size)))

    def loss(strain: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
        error: Tensor = potential(strain) - wanted
        return ((error.square() @ model.factors) * weight).mean()

    return potential, ("potential", potential, (strain, stress, weight), loss)


class _Base:
    def __init__(
        self, model: ReducedModel, strain: Tensor, architecture: Architecture, training: Training
    ) -> None:
        self.model, self.strain = model, strain
        self.architecture, self.training = architecture, training

    def _scales(self, radius: float, strain: Tensor, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        """Root mean squares of what the networks have to add to the linear law."""
        x = strain - self.model.reference
        r = (x.square().sum(1, keepdim=True)).sqrt() / radius
        scales = {}
        for name, y, slope in zip(
            ("fluctuation", "stress"), (a, b), self.model.linear, strict=True
        ):
            rest = (y - x @ slope.T) / r if self.architecture.linear else y
            scale = rest.square().mean(0).sqrt()
            if not self.architecture.scaling:
                scale = scale.square().mean().sqrt().expand(len(scale)).clone()
            # A mode that no sample excites, and a linear RVE, leave nothing to learn.
            scales[name] = scale.clamp_min(1e-9 * float(y.square().mean().sqrt()) + 1e-300)
        return scales


class _Solutions(_Base):
    """Least squares to the reduced solutions, in the norms that matter.

    Errors of `b` are weighed by the squared L2 norm of the stress and, `macro_weight` times, by
    that of the homogenised stress; errors of `a` by the energy of the undeformed state.
    """

    def __init__(
        self, model: ReducedModel, strain: Tensor, architecture: Architecture, training: Training
    ) -> None:
        super().__init__(model, strain, architecture, training)
        state = model.solve(strain)
        self.a, self.b = state.a, state.b
        means = model.means * model.factors.sqrt()
        eye = torch.eye(len(means), dtype=torch.float64)
        # For orthonormal modes the identity is their Gram matrix.
        self._norms = {
            "fluctuation": torch.linalg.cholesky(model.stiffness),
            "stress": torch.linalg.cholesky(
                eye / model.volume + training.macro_weight * means @ means.T
            ),
        }
        macro = (state.stress.square() @ model.factors).clamp_min(1e-300)
        x = strain - model.reference
        energy = (x * (x @ self._elastic())).sum(1)
        self._weights = {"fluctuation": 1 / energy, "stress": 1 / macro}
        if not training.relative:
            self._weights = {
                "fluctuation": (1 / energy.mean()).expand(len(x)),
                "stress": (1 / macro.mean()).expand(len(x)),
            }

    def _elastic(self) -> Tensor:
        zero = self.model.solve(self.model.reference[None], steps=0)
        return zero.tangent[0] * self.model.volume

    def scales(self, radius: float) -> dict[str, Tensor]:
        return self._scales(radius, self.strain, self.a, self.b)

    def tasks(self, nets: nn.ModuleDict) -> Iterator[Task]:
        targets = {"fluctuation": self.a, "stress": self.b}
        for name, net in nets.items():
            norm = self._norms[name]

            def loss(
                strain: Tensor,
                wanted: Tensor,
                weight: Tensor,
                net: nn.Module = net,
                norm: Tensor = norm,
            ) -> Tensor:
                error: Tensor = (net(strain) - wanted) @ norm
                return (error.square().sum(1) * weight).mean()

            yield name, net, (self.strain, targets[name], self._weights[name]), loss


class _Mismatch(_Base):
    """The published loss: nothing is known but the strains (Eivazi et al. 2025, eq. 22)."""

    def scales(self, radius: float) -> dict[str, Tensor]:
        # Some reduced solutions, for the size of the coefficients only.
        few = self.strain[:64]
        state = self.model.solve(few)
        return self._scales(radius, few, state.a, state.b)

    def tasks(self, nets: nn.ModuleDict) -> Iterator[Task]:
        model, training = self.model, self.training
        first = model.solve(self.strain[:64])
        typical = (first.stress.square() @ model.factors).mean() * model.volume

        def loss(strain: Tensor) -> Tensor:
            law = model.laws.stress(model.strain(strain, nets["fluctuation"](strain)))
            b = nets["stress"](strain)
            misfit = model.contraction(law - model.combine(b))
            if training.macro_weight:
                mean = torch.einsum("p,npi->ni", model.weights, law) / model.volume
                gap = (mean - b @ model.means).square() @ model.factors
                misfit = misfit + training.macro_weight * model.volume * gap
            if training.relative:
                size = model.contraction(law.detach())
                return (misfit / (size + 1e-12 * typical)).mean()
            return misfit.mean() / typical

        yield "both", nets, (self.strain,), loss
