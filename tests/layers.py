"""What the tests of several processors need: random networks, smooth inputs, distances, data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import firedrake as fd
import numpy as np
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
    """What the processor makes of a function, before the decoder sets the boundary values."""
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


def graded_meshes() -> Iterator[tuple[Any, Any]]:
    """Unit squares, and beside each one with half the mesh size in one half."""
    for n in (8, 16, 32):
        x = np.concatenate([np.linspace(0, 0.5, n // 2 + 1), np.linspace(0.5, 1, n + 1)[1:]])
        yield fd.UnitSquareMesh(n, n), fd.TensorRectangleMesh(x, x)


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
