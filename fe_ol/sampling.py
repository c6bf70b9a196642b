"""Where to sample: macroscopic strains in a box."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor

__all__ = ["sample_strains", "sample_stretches"]

_METHODS = ("lhs", "sobol", "laplace")


def sample_strains(
    n: int, components: int, radius: float = 0.04, seed: int = 0, method: str = "lhs"
) -> Tensor:
    """Macroscopic strains in a box.

    Parameters
    ----------
    n : int
    components : int
        3 in 2D and 6 in 3D; 4 and 9 for deformation gradients.
    radius : float, optional
        Half the edge of the box.
    seed : int, optional
    method : {"lhs", "sobol", "laplace"}, optional
        Uniform Latin hypercube; scrambled Sobol points, of which the first ones stay the same when
        `n` grows; or independent Laplace distributed components cut off at the box, which crowd
        near zero like those of Eivazi et al. (2025).

    Returns
    -------
    Tensor, shape (n, components)
        In the box of this radius around zero.

    Raises
    ------
    ValueError
        If an argument is out of its range.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}.")
    if not 0 < radius < np.inf:
        raise ValueError(f"radius must be positive, got {radius}.")
    if method not in _METHODS:
        raise ValueError(f"method must be one of {_METHODS}, got {method!r}.")
    if method == "lhs":
        unit = qmc.LatinHypercube(components, seed=seed).random(n)
    elif method == "sobol":
        # Powers of two only are balanced, and scipy warns of others.
        unit = qmc.Sobol(components, seed=seed).random_base2(int(np.ceil(np.log2(max(n, 2)))))[:n]
    else:
        unit = np.stack([_laplace(np.random.default_rng([seed, i]), components) for i in range(n)])
    return torch.from_numpy(radius * (2 * unit - 1))


def sample_stretches(
    n: int, dim: int, radius: float = 0.04, seed: int = 0, method: str = "lhs"
) -> Tensor:
    """Symmetric changes of the identity: right stretch tensors are it plus one of these.

    Parameters
    ----------
    n : int
    dim : int
    radius, seed, method
        As in `sample_strains`, of the 3 or 6 different entries.

    Returns
    -------
    Tensor, shape (n, dim * dim)
        Row by row.
    """
    rows, columns = torch.triu_indices(dim, dim)
    entries = sample_strains(n, len(rows), radius, seed, method)
    out = torch.zeros(n, dim, dim, dtype=torch.float64)
    out[:, rows, columns] = out[:, columns, rows] = entries
    return out.flatten(1)


def _laplace(rng: np.random.Generator, components: int) -> np.ndarray:
    # The inverse of the distribution function on (-1, 1), with a quarter of the radius as scale.
    uniform, scale = rng.uniform(-1, 1, components), 0.25
    magnitude = -scale * np.log1p(-np.abs(uniform) * -np.expm1(-1 / scale))
    return (1 + np.sign(uniform) * magnitude) / 2
