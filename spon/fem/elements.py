"""Finite elements as JSON, and back: how a space travels in a file without pickle."""

from __future__ import annotations

from typing import Any

import finat.ufl
from firedrake import FunctionSpace

__all__ = ["element_from_json", "element_to_json", "shaped", "space_from_element"]

_WRAPPERS = {
    "broken": finat.ufl.BrokenElement,
    "hdiv": finat.ufl.HDivElement,
    "hcurl": finat.ufl.HCurlElement,
}


def element_to_json(element: Any) -> dict[str, Any]:
    """Describe a UFL finite element by JSON-able values.

    Parameters
    ----------
    element : finat.ufl.FiniteElementBase

    Returns
    -------
    dict
        ``{"kind": "finite", "family": ..., "degree": ..., "variant": ...}`` for a basic element;
        vector, tensor, mixed, enriched, tensor-product and wrapped elements nest their parts.

    Raises
    ------
    NotImplementedError
        For a kind of element that cannot be written down yet.
    """
    # Vector and tensor elements are subclasses of the mixed one: ask for the narrow kinds first.
    if isinstance(element, finat.ufl.TensorElement):
        # As lists of pairs: JSON knows no tuples as keys.
        symmetry = sorted([list(k), list(v)] for k, v in (element.symmetry() or {}).items())
        return {
            "kind": "tensor",
            "shape": list(element._shape),
            "symmetry": symmetry,
            "sub": element_to_json(element.sub_elements[0]),
        }
    if isinstance(element, finat.ufl.VectorElement):
        return {
            "kind": "vector",
            "shape": [element.num_sub_elements],
            "sub": element_to_json(element.sub_elements[0]),
        }
    if isinstance(element, finat.ufl.MixedElement):
        return {"kind": "mixed", "subs": [element_to_json(sub) for sub in element.sub_elements]}
    if isinstance(element, finat.ufl.EnrichedElement):
        return {"kind": "enriched", "subs": [element_to_json(sub) for sub in element._elements]}
    if isinstance(element, finat.ufl.TensorProductElement):
        factors = [element_to_json(sub) for sub in element.factor_elements]
        return {"kind": "product", "subs": factors}
    for name, wrapper in _WRAPPERS.items():
        if isinstance(element, wrapper):
            return {"kind": "wrapped", "wrapper": name, "sub": element_to_json(element._element)}
    if type(element) is finat.ufl.FiniteElement:
        return {
            "kind": "finite",
            "family": element.family(),
            "cell": element.cell.cellname,
            "degree": element.degree(),
            "variant": element.variant(),
        }
    raise NotImplementedError(
        f"The element {element!r} cannot be written to a file: supported are basic, vector, "
        "tensor, mixed, enriched, tensor-product, broken, HDiv and HCurl elements."
    )


def element_from_json(data: dict[str, Any]) -> Any:
    """Build the UFL element that `element_to_json` described.

    Raises
    ------
    ValueError
        If `data` is not such a description.
    """
    try:
        kind = data["kind"]
        if kind == "finite":
            return finat.ufl.FiniteElement(
                data["family"], data["cell"], data["degree"], variant=data["variant"]
            )
        if kind == "vector":
            return finat.ufl.VectorElement(element_from_json(data["sub"]), dim=data["shape"][0])
        if kind == "tensor":
            symmetry = {tuple(k): tuple(v) for k, v in data["symmetry"]} or None
            return finat.ufl.TensorElement(
                element_from_json(data["sub"]), shape=tuple(data["shape"]), symmetry=symmetry
            )
        if kind == "wrapped":
            return _WRAPPERS[data["wrapper"]](element_from_json(data["sub"]))
        group = {
            "mixed": finat.ufl.MixedElement,
            "enriched": finat.ufl.EnrichedElement,
            "product": finat.ufl.TensorProductElement,
        }[kind]
        return group(*(element_from_json(sub) for sub in data["subs"]))
    except KeyError as error:
        raise ValueError(f"Not the description of a finite element: {data!r}.") from error


def space_from_element(mesh: Any, data: dict[str, Any]) -> Any:
    """Build the function space of a described element on a mesh.

    Parameters
    ----------
    mesh : firedrake.MeshGeometry
    data : dict
        What `element_to_json` returned.

    Returns
    -------
    firedrake.FunctionSpace

    Raises
    ------
    ValueError
        If the element lives on another kind of cell than the mesh has.
    """
    wanted, found = _cell(data), mesh.ufl_cell().cellname
    if wanted is not None and wanted != found:
        raise ValueError(
            f"The element was made for a mesh of {wanted} cells, this mesh has {found} cells."
        )
    return FunctionSpace(mesh, element_from_json(data))


def _cell(data: dict[str, Any]) -> str | None:
    if data["kind"] == "finite":
        return str(data["cell"])
    if data["kind"] == "product":
        return None
    return _cell(data["sub"] if "sub" in data else data["subs"][0])


def shaped(element: Any, shape: tuple[int, ...]) -> Any:
    """The element of scalar, vector or tensor fields with a scalar element for each component."""
    if len(shape) == 0:
        return element
    if len(shape) == 1:
        return finat.ufl.VectorElement(element, dim=shape[0])
    return finat.ufl.TensorElement(element, shape=shape)
