"""How strains and stresses are written as vectors. Every other file takes its conventions here.

======================  ====  =========================================================
state                   size  components
======================  ====  =========================================================
plane, small strain       3   E_xx, E_yy, 2 E_xy; stress s_xx, s_yy, s_xy
solid, small strain       6   E_xx, E_yy, E_zz, 2 E_yz, 2 E_xz, 2 E_xy; stress alike
plane, finite strain      4   F_xx, F_xy, F_yx, F_yy; first Piola stress alike
solid, finite strain      9   F row by row; first Piola stress alike
======================  ====  =========================================================

Shear strains are doubled and shear stresses are not, so that ``stress @ strain`` is the double
contraction of the tensors; local strain *tensors* hold E_xy. Lengths have no unit, stresses that
of the material's parameters (MPa in the demos).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

__all__ = [
    "SMALL",
    "checked_strain",
    "component_names",
    "from_matrix",
    "rest_strain",
    "strain_size",
    "stress_names",
    "to_matrix",
]

# Row and column of each component of a small strain.
SMALL: dict[int, tuple[tuple[int, int], ...]] = {
    2: ((0, 0), (1, 1), (0, 1)),
    3: ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)),
}
_AXES = "xyz"


def strain_size(dim: int, finite: bool = False) -> int:
    """Number of components of a strain in `dim` dimensions.

    Raises
    ------
    ValueError
        If `dim` is neither 2 nor 3.
    """
    if dim not in (2, 3):
        raise ValueError(f"A strain has 2 or 3 dimensions, got dim={dim!r}.")
    return dim * dim if finite else len(SMALL[dim])


def pairs(dim: int, finite: bool = False) -> tuple[tuple[int, int], ...]:
    """Row and column of each component."""
    strain_size(dim, finite)
    if finite:
        return tuple((i, j) for i in range(dim) for j in range(dim))
    return SMALL[dim]


def component_names(dim: int, finite: bool = False) -> tuple[str, ...]:
    """Names of the strain components, ``("E_xx", "E_yy", "2 E_xy")`` for example."""
    letter = "F" if finite else "E"
    return tuple(
        f"{'' if finite or i == j else '2 '}{letter}_{_AXES[i]}{_AXES[j]}"
        for i, j in pairs(dim, finite)
    )


def stress_names(dim: int, finite: bool = False) -> tuple[str, ...]:
    """Names of the stress components, ``("s_xx", "s_yy", "s_xy")`` for example."""
    letter = "P" if finite else "s"
    return tuple(f"{letter}_{_AXES[i]}{_AXES[j]}" for i, j in pairs(dim, finite))


def rest_strain(dim: int, finite: bool = False) -> Tensor:
    """The strain of the body at rest: zero, or the identity as deformation gradient.

    Returns
    -------
    Tensor, shape (components,)
    """
    rest = torch.zeros(strain_size(dim, finite), dtype=torch.float64)
    if finite:
        rest[:: dim + 1] = 1.0
    return rest


def to_matrix(vector: ArrayLike | Tensor, dim: int, finite: bool = False) -> Tensor:
    """Strain vectors as tensors.

    Parameters
    ----------
    vector : array, shape (..., components)
        Strains; for stresses, which do not double the shear, see `stress` of `from_matrix`.
    dim : int
    finite : bool, optional

    Returns
    -------
    Tensor, shape (..., dim, dim)
        With E_xy (not doubled) off the diagonal.
    """
    v = torch.as_tensor(vector, dtype=torch.float64)
    size = strain_size(dim, finite)
    if v.shape[-1] != size:
        raise ValueError(
            f"Expected {size} components ({', '.join(component_names(dim, finite))}), got an array "
            f"of shape {tuple(v.shape)}."
        )
    if finite:
        return v.reshape(*v.shape[:-1], dim, dim)
    matrix = v.new_zeros(*v.shape[:-1], dim, dim)
    for k, (i, j) in enumerate(SMALL[dim]):
        matrix[..., i, j] = matrix[..., j, i] = v[..., k] if i == j else 0.5 * v[..., k]
    return matrix


def from_matrix(matrix: ArrayLike | Tensor, finite: bool = False, stress: bool = False) -> Tensor:
    """Tensors as vectors.

    Parameters
    ----------
    matrix : array, shape (..., dim, dim)
    finite : bool, optional
        Deformation gradients and first Piola stresses, row by row.
    stress : bool, optional
        Stresses: the shear components are not doubled.

    Returns
    -------
    Tensor, shape (..., components)
    """
    m = torch.as_tensor(matrix, dtype=torch.float64)
    dim = m.shape[-1] if m.ndim else 0
    if m.ndim < 2 or m.shape[-2] != dim or dim not in (2, 3):
        raise ValueError(
            f"Expected tensors of shape (..., 2, 2) or (..., 3, 3), got {tuple(m.shape)}."
        )
    parts = []
    for i, j in pairs(dim, finite):
        doubled = not (finite or stress or i == j)
        parts.append(m[..., i, j] + m[..., j, i] if doubled else m[..., i, j])
    return torch.stack(parts, -1)


def checked_strain(strain: Any, sizes: tuple[int, ...], what: str) -> tuple[Tensor, bool]:
    """A strain as a float64 tensor of shape (n, components).

    Parameters
    ----------
    strain : Tensor, array or nested lists, shape (n, components) or (components,)
    sizes : tuple of int
        Numbers of components that are welcome.
    what : str
        Who asks, for messages.

    Returns
    -------
    Tensor, shape (n, components)
    bool
        Whether a single strain came, without the axis n.

    Raises
    ------
    TypeError
        If single precision or something other than real numbers came.
    ValueError
        If the shape is wrong, or a number is not finite.
    """
    if isinstance(strain, Tensor | np.ndarray):
        x = torch.as_tensor(strain)
        if x.dtype not in (torch.float64, torch.int64):
            raise TypeError(
                f"{what} computes in float64, got a strain of {x.dtype}: convert it with "
                ".double() (or .astype(float)) where it was made."
            )
        x = x.double()
    else:
        try:
            x = torch.tensor(np.asarray(strain, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{what} takes strains as an array or nested lists of numbers, got "
                f"{type(strain).__name__}: {error}."
            ) from error
    single = x.ndim == 1
    if single:
        x = x[None]
    if x.ndim != 2 or x.shape[1] not in sizes:
        raise ValueError(
            f"{what} takes strains of shape (n, {' or '.join(map(str, sizes))}), got "
            f"{tuple(x.shape) if not single else tuple(x.shape[1:])}; the components are listed in "
            "fe_ol.voigt."
        )
    finite = torch.isfinite(x.detach()).all(1)
    if not finite.all():
        first = int((~finite).nonzero()[0])
        raise ValueError(
            f"{what}: {int((~finite).sum())} of {len(x)} strains hold NaN or infinity, the first "
            f"is number {first}: {x[first].tolist()}."
        )
    return x, single
