"""Levels of a multigrid hierarchy and resolvents of the Laplacian: geometry that processors act on.

Nothing here has a unit: lengths are in units of the domain's length and integrals are means over
the domain. Primal vectors are nodal values, dual vectors (loads, residuals) are integrals against
the nodal basis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from spon.sparse import SparseMap

__all__ = ["Graph", "Hierarchy", "Level", "Resolvents"]


class Graph(nn.Module):
    """Directed edges between latent nodes that share a cell: both directions, no loops.

    Parameters
    ----------
    features : Tensor, shape (edges, gdim + 2)
        Position of the sender relative to the receiver over the mean edge length at the receiver,
        its norm, and the length of the edge over the length of the domain.
    senders : SparseMap, shape (edges, nodes)
        Nodal values to values at the senders.
    mean : SparseMap, shape (nodes, edges)
        Mean over the edges that enter a node, each with the volume of the cells that it lies in.
    """

    features: Tensor

    def __init__(self, features: Tensor, senders: SparseMap, mean: SparseMap) -> None:
        super().__init__()
        self.register_buffer("features", features, persistent=False)
        self.senders, self.mean = senders, mean


class Level(nn.Module):
    """One level of a hierarchy.

    Parameters
    ----------
    forms : SparseMap, shape (terms * nodes, nodes)
        Primal to dual: mass, stiffness, and the partial derivatives against test functions, one
        below the other.
    stencils : SparseMap, shape (terms * nodes, nodes)
        Dual to dual: the same matrices, made bounded whatever the mesh by the lumped mass D and
        the local mesh size h: M D^-1, K diag(K)^-1 and h dx D^-1.
    scaling : Tensor, shape (nodes,)
        Dual to primal: 1 / diag(K), which is h^2 D^-1 with the local mesh size h.
    fixed : Tensor, shape (nodes,)
        One for nodes of the constrained boundary, zero for the others.
    size : float or list of float
        Logarithm with base two of the domain's length over the mesh size; one for each mesh where
        several lie side by side.
    prolongation : SparseMap or None, shape (nodes, nodes of the next coarser level)
        Values on the next coarser level to values here; None on the coarsest level. Its transpose,
        the `restriction`, takes dual vectors.
    average : SparseMap or None, shape (nodes of the next coarser level, nodes)
        Values here to weighted means on the next coarser level, primal to primal: the restriction
        between two Riesz maps. Rows sum to one. None on the coarsest level.
    graph : Graph or None
        Edges between nodes that lie close to each other, if messages shall pass.
    """

    scaling: Tensor
    fixed: Tensor

    def __init__(
        self,
        forms: SparseMap,
        stencils: SparseMap,
        scaling: Tensor,
        fixed: Tensor,
        size: float | list[float],
        prolongation: SparseMap | None = None,
        average: SparseMap | None = None,
        graph: Graph | None = None,
    ) -> None:
        super().__init__()
        self.forms, self.stencils = forms, stencils
        self.register_buffer("scaling", scaling, persistent=False)
        self.register_buffer("fixed", fixed, persistent=False)
        self.size = size
        self.prolongation = prolongation
        self.restriction = None if prolongation is None else prolongation.T
        self.average, self.graph = average, graph

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return len(self.scaling)

    @property
    def terms(self) -> int:
        """Number of forms."""
        return self.forms.shape[0] // self.nodes


class Hierarchy(nn.Module):
    """Levels from the latent nodes to the coarsest.

    Parameters
    ----------
    levels : sequence of Level
        The finest first.
    """

    def __init__(self, levels: Sequence[Level]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.sizes = [level.size for level in levels]
        self.constrained = bool(levels[0].fixed.any())

    def __len__(self) -> int:
        return len(self.levels)

    def level(self, index: int) -> Level:
        """One of the levels; 0 is the finest."""
        return cast(Level, self.levels[index])

    def shares(self, count: int) -> Tensor:
        """How much of each set of weights a level takes.

        The weights of a level are those for mesh size one plus the changes to half, a quarter ...
        of it, the last one in part: a continuous function of the mesh size. Changes that no
        training mesh was fine enough for stay at zero, so that finer meshes take the weights of
        the finest one that was seen.

        Parameters
        ----------
        count : int
            Number of sets.

        Returns
        -------
        Tensor, shape (levels, count), or (levels, meshes, count) where meshes lie side by side
        """
        sizes = torch.tensor(self.sizes, dtype=torch.float64)[..., None]
        steps = (sizes - torch.arange(count - 1)).clamp(0.0, 1.0)
        return torch.cat([torch.ones_like(sizes), steps], dim=-1)


class Resolvents(nn.Module):
    """The maps (M + alpha K)^-1 M for several alpha, for both kinds of boundary.

    Parameters
    ----------
    alphas : sequence of float
        In units of the square of the domain's length.
    mass : SparseMap, shape (nodes, nodes)
    free : sequence of modules
        Dual to primal vectors, (nodes, ...) to (nodes, ...): inverses of M + alpha K with a
        natural boundary everywhere.
    constrained : sequence of modules or None
        The same with values zero on the constrained boundary; None if there is none.
    gradient : SparseMap, shape (gdim * nodes, nodes)
        Partial derivatives at the nodes, one direction below the other.
    """

    def __init__(
        self,
        alphas: Sequence[float],
        mass: SparseMap,
        free: Sequence[nn.Module],
        constrained: Sequence[nn.Module] | None,
        gradient: SparseMap,
    ) -> None:
        super().__init__()
        self.alphas = list(alphas)
        self.mass, self.gradient = mass, gradient
        self.free = nn.ModuleList(free)
        self.constrained = None if constrained is None else nn.ModuleList(constrained)
