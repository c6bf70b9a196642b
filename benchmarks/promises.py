"""What decoders with promises cost in 3D: to make, and for each sample.

python benchmarks/promises.py [--quick]    6 minutes on one idle core

Cubes of tetrahedra. Making a decoder finds its potentials and harmonic fields and factorises what
its corrections need, once; on the coarse cubes it is made with SciPy's SuperLU, too. A step of
training is a batch of eight samples through the decoder and back.
"""

from __future__ import annotations

import time
from unittest import mock

import torch
from common import arguments, median_times, write
from firedrake import (
    DirichletBC,
    FunctionSpace,
    UnitCubeMesh,
    VectorFunctionSpace,
    as_vector,
)
from scipy.sparse.linalg import splu

import spon
from spon.fem import complexes, fields, promises

BATCH = 8


def decoders(mesh):
    """Name: space and decoder, not made yet."""
    scalar, vector = FunctionSpace(mesh, "CG", 1), VectorFunctionSpace(mesh, "CG", 1)
    fluxes, edges = FunctionSpace(mesh, "RT", 1), FunctionSpace(mesh, "N1curl", 1)
    walls = DirichletBC(fluxes, as_vector((0.0, 0.0, 0.0)), "on_boundary")
    return {
        "mean, CG 1": (scalar, {"mean": 1.0}),
        "mean, CG 1 vectors": (vector, {"mean": (0.0, 0.0, 0.0)}),
        "divergence-free with walls, RT 1": (fluxes, {"bcs": walls, "divergence_free": True}),
        "flux, divergence-free, RT 1": (fluxes, {"divergence_free": True, "flux": {1: 1.0}}),
        "divergence given, RT 1": (fluxes, {"divergence": 1.0}),
        "curl-free, N1curl 1": (edges, {"curl_free": True}),
    }


def made(U, options):
    """A decoder and the CPU seconds that it took."""
    start = time.process_time()
    decoder = spon.Decoder(U, **options)
    return decoder, time.process_time() - start


def measure(name, cells, superlu):
    """One promise on one mesh."""
    made(*decoders(UnitCubeMesh(2, 2, 2))[name])  # compiled outside the clock
    mesh = UnitCubeMesh(cells, cells, cells)
    U, options = decoders(mesh)[name]
    decoder, seconds = made(U, options)
    row = {"promise": name, "cells": mesh.num_cells(), "dofs": U.dim(), "setup_s": seconds}
    if superlu:
        with (
            mock.patch.object(fields, "saddle", splu),
            mock.patch.object(fields, "definite", _SuperLU),
            mock.patch.object(complexes, "definite", _SuperLU),
            mock.patch.object(fields, "Direct", splu),
            mock.patch.object(promises, "solve_definite", _solve),
        ):
            row["superlu_s"] = made(U, options)[1]
    plain = spon.Decoder(decoder.latent)
    z = torch.randn(BATCH, decoder.latent.dim(), dtype=torch.float64, requires_grad=True)

    def step(decoder):
        z.grad = None
        decoder(z).square().sum().backward()

    times = median_times(lambda: step(decoder), lambda: step(plain))
    row |= {"ms": times["ours_ms"] / BATCH, "without_ms": times["peer_ms"] / BATCH}
    print(row, flush=True)
    return row


def _solve(matrix, load):
    return _SuperLU(matrix).solve(load)


class _SuperLU:
    """SciPy's factorisation, which wants columns that lie together."""

    def __init__(self, matrix):
        self._lu = splu(matrix.tocsc())

    def solve(self, right):
        return self._lu.solve(right.copy())


def main():
    """Run all sizes and write the JSON."""
    options = arguments(__doc__)
    torch.set_num_threads(1)
    sizes = {4: True} if options.quick else {6: True, 12: True, 24: False}
    names = decoders(UnitCubeMesh(1, 1, 1))
    results = [measure(name, n, superlu) for n, superlu in sizes.items() for name in names]
    write("promises", results, {"batch": BATCH, "dtype": "float64"}, options.output, options.quick)


if __name__ == "__main__":
    main()
