"""A fibre's stiffness from noisy displacements: the adjoint through FE-OL and through full FE².

The cell is ``meshes/rve1.msh`` (fibres of 55 %), with a matrix that saturates and polymer fibres
whose shear modulus G is unknown. The surrogate is a reduced solve (`fe_ol.ReducedSolve`) of
snapshots of cells with three moduli, among which the true one is not. The displacements of the
outside come from full FE² with the true modulus, with 1 % of normally distributed noise (relative
to their root mean square), and G minimises the squared distance to them by L-BFGS, from a start
that is 40 % off.

On a bar of three elements this is done through FE-OL and through full FE²; on Cook's membrane
(quadratic elements, four points in each) through FE-OL alone, where FE² makes the data only, from
FE-OL's answer on. The standard error is that of Gauss and Newton: the noise over the norm of the
displacements' derivative by G. Seconds are those of the processor.

    python benchmarks/identification.py [--quick]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from common import arguments, write
from firedrake import DirichletBC, RectangleMesh
from scipy.optimize import minimize

import fe_ol
import spon

ROOT = Path(__file__).resolve().parent.parent
BULK, KNOWN, TRUE, START = 6000.0, (1000.0, 2000.0, 4000.0), 2600.0, 1560.0
RADIUS, COUNT, NOISE = 0.04, 40, 0.01


class Fibre:
    """The modulus, and cells that hold it."""

    def __init__(self, quick):
        if quick:
            sys.path.insert(0, str(ROOT / "tests"))
            from small_rve import small_mesh

            self.mesh, self.options = small_mesh(3), {}
        else:
            self.mesh, self.options = (
                spon.fem.read_mesh(ROOT / "meshes" / "rve1.msh"),
                {"family": "S", "quadrature_degree": 5},
            )
        self.G = torch.tensor(TRUE, dtype=torch.float64, requires_grad=True)
        self.rve = self.cell(self.G)

    def cell(self, G):
        """A cell with this modulus of the fibre."""
        matrix = fe_ol.NonlinearElastic(K=4780.0, a1=50.0, a2=0.06)
        laws = {1: matrix, 2: fe_ol.LinearElastic(K=BULK, G=G)}
        return fe_ol.RVE(self.mesh, laws, **self.options)

    def set(self, G):
        """Change the modulus, in the cell and in all surrogates."""
        with torch.no_grad():
            self.G.fill_(G)


class Body:
    """A macroscopic problem and the nodes that are observed: those of the free outside."""

    def __init__(self, fibre, material, space, traction, tags, **options):
        bcs = DirichletBC(space, 0, 1)
        self.problem = fe_ol.MacroProblem(
            space, material, bcs, tractions={2: traction}, tolerance=1e-9, **options
        )
        self.fibre, self.steps = fibre, [1.0]
        outside = np.setdiff1d(DirichletBC(space, 0, tags).nodes, bcs.nodes)
        self.nodes = torch.from_numpy(outside.astype(np.int64))

    def displacements(self, G):
        """At the observed nodes, shape (nodes, 2)."""
        self.fibre.set(G)
        return self.problem.solve_torch(self.steps).reshape(-1, 2)[self.nodes]

    def misfit(self, G, data, noise):
        """Half the squared distance to the data, in units of the noise, and its derivative."""
        value = (self.displacements(G) - data).square().sum() / (2 * noise**2)
        (slope,) = torch.autograd.grad(value, self.fibre.G)
        return float(value.detach()), float(slope)

    def identify(self, data, noise):
        """Minimise the misfit."""

        def objective(x):
            value, slope = self.misfit(START * x[0], data, noise)
            return value, np.array([START * slope])

        begin = time.process_time()
        found = minimize(objective, [1.0], jac=True, method="L-BFGS-B", bounds=[(0.4, 2.8)])
        if not found.success:
            raise ArithmeticError(found.message)
        return {
            "G": START * float(found.x[0]),
            "misfit": float(found.fun),
            "observations": data.numel(),
            "evaluations": int(found.nfev),
            "seconds": time.process_time() - begin,
        }

    def standard_error(self, G, noise):
        """Noise over the norm of the derivative by G, by central differences."""
        h = 1e-3 * G
        change = self.displacements(G + h).detach() - self.displacements(G - h).detach()
        return noise / float(change.norm() / (2 * h))

    def taylor(self, data, noise):
        """Orders of the remainders of the misfit at the start."""
        value, slope = self.misfit(START, data, noise)
        rest = [
            abs(self.misfit(START * (1 + h), data, noise)[0] - value - START * h * slope)
            for h in 0.04 * 0.5 ** np.arange(6)
        ]
        return np.log2(np.array(rest[:-1]) / rest[1:]).tolist()


def noisy(exact, seed=1):
    """Displacements with noise, and its standard deviation."""
    noise = NOISE * float(exact.square().mean().sqrt())
    generator = torch.Generator().manual_seed(seed)
    return exact + noise * torch.randn(exact.shape, generator=generator).double(), noise


def fitted(fibre, snapshots, modes):
    """A reduced solve with some modes."""
    return fe_ol.ReducedSolve.fit(fibre.rve, snapshots, modes=modes)


def largest(body):
    """Strain component."""
    return float(np.abs(body.problem.strain().dat.data_ro).max())


def bar(fibre, snapshots, modes, counts):
    """FE-OL against full FE² on three elements."""
    space = fe_ol.macro.problem_space(RectangleMesh(3, 1, 3, 1, quadrilateral=True), 1)

    def body(material):
        return Body(fibre, material, space, (20.0, 4.0), (2, 3, 4))

    nested, fast = body(fibre.rve), body(fitted(fibre, snapshots, modes))
    exact = nested.displacements(TRUE).detach()
    row = {"points": len(nested.problem.system.weights), "largest_strain": largest(nested)}
    data, noise = noisy(exact)
    row["taylor_rates"] = fast.taylor(data, noise)
    slopes = [b.misfit(START, data, noise)[1] for b in (fast, nested)]
    row["gradients"] = slopes
    row["gradient_difference"] = abs(slopes[0] - slopes[1]) / abs(slopes[1])
    print(row, flush=True)
    row["FE-OL"] = fast.identify(data, noise)
    row["standard_error"] = fast.standard_error(row["FE-OL"]["G"], noise)
    print(row["FE-OL"], row["standard_error"], flush=True)
    row["FE²"] = nested.identify(data, noise)
    row["difference"] = row["FE-OL"]["G"] - row["FE²"]["G"]
    print(row["FE²"], row["difference"], flush=True)
    row["without_noise"] = [
        {"modes": k, "G": body(fitted(fibre, snapshots, k)).identify(exact, noise)["G"]}
        for k in counts
    ]
    print(row["without_noise"], flush=True)
    return row


def cook(fibre, snapshots, modes, quick):
    """Cook's membrane through FE-OL; full FE² makes the data."""
    space = fe_ol.macro.problem_space(
        spon.fem.read_mesh(ROOT / "meshes" / "cook.msh"), 1 if quick else 2
    )

    def body(material):
        return Body(fibre, material, space, (0.0, 8.0), (2, 3), quadrature_degree=3)

    fast = body(fitted(fibre, snapshots, modes))
    near = fast.displacements(TRUE).detach()
    row = {"points": len(fast.problem.system.weights), "largest_strain": largest(fast)}
    print(row, flush=True)
    exact = near
    if not quick:
        nested, begin = body(fibre.rve), time.process_time()
        start = fast.problem.displacement.copy(deepcopy=True)
        u = nested.problem.solve([1.0], start=start, progress=False, annotate=False).displacement
        exact = torch.from_numpy(u.dat.data_ro.copy())[nested.nodes]
        row["data_seconds"] = time.process_time() - begin
        row["displacement_error"] = float((near - exact).norm() / exact.norm())
        print(row, flush=True)
    data, noise = noisy(exact)
    row["taylor_rates"] = fast.taylor(data, noise)
    row["FE-OL"] = fast.identify(data, noise)
    row["standard_error"] = fast.standard_error(row["FE-OL"]["G"], noise)
    row["without_noise"] = fast.identify(exact, noise)["G"]
    print(row, flush=True)
    return row


def main():
    """Run both."""
    args = arguments(__doc__.splitlines()[0])
    torch.set_num_threads(1)
    quick = args.quick
    fibre = Fibre(quick)
    count, modes = (16, 12) if quick else (COUNT, 24)
    begin = time.process_time()
    snapshots = fe_ol.Snapshots.joined(
        [
            fe_ol.Snapshots.sample(fibre.cell(G), count, radius=RADIUS, seed=k, progress=False)
            for k, G in enumerate(KNOWN)
        ]
    )
    results = {"snapshot_seconds": time.process_time() - begin, "true": TRUE, "start": START}
    print(results, flush=True)
    results["bar"] = bar(fibre, snapshots, modes, (6, 12) if quick else (8, 16, 24, 32))
    results["cook"] = cook(fibre, snapshots, modes, quick)
    settings = {"bulk": BULK, "known": KNOWN, "count": count, "modes": modes, "noise": NOISE}
    write("identification", results, settings, args.output, quick)


if __name__ == "__main__":
    main()
