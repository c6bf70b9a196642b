"""Geometries of several meshes side by side as one: block-diagonal maps.

On small meshes a layer spends its time on starting operations and not in them. Side by side, many
meshes need as many operations as one. Each mesh gets as many nodes as the largest one has, so that
what differs from mesh to mesh is a product of stacked matrices; nodes that are filled in have no
entries in any map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from spon.processors.base import Basis, Geometry, Graph, Spectrum
from spon.processors.levels import Hierarchy, Level, Resolvents
from spon.sparse import SparseMap

__all__ = ["Blocks", "block_diagonal", "kind", "merged"]


def kind(geometry: Geometry) -> tuple[bool, ...]:
    """What geometries must have in common to be merged: which parts and boundaries there are."""
    basis, hierarchy, resolvents = geometry.basis, geometry.hierarchy, geometry.resolvents
    return (
        geometry.graph is not None,
        geometry.patches is not None,
        basis is not None and basis.constrained is not None,
        hierarchy is not None and hierarchy.constrained,
        resolvents is not None and resolvents.constrained is not None,
    )


def merged(geometries: Sequence[Geometry]) -> Geometry:
    """One geometry for samples on several meshes.

    Parameters
    ----------
    geometries : sequence of Geometry
        Built for one processor, all of one `kind`; the same one may occur several times.

    Returns
    -------
    Geometry
        For inputs of shape (sum of dim_i over the geometries, batch), one after the other, and
        outputs of the same order.
    """
    first, nodes = geometries[0], [g.nodes for g in geometries]
    most = max(nodes)
    channels = first.read.shape[1] // first.nodes
    lifts = []
    for i, lift in enumerate(first.lifts):
        per_node = cast(SparseMap, lift).shape[0] // first.nodes
        own = [cast(SparseMap, g.lifts[i]) for g in geometries]
        lifts.append(block_diagonal(own, rows=most * per_node))
    patches = [g.patches for g in geometries if g.patches is not None]
    patch_counts = [p.shape[0] for p in patches]
    bases = [g.basis for g in geometries if g.basis is not None]
    patch_bases = [g.patch_basis for g in geometries if g.patch_basis is not None]
    hierarchies = [g.hierarchy for g in geometries if g.hierarchy is not None]
    resolvents = [g.resolvents for g in geometries if g.resolvents is not None]
    graphs = [g.graph for g in geometries if g.graph is not None]
    return Geometry(
        positions=_padded([g.positions for g in geometries]),
        weights=_padded([g.weights for g in geometries]),
        torsion=_padded([g.torsion for g in geometries]),
        lifts=lifts,
        read=block_diagonal([g.read for g in geometries], cols=most * channels),
        basis=_merged_basis(bases, nodes) if bases else None,
        patches=block_diagonal(patches, max(patch_counts), most) if patches else None,
        patch_basis=_merged_basis(patch_bases, patch_counts) if patch_bases else None,
        graph=_merged_graph(graphs, most) if graphs else None,
        hierarchy=_merged_hierarchy(hierarchies) if hierarchies else None,
        resolvents=_merged_resolvents(resolvents, nodes) if resolvents else None,
    )


def block_diagonal(
    maps: Sequence[SparseMap], rows: int = 0, cols: int = 0, parts: int = 1
) -> SparseMap:
    """Maps side by side, each with its own rows and columns.

    Parameters
    ----------
    maps : sequence of SparseMap
    rows, cols : int, optional
        Fill each block with empty rows of each part, and columns, up to so many; 0 leaves blocks
        with sizes of their own.
    parts : int, optional
        Blocks of rows of each map, one below the other. Of the result, too, these are one below the
        other, each of them block-diagonal.

    Returns
    -------
    SparseMap, shape (parts * sum of rows, sum of cols)
    """
    counts = [m.shape[0] // parts for m in maps]
    heights = [rows or count for count in counts]
    widths = [cols or m.shape[1] for m in maps]
    shape = (parts * sum(heights), sum(widths))
    forward = _stacked([m._arrays("forward") for m in maps], heights, parts)
    row, col, values, sizes = forward
    device = values.device
    offsets = torch.tensor([0, *widths[:-1]], device=device).cumsum(0)
    col = col + offsets.repeat(parts).repeat_interleave(sizes).to(col.dtype)
    transpose = _stacked([m._arrays("transpose") for m in maps], widths, 1)
    below, beside, turned, sizes = transpose
    own = torch.tensor(counts, device=device).repeat_interleave(sizes)
    start = torch.tensor([0, *heights[:-1]], device=device).cumsum(0).repeat_interleave(sizes)
    part = torch.div(beside, own.clamp_min(1), rounding_mode="floor")
    beside = (beside + start + part * (sum(heights) - own)).to(beside.dtype)
    return SparseMap.of_arrays(shape, (row, col, values), (below, beside, turned))


def _stacked(
    arrays: Sequence[Sequence[Tensor]], heights: Sequence[int], parts: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Row pointers, columns and values part by part and map by map, and how many of each."""
    counts = [rows.diff().reshape(parts, -1) for rows, _, _ in arrays]
    filled = []
    for count, height in zip(counts, heights, strict=True):
        missing = height - count.shape[1]
        filled.append(pad(count, (0, missing)) if missing else count)
    per_row = torch.cat(filled, dim=1).flatten()
    rows = pad(per_row.cumsum(0), (1, 0)).to(arrays[0][0].dtype)
    sizes = torch.stack([count.sum(dim=1) for count in counts], dim=1).flatten()
    if parts == 1:
        cols, values = (torch.cat([array[i] for array in arrays]) for i in (1, 2))
        return rows, cols, values, sizes
    lengths = sizes.reshape(parts, -1).T.tolist()
    pieces = [[array[i].split(n) for array, n in zip(arrays, lengths, strict=True)] for i in (1, 2)]
    cols, values = (torch.cat([p[k] for k in range(parts) for p in piece]) for piece in pieces)
    return rows, cols, values, sizes


def _padded(tensors: Sequence[Tensor]) -> Tensor:
    """Rows one mesh after the other, filled up with zeros to the longest."""
    return pad_sequence(list(tensors), batch_first=True).flatten(0, 1)


def _merged_graph(graphs: Sequence[Graph], most: int) -> Graph:
    return Graph(
        features=torch.cat([g.features for g in graphs]),
        senders=block_diagonal([g.senders for g in graphs], cols=most),
        mean=block_diagonal([g.mean for g in graphs], rows=most),
    )


def _merged_basis(bases: Sequence[Basis], points: Sequence[int]) -> Basis:
    constrained = [b.constrained for b in bases if b.constrained is not None]
    return Basis(
        _merged_spectrum(constrained, points) if constrained else None,
        _merged_spectrum([b.free for b in bases], points),
    )


def _merged_spectrum(spectra: Sequence[Spectrum], points: Sequence[int]) -> Spectrum:
    """Matrices of all meshes stacked; what a small mesh lacks of points and modes is zero."""
    most, modes = max(points), max(s.modes for s in spectra)
    analyses, tables = [], []
    for s, count in zip(spectra, points, strict=True):
        fill = (0, most - count), (0, modes - s.modes)
        analysis = s.analysis.reshape(s.modes, -1, count)
        analyses.append(pad(analysis, (*fill[0], 0, 0, *fill[1])).flatten(1))
        table = s.table.reshape(analysis.shape[1], count, -1, s.modes)
        filled = pad(table, (*fill[1], 0, 0, *fill[0]))
        tables.append(filled.reshape(analysis.shape[1] * most, -1))
    return Spectrum(
        eigenvalues=_padded([s.eigenvalues for s in spectra]),
        window=_padded([s.window for s in spectra]),
        analysis=torch.stack(analyses),
        synthesis=torch.stack(tables),
    )


def _merged_hierarchy(hierarchies: Sequence[Hierarchy]) -> Hierarchy:
    depth = max(len(h) for h in hierarchies)
    rungs = [[h.level(i) if i < len(h) else None for h in hierarchies] for i in range(depth)]
    nodes = [max(level.nodes for level in rung if level is not None) for rung in rungs]
    coarser = [*nodes[1:], 0]
    return Hierarchy([_merged_level(*each) for each in zip(rungs, nodes, coarser, strict=True)])


def _merged_level(rung: Sequence[Level | None], nodes: int, coarser: int) -> Level:
    """One level of all hierarchies; where a mesh has none, its block stays empty."""
    known = next(level for level in rung if level is not None)
    nothing = SparseMap(csr_matrix((0, 0)), known.forms.dtype).to(known.scaling.device)

    def maps(name: str) -> list[SparseMap]:
        found = [None if level is None else getattr(level, name) for level in rung]
        return [nothing if m is None else m for m in found]

    def padded(name: str) -> Tensor:
        zeros = known.scaling.new_zeros(nodes)
        values = [zeros if level is None else getattr(level, name) for level in rung]
        return _padded(values)

    sizes = [0.0 if level is None else cast(float, level.size) for level in rung]
    return Level(
        forms=block_diagonal(maps("forms"), nodes, nodes, known.terms),
        stencils=block_diagonal(maps("stencils"), nodes, nodes, known.terms),
        scaling=padded("scaling"),
        fixed=padded("fixed"),
        size=sizes,
        prolongation=block_diagonal(maps("prolongation"), nodes, coarser) if coarser else None,
    )


def _merged_resolvents(resolvents: Sequence[Resolvents], nodes: Sequence[int]) -> Resolvents:
    first, most = resolvents[0], max(nodes)
    directions = first.gradient.shape[0] // nodes[0]

    def solves(families: Sequence[nn.ModuleList]) -> list[Blocks]:
        return [Blocks(each, nodes) for each in zip(*families, strict=True)]

    constrained = [r.constrained for r in resolvents if r.constrained is not None]
    return Resolvents(
        alphas=first.alphas,
        mass=block_diagonal([r.mass for r in resolvents], most, most),
        free=solves([r.free for r in resolvents]),
        constrained=solves(constrained) if constrained else None,
        gradient=block_diagonal([r.gradient for r in resolvents], most, most, directions),
    )


class Blocks(nn.Module):
    """Maps of nodes to nodes side by side, each applied by itself.

    Parameters
    ----------
    maps : sequence of Module
        One for each mesh, (nodes of the mesh, ...) to the same.
    nodes : sequence of int
        Nodes of each mesh; all take as many rows as the largest.
    """

    def __init__(self, maps: Sequence[nn.Module], nodes: Sequence[int]) -> None:
        super().__init__()
        self.maps, self.nodes = nn.ModuleList(maps), list(nodes)

    def forward(self, x: Tensor) -> Tensor:
        """Apply each map: (meshes * most nodes, ...) to the same."""
        pieces = x.split(max(self.nodes))
        each = zip(self.maps, pieces, self.nodes, strict=True)
        return _padded([solve(piece[:count]) for solve, piece, count in each])
