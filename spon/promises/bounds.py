"""Bounds that hold everywhere in the cells, through coefficients of Bernstein polynomials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spon.copying import share_buffers
from spon.promises.base import InDouble
from spon.promises.specification import MARGIN
from spon.sparse import SparseMap

__all__ = ["Bounds", "Margin", "fit_margins", "soft_clip"]

_ROUNDINGS = 8  # how many of them data at a bound may be beyond it


def soft_clip(
    x: Tensor, lower: float | None, upper: float | None, margin: float | Tensor
) -> Tensor:
    """The identity at a distance of `margin` from the bounds, bent towards them outside.

    At ``t * margin`` beyond that, the distance from the bound is ``margin / (1 + t)``. The
    derivative is continuous and falls with the square of t, not exponentially, so that values far
    outside come back in training.

    Parameters
    ----------
    x : Tensor
    lower, upper : float or None
    margin : float or Tensor, shape ()
        Positive; at most half of ``upper - lower``.

    Returns
    -------
    Tensor
    """
    if lower is not None:
        t = ((lower + margin) - x).clamp_min(0.0) / margin
        x = torch.where(t > 0, lower + margin / (1 + t), x)
    if upper is not None:
        t = (x - (upper - margin)).clamp_min(0.0) / margin
        x = torch.where(t > 0, upper - margin / (1 + t), x)
    return x


class Margin(InDouble):
    """How far from the bounds values begin to be bent: one number, kept in the state dict.

    Parameters
    ----------
    default : float
        Until data are known.
    fitted : bool
        Whether it is taken from data. Otherwise it follows from the bounds, and is in no file.
    """

    value: Tensor

    def __init__(self, default: float, fitted: bool) -> None:
        super().__init__()
        self.default, self.fitted = float(default), fitted
        value = torch.tensor(self.default, dtype=torch.float64)
        self.register_buffer("value", value, persistent=fitted)

    def share(self, other: Margin) -> None:
        """Use the very number of another margin, now and whenever it changes."""
        share_buffers(self, other)

    @property
    def added_later(self) -> tuple[str, ...]:
        """Buffers that older files lack."""
        return ("value",) if self.fitted else ()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        for name in self.added_later:
            # Networks in older files were trained with this one.
            state_dict.setdefault(prefix + name, torch.tensor(self.default, dtype=torch.float64))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Bounds(InDouble):
    """Bend the Bernstein coefficients into the bounds, and scale them to a mean if one is asked.

    A polynomial lies in the convex hull of its Bernstein coefficients. Functions whose
    coefficients keep a distance of `margin` from the bounds come back unchanged. With one bound
    there is no range to take it from: `fit_margins` takes it from data.

    Parameters
    ----------
    to_bernstein, from_bernstein : SparseMap, shapes (nodes, nodes)
        Change of basis of the scalar space, and its inverse.
    lower, upper : float or None
        For each component.
    margin : float
        As long as no data are known.
    fixed : Tensor of bool, shape (nodes * components,)
        Prescribed dofs.
    weights : Tensor, shape (nodes,)
        Integrals of the Bernstein polynomials over the domain's measure.
    mean : Tensor, shape (components,), or None
        Prescribed mean, where none is given at the call.
    """

    fixed: Tensor
    weights: Tensor
    mean: Tensor | None

    def __init__(
        self,
        to_bernstein: SparseMap,
        from_bernstein: SparseMap,
        lower: float | None,
        upper: float | None,
        margin: float,
        fixed: Tensor,
        weights: Tensor,
        mean: Tensor | None,
    ) -> None:
        super().__init__()
        self.to_bernstein, self.from_bernstein = to_bernstein, from_bernstein
        self.lower, self.upper = lower, upper
        self.margin = Margin(margin, fitted=lower is None or upper is None)
        # How much the change of basis can magnify the rounding of values.
        self._growth = float(abs(to_bernstein.to_scipy()).sum(axis=1).max())
        nodes = len(weights)
        self.register_buffer("fixed", fixed.reshape(nodes, -1), persistent=False)
        self.register_buffer("weights", weights, persistent=False)
        self.register_buffer("mean", mean, persistent=False)

    def forward(
        self,
        x: Tensor,
        boundary: Tensor,
        mean: Tensor | None = None,
        given_in: torch.dtype = torch.float64,
        single: bool = False,
    ) -> Tensor:
        """Bound a batch of functions.

        Parameters
        ----------
        x : Tensor, shape (batch, nodes * components)
        boundary : Tensor, shape (batch, nodes * components) or (nodes * components,)
            Values on the prescribed dofs.
        mean : Tensor, shape (batch, components) or (components,), optional
        given_in : torch.dtype, optional
            The precision that `boundary` came in. Its rounding may leave the bounds.
        single : bool, optional
            Whether `mean` came in single precision: its rounding may leave the bounds, too.

        Returns
        -------
        Tensor, shape (batch, nodes * components)

        Raises
        ------
        ValueError
            If prescribed values lie outside the bounds, or no function within them has the mean.
        """
        nodes, components = self.fixed.shape
        values = torch.where(self.fixed.reshape(-1), boundary, x)
        columns = values.reshape(len(x), nodes, components).transpose(0, 1)
        raw = self.to_bernstein(columns)
        fixed = self.fixed[:, None]
        self._check_fixed(raw, fixed, torch.finfo(given_in).eps)
        bent = soft_clip(raw, self.lower, self.upper, self.margin.value)
        b = torch.where(fixed, self.clip(raw), bent)
        mean = self.mean if mean is None else mean
        if mean is not None:
            b = self._with_mean(b, fixed, mean, single)
        return self.from_bernstein(b).transpose(0, 1).reshape(len(x), -1)

    def clip(self, values: Tensor) -> Tensor:
        """Prescribed values or means without the rounding that leaves the bounds."""
        return values.clamp(self.lower, self.upper)

    def mean_squares(self, x: Tensor) -> Tensor:
        """Mean square distance of Bernstein coefficients from the one bound, over the domain.

        Parameters
        ----------
        x : Tensor, shape (batch, nodes * components)

        Returns
        -------
        Tensor, shape (batch,)
        """
        nodes, components = self.fixed.shape
        raw = self.to_bernstein(x.double().reshape(len(x), nodes, components).transpose(0, 1))
        bound = self.upper if self.lower is None else self.lower
        # The same on any mesh, with positive weights.
        return self.weights @ (raw - bound).square().mean(2)

    def _check_fixed(self, raw: Tensor, fixed: Tensor, eps: float) -> None:
        if not bool(self.fixed.any()):
            return
        with torch.no_grad():
            bounds = [b for b in (self.lower, self.upper) if b is not None]
            held = torch.where(fixed, raw, bounds[0])
            size = held.abs().amax(0).clamp_min(max(map(abs, bounds)))
            # Formulas that should be zero are so up to the rounding of one.
            beyond = (held - self.clip(held)).abs()
            slack = _ROUNDINGS * self._growth * (eps * size + torch.finfo(raw.dtype).eps)
            wrong = bool((beyond > slack).any())
        if wrong:
            worst = float(held.ravel()[beyond.argmax()])
            raise ValueError(
                f"Prescribed boundary values contradict the bounds ({self.lower}, {self.upper}): a "
                f"Bernstein coefficient of the trace is {worst:.6g}. Change the values, or widen "
                "the bounds."
            )

    def _with_mean(self, b: Tensor, fixed: Tensor, mean: Tensor, single: bool) -> Tensor:
        w = self.weights[:, None, None]
        full = self.fixed.all(0)
        held, share = (w * fixed * b).sum(0), (w * ~fixed).sum(0).masked_fill(full, 1.0)
        self._check_prescribed(held, mean, full)
        # What the free coefficients must have on average; where there is none, what is said of all.
        mu = torch.where(full, mean, (mean - held) / share)
        rounding = torch.finfo(torch.float32).eps * mean.abs() / share if single else 0.0
        self._check_mean(mu, mean, 1e-9 * self.margin.default + rounding)
        mu = torch.where(full, mu, self.clip(mu))

        def average(b: Tensor) -> Tensor:
            return torch.where(full, mu, (w * ~fixed * b).sum(0) / share)

        # Towards a bound by a factor: coefficients stay within, and a right mean changes nothing.
        # Two passes, since the average itself is rounded.
        for _ in range(2):
            b = torch.where(fixed, b, self._scaled(b, average(b), mu))
        return b

    def _check_prescribed(self, held: Tensor, mean: Tensor, full: Tensor) -> None:
        """Refuse another mean than that of values which are all prescribed."""
        with torch.no_grad():
            off = torch.where(full, mean - held, 0.0).abs().max()
            wrong = bool(off > 1e-6 * held.abs().max())
        if wrong:
            raise ValueError(
                f"The mean {mean.tolist()} contradicts the prescribed values, which leave no value "
                f"free: theirs is off by {float(off):.3g}. Leave the mean out, or change it."
            )

    def _scaled(self, b: Tensor, now: Tensor, mu: Tensor) -> Tensor:
        if self.upper is None:
            low = self.lower or 0.0
            return low + (b - low) * _ratio(mu - low, now - low)
        down = self.upper - (self.upper - b) * _ratio(self.upper - mu, self.upper - now)
        if self.lower is None:
            return down
        up = self.lower + (b - self.lower) * _ratio(mu - self.lower, now - self.lower)
        return torch.where(now > mu, up, down)

    def _check_mean(self, mu: Tensor, mean: Tensor, slack: Tensor | float) -> None:
        with torch.no_grad():
            low = self.lower is not None and bool((mu < self.lower - slack).any())
            high = self.upper is not None and bool((mu > self.upper + slack).any())
        if low or high:
            worst = float(mu.min() if low else mu.max())
            raise ValueError(
                f"The mean {mean.tolist()} contradicts the bounds ({self.lower}, {self.upper}): "
                f"with the prescribed boundary values, the rest would have to be {worst:.6g} on "
                "average. Change the mean, or widen the bounds."
            )


def fit_margins(bounds: Sequence[Bounds], data: Sequence[Tensor]) -> None:
    """Take the margin from functions on several meshes: a twentieth of their distance's size.

    Where there are two bounds it is a twentieth of the range, whatever the data.

    Parameters
    ----------
    bounds : sequence of Bounds
        The same bounds on each mesh; the first one takes the number, and with it those that share
        it.
    data : sequence of Tensor, shapes (n_i, nodes * components on that mesh)
    """
    margin = bounds[0].margin
    if not margin.fitted:
        return
    with torch.no_grad():
        squares = [b.mean_squares(x) for b, x in zip(bounds, data, strict=True)]
        size = torch.cat(squares).mean().sqrt()
        # Functions that are at the bound everywhere have no size.
        if size > 0:
            margin.value.fill_(float(MARGIN * size))


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    tiny = torch.finfo(b.dtype).tiny
    return a.clamp_min(0.0) / b.clamp_min(tiny)
