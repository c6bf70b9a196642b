"""What a function space is, in a form that fits into a file and compares with another."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["SpaceSignature", "describe_element"]


@dataclass(frozen=True)
class SpaceSignature:
    """Everything that makes two arrays of dofs mean the same function.

    Attributes
    ----------
    element : dict
        The finite element as JSON: family, degree, variant, shape, sub-elements.
    cell : str
        Reference cell, ``"triangle"`` for example.
    geometric_dimension : int
        Number of coordinates of a point.
    value_size : int
        Number of scalar components of a function's value.
    dim : int
        Number of dofs.
    cells : int
        Number of cells of the mesh.
    dofs : str
        Hash of the mesh geometry and of the numbering of the dofs.
    """

    element: dict[str, Any]
    cell: str
    geometric_dimension: int
    value_size: int
    dim: int
    cells: int
    dofs: str

    def same_element(self, other: SpaceSignature) -> bool:
        """Whether both are the same element on meshes of the same kind of cell."""
        return (self.element, self.cell, self.geometric_dimension) == (
            other.element,
            other.cell,
            other.geometric_dimension,
        )

    def describe(self) -> str:
        """One line for messages: element, mesh, number of dofs and the short hash."""
        return (
            f"{describe_element(self.element)} on {self.cells} {_plural(self.cell)} in "
            f"{self.geometric_dimension}D, {self.dim} dofs [{self.dofs[:8]}]"
        )

    def to_json(self) -> dict[str, Any]:
        """The signature as JSON-able values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SpaceSignature:
        """Build a signature from what `to_json` returned.

        Raises
        ------
        ValueError
            If a field is missing or unknown.
        """
        try:
            return cls(**data)
        except TypeError as error:
            raise ValueError(
                f"A space signature has the fields {sorted(cls.__dataclass_fields__)}, got "
                f"{sorted(data)}."
            ) from error


def describe_element(element: dict[str, Any]) -> str:
    """Short name of an element given as JSON, ``"vector CG 2"`` for example."""
    kind = element["kind"]
    if kind == "finite":
        name = f"{_SHORT.get(element['family'], element['family'])} {element['degree']}"
        return f"{name} ({element['variant']})" if element.get("variant") else name
    if kind in ("vector", "tensor"):
        return f"{kind}{tuple(element['shape'])} {describe_element(element['sub'])}"
    if kind in ("mixed", "enriched"):
        sign = " x " if kind == "mixed" else " + "
        return "(" + sign.join(describe_element(sub) for sub in element["subs"]) + ")"
    if kind == "wrapped":
        return f"{element['wrapper']}({describe_element(element['sub'])})"
    return kind


_SHORT = {
    "Lagrange": "CG",
    "Discontinuous Lagrange": "DG",
    "Discontinuous Lagrange L2": "DG L2",
    "Raviart-Thomas": "RT",
    "Brezzi-Douglas-Marini": "BDM",
    "Nedelec 1st kind H(curl)": "N1curl",
    "Nedelec 2nd kind H(curl)": "N2curl",
}


def _plural(cell: str) -> str:
    return {"tetrahedron": "tetrahedra", "hexahedron": "hexahedra"}.get(cell, cell + "s")
