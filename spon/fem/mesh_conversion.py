"""Any mesh file that meshio reads -> cells of one shape with tags. Knows nothing of Firedrake."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spon.fem.gmsh_file import CellKind, TaggedMesh, cell_kind

__all__ = ["TAG_DATA", "check_kinds", "convert"]

TAG_DATA = (
    "gmsh:physical",
    "medit:ref",
    "cell_tags",
    "facet_tags",
    "cell_markers",
    "facet_markers",
    "su2:tag",
    "avsucd:material",
    "CellEntityIds",
    "MaterialID",
)
"""Names of cell arrays that are read as tags, best first."""

SHAPES = {"triangle": "line", "quad": "line", "tetra": "triangle", "hexahedron": "quad"}
"""Shapes of cells that are read, and of their facets."""

_FACETS: dict[str, list[tuple[int, ...]]] = {
    "triangle": [(0, 1), (1, 2), (2, 0)],
    "quad": [(0, 1), (1, 2), (2, 3), (3, 0)],
    "tetra": [(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)],
    "hexahedron": [
        (0, 1, 2, 3),
        (4, 5, 6, 7),
        (0, 1, 5, 4),
        (1, 2, 6, 5),
        (2, 3, 7, 6),
        (3, 0, 4, 7),
    ],
}


def check_kinds(path: Path, kinds: dict[str, int]) -> tuple[str, bool]:
    """Shape of the cells of a file, and whether they are curved.

    Parameters
    ----------
    path : Path
        For the messages.
    kinds : dict
        Number of elements of each kind, by meshio's names.

    Raises
    ------
    ValueError
        If there are no triangles, quadrilaterals, tetrahedra or hexahedra, or several of them.
    """
    known = {name: cell_kind(name) for name, count in kinds.items() if count}
    found = ", ".join(f"{count} {name}" for name, count in kinds.items() if count) or "nothing"
    strange = sorted(name for name, kind in known.items() if kind is None)
    if strange:
        raise ValueError(
            f"{path} holds elements that cannot be read: {', '.join(strange)} (it holds {found}). "
            "Expected triangles, quadrilaterals, tetrahedra or hexahedra with straight edges"
        )
    cells = [kind for kind in known.values() if kind is not None]
    top = max((kind.dim for kind in cells), default=0)
    if top < 2:
        raise ValueError(
            f"{path} has no cells: it holds {found}. Expected triangles, quadrilaterals, "
            "tetrahedra or hexahedra. In gmsh: mesh the surface (2D) or the volume (3D), and when "
            "there are physical groups make one of the cells too, for only groups are saved"
        )
    shapes = sorted({kind.shape for kind in cells if kind.dim == top})
    if len(shapes) > 1:
        raise ValueError(
            f"{path} mixes {' and '.join(shapes)} cells ({found}); a mesh has cells of one "
            "shape. Recombine all surfaces or none, or split the cells into simplices"
        )
    if shapes[0] not in SHAPES:
        raise ValueError(
            f"{path} has {shapes[0]} cells ({found}); expected triangles, quadrilaterals, "
            "tetrahedra or hexahedra"
        )
    return shapes[0], any(k.dim == top and k.nodes > k.corners for k in cells)


def convert(path: Path, tag_data: str | None = None, warn: bool = True) -> TaggedMesh:
    """Read a mesh file with meshio.

    Points that no cell uses are dropped, and z where it is constant. Curved cells become
    straight, with a warning.

    Parameters
    ----------
    path : Path
        File in any format that meshio reads.
    tag_data : str, optional
        Name of the cell array that holds the tags; by default the first of `TAG_DATA` that is
        there, and otherwise the cell sets, numbered 1, 2, ... in the file's order.
    warn : bool, optional
        Whether to warn of curved cells.

    Raises
    ------
    ValueError
        If the file cannot be read, or its cells or tags are not what a mesh needs.
    """
    source = _read(path)
    kinds: dict[str, int] = {}
    for block in source.cells:
        kinds[block.type] = kinds.get(block.type, 0) + len(block.data)
    shape, curved = check_kinds(path, kinds)
    if curved and warn:
        warnings.warn(
            f"{path} has curved cells; their edges are read as straight lines. Curved edges are "
            "kept from gmsh files of order 2",
            UserWarning,
            stacklevel=2,
        )
    tags, names = _tags(path, source, tag_data)
    cells, cell_tags = _gather(path, source, tags, shape)
    facets, facet_tags = _gather(path, source, tags, SHAPES[shape])
    facets, facet_tags = facets[facet_tags != 0], facet_tags[facet_tags != 0]
    dim = _kind(shape).dim
    present = {dim: set(cell_tags.tolist()), dim - 1: set(facet_tags.tolist())}
    names = {name: at for name, at in names.items() if at[1] in present.get(at[0], ())}
    sides = _sides(path, shape, cells)
    _check_facets(path, sides, facets, facet_tags)

    used, renumbered = np.unique(cells, return_inverse=True)
    cells = renumbered.reshape(cells.shape)
    facets = np.searchsorted(used, facets)
    points = np.asarray(source.points, dtype=np.float64)[used]
    if not np.isfinite(points).all():
        raise ValueError(f"{path} has points that are not finite numbers")
    if len(cells) > 1 and len(used) == cells.size:
        raise ValueError(
            f"{path}: no two cells share a point ({len(cells)} cells, {len(used)} points). Files "
            "made for viewing discontinuous fields are like that; merge the points first"
        )
    if dim == 2 and points.shape[1] == 3:
        extent = np.ptp(points, axis=0)
        if extent[2] <= 1e-12 * extent.max():
            points = points[:, :2]
    return TaggedMesh(points, shape, cells, cell_tags, SHAPES[shape], facets, facet_tags, names)


def _kind(name: str) -> CellKind:
    kind = cell_kind(name)
    if kind is None:
        raise ValueError(f"unknown kind of elements {name!r}")
    return kind


def _read(path: Path) -> Any:
    """Read by meshio, which prints its complaints and leaves by sys.exit; both are caught."""
    try:
        import meshio
    except ImportError as error:
        raise ImportError(
            f"{path} is read through meshio, which is not installed: pip install meshio, "
            "or convert the mesh to gmsh's .msh"
        ) from error
    known = sorted(meshio.extension_to_filetypes)
    if path.suffix.lower() not in known:
        raise ValueError(
            f"{path}: unknown mesh format {path.suffix!r}. Formats that can be read: "
            f".msh (gmsh), and through meshio {', '.join(known)}"
        )
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return meshio.read(path)
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{error} {said.getvalue()}".split())
        raise ValueError(f"meshio cannot read {path}: {reason}") from error


def _gather(
    path: Path, source: Any, tags: list[NDArray[np.int64]], shape: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Corners and tags of all elements of one shape."""
    corners = _kind(shape).corners
    elements = [np.zeros((0, corners), dtype=np.int64)]
    numbers = [np.zeros(0, dtype=np.int64)]
    for block, tag in zip(source.cells, tags, strict=True):
        kind = cell_kind(block.type)
        if kind is not None and kind.shape == shape:
            data = np.asarray(block.data, dtype=np.int64)
            if data.shape[1] != kind.nodes or data.min() < 0 or data.max() >= len(source.points):
                raise ValueError(
                    f"{path}: the {block.type} elements that meshio found do not fit their points "
                    f"({data.shape[1]} nodes each, numbers {data.min()} to {data.max()}, "
                    f"{len(source.points)} points)"
                )
            elements.append(data[:, :corners])
            numbers.append(tag)
    return np.concatenate(elements), np.concatenate(numbers)


def _tags(
    path: Path, source: Any, tag_data: str | None
) -> tuple[list[NDArray[np.int64]], dict[str, tuple[int, int]]]:
    """Tags of each block of elements, and the names of tags."""
    if tag_data is not None and tag_data not in source.cell_data:
        raise ValueError(
            f"{path} has no cell array {tag_data!r}; it has {sorted(source.cell_data) or 'none'}"
        )
    candidates = [tag_data] if tag_data is not None else list(TAG_DATA)
    for array in candidates:
        if array in source.cell_data:
            tags = [_whole(path, array, block) for block in source.cell_data[array]]
            return _positive(path, array, tags), _names(source)
    return _tags_from_sets(path, source)


def _whole(path: Path, name: str, values: Any) -> NDArray[np.int64]:
    values = np.asarray(values)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or not np.array_equal(values, np.round(values)):
        raise ValueError(f"{path}: tags are whole numbers, one for each cell; {name!r} is not")
    return values.astype(np.int64)


def _positive(path: Path, name: str, tags: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """MED counts families of cells downwards from -1; physical tags count upwards from 1."""
    if all((block >= 0).all() for block in tags):
        return tags
    if any((block > 0).any() for block in tags):
        raise ValueError(f"{path}: {name!r} has positive and negative tags; expected one sign")
    return [-block for block in tags]


def _names(source: Any) -> dict[str, tuple[int, int]]:
    names = {}
    for name, value in (getattr(source, "field_data", None) or {}).items():
        value = np.asarray(value)
        if value.shape == (2,) and np.issubdtype(value.dtype, np.integer):
            names[str(name)] = (int(value[1]), int(value[0]))
    families = getattr(source, "cell_tags", None) or {}
    if families:
        dims: dict[int, int] = {}
        for block, tags in zip(source.cells, source.cell_data["cell_tags"], strict=True):
            dims.update(dict.fromkeys(np.unique(tags).tolist(), _kind(block.type).dim))
        for family, groups in families.items():
            if family in dims:
                names["+".join(groups)] = (dims[family], abs(int(family)))
    return names


def _tags_from_sets(
    path: Path, source: Any
) -> tuple[list[NDArray[np.int64]], dict[str, tuple[int, int]]]:
    """Number the cell sets. Sets of all cells ("Eall") say nothing when there are others."""
    tags = [np.zeros(len(block.data), dtype=np.int64) for block in source.cells]
    dims = [kind.dim if (kind := cell_kind(block.type)) else -1 for block in source.cells]
    sets: dict[tuple[int, str], list[NDArray[np.int64]]] = {}
    for name, blocks in (getattr(source, "cell_sets", None) or {}).items():
        if name.startswith("gmsh:"):
            continue
        for dim in sorted({dim for dim in dims if dim > 0}):
            rows = [
                np.asarray([] if block is None or own != dim else block, dtype=np.int64)
                for block, own in zip(blocks, dims, strict=True)
            ]
            if any(len(row) for row in rows):
                sets[dim, name] = rows
    names: dict[str, tuple[int, int]] = {}
    for dim in sorted({dim for dim, _ in sets}):
        own = {name: rows for (at, name), rows in sets.items() if at == dim}
        total = sum(len(tag) for tag, at in zip(tags, dims, strict=True) if at == dim)
        partial = {n: rows for n, rows in own.items() if sum(map(len, rows)) < total}
        for number, (name, rows) in enumerate((partial or own).items(), start=1):
            for tag, row in zip(tags, rows, strict=True):
                taken = np.unique(tag[row][tag[row] != 0])
                if len(taken):
                    other = list(partial or own)[int(taken[0]) - 1]
                    raise ValueError(
                        f"{path}: the cell sets {other!r} and {name!r} overlap; a cell has one "
                        "tag. Name a cell array of tags (tag_data=...), or make the sets disjoint"
                    )
                tag[row] = number
            # the same name may stand for a set of cells and a set of facets
            names[name if name not in names else f"{name} ({dim}D)"] = (dim, number)
    return tags, names


def _sides(path: Path, shape: str, cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """The facets of all cells, each once, with sorted corners."""
    if (np.diff(np.sort(cells, axis=1), axis=1) == 0).any():
        raise ValueError(f"{path} has cells that use one point twice")
    sides = np.sort(np.concatenate([cells[:, side] for side in _FACETS[shape]]), axis=1)
    sides, count = np.unique(sides, axis=0, return_counts=True)
    if (count > 2).any():
        raise ValueError(
            f"{path}: {int((count > 2).sum())} facets lie between more than two cells. Are cells "
            "listed twice, once for each group that they are in?"
        )
    return sides


def _check_facets(
    path: Path,
    sides: NDArray[np.int64],
    facets: NDArray[np.int64],
    facet_tags: NDArray[np.int64],
) -> None:
    """Every tagged facet is a side of a cell, and has one tag."""
    if not len(facets):
        return
    mine, first, count = np.unique(
        np.sort(facets, axis=1), axis=0, return_index=True, return_counts=True
    )
    known = set(map(tuple, sides.tolist()))
    stray = np.array([row not in known for row in map(tuple, mine.tolist())])
    if stray.any():
        bad = sorted(set(facet_tags[first[stray]].tolist()))
        raise ValueError(
            f"{path}: {int(stray.sum())} facets with tags {bad} are not sides of any cell. "
            "Does the boundary share its nodes with the cells?"
        )
    if (count > 1).any():
        twice = mine[count > 1][0]
        own = sorted(set(facet_tags[(np.sort(facets, axis=1) == twice).all(axis=1)].tolist()))
        raise ValueError(
            f"{path}: {int((count > 1).sum())} facets are listed more than once, the first with "
            f"tags {own}; a facet has one tag"
        )
