"""Finite element functions to tensors and back, and the signature of a space.

The tensor of a function is its coefficient vector in the dof order of the space: node by node
with the components of a node side by side, and block after block for a mixed space. This is the
order of the rows and columns of every assembled matrix.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from firedrake import Cofunction, Function
from firedrake.exceptions import NonUniqueMeshSequenceError
from firedrake.functionspaceimpl import WithGeometryBase
from firedrake.mesh import MeshGeometry
from torch import Tensor
from ufl.duals import is_dual

from spon.fem.elements import element_to_json, space_from_element
from spon.signature import SpaceSignature, describe_element

__all__ = [
    "is_function",
    "mesh_of",
    "name_of",
    "require_mesh",
    "require_primal_space",
    "require_serial",
    "signature",
    "space_on",
    "to_function",
    "to_tensor",
]


def require_serial(mesh: Any, what: str) -> None:
    """Refuse a mesh that is distributed over several processes.

    Raises
    ------
    NotImplementedError
        If the communicator of `mesh` has more than one process.
    """
    size = mesh.comm.size
    if size > 1:
        raise NotImplementedError(
            f"{what} needs a mesh that lives on one process, this one is distributed over {size}. "
            "Give each process its own mesh: Ensemble(COMM_WORLD, 1) and Mesh(..., "
            "comm=ensemble.comm)."
        )


def mesh_of(V: Any) -> Any:
    """The mesh of a space, also of a mixed one.

    Raises
    ------
    NotImplementedError
        If a mixed space has its parts on different meshes.
    """
    try:
        return V.mesh().unique()
    except NonUniqueMeshSequenceError as error:
        raise NotImplementedError(
            "Mixed spaces whose parts live on different meshes are not supported: encode the parts "
            "one by one."
        ) from error


def require_primal_space(V: Any, what: str) -> None:
    """Refuse what is not a space of functions.

    Raises
    ------
    TypeError
        If `V` is not a Firedrake function space, or is the dual of one.
    """
    if not isinstance(V, WithGeometryBase):
        raise TypeError(f"{what} needs a Firedrake FunctionSpace, got {type(V).__name__}.")
    if is_dual(V):
        raise TypeError(
            f"{what} takes functions (primal), not loads or residuals (dual): bring a cofunction "
            "into the space by its Riesz map, cofunction.riesz_representation()."
        )


def require_mesh(mesh: Any) -> None:
    """Refuse what is not a Firedrake mesh.

    Raises
    ------
    TypeError
    """
    if not isinstance(mesh, MeshGeometry):
        raise TypeError(f"Expected a Firedrake mesh, got {type(mesh).__name__}.")


def space_on(V: Any, mesh: Any) -> Any:
    """The space with the element of `V` on another mesh.

    Raises
    ------
    TypeError
        If `mesh` is not a Firedrake mesh.
    ValueError
        If the meshes have different kinds of cells.
    """
    require_mesh(mesh)
    return space_from_element(mesh, element_to_json(V.ufl_element()))


def is_function(x: Any) -> bool:
    """Whether `x` is a Firedrake ``Function`` or ``Cofunction``."""
    return isinstance(x, Function | Cofunction)


def to_tensor(
    functions: Any,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Tensor:
    """Copy the coefficients of one function or of a batch into a tensor.

    Parameters
    ----------
    functions : Function, Cofunction, or sequence of them
        Real-valued; the functions of a batch live in one space.
    dtype : torch.dtype, optional
        ``torch.float64`` by default.
    device : torch.device, optional

    Returns
    -------
    Tensor, shape (V.dim(),) for one function, (batch, V.dim()) for a sequence

    Raises
    ------
    TypeError
        If something other than functions is given, or the functions are complex.
    ValueError
        If the batch is empty or mixes spaces.
    NotImplementedError
        If the mesh is distributed over several processes.
    """
    if is_function(functions):
        return torch.from_numpy(_coefficients(functions)).to(device=device, dtype=dtype)
    if not isinstance(functions, Sequence) or isinstance(functions, str):
        raise TypeError(
            f"Expected a Function or a sequence of them, got {type(functions).__name__}."
        )
    if not functions:
        raise ValueError("Expected at least one function, got an empty sequence.")
    for f in functions:
        if not is_function(f):
            raise TypeError(f"Expected a sequence of Functions, found a {type(f).__name__} in it.")
        if f.function_space() != functions[0].function_space():
            raise ValueError(
                "The functions of a batch live in one space, got "
                f"{functions[0].function_space()} and {f.function_space()}."
            )
    batch = np.stack([_coefficients(f) for f in functions])
    return torch.from_numpy(batch).to(device=device, dtype=dtype)


def to_function(x: Tensor, V: Any) -> Any:
    """Make functions of coefficient vectors.

    Parameters
    ----------
    x : Tensor, shape (V.dim(),) or (batch, V.dim())
        Coefficients in the dof order of `V`, any floating dtype and device.
    V : FunctionSpace or its dual
        The space. For a dual space the result are cofunctions.

    Returns
    -------
    Function for one vector, list of Function for a batch

    Raises
    ------
    TypeError
        If `x` is not a floating-point tensor.
    ValueError
        If the last axis of `x` is not ``V.dim()`` long.
    NotImplementedError
        If the mesh is distributed over several processes.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(
            "Expected a tensor of real floating-point coefficients, got "
            f"{x.dtype if isinstance(x, Tensor) else type(x).__name__}."
        )
    require_serial(mesh_of(V), "to_function")
    if x.ndim not in (1, 2) or x.shape[-1] != V.dim():
        raise ValueError(
            f"Got a tensor of shape {tuple(x.shape)} for {_name(V)}: expected ({V.dim()},) for one "
            f"function or (batch, {V.dim()})."
        )
    values = x.detach().to("cpu", torch.float64).numpy()
    return _function(values, V) if x.ndim == 1 else [_function(row, V) for row in values]


def signature(V: Any) -> SpaceSignature:
    """Signature of a function space: element, mesh and dof numbering.

    Two spaces with equal signatures give the same meaning to the same coefficient vector, also in
    another process and on another day.

    Parameters
    ----------
    V : FunctionSpace

    Returns
    -------
    SpaceSignature

    Raises
    ------
    NotImplementedError
        If the mesh is distributed, or the element cannot be written down.
    """
    mesh = mesh_of(V)
    require_serial(mesh, "The signature of a space")
    digest = hashlib.sha256()
    geometry = mesh.coordinates
    for array in (
        geometry.dat.data_ro,
        geometry.cell_node_map().values,
        *(sub.cell_node_map().values for sub in _blocks(V)),
    ):
        digest.update(str(array.shape).encode())
        # Adding zero turns a negative zero into the positive one.
        digest.update(np.ascontiguousarray(array + 0).tobytes())
    return SpaceSignature(
        element=element_to_json(V.ufl_element()),
        cell=mesh.ufl_cell().cellname,
        geometric_dimension=int(mesh.geometric_dimension),
        value_size=int(V.value_size),
        dim=int(V.dim()),
        cells=int(mesh.num_cells()),
        dofs=digest.hexdigest(),
    )


def name_of(V: Any) -> str:
    """Short name of the element of a space, ``"CG 2"`` for example, for messages."""
    return describe_element(element_to_json(V.ufl_element()))


def _blocks(V: Any) -> list[Any]:
    # A Real space is one number for the whole mesh and has no map.
    return [sub for sub in V.subspaces if sub.ufl_element().family() != "Real"]


def _name(V: Any) -> str:
    return f"{name_of(V)} with {V.dim()} dofs"


def _coefficients(f: Any) -> np.ndarray:
    require_serial(mesh_of(f.function_space()), "to_tensor")
    parts = [np.asarray(part.dat.data_ro).reshape(-1) for part in f.subfunctions]
    if any(np.iscomplexobj(part) for part in parts):
        raise TypeError(
            "Complex functions are not supported: use a real build of Firedrake, with real and "
            "imaginary parts as the two fields of a mixed space."
        )
    # A copy, always: the tensor must not change when the function does.
    return np.concatenate(parts) if len(parts) > 1 else parts[0].astype(np.float64, copy=True)


def _function(values: np.ndarray, V: Any) -> Any:
    kind = Cofunction if is_dual(V) else Function
    if len(V) == 1:
        # Handing over the array is several times faster than filling the function afterwards.
        block = V.dof_dset.dim
        return kind(V, val=values.reshape(-1, *(() if block == (1,) else block)).copy())
    f = kind(V)
    start = 0
    for part in f.subfunctions:
        target = part.dat.data_wo
        stop = start + target.size
        target[...] = values[start:stop].reshape(target.shape)
        start = stop
    return f
