"""What a gmsh file holds, and writing one. Knows nothing of Firedrake."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CellKind",
    "GmshSummary",
    "TaggedMesh",
    "cell_kind",
    "cell_nodes",
    "scan_gmsh",
    "write_gmsh",
]

Indices = NDArray[np.int64]
Array = NDArray[np.float64]

_DIMENSION = {
    "vertex": 0,
    "line": 1,
    "triangle": 2,
    "quad": 2,
    "tetra": 3,
    "hexahedron": 3,
    "wedge": 3,
    "pyramid": 3,
}
_CORNERS = dict(zip(_DIMENSION, (1, 2, 3, 4, 4, 8, 6, 5), strict=True))
# gmsh's element types, by meshio's names (a number is the count of nodes of a curved element)
_GMSH_TYPES = {
    1: "line",
    2: "triangle",
    3: "quad",
    4: "tetra",
    5: "hexahedron",
    6: "wedge",
    7: "pyramid",
    8: "line3",
    9: "triangle6",
    10: "quad9",
    11: "tetra10",
    12: "hexahedron27",
    13: "wedge18",
    14: "pyramid14",
    15: "vertex",
    16: "quad8",
    17: "hexahedron20",
    18: "wedge15",
    19: "pyramid13",
    21: "triangle10",
    23: "triangle15",
    25: "triangle21",
    26: "line4",
    27: "line5",
    28: "line6",
    29: "tetra20",
    30: "tetra35",
    31: "tetra56",
    36: "quad16",
    37: "quad25",
    38: "quad36",
    92: "hexahedron64",
    93: "hexahedron125",
}
_NUMBERS = {name: number for number, name in _GMSH_TYPES.items()}


@dataclass(frozen=True)
class CellKind:
    """Shape of a kind of elements: ``triangle6`` is a triangle with 3 corners and 6 nodes."""

    name: str
    shape: str
    dim: int
    corners: int
    nodes: int


def cell_kind(name: str) -> CellKind | None:
    """The kind of elements behind meshio's name, or None for a shape that is not known."""
    match = re.fullmatch(r"([a-z]+)(\d*)", name)
    if match is None or match[1] not in _DIMENSION:
        return None
    shape, corners = match[1], _CORNERS[match[1]]
    return CellKind(name, shape, _DIMENSION[shape], corners, int(match[2] or corners))


@dataclass(frozen=True)
class GmshSummary:
    """What a gmsh file holds.

    Attributes
    ----------
    version : str
        Version of the format, ``"2.2"`` or ``"4.1"``.
    kinds : dict
        Number of elements of each kind, by meshio's names (``"gmsh type 71"`` where none is known).
    names : list of (str, int, int)
        Physical names with dimension and tag.
    periodic : bool
        Whether nodes are matched by ``$Periodic``.
    loose : int
        Number of nodes that no cell of the highest dimension uses.
    repeated : int
        Number of cells that are listed again, as format 2.2 does for overlapping groups.
    """

    version: str
    kinds: dict[str, int]
    names: list[tuple[str, int, int]] = field(default_factory=list)
    periodic: bool = False
    loose: int = 0
    repeated: int = 0


def scan_gmsh(path: Path) -> GmshSummary:
    """Look into a gmsh file, text or binary, version 2.2 or 4.

    Raises
    ------
    ValueError
        If it is not such a file, or is cut short.
    """
    data, binary, version = _opened(path)
    names = []
    for line in _section(data, "PhysicalNames", path, needed=False).decode().splitlines()[1:]:
        match = re.match(r'\s*(\d+)\s+(\d+)\s+"(.*)"', line)
        if match:
            names.append((match[3], int(match[1]), int(match[2])))
    blocks, nodes = _blocks(data, binary, version, path), _section(data, "Nodes", path)
    try:
        listed = _count_nodes(nodes, binary, version)
    except (IndexError, ValueError) as error:
        raise ValueError(f"{path} is damaged in $Nodes: {error}") from error
    dims = {name: kind.dim for name in blocks if (kind := cell_kind(name))}
    cells = [blocks[name] for name, dim in dims.items() if dim == max(dims.values())]
    repeated = sum(len(rows) - len(np.unique(np.sort(rows, axis=1), axis=0)) for rows in cells)
    used = np.unique(np.concatenate([np.zeros(0, np.int64), *(rows.ravel() for rows in cells)]))
    kinds = {name: len(rows) for name, rows in blocks.items()}
    return GmshSummary(
        version, kinds, names, b"$Periodic" in data, loose=listed - len(used), repeated=repeated
    )


def cell_nodes(path: Path, kind: str) -> Array:
    """Places of the nodes of all cells of one kind, in gmsh's order.

    Parameters
    ----------
    path : Path
        A gmsh file, text or binary, version 2.2 or 4.
    kind : str
        By meshio's names: ``"triangle6"``.

    Returns
    -------
    array, shape (cells, nodes of a cell, 3)

    Raises
    ------
    ValueError
        If the file is damaged or has no such cells.
    """
    data, binary, version = _opened(path)
    blocks, section = _blocks(data, binary, version, path), _section(data, "Nodes", path)
    if kind not in blocks:
        raise ValueError(f"{path} has no {kind} cells; it has {', '.join(blocks) or 'nothing'}")
    read = {
        (False, "2"): _places_text_2,
        (False, "4"): _places_text_4,
        (True, "2"): _places_binary_2,
        (True, "4"): _places_binary_4,
    }[binary, version[0]]
    try:
        parts = list(read(section, version))
        numbers = np.concatenate([own for own, _ in parts])
        places = np.concatenate([own for _, own in parts])
    except (IndexError, ValueError) as error:
        raise ValueError(f"{path} is damaged in $Nodes: {error}") from error
    order = np.argsort(numbers, kind="stable")
    at = np.searchsorted(numbers, blocks[kind], sorter=order)
    found = order[np.minimum(at, len(order) - 1)]
    if (numbers[found] != blocks[kind]).any():
        raise ValueError(f"{path} is damaged: its {kind} cells use nodes that $Nodes does not list")
    return places[found]


def _opened(path: Path) -> tuple[bytes, bool, str]:
    """Contents, whether binary, and version of a gmsh file."""
    data = path.read_bytes()
    head = re.match(rb"\s*\$MeshFormat\r?\n\s*([\d.]+) ([01]) (\d+)", data)
    if head is None:
        raise ValueError(
            f"{path} is not a gmsh mesh file: it does not begin with $MeshFormat. Save the mesh "
            "in gmsh's format 4.1 or 2.2 (gmsh -format msh22 ...)"
        )
    version, binary = head[1].decode(), head[2] == b"1"
    if not version.startswith(("2", "4")):
        raise ValueError(f"{path} is gmsh format {version}; save it in format 4.1 or 2.2")
    if binary and version in ("4", "4.0"):
        raise ValueError(f"{path} is gmsh's binary format 4.0; save it in format 4.1 or 2.2")
    return data, binary, version


def _blocks(data: bytes, binary: bool, version: str, path: Path) -> dict[str, Indices]:
    """Numbers of the nodes of all elements, by meshio's name of their kind."""
    section = _section(data, "Elements", path)
    read = {
        (False, "2"): _read_text_2,
        (False, "4"): _read_text_4,
        (True, "2"): _read_binary_2,
        (True, "4"): _read_binary_4,
    }[binary, version[0]]
    parts: dict[str, list[Indices]] = {}
    try:
        for number, rows in read(section):
            parts.setdefault(_GMSH_TYPES.get(number, f"gmsh type {number}"), []).append(rows)
        return {name: np.concatenate(rows) for name, rows in parts.items()}
    except (IndexError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged in $Elements or $Nodes: {error}") from error


def _section(data: bytes, name: str, path: Path, needed: bool = True) -> bytes:
    match = re.search(rb"\$%s\r?\n" % name.encode(), data)
    end = data.find(b"$End" + name.encode(), match.end()) if match else -1
    if match is None or end < 0:
        if needed or match:
            what = "is cut short in" if match else "has no"
            raise ValueError(f"{path} {what} section ${name}: write the mesh again")
        return b""
    return data[match.end() : end]


def _read_text_2(section: bytes) -> Iterator[tuple[int, Indices]]:
    lines = section.split(b"\n")
    rows = [line.split() for line in lines[1:] if line.strip()]
    if len(rows) != int(lines[0]):
        raise ValueError(f"{int(lines[0])} elements announced, {len(rows)} found")
    kinds: dict[int, list[list[bytes]]] = {}
    for row in rows:
        kinds.setdefault(int(row[1]), []).append(row[3 + int(row[2]) :])
    for kind, own in kinds.items():
        yield kind, np.array(own).astype(np.int64)


def _read_text_4(section: bytes) -> Iterator[tuple[int, Indices]]:
    lines, at = section.split(b"\n"), 1
    for _ in range(int(lines[0].split()[0])):
        _, _, kind, count = (int(word) for word in lines[at].split())
        rows = [line.split()[1:] for line in lines[at + 1 : at + 1 + count]]
        if len(rows) != count or not all(rows):
            raise ValueError(f"a block announces {count} elements and has fewer")
        yield kind, np.array(rows).astype(np.int64)
        at += 1 + count


def _read_binary_2(section: bytes) -> Iterator[tuple[int, Indices]]:
    line = section.index(b"\n")
    total, start, done = int(section[:line]), line + 1, 0
    while done < total:
        kind, count, tags = (int(n) for n in np.frombuffer(section, "<i4", 3, start))
        width = 1 + tags + _nodes(kind)
        table = np.frombuffer(section, "<i4", count * width, start + 12).reshape(count, width)
        yield kind, table[:, 1 + tags :].astype(np.int64)
        start, done = start + 12 + 4 * count * width, done + count


def _read_binary_4(section: bytes) -> Iterator[tuple[int, Indices]]:
    blocks, start = int(np.frombuffer(section, "<u8", 1)[0]), 32
    for _ in range(blocks):
        kind = int(np.frombuffer(section, "<i4", 3, start)[2])
        count = int(np.frombuffer(section, "<u8", 1, start + 12)[0])
        width = 1 + _nodes(kind)
        table = np.frombuffer(section, "<u8", count * width, start + 20).reshape(count, width)
        yield kind, table[:, 1:].astype(np.int64)
        start += 20 + 8 * count * width


def _count_nodes(section: bytes, binary: bool, version: str) -> int:
    if binary and version[0] == "4":
        return int(np.frombuffer(section, "<u8", 2)[1])
    words = section[: section.index(b"\n")].split()
    return int(words[1] if version[0] == "4" else words[0])


def _places_text_2(section: bytes, version: str) -> Iterator[tuple[Indices, Array]]:
    rows = np.array([line.split() for line in section.split(b"\n")[1:] if line.strip()])
    yield rows[:, 0].astype(np.int64), rows[:, 1:4].astype(np.float64)


def _places_text_4(section: bytes, version: str) -> Iterator[tuple[Indices, Array]]:
    lines, at = section.split(b"\n"), 1
    for _ in range(int(lines[0].split()[0])):
        count = int(lines[at].split()[3])
        rows = [line.split() for line in lines[at + 1 : at + 1 + count]]
        if version != "4.0" and version != "4":  # all numbers first, then all places
            at += count
            rows = [
                own + line.split()
                for own, line in zip(rows, lines[at + 1 : at + 1 + count], strict=True)
            ]
        at += 1 + count
        if count:
            table = np.array([row[:4] for row in rows])
            yield table[:, 0].astype(np.int64), table[:, 1:].astype(np.float64)


def _places_binary_2(section: bytes, version: str) -> Iterator[tuple[Indices, Array]]:
    line = section.index(b"\n")
    row = np.dtype([("number", "<i4"), ("place", "<f8", 3)])
    table = np.frombuffer(section, row, int(section[:line]), line + 1)
    yield table["number"].astype(np.int64), table["place"]


def _places_binary_4(section: bytes, version: str) -> Iterator[tuple[Indices, Array]]:
    blocks, start = int(np.frombuffer(section, "<u8", 1)[0]), 32
    for _ in range(blocks):
        dim, _, parametric = (int(n) for n in np.frombuffer(section, "<i4", 3, start))
        count = int(np.frombuffer(section, "<u8", 1, start + 12)[0])
        width = 3 + (dim if parametric else 0)
        numbers = np.frombuffer(section, "<u8", count, start + 20).astype(np.int64)
        places = np.frombuffer(section, "<f8", count * width, start + 20 + 8 * count)
        yield numbers, places.reshape(count, width)[:, :3]
        start += 20 + 8 * count * (1 + width)


def _nodes(number: int) -> int:
    kind = cell_kind(_GMSH_TYPES[number])
    if kind is None:
        raise KeyError(number)
    return kind.nodes


@dataclass(frozen=True)
class TaggedMesh:
    """Cells of one shape and tagged facets.

    Attributes
    ----------
    points : array, shape (points, 2) or (points, 3)
    shape : str
        ``"triangle"``, ``"quad"``, ``"tetra"`` or ``"hexahedron"``.
    cells : integer array, shape (cells, corners)
    cell_tags : integer array, shape (cells,)
        0 where a cell has no tag.
    facet_shape : str
    facets : integer array, shape (facets, corners of a facet)
    facet_tags : integer array, shape (facets,)
    names : dict
        ``name -> (dimension, tag)``.
    """

    points: NDArray[np.float64]
    shape: str
    cells: NDArray[np.int64]
    cell_tags: NDArray[np.int64]
    facet_shape: str
    facets: NDArray[np.int64]
    facet_tags: NDArray[np.int64]
    names: dict[str, tuple[int, int]]


def write_gmsh(path: Path, mesh: TaggedMesh) -> None:
    """Write a tagged mesh in gmsh's text format 2.2."""
    points = np.zeros((len(mesh.points), 3))
    points[:, : mesh.points.shape[1]] = mesh.points
    lines = ["$MeshFormat", "2.2 0 8", "$EndMeshFormat"]
    if mesh.names:
        lines += ["$PhysicalNames", str(len(mesh.names))]
        lines += [f'{dim} {tag} "{name}"' for name, (dim, tag) in mesh.names.items()]
        lines += ["$EndPhysicalNames"]
    lines += ["$Nodes", str(len(points))]
    lines += [f"{i} {x!r} {y!r} {z!r}" for i, (x, y, z) in enumerate(points.tolist(), start=1)]
    lines += ["$EndNodes", "$Elements", str(len(mesh.facets) + len(mesh.cells))]
    number = 1
    for shape, elements, tags in (
        (mesh.facet_shape, mesh.facets, mesh.facet_tags),
        (mesh.shape, mesh.cells, mesh.cell_tags),
    ):
        for nodes, tag in zip((elements + 1).tolist(), tags.tolist(), strict=True):
            words = " ".join(map(str, nodes))
            lines.append(f"{number} {_NUMBERS[shape]} 2 {tag} {tag} {words}")
            number += 1
    path.write_text("\n".join([*lines, "$EndElements", ""]))
