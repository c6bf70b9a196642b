"""From input data to coefficients in a finite element space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spon import fem
from spon.copying import deepcopy_sharing
from spon.fem.encoding import L2Projection, LeastSquares, checked_grid, grid_points
from spon.fem.maps import points_inside
from spon.signature import SpaceSignature

__all__ = ["Encoder"]

_METHODS = ("interpolate", "project")


class Encoder(nn.Module):
    """Map an input function, or data on another grid, to coefficients in a space.

    The encoder has no weights: it follows from the space. It is exact for functions of the space.

    Parameters
    ----------
    V : FunctionSpace
        The space that represents the input; any Firedrake space.
    source : FunctionSpace, optional
        The space in which the data are given, when it is not `V`; it may live on another mesh.
    method : {"interpolate", "project"}
        How functions of `source` come into `V`: interpolation, or L2 projection.
    points : array, shape (n_points, geometric_dimension), optional
        The data are values at these points, fitted by least squares.
    grid : sequence of int, optional
        The data are a regular image with this many pixels along each coordinate axis, fitted by
        least squares; pixels with their centre outside the mesh are left out. Needs `box`.
    box : array, shape (geometric_dimension, 2), optional
        Lower and upper end of the image along each axis.
    smoothing : float, optional
        Weight of the squared gradient in the fit to points or pixels, see `LeastSquares`.

    Raises
    ------
    TypeError
        If `V` is not a function space, or the space of a dual.
    ValueError
        If the options contradict each other, the spaces have different value shapes, or the
        points do not determine a function of the space.
    NotImplementedError
        If the mesh is distributed over several processes.
    """

    _pixels: Tensor

    def __init__(
        self,
        V: Any,
        source: Any = None,
        method: str = "interpolate",
        *,
        points: Any = None,
        grid: Sequence[int] | None = None,
        box: Any = None,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        fem.require_primal_space(V, "An Encoder")
        fem.require_serial(fem.mesh_of(V), "An Encoder")
        if method not in _METHODS:
            raise ValueError(f"The method is one of {_METHODS}, got {method!r}.")
        given = [
            name
            for name, x in (("source", source), ("points", points), ("grid", grid))
            if x is not None
        ]
        if len(given) > 1:
            raise ValueError(
                f"Give at most one of source, points and grid, got {' and '.join(given)}."
            )
        if (grid is None) != (box is None):
            raise ValueError(
                "An image needs both grid (pixels along each axis) and box (its ends)."
            )
        if smoothing and points is None and grid is None:
            raise ValueError("Smoothing belongs to data at points or on a grid.")
        self.space, self.source, self.method = V, source, method
        # A copy: the caller's array may change.
        self.points = None if points is None else np.array(points, dtype=np.float64, order="C")
        self.grid = None if grid is None else checked_grid(grid)
        self.box, self.smoothing = box, float(smoothing)
        self.signature: SpaceSignature = fem.signature(V)
        # For functions: in a plain dict, so that no `.to` of the network reaches them.
        self._double_maps: dict[Any, Any] = {}
        self._map = self._build()

    def _build(self) -> nn.Module | None:
        if self.source is not None:
            fem.require_primal_space(self.source, "The source of an Encoder")
            if self.source == self.space:
                return None
            if self.method == "project":
                return L2Projection(self.source, self.space)
            return fem.interpolation_map(self.source, self.space)
        points = self.points
        if self.grid is not None:
            centres = grid_points(self.grid, self.box)
            inside = points_inside(fem.mesh_of(self.space), centres)
            self.register_buffer(
                "_pixels", torch.from_numpy(np.flatnonzero(inside)), persistent=False
            )
            points = centres[inside]
        return None if points is None else LeastSquares(self.space, points, self.smoothing)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input as a tensor: dofs, point values or pixels."""
        components = (self.space.value_size,) if self.space.value_size > 1 else ()
        if self.grid is not None:
            return (*self.grid, *components)
        if self.points is not None:
            return (len(self.points), *components)
        return (int((self.source if self.source is not None else self.space).dim()),)

    @property
    def data_signature(self) -> SpaceSignature | None:
        """Signature of the space in which coefficient data must come; None for point data."""
        if self.grid is not None or self.points is not None:
            return None
        return self.signature if self.source is None else fem.signature(self.source)

    def forward(self, x: Tensor) -> Tensor:
        """Encode a batch.

        Parameters
        ----------
        x : Tensor, shape (batch, *input_shape)
            Coefficients in `source` (or `V`); values at the points; or images, whose axes are the
            coordinate axes. Components of vectors come last.

        Returns
        -------
        Tensor, shape (batch, V.dim())

        Raises
        ------
        ValueError
            If `x` has another shape.
        """
        if x.shape[1:] != self.input_shape:
            raise ValueError(
                f"Got a tensor of shape {tuple(x.shape)} for an encoder into "
                f"{self.signature.describe()}: expected (batch, "
                f"{', '.join(map(str, self.input_shape))})."
            )
        if self._map is None:
            return x
        if self.grid is not None:
            x = x.flatten(1, len(self.grid))[:, self._pixels]
        encoded: Tensor = self._map(x.flatten(1).T)
        return encoded.T

    def encode(self, functions: Any, dtype: torch.dtype = torch.float64) -> Tensor:
        """Encode one function or a batch of functions.

        Parameters
        ----------
        functions : Function or sequence of Function
            In `V`, in `source`, or in any space of the same value shape; those are brought into
            `V` by `method`.
        dtype : torch.dtype, optional

        Returns
        -------
        Tensor, shape (batch, V.dim()), batch 1 for a single function

        Raises
        ------
        TypeError
            If cofunctions are given.
        ValueError
            If the value shapes differ.
        """
        batch = [functions] if fem.is_function(functions) else functions
        x = fem.to_tensor(batch, dtype=torch.float64)
        space = batch[0].function_space()
        fem.require_primal_space(space, "An Encoder")
        if space == self.space:
            return x.to(dtype)
        if space not in self._double_maps:
            build = L2Projection if self.method == "project" else fem.interpolation_map
            self._double_maps[space] = build(space, self.space)
        encoded: Tensor = self._double_maps[space](x.T).T
        return encoded.to(dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> Encoder:
        return deepcopy_sharing(self, memo, [self.space, self.source, self._double_maps])

    def on(self, mesh: Any) -> Encoder:
        """The encoder into the same element on another mesh.

        Parameters
        ----------
        mesh : firedrake.MeshGeometry

        Returns
        -------
        Encoder
            Points and images stay where they are. A source on the old mesh moves along, a source
            on a mesh of its own stays.
        """
        source = self.source
        if source is not None and fem.mesh_of(source) is fem.mesh_of(self.space):
            source = fem.space_on(source, mesh)
        return Encoder(
            fem.space_on(self.space, mesh),
            source,
            self.method,
            points=self.points,
            grid=self.grid,
            box=self.box,
            smoothing=self.smoothing,
        )
