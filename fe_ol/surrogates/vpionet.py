"""VPIONet: a DeepONet for the fluctuation that makes the energy of the cell small."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from fe_ol.cell.places import Places, linear_fluctuations
from fe_ol.identity import identity
from fe_ol.snapshots import sample_strains
from fe_ol.surrogates import store
from fe_ol.surrogates.branch import Architecture, Branch
from fe_ol.surrogates.field_base import CellPoints, FieldSurrogate
from fe_ol.surrogates.field_loss import CellEnergy
from fe_ol.surrogates.laws import are_odd
from fe_ol.surrogates.optimise import Course, Training, train
from fe_ol.surrogates.trunk import Trunk
from fe_ol.voigt import rest_strain

__all__ = ["VPIONet"]

# Values of basis functions over the cell's size: their gradients are then of the size of one.
_SHARE = 0.1


class VPIONet(FieldSurrogate):
    """Variational physics-informed operator network (Eivazi et al. 2025), with improvements.

    ``w(E, x) = sum_k b_k(E) t_k(x)``: a branch network of the strain, a trunk network of the place,
    periodic by its features. The trunk's values at nodes are fluctuations in the RVE's own space,
    so that energies, stresses and equilibrium are those of the same discretisation. Trained on
    nothing but strains, by the energy of the cell. **Its stress field is not in equilibrium**, only
    near it: `residual` measures it. Made by `fit` or `load`.

    Parameters
    ----------
    branch : Branch
    trunk : Trunk or None
        The network that made the learned ones of the basis functions; not needed any more.
    basis : Tensor, shape (k, V.dim())
        Basis functions t_k.
    strains : Tensor, shape (k, p, c)
        Their strains at the points ordered by tag.
    points : CellPoints
    source : dict
    radius : float
    homogenisation : {"energy", "mean"}, optional
        See `FieldSurrogate`.

    Attributes
    ----------
    course : Course or None
        Loss over the epochs, after `fit`.
    """

    course: Course | None = None

    def __init__(
        self,
        branch: Branch,
        trunk: Trunk | None,
        basis: Tensor,
        strains: Tensor,
        points: CellPoints,
        source: dict[str, Any],
        radius: float,
        homogenisation: str = "energy",
    ) -> None:
        super().__init__(source, branch.reference, radius, points, homogenisation)
        self.branch, self.trunk, self.basis, self.strains = branch, trunk, basis, strains
        self._flat = strains.flatten(1)
        self._adjoint = (strains * points.weights[:, None]).flatten(1).T.contiguous()

    @classmethod
    def fit(
        cls,
        rve: Any,
        radius: float = 0.04,
        energy: str = "potential",
        homogenisation: str = "energy",
        functions: int = 32,
        width: int = 64,
        depth: int = 3,
        trunk_width: int = 64,
        trunk_depth: int = 3,
        periods: int = 2,
        interface: bool = True,
        linear: bool = True,
        odd: bool | None = None,
        seed: int = 0,
        progress: bool = True,
        **training: Any,
    ) -> VPIONet:
        """Train on strains alone.

        Parameters
        ----------
        rve : RVE
            Without laws of history.
        radius : float, optional
            Half the edge of the box of strains.
        energy : {"potential", "published"}, optional
            What is made small; see `CellEnergy`.
        homogenisation : {"energy", "mean"}, optional
        functions : int, optional
            Basis functions of the trunk.
        width, depth, trunk_width, trunk_depth : int, optional
            Hidden layers of the branch and of the trunk.
        periods, interface
            What the trunk knows of a place, as `Places` takes them.
        linear : bool, optional
            Add the fluctuations of the undeformed RVE as basis functions with their exact linear
            coefficients, for as many small solves as the strain has components: stress and tangent
            are then right at zero strain by construction.
        odd : bool, optional
            Odd by construction; found out from the laws by default.
        seed : int, optional
        progress : bool, optional
        **training
            As `Training` takes them: samples, epochs, batch, rate, optimiser, refine.

        Returns
        -------
        VPIONet

        Raises
        ------
        NotImplementedError
            If a law has a history.
        TypeError, ValueError
            If an option is unknown or out of its range.
        """
        options = Training(**({"samples": 200, "epochs": 80, "batch": 16, "rate": 6e-3} | training))
        for name, value in (("functions", functions), ("periods", periods)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        reference = rest_strain(rve.dim, rve.finite)
        c, points = len(reference), CellPoints.of(rve)
        loss = CellEnergy(points, reference, energy)
        places = Places(rve, periods, interface)
        if odd is None:
            odd = are_odd(rve.materials, reference, radius)
        fixed = (
            linear_fluctuations(rve)
            if linear
            else torch.zeros(0, int(rve.space.dim()), dtype=torch.float64)
        )
        k = functions + len(fixed)
        slope = torch.zeros(k, c, dtype=torch.float64)
        slope[functions:] = torch.eye(c, dtype=torch.float64)[: len(fixed)]
        architecture = Architecture(width=width, depth=depth, odd=odd, linear=linear)
        scale = torch.full((k,), float(radius), dtype=torch.float64)
        branch = Branch(architecture, reference, radius, slope, scale, seed)
        trunk = Trunk(
            places.features.shape[1], functions, rve.dim, trunk_width, trunk_depth, seed + 1
        )
        size = rve.volume ** (1 / rve.dim)
        fixed_strains = rve.gradient(fixed)[:, points.order]

        def basis() -> tuple[Tensor, Tensor]:
            learned = _SHARE * size * places.fluctuations(trunk(places.features))
            strains = rve.gradient(learned)[:, points.order]
            return torch.cat([learned, fixed]), torch.cat([strains, fixed_strains])

        def mean_energy(strain: Tensor, size: Tensor) -> Tensor:
            local = strain[:, None] + torch.tensordot(branch(strain), basis()[1], 1)
            return loss(local, size).mean()

        nets = nn.ModuleDict({"branch": branch, "trunk": trunk})
        strain = reference + sample_strains(options.samples, c, radius, seed + 7919)
        course = train(
            nets, (strain, loss.sizes(strain)), mean_energy, options, seed, "VPIONet", progress
        )
        with torch.no_grad():
            functions_, strains = basis()
        self = cls(
            branch, trunk, functions_, strains, points, identity(rve), radius, homogenisation
        )
        self.course = course
        return self

    def coefficients(self, strain: Tensor) -> Tensor:
        """Coefficients (n, k) of the basis functions."""
        found: Tensor = self.branch(strain)
        return found

    def coefficients_and_slopes(self, strain: Tensor) -> tuple[Tensor, Tensor]:
        """The same with their derivatives (n, k, c) by the strain."""
        return self.branch.value_and_jacobian(strain)

    def gradient(self, coefficients: Tensor) -> Tensor:
        """Strains (n, p, c) at the points ordered by tag."""
        return (coefficients @ self._flat).reshape(len(coefficients), *self.strains.shape[1:])

    def forces(self, stress: Tensor) -> Tensor:
        """Work (n, k) of stresses (n, p, c) on the basis functions."""
        return stress.flatten(1) @ self._adjoint

    def fluctuation(self, coefficients: Tensor) -> Tensor:
        """Coefficients (n, V.dim()) in the RVE's space."""
        return coefficients @ self.basis

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one file; `load` reads it."""
        facts = {
            "rve": self.source,
            "box": {"center": self.reference.tolist(), "radius": self.radius},
            "branch": self.branch.config(),
            "trunk": None if self.trunk is None else self.trunk.config(),
            "volume": self.points.volume,
            "homogenisation": self.homogenisation,
        }
        tensors = {f"branch.{k}": v for k, v in self.branch.state_dict().items()}
        if self.trunk is not None:
            tensors |= {f"trunk.{k}": v for k, v in self.trunk.state_dict().items()}
        back = self.points.inverse
        tensors |= {
            "basis": self.basis,
            "strains": self.strains[:, back],
            "weights": self.points.weights[back],
            "tags": self.points.tags[back],
        }
        store.write(path, type(self).__name__, facts, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str], rve: Any | None = None) -> VPIONet:
        """Read what `save` wrote.

        Parameters
        ----------
        path : path
        rve : RVE, optional
            Checked to be the one of the file. Needed where a law is not one of fe_ol's.

        Returns
        -------
        VPIONet

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it holds something else, or was made for another RVE; the message says what differs.
        """
        facts, tensors = store.read(path, cls.__name__)
        laws = store.laws_from_json(facts["rve"]["laws"]) if rve is None else rve.materials
        points = CellPoints(tensors["weights"], tensors["tags"], laws, facts["volume"])
        trunk = None
        if facts["trunk"] is not None:
            trunk = Trunk(**facts["trunk"])
            trunk.load_state_dict(store.part(tensors, "trunk"))
        self = cls(
            Branch.restored(facts["branch"], store.part(tensors, "branch")),
            trunk,
            tensors["basis"],
            tensors["strains"][:, points.order],
            points,
            facts["rve"],
            facts["box"]["radius"],
            facts["homogenisation"],
        )
        if rve is not None:
            self.require(rve)
        return self
