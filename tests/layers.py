"""What the tests of several processors need: random networks, smooth inputs, distances, data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import firedrake as fd
import numpy as np
import pytest
import torch

import spon


def column(function: Any) -> torch.Tensor:
    """Coefficients, (dim, 1)."""
    return torch.from_numpy(function.dat.data_ro.reshape(-1, 1).copy())


def random_network(
    processor: Any, space: Any, bcs: Any = (), source: Any = None, size: float = 0.1
) -> Any:
    """A network in double precision, every weight moved away from its start."""
    torch.manual_seed(0)
    encoder = spon.Encoder(space if source is None else source)
    net = spon.OperatorNetwork(encoder, processor, spon.Decoder(space, bcs), torch.float64)
    with torch.no_grad():
        for weight in processor.parameters():
            weight += size * torch.randn_like(weight)
    return net


def processed(net: Any, f: Any) -> Any:
    """What the processor makes of a function, before the decoder sets the boundary values.

    Random weights do not give these values, and the layer of cells where they are put right would
    be all that a norm sees.
    """
    with torch.no_grad():
        y = net.processor([column(f)], net.geometry)
    u = fd.Function(net.decoder.space)
    u.dat.data[:] = y.numpy().reshape(u.dat.data_ro.shape)
    return u


def relative(u: Any, v: Any) -> float:
    """L2 distance on the mesh of `v`, the first interpolated there, over the norm of `v`."""
    w = fd.Function(v.function_space()).interpolate(u)
    return float(fd.norm(v - w) / fd.norm(v))


def smooth(space: Any) -> Any:
    """A smooth function of the plane."""
    x, y = fd.SpatialCoordinate(space.mesh())
    return fd.Function(space).interpolate(fd.sin(3 * x) * fd.exp(y))


def graded_changes(network: Any, sizes: Sequence[int] = (8, 16, 32)) -> list[float]:
    """How far outputs differ on unit squares with half the mesh size in one half of them.

    `network` makes one from a space and conditions on it.
    """
    changes = []
    for n in sizes:
        x = np.concatenate([np.linspace(0, 0.5, n // 2 + 1), np.linspace(0.5, 1, n + 1)[1:]])
        even, local = fd.UnitSquareMesh(n, n), fd.TensorRectangleMesh(x, x)
        space = fd.FunctionSpace(even, "CG", 1)
        net = network(space, fd.DirichletBC(space, 0.0, 1))
        u = processed(net.on(local), smooth(fd.FunctionSpace(local, "CG", 1)))
        changes.append(relative(processed(net, smooth(space)), u))
    return changes


def rough_sizes(network: Any) -> list[float]:
    """What noise in each cell makes of the output, on finer and finer meshes."""
    sizes = []
    for n in (16, 32, 64):
        mesh = fd.UnitSquareMesh(n, n)
        space, cells = fd.FunctionSpace(mesh, "CG", 1), fd.FunctionSpace(mesh, "DG", 0)
        net = network(space, fd.DirichletBC(space, 0.0, 1), source=cells)
        noise = fd.Function(cells)
        noise.dat.data[:] = np.random.default_rng(n).standard_normal(cells.dim())
        sizes.append(fd.norm(processed(net, noise) - processed(net, fd.Function(cells))))
    return sizes


def check_file_and_mesh(network: Any, path: Any) -> None:
    """A file gives the same network back, it moves and changes precision, and refuses loads."""
    mesh = fd.UnitSquareMesh(5, 5)
    space = fd.FunctionSpace(mesh, "CG", 1)
    net = network(space, fd.DirichletBC(space, 0.0, 1))
    net.save(path)
    again = spon.load(path, mesh)
    x = torch.randn(3, space.dim(), dtype=torch.float64)
    assert torch.equal(again(x), net(x))
    assert again.processor.config() == net.processor.config()
    y, moved = torch.randn(2, 49), net.on(fd.UnitSquareMesh(6, 6))
    double = moved(y.double())
    single = moved.to(torch.float32)(y)
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), double, rtol=1e-4, atol=1e-5)
    load = fd.assemble(fd.TestFunction(space) * fd.dx)
    with pytest.raises(TypeError, match="not loads or residuals"):
        again(load)


def trained_error(processor: Any, rate: float, steps: int, n: int = 12) -> float:
    """Relative error for unseen loads of the Poisson equation after training on 200 samples.

    The loads are smooth random fields: waves with amplitudes that fall with their number.
    """
    mesh = fd.UnitSquareMesh(n, n)
    space = fd.FunctionSpace(mesh, "CG", 1)
    bc = fd.DirichletBC(space, 0.0, "on_boundary")
    u, v = fd.TrialFunction(space), fd.TestFunction(space)
    mass = spon.fem.sparse_map(u * v * fd.dx)
    solve = spon.fem.LinearSolver(fd.inner(fd.grad(u), fd.grad(v)) * fd.dx, bc)
    f = random_fields(mesh.coordinates.dat.data_ro, 250)
    exact = solve(mass.batch(f))
    f, exact = f.float(), (exact / exact.std()).float()
    torch.manual_seed(0)
    net = spon.OperatorNetwork(
        spon.Encoder(space), processor, spon.Decoder(space, bc), torch.float32
    )
    net.calibrate([f[:200]], exact[:200])
    optimiser = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)

    def error(batch: slice) -> torch.Tensor:
        return ((net(f[batch]) - exact[batch]).norm(dim=1) / exact[batch].norm(dim=1)).mean()

    for step in range(steps):
        optimiser.zero_grad()
        start = 20 * (step % 10)
        error(slice(start, start + 20)).backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        return float(error(slice(200, 250)))


def random_fields(points: np.ndarray, count: int) -> torch.Tensor:
    """Smooth random fields at points of the unit square, (count, points)."""
    rng = np.random.default_rng(0)
    k = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2)
    waves = np.cos(np.pi * points @ k.T + np.pi * rng.random(len(k)))
    size = (1.0 + 0.2 * (k**2).sum(axis=1)) ** -1.0
    return torch.from_numpy(rng.standard_normal((count, len(k))) * size @ waves.T)
