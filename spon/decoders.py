"""From coefficients to a function that keeps what the space and the boundary promise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spon import fem
from spon.copying import deepcopy_sharing
from spon.fem.constraints import (
    bc_to_json,
    captured_value,
    checked_bcs,
    essential_values,
    is_rule,
    move_bc,
)
from spon.signature import SpaceSignature

__all__ = ["Decoder"]


class Decoder(nn.Module):
    """Turn the output of a processor into a function of a space, with exact boundary values.

    The dofs that the boundary conditions constrain are overwritten by the prescribed values: no
    weight can change them. What the basis of the space carries (continuity, normal or tangential
    continuity) holds for every output.

    Parameters
    ----------
    U : FunctionSpace
        The output space; any Firedrake space.
    bcs : DirichletBC, sequence of DirichletBC, or callable, optional
        Conditions on `U` or its sub-spaces. Their values are taken when the decoder is built. A
        callable takes the space and returns the conditions; it is called again by `on`.

    Raises
    ------
    TypeError, ValueError
        If the conditions are not conditions on `U`, name an unknown boundary, or constrain no dof.
    NotImplementedError
        If the mesh is distributed over several processes.
    """

    constrained: Tensor
    values: Tensor

    def __init__(self, U: Any, bcs: Any = None) -> None:
        super().__init__()
        fem.require_primal_space(U, "A Decoder")
        fem.require_serial(fem.mesh_of(U), "A Decoder")
        self.space = U
        self.bcs = checked_bcs(U, bcs)
        self._rule = bcs if is_rule(bcs) else None
        self.signature: SpaceSignature = fem.signature(U)
        # As they are now: a Constant or a Function in them may change, the decoder does not.
        self.described = [bc_to_json(bc) for bc in self.bcs]
        self._captured = [captured_value(bc) for bc in self.bcs]
        mask, values = essential_values(U, self.bcs)
        self.register_buffer("constrained", torch.from_numpy(mask), persistent=False)
        self.register_buffer("values", torch.from_numpy(values), persistent=False)
        # `.to(float32)` rounds the buffer; functions get the values as they were prescribed.
        self._exact_values = torch.from_numpy(values)

    def forward(self, x: Tensor, boundary: Tensor | None = None) -> Tensor:
        """Set the prescribed dofs of a batch.

        Parameters
        ----------
        x : Tensor, shape (batch, U.dim())
        boundary : Tensor, shape (batch, U.dim()) or (U.dim(),), optional
            Values for each sample. Only the entries on the constrained dofs count; they replace
            the values that the conditions were built with.

        Returns
        -------
        Tensor, shape (batch, U.dim())

        Raises
        ------
        ValueError
            If a shape is wrong, or `boundary` is given to a decoder without conditions.
        """
        self._check(x, "output")
        values = self._exact_values.to(x) if x.dtype == torch.float64 else self.values.to(x)
        if boundary is not None:
            self._check(boundary, "boundary data")
            if not self.bcs:
                raise ValueError(
                    "Got boundary data for a decoder without boundary conditions: build it with "
                    "bcs=DirichletBC(U, 0, tag) to say which dofs they prescribe."
                )
            if boundary.ndim == 2 and len(boundary) != len(x):
                raise ValueError(
                    f"Got boundary data for {len(boundary)} samples and {len(x)} samples."
                )
            values = boundary.to(x)
        return torch.where(self.constrained, values, x)

    def function(self, x: Tensor, boundary: Tensor | None = None) -> Any:
        """Decode into functions, in double precision on the boundary whatever `x` is.

        Parameters
        ----------
        x : Tensor, shape (batch, U.dim())
        boundary : Tensor, optional
            As in `forward`.

        Returns
        -------
        list of Function
        """
        values = self._exact_values if boundary is None else boundary.detach().cpu().double()
        on_device = x.to(self.constrained.device)
        x = self(on_device, boundary).detach().cpu().double()
        return fem.to_function(torch.where(self.constrained.cpu(), values, x), self.space)

    def on(self, mesh: Any, bcs: Any = None) -> Decoder:
        """The decoder into the same element on another mesh, with the same conditions.

        Parameters
        ----------
        mesh : firedrake.MeshGeometry
        bcs : optional
            Other conditions, as the constructor takes them.

        Returns
        -------
        Decoder

        Raises
        ------
        ValueError
            If the mesh lacks a boundary tag, or values cannot be carried over.
        """
        U = fem.space_on(self.space, mesh)
        if bcs is not None:
            return Decoder(U, bcs)
        if self._rule is not None:
            return Decoder(U, self._rule)
        pairs = zip(self.bcs, self._captured, strict=True)
        return Decoder(U, [move_bc(bc, value, U) for bc, value in pairs])

    def __deepcopy__(self, memo: dict[int, Any]) -> Decoder:
        shared = [self.space, self._rule, *self.bcs, *self._captured]
        return deepcopy_sharing(self, memo, shared)

    def _check(self, x: Tensor, what: str) -> None:
        dim = self.space.dim()
        if x.ndim not in (1, 2) or x.shape[-1] != dim:
            raise ValueError(
                f"Got {what} of shape {tuple(x.shape)} for a decoder into "
                f"{self.signature.describe()}: expected (batch, {dim})."
            )
