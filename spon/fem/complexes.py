"""Which potential belongs to which H(div) or H(curl) space, and what it does not reach.

The sequences are those of finite element exterior calculus (Arnold, Falk and Winther, 2006, *Acta
Numerica* 15, section 5): the range of one derivative is the kernel of the next, up to a few
harmonic fields that count the holes of the domain and the pieces of its boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from firedrake import (
    Constant,
    DirichletBC,
    FunctionSpace,
    TestFunction,
    TrialFunction,
    VectorFunctionSpace,
    assemble,
    curl,
    div,
    dx,
    grad,
    inner,
)
from firedrake import interpolate as ufl_interpolate
from scipy.sparse.csgraph import connected_components

from spon.fem.constraints import has_own_nodes
from spon.fem.direct import definite
from spon.fem.maps import sparse_map
from spon.fem.spaces import mesh_of, name_of

__all__ = [
    "Complex",
    "closed_pieces",
    "complex_of",
    "constants",
    "harmonic_fields",
    "measure_of",
    "potential_conditions",
]

# Family of the field: (family of the potential, how much higher its degree).
_FLUXES = {
    2: {
        "Raviart-Thomas": ("CG", 0),
        "Brezzi-Douglas-Marini": ("CG", 1),
        "RTCF": ("Q", 0),
    },
    3: {"Raviart-Thomas": ("N1curl", 0), "Brezzi-Douglas-Marini": ("N1curl", 1)},
}
_CIRCULATIONS = {
    2: {
        "Nedelec 1st kind H(curl)": ("CG", 0),
        "Nedelec 2nd kind H(curl)": ("CG", 1),
        "RTCE": ("Q", 0),
    },
    3: {"Nedelec 1st kind H(curl)": ("CG", 0), "Nedelec 2nd kind H(curl)": ("CG", 1)},
}
# Below this multiple of the inverse square of the domain's length an eigenvalue is zero.
_ZERO = 1e-5


class Complex(NamedTuple):
    """Potential, field, and what is zero of the field: ``second o first`` vanishes."""

    potential: Any
    field: Any
    last: Any
    first: sp.csr_matrix  # potential to field, (field.dim(), potential.dim())
    second: sp.csr_matrix  # moments of the field's derivative, (last.dim(), field.dim())
    mass: sp.csr_matrix  # of the field
    what: tuple[str, str]


def complex_of(U: Any, divergence: bool) -> Complex:
    """The sequence in which `U` stands.

    Parameters
    ----------
    U : FunctionSpace
    divergence : bool
        Whether the divergence is to be known (else the curl).

    Raises
    ------
    ValueError
        If `U` is no space of such a sequence.
    """
    mesh = mesh_of(U)
    gdim = int(mesh.geometric_dimension)
    element = U.ufl_element()
    table = (_FLUXES if divergence else _CIRCULATIONS).get(gdim, {})
    known = table.get(element.family()) if len(U) == 1 else None
    if known is None or int(mesh.topological_dimension) != gdim:
        if divergence:
            raise ValueError(
                f"A divergence that is known in each cell needs an H(div) space: RT or BDM (RTCF "
                f"on quadrilaterals), got {name_of(U)} in {gdim}D. Use FunctionSpace(mesh, 'RT', "
                "k); mixed spaces: a decoder for the part."
            )
        raise ValueError(
            f"curl_free needs an H(curl) space: N1curl or N2curl (RTCE on quadrilaterals), got "
            f"{name_of(U)} in {gdim}D. Use FunctionSpace(mesh, 'N1curl', k)."
        )
    family, higher = known
    P = FunctionSpace(mesh, family, int(element.degree()) + higher)
    broken = "DQ" if element.family() in ("RTCF", "RTCE") else "DG"
    # The derivative lies in polynomials of one degree less than the full ones of the field.
    lower = int(element.degree()) - 1
    if divergence:
        first, second = curl, div
        what = ("divergence", "normal traces")
    else:
        first, second = grad, curl
        what = ("curl", "tangential traces")
    space = FunctionSpace if divergence or gdim == 2 else VectorFunctionSpace
    W = space(mesh, broken, lower)
    u, w, v = TrialFunction(U), TestFunction(W), TestFunction(U)
    return Complex(
        P,
        U,
        W,
        sparse_map(ufl_interpolate(first(TrialFunction(P)), U)).to_scipy(),
        sparse_map(inner(second(u), w) * dx).to_scipy(),
        sparse_map(inner(u, v) * dx).to_scipy(),
        what,
    )


def potential_conditions(P: Any, bcs: Sequence[Any]) -> list[Any]:
    """Zero conditions for a potential where its field has prescribed traces.

    Raises
    ------
    ValueError
        If a condition holds at nodes of its own.
    """
    for bc in bcs:
        if has_own_nodes(bc):
            raise ValueError(
                f"The boundary condition on {bc.sub_domain} holds at nodes of its own, which say "
                "nothing of a potential: with a known divergence or curl, give conditions on "
                "boundary tags."
            )
    zero = 0.0 if not P.value_shape else [0.0] * P.value_shape[0]
    return [DirichletBC(P, zero, bc.sub_domain) for bc in bcs]


def closed_pieces(s: Complex, trace: np.ndarray) -> sp.csr_matrix:
    """Pieces of the mesh through whose whole boundary the traces are prescribed.

    The derivative of a field integrates to its traces over each of them: one condition a piece,
    and one value of the derivative that the others determine.

    Parameters
    ----------
    s : Complex
        Whose derivative is a scalar, or a divergence.
    trace : array of bool, shape (field.dim(),)
        Prescribed dofs of the field.

    Returns
    -------
    sparse matrix, shape (pieces, last.dim())
        The coefficients of one in each piece, and of zero elsewhere.
    """
    second = s.second[:, ~trace]
    # Cells that share a facet, and not only a vertex, are joined: there the field has a dof.
    ones = _pieces(abs(_mass(s.last)) + abs(second) @ abs(second).T)
    leaving = abs(ones @ second) > 1e-11 * abs(s.second).max()
    return ones[np.flatnonzero(leaving.sum(axis=1) == 0)]


def constants(s: Complex, fixed: np.ndarray) -> int:
    """Number of pieces of the mesh on which the potential is known up to a constant.

    Parameters
    ----------
    s : Complex
        In 2D, of a scalar potential.
    fixed : array of bool, shape (potential.dim(),)
        Dofs of the potential that are zero.
    """
    ones = _pieces(abs(_mass(s.potential)))
    return int((ones @ fixed.astype(float) == 0).sum())


def _pieces(joined: sp.csr_matrix) -> sp.csr_matrix:
    """Indicators of the sets of dofs that the entries of a matrix join, (sets, dofs)."""
    count, label = connected_components(joined, directed=False)
    dofs = np.arange(len(label))
    return sp.csr_matrix((np.ones(len(label)), (label, dofs)), shape=(count, len(label)))


def _mass(W: Any) -> sp.csr_matrix:
    return sparse_map(inner(TrialFunction(W), TestFunction(W)) * dx).to_scipy()


def harmonic_fields(s: Complex, trace: np.ndarray, fixed: np.ndarray, stiffness: Any) -> np.ndarray:
    """Fields without derivative and traces that are orthogonal to those of potentials.

    They are the kernel of ``second^T second + first first^T``, which would be costly to factorise
    in three dimensions. Inverse iteration with the first term leaves what has no derivative, and of
    this the fields of potentials are taken away, in turns.

    Parameters
    ----------
    s : Complex
    trace : array of bool, shape (field.dim(),)
        Prescribed dofs of the field.
    fixed : array of bool, shape (potential.dim(),)
        Dofs of the potential that are zero.
    stiffness : object with ``solve``
        Factorisation of the energy of the other potentials, made regular.

    Returns
    -------
    array, shape (field.dim(), b)
        Orthonormal in L2.
    """
    free = np.flatnonzero(~trace)
    if not len(free):
        return np.zeros((s.field.dim(), 0))
    mass = s.mass[free][:, free]
    last, below = (np.sqrt(_mass(W).diagonal()) for W in (s.last, s.potential))
    down = sp.diags(1 / last) @ s.second[:, free]
    first = s.first[free][:, ~fixed]
    up = first.T @ mass
    mesh = mesh_of(s.field)
    length = measure_of(mesh) ** (1.0 / int(mesh.geometric_dimension))
    # Far from both: what counts as zero below, and the rounding of the largest eigenvalues, which
    # hides a smaller shift from the factorisation.
    shift = 1e-6 / length**2
    inverse = definite(down.T @ down + shift * mass)
    count, rng = 6, np.random.default_rng(0)
    while True:
        count = min(count, len(free))
        # As much of each field, whether it lives in small cells or in large ones.
        x = rng.standard_normal((len(free), count)) / np.sqrt(mass.diagonal())[:, None]
        for _ in range(4):
            x = inverse.solve(mass @ x)
            # What makes the energy of the potentials regular costs digits, which return.
            for _ in range(3):
                x = x - first @ stiffness.solve(up @ x)
            x = _orthonormal(x, mass)
        parts = down @ x, (up @ x) / below[~fixed, None]
        values, turn = np.linalg.eigh(sum(p.T @ p for p in parts))
        zero = values < _ZERO / length**2
        if not zero.all() or len(zero) < count or count == len(free):
            break
        count *= 2
    found = np.zeros((s.field.dim(), int(zero.sum())))
    found[free] = (x @ turn)[:, zero]
    return found


def _orthonormal(x: np.ndarray, mass: sp.csr_matrix) -> np.ndarray:
    """A basis of the span of some columns; directions of rounding are left out."""
    for _ in range(2):
        size = np.sqrt(np.einsum("ij,ij->j", x, mass @ x))
        x = x[:, size > 0] / size[size > 0]
        values, vectors = np.linalg.eigh(x.T @ (mass @ x))
        kept = values > 1e-12 * values.max(initial=0.0)
        x = x @ (vectors[:, kept] / np.sqrt(values[kept]))
    return x


def measure_of(mesh: Any) -> float:
    """Area or volume of a domain."""
    return float(assemble(Constant(1.0) * dx(domain=mesh)))
