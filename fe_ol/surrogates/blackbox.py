"""A network from strain to homogenised stress, trained on RVE solves: DNN-FE2 as a baseline."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor

from fe_ol.identity import identity
from fe_ol.snapshots import sample_strains
from fe_ol.surrogates import store
from fe_ol.surrogates.base import Surrogate
from fe_ol.surrogates.branch import Architecture, Branch
from fe_ol.surrogates.laws import are_odd
from fe_ol.surrogates.optimise import Course, Training, train
from fe_ol.voigt import rest_strain

__all__ = ["BlackBox"]


class BlackBox(Surrogate):
    """Strain to stress, with a Sobolev loss on the tangent (Eivazi et al. 2023).

    It knows no fields, and nothing keeps it to equilibrium. Made by `fit` or `load`.

    Parameters
    ----------
    network : Branch
        Its coefficients are the components of the stress.
    source : dict
    radius : float

    Attributes
    ----------
    course : Course or None
        Loss over the epochs, after `fit`.
    """

    course: Course | None = None

    def __init__(self, network: Branch, source: dict[str, Any], radius: float) -> None:
        super().__init__(source, network.reference, radius)
        self.network = network

    @classmethod
    def fit(
        cls,
        rve: Any,
        strain: Tensor | None = None,
        n: int = 1000,
        radius: float = 0.04,
        tangent_weight: float = 1.0,
        odd: bool | None = None,
        width: int = 64,
        depth: int = 3,
        seed: int = 0,
        progress: bool = True,
        **training: Any,
    ) -> BlackBox:
        """Solve the RVE for samples and train on stress and tangent.

        Parameters
        ----------
        rve : Material
            The RVE; or another material with its attributes that is to be imitated.
        strain : Tensor, shape (n, c), optional
            The samples; a Latin hypercube of `n` in the box by default.
        n : int, optional
        radius : float, optional
            Half the edge of the box.
        tangent_weight : float, optional
            Weight of the tangent's relative error; zero trains on the stress alone.
        odd : bool, optional
            Odd by construction; found out from the laws by default.
        width, depth : int, optional
        seed : int, optional
        progress : bool, optional
        **training
            As `Training` takes them.

        Returns
        -------
        BlackBox
        """
        reference = rest_strain(rve.dim, rve.finite)
        if strain is None:
            strain = reference + sample_strains(n, len(reference), radius, seed)
        if odd is None:
            odd = are_odd(rve.materials, reference, radius)
        response = rve(strain)
        slope = rve(reference[None]).tangent[0]
        x = strain - reference
        r = x.norm(dim=1, keepdim=True) / radius
        scale = ((response.stress - x @ slope.T) / r).square().mean(0).sqrt()
        scale = scale.clamp_min(1e-9 * float(response.stress.abs().max()) + 1e-300)
        architecture = Architecture(width=width, depth=depth, odd=odd)
        network = Branch(architecture, reference, radius, slope, scale, seed)

        def loss(strain: Tensor, stress: Tensor, tangent: Tensor) -> Tensor:
            size = stress.square().sum(1).clamp_min(1e-300)
            if not tangent_weight:
                return ((network(strain) - stress).square().sum(1) / size).mean()
            value, jacobian = network.value_and_jacobian(strain)
            error = (value - stress).square().sum(1) / size
            slopes = (jacobian - tangent).square().sum((1, 2)) / tangent.square().sum((1, 2))
            return (error + tangent_weight * slopes).mean()

        self = cls(network, identity(rve), radius)
        samples = (strain, response.stress, response.tangent)
        options = Training(**({"batch": max(1, len(strain) // 4)} | training))
        self.course = train(network, samples, loss, options, seed, "black box", progress)
        return self

    def _respond(self, strain: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.value_and_jacobian(strain)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one file; `load` reads it."""
        box = {"center": self.reference.tolist(), "radius": self.radius}
        facts = {"rve": self.source, "box": box, "network": self.network.config()}
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        store.write(path, type(self).__name__, facts, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str], rve: Any | None = None) -> BlackBox:
        """Read what `save` wrote; an RVE that is given must be the one of the file."""
        facts, tensors = store.read(path, cls.__name__)
        network = Branch.restored(facts["network"], store.part(tensors, "network"))
        self = cls(network, facts["rve"], facts["box"]["radius"])
        if rve is not None:
            self.require(rve)
        return self
