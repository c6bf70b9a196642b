"""Encode, decode and interpolate a batch, against a loop over Firedrake's own torch bridge.

The peer is `firedrake.ml.pytorch` as its documentation uses it: `fem_operator` on a
`ReducedFunctional` for everything that is differentiated, `from_torch` and `to_torch` for
everything else, one sample a call. Its interpolation is taped once, outside the clock.

    python benchmarks/bridge.py [--quick]
"""

from __future__ import annotations

import torch
from common import arguments, median_times, write
from firedrake import (
    DirichletBC,
    Function,
    FunctionSpace,
    UnitSquareMesh,
    assemble,
    interpolate,
)
from firedrake.adjoint import Control, ReducedFunctional, continue_annotation, pause_annotation
from firedrake.ml.pytorch import fem_operator, from_torch, to_torch
from pyadjoint.tape import set_working_tape

from spon import Decoder, Encoder, fem

BATCH = 64


def taped_interpolation(source, target):
    """Firedrake's torch operator for the interpolation between two spaces."""
    continue_annotation()
    with set_working_tape():
        f = Function(source)
        operator = fem_operator(ReducedFunctional(assemble(interpolate(f, target)), Control(f)))
    pause_annotation()
    return operator


def stacked(operator, batch):
    """One call for each sample, results stacked."""
    return torch.cat([operator(x[None]) for x in batch])


def forward_and_backward(operator, x):
    """Value and gradient of the sum of squares."""
    x.grad = None
    operator(x).square().sum().backward()
    return x.grad


def cases(n, dtype):
    """Name, our side and the peer's side of each operation on an n x n square."""
    mesh = UnitSquareMesh(n, n)
    W, V = FunctionSpace(mesh, "DG", 1), FunctionSpace(mesh, "CG", 1)
    fine = FunctionSpace(mesh, "CG", 2)
    bc = DirichletBC(V, 1.0, "on_boundary")
    encoder = Encoder(fine, source=V).to(dtype)
    decoder = Decoder(V, bc).to(dtype)
    peer_encode = taped_interpolation(V, fine)
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, V.dim(), generator=rng, dtype=dtype)
    xg = x.clone().requires_grad_()
    functions = fem.to_function(x, V)
    to_dg = fem.interpolation_map(V, W).to(dtype)
    peer_to_dg = taped_interpolation(V, W)
    other = FunctionSpace(UnitSquareMesh(n - 1, n + 1), "CG", 1)
    to_other = fem.interpolation_map(V, other).to(dtype)
    peer_to_other = taped_interpolation(V, other)

    def peer_decode():
        out = []
        for row in x:
            f = from_torch(row, V)
            bc.apply(f)
            out.append(to_torch(f, dtype=dtype))
        return torch.cat(out)

    # Both sides give the same numbers, or the comparison means nothing.
    tolerance = (
        {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-10}
    )
    torch.testing.assert_close(encoder(x), stacked(peer_encode, x).to(dtype), **tolerance)
    torch.testing.assert_close(decoder(x), peer_decode(), **tolerance)
    torch.testing.assert_close(to_dg.batch(x), stacked(peer_to_dg, x).to(dtype), **tolerance)
    few = x[:4]
    torch.testing.assert_close(
        to_other.batch(few), stacked(peer_to_other, few).to(dtype), **tolerance
    )

    yield "encode", V.dim(), lambda: encoder(x), lambda: stacked(peer_encode, x)
    yield (
        "encode, value and gradient",
        V.dim(),
        lambda: forward_and_backward(encoder, xg),
        lambda: forward_and_backward(lambda y: stacked(peer_encode, y), xg),
    )
    yield "decode", V.dim(), lambda: decoder(x), peer_decode
    if V.dim() < 50_000:  # the peer would need many minutes
        yield (
            "interpolate to another mesh",
            V.dim(),
            lambda: to_other.batch(x),
            lambda: stacked(peer_to_other, x),
        )
        yield (
            "interpolate to another mesh, value and gradient",
            V.dim(),
            lambda: forward_and_backward(to_other.batch, xg),
            lambda: forward_and_backward(lambda y: stacked(peer_to_other, y), xg),
        )
    yield "interpolate into DG 1", V.dim(), lambda: to_dg.batch(x), lambda: stacked(peer_to_dg, x)
    yield (
        "interpolate into DG 1, value and gradient",
        V.dim(),
        lambda: forward_and_backward(to_dg.batch, xg),
        lambda: forward_and_backward(lambda y: stacked(peer_to_dg, y), xg),
    )
    yield (
        "functions to tensor",
        V.dim(),
        lambda: fem.to_tensor(functions, dtype),
        lambda: torch.cat([to_torch(f, dtype=dtype) for f in functions]),
    )
    yield (
        "tensor to functions",
        V.dim(),
        lambda: fem.to_function(x, V),
        lambda: [from_torch(row, V) for row in x],
    )


def main():
    """Run all sizes and dtypes and write the JSON."""
    options = arguments(__doc__)
    sizes = [31, 99] if options.quick else [31, 99, 315]
    pause_annotation()
    results = []
    for n in sizes:
        for dtype in (torch.float32, torch.float64):
            for name, dofs, ours, peer in cases(n, dtype):
                repeats = 3 if options.quick or dofs > 50_000 else 7
                times = median_times(ours, peer, repeats)
                results.append(
                    {
                        "operation": name,
                        "dofs": dofs,
                        "dtype": str(dtype)[6:],
                        "batch": BATCH,
                        **times,
                    }
                )
                print(
                    f"{dofs:6d} dofs {str(dtype)[6:]} {name:48s} spon {times['ours_ms']:9.3f} ms  "
                    f"Firedrake {times['peer_ms']:9.1f} ms  ratio {times['ratio']:7.1f}",
                    flush=True,
                )
    write("bridge", results, {"batch": BATCH}, options.output, options.quick)


if __name__ == "__main__":
    main()
