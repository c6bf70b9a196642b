"""A representative volume element in dense matrices: slow, small, with nothing of fe_ol but laws.

What stands on RVEs is tested on it, and the package's own RVE can be compared with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from finat.ufl import FiniteElement, VectorElement
from firedrake import (
    FunctionSpace,
    TestFunction,
    TrialFunction,
    VectorFunctionSpace,
    as_vector,
    assemble,
    dx,
    grad,
    interpolate,
    sym,
)
from torch import Tensor

from fe_ol.materials import Response
from spon.fem import sparse_map

_DEGREE = 4


@dataclass
class Solutions:
    """Fluctuations, local and homogenised stresses and tangents for some strains."""

    fluctuation: Tensor
    strain: Tensor
    stress: Tensor
    macro_stress: Tensor
    tangent: Tensor


class DenseRVE:
    """Plane strain, small strains, periodic; Newton's method by least squares.

    Least squares leave out the rigid translations, which the tangent does not determine.
    """

    dim, finite, history, boundary, plane = 2, False, False, "periodic", "strain"

    def __init__(self, mesh: Any, materials: dict[int, Any]) -> None:
        self.materials = materials
        self.space = V = VectorFunctionSpace(mesh, "CG", 2)
        scheme = {"degree": _DEGREE, "quad_scheme": "default"}
        scalar = FiniteElement("Quadrature", mesh.ufl_cell(), **scheme)
        S = FunctionSpace(mesh, scalar)
        Q = FunctionSpace(mesh, VectorElement(scalar, dim=3))
        e = sym(grad(TrialFunction(V)))
        self._strain = sparse_map(interpolate(as_vector([e[0, 0], e[1, 1], 2 * e[0, 1]]), Q))
        v = TestFunction(S)
        shares = {
            tag: assemble(v * dx(tag, domain=mesh, degree=_DEGREE)).dat.data_ro.copy()
            for tag in materials
        }
        self.weights = torch.from_numpy(sum(shares.values()))
        self.volume = float(self.weights.sum())
        self.tags = torch.from_numpy(
            np.array(list(shares))[np.argmax(list(shares.values()), axis=0)].astype(np.int64)
        )
        unit = torch.eye(V.dim(), dtype=torch.float64)
        self._matrix = self.gradient(unit).permute(1, 2, 0)

    def gradient(self, fluctuation: Tensor) -> Tensor:
        """Strains at the points, (n, points, 3)."""
        return self._strain.batch(fluctuation).reshape(len(fluctuation), -1, 3)

    def divergence(self, stress: Tensor) -> Tensor:
        """Nodal forces, (n, dofs)."""
        return self._strain.T.batch((stress * self.weights[:, None]).flatten(1))

    def law(self, strain: Tensor) -> Tensor:
        """Local stresses, (n, points, 3)."""
        return self._laws(strain)[0]

    def solve(self, strain: Tensor, tangent: bool = True) -> Solutions:
        """Solve for each strain from zero."""
        parts = [self._solve(e) for e in strain]
        c, dofs = 3, self.space.dim()
        shapes = ((dofs,), (len(self.weights), c), (len(self.weights), c), (c,), (c, c))
        return Solutions(
            *(
                torch.stack([p[k] for p in parts]) if parts else torch.zeros(0, *shape).double()
                for k, shape in enumerate(shapes)
            )
        )

    def __call__(self, strain: Any, state: Any = None) -> Response:
        """Homogenised stress and tangent."""
        found = self.solve(torch.as_tensor(strain))
        return Response(found.macro_stress, found.tangent)

    def _laws(self, strain: Tensor) -> tuple[Tensor, Tensor]:
        stress, tangent = torch.empty_like(strain), strain.new_empty(*strain.shape, 3)
        for tag, law in self.materials.items():
            mine = self.tags == tag
            response = law(strain[:, mine].reshape(-1, 3))
            stress[:, mine] = response.stress.reshape(len(strain), -1, 3)
            tangent[:, mine] = response.tangent.reshape(len(strain), -1, 3, 3)
        return stress, tangent

    def _solve(self, macro: Tensor) -> tuple[Tensor, ...]:
        B, w = self._matrix, self.weights
        u = torch.zeros(self.space.dim(), dtype=torch.float64)
        for _ in range(25):
            stress, C = (x[0] for x in self._laws((macro + B @ u)[None]))
            stiffness = torch.einsum("pin,pij,pjm,p->nm", B, C, B, w)
            step = _least_squares(stiffness, torch.einsum("pin,pi,p->n", B, stress, w))
            u = u - step
            if float(step.norm()) <= 1e-14 * (1 + float(u.norm())):
                break
        else:
            raise ArithmeticError(f"no convergence for the strain {macro.tolist()}")
        local = macro + B @ u
        stress, C = (x[0] for x in self._laws(local[None]))
        stiffness = torch.einsum("pin,pij,pjm,p->nm", B, C, B, w)
        coupling = torch.einsum("pin,pij,p->nj", B, C, w)
        mean = torch.einsum("pij,p->ij", C, w)
        tangent = (mean - coupling.T @ _least_squares(stiffness, coupling)) / self.volume
        return u, local, stress, (stress * w[:, None]).sum(0) / self.volume, tangent


def _least_squares(matrix: Tensor, b: Tensor) -> Tensor:
    columns = b[:, None] if b.ndim == 1 else b
    x = torch.linalg.lstsq(matrix, columns, rcond=1e-12, driver="gelsd").solution
    return x.reshape(b.shape)
