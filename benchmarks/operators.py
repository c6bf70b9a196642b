"""Forms and solvers for a batch of 64, against Firedrake's torch operator and TensorMesh.

Peers at their best settings: `firedrake.ml.pytorch.fem_operator` on a `ReducedFunctional` that was
taped once, outside the clock, around a `LinearVariationalSolver` or `NonlinearVariationalSolver`
with a direct solver (MUMPS, and for the linear problem a constant Jacobian, factorised once), one
sample a call, as it takes no more; `tensormesh-fem` with its fast path (``compile()``) for
assembly, one sample a call, and its own solve for 64 right-hand sides at once. TensorMesh is left
out, with a note, where it is not installed.

    python benchmarks/operators.py [--quick]
"""

from __future__ import annotations

import gc
import resource
import statistics
import time

import numpy as np
import torch
from common import arguments, median_times, write
from firedrake import (
    DirichletBC,
    Function,
    FunctionSpace,
    Identity,
    LinearVariationalProblem,
    LinearVariationalSolver,
    NonlinearVariationalProblem,
    NonlinearVariationalSolver,
    TestFunction,
    TrialFunction,
    UnitSquareMesh,
    VectorFunctionSpace,
    assemble,
    dx,
    grad,
    inner,
    sqrt,
    sym,
    tr,
)
from firedrake.adjoint import Control, ReducedFunctional, continue_annotation, pause_annotation
from firedrake.ml.pytorch import fem_operator as firedrake_operator
from pyadjoint.tape import set_working_tape

from spon import fem, losses
from spon.fem.matrices import jacobian

BATCH = 64
DIRECT = {"ksp_type": "preonly", "pc_type": "lu", "pc_factor_mat_solver_type": "mumps"}
CELLS = (9, 31, 63, 126)  # 100, 1,024, 4,096 and 16,129 dofs


def stacked(operator, batch):
    """One call for each sample, results stacked."""
    return torch.cat([operator(x[None]) for x in batch])


def forward_and_backward(operator, x):
    """Value and gradient of the sum of squares."""
    x.grad = None
    operator(x).square().sum().backward()
    return x.grad


def agree(ours, peer, x, rtol):
    """Both sides give the same values and gradients, or the comparison means nothing."""
    results = []
    for side in (ours, lambda batch: stacked(peer, batch)):
        few = x[:2].detach().clone().requires_grad_()
        # One sample a backward pass: the peer's gradients are wrong when it is called twice.
        gradients = []
        for row in few.detach():
            at = row[None].clone().requires_grad_()
            gradients.append(forward_and_backward(side, at))
        results.append((side(few).detach(), torch.cat(gradients)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b.to(a), rtol=rtol, atol=rtol * float(a.abs().max()))


def taped(build):
    """Firedrake's torch operator of what `build` makes: a functional and its control."""
    continue_annotation()
    with set_working_tape():
        functional, control = build()
        operator = firedrake_operator(ReducedFunctional(functional, Control(control)))
    pause_annotation()
    return operator


def batch_of(V, scale=1.0):
    """Random coefficients, (64, V.dim()), that ask for gradients."""
    rng = torch.Generator().manual_seed(0)
    x = scale * torch.randn(BATCH, V.dim(), generator=rng, dtype=torch.float64)
    return x.requires_grad_()


# ---- (a) linear solve ------------------------------------------------------------------------


def linear_solve(n):
    """Poisson, from the source's dofs to those of the solution."""
    V = FunctionSpace(UnitSquareMesh(n, n), "CG", 1)
    u, v, f = TrialFunction(V), TestFunction(V), Function(V)
    bc = DirichletBC(V, 0, "on_boundary")
    a = inner(grad(u), grad(v)) * dx
    ours = fem.LinearSolver(a, bc, inputs=f, L=f * v * dx)

    def build():
        control, solution = Function(V).assign(1.0), Function(V)
        problem = LinearVariationalProblem(
            a, control * v * dx, solution, bc, constant_jacobian=True
        )
        LinearVariationalSolver(problem, solver_parameters=DIRECT).solve()
        return solution, control

    return "linear solve", V, ours, taped(build), batch_of(V)


# ---- (b) nonlinear residual ------------------------------------------------------------------


def residual(n):
    """A reaction-diffusion residual."""
    V = FunctionSpace(UnitSquareMesh(n, n), "CG", 1)
    u, v = Function(V), TestFunction(V)

    def form(w):
        return inner(grad(w), grad(v)) * dx + w**3 * v * dx

    ours = fem.torch_form(form(u), u)

    def build():
        control = Function(V).assign(1.0)
        return assemble(form(control)), control

    return "nonlinear residual", V, ours, taped(build), batch_of(V)


# ---- (d) nonlinear solve ---------------------------------------------------------------------


def nonlinear_solve(n):
    """Nonlinear Poisson, -div((1 + u^2) grad u) = f, from source to solution."""
    V = FunctionSpace(UnitSquareMesh(n, n), "CG", 1)
    v, bc = TestFunction(V), DirichletBC(V, 0, "on_boundary")

    def form(w, f):
        return (1 + w**2) * inner(grad(w), grad(v)) * dx - f * v * dx

    u, f = Function(V), Function(V)
    options = {**DIRECT, "snes_rtol": 1e-8}
    tolerance = {"snes_rtol": 1e-8}
    ours = fem.NonlinearSolver(form(u, f), u, inputs=f, bcs=bc, solver_parameters=tolerance)

    def build():
        control, solution = Function(V).assign(1.0), Function(V)
        problem = NonlinearVariationalProblem(form(solution, control), solution, bc)
        NonlinearVariationalSolver(problem, solver_parameters=options).solve()
        return solution, control

    return "nonlinear solve", V, ours, taped(build), batch_of(V, 20.0)


def against_firedrake(make, sizes, quick):
    """Value, and value and gradient, at each size."""
    rows = []
    for n in sizes:
        name, V, ours, peer, x = make(n)
        agree(ours, peer, x, 1e-6)
        repeats = 3 if quick or n > 63 else 5
        for what, mine, theirs in (
            ("value", lambda: ours(x.detach()), lambda: stacked(peer, x.detach())),
            (
                "value and gradient",
                lambda: forward_and_backward(ours, x),
                lambda: forward_and_backward(lambda y: stacked(peer, y), x),
            ),
        ):
            times = median_times(mine, theirs, repeats)
            rows.append(
                {"operation": name, "what": what, "peer": "firedrake.ml.pytorch",
                 "dofs": V.dim(), "batch": BATCH, **times}
            )  # fmt: skip
            show(rows[-1])
    return rows


def show(row):
    """A line on the terminal."""
    print(
        f"{row['dofs']:6d} dofs {row['operation']:22s} {row['what']:20s} spon "
        f"{row['ours_ms'] / BATCH:8.4f} ms a sample, {row['peer']} "
        f"{row['peer_ms'] / BATCH:8.3f} ms, ratio {row['ratio']:7.1f}",
        flush=True,
    )


# ---- (c) the two backends --------------------------------------------------------------------


def law(V):
    """Residual of the saturating law of the RVE benchmark, degree 4."""
    u, v = Function(V), TestFunction(V)
    e = sym(grad(u))
    deviator = e - tr(e) / 3 * Identity(2)
    size = sqrt(inner(deviator, deviator) + tr(e) ** 2 / 9 + 1e-16)
    stress = 4.78e3 * tr(e) * Identity(2) + 50 / (0.06 + size) * deviator
    return inner(stress, sym(grad(v))) * dx(degree=4), u


def bandwidth():
    """GB/s of a copy that no cache holds, read and write counted."""
    a = torch.randn(1 << 25, dtype=torch.float64)
    b = torch.empty_like(a)
    b.copy_(a)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        b.copy_(a)
        times.append(time.perf_counter() - start)
    return 2 * a.numel() * 8 / statistics.median(times) / 1e9


def backends(sizes, quick):
    """Native against torch, in double and single precision."""
    peak, rows = bandwidth(), []
    for n in sizes:
        mesh = UnitSquareMesh(n, n)
        V = VectorFunctionSpace(mesh, "CG", 2)
        form, u = law(V)
        native = fem.torch_form(form, u)
        ours = fem.torch_form(form, u, backend="torch")
        x = batch_of(V, 0.01)
        torch.testing.assert_close(ours(x), native(x), rtol=1e-10, atol=1e-10)
        # What must be moved at least: the vectors, and what is known of each cell, read once for
        # each sample by a kernel that takes one sample, once for the whole batch otherwise.
        vectors, per_cell = 2 * 8 * V.dim(), 4 * (6 + 3) + 8 * 6
        for what, factor, call in (
            ("value", 1.0, lambda f, y: f(y.detach())),
            ("value and gradient", 2.5, forward_and_backward),
        ):
            for dtype in (torch.float64, torch.float32):
                y = x.detach().to(dtype).requires_grad_()
                times = median_times(
                    lambda c=call, z=y: c(ours, z), lambda c=call: c(native, x), 3 if quick else 5
                )
                size = dtype.itemsize / 8
                moved = {
                    "ours": factor * size * (vectors + mesh.num_cells() * 8 * 12 * 12 / BATCH),
                    "peer": factor * (vectors + mesh.num_cells() * per_cell),
                }
                rows.append(
                    {"operation": "residual of a law", "what": f"{what}, {str(dtype)[6:]}",
                     "peer": "native, float64", "dofs": V.dim(), "batch": BATCH, **times,
                     **{f"{side}_bandwidth_fraction":
                        moved[side] * BATCH / (times[f"{side}_ms"] * 1e-3) / 1e9 / peak
                        for side in moved},
                     "peak_gb_per_s": peak}
                )  # fmt: skip
                show(rows[-1])
    return rows


# ---- (e) memory ------------------------------------------------------------------------------


def memory(calls):
    """Growth of the resident memory over many calls, forward and backward, in kB."""
    mesh = UnitSquareMesh(9, 9)
    V = FunctionSpace(mesh, "CG", 1)
    v, bc = TestFunction(V), DirichletBC(V, 0, "on_boundary")
    norm = losses.DualNorm(V, bc)
    form, w = law(VectorFunctionSpace(mesh, "CG", 2))
    solve = linear_solve(9)[2]
    nonlinear = nonlinear_solve(9)[2]
    control = Function(V)
    continue_annotation()
    with set_working_tape():
        value = assemble(inner(grad(control), grad(v)) * dx + control**3 * v * dx)
        tape = fem.fem_operator(ReducedFunctional(value, Control(control)))
    pause_annotation()
    subjects = {
        "torch_form, native": (fem.torch_form(form, w), w.function_space()),
        "torch_form, torch": (fem.torch_form(form, w, backend="torch"), w.function_space()),
        "LinearSolver": (solve, V),
        "NonlinearSolver": (nonlinear, V),
        "DualNorm": (norm, V),
        "fem_operator": (tape, V),
    }
    rows = []
    for name, (operator, space) in subjects.items():
        x = batch_of(space, 0.1)[:2].detach().requires_grad_()
        for _ in range(calls // 10):
            forward_and_backward(operator, x)
        gc.collect()
        before = resident()
        for _ in range(calls):
            forward_and_backward(operator, x)
        gc.collect()
        growth = resident() - before
        rows.append({"operation": "memory", "what": name, "calls": calls, "growth_kb": growth})
        print(f"{name:22s} {calls} calls: {growth:+d} kB", flush=True)
    return rows


def resident():
    """Resident memory now, kB."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() // 1024


# ---- (f) TensorMesh --------------------------------------------------------------------------


def tensormesh(sizes, quick):
    """Poisson solves, assembly and a heat-type residual on the same mesh."""
    try:
        import tensormesh as peer
    except ImportError:
        print("tensormesh-fem is not installed: part (f) is left out", flush=True)
        return []
    import meshio

    class Stiffness(peer.ElementAssembler):
        def forward(self, gradu, gradv):
            return gradu @ gradv

    class Weighted(peer.ElementAssembler):
        def forward(self, gradu, gradv, k):
            return k * (gradu @ gradv)

    class Source(peer.NodeAssembler):
        def forward(self, v, f):
            return f[..., None] * v if f.ndim else f * v

    class Heat(peer.NodeAssembler):
        def forward(self, v, gradv, u, gradu, old):
            flux = (gradu[..., None, :] * gradv).sum(-1)
            return ((u - old) / 0.05)[..., None] * v + (1 + u**2)[..., None] * flux

    rows = []
    for n in sizes:
        mesh = UnitSquareMesh(n, n)
        V = FunctionSpace(mesh, "CG", 1)
        points = np.array(mesh.coordinates.dat.data_ro)
        cells = np.array(mesh.coordinates.function_space().cell_node_list, dtype=np.int64)
        # Both number the nodes alike: the coordinates of CG 1 are the vertices.
        theirs = peer.Mesh.from_meshio(meshio.Mesh(points, [("triangle", cells)]))
        theirs = theirs.double()
        boundary = torch.zeros(V.dim(), dtype=torch.bool)
        boundary[torch.from_numpy(V.boundary_nodes("on_boundary").astype(np.int64))] = True
        stiffness = Stiffness.from_mesh(theirs)
        weighted = Weighted.from_mesh(theirs)
        source, heat = Source.from_mesh(theirs), Heat.from_mesh(theirs)
        source.compile()
        heat.compile()
        u, v, bc = TrialFunction(V), TestFunction(V), DirichletBC(V, 0, "on_boundary")
        a = inner(grad(u), grad(v)) * dx
        solver = fem.LinearSolver(a, bc)
        matrix = peer.Condenser(boundary)(stiffness(), torch.zeros(V.dim(), dtype=torch.float64))[0]
        inside = ~boundary

        def peer_solve(b, matrix=matrix, inside=inside):
            return matrix.solve(b[:, inside].T.contiguous()).T

        loads = batch_of(V)
        with torch.no_grad():
            few = loads[:2].detach()
            torch.testing.assert_close(
                solver(few)[:, inside], peer_solve(few), rtol=1e-6, atol=1e-8
            )
        w, old = Function(V), Function(V)
        form = (w - old) / 0.05 * v * dx(degree=4)
        form += (1 + w**2) * inner(grad(w), grad(v)) * dx(degree=4)
        ours_heat = fem.torch_form(form, [w, old])
        state = batch_of(V)
        before = torch.zeros_like(state)

        def peer_heat(x, heat=heat, before=before):
            return torch.stack(
                [heat(point_data={"u": a, "old": b}) for a, b in zip(x, before, strict=True)]
            )

        k = Function(V)
        # What the solvers assemble by: the matrices of k grad u . grad v for a batch of k.
        matrices = jacobian(fem.torch_form(k * inner(grad(w), grad(v)) * dx, [w, k]))
        load = fem.torch_form(old * v * dx, old)
        cases = {
            "64 solves, value": (
                lambda: solver(loads.detach()),
                lambda: peer_solve(loads.detach()),
            ),
            "64 solves, value and gradient": (
                lambda: forward_and_backward(solver, loads),
                lambda: forward_and_backward(peer_solve, loads),
            ),
            "64 matrices": (
                lambda: matrices.values([loads.detach(), loads.detach()], BATCH),
                lambda: [weighted(point_data={"k": k}) for k in loads.detach()],
            ),
            "64 loads": (
                lambda: load(loads.detach()),
                lambda: [source(point_data={"f": f}) for f in loads.detach()],
            ),
            "64 heat residuals, value": (
                lambda: ours_heat(state.detach(), before),
                lambda: peer_heat(state.detach()),
            ),
            "64 heat residuals, value and gradient": (
                lambda: forward_and_backward(lambda y: ours_heat(y, before), state),
                lambda: forward_and_backward(peer_heat, state),
            ),
        }
        for what, (mine, other) in cases.items():
            times = median_times(mine, other, 3 if quick else 5)
            rows.append({"operation": "TensorMesh", "what": what, "peer": "tensormesh",
                         "dofs": V.dim(), "batch": BATCH, **times})  # fmt: skip
            show(rows[-1])
    return rows


def main():
    """Run all parts and write the JSON."""
    options = arguments(__doc__, "--part")
    torch.set_num_threads(1)
    pause_annotation()
    quick = options.quick
    sizes = CELLS[:2] if quick else CELLS
    parts = {
        "a": lambda: against_firedrake(linear_solve, sizes, quick),
        "b": lambda: against_firedrake(residual, sizes, quick),
        "c": lambda: backends((16,) if quick else (16, 64), quick),
        "d": lambda: against_firedrake(nonlinear_solve, sizes[:1] if quick else sizes, quick),
        "e": lambda: memory(300 if quick else 10_000),
        "f": lambda: tensormesh(sizes[1:2] if quick else sizes[1:3], quick),
    }
    wanted = options.part or "".join(parts)
    results = [row for part in wanted for row in parts[part]()]
    if not options.part or options.output:
        write("operators", results, {"batch": BATCH, "parts": wanted}, options.output, quick)


if __name__ == "__main__":
    main()
