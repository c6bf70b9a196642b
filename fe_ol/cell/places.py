"""What a network may know of a place in a cell, and fields of a cell from values at places."""

from __future__ import annotations

import math
from typing import Any

import firedrake as fd
import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from fe_ol.cell.direct import DirectSolver
from fe_ol.voigt import rest_strain
from spon import fem
from spon.fem.encoding import L2Projection

__all__ = ["Places", "cell_inputs", "linear_fluctuations"]

# Shares of a material below this are round-off.
_PURE = 1e-9


class Places:
    """The nodes of a cell's space, with features that are the same on opposite sides.

    Parameters
    ----------
    rve : RVE
    periods : int
        Cosines and sines of each coordinate with 1 to so many periods in the cell.
    interface : bool
        Also the share of each material around the node, the signed distance d to the interface
        over the cell's edge, and |d|: fluctuations have kinks there.

    Attributes
    ----------
    features : Tensor, shape (nodes, f)
    dim : int
        Components of a displacement.

    Notes
    -----
    The nodes are those of the Lagrange space of the RVE's degree. For Lagrange elements values at
    nodes are the coefficients; serendipity elements get the L2 projection.
    """

    def __init__(self, rve: Any, periods: int, interface: bool) -> None:
        self._cell, V = rve._cell, rve.space
        mesh, degree = V.mesh(), V.ufl_element().embedded_superdegree
        self.dim = rve.dim
        self._projection: L2Projection | None = None
        if V.ufl_element().family() == "S":
            degree = _serendipity_degree(V)
            source = fd.VectorFunctionSpace(mesh, "CG", degree)
            self._projection = L2Projection(source, V)
            nodes = fd.FunctionSpace(mesh, "CG", degree)
        else:
            nodes = V.collapse().sub(0).collapse() if V.value_size > 1 else V
        X = mesh.coordinates.dat.data_ro.reshape(-1, self.dim)
        low, edges = X.min(0), X.max(0) - X.min(0)
        x = fd.SpatialCoordinate(mesh)
        waves = [
            wave(2 * math.pi * k * (x[i] - float(low[i])) / float(edges[i]))
            for k in range(1, periods + 1)
            for i in range(self.dim)
            for wave in (fd.cos, fd.sin)
        ]
        columns = [fem.to_tensor(fd.Function(nodes).interpolate(w)) for w in waves]
        if interface and len(rve.materials) > 1:
            columns += _interface(rve, nodes, columns[: 2 * self.dim], edges)
        self.features = torch.stack(columns, 1)

    def fluctuations(self, values: Tensor) -> Tensor:
        """Admissible fluctuations from values at the nodes.

        Parameters
        ----------
        values : Tensor, shape (k, nodes, dim)

        Returns
        -------
        Tensor, shape (k, V.dim())
        """
        flat = values.flatten(1)
        if self._projection is not None:
            flat = self._projection(flat.T).T
        found: Tensor = self._cell.admissible(flat)
        return found


def cell_inputs(rve: Any) -> tuple[Any, Any, Tensor]:
    """Spaces in which a network on the mesh of an RVE reads the strain and the material.

    Returns
    -------
    strain, material : FunctionSpace
        Piecewise constant: vectors of c + 1 components (direction and size), and scalars.
    indicator : Tensor, shape (cells,)
        -1 in cells of the first tag to 1 in those of the last.
    """
    mesh = rve.space.mesh()
    D = fd.FunctionSpace(mesh, "DG", 0)
    tags = sorted(rve.materials)
    numbers = torch.zeros(int(D.dim()), dtype=torch.float64)
    if len(tags) > 1:
        for i, tag in enumerate(tags):
            numbers += (2 * i / (len(tags) - 1) - 1) * _inside(D, tag)
    strain = fd.VectorFunctionSpace(mesh, "DG", 0, dim=rve._cell.size + 1)
    return strain, D, numbers


def linear_fluctuations(rve: Any) -> Tensor:
    """Fluctuations of the undeformed cell for unit strains.

    Returns
    -------
    Tensor, shape (c, V.dim())
        d fluctuation / d strain at rest.
    """
    cell = rve._cell
    reference = rest_strain(rve.dim, rve.finite)
    rest = reference.expand(1, len(rve.weights), -1).flatten(0, 1).contiguous()
    modulus = rve._laws.evaluate(rest, rve._laws.initial_state())[1]
    forces = cell.admissible(cell.divergence(modulus.permute(2, 0, 1)))
    solver = DirectSolver(cell.pointers, cell.columns, cell.free, cell.constraint)
    solver.factor(cell.stiffness(modulus), symmetric=False)
    found: Tensor = cell.centred(-solver.solve(forces))
    return found


def _inside(D: Any, tag: int) -> Tensor:
    """One in the cells of a tag, as coefficients of a piecewise constant function."""
    test = fd.TestFunction(D)
    part = fem.to_tensor(fd.assemble(test * fd.dx(tag, domain=D.mesh())))
    return part / fem.to_tensor(fd.assemble(test * fd.dx(domain=D.mesh())))


def _serendipity_degree(V: Any) -> int:
    element: Any = V.ufl_element()
    while element.sub_elements:
        element = element.sub_elements[0]
    return int(element.degree())


def _interface(rve: Any, nodes: Any, waves: list[Tensor], edges: Any) -> list[Tensor]:
    """Shares of the materials, signed distance and distance, each of shape (nodes,)."""
    D, test = fd.FunctionSpace(nodes.mesh(), "DG", 0), fd.TestFunction(nodes)
    touching = fem.sparse_map(fd.TrialFunction(D) * test * fd.dx)
    # How the cells touch, not an integral of shapes, which need not be positive.
    weights = touching.to_scipy()
    weights.data[:] = 1.0
    counts = weights @ np.ones(int(D.dim()))
    shares = [
        torch.from_numpy((weights @ _inside(D, tag).numpy()) / counts)
        for tag in sorted(rve.materials)[1:]
    ]
    total = torch.stack(shares).sum(0)
    on = torch.stack([(s > _PURE) & (s < 1 - _PURE) for s in shares]).any(0).numpy()
    # Angles give places in a box whose opposite sides are one.
    angles = [torch.atan2(s, c) for c, s in zip(waves[::2], waves[1::2], strict=True)]
    turns = np.stack([(a.numpy() / (2 * math.pi)) % 1.0 for a in angles], 1)
    box = edges / edges.max()
    places = np.minimum(turns * box, np.nextafter(box, 0))
    distance = torch.from_numpy(cKDTree(places[on], boxsize=box).query(places)[0])
    sign = torch.where(total > 0.5, 1.0, -1.0)
    return [*shares, sign * distance, distance]
