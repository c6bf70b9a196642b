"""What the points of the small Darcy set leave open: the least error of any network.

The coefficient of a sample is known by its value at 16 x 16 points, the pressure depends on all of
it: two coefficients with the same values have different pressures. How far apart these are is a
matter of the law that the set was drawn from, and this can be told from the data:

* The coefficient takes two values, by the sign of a Gaussian field of mean zero with covariance
  (-Laplace + tau^2)^-alpha and Neumann conditions. alpha and tau are fitted to the 1,000 training
  samples, whose signs then are met to sampling noise.
* The two values come from the equation itself, as -Laplace u times the coefficient is one wherever
  the coefficient is constant.

From this law fields are drawn *given the values of a test sample* (Gibbs' sampler for the field at
the points, which is a truncated Gaussian; in between it is Gaussian), and the equation is solved on
a fine grid for each. The best prediction is the one nearest to all these pressures, and its mean
distance from them is the error that no network can be expected to get below, if this is the law.
The draws are halved: the best for one half is on average too near to its own half, and too far from
the other. How good it is on the published pressures is measured, too. It is not a network: it knows
the law, the equation and both values.

The fit of the law is uncertain: it is repeated for sets drawn from the fitted law, and the error is
measured, on a coarse grid, for the laws one standard deviation to either side.

    python benchmarks/operator_learning/limit.py --data DIR [--quick]
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from common import write
from firedrake import (
    DirichletBC,
    Function,
    FunctionSpace,
    TestFunction,
    TrialFunction,
    UnitSquareMesh,
    dx,
    grad,
    inner,
)
from scipy import ndimage
from tqdm.auto import tqdm

from operator_learning import small_darcy
from operator_learning.sign_fields import Law, fitted_law, gibbs, modes, points
from spon import fem

NAME = "small_darcy_limit"


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Signs and pressures, (samples, n, n) each."""
    with np.load(path) as file:
        return 2.0 * file["x"] - 1.0, file["y"].astype(np.float64)


def fitted_coefficients(signs: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The coefficient where the sign is -1 and where it is 1, (samples, n, n) each."""
    n = y.shape[1]
    middle = y[:, 1:-1, 1:-1]
    load = n**2 * (4 * middle - y[:, 2:, 1:-1] - y[:, :-2, 1:-1] - y[:, 1:-1, 2:] - y[:, 1:-1, :-2])
    found = []
    for sign in (-1, 1):
        constant = ndimage.binary_erosion(signs == sign, np.ones((1, 5, 5)))[:, 1:-1, 1:-1]
        found.append(1 / float(np.median(load[constant])))
    return found[0], found[1]


class Pressures:
    """Pressures at the n x n points for fields, on a grid of cells x cells.

    Bilinear elements with a rule at the vertices are the five-point scheme with means of
    neighbouring coefficients.
    """

    def __init__(self, coefficients: tuple[float, float], n: int, cells: int) -> None:
        mesh = UnitSquareMesh(cells, cells, quadrilateral=True)
        V = FunctionSpace(mesh, "Q", 1)
        u, v, k = TrialFunction(V), TestFunction(V), Function(V)
        a = k * inner(grad(u), grad(v)) * dx(degree=1, scheme="KMV")
        bc = DirichletBC(V, 0.0, "on_boundary")
        self._solver = fem.LinearSolver(a, bc, inputs=k, L=v * dx)
        self._coefficients = coefficients
        ij = small_darcy.lattice(mesh, cells)
        self._number = ij[:, 0] * (cells + 1) + ij[:, 1]
        self._nodes = modes(np.arange(cells + 1) / cells)
        self._cells = cells
        # Bilinear interpolation to the points, along one axis.
        at = points(n) * cells
        left = np.floor(at).astype(int)
        self._rows = np.zeros((n, cells + 1))
        self._rows[np.arange(n), left] = left + 1 - at
        self._rows[np.arange(n), left + 1] = at - left

    def __call__(self, field: np.ndarray) -> np.ndarray:
        """Modes (draws, MODES, MODES) to pressures, shape (draws, n, n)."""
        values = (self._nodes @ field @ self._nodes.T).reshape(len(field), -1)
        k = np.where(values < 0, *self._coefficients)[:, self._number]
        with torch.no_grad():
            u = self._solver(torch.from_numpy(k)).numpy()
        grid = np.empty_like(u)
        grid[:, self._number] = u
        side = self._cells + 1
        found: np.ndarray = self._rows @ grid.reshape(-1, side, side) @ self._rows.T
        return found


def nearest(draws: np.ndarray, iterations: int = 60) -> np.ndarray:
    """Of the least mean relative distance from draws (samples, draws, n), by Weiszfeld's rule."""
    sizes = np.linalg.norm(draws, axis=-1)
    centre = draws.mean(1)
    for _ in range(iterations):
        distance = np.linalg.norm(draws - centre[:, None], axis=-1)
        weights = 1 / (sizes * np.maximum(distance, 1e-12))
        centre = (weights[..., None] * draws).sum(1) / weights.sum(1)[:, None]
    return centre


def relative(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Distances along the last axis."""
    off: np.ndarray = np.linalg.norm(prediction - target, axis=-1)
    return off / np.linalg.norm(target, axis=-1)


def mean_error(errors: np.ndarray) -> dict[str, float]:
    """Of the samples, with its standard error."""
    return {"mean": float(errors.mean()), "standard": float(errors.std() / len(errors) ** 0.5)}


def measure(
    law: Law,
    coefficients: tuple[float, float],
    signs: np.ndarray,
    y: np.ndarray,
    given: argparse.Namespace,
) -> dict[str, Any]:
    """What is left open by the points of these samples, (samples, n, n) each."""
    count, n = len(signs), signs.shape[1]
    rng = np.random.default_rng(n)
    known = np.repeat(signs.reshape(count, -1).T, given.chains, axis=1)
    covariance = law.covariance(points(n))
    state, draws = None, []
    sweeps = [given.burn, *[given.thin] * (given.draws - 1)]
    for s in tqdm(sweeps, desc=f"fields given {n} x {n} points", leave=False):
        state = gibbs(known, covariance, s, rng, state)
        draws.append(state)
    fields = np.stack(draws).reshape(given.draws, n * n, count, given.chains)
    shown = tqdm(range(count), desc=f"pressures on {given.cells} x {given.cells}", leave=False)
    solve = Pressures(coefficients, n, given.cells)
    found = np.stack(
        [
            np.concatenate([solve(law.given(f.T, points(n), rng)) for f in fields[:, :, s]])
            for s in shown
        ]
    ).reshape(count, -1, n * n)
    # No chain is in both halves: its draws depend on each other.
    chain = np.arange(found.shape[1]) % given.chains
    halves = [np.flatnonzero(chain % 2 == i) for i in (0, 1)]
    sides = [(found[:, a], found[:, b]) for a, b in (halves, halves[::-1])]
    own, other = (
        np.mean([relative(nearest(a)[:, None], (a, b)[i]).mean(1) for a, b in sides], axis=0)
        for i in (0, 1)
    )
    flat = y.reshape(count, -1)
    best = nearest(found)
    within, between = fields.var(0, ddof=1).mean(-1), fields.mean(0).var(-1, ddof=1)
    return {
        "samples": count,
        "expected": {"least": mean_error(own), "most": mean_error(other)},
        "on_data": mean_error(relative(best, flat)),
        "mean_on_data": mean_error(relative(found.mean(1), flat)),
        "best_factor": scaled(best, flat),
        # One if the chains have the same law; draws that are independent give sqrt(1 + 1/draws).
        "between_chains": float(np.median(np.sqrt(1 + between / within))),
        "independent": float(np.sqrt(1 + 1 / given.draws)),
    }


def refitted(law: Law, count: int, n: int, refits: int) -> dict[str, list[float]]:
    """What is fitted to sets of signs drawn from a law: what the fit is worth."""
    rng, at = np.random.default_rng(0), modes(points(n))
    found: dict[str, list[float]] = {"alpha": [], "tau": []}
    for _ in tqdm(range(refits), desc="the law, fitted to drawn sets", leave=False):
        free = np.sqrt(law.spectrum) * rng.standard_normal((count, *law.spectrum.shape))
        again, _ = fitted_law(np.sign(at @ free @ at.T))
        found["alpha"].append(again.alpha)
        found["tau"].append(again.tau)
    return found


def neighbours(
    law: Law,
    refits: dict[str, list[float]],
    coefficients: tuple[float, float],
    signs: np.ndarray,
    y: np.ndarray,
    given: argparse.Namespace,
) -> list[dict[str, Any]]:
    """The error for laws one standard deviation away, and for the law itself, on a coarse grid."""
    deviation = np.std([refits["alpha"], refits["tau"]], axis=1, ddof=1)
    coarse = argparse.Namespace(cells=96, chains=6, burn=1000, thin=200, draws=6)
    if given.quick:
        signs, y, coarse = signs[:4], y[:4], given
    rows = []
    for side in (-1, 0, 1):
        # Rough fields with long waves and smooth ones with short waves have the same signs.
        near = Law(*(np.array([law.alpha, law.tau]) + side * deviation).tolist())
        found = measure(near, coefficients, signs, y, coarse)
        rows.append({"alpha": near.alpha, "tau": near.tau, **found["expected"]})
        print(rows[-1], flush=True)
    return rows


def scaled(prediction: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """The error with the one factor for all that suits the test samples best."""
    factors = np.linspace(0.97, 1.03, 61)
    errors = [relative(c * prediction, target).mean() for c in factors]
    return {"factor": float(factors[np.argmin(errors)]), "mean": float(min(errors))}


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder of the small Darcy set")
    parser.add_argument("--quick", action="store_true", help="few samples on a coarse grid")
    parser.add_argument("--cells", type=int, default=256, help="cells along a side")
    parser.add_argument("--chains", type=int, default=8, help="for each sample")
    parser.add_argument("--burn", type=int, default=4000, help="sweeps before the first draw")
    parser.add_argument("--thin", type=int, default=400, help="sweeps between draws of a chain")
    parser.add_argument("--draws", type=int, default=8, help="of each chain")
    parser.add_argument("--refits", type=int, default=40, help="of the law, to drawn sets")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.quick:
        vars(given).update(cells=64, chains=4, burn=200, thin=50, draws=4, refits=4)
    try:
        path = small_darcy.folder(given.data)
    except FileNotFoundError as error:
        sys.exit(str(error))
    sets = {key: read(path / name) for key, name in small_darcy.FILES.items()}
    train, held = sets["train"], small_darcy.SmallDarcy.HELD
    law, fit = fitted_law(train[0])
    coefficients = fitted_coefficients(*sets["32"])
    print(f"law {fit}, coefficients {coefficients}")
    results: dict[str, Any] = {"law": {**fit, "coefficients": coefficients}, "sets": []}
    chosen = {"16": sets["16"], "validation": tuple(part[-held:] for part in train)}
    results["law"]["refitted"] = refitted(law, *train[0].shape[:2], given.refits)
    for key in ["16"] if given.quick else chosen:
        signs, y = (part[: 8 if given.quick else None] for part in chosen[key])
        row = {"set": key, **measure(law, coefficients, signs, y, given)}
        print(row, flush=True)
        results["sets"].append(row)
    results["laws"] = neighbours(
        law, results["law"]["refitted"], coefficients, *chosen["16"], given
    )
    keys = ("cells", "chains", "burn", "thin", "draws", "refits")
    settings = {key: getattr(given, key) for key in keys}
    write(f"operator_learning-{NAME}", results, settings, given.output, given.quick)


if __name__ == "__main__":
    main()
