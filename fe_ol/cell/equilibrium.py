"""Newton's method for the fluctuation of one cell, and the tangent of its mean stress."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fe_ol.cell.direct import DirectSolver
from fe_ol.cell.discretisation import Discretisation
from fe_ol.cell.point_laws import PointLaws
from fe_ol.cell.reuse import RestFactor
from fe_ol.voigt import rest_strain

__all__ = ["Balance", "Equilibrium", "Load", "NoEquilibriumError"]

# Below this strain errors are relative to the stress that it makes: at rest all is round-off.
_SMALL = 1e-6
_HALVINGS = 6
_EXACT = 1e-12
_SMALLEST_STEP = 1 / 128
# A load step is given up if so many iterations do not bring the error below this share of the
# smallest before: far from the solution Newton's method wanders, and a half step takes less. The
# step grows again after no more than so many iterations.
_PATIENCE, _GAIN = 4, 0.3
_EASY = 6


class NoEquilibriumError(ArithmeticError):
    """Newton's method found no fluctuation in equilibrium."""


@dataclass(frozen=True)
class Load:
    """What is prescribed of the mean strain and the mean stress.

    Attributes
    ----------
    strain : Tensor, shape (c,)
        Prescribed components, and a first guess of the others.
    stress : Tensor, shape (c,)
        Prescribed components; the others count for nothing.
    free : Tensor, shape (c,)
        bool: components of which the stress is prescribed, so that the strain is free.
    """

    strain: Tensor
    stress: Tensor
    free: Tensor


@dataclass
class Balance:
    """A cell at some mean strain and fluctuation.

    Attributes
    ----------
    strain : Tensor, shape (c,)
    fluctuation : Tensor, shape (dofs,)
    state : Tensor, shape (state_size,)
        Of the laws, at the end of the step.
    local_strain, local_stress : Tensor, shape (p, c)
    modulus : Tensor, shape (p, c, c), or (0, c, c)
        Much of it, and needed for tangents only: see `released`.
    stress : Tensor, shape (c,)
        Mean stress.
    forces : Tensor, shape (dofs,)
        What is missing to equilibrium.
    error : float
        Their size, and that of the missing mean stress, relative to what they are made of.
    iterations : int
        In all, with those of steps that were given up.
    cutbacks : int
    errors : list of float
        `error` of each iterate of the last step.
    """

    strain: Tensor
    fluctuation: Tensor
    state: Tensor
    local_strain: Tensor
    local_stress: Tensor
    modulus: Tensor
    stress: Tensor
    forces: Tensor
    error: float
    iterations: int = 0
    cutbacks: int = 0
    errors: list[float] = field(default_factory=list)

    def released(self) -> Balance:
        """The same without its moduli and forces."""
        return replace(self, modulus=self.modulus[:0].clone(), forces=self.forces[:0].clone())


class Equilibrium:
    """Solves one cell after the other.

    Parameters
    ----------
    cell : Discretisation
    laws : PointLaws
    volume : float
    tolerance : float
        Of `Balance.error`.
    max_iterations : int
        For each load step.
    reuse : int, optional
        Conjugate gradient iterations that are tried with the factorisation of the stiffness at
        rest, before another matrix is factorised.
    """

    def __init__(
        self,
        cell: Discretisation,
        laws: PointLaws,
        volume: float,
        tolerance: float,
        max_iterations: int,
        reuse: int = 0,
    ) -> None:
        self.cell, self.laws, self.volume = cell, laws, volume
        self.tolerance, self.max_iterations = tolerance, max_iterations
        self._iterations = 0
        self._direct = self._new_solver()
        self._reuse = reuse if cell.constraint is None else 0
        self._at_rest: RestFactor | None = None
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (len(cell.weights), 1), generator=generator)
        self._signs = 2.0 * signs.double() - 1.0

    def solve(self, load: Load, start: tuple[Tensor, Tensor, Tensor]) -> Balance:
        """Equilibrium under a load, in smaller steps where one is too large.

        Parameters
        ----------
        load : Load
        start : tuple of Tensor
            Mean strain, fluctuation and state from which the load is applied.

        Raises
        ------
        NoEquilibriumError
        """
        strain, fluctuation, state = start
        rate = torch.zeros_like(fluctuation)
        first: Tensor | None = None
        reached, step, cutbacks = 0.0, 1.0, 0
        self._iterations = 0
        while True:
            to = min(1.0, reached + step)
            part = load
            if to < 1.0:
                if first is None:
                    first = self._evaluate(*start, None).stress
                part = Load(
                    torch.lerp(start[0], load.strain, to),
                    torch.lerp(first, load.stress, to),
                    load.free,
                )
            try:
                # The fluctuation goes on as in the last step.
                found = self._newton(
                    part,
                    torch.where(load.free, strain, part.strain),
                    fluctuation + (to - reached) * rate,
                    state,
                )
            except ArithmeticError as error:
                step, cutbacks = step / 2, cutbacks + 1
                if step < _SMALLEST_STEP:
                    raise NoEquilibriumError(
                        f"The RVE found no equilibrium beyond {reached:.3g} of the way from the "
                        f"strain {_listed(start[0])} to {_listed(load.strain)}, in steps down to "
                        f"{2 * step:.3g} of it: {error}. The strain may lie beyond what the laws "
                        "or the mesh can bear; take smaller steps or more iterations otherwise."
                    ) from error
                continue
            if to == 1.0:
                found.iterations, found.cutbacks = self._iterations, cutbacks
                return found
            rate = (found.fluctuation - fluctuation) / (to - reached)
            strain, fluctuation, state = found.strain, found.fluctuation, found.state
            step = 2 * step if found.iterations <= _EASY else step
            reached = to

    def tangent(self, balance: Balance) -> Tensor:
        """Derivative of the mean stress by the mean strain, shape (c, c).

        The factorisation of the last iteration serves; what it is off by is iterated away.
        """
        values = self.cell.stiffness(balance.modulus)
        coupling, pull, mean = self._coupling(balance)
        answer = self._solve(values, coupling, _is_symmetric(balance.modulus))
        return mean - pull @ answer.T / self.volume

    def concentrated(self, balance: Balance, strain: Tensor) -> Tensor:
        """Local strains that a small mean strain (c,) makes at the points, shape (p, c).

        With the transposed moduli: for moduli that are not symmetric this is the adjoint.
        """
        modulus = balance.modulus.transpose(1, 2)
        values = self.cell.stiffness(modulus)
        forces = self.cell.admissible(self.cell.divergence((modulus @ strain)[None]))
        answer = self._solve(values, forces, _is_symmetric(balance.modulus))
        return strain - self.cell.gradient(answer)[0]

    # ---- one load step ------------------------------------------------------------------------

    def _newton(self, load: Load, strain: Tensor, fluctuation: Tensor, state: Tensor) -> Balance:
        now = self._evaluate(strain, fluctuation, state, load)
        errors = [now.error]
        while now.error > self.tolerance:
            wanders = len(errors) > _PATIENCE and (
                min(errors[-_PATIENCE:]) > _GAIN * min(errors[:-_PATIENCE])
            )
            if wanders or len(errors) > self.max_iterations:
                raise NoEquilibriumError(
                    f"no convergence in {len(errors) - 1} iterations; the last relative residuals "
                    f"are {', '.join(f'{e:.2e}' for e in errors[-4:])}, the tolerance is "
                    f"{self.tolerance:.1e}"
                )
            now = self._advance(now, state, load, *self._direction(now, load))
            errors.append(now.error)
        now.iterations, now.errors = len(errors) - 1, errors
        now.fluctuation = self.cell.centred(now.fluctuation[None])[0]
        return now

    def _direction(self, now: Balance, load: Load) -> tuple[Tensor, Tensor]:
        """Newton's change of the mean strain and of the fluctuation."""
        self._iterations += 1
        turn = torch.zeros_like(now.strain)
        if not load.free.any():
            return turn, self._move(now)
        self._direct.factor(self.cell.stiffness(now.modulus), _is_symmetric(now.modulus))
        coupling, pull, mean = self._coupling(now)
        answers = self._direct.solve(torch.cat([now.forces[None], coupling]))
        move, answer = -answers[0], answers[1:]
        tangent = mean - pull @ answer.T / self.volume
        missing = load.stress - now.stress - pull @ move / self.volume
        free = load.free
        turn[free] = torch.linalg.solve(tangent[free][:, free], missing[free])
        return turn, move - turn @ answer

    def _move(self, now: Balance) -> Tensor:
        """Newton's change of the fluctuation at a fixed mean strain."""
        values, symmetric = self.cell.stiffness(now.modulus), _is_symmetric(now.modulus)
        if self._reuse and symmetric:
            # As exact as quadratic convergence needs.
            found = self._rest().solve(values, now.forces[None], min(1e-2, now.error))
            if found is not None:
                return -found[0]
        self._direct.factor(values, symmetric)
        return -self._direct.solve(now.forces[None])[0]

    def _solve(self, values: Tensor, b: Tensor, symmetric: bool) -> Tensor:
        """Solve with a matrix to round-off: by a factorisation that is there, or by a new one."""
        if self._reuse and symmetric and not self._direct.ready:
            found = self._rest().solve(values, b, _EXACT)
            if found is not None:
                return found
        return self._direct.solve_near(values, b, self.cell.admissible, symmetric)

    def _rest(self) -> RestFactor:
        if self._at_rest is None:
            rest = rest_strain(self.cell.dim, self.cell.finite)
            local = rest.expand(len(self.cell.weights), -1).contiguous()
            modulus = self.laws.evaluate(local, self.laws.initial_state())[1]
            self._at_rest = RestFactor(
                self._new_solver(), self.cell.stiffness(modulus), self.cell.free, self._reuse
            )
        return self._at_rest

    def _new_solver(self) -> DirectSolver:
        cell = self.cell
        return DirectSolver(cell.pointers, cell.columns, cell.free, cell.constraint)

    def _advance(
        self, now: Balance, state: Tensor, load: Load, turn: Tensor, move: Tensor
    ) -> Balance:
        """A step that is halved while the laws have no answer or the residual grows."""
        problem: Exception | None = None
        best: Balance | None = None
        for k in range(_HALVINGS):
            size = 0.5**k
            try:
                to = self._evaluate(
                    now.strain + size * turn, now.fluctuation + size * move, state, load
                )
            except ArithmeticError as error:
                problem = error
                continue
            if to.error <= 2.0 * now.error:
                return to
            if best is None or to.error < best.error:
                best = to
        if best is None:
            raise NoEquilibriumError(f"Newton's step leaves the laws' domain: {problem}")
        return best

    def _evaluate(
        self, strain: Tensor, fluctuation: Tensor, state: Tensor, load: Load | None
    ) -> Balance:
        cell = self.cell
        local = strain + cell.gradient(fluctuation[None])[0]
        stress, modulus, after = self.laws.evaluate(local, state)
        weights = cell.weights[:, None]
        scale = stress.abs() + _SMALL * modulus.abs().amax(2)
        forces, sizes = cell.admissible(cell.divergence(torch.stack([stress, scale * self._signs])))
        mean = (stress * weights).sum(0) / self.volume
        error = float(forces.norm() / sizes.norm().clamp_min(1e-300))
        if load is not None and load.free.any():
            missing = (mean - load.stress)[load.free].abs().max()
            error = max(error, float(missing / ((scale * weights).sum(0) / self.volume).max()))
        return Balance(strain, fluctuation, after, local, stress, modulus, mean, forces, error)

    def _coupling(self, now: Balance) -> tuple[Tensor, Tensor, Tensor]:
        """How mean strain and fluctuation meet.

        Forces of unit mean strains, shape (c, dofs); the mean stresses of unit fluctuations times
        the volume, (c, dofs), which are the same for symmetric moduli; the mean of the moduli.
        """
        forces = self.cell.admissible(self.cell.divergence(now.modulus.permute(2, 0, 1)))
        mean = (now.modulus * self.cell.weights[:, None, None]).sum(0) / self.volume
        if _is_symmetric(now.modulus):
            return forces, forces, mean
        pull = self.cell.admissible(self.cell.divergence(now.modulus.permute(1, 0, 2)))
        return forces, pull, mean


def _is_symmetric(modulus: Tensor) -> bool:
    off = (modulus - modulus.transpose(1, 2)).abs().max()
    return bool(off <= 1e-12 * modulus.abs().max())


def _listed(x: Tensor) -> str:
    return "(" + ", ".join(f"{v:.4g}" for v in x.tolist()) + ")"
