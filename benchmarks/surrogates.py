"""Surrogates of RVEs: errors of stress, tangent and fields, what makes them good, what they cost.

The three cells of the EquiNO benchmark (Eivazi et al. 2025): ``meshes/rve1.msh`` to ``rve3.msh``,
serendipity elements of degree 2, or the published grids where a folder with them is given.
Snapshots and test strains are Latin hypercubes in +-0.04, none in common. Peers: POD with radial
basis functions, the reduced solve without a network, a black box with a Sobolev loss (which gets
ten times as many RVE solves), and EquiNO as published.

    python benchmarks/surrogates.py [--quick] [--part accuracy|ablation|curves] [--grids FOLDER]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from common import arguments, write

import fe_ol
import spon
from fe_ol.snapshots import sample_strains

ROOT = Path(__file__).resolve().parent.parent
RADIUS, COUNT, MODES = 0.04, 100, 16
LAWS = {
    1: fe_ol.NonlinearElastic(K=4780.0, a1=50.0, a2=0.06),
    2: fe_ol.LinearElastic(K=43452.381, G=29918.0328),
}


def cell(k, grids=None):
    """RVE 1, 2 or 3."""
    if grids is None:
        mesh = spon.fem.read_mesh(ROOT / "meshes" / f"rve{k}.msh")
    else:
        sys.path.insert(0, str(ROOT / "tests"))
        import rve_grids

        rve_grids.GRIDS = Path(grids)
        mesh = rve_grids.curved_rve(k)
    return fe_ol.RVE(mesh, LAWS, family="S", quadrature_degree=5)


def timed(action):
    """What an action returns, and its seconds."""
    start = time.perf_counter()
    result = action()
    return result, time.perf_counter() - start


def relative(x, exact):
    """Relative errors of the rows."""
    return (x - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)


def spread(errors):
    """Mean and largest."""
    return {"mean": float(errors.mean()), "largest": float(errors.max())}


def field_errors(rve, fields, truth):
    """Median relative L2 errors of local stresses, displacement and fluctuation, equilibrium."""
    w = rve.weights

    def median(x, exact):
        off, size = ((x - exact) ** 2 * w).sum(1), (exact**2 * w).sum(1)
        return float((off / size).sqrt().median())

    names = ("s_xx", "s_yy", "s_xy")
    row = {n: median(fields.stress[..., i], truth.stress[..., i]) for i, n in enumerate(names)}
    at_points, moments = displacement(rve)
    u, exact = (at_points.batch(f) for f in (fields.fluctuation, truth.fluctuation))
    # u and u + E x, both without mean.
    for name, mean in (("fluctuation", 0.0), ("u", 1.0)):
        x, y = ((v.reshape(len(v), -1, 2) + mean * linear(truth, moments)) for v in (u, exact))
        for i, axis in enumerate("xy"):
            row[f"{name}_{axis}"] = median(x[..., i], y[..., i])
    # Forces of the same stresses with random signs: what the residual would be without cancelling.
    signs = 2.0 * torch.randint(0, 2, (len(w), 1), generator=torch.Generator().manual_seed(0)) - 1
    residual, scale = rve.divergence(fields.stress), rve.divergence(fields.stress * signs.double())
    row["equilibrium"] = float((residual.norm(dim=1) / scale.norm(dim=1)).max())
    return row


def displacement(rve):
    """Values of fluctuations at the quadrature points as a sparse map, and the points."""
    import firedrake as fd
    from finat.ufl import FiniteElement, VectorElement

    V = rve.space
    scalar = FiniteElement("Quadrature", V.mesh().ufl_cell(), degree=5, quad_scheme="default")
    Q = fd.FunctionSpace(V.mesh(), VectorElement(scalar, dim=2))
    x = fd.Function(Q).interpolate(fd.SpatialCoordinate(V.mesh()))
    return spon.fem.sparse_map(fd.interpolate(fd.TrialFunction(V), Q)), spon.fem.to_tensor(
        x
    ).reshape(-1, 2)


def linear(truth, points):
    """E x at the points, shape (n, p, 2)."""
    e = truth.macro_strain
    matrix = torch.stack((e[:, 0], e[:, 2] / 2, e[:, 2] / 2, e[:, 1]), 1).reshape(-1, 2, 2)
    return torch.einsum("nij,pj->npi", matrix, points)


def row_of(name, rve, surrogate, truth, seconds, **more):
    """Errors of one surrogate on the test strains."""
    strain = truth.macro_strain
    response, each = timed(lambda: surrogate(strain))
    many = strain
    if each < 1.0:  # what is slow tells enough by its first call
        many = strain.repeat(10, 1)
        surrogate(many)
        _, each = timed(lambda: surrogate(many))
    row = {
        "surrogate": name,
        "stress": spread(relative(response.stress, truth.macro_stress)),
        "tangent": spread(relative(response.tangent, truth.tangent)),
        "asymmetry": float(relative(response.tangent, response.tangent.transpose(1, 2)).max()),
        "fit_seconds": seconds,
        "microseconds_a_point": 1e6 * each / len(many),
        **more,
    }
    if hasattr(surrogate, "fields"):
        row |= field_errors(rve, surrogate.fields(strain), truth)
    s, t = row["stress"], row["tangent"]
    print(
        f"  {name:32s} stress {s['mean']:.4%} ({s['largest']:.3%}) tangent {t['mean']:.3%} "
        f"{seconds:5.0f} s",
        flush=True,
    )
    return row


def data(k, quick, grids=None, count=COUNT):
    """An RVE, its snapshots, the exact answers for the test strains, and seconds."""
    rve = cell(k, grids)
    n = 20 if quick else count
    snapshots, seconds = timed(
        lambda: fe_ol.Snapshots.sample(rve, n, radius=RADIUS, seed=0, progress=False)
    )
    test = sample_strains(10 if quick else 100, 3, RADIUS, seed=1)
    truth, solve = timed(lambda: rve.solve(test))
    return rve, snapshots, truth, seconds, solve / len(test)


def accuracy(quick, grids):
    """All surrogates on all cells."""
    rows = []
    fast = {"epochs": 40, "samples": 500} if quick else {}
    modes = 8 if quick else MODES
    for k in (3,) if quick else (1, 2, 3):
        rve, snapshots, truth, sampling, solve = data(k, quick, grids)
        facts = {
            "part": "accuracy",
            "cell": f"RVE{k}",
            "dofs": int(rve.space.dim()),
            "sampling_seconds": sampling,
            "solve_seconds": solve,
        }
        print(rve, f"snapshots {sampling:.0f} s", flush=True)

        def add(name, surrogate, seconds, rve=rve, truth=truth, facts=facts):
            rows.append(row_of(name, rve, surrogate, truth, seconds, **facts))

        reduced, seconds = timed(lambda: fe_ol.ReducedSolve.fit(rve, snapshots, modes=modes))
        add("reduced solve", reduced, seconds)
        equino, seconds = timed(
            lambda: fe_ol.EquiNO.fit(rve, snapshots, modes=modes, progress=False, **fast)
        )
        add("EquiNO", equino, seconds)
        equino.correction_steps = 1
        add("EquiNO, one correction step", equino, seconds)
        symmetric, seconds = timed(
            lambda: fe_ol.EquiNO.fit(
                rve, snapshots, modes=modes, head="energy", progress=False, **fast
            )
        )
        add("EquiNO, energy head", symmetric, seconds)
        add(
            "POD and radial basis functions",
            *timed(lambda: fe_ol.Interpolation.fit(rve, snapshots, modes=modes)),
        )
        if quick or k == 1:  # they take minutes
            for name, fit in fluctuations(rve, snapshots, quick).items():
                add(name, *timed(fit))
        more, epochs = (30, 30) if quick else (1000, 2000)
        add(
            f"black box, {more} solves",
            *timed(lambda: fe_ol.BlackBox.fit(rve, n=more, progress=False, epochs=epochs)),
        )
    return rows


def fluctuations(rve, snapshots, quick):
    """Fits of the networks that give the fluctuation alone, and leave the stress to the laws."""
    fast = {"epochs": 2, "samples": 20} if quick else {}
    # As many steps for any number of snapshots.
    steps = {"epochs": 1 if quick else max(1, 2000 // len(snapshots))}
    vpionet = {"radius": RADIUS, "progress": False, **fast}
    published = {"energy": "published", "homogenisation": "mean"}
    return {
        "VPIONet, no snapshots": lambda: fe_ol.VPIONet.fit(rve, **vpionet),
        "VPIONet, published loss": lambda: fe_ol.VPIONet.fit(rve, **vpionet, **published),
        "spon's Spectral on the cell": lambda: fe_ol.FieldNetwork.fit(
            rve, snapshots, progress=False, **steps
        ),
    }


ABLATION = {
    "as it is": {},
    "Adam instead of SOAP": {"optimiser": "adam"},
    "Adam, then 500 L-BFGS": {"optimiser": "adam", "refine": 500},
    "plain features": {"features": "plain"},
    "not odd": {"odd": False},
    "no exact linear law at zero": {"linear": False},
    "one scale for all modes": {"scaling": False},
    "absolute loss": {"relative": False},
    "plain sums in POD": {"weighted": False},
    "mismatch as loss (no labels)": {"target": "mismatch"},
    "mismatch model, cubature points": {"formulation": "mismatch"},
    "mismatch model, Q-DEIM points": {"formulation": "mismatch", "selection": "qdeim"},
    "mismatch model, random points": {"formulation": "mismatch", "selection": "random"},
    "as published": {
        "formulation": "mismatch", "selection": "random", "points": 1500, "target": "mismatch",
        "features": "plain", "odd": False, "linear": False, "scaling": False, "relative": False,
        "weighted": False, "macro_weight": 0.0, "optimiser": "adam", "refine": 500,
        "samples": 1000,
    },
}  # fmt: skip


def ablation(quick, grids):
    """Each improvement switched off by itself, on the hardest cell; all of them; one step more."""
    rve, snapshots, truth, _, _ = data(3 if quick else 1, quick, grids)
    rows = []
    fast = {"epochs": 20, "samples": 300, "refine": 0} if quick else {}
    for name, options in list(ABLATION.items())[: 3 if quick else None]:
        surrogate, seconds = timed(
            lambda options=options: fe_ol.EquiNO.fit(
                rve, snapshots, modes=8 if quick else MODES, progress=False, **(options | fast)
            )
        )
        row = row_of(name, rve, surrogate, truth, seconds, part="ablation")
        surrogate.correction_steps = 1
        row["one_step"] = spread(relative(surrogate(truth.macro_strain).stress, truth.macro_stress))
        rows.append(row)
    crowded = fe_ol.Snapshots.sample(
        rve, len(snapshots), radius=RADIUS, seed=0, method="laplace", progress=False
    )
    surrogate, seconds = timed(
        lambda: fe_ol.EquiNO.fit(rve, crowded, modes=8 if quick else MODES, progress=False, **fast)
    )
    row = row_of("snapshots crowded near zero", rve, surrogate, truth, seconds, part="ablation")
    surrogate.correction_steps = 1
    row["one_step"] = spread(relative(surrogate(truth.macro_strain).stress, truth.macro_stress))
    return [*rows, row]


FIXED = {"snapshots": 200, "modes": 16}


def curves(quick, grids):
    """Error against the number of snapshots and of modes.

    The two kinds without modes are fitted for each number of snapshots, VPIONet once.
    """
    k = 3 if quick else 1
    rve, _, truth, _, _ = data(k, quick, grids, count=4)
    plans = [(16, n) for n in ((25,) if quick else (25, 50, 100, 200, 400))]
    plans += [(m, 200) for m in (() if quick else (4, 8, 12, 24, 32, 48))]
    fast = {"epochs": 2, "samples": 30} if quick else {}
    rows = []
    for modes, n in plans:
        some = fe_ol.Snapshots.sample(rve, n, radius=RADIUS, seed=0, progress=False)
        facts = {"part": "curves", "cell": f"RVE{k}", "snapshots": n}
        kinds = {
            "reduced solve": lambda some=some, m=modes: fe_ol.ReducedSolve.fit(
                rve, some, modes=m, points=16 * m
            ),
            "EquiNO": lambda some=some, m=modes: fe_ol.EquiNO.fit(
                rve, some, modes=m, points=16 * m, progress=False, **fast
            ),
            "POD and radial basis functions": lambda some=some, m=modes: fe_ol.Interpolation.fit(
                rve, some, modes=m
            ),
        }
        print(f"{modes} modes, {n} snapshots", flush=True)
        for name, fit in kinds.items():
            rows.append(row_of(name, rve, *_fitted(fit, truth), **facts, modes=modes))
        if modes != FIXED["modes"]:
            continue
        kinds = {
            "black box": lambda some=some: fe_ol.BlackBox.fit(
                rve, strain=some.strain, progress=False, epochs=20 if quick else 2000
            ),
        }
        if n in (25, 100):
            name = "spon's Spectral on the cell"
            kinds[name] = fluctuations(rve, some, quick)[name]
        for name, fit in kinds.items():
            rows.append(row_of(name, rve, *_fitted(fit, truth), **facts, modes=None))
    fit = fluctuations(rve, some, quick)["VPIONet, no snapshots"]
    rows.append(
        row_of(
            "VPIONet, no snapshots", rve, *_fitted(fit, truth),
            part="curves", cell=f"RVE{k}", snapshots=None, modes=None,
        )
    )  # fmt: skip
    return rows


def _fitted(fit, truth):
    surrogate, seconds = timed(fit)
    return surrogate, truth, seconds


PARTS = {"accuracy": accuracy, "ablation": ablation, "curves": curves}


def main():
    """Run all parts, or one."""
    args = arguments(__doc__.splitlines()[0], "--part", "--grids")
    torch.set_num_threads(1)
    rows = []
    for name, part in PARTS.items():
        if args.part in (None, name):
            rows += part(args.quick, args.grids)
            settings = {
                "radius": RADIUS, "snapshots": COUNT, "modes": MODES,
                "grids": "published" if args.grids else "meshes/",
                **{f"fixed_{what}": count for what, count in FIXED.items()},
            }  # fmt: skip
            label = "surrogates" if args.part is None else f"surrogates-{args.part}"
            write(label, rows, settings, args.output, args.quick)


if __name__ == "__main__":
    main()
