"""RVEs of odd laws and with holes, their fields, and what they refuse."""

from __future__ import annotations

from dataclasses import dataclass

import firedrake as fd
import numpy as np
import pytest
import torch
from small_rve import LAWS, corner, small_mesh, small_rve, tagged
from test_rve import SOFT, cell, differences, strains, unit, worst

from fe_ol import RVE, J2Plasticity, LinearElastic, PlaneStress, Response
from fe_ol.voigt import to_matrix

# ---- laws of all kinds


@dataclass(frozen=True)
class Turned:
    """A law whose stress is turned a little: its tangent is not symmetric."""

    law: LinearElastic
    angle: float = 0.3
    dim, finite, history = 2, False, False

    def __call__(self, strain, state=None, tangent=True):
        found = self.law(strain)
        turn = torch.eye(3, dtype=torch.float64)
        turn[0, 1], turn[1, 0], turn[0, 2] = self.angle, -self.angle, 0.1
        return Response(found.stress @ turn.T, turn @ found.tangent)

    def initial_state(self, n):
        return None


def test_laws_without_potential():
    rve = RVE(small_mesh(3), {1: Turned(LinearElastic(K=2.0, G=1.0)), 2: LinearElastic(9.0, 7.0)})
    strain = strains(1)[0]
    found = rve.solve(strain)
    assert int(found.iterations) == 1
    assert float((found.tangent - found.tangent.transpose(1, 2)).abs().max()) > 0.01
    slopes = differences(lambda x: rve(x).stress, strain, 1e-4)
    assert worst(slopes[None], found.tangent) < 1e-10
    # Symmetric ones take turns with them.
    other = small_rve(3)
    assert worst(other.solve(strain).macro_stress, small_rve(3).solve(strain).macro_stress) < 1e-12


@dataclass(frozen=True)
class Switched:
    """Elastic, or nothing at all."""

    law: LinearElastic
    on: list
    dim, finite, history = None, False, False

    def __call__(self, strain, state=None, tangent=True):
        found = self.law(strain)
        factor = float(self.on[0])
        return Response(factor * found.stress, factor * found.tangent)

    def initial_state(self, n):
        return None


@pytest.mark.parametrize("boundary", ["periodic", "linear", "traction"])
def test_singular_cells_are_named_and_forgotten(boundary):
    on = [1.0]
    mesh = tagged(unit(2, boundary, n=4), corner)
    laws = {1: Switched(LinearElastic(K=2.0, G=1.0), on), 2: LinearElastic(K=9.0, G=7.0)}
    rve = RVE(mesh, laws, boundary=boundary)
    strain = strains(1)
    before = rve(strain)
    on[0] = 0.0
    with pytest.raises(ArithmeticError, match="singular"):
        rve(strain)
    on[0] = float("nan")
    with pytest.raises(ArithmeticError, match=r"no finite stress at \d+ of \d+ points"):
        rve(strain)
    on[0] = 1.0
    after = rve(strain)
    torch.testing.assert_close(after.stress, before.stress, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(after.tangent, before.tangent, rtol=1e-9, atol=1e-12)


# ---- fields


def test_displacement_jumps_by_the_mean_strain():
    for finite in (False, True):
        rve = cell(cells="box", finite=finite)
        strain = strains(1, finite=finite, size=0.1 if finite else 0.03)
        found = rve.solve(strain)
        mesh = rve.space.mesh()
        corners = fd.VectorFunctionSpace(mesh, "DQ", 2, variant="equispaced")
        u = fd.Function(corners).interpolate(rve.displacement(found))
        X = fd.Function(u.function_space()).interpolate(fd.SpatialCoordinate(mesh))
        places, values = X.dat.data_ro.round(9), u.dat.data_ro
        matrix = to_matrix(strain, 2, finite)[0].numpy() - (np.eye(2) if finite else 0)
        for axis in (0, 1):
            low = {tuple(x): v for x, v in zip(places, values, strict=True) if x[axis] == 0.0}
            period = np.eye(2)[axis]
            pairs = [
                (v, low[tuple(x - period)])
                for x, v in zip(places, values, strict=True)
                if x[axis] == 1.0
            ]
            assert len(pairs) >= 6
            jump = np.array([high - below for high, below in pairs])
            assert abs(jump - matrix @ period).max() < 1e-13


def test_fluctuations_have_no_mean():
    for boundary in ("periodic", "traction"):
        rve = cell(boundary=boundary)
        u = rve._cell.function(rve.solve(strains(1)).fluctuation[0])
        assert max(abs(fd.assemble(u[i] * fd.dx)) for i in (0, 1)) < 1e-14
        if boundary == "traction":
            spin = fd.assemble((u[0].dx(1) - u[1].dx(0)) * fd.dx)
            x, y = fd.SpatialCoordinate(rve.space.mesh())
            moment = fd.assemble((u[0] * (y - 0.5) - u[1] * (x - 0.5)) * fd.dx)
            assert abs(moment) < 1e-14 < abs(spin)


@pytest.mark.parametrize("cells", ["simplex", "box"])
def test_fields_of_values_at_points(cells):
    rve = cell(cells=cells)
    mesh = rve.space.mesh()
    points = fd.Function(fd.FunctionSpace(mesh, rve._cell.scalar_element))
    x, y = fd.SpatialCoordinate(mesh)
    linear = torch.from_numpy(points.interpolate(2 * x - y + 1).dat.data_ro.copy())
    f = rve.field(linear, "a line")
    assert f.name() == "a line" and fd.errornorm(2 * x - y + 1, f) < 1e-12
    both = rve.field(torch.stack([linear, 2 * linear, -linear], 1))
    assert both.ufl_shape == (3,)
    assert fd.assemble((both[1] - 2 * f) ** 2 * fd.dx) < 1e-24
    with pytest.raises(ValueError, match=rf"shape \({len(rve.weights)},\) or .* got \(7,\)"):
        rve.field(torch.zeros(7, dtype=torch.float64))


def test_von_mises_of_uniform_fields():
    law = LinearElastic(K=5.0, G=2.0)
    e = torch.tensor([0.02, -0.01, 0.03], dtype=torch.float64)
    for plane in ("strain", "stress"):
        rve = RVE(unit(2, "periodic"), law, plane=plane)
        s = rve(e).stress
        zz = 0.0 if plane == "stress" else (5.0 - 4.0 / 3) * float(e[0] + e[1])
        xx, yy, xy = s.tolist()
        exact = (0.5 * ((xx - yy) ** 2 + (yy - zz) ** 2 + (zz - xx) ** 2) + 3 * xy**2) ** 0.5
        mises = rve.von_mises(rve.solve(e))
        assert mises.shape == rve.weights.shape
        torch.testing.assert_close(mises, torch.full_like(mises, exact), rtol=1e-10, atol=0)
    solid = RVE(unit(3, "periodic"), law, degree=1)
    shear = torch.tensor([0.0, 0, 0, 0.04, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(
        solid.von_mises(solid.solve(shear)),
        torch.full_like(solid.weights, 3**0.5 * 2.0 * 0.04),
        rtol=1e-10,
        atol=0,
    )
    # Simple shear of a neo-Hookean body: Cauchy stress mu (F F^T - I), J = 1.
    rve = RVE(unit(2, "periodic"), SOFT)
    k = 0.5
    found = rve.solve(torch.tensor([1.0, k, 0.0, 1.0], dtype=torch.float64))
    exact = (k**4 + 3 * k**2) ** 0.5
    torch.testing.assert_close(
        rve.von_mises(found), torch.full_like(rve.weights, exact), rtol=1e-10, atol=0
    )
    plastic = RVE(unit(2, "periodic"), J2Plasticity(5.0, 2.0, yield_stress=1.0, hardening=0.1))
    with pytest.raises(NotImplementedError, match=r"history depends on how it was reached"):
        plastic.von_mises(plastic.solve(e))


# ---- holes


def holed(n=4):
    """A unit square of n x n squares without one of them."""
    number = np.arange((n + 1) ** 2).reshape(n + 1, n + 1)
    points = np.stack(np.meshgrid(*[np.linspace(0, 1, n + 1)] * 2, indexing="ij"), -1)
    cells = []
    for i in range(n):
        for j in range(n):
            if (i, j) != (1, 2):
                a, b, c, d = number[i : i + 2, j : j + 2].flatten().tolist()
                cells += [(a, c, b), (b, c, d)]
    return points.reshape(-1, 2), cells


def plate(points, cells):
    plex = fd.mesh.plex_from_cell_list(2, np.array(cells, dtype=np.int32), points, fd.COMM_SELF)
    return fd.Mesh(plex)


def void_as_soft(boundary, softness):
    """The same square with a law for the hole, so soft that it hardly counts."""
    mesh = unit(2, boundary, n=4)
    mesh = tagged(mesh, lambda x: abs(x[0] - 0.375) + abs(x[1] - 0.625) < 0.2)
    stiff = LinearElastic(K=5.0, G=2.0)
    return RVE(
        mesh, {1: stiff, 2: LinearElastic(5.0 * softness, 2.0 * softness)}, boundary=boundary
    )


@pytest.mark.parametrize("boundary", ["linear", "traction"])
def test_holes(boundary):
    """The stress is the mean over the cell with its hole; the hole's boundary is free."""
    rve = RVE(plate(*holed()), LinearElastic(K=5.0, G=2.0), boundary=boundary, volume=1.0)
    assert float(rve.weights.sum()) == pytest.approx(15 / 16)
    strain = torch.eye(3, dtype=torch.float64)
    found = rve.solve(strain)
    assert float(rve.hill_mandel(found).max()) < 1e-10
    soft = void_as_soft(boundary, 1e-7)
    assert worst(found.tangent, soft.solve(strain).tangent) < 1e-6
    slopes = differences(lambda x: rve(x).stress, strain[0], 1e-3)
    assert worst(slopes[None], found.tangent[:1]) < 1e-10
    solid = RVE(plate(*holed()), LinearElastic(K=5.0, G=2.0), boundary=boundary)
    assert worst(solid.solve(strain).macro_stress * 15 / 16, found.macro_stress) < 1e-10


def test_a_soft_inclusion_is_a_hole_in_a_periodic_cell():
    """Numbers stay good at a contrast of 1e8, where MUMPS alone would lose half the digits."""
    answers = [void_as_soft("periodic", s).solve(strains(1)) for s in (1e-6, 1e-8)]
    assert worst(answers[0].macro_stress, answers[1].macro_stress) < 1e-5
    assert max(int(a.iterations) for a in answers) <= 2


# ---- many cells


def test_solutions_hold_no_moduli(monkeypatch):
    rve, kept = small_rve(), []
    assembled = RVE._solutions

    def looks(self, found, tangent):
        kept.extend(balance.modulus.untyped_storage().nbytes() for balance, _ in found.values())
        return assembled(self, found, tangent)

    monkeypatch.setattr(RVE, "_solutions", looks)
    found = rve.solve(strains(5))
    assert len(kept) == len(found) == 5 and sum(kept) == 0
    assert rve.solve(strains(2), tangent=False).tangent is None


def test_no_strain_and_a_single_one():
    rve = small_rve(3)
    none = rve(torch.zeros(0, 3, dtype=torch.float64))
    assert none.stress.shape == (0, 3) and none.tangent.shape == (0, 3, 3)
    assert rve.solve(torch.zeros(0, 3, dtype=torch.float64)).stress.shape[0] == 0
    one = rve([0.01, 0.0, 0.0])
    assert one.stress.shape == (3,) and one.tangent.shape == (3, 3) and one.state.ndim == 1
    assert rve([0.01, 0.0, 0.0], tangent=False).tangent is None
    assert rve.initial_state(2) is None
    rest = rve.solve([0.0, 0.0, 0.0])
    assert not rest.macro_stress.any() and float(rve.hill_mandel(rest)) == 0.0
    assert "RVE(2D, 72 dofs, 81 points, {1: NonlinearElastic, 2: LinearElastic}" in repr(rve)


# ---- what is refused


def test_bad_cells_are_refused():
    mesh, law, line = small_mesh(3), LAWS[1], fd.UnitIntervalMesh(2)
    wrong = [
        (ValueError, r"No laws are given", (mesh, {})),
        (TypeError, r"law of tag 1 is a float, expected a material", (mesh, {1: 3.0})),
        (
            ValueError,
            r"mixed, got \{1: 'small', 2: 'finite'\}",
            (mesh, {1: law, 2: SOFT}),
        ),
        (ValueError, r"cell tag 7, but the mesh has the tags \[1, 2\]", (mesh, {**LAWS, 7: law})),
        (ValueError, r"\d+ of 81 quadrature points lie in cells without a law", (mesh, {1: law})),
        (TypeError, r"mesh", ("rve1.msh", law)),
        (
            NotImplementedError,
            r"cells of dimension 1 in 1 dimensions",
            (line, law),
        ),
    ]
    for kind, message, arguments in wrong:
        with pytest.raises(kind, match=message):
            RVE(*arguments)
    options = [
        (r'plane must be "strain" or "stress", got \'both\'', {"plane": "both"}),
        (r"boundary must be one of .* got 'free'", {"boundary": "free"}),
        (r"'linear' needs a mesh with a boundary", {"boundary": "linear"}),
        (r"degree must be at least 1, got 0", {"degree": 0}),
        (r"volume of the cell must be positive, got -1", {"volume": -1.0}),
        (r'family must be "CG", or "S"', {"family": "DG"}),
        (r"tolerance must be positive, got 0", {"tolerance": 0.0}),
        (r"max_iterations must be at least 1, got 0", {"max_iterations": 0}),
    ]
    for message, option in options:
        with pytest.raises(ValueError, match=message):
            RVE(mesh, LAWS, **option)
    with pytest.raises(ValueError, match=r"opposite sides are one, but on 4 of its outside"):
        RVE(fd.UnitSquareMesh(2, 2), law)
    with pytest.raises(ValueError, match=r"do not fit together: .* three cells in each direction"):
        RVE(fd.PeriodicUnitSquareMesh(2, 2), law)
    half = fd.PeriodicUnitSquareMesh(3, 3, direction="x")
    with pytest.raises(ValueError, match=r"but on 2 of its outside"):
        RVE(half, law)
    with pytest.raises(ValueError, match=r"'traction' needs a mesh .* in every direction"):
        RVE(half, law, boundary="traction")
    with pytest.raises(ValueError, match=r'"S" \(serendipity\) on quadrilaterals'):
        RVE(fd.PeriodicUnitSquareMesh(3, 3), law, family="S")
    solid = fd.PeriodicUnitCubeMesh(3, 3, 3)
    with pytest.raises(ValueError, match=r'plane="stress" needs a mesh in two dimensions'):
        RVE(solid, law, plane="stress")
    with pytest.raises(ValueError, match=r"PlaneStress, has 2 dimensions, the mesh has 3"):
        RVE(solid, PlaneStress(law))
    with pytest.raises(TypeError, match=r"PlaneStress makes plane stress of a law, got Turned"):
        RVE(mesh, Turned(LAWS[2]), plane="stress")


def test_bad_loads_are_refused():
    rve = small_rve(3)
    one = torch.zeros(1, 3, dtype=torch.float64)
    size, short = rve(one).state.shape[1], one.new_zeros(1, 5)
    solve = rve.solve
    wrong = [
        (TypeError, r"float64, got a strain of torch.float32", lambda: rve(one.float())),
        (ValueError, r"strains of shape \(n, 3\), got \(1, 4\)", lambda: rve([[0.0] * 4])),
        (ValueError, r"1 of 1 strains hold NaN", lambda: rve([float("nan"), 0, 0])),
        (
            ValueError,
            rf"state of shape \(1, {size}\), got .*\(1, 5\)",
            lambda: rve(one, short),
        ),
        (
            ValueError,
            r"Component 1 of load 0 has neither",
            lambda: solve([0, None, 0], [None] * 3),
        ),
        (
            ValueError,
            r"Component 2 of load 0 has both",
            lambda: solve([0, 0, 0], [None, None, 1]),
        ),
        (
            ValueError,
            r"of shape \(n, 3\), got \(2,\) and \(2,\)",
            lambda: solve([0, None], [None, 0]),
        ),
        (TypeError, r"Expected numbers and None, got 'a'", lambda: solve("a", [0, 0, 0])),
    ]
    for kind, message, call in wrong:
        with pytest.raises(kind, match=message):
            call()
