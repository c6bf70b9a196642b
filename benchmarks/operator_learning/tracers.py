"""Particles that drift with a flux in RT 1, followed exactly from triangle to triangle.

In barycentric coordinates l the field of a triangle with outward fluxes F_j is dl/dt =
(S l - F) / (2 A), S the sum of the fluxes. A particle moves on a straight line, l(t) - l(0) = g s,
with g = dl/dt at the entry, s = (exp(b t) - 1) / b and b = S / (2 A). It leaves through the first
facet that this line meets; if b is negative and s ends at -1/b before, it never does. This is the
method of Pollock (1988), *Semianalytical computation of path lines for finite-difference models*,
on triangles: no time step, no error of integration.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from operator_learning.facet_fluxes import FacetFluxes, Floats, Ints

__all__ = ["INSIDE", "Arrivals", "Tracers"]

INSIDE = "inside"


@dataclass
class Arrivals:
    """Where the particles ended, each of shape (n, particles).

    Attributes
    ----------
    part : array of str
        Part of the boundary that they left through; `INSIDE` if they never do.
    where : array, shape (n, particles, 2)
    time : array
        Until they left; infinity inside.
    paths : list of array, shape (points, 2)
        Of the particles of the first field one after the other, if they were asked for.
    """

    part: np.ndarray
    where: Floats
    time: Floats
    paths: list[Floats] = field(default_factory=list)


@dataclass
class _State:
    """Particles on their way: where they are in which cell, since when; `number` is which."""

    number: Ints
    cell: Ints
    at: Floats
    time: Floats

    def of(self, chosen: np.ndarray) -> _State:
        return _State(self.number[chosen], self.cell[chosen], self.at[chosen], self.time[chosen])


class Tracers:
    """Particles released at evenly spaced places of the inflow.

    Parameters
    ----------
    fluxes : FacetFluxes
        Its inflow is a straight line.
    count : int
        Particles.
    crossings : int, optional
        After so many cells a particle is taken to go round for ever.
    """

    def __init__(self, fluxes: FacetFluxes, count: int, crossings: int = 3000) -> None:
        self.fluxes, self.crossings = fluxes, crossings
        self._part = np.full(int(fluxes.facets.max()) + 1, INSIDE, dtype=object)
        for name, facets in fluxes.parts.items():
            self._part[facets] = name
        self._connect()
        self.cell, self.at = self._release(count)

    def _connect(self) -> None:
        """The cell behind each facet of a cell, and which of its corners are whose."""
        facets, cells = self.fluxes.facets, self.fluxes.cells
        order = np.argsort(facets.ravel(), kind="stable")
        place = facets.ravel()[order]
        twice = np.flatnonzero(place[1:] == place[:-1])
        here, there = order[twice], order[twice + 1]
        behind = np.full(facets.size, -1, dtype=np.int64)
        behind[here], behind[there] = there // 3, here // 3
        self.behind = behind.reshape(-1, 3)
        # corner[c, j, i]: the corner of c that is corner i of the cell behind j; 3 if none is.
        same = cells[:, None, None, :] == cells[self.behind][..., None]
        self.corner = np.where(same.any(-1), same.argmax(-1), 3)

    def _release(self, count: int) -> tuple[Ints, Floats]:
        """Cells and barycentric coordinates of the start."""
        fluxes = self.fluxes
        facets = fluxes.parts[fluxes.inflow]
        ends, (cell, corner) = fluxes.ends(facets), fluxes.owners(facets)
        low, high = ends.reshape(-1, 2).min(0), ends.reshape(-1, 2).max(0)
        axis = int(np.argmax(high - low))
        goal = low[axis] + (np.arange(count) + 0.5) / count * (high[axis] - low[axis])
        along = ends[..., axis]
        share = (goal[:, None] - along[:, 0]) / (along[:, 1] - along[:, 0])
        which = np.argmin(np.abs(share - 0.5), axis=1)
        share, corner = share[np.arange(count), which], corner[which]
        at = np.zeros((count, 3))
        at[np.arange(count), (corner + 1) % 3] = 1.0 - share
        at[np.arange(count), (corner + 2) % 3] = share
        return cell[which], at

    def __call__(self, u: Floats, paths: bool = False) -> Arrivals:
        """Follow the particles of each field until they leave.

        Parameters
        ----------
        u : array, shape (n, dofs)
        paths : bool, optional
            Whether the paths in the first field are wanted.
        """
        n, count = len(u), len(self.cell)
        outward = self.fluxes.outward(u) / (2.0 * self.fluxes.areas[:, None])
        state = _State(
            np.arange(n * count),
            np.tile(self.cell, n),
            np.tile(self.at, (n, 1)),
            np.zeros(n * count),
        )
        part = np.full(n * count, INSIDE, dtype=object)
        where, time = np.empty((n * count, 2)), np.full(n * count, np.inf)
        kept: list[list[Floats]] = [[x] for x in self._points(state)[:count]] if paths else []
        for _ in range(self.crossings):
            facet, caught = self._cross(outward[state.number // count, state.cell], state)
            points = self._points(state)
            for i, x in zip(state.number, points, strict=True):
                if i >= len(kept):
                    break
                kept[i].append(x)
            where[state.number] = points
            behind = self.behind[state.cell, facet]
            leaving = ~caught & (behind < 0)
            gone = state.of(leaving)
            part[gone.number] = self._part[self.fluxes.facets[gone.cell, facet[leaving]]]
            time[gone.number] = gone.time
            staying = ~caught & (behind >= 0)
            facet, behind, state = facet[staying], behind[staying], state.of(staying)
            if not len(state.cell):
                break
            padded = np.pad(state.at, ((0, 0), (0, 1)))
            corner = self.corner[state.cell, facet]
            state.at, state.cell = np.take_along_axis(padded, corner, axis=1), behind
        shape = (n, count)
        lines = [np.array(line) for line in kept]
        return Arrivals(part.reshape(shape), where.reshape(*shape, 2), time.reshape(shape), lines)

    def _cross(self, outward: Floats, state: _State) -> tuple[Ints, np.ndarray]:
        """Move the particles through their cells.

        Returns
        -------
        facet : array of int
            That they stand on now.
        caught : array of bool
            Which of them never get there; they are put where they end.
        """
        rate = outward.sum(-1)
        speed = state.at * rate[:, None] - outward
        tiny = np.finfo(float).tiny
        with np.errstate(over="ignore", invalid="ignore"):  # where nothing moves
            ahead = np.where(speed < 0, state.at / np.maximum(-speed, tiny), np.inf)
            facet = ahead.argmin(axis=1)
            reach = np.take_along_axis(ahead, facet[:, None], axis=1)[:, 0]
            growth = rate * reach
        # At a wall that nothing flows through the line ends at -1, up to round-off.
        caught = ~(growth > -1.0 + 1e-9) | np.isinf(reach)
        sink = -1.0 / np.minimum(rate, -tiny)
        step = np.where(caught, np.where(rate < 0, sink, 0.0), reach)
        state.at = np.clip(state.at + speed * step[:, None], 0.0, None)
        rows = np.flatnonzero(~caught)
        state.at[rows, facet[rows]] = 0.0
        state.at /= state.at.sum(axis=1, keepdims=True)
        growth, reach = growth[rows], reach[rows]
        slow = np.abs(growth) < 1e-12
        factor = np.where(slow, 1.0, np.log1p(growth) / np.where(slow, 1.0, growth))
        state.time[rows] += reach * factor
        return facet, caught

    def _points(self, state: _State) -> Floats:
        where = self.fluxes.corners[self.fluxes.cells[state.cell]]
        found: Floats = np.einsum("pi,pix->px", state.at, where)
        return found

    def compare(self, found: Arrivals, reference: Arrivals) -> dict[str, Floats]:
        """How well particles arrive, by the name of the measure, each of shape (n,).

        Parameters
        ----------
        found, reference : Arrivals
            In the predicted and in the true fields.

        Returns
        -------
        dict
            ``tracers_out``, ``tracers_walls``, ``tracers_back``, ``tracers_inside``: shares of the
            particles that leave by the outflow, through walls, by the inflow, or never.
            ``arrival_distance``: mean distance of the places of arrival, ``travel_time``: mean
            difference of the times over the true one; of particles that leave by the outflow in
            both fields, NaN if none does.
        """
        out, walls = self.fluxes.outflow, self.fluxes.walls
        both = (found.part == out) & (reference.part == out)
        distance = np.linalg.norm(found.where - reference.where, axis=-1)
        times = np.where(both, reference.time, 1.0)
        late = np.abs(np.where(both, found.time, 1.0) - times) / times
        some = np.where(both.any(1), both.sum(1), 1)
        return {
            "tracers_out": (found.part == out).mean(1),
            "tracers_walls": np.isin(found.part, walls).mean(1),
            "tracers_back": (found.part == self.fluxes.inflow).mean(1),
            "tracers_inside": (found.part == INSIDE).mean(1),
            "arrival_distance": np.where(both.any(1), (distance * both).sum(1) / some, np.nan),
            "travel_time": np.where(both.any(1), (late * both).sum(1) / some, np.nan),
        }
