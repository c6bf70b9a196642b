"""Batches of one sample each on many small meshes: side by side, and mesh after mesh.

python benchmarks/merged_meshes.py [--quick]    2 minutes on one idle core

Loss and gradient of a batch in float32, as in a step of training. Both sides are checked to give
the same gradient before the clock starts.
"""

from __future__ import annotations

import numpy as np
import torch
from common import arguments, median_times, write
from firedrake import DirichletBC, FunctionSpace, UnitSquareMesh

import spon
from spon.merged_batches import merged_loss
from spon.samples import Samples, summed_loss
from spon.training_sets import Part

PROCESSORS = {
    "Graph": spon.processors.Graph,
    "Spectral": spon.processors.Spectral,
    "Multigrid": spon.processors.Multigrid,
    "Resolvent": spon.processors.Resolvent,
}


def domain(cells, seed):
    """A curved quadrilateral with sides of its own."""
    mesh = UnitSquareMesh(cells, cells)
    rng, x = np.random.default_rng(seed), mesh.coordinates.dat.data
    x[:] = x * rng.uniform(0.6, 1.6, 2) + 0.05 * np.sin(3 * x[:, ::-1] + rng.uniform())
    return mesh


def pieces(processor, count, cells):
    """A sample, the network and the loss on each of `count` meshes."""
    parts = []
    for seed in range(count):
        mesh = domain(cells - seed % 3, seed)
        F, U = FunctionSpace(mesh, "DG", 0), FunctionSpace(mesh, "CG", 1)
        decoder = spon.Decoder(U, bcs=DirichletBC(U, 0.0, "on_boundary"))
        net = spon.OperatorNetwork(spon.Encoder(F), processor, decoder, torch.float32)
        sample = Samples((torch.randn(1, F.dim()),), torch.randn(1, U.dim()), None)
        parts.append(Part(net, spon.losses.RelativeError(U, "L2"), sample))
    return parts


def measure(name, count, cells):
    """Both sides for one processor."""
    torch.manual_seed(0)
    processor = PROCESSORS[name]()
    parts, cpu = pieces(processor, count, cells), torch.device("cpu")

    def one_by_one():
        processor.zero_grad()
        for part in parts:
            summed_loss(part.net, part.loss, part.samples).backward()

    def side_by_side():
        processor.zero_grad()
        merged_loss(parts, cpu).backward()

    def gradient(call):
        call()
        return torch.cat([p.grad.flatten() for p in processor.parameters() if p.grad is not None])

    expected = gradient(one_by_one)
    difference = float((gradient(side_by_side) - expected).norm() / expected.norm())
    assert difference < 1e-4, difference
    row = {"processor": name, "meshes": count, "nodes": parts[0].net.geometry.nodes}
    row |= {"difference": difference} | median_times(side_by_side, one_by_one)
    print(row, flush=True)
    return row


def main():
    """Run all sizes and write the JSON."""
    options = arguments(__doc__)
    sizes = [(4, 8)] if options.quick else [(50, 16), (16, 16), (16, 32), (16, 64)]
    results = [measure(name, *size) for size in sizes for name in PROCESSORS]
    write("merged_meshes", results, {"dtype": "float32"}, options.output, options.quick)


if __name__ == "__main__":
    main()
