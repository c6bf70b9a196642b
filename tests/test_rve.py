"""RVEs against UFL forms, dense matrices, closed forms and the reference results of others."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import firedrake as fd
import numpy as np
import pytest
import torch
from rve_grids import curved_rve, grid_file
from small_rve import FINITE, LAWS, MATRIX, corner, small_dense_rve, small_rve, tagged

from fe_ol import RVE, LinearElastic, NonlinearElastic, PlaneStress
from fe_ol.voigt import pairs, rest_strain, strain_size, to_matrix
from spon.fem import read_mesh, to_function

MESHES = Path(__file__).parents[1] / "meshes"
SOFT, STIFF = FINITE[1], FINITE[2]


def strains(n, dim=2, finite=False, size=0.03, seed=0):
    generator = torch.Generator().manual_seed(seed)
    c = strain_size(dim, finite)
    move = size * (2 * torch.rand(n, c, dtype=torch.float64, generator=generator) - 1)
    return rest_strain(dim, finite) + move


def worst(a, b):
    """Largest relative error of rows."""
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    return float(((a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).max())


def unit(dim, boundary, cells="simplex", n=3):
    """A unit square or cube."""
    boxes = cells == "box"
    if dim == 2:
        make = fd.PeriodicUnitSquareMesh if boundary == "periodic" else fd.UnitSquareMesh
        return make(n, n, quadrilateral=boxes)
    make = fd.PeriodicUnitCubeMesh if boundary == "periodic" else fd.UnitCubeMesh
    return make(n, n, n, hexahedral=boxes)


def cell(dim=2, boundary="periodic", finite=False, cells="simplex", n=3, **options):
    """A small cell with two laws."""
    laws = FINITE if finite else LAWS
    mesh = tagged(unit(dim, boundary, cells, n), corner)
    return RVE(mesh, laws, boundary=boundary, **options)


# ---- results of others


def reference(k):
    rows = [r for r in json.loads(grid_file("reference.json").read_text()) if r["rve"] == k]
    xx, xy, yy, xz, yz, zz = torch.tensor(
        [r["tangent_11_12_22_13_23_33"] for r in rows], dtype=torch.float64
    ).T
    tangent = torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], 1).reshape(-1, 3, 3)
    strain = torch.tensor([r["strain"] for r in rows], dtype=torch.float64)
    return strain, torch.tensor([r["stress"] for r in rows], dtype=torch.float64), tangent


@pytest.mark.parametrize("k", [1, 2, 3])
def test_published_cells_on_their_own_grids(k):
    strain, stress, tangent = reference(k)
    rve = RVE(curved_rve(k), LAWS, family="S", quadrature_degree=5)
    found = rve.solve(strain)
    loaded = strain.abs().amax(1) > 0
    assert loaded.sum() >= 3 and not stress[~loaded].any()
    # The file has six digits after the point: some 1e-8 of the stresses.
    assert worst(found.macro_stress[loaded], stress[loaded]) < 1e-7
    assert float(found.macro_stress[~loaded].abs().max()) < 1e-10
    assert worst(found.tangent, tangent) < 1e-6
    assert float(rve.hill_mandel(found).max()) < 1e-10


@pytest.mark.parametrize("k", [1, 3])  # the published ellipse of the second is not quite one
def test_the_projects_own_meshes_give_the_published_results(k):
    """Within 0.1 %, but for the shear of the first cell, which takes a mesh as fine as theirs."""
    strain, stress, tangent = reference(k)
    found = RVE(read_mesh(MESHES / f"rve{k}.msh"), LAWS).solve(strain)
    loaded = strain.abs().amax(1) > 0
    sheared = (strain[:, :2].abs().amax(1) == 0) & loaded & (k == 1)
    assert sheared.sum() == (k == 1)
    rest = loaded & ~sheared
    assert worst(found.macro_stress[rest], stress[rest]) < 1e-3
    assert worst(found.tangent[~sheared], tangent[~sheared]) < 1e-3
    if sheared.any():
        assert worst(found.macro_stress[sheared], stress[sheared]) < 2e-2


def finer(name, size, folder):
    """One of the project's meshes in another size."""
    path = folder / f"{name}_{size}.msh"
    done = subprocess.run(
        [sys.executable, f"{name}.py", "--size", str(size), "--out", str(path)],
        cwd=MESHES,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if "No module named 'gmsh'" in done.stderr or "cannot open shared object" in done.stderr:
        pytest.skip("gmsh does not load")
    assert done.returncode == 0, done.stderr[-2000:]
    return read_mesh(path)


def test_a_mesh_as_fine_as_the_published_one_gives_its_shear_stress(tmp_path):
    """Within 0.1 % with as many dofs, though neither has the limit.

    The matrix yields in the gaps between fibres: its stress saturates, and what is left to the mesh
    is where the strain concentrates. Degree 3 changes either by 0.4 to 0.5 %, to the same value.
    """
    strain, stress, _ = reference(1)
    sheared = (strain[:, :2].abs().amax(1) == 0) & (strain[:, 2] != 0)
    rve = RVE(finer("rve1", 0.02, tmp_path), LAWS, family="S", quadrature_degree=5)
    assert rve.space.dim() == pytest.approx(20_736, rel=0.05)
    assert worst(rve(strain[sheared]).stress, stress[sheared]) < 1e-3
    better = [
        RVE(mesh, LAWS, degree=3, family="S", quadrature_degree=7)(strain[sheared]).stress
        for mesh in (finer("rve1", 0.02, tmp_path), curved_rve(1))
    ]
    assert worst(*better) < 1e-3


@pytest.mark.parametrize("name", ["rve1", "rve2"])
def test_refinement_converges(name, tmp_path):
    """Degree 2 on curved cells that fit the interface: moduli, an energy, converge like h^4."""
    sizes, laws = (0.05, 0.025, 0.0125), {1: LinearElastic(4780.0, 400.0), 2: LAWS[2]}
    rest = torch.zeros(1, 3, dtype=torch.float64)
    cells = [RVE(finer(name, size, tmp_path), laws) for size in sizes]
    moduli = [rve(rest).tangent[0] for rve in cells]
    errors = [float((C - moduli[-1]).norm() / moduli[-1].norm()) for C in moduli[:-1]]
    counts = [int(rve.space.dim()) for rve in cells]
    assert errors[0] < 1e-3
    # Meshes without structure: the size of the cells is that of their number.
    order = 2 * np.log(errors[0] / errors[1]) / np.log(counts[1] / counts[0])
    assert order > 3


def test_dense_matrices_give_the_same():
    dense, rve, strain = small_dense_rve(), small_rve(), strains(3, size=0.04)
    ours, theirs = rve.solve(strain), dense.solve(strain)
    torch.testing.assert_close(rve.weights, dense.weights, rtol=1e-12, atol=0)
    assert torch.equal(rve.tags, dense.tags)
    assert worst(ours.macro_stress, theirs.macro_stress) < 1e-11
    assert worst(ours.tangent, theirs.tangent) < 1e-10
    assert worst(ours.strain, theirs.strain) < 1e-10
    assert worst(ours.stress, theirs.stress) < 1e-10
    field = torch.randn(2, rve.space.dim(), generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(rve.gradient(field), dense.gradient(field))
    torch.testing.assert_close(rve.law(ours.strain), dense.law(ours.strain))
    torch.testing.assert_close(rve.divergence(ours.strain), dense.divergence(ours.strain))


# ---- every element, against UFL


def distorted(mesh):
    """No cell is a parallelogram or has right angles any more; still periodic, still a unit box."""
    X = mesh.coordinates.dat.data_ro.copy()
    wave = 0.06 * np.prod(np.sin(2 * np.pi * X), axis=1)
    mesh.coordinates.dat.data_wo[:] = X + wave[:, None] * np.array([1.0, -0.7, 0.5])[: X.shape[1]]
    return mesh


FAMILIES = [
    (2, "simplex", "CG", 1),
    (2, "simplex", "CG", 2),
    (2, "box", "CG", 1),
    (2, "box", "CG", 2),
    (2, "box", "S", 2),
    (3, "simplex", "CG", 1),
    (3, "simplex", "CG", 2),
    (3, "box", "CG", 1),
    (3, "box", "CG", 2),
]


@pytest.mark.parametrize(
    ("dim", "cells", "family", "degree", "finite"),
    [(*f, finite) for finite in (False, True) for f in FAMILIES if not (finite and f[0] == 3)]
    + [(3, "simplex", "CG", 2, True)],
)
def test_solutions_satisfy_the_form(dim, cells, family, degree, finite):
    """Firedrake assembles the residual and the mean of the laws' UFL stresses."""
    mesh = tagged(distorted(unit(dim, "periodic", cells, n=4 if dim == 2 else 3)), corner)
    laws = FINITE if finite else LAWS
    rve = RVE(mesh, laws, degree=degree, family=family)
    strain = strains(1, dim, finite, 0.1 if finite else 0.03)
    found = rve.solve(strain)
    u = to_function(found.fluctuation[0], rve.space)
    macro = fd.as_tensor(to_matrix(strain, dim, finite)[0].tolist())
    local = macro + (fd.grad(u) if finite else fd.sym(fd.grad(u)))
    v = fd.TestFunction(rve.space)
    points = {tag: fd.dx(tag, domain=mesh, degree=2 * degree) for tag in laws}
    stress = {tag: law.ufl_stress(local) for tag, law in laws.items()}
    residual = sum(fd.inner(stress[tag], fd.grad(v)) * points[tag] for tag in laws)
    # To be in equilibrium, forces must cancel that are made of stresses of this size.
    forces = abs(fd.assemble(residual).dat.data_ro)
    size = abs(fd.assemble(fd.inner(stress[1], fd.grad(v)) * points[1]).dat.data_ro)
    assert forces.max() < 1e-10 * size.max()
    torch.testing.assert_close(
        found.strain, strain[:, None] + rve.gradient(found.fluctuation), rtol=0, atol=1e-13
    )
    for k, (i, j) in enumerate(pairs(dim, finite)):
        mean = sum(float(fd.assemble(stress[tag][i, j] * points[tag])) for tag in laws)
        assert float(found.macro_stress[0, k]) == pytest.approx(
            mean, rel=1e-10, abs=1e-11 * float(found.macro_stress.abs().max())
        )
    assert float(rve.hill_mandel(found)) < 1e-10


def test_strains_and_forces_are_adjoint():
    rve = cell(3, cells="box")
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(2, rve.space.dim(), generator=generator, dtype=torch.float64)
    s = torch.randn(2, *rve.gradient(u).shape[1:], generator=generator, dtype=torch.float64)
    work = (rve.gradient(u) * s * rve.weights[:, None]).sum((1, 2))
    torch.testing.assert_close((u * rve.divergence(s)).sum(1), work, rtol=1e-12, atol=1e-12)
    assert float(rve.weights.sum()) == pytest.approx(1.0, rel=1e-13)
    assert rve.volume == pytest.approx(1.0, rel=1e-13)


# ---- tangents


KINDS = [
    (dim, boundary, plane, finite)
    for dim in (2, 3)
    for boundary in ("periodic", "linear", "traction")
    for plane in (("strain", "stress") if dim == 2 else ("strain",))
    for finite in (False, True)
]


def differences(function, x, step):
    """Central differences, (c,) -> (k, c)."""
    columns = []
    for j in range(len(x)):
        h = torch.zeros_like(x)
        h[j] = step
        columns.append((function(x + h) - function(x - h)) / (2 * step))
    return torch.stack(columns, 1)


@pytest.mark.parametrize(("dim", "boundary", "plane", "finite"), KINDS)
def test_tangent_against_differences(dim, boundary, plane, finite):
    rve = cell(dim, boundary, finite, plane=plane, degree=2 if dim == 2 else 1)
    strain = strains(1, dim, finite, 0.06 if finite else 0.03, seed=dim)[0]
    found = rve.solve(strain)
    # Of the fourth order, for the laws are curved.
    one, two = (
        differences(lambda x: rve(x, tangent=False).stress, strain, h) for h in (1e-4, 2e-4)
    )
    assert worst(((4 * one - two) / 3)[None], found.tangent) < 1e-7
    torch.testing.assert_close(found.tangent, found.tangent.transpose(1, 2), rtol=0, atol=1e-8)
    assert float(rve.hill_mandel(found).max()) < 1e-10
    warm = rve(strain, found.state[0])
    torch.testing.assert_close(warm.stress, found.macro_stress[0], rtol=1e-9, atol=1e-9)
    assert worst(warm.tangent[None], found.tangent) < 1e-8


# ---- closed forms


@pytest.mark.parametrize(("dim", "boundary", "plane", "finite"), KINDS)
def test_a_homogeneous_cell_is_its_law(dim, boundary, plane, finite):
    mesh = distorted(unit(dim, boundary))
    law = SOFT if finite else NonlinearElastic(**MATRIX)
    strain = strains(2, dim, finite)
    found = RVE(mesh, law, boundary=boundary, plane=plane).solve(strain)
    exact = (PlaneStress(law) if plane == "stress" else law)(strain)
    assert worst(found.macro_stress, exact.stress) < 1e-11
    assert worst(found.tangent, exact.tangent) < 1e-10
    assert float(found.fluctuation.abs().max()) < 1e-12
    assert float((found.strain - strain[:, None]).abs().max()) < 1e-11


LAYERS = {
    "x": (2, [1, 0]),
    "y": (2, [0, 1]),
    "diagonal": (2, [1, 1]),
    "x in space": (3, [1, 0, 0]),
    "y in space": (3, [0, 1, 0]),
    "z in space": (3, [0, 0, 1]),
    "diagonal in space": (3, [1, -1, 0]),
}


def laminate(name, laws, **options):
    """Two layers, 1/4 and 3/4 thick in the period of the cell; their normal."""
    dim, normal = LAYERS[name]
    mesh = unit(dim, "periodic", n=4)

    def second(x):
        along = sum(n * x[i] for i, n in enumerate(normal))
        along += fd.conditional(along < 0, 1.0, 0.0) - fd.conditional(along > 1, 1.0, 0.0)
        return along > 0.25

    direction = torch.tensor(normal, dtype=torch.float64)
    return RVE(tagged(mesh, second), laws, **options), direction / direction.norm()


def jumps(normal, finite):
    """The matrix from a vector a to the strain of the tensor a n, as components."""
    dim = len(normal)
    rows = torch.zeros(strain_size(dim, finite), dim, dtype=torch.float64)
    for k, (i, j) in enumerate(pairs(dim, finite)):
        rows[k, i] += normal[j]
        if not finite and i != j:
            rows[k, j] += normal[i]
    return rows


@pytest.mark.parametrize(
    ("name", "plane"),
    [(name, "strain") for name in LAYERS]
    + [(name, "stress") for name, (dim, _) in LAYERS.items() if dim == 2],
)
def test_laminate(name, plane):
    """Strains differ by sym(a n) between layers, tractions are the same: a linear system for a."""
    dim, _ = LAYERS[name]
    laws = {1: LinearElastic(K=2.0, G=1.0), 2: LinearElastic(K=9.0, G=17.0)}
    rve, normal = laminate(name, laws, plane=plane)
    strain = torch.eye(strain_size(dim), dtype=torch.float64)
    found = rve.solve(strain)
    moduli = [rve.materials[tag](strain[0]).tangent for tag in (1, 2)]
    shares, N = (0.25, 0.75), jumps(normal, False)
    loose = [torch.linalg.inv(N.T @ C @ N) for C in moduli]
    pull = sum(f * A @ N.T @ C for f, A, C in zip(shares, loose, moduli, strict=True))
    traction = torch.linalg.solve(sum(f * A for f, A in zip(shares, loose, strict=True)), pull)
    effective = sum(
        f * C @ (strain + N @ A @ (traction - N.T @ C))
        for f, C, A in zip(shares, moduli, loose, strict=True)
    )
    assert worst(found.tangent, effective.expand(len(strain), -1, -1)) < 1e-10
    assert worst(found.macro_stress, effective.T) < 1e-10


@pytest.mark.parametrize("name", ["diagonal", "diagonal in space"])
def test_laminate_at_finite_strain(name):
    """F differs by a n between layers, with the same traction: three equations by Newton."""
    rve, normal = laminate(name, FINITE, degree=1)
    dim = len(normal)
    strain = strains(1, dim, finite=True, size=0.2, seed=4)
    found, N = rve.solve(strain), jumps(normal, True)
    a = torch.zeros(dim, dtype=torch.float64)
    for _ in range(20):  # F + 3 a n / 4 in the thin layer, F - a n / 4 in the thick one
        one, two = SOFT(strain[0] + 0.75 * N @ a), STIFF(strain[0] - 0.25 * N @ a)
        slope = N.T @ (0.75 * one.tangent + 0.25 * two.tangent) @ N
        a = a - torch.linalg.solve(slope, N.T @ (one.stress - two.stress))
    assert float((N.T @ (one.stress - two.stress)).norm()) < 1e-12
    assert float(a.norm()) > 0.05
    assert worst(found.macro_stress, (0.25 * one.stress + 0.75 * two.stress)[None]) < 1e-10


# ---- bounds


@pytest.mark.parametrize(("dim", "plane"), [(2, "strain"), (2, "stress"), (3, "strain")])
def test_bounds_and_the_order_of_the_boundary_conditions(dim, plane):
    """Reuss <= traction <= periodic <= linear <= Voigt, as quadratic forms."""
    laws = {1: LinearElastic(K=2.0, G=1.0), 2: LinearElastic(K=40.0, G=30.0)}
    rest = torch.zeros(1, strain_size(dim), dtype=torch.float64)
    cells = {}
    for boundary in ("traction", "periodic", "linear"):
        mesh = tagged(unit(dim, boundary, n=4), corner)
        cells[boundary] = RVE(mesh, laws, 4 - dim, boundary, plane)
    rve = cells["periodic"]
    share = {tag: float(rve.weights[rve.tags == tag].sum()) for tag in laws}
    moduli = {tag: law(rest).tangent[0] for tag, law in rve.materials.items()}
    voigt = sum(share[tag] * C for tag, C in moduli.items())
    reuss = torch.linalg.inv(sum(share[tag] * torch.linalg.inv(C) for tag, C in moduli.items()))
    chain = [reuss, *(cells[b](rest).tangent[0] for b in ("traction", "periodic", "linear")), voigt]
    for softer, stiffer in pairwise(chain):
        least = torch.linalg.eigvalsh(stiffer - softer)[0]
        assert least > -1e-10 and not torch.allclose(softer, stiffer, rtol=1e-3)


def test_nonlinear_energies_are_ordered_too():
    """The condition that leaves more freedom finds less energy."""
    strain, energies = strains(1, size=0.04), []
    for boundary in ("traction", "periodic", "linear"):
        rve = cell(boundary=boundary)
        local = rve.solve(strain).strain[0]
        density = torch.zeros(len(local), dtype=torch.float64)
        for tag, law in LAWS.items():
            density[rve.tags == tag] = law.energy(local[rve.tags == tag])
        energies.append(float(density @ rve.weights))
    assert energies[0] < 0.99 * energies[1] and energies[1] < 0.99 * energies[2]
