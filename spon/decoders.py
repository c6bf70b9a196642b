"""From coefficients to a function that keeps what the space and the boundary promise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
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
from spon.fem.promises import KeptPromises, frozen_divergence, moved_promises
from spon.fem.promises_file import promises_to_json
from spon.promises import Bounds, Pipeline, Specification, fit_margins, require_finite
from spon.signature import SpaceSignature

__all__ = ["Decoder"]


class Decoder(nn.Module):
    """Turn the output of a processor into a function of a space that keeps what is promised.

    The dofs that the boundary conditions constrain are overwritten by the prescribed values: no
    weight can change them. What the basis of the space carries (continuity, normal or tangential
    continuity) holds for every output. The promises below hold to round-off for every output, are
    computed in double precision, and compose; what cannot hold together is refused.

    Parameters
    ----------
    U : FunctionSpace
        The output space; any Firedrake space.
    bcs : DirichletBC, sequence of DirichletBC, or callable, optional
        Conditions on `U` or its sub-spaces. Their values are taken when the decoder is built. A
        callable takes the space and returns the conditions; it is called again by `on`.
    divergence_free : bool, optional
        div u = 0 at each point; `U` is RT or BDM (RTCF). See `through`.
    curl_free : bool, optional
        curl u = 0 at each point; `U` is N1curl or N2curl (RTCE).
    divergence : number, UFL expression, Function, or callable, optional
        div u = f in each cell (its projection onto the divergences of `U`); `U` is RT or BDM. A
        callable takes the space of divergences and returns one of the others.
    mean : number or sequence, optional
        Mean of u over the domain, in the shape of its values; not for mixed spaces.
    integrals : sequence of (functional, value), optional
        A functional is a function of the test function, ``lambda v: inner(v, w) * dx(1)``, or a
        form with one test function of `U`.
    flux : mapping from boundary tag to value, optional
        Integrals of u.n (of u where it is a scalar) over parts of the boundary: tags, tuples of
        tags, or ``"on_boundary"``; not for tensors and mixed spaces.
    bounds : (lower, upper), optional
        Bounds at each point, numbers or None, for each component; `U` is CG or DG of degree 1 to
        4 on simplices. Values nearer to a bound than a margin are bent: a twentieth of the range;
        with one bound, of the distance from it that data have (`calibrate`), and until data are
        known of the bound itself, or of one where that is zero.
    symmetric : bool, optional
        Tensors are symmetric.
    symmetry : sequence of (A, b), optional
        The maps x -> A x + b of a finite group that leave u as it is; vectors turn with them. `U`
        is scalar or vector valued CG or DG on simplices, on a mesh that the maps leave as it is.
    through : {"potential", "projection"}, optional
        How a divergence or a curl is kept. "potential": the processor makes a potential, u is its
        derivative: sparse products, and derivatives magnify errors. "projection": the processor
        makes a field in `U`, u is the nearest one in L2 that keeps the promises: in that norm
        never less accurate than the very field that was projected, for a solve with a stored
        factorisation in each call; not for curls in 3D.

    Attributes
    ----------
    latent : FunctionSpace
        What the processor makes coefficients of: `U`, or a space of potentials, with a vector field
        beside it where fluxes through holes or channels are free.
    latent_bcs : list of DirichletBC
        Conditions on `latent`, where they make sense.

    Raises
    ------
    TypeError, ValueError
        If the conditions are not conditions on `U`, name an unknown boundary, or constrain no dof;
        if promises are of another form, hold NaN, contradict each other or the conditions, or `U`
        cannot keep them.
    NotImplementedError
        If the mesh is distributed over several processes.
    """

    constrained: Tensor
    values: Tensor

    def __init__(
        self,
        U: Any,
        bcs: Any = None,
        *,
        divergence_free: bool = False,
        curl_free: bool = False,
        divergence: Any = None,
        mean: Any = None,
        integrals: Sequence[tuple[Any, float]] | None = None,
        flux: Mapping[Any, float] | None = None,
        bounds: tuple[float | None, float | None] | None = None,
        symmetric: bool = False,
        symmetry: Sequence[tuple[Any, Any]] | None = None,
        through: str = "potential",
    ) -> None:
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
        self.promises = Specification(
            divergence_free, curl_free, frozen_divergence(divergence), mean,
            () if integrals is None else integrals, {} if flux is None else flux, bounds, symmetric,
            () if symmetry is None else symmetry, through,
        )  # fmt: skip
        self.promises.check_composition()
        # What was made of the promises; None if there are none.
        self.kept: KeptPromises | None = None
        self._pipeline: Pipeline | None = None
        self.latent, self.latent_bcs = U, self.bcs
        if not self.promises.empty:
            self.kept = KeptPromises(U, self.bcs, mask, values, self.promises)
            self._pipeline = self.kept.pipeline
            self.latent, self.latent_bcs = self.kept.latent, self.kept.latent_bcs

    def forward(self, x: Tensor, boundary: Tensor | None = None, **given: Any) -> Tensor:
        """Make a batch of functions that keep the promises.

        Parameters
        ----------
        x : Tensor, shape (batch, latent.dim())
        boundary : Tensor, shape (batch, U.dim()) or (U.dim(),), optional
            Values for each sample. Only the entries on the constrained dofs count; they replace
            the values that the conditions were built with.
        **given : optional
            Values of promises for each sample: ``mean`` of shape (batch,) or (batch, components),
            ``flux`` as a mapping from tags to (batch,), ``integrals`` of shape (batch, number of
            integrals), ``divergence`` of shape (batch, n), coefficients in the space of
            divergences (`divergence_space`). A number stands for all samples, where each has one.

        Returns
        -------
        Tensor, shape (batch, U.dim())

        Raises
        ------
        TypeError
            If a tensor does not hold floating point numbers.
        ValueError
            If a shape is wrong, values are given for what is not promised, they contradict each
            other, or hold NaN or infinity.
        """
        self._check(x, self.latent, "output")
        values = self._exact_values.to(x) if x.dtype == torch.float64 else self.values.to(x)
        if boundary is not None:
            self._check(boundary, self.space, "boundary data")
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
        if self._pipeline is None or self.kept is None:
            if given:
                raise ValueError(f"Got {', '.join(given)} for a decoder without promises.")
            return torch.where(self.constrained, values, x)
        exact = (self._exact_values if boundary is None else boundary).to(x.device)
        if boundary is not None:
            require_finite(exact, "the boundary data", self.constrained)
        collected, single = self.kept.collect(max(len(x), 1) if x.ndim == 2 else 1, given)
        kept = [None if t is None else t.to(x.device) for t in collected]
        u = self._pipeline(torch.atleast_2d(x).double(), exact, boundary is not None, *kept, single)
        u = u if x.ndim == 2 else u[0]
        return torch.where(self.constrained, self._within_bounds(values), u.to(x))

    @property
    def bounds(self) -> Bounds | None:
        """The module that keeps the bounds; None if there are none."""
        return None if self._pipeline is None else self._pipeline.bounds

    def calibrate(self, u: Tensor) -> None:
        """Take the margin of bounds from data, where there is one bound.

        The calibration of a network does this with the outputs; a decoder by itself bends by the
        size of its bound until it is told.

        Parameters
        ----------
        u : Tensor, shape (n, U.dim())
            Functions like those that the decoder is to make.
        """
        self._check(u, self.space, "data")
        require_finite(u, "the data")
        if self.bounds is not None:
            fit_margins([self.bounds], [torch.atleast_2d(u).to(self.constrained.device)])

    def share_margin(self, other: Decoder) -> None:
        """Use the margin of a decoder with the same bounds on another mesh."""
        mine, theirs = self.bounds, other.bounds
        if mine is None or theirs is None:
            return
        if (mine.lower, mine.upper) == (theirs.lower, theirs.upper):
            mine.margin.share(theirs.margin)

    @property
    def promised(self) -> str:
        """The promises in words with a digest of their values; empty where there are none."""
        if self.kept is None:
            return ""
        data, tensors = promises_to_json(self.promises, self.kept)
        text = json.dumps(data).encode() + b"".join(t.numpy().tobytes() for t in tensors.values())
        names = ", ".join(
            name for name, value in data.items() if name != "through" and (value or name in tensors)
        )
        return f"{names} [{hashlib.blake2b(text, digest_size=4).hexdigest()}]"

    @property
    def divergence_space(self) -> Any:
        """Where the divergence lives: the space of `divergence` at a call; None if not promised."""
        return None if self.kept is None else self.kept.divergence_space

    @property
    def unreached(self) -> int:
        """How many dimensions of fields that keep the promises no latent coefficients give.

        Zero on all domains that were tried: holes, cavities, tunnels and periodic ones.
        """
        kernel = None if self.kept is None else self.kept.kernel
        return 0 if kernel is None else kernel.unreached

    def pull_back(self, u: Tensor) -> Tensor:
        """Latent coefficients whose functions are near to `u`: of the right size, for scaling.

        Parameters
        ----------
        u : Tensor, shape (batch, U.dim())

        Returns
        -------
        Tensor, shape (batch, latent.dim())
        """
        kernel = None if self.kept is None else self.kept.kernel
        return u if kernel is None else kernel.pull_back(u)

    def function(self, x: Tensor, boundary: Tensor | None = None, **given: Any) -> Any:
        """Decode into functions, in double precision where something is promised.

        Parameters
        ----------
        x : Tensor, shape (batch, latent.dim())
        boundary : Tensor, optional
            As in `forward`.
        **given : optional
            As in `forward`.

        Returns
        -------
        list of Function
        """
        values = self._exact_values if boundary is None else boundary.detach().cpu().double()
        on_device = x.to(self.constrained.device)
        if self._pipeline is not None:
            on_device = on_device.double()
        x = self(on_device, boundary, **given).detach().cpu().double()
        values = self._within_bounds(values)
        return fem.to_function(torch.where(self.constrained.cpu(), values, x), self.space)

    def on(self, mesh: Any, bcs: Any = None) -> Decoder:
        """The decoder into the same element on another mesh, with the same conditions and promises.

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
        promises = moved_promises(self.promises, self.divergence_space, mesh)
        if bcs is None:
            bcs = self._rule
        if bcs is None:
            pairs = zip(self.bcs, self._captured, strict=True)
            bcs = [move_bc(bc, value, U) for bc, value in pairs]
        moved = Decoder(U, bcs, **promises)
        moved.share_margin(self)
        return moved

    def __deepcopy__(self, memo: dict[int, Any]) -> Decoder:
        shared = [
            self.space, self.latent, self._rule, self.promises, self.kept, *self.bcs,
            *self.latent_bcs, *self._captured,
        ]  # fmt: skip
        return deepcopy_sharing(self, memo, shared)

    def _within_bounds(self, values: Tensor) -> Tensor:
        """Prescribed values, which the rounding of their precision may have moved over a bound."""
        return values if self.bounds is None else self.bounds.clip(values)

    def _check(self, x: Tensor, space: Any, what: str) -> None:
        dim = space.dim()
        if not isinstance(x, Tensor) or not x.is_floating_point():
            found = f"of {x.dtype}" if isinstance(x, Tensor) else f"as a {type(x).__name__}"
            raise TypeError(
                f"Got {what} {found} for a decoder into {self.signature.describe()}: expected a "
                "tensor of floating point numbers, float32 or float64."
            )
        if x.ndim not in (1, 2) or x.shape[-1] != dim:
            raise ValueError(
                f"Got {what} of shape {tuple(x.shape)} for a decoder into "
                f"{self.signature.describe()}: expected (batch, {dim})."
            )
