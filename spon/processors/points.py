"""Quadrature points of the mesh, and elliptic problems with coefficients given there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from spon.copying import deepcopy_sharing
from spon.sparse import SparseMap

__all__ = ["EllipticSolve", "Points", "lift", "read"]


def lift(maps: Iterable[nn.Module], xs: Sequence[Tensor], count: int) -> Tensor:
    """Coefficients of all inputs to values at nodes or points.

    Parameters
    ----------
    maps : iterable of SparseMap, shapes (count * channels_i, dim_i)
        Channels fastest.
    xs : sequence of Tensor, shapes (dim_i, batch)
    count : int

    Returns
    -------
    Tensor, shape (count, batch, channels of all inputs)

    Raises
    ------
    ValueError
        If the numbers of maps and of inputs differ.
    """
    pairs = zip(maps, xs, strict=True)
    values = [values(x).reshape(count, -1, x.shape[1]) for values, x in pairs]
    return torch.cat(values, dim=1).transpose(1, 2).contiguous()


def read(map_: SparseMap, values: Tensor) -> Tensor:
    """Values (nodes, batch, channels) to coefficients (dim, batch); channels are fastest there."""
    out: Tensor = map_(values.transpose(1, 2).reshape(-1, values.shape[1]))
    return out


class Points(nn.Module):
    """Quadrature points with what leads to them and back.

    Solutions have a space of their own, which may be of a higher degree than that of the latent
    fields. Lengths are in units of the domain's length, and integrals are means over the domain.

    Parameters
    ----------
    weights : Tensor, shape (points,)
        Quadrature weights, sum one.
    values : SparseMap, shape (points, nodes)
        Latent fields to their values at the points.
    tests : SparseMap, shape (points, unknowns)
        Solutions to their values at the points.
    gradient : SparseMap, shape (gdim * points, unknowns)
        Solutions to their partial derivatives at the points, one direction below the other.
    up : SparseMap, shape (unknowns, nodes)
        Latent fields to their values at the nodes of the solutions.
    down : SparseMap, shape (nodes, unknowns)
        Solutions to their values at the nodes of the latent fields.
    read : SparseMap, shape (dim_out, unknowns * channels_out)
        Values at the nodes of the solutions, channels fastest, to coefficients of the output.
    lifts : sequence of SparseMap, shapes (points * channels_i, dim_i)
        Coefficients of an input to its values at the points, channels fastest: those of the
        function itself, also where it jumps.
    solve : EllipticSolve
    """

    weights: Tensor

    def __init__(
        self,
        weights: Tensor,
        values: SparseMap,
        tests: SparseMap,
        gradient: SparseMap,
        up: SparseMap,
        down: SparseMap,
        read: SparseMap,
        lifts: Sequence[SparseMap],
        solve: EllipticSolve,
    ) -> None:
        super().__init__()
        self.register_buffer("weights", weights, persistent=False)
        self.values, self.up, self.down, self.read = values, up, down, read
        self._tests_t, self._gradient_t = tests.T, gradient.T
        self.lifts = nn.ModuleList(lifts)
        self.solve = solve

    def __len__(self) -> int:
        return len(self.weights)

    def lift(self, xs: Sequence[Tensor]) -> Tensor:
        """Values of the inputs at the points, (dim_i, batch) to (points, batch, channels)."""
        return lift(self.lifts, xs, len(self))

    def load(self, density: Tensor, flux: Tensor | None = None) -> Tensor:
        """Integrals of a density against test functions, and of a flux against their gradients.

        Parameters
        ----------
        density : Tensor, shape (points, ...)
        flux : Tensor, shape (gdim, points, ...), optional

        Returns
        -------
        Tensor, shape (unknowns, ...)
            Dual.
        """
        weights = self.weights.reshape(-1, *[1] * (density.ndim - 1))
        out: Tensor = self._tests_t(density * weights)
        if flux is not None:
            out = out + self._gradient_t((flux * weights).flatten(0, 1))
        return out

    def coefficients(self, values: Tensor) -> Tensor:
        """Interpolate fields in the space of the solutions into the output space.

        Parameters
        ----------
        values : Tensor, shape (unknowns, batch, channels)

        Returns
        -------
        Tensor, shape (dim_out, batch)
        """
        return read(self.read, values)


class EllipticSolve(nn.Module):
    """Solve -div(A grad u) + c u = load for a batch of coefficients: dual to primal.

    Each column has its own symmetric positive definite tensor A and reaction c at the quadrature
    points, and its own factorisation, in double precision on the CPU. The gradient reuses it.

    Parameters
    ----------
    assembly : SparseMap, shape (entries, terms * points)
        The upper triangle of A row by row, then c, one term below the other, to the entries of
        the matrix; all of them are multiplied with the quadrature weights here.
    lu : object
        Factorises batches of matrices of this pattern: `spon.fem.factor.SparseLU`.
    rows, columns : integer Tensor, shape (entries,)
        Where the entries are.
    constrained : bool
        Whether solutions vanish on a part of the boundary, on each piece of a domain of several;
        if not, c must not be zero.
    """

    def __init__(
        self, assembly: SparseMap, lu: Any, rows: Tensor, columns: Tensor, constrained: bool
    ) -> None:
        super().__init__()
        self.assembly, self.constrained = assembly, constrained
        # No buffers: the matrices are on the CPU wherever the module is.
        self.rows, self.columns = rows, columns
        self._lu = lu

    def __deepcopy__(self, memo: dict[int, Any]) -> EllipticSolve:
        return deepcopy_sharing(self, memo, [self._lu])

    def forward(self, coefficients: Tensor, load: Tensor) -> Tensor:
        """Solve for each column.

        Parameters
        ----------
        coefficients : Tensor, shape (terms, points, ...)
            The upper triangle of A row by row, then c.
        load : Tensor, shape (unknowns, ...)
            Dual.

        Returns
        -------
        Tensor, shape (unknowns, ...)
            Primal, zero at the constrained nodes; differentiable once. NaN where coefficients are
            NaN or infinite.

        Raises
        ------
        ValueError
            If the axes after the first ones differ.
        spon.fem.SingularMatrixError
            If a matrix cannot be inverted.
        """
        if coefficients.shape[2:] != load.shape[1:]:
            raise ValueError(
                f"Got coefficients of shape {tuple(coefficients.shape)} and loads of shape "
                f"{tuple(load.shape)}: the axes after (terms, points) and after (unknowns,) must "
                "agree."
            )
        terms = coefficients.flatten(0, 1).flatten(1)
        entries = self.assembly(terms).to("cpu", torch.float64)
        columns = load.reshape(load.shape[0], -1).to("cpu", torch.float64)
        x: Tensor = _Solve.apply(entries.T, columns.T, self)
        return x.T.to(load.device, load.dtype).reshape(load.shape)


class _Solve(torch.autograd.Function):
    """Rows of entries and of loads to rows of solutions."""

    @staticmethod
    def forward(ctx: Any, entries: Tensor, loads: Tensor, problem: EllipticSolve) -> Tensor:
        # Weights that went astray give NaN, which whoever trains knows how to treat; for an error
        # of the factorisation they would be the caller's.
        bad = ~entries.isfinite().all(dim=1)
        if bad.any():
            identity = (problem.rows == problem.columns).to(entries)
            entries = torch.where(bad[:, None], identity, entries)
        if not any(ctx.needs_input_grad):
            x: Tensor = problem._lu.solve_each(entries, loads, definite=True)
            x[bad] = torch.nan
            return x
        factors = problem._lu.factor_each(entries, definite=True)
        x = factors.solve(loads)
        x[bad] = torch.nan
        ctx.factors, ctx.problem = factors, problem
        ctx.save_for_backward(x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None]:
        (x,) = ctx.saved_tensors
        # The matrices are symmetric.
        adjoint = ctx.factors.solve(gradients[0].contiguous())
        entries = None
        if ctx.needs_input_grad[0]:
            rows, columns = ctx.problem.rows, ctx.problem.columns
            entries = -adjoint[:, rows] * x[:, columns]
        return entries, adjoint, None
