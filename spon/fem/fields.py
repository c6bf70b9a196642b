"""Divergence-free and curl-free fields: potential, harmonic fields, and particular fields."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from firedrake import (
    Constant,
    Function,
    TestFunction,
    TrialFunction,
    VectorFunctionSpace,
    dx,
    inner,
)
from scipy.sparse.linalg import splu
from torch import Tensor

from spon.fem.complexes import (
    closed_pieces,
    complex_of,
    constants,
    harmonic_fields,
    measure_of,
    potential_conditions,
)
from spon.fem.constraints import essential_values
from spon.fem.direct import Direct, definite, saddle
from spon.fem.maps import sparse_map
from spon.fem.spaces import mesh_of, to_tensor
from spon.promises import GradientTraces, Particular, Potential, Projection
from spon.sparse import SparseMap

__all__ = ["Kernel"]


class Kernel:
    """All fields with zero divergence (or curl) and zero traces where those are prescribed.

    Parameters
    ----------
    U : FunctionSpace
    bcs : sequence of DirichletBC on `U`
    divergence : bool
        Divergence or curl.
    through : {"potential", "projection"}, optional

    Attributes
    ----------
    latent : FunctionSpace
        Of the potential, and of a vector field beside it where there are harmonic fields; `U`
        for a projection.
    bcs : list of DirichletBC on `latent`
    potential : Potential or Projection
    particular : Particular, GradientTraces or None
        None where nothing is prescribed.
    unreached : int
        Number of independent harmonic fields whose amount cannot be read off that field.
    """

    potential: Potential | Projection

    def __init__(
        self, U: Any, bcs: Sequence[Any], divergence: bool, through: str = "potential"
    ) -> None:
        self.complex = s = complex_of(U, divergence)
        self.divergence = divergence
        self.gdim = int(mesh_of(U).geometric_dimension)
        self.latent = s.potential
        self.bcs = potential_conditions(s.potential, bcs)
        self.trace, self.traces = essential_values(U, bcs)
        self.fixed, _ = essential_values(s.potential, self.bcs)
        self.free = np.flatnonzero(~self.trace)
        leak = s.first[self.trace][:, ~self.fixed]
        if leak.nnz and abs(leak).max() > 1e-10 * abs(s.first).max():
            raise ValueError(
                "The prescribed traces are not those of whole facets: give boundary tags to the "
                "conditions, not parts of them."
            )
        # The derivative is onto its space, up to a constant in closed pieces, but for curls in 3D.
        self.saddle: Particular | None = None
        if divergence or self.gdim == 2:
            self.closed = closed_pieces(s, self.trace)
            self.saddle = self._saddle()
        self.particular: Particular | GradientTraces | None = self.saddle
        if self.saddle is None and self.trace.any():
            data = (s.first, s.mass, self.trace, self.fixed)
            self.particular = GradientTraces(*data, factorise=Direct)
        if through == "projection":
            if self.saddle is None:
                raise ValueError(
                    "Curls in 3D are not projected (their moments are not independent): leave out "
                    'through="projection".'
                )
            self.latent, self.bcs, self.unreached = U, list(bcs), 0
            self.potential = Projection(self.saddle, SparseMap(s.mass))
            return
        self.harmonic = self._harmonic()
        reading, self.unreached = np.zeros((0, s.potential.dim())), 0
        if self.harmonic.shape[1]:
            # A potential is zero on walls, where it would have to tell these amounts, and knows
            # nothing of holes without walls: a field of its own, of which they are projections.
            # Those do not depend on the basis, so that weights mean the same on every mesh.
            second = VectorFunctionSpace(mesh_of(U), *_continuous(s.potential))
            self.latent = s.potential * second
            self.bcs = potential_conditions(self.latent.sub(0), bcs)
            form = inner(TrialFunction(second), TestFunction(U)) * dx
            moments = sparse_map(form).to_scipy()
            reading = (moments.T @ self.harmonic).T
            # What cancels is zero.
            size = np.linalg.norm(abs(moments).T @ np.abs(self.harmonic))
            rank = int(np.linalg.matrix_rank(reading, tol=1e-8 * size))
            self.unreached = self.harmonic.shape[1] - rank
            reading = np.hstack([np.zeros((len(reading), s.potential.dim())), reading])
        idle = reading.shape[1] - s.potential.dim()
        self.potential = Potential(
            SparseMap(sp.hstack([s.first, sp.csr_matrix((U.dim(), idle))], format="csr")),
            torch.from_numpy(np.append(~self.fixed, np.zeros(idle, bool))),
            torch.from_numpy(self.harmonic),
            torch.from_numpy(reading),
        )

    @property
    def dimension(self) -> int:
        """Dimension of the space, where its derivative maps onto the last one of the sequence."""
        return len(self.free) - self.complex.last.dim() + self.closed.shape[0]

    def _saddle(self) -> Particular:
        s, free = self.complex, self.free
        # One equation of each closed piece follows from the others.
        rows = np.setdiff1d(np.arange(s.last.dim()), self.closed.indices[self.closed.indptr[:-1]])
        down = s.second[rows]
        system = sp.bmat(
            [[s.mass[free][:, free], down[:, free].T], [down[:, free], None]], format="csc"
        )
        held = sp.csr_matrix(sp.vstack([s.mass[free], down]) @ sp.diags(self.trace.astype(float)))
        w = TestFunction(s.last)
        moments = sparse_map(inner(TrialFunction(s.last), w) * dx).to_scipy()
        load = sp.vstack([sp.csr_matrix((len(free), s.last.dim())), moments[rows]], format="csr")
        normal = self.closed @ s.second @ sp.diags(self.trace.astype(float))
        weights = self.closed @ moments
        shares = sp.diags(1.0 / np.asarray(weights.sum(axis=1)).ravel()) @ weights
        still = sp.csr_matrix((len(free), self.closed.shape[0]))
        balance = SparseMap(sp.hstack([weights, -normal], format="csr"))
        even = SparseMap(sp.vstack([still, shares[:, rows].T], format="csr"))
        trace = torch.from_numpy(self.trace)
        return Particular(
            system, SparseMap(held), SparseMap(load), torch.from_numpy(free), balance, even, trace,
            s.what, factorise=splu if self.gdim == 2 else saddle,
        )  # fmt: skip

    def _harmonic(self) -> np.ndarray:
        s = self.complex
        if self.gdim == 2:
            # The range of the potentials is as large as their number, less the constants.
            reached = int((~self.fixed).sum()) - constants(s, self.fixed)
            if reached == self.dimension:
                return np.zeros((s.field.dim(), 0))
        found = harmonic_fields(s, self.trace, self.fixed, self._stiffness())
        if self.saddle is None or not found.shape[1]:
            return found
        # Inverse iteration leaves their derivative at the root of round-off.
        for _ in range(2):
            found = self.smallest(s.mass @ found)
        r = np.linalg.cholesky(found.T @ (s.mass @ found))
        return np.linalg.solve(r, found.T).T

    def smallest(self, moments: np.ndarray) -> np.ndarray:
        """Riesz representations in the space: its fields with these moments.

        Parameters
        ----------
        moments : array, shape (dim, m)

        Returns
        -------
        array, shape (dim, m)
        """
        result = np.zeros(moments.shape)
        if self.saddle is not None:
            right = np.zeros((self.saddle.inverse.size, moments.shape[1]))
            right[: len(self.free)] = moments[self.free]
            lu, system = self.saddle.inverse, self.saddle.system
            y = lu(torch.from_numpy(right))
            y = y + lu(torch.from_numpy(right) - system(y))
            result[self.free] = y.numpy()[: len(self.free)]
            return result
        up = self.complex.first[:, ~self.fixed]
        result = up @ self._stiffness().solve(up.T @ moments)
        return result + self.harmonic @ (self.harmonic.T @ moments)

    def _stiffness(self) -> Any:
        """Factorisation of the energy of the potentials, made regular."""
        s = self.complex
        up = s.first[:, ~self.fixed]
        if not up.shape[1]:
            return SimpleNamespace(solve=np.copy)  # of nothing
        p = TestFunction(s.potential)
        mass = sparse_map(inner(TrialFunction(s.potential), p) * dx).to_scipy()
        mass = mass[~self.fixed][:, ~self.fixed]
        energy = up.T @ s.mass @ up
        # Small against the longest waves, large against the rounding of the shortest.
        length = measure_of(mesh_of(s.field)) ** (1.0 / self.gdim)
        shortest = energy.diagonal().sum() / mass.diagonal().sum()
        shift = max(1e-8 / length**2, 1e-14 * shortest)
        return definite(energy + shift * mass)

    def pull_back(self, u: Tensor) -> Tensor:
        """Potentials whose fields are near to some fields: of the right size, which is all.

        Parameters
        ----------
        u : Tensor, shape (batch, dim)

        Returns
        -------
        Tensor, shape (batch, latent.dim())
        """
        s = self.complex
        if isinstance(self.potential, Projection):
            return u
        fields = u.detach().cpu().double().numpy()
        if self.particular is not None:
            fields = fields - self.particular.default.cpu().numpy()
        right = (fields @ s.mass) @ s.first[:, ~self.fixed]
        x = np.zeros((len(u), self.latent.dim()))
        n, measure = s.potential.dim(), measure_of(mesh_of(s.field))
        x[:, :n][:, ~self.fixed] = self._stiffness().solve(np.ascontiguousarray(right.T)).T
        # What is left, in the unit of a potential: a field times a length.
        rest = np.linalg.norm(fields @ (s.mass @ self.harmonic), axis=1) / np.sqrt(measure)
        one = np.ones(s.potential.value_shape)
        constant = to_tensor(Function(s.potential).interpolate(Constant(one))).numpy()
        x[:, :n] += (rest * measure ** (1 / self.gdim))[:, None] * constant
        x[:, n:] = rest[:, None]
        return torch.from_numpy(x).to(u)


def _continuous(P: Any) -> tuple[str, int]:
    """Family and degree of the nodal elements beside those of a potential."""
    simplex = mesh_of(P).ufl_cell().is_simplex
    return "CG" if simplex else "Q", int(P.ufl_element().degree())
