"""Multigrid cycles: PETSc's cycle, levels of every kind, conditions, other meshes, training."""

import itertools

import firedrake as fd
import numpy as np
import pytest
import torch

import spon
from spon.fem.geometry import build_geometry
from spon.processors import GeometryRequest, Multigrid
from spon.processors.multigrid import VCycle

OMEGA = 0.61


def column(function):
    return torch.from_numpy(function.dat.data_ro.reshape(-1, 1).copy())


def levels_of(space, kind, bcs=()):
    return build_geometry(GeometryRequest(levels=kind), [], space, bcs).hierarchy


def poisson_cycle(gdim, steps):
    """A = K, S = omega diag(K)^-1 for one channel."""
    cycle = VCycle(1, gdim, levels=2, pre=steps, post=steps, stencil=True).double()
    with torch.no_grad():
        cycle.operator.zero_()
        cycle.operator[0, 0] = -1.0 / 20.0  # takes the lower-order term away
        cycle.smoother.zero_()
        cycle.smoother[0, 0] = OMEGA - 0.7
    return cycle


def petsc_options(steps, prefix=""):
    smoother = {
        "ksp_type": "richardson",
        "ksp_richardson_scale": OMEGA,
        "ksp_norm_type": "none",
        "ksp_convergence_test": "skip",
        "ksp_max_it": steps,
        "pc_type": "jacobi",
    }
    return {
        "ksp_type": "preonly",
        "pc_type": "mg",
        "mg_levels": smoother,
        "mg_coarse": {**smoother, "ksp_max_it": 2 * steps},
    }


HIERARCHIES = {
    "triangles": lambda: fd.MeshHierarchy(fd.UnitSquareMesh(3, 2), 3),
    "disk": lambda: fd.MeshHierarchy(fd.UnitDiskMesh(1), 2),
    "quadrilaterals": lambda: fd.MeshHierarchy(fd.UnitSquareMesh(3, 2, quadrilateral=True), 2),
    "tetrahedra": lambda: fd.MeshHierarchy(fd.UnitCubeMesh(2, 2, 2), 2),
}


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("kind", list(HIERARCHIES))
def test_a_cycle_is_the_cycle_of_petsc(kind, steps):
    mesh = HIERARCHIES[kind]()[-1]
    space = fd.FunctionSpace(mesh, "CG", 1)
    bc = fd.DirichletBC(space, 0.0, "on_boundary")
    u, v = fd.TrialFunction(space), fd.TestFunction(space)
    f = fd.Function(space)
    f.dat.data[:] = np.random.default_rng(0).standard_normal(f.dat.data_ro.shape)
    expected = fd.Function(space)
    # Firedrake assembles on every mesh of the hierarchy and transfers with its own kernels.
    a, load = fd.inner(fd.grad(u), fd.grad(v)) * fd.dx, f * v * fd.dx
    fd.solve(a == load, expected, bcs=bc, solver_parameters=petsc_options(steps))
    hierarchy = levels_of(space, "meshes", [bc])
    assert len(hierarchy) == len(HIERARCHIES[kind]())
    b = column(fd.assemble(load).riesz_representation("l2"))[:, :, None]
    volume = fd.assemble(fd.Constant(1.0) * fd.dx(domain=mesh))
    gdim = mesh.geometric_dimension
    with torch.no_grad():
        found = poisson_cycle(gdim, steps)(b, hierarchy)[:, :, 0]
    # The hierarchy has no units: its stiffness is that of the mesh times length^2 / volume.
    found = found * volume ** (2.0 / gdim - 1.0)
    exact = column(expected)
    assert float((found - exact).abs().max() / exact.abs().max()) < 1e-10


def test_lower_degrees_are_levels_as_in_firedrakes_p_multigrid():
    mesh = fd.MeshHierarchy(fd.UnitSquareMesh(3, 2), 1)[-1]
    space = fd.FunctionSpace(mesh, "CG", 2)
    bc = fd.DirichletBC(space, 0.0, "on_boundary")
    hierarchy = levels_of(space, "meshes", [bc])
    assert [level.nodes for level in hierarchy.levels] == [117, 35, 12]
    u, v = fd.TrialFunction(space), fd.TestFunction(space)
    f = fd.Function(space)
    f.dat.data[:] = np.random.default_rng(0).standard_normal(f.dat.data_ro.shape)
    expected = fd.Function(space)
    inner = petsc_options(1)
    a, load = fd.inner(fd.grad(u), fd.grad(v)) * fd.dx, f * v * fd.dx
    options = {
        "mat_type": "aij",
        "ksp_type": "preonly",
        "pc_type": "python",
        "pc_python_type": "firedrake.PMGPC",
        "pmg_mg_levels": inner["mg_levels"],
        "pmg_mg_coarse": {**inner, "mat_type": "aij"},
    }
    fd.solve(a == load, expected, bcs=bc, solver_parameters=options)
    b = column(fd.assemble(load).riesz_representation("l2"))[:, :, None]
    with torch.no_grad():
        found = poisson_cycle(2, 1)(b, hierarchy)[:, :, 0]
    exact = column(expected)
    assert float((found - exact).abs().max() / exact.abs().max()) < 1e-10
