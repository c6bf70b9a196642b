"""Gram matrices: the inner products of L2, H1, H(div) and H(curl) on a finite element space."""

from __future__ import annotations

from typing import Any

import firedrake as fd
import scipy.sparse as sp
import ufl
from ufl.duals import is_dual

from spon.fem.elements import element_to_json, space_from_element
from spon.fem.maps import sparse_map
from spon.fem.spaces import mesh_of
from spon.sparse import SparseMap

__all__ = ["NORMS", "fitting_norms", "gram"]

NORMS = ("L2", "H1", "Hdiv", "Hcurl")
_SOBOLEV = {"L2": ufl.L2, "H1": ufl.H1, "Hdiv": ufl.HDiv, "Hcurl": ufl.HCurl}


def gram(V: Any, norm: str = "L2") -> SparseMap:
    """Assemble the Gram matrix ``G`` of a norm: ``v @ G v`` is the squared norm of ``v``.

    ======  ==========================================
    norm    inner product
    ======  ==========================================
    L2      ``(u, v)``; on a mixed space the sum over its components
    H1      ``(u, v) + (grad u, grad v)``
    Hdiv    ``(u, v) + (div u, div v)``
    Hcurl   ``(u, v) + (curl u, curl v)``, with the scalar curl in 2D
    ======  ==========================================

    Parameters
    ----------
    V : firedrake.FunctionSpace
        The space; its functions must belong to the Sobolev space of the norm.
    norm : {"L2", "H1", "Hdiv", "Hcurl"}, optional
        Which inner product.

    Returns
    -------
    SparseMap, shape (V.dim(), V.dim())
        Symmetric, positive definite, float64.

    Raises
    ------
    TypeError
        If `V` is not a primal function space.
    ValueError
        If the norm is unknown, or if the functions of `V` are not smooth enough for it.
    """
    _check_space(V)
    if norm not in NORMS:
        raise ValueError(f"Unknown norm {norm!r}: choose one of {', '.join(map(repr, NORMS))}.")
    fitting = fitting_norms(V)
    if norm not in fitting:
        raise ValueError(_refusal(V, norm, fitting))
    if any(part.ufl_element().family() == "Real" for part in V.subspaces):
        return _with_constants(V, norm)
    u, v = fd.TrialFunction(V), fd.TestFunction(V)
    product = ufl.inner(u, v)
    if norm == "H1":
        product += ufl.inner(ufl.grad(u), ufl.grad(v))
    elif norm == "Hdiv":
        product += ufl.inner(ufl.div(u), ufl.div(v))
    elif norm == "Hcurl":
        product += ufl.inner(ufl.curl(u), ufl.curl(v))
    return sparse_map(product * _measure(V))


def _with_constants(V: Any, norm: str) -> SparseMap:
    """The same where parts are Real spaces, for which Firedrake assembles no sparse matrix."""
    mesh = mesh_of(V)
    volume = float(fd.assemble(fd.Constant(1.0) * fd.dx(domain=mesh)))
    blocks = []
    for part in V.subspaces:
        if part.ufl_element().family() == "Real":
            blocks.append(volume * sp.identity(part.dim(), format="csr"))
        else:
            space = space_from_element(mesh, element_to_json(part.ufl_element()))
            blocks.append(gram(space, norm).to_scipy())
    return SparseMap(sp.block_diag(blocks, format="csr"))


def fitting_norms(V: Any) -> tuple[str, ...]:
    """Which of the norms make sense on a space.

    Parameters
    ----------
    V : firedrake.FunctionSpace

    Returns
    -------
    tuple of str
        The norms of `NORMS` in which every function of `V` has a finite norm.
    """
    return tuple(norm for norm in NORMS if _fits(V, norm))


def _fits(V: Any, norm: str) -> bool:
    if norm == "L2":
        return True
    if len(V) > 1 or V.ufl_element() not in _SOBOLEV[norm]:
        return False
    shape, dim = V.value_shape, V.mesh().geometric_dimension
    if norm == "Hdiv":
        return len(shape) > 0 and shape[-1] == dim
    if norm == "Hcurl":
        return shape == (dim,) and dim in (2, 3) and V.mesh().topological_dimension == dim
    return True


def _refusal(V: Any, norm: str, fitting: tuple[str, ...]) -> str:
    names = " or ".join(repr(name) for name in fitting)
    if len(V) > 1:
        return (
            f"The norm {norm!r} is not defined on the mixed space {V.ufl_element()}, whose "
            f"components need norms of their own. What fits is {names}, summed over the components."
        )
    values = f"values of shape {V.value_shape}" if V.value_shape else "scalar values"
    return (
        f"The norm {norm!r} does not fit {V.ufl_element()} ({values}, continuity of "
        f"{V.ufl_element().sobolev_space}): what fits is {names}."
    )


def _measure(V: Any) -> Any:
    """``dx``, on a quadrature space with the points of the space."""
    element = V.ufl_element()
    if element.family() == "Quadrature":
        return fd.dx(degree=element.degree())
    return fd.dx


def _check_space(V: Any) -> None:
    if not hasattr(V, "ufl_element"):
        raise TypeError(
            f"Expected a Firedrake function space, got {type(V).__name__}; a function's space is "
            "f.function_space()."
        )
    if is_dual(V):
        raise TypeError(
            f"A norm of functions needs a primal space, got the dual of {V.ufl_element()}: pass "
            "V.dual()."
        )
