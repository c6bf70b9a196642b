"""How time and memory of operator networks grow with the mesh, and what the sparse products reach.

Networks with the default settings of each processor on Cook's membrane (``meshes/cook.msh``),
refined uniformly from 1,089 to 263,169 nodes. Each size is measured in a process of its own, on one
core: set-up (geometry of the mesh, once), a training step (forward, backward, AdamW) and inference,
a sample; and the memory that a training step needs at its peak beyond the set-up. The slope is that
of the least squares line through the logarithms. The bandwidth of a sparse product counts each
entry, each row of what comes in and each row of what goes out once, against that of a copy of a
large array on the same core.

`elliptic` is measured on a cube of tetrahedra, too: where its solves are iterations.

The C library is told to keep memory that is freed (`KEPT`); products, and networks of one size, are
measured without that, too.

    python benchmarks/cost_growth.py [--quick]
    python benchmarks/cost_growth.py --only elliptic    or bandwidth; the others keep their numbers
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from common import RESULTS, arguments, write
from firedrake import DirichletBC, FunctionSpace, MeshHierarchy, UnitCubeMesh

import spon

PROCESSORS = (
    "spectral",
    "resolvent",
    "multigrid",
    "graph",
    "graph_multigrid",
    "attention",
    "elliptic",
)
REFINEMENTS = (1, 2, 3, 4, 5)
CUBES = {"elliptic": (10, 16, 25, 40, 60)}  # cells along an edge
BATCH, COLUMNS = 2, 48
# By itself glibc gives arrays of more than 32 MB back at once; the next one of that size is made of
# fresh pages, whose first touch costs as much as a sparse product.
_ALWAYS = 2**35
KEPT = f"glibc.malloc.mmap_threshold={_ALWAYS}:glibc.malloc.trim_threshold={_ALWAYS}"
MESH = Path(__file__).parent.parent / "meshes" / "cook.msh"


def hierarchy(refinements):
    """The finest mesh of a hierarchy."""
    return MeshHierarchy(spon.fem.read_mesh(MESH), refinements)[-1]


def solid(cells):
    """The unit cube in tetrahedra."""
    return UnitCubeMesh(cells, cells, cells)


def network(name, mesh):
    """A network of default size, and its space."""
    torch.manual_seed(0)
    space = FunctionSpace(mesh, "CG", 1)
    processor = spon.processors.create(name, {})
    decoder = spon.Decoder(space, bcs=DirichletBC(space, 0, 1))
    return spon.OperatorNetwork(spon.Encoder(space), processor, decoder), space


def median_cpu(call, repeats=5, least=10.0):
    """Median CPU seconds of up to so many calls, fewer where these take longer than `least`."""
    times = []
    while len(times) < repeats and sum(times) < least:
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return statistics.median(times)


def status(key):
    """A line of /proc/self/status, in MB."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(key))
    return int(line.split()[1]) / 1024


def reset_peak():
    """Measure the peak of the resident memory anew; what is resident now, in MB."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return status("VmRSS")


def measure_network(name, mesh):
    """Costs of one network on one mesh."""
    start = time.process_time()
    net, space = network(name, mesh)
    setup = time.process_time() - start
    x, y = torch.randn(BATCH, space.dim()), torch.randn(BATCH, space.dim())
    net.calibrate([x], y)
    loss = spon.losses.RelativeError(space, "L2")
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4)

    def train():
        optimiser.zero_grad(set_to_none=True)
        loss(net(x), y).backward()
        optimiser.step()

    def infer():
        with torch.no_grad():
            net(x)

    infer()
    before = reset_peak()
    infer()
    inference_memory = status("VmHWM") - before
    train()
    before = reset_peak()
    train()
    memory = status("VmHWM") - before
    return {
        "network": name,
        "dofs": space.dim(),
        "weights": sum(p.numel() for p in net.parameters()),
        "setup_s": setup,
        "training_ms": 1e3 * median_cpu(train) / BATCH,
        "inference_ms": 1e3 * median_cpu(infer) / BATCH,
        "training_mb": memory / BATCH,
        "inference_mb": inference_memory / BATCH,
    }


def measure_bandwidth(refinements):
    """GB/s of sparse products with the stiffness matrix, and of a copy."""
    from firedrake import TestFunction, TrialFunction, dx, grad, inner

    space = FunctionSpace(hierarchy(refinements), "CG", 1)
    u, v = TrialFunction(space), TestFunction(space)
    stiffness = spon.fem.sparse_map(inner(grad(u), grad(v)) * dx)
    big = torch.zeros(32_000_000)
    target = big.clone()
    copy = 2 * 4 * len(big) / median_cpu(lambda: target.copy_(big)) / 1e9
    rows = []
    for dtype, size in ((torch.float32, 4), (torch.float64, 8)):
        matrix = stiffness.to(dtype)
        x = torch.randn(space.dim(), COLUMNS, dtype=dtype)
        repeats = max(1, 200_000 // space.dim())

        def product(matrix=matrix, x=x, repeats=repeats):
            for _ in range(repeats):
                matrix(x)

        # The first results are on fresh pages, also where freed memory is kept.
        for _ in range(10):
            product()
        moved = matrix.nnz * (size + 4) + 4 * space.dim() + 2 * space.dim() * COLUMNS * size
        rate = repeats * moved / median_cpu(product, 11) / 1e9
        rows.append(
            {
                "dofs": space.dim(), "dtype": str(dtype).split(".")[1], "columns": COLUMNS,
                "gb_per_s": rate, "copy_gb_per_s": copy, "fraction": rate / copy,
            }
        )  # fmt: skip
    return rows


def slope(rows, key):
    """Exponent of growth."""
    sizes = np.log([row["dofs"] for row in rows])
    return float(np.polyfit(sizes, np.log([max(row[key], 1e-3) for row in rows]), 1)[0])


def child(*what, finished, tunables=KEPT):
    """A measurement in a process of its own, or what a finished one left in that file."""
    key = " ".join(map(str, (*what, tunables)))
    known = {}
    if finished.exists():
        known = dict(json.loads(line) for line in finished.read_text().splitlines())
    if key in known:
        return known[key]
    command = [sys.executable, __file__, "--child", *map(str, what)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False,
        env=os.environ | {"GLIBC_TUNABLES": tunables},
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{key} failed:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    finished.parent.mkdir(parents=True, exist_ok=True)
    with finished.open("a") as file:
        file.write(json.dumps([key, found]) + "\n")
    return found


def main():
    """Measure everything and write the JSON."""
    if "--child" in sys.argv:
        torch.set_num_threads(1)
        what, size, *shape = sys.argv[2:]
        if what == "bandwidth":
            measured = measure_bandwidth(int(size))
        else:
            measured = measure_network(what, (solid if shape else hierarchy)(int(size)))
        print(json.dumps(measured))
        return
    args = arguments(__doc__.splitlines()[0], "--only")
    torch.set_num_threads(1)
    known = set(spon.processors.available())
    names = ("spectral", "multigrid") if args.quick else [n for n in PROCESSORS if n in known]
    sizes = REFINEMENTS[:2] if args.quick else REFINEMENTS
    results = {"networks": [], "slopes": [], "solids": [], "returned": [], "bandwidth": []}
    if args.only:
        parts = [*names, "bandwidth"]
        if args.only not in parts:
            sys.exit(f"--only {args.only}: expected one of {', '.join(parts)}.")
        last = RESULTS / f"cost_growth{'-quick' if args.quick else ''}.json"
        results = json.loads(last.read_text())["results"]
        names = [name for name in names if name == args.only]
        for key in ("networks", "slopes", "solids", "returned"):
            results[key] = [r for r in results[key] if r["network"] != args.only]
        if args.only == "bandwidth":
            results["bandwidth"] = []
    # Finished measurements of a run that was cut off; the next one takes all anew.
    finished = RESULTS / "cache" / f"cost_growth{'-quick' if args.quick else ''}.jsonl"
    for name in names:
        for shape, steps in (([], sizes), (["cube"], CUBES.get(name, ()))):
            rows = []
            for size in steps:
                row = child(name, size, *shape, finished=finished)
                print(
                    f"{name:16s} {row['dofs']:8,} dofs: set-up {row['setup_s']:.1f} s, training "
                    f"{row['training_ms']:.1f} ms, inference {row['inference_ms']:.1f} ms, "
                    f"{row['training_mb']:.0f} MB a sample",
                    flush=True,
                )
                rows.append(row)
            if not rows:
                continue
            keys = ("training_ms", "inference_ms", "training_mb", "inference_mb", "setup_s")
            slopes = {"network": name, **{k: slope(rows, k) for k in keys}}
            print(shape, slopes, flush=True)
            if shape:
                results["solids"].append({"network": name, "rows": rows, "slopes": slopes})
            else:
                results["networks"] += rows
                results["slopes"].append(slopes)
        results["returned"].append(child(name, sizes[-2], finished=finished, tunables=""))
        print(f"without kept memory: {results['returned'][-1]}", flush=True)
    for refinements in sizes if args.only in (None, "bandwidth") else ():
        for tunables in (KEPT, ""):
            rows = child("bandwidth", refinements, finished=finished, tunables=tunables)
            results["bandwidth"] += [{"kept": bool(tunables), **row} for row in rows]
            print(results["bandwidth"][-2:], flush=True)
    write("cost_growth", results, {"batch": BATCH, "columns": COLUMNS}, args.output, args.quick)
    finished.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
