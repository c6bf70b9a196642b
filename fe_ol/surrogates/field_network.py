"""An operator network on the RVE's own mesh, from the strain to the fluctuation."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

import spon
from fe_ol.cell.places import cell_inputs, linear_fluctuations
from fe_ol.identity import compare_identities, identity
from fe_ol.snapshots import Snapshots, sample_strains
from fe_ol.surrogates import store
from fe_ol.surrogates.field_base import CellPoints, FieldSurrogate
from fe_ol.surrogates.field_loss import CellEnergy
from fe_ol.surrogates.laws import are_odd
from fe_ol.surrogates.optimise import Course, Training, train
from fe_ol.voigt import rest_strain
from spon.processors import Processor, create

__all__ = ["FieldNetwork"]

# Below this share of the box's radius the network's part grows quadratically.
_GATE = 0.1
# Fluctuations over radius and cell size: their strains are then of the size of the radius.
_SHARE = 0.1


class FieldNetwork(FieldSurrogate):
    """A `spon.OperatorNetwork` for the fluctuation.

    It reads the direction and the size of the strain as constant fields, and the material of each
    cell; its output is in the RVE's space, hence periodic (or whatever the boundary condition of
    the RVE asks for) exactly. With ``x = E - reference``, ``r = |x| / radius``::

        w(E) = L x + scale * r**2 / (r + 0.1) * N(x / |x|, r - 1, material),

    where L x is the fluctuation of the undeformed RVE: stress and tangent are right at zero strain
    by construction. **Its stress field is not in equilibrium**: `residual` measures by how much.
    Made by `fit` or `load`.

    Parameters
    ----------
    rve : RVE
    processor : Processor
        The learned part, see `spon.processors`.
    linear : Tensor, shape (c, V.dim())
        Fluctuations of the undeformed RVE for unit strains.
    odd : bool
        Whether the laws are.
    radius : float
    homogenisation : {"energy", "mean"}, optional
        See `FieldSurrogate`.

    Attributes
    ----------
    network : spon.OperatorNetwork
    course : Course or None
        Loss over the epochs, after `fit`.
    """

    course: Course | None = None

    def __init__(
        self,
        rve: Any,
        processor: Processor,
        linear: Tensor,
        odd: bool,
        radius: float,
        homogenisation: str = "energy",
    ) -> None:
        reference = rest_strain(rve.dim, rve.finite)
        super().__init__(identity(rve), reference, radius, CellPoints.of(rve), homogenisation)
        self.rve, self.linear, self.odd = rve, linear, bool(odd)
        strain, material, self._indicator = cell_inputs(rve)
        self._cells = len(self._indicator)
        self.network = spon.OperatorNetwork(
            [spon.Encoder(strain), spon.Encoder(material)],
            processor,
            spon.Decoder(rve.space),
            dtype=torch.float64,
        )
        self._scale = _SHARE * self.radius * rve.volume ** (1 / rve.dim)

    @classmethod
    def fit(
        cls,
        rve: Any,
        snapshots: Snapshots | None = None,
        radius: float | None = None,
        processor: Processor | None = None,
        energy: str = "potential",
        homogenisation: str = "energy",
        odd: bool | None = None,
        seed: int = 0,
        progress: bool = True,
        **training: Any,
    ) -> FieldNetwork:
        """Train on strains alone, or on snapshots.

        Parameters
        ----------
        rve : RVE
            Without laws of history.
        snapshots : Snapshots, optional
            With them the loss is the squared error of the fluctuation in the energy norm of the
            undeformed cell (the H1 seminorm, with the moduli), relative to its size; without, it
            is the energy of the cell.
        radius : float, optional
            Half the edge of the box of strains; that of the snapshots, or 0.04, by default.
        processor : Processor, optional
            ``spon.processors.Spectral(channels=16, layers=3, modes=64)`` by default.
        energy : {"potential", "published"}, optional
            What is made small without snapshots; see `CellEnergy`.
        homogenisation : {"energy", "mean"}, optional
        odd : bool, optional
            Odd by construction; found out from the laws by default.
        seed : int, optional
            Of weights, samples and their order.
        progress : bool, optional
        **training
            As `Training` takes them: samples, epochs, batch, rate, optimiser, refine.

        Returns
        -------
        FieldNetwork

        Raises
        ------
        NotImplementedError
            If a law has a history.
        TypeError, ValueError
            If an option is unknown or out of its range, or the snapshots are of another RVE.
        """
        options = Training(**({"samples": 100, "epochs": 60, "batch": 10} | training))
        if snapshots is not None:
            snapshots.require(rve)
        if radius is None:
            radius = 0.04 if snapshots is None else snapshots.radius
        reference, points = rest_strain(rve.dim, rve.finite), CellPoints.of(rve)
        if odd is None:
            odd = are_odd(rve.materials, reference, radius)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self = cls(
                rve,
                processor or spon.processors.Spectral(channels=16, layers=3, modes=64),
                linear_fluctuations(rve),
                odd,
                radius,
                homogenisation,
            )
        samples: tuple[Tensor, ...]
        if snapshots is None:
            loss = CellEnergy(points, reference, energy)
            strain = sample_strains(options.samples, len(reference), radius, seed + 7919)
            strain = reference + strain
            samples = (strain, loss.sizes(strain))
        else:
            rest = reference.expand(1, len(points.weights), -1)
            moduli = points.laws(rest)[1]
            samples = (snapshots.strain, snapshots.fluctuation)

        def energies(strain: Tensor, size: Tensor) -> Tensor:
            local = strain[:, None] + self.gradient(self.coefficients(strain))
            return loss(local, size).mean()

        def errors(strain: Tensor, fluctuation: Tensor) -> Tensor:
            wanted = self.gradient(fluctuation)
            error = self.gradient(self.coefficients(strain)) - wanted
            return (_work(points, moduli, error) / _work(points, moduli, wanted)).mean()

        loss_of = energies if snapshots is None else errors
        self.course = train(
            self.network, samples, loss_of, options, seed, "field network", progress
        )
        return self

    # ---- the network ---------------------------------------------------------------------------

    def coefficients(self, strain: Tensor) -> Tensor:
        """Fluctuations (n, V.dim()) of strains (n, c)."""
        x = strain - self.reference
        # Not quite zero at zero, where the direction has to be something.
        r = ((x / self.radius).square().sum(1, keepdim=True) + 1e-24).sqrt()
        direction = x / (r * self.radius)
        y = self._learned(torch.cat([direction, r - 1], 1))
        if self.odd:
            y = 0.5 * (y - self._learned(torch.cat([-direction, r - 1], 1)))
        return x @ self.linear + self._scale * r * r / (r + _GATE) * y

    def coefficients_and_slopes(self, strain: Tensor) -> tuple[Tensor, Tensor]:
        """The same with their derivatives (n, V.dim(), c) by the strain, in forward mode."""
        eye = torch.eye(self.components, dtype=strain.dtype)
        values, slopes = [], []
        for e in eye:
            along = e.expand_as(strain).contiguous()
            value, slope, *_ = torch.func.jvp(self.coefficients, (strain,), (along,))
            values.append(value)
            slopes.append(slope)
        return values[0], torch.stack(slopes, 2)

    def gradient(self, coefficients: Tensor) -> Tensor:
        """Strains (n, p, c) at the points ordered by tag."""
        found: Tensor = self.rve.gradient(coefficients)[:, self.points.order]
        return found

    def forces(self, stress: Tensor) -> Tensor:
        """Nodal forces (n, V.dim()) of stresses (n, p, c)."""
        found: Tensor = self.rve.divergence(stress[:, self.points.inverse])
        return found

    def fluctuation(self, coefficients: Tensor) -> Tensor:
        """The admissible part (n, V.dim()) of the network's output."""
        found: Tensor = self.rve._cell.admissible(coefficients)
        return found

    def _learned(self, features: Tensor) -> Tensor:
        n = len(features)
        if not n:
            return features.new_zeros(0, self.linear.shape[1])
        fields = features[:, None].expand(n, self._cells, -1).flatten(1)
        found: Tensor = self.network(fields, self._indicator.expand(n, -1))
        return found

    # ---- files ---------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one file; `load` reads it."""
        processor = self.network.processor
        facts = {
            "rve": self.source,
            "box": {"center": self.reference.tolist(), "radius": self.radius},
            "processor": {"name": processor.name, "config": processor.config()},
            "odd": self.odd,
            "homogenisation": self.homogenisation,
        }
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        store.write(path, type(self).__name__, facts, tensors | {"linear": self.linear})

    @classmethod
    def load(cls, path: str | os.PathLike[str], rve: Any | None = None) -> FieldNetwork:
        """Read what `save` wrote.

        Parameters
        ----------
        path : path
        rve : RVE
            The one of the file, whose mesh carries the network; it cannot be left out.

        Returns
        -------
        FieldNetwork

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If there is no RVE, the file holds something else, or was made for another RVE; the
            message says what differs.
        """
        if rve is None:
            raise ValueError(
                "A FieldNetwork lives on the mesh of its RVE: give it, as in "
                "FieldNetwork.load(path, rve)."
            )
        facts, tensors = store.read(path, cls.__name__)
        lines = compare_identities(facts["rve"], identity(rve))
        if lines:
            raise ValueError(f"The surrogate was made for another RVE: {'; '.join(lines)}.")
        self = cls(
            rve,
            create(facts["processor"]["name"], facts["processor"]["config"]),
            tensors["linear"],
            facts["odd"],
            facts["box"]["radius"],
            facts["homogenisation"],
        )
        self.network.load_state_dict(store.part(tensors, "network"))
        return self


def _work(points: CellPoints, moduli: Tensor, strain: Tensor) -> Tensor:
    """Twice the mean elastic energy (n,) of strains (n, p, c), not quite zero at zero."""
    stress = (moduli @ strain[..., None])[..., 0]
    return points.mean((stress * strain).sum(2, keepdim=True))[:, 0].clamp_min(1e-300)
