"""The forms on which every property of `spon.fem.torch_form` is tested.

Each entry builds a form and its inputs. Where the integrand is no polynomial the degree of the
quadrature is given, so that Firedrake integrates the form and its derivatives at the same points.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from families import mesh_of_cells, random_function
from firedrake import (
    BrokenElement,
    CellDiameter,
    CellVolume,
    Circumradius,
    Constant,
    FacetArea,
    FacetNormal,
    Function,
    FunctionSpace,
    Identity,
    Mesh,
    SpatialCoordinate,
    TensorFunctionSpace,
    TestFunction,
    TestFunctions,
    UnitDiskMesh,
    UnitIcosahedralSphereMesh,
    VectorFunctionSpace,
    as_vector,
    atan2,
    avg,
    conditional,
    cos,
    curl,
    det,
    dev,
    div,
    dot,
    ds,
    dx,
    exp,
    grad,
    gt,
    inner,
    inv,
    jump,
    ln,
    max_value,
    min_value,
    nabla_grad,
    pi,
    sin,
    split,
    sqrt,
    sym,
    tanh,
    tr,
)
from firedrake import dS as interior

__all__ = ["BOTH", "CASES", "Case", "FormAndInputs", "build"]


class FormAndInputs(NamedTuple):
    form: Any
    inputs: list[Any]


class Case(NamedTuple):
    name: str
    make: Callable[[], FormAndInputs]
    backends: tuple[str, ...]
    smooth: bool


BOTH = ("native", "torch")
MESHES = Path(__file__).resolve().parent.parent / "meshes"
CASES: list[Case] = []


def case(
    function: Callable[[], Any] | None = None,
    *,
    backends: tuple[str, ...] = BOTH,
    smooth: bool = True,
) -> Any:
    """Register a form; one that is not `smooth` has kinks, where there is no Taylor series."""

    def register(f: Callable[[], Any]) -> Any:
        CASES.append(Case(f.__name__, f, backends, smooth))
        return f

    return register if function is None else register(function)


@cache
def build(name: str) -> FormAndInputs:
    """Form and inputs of a case; the inputs hold random values."""
    (found,) = (c for c in CASES if c.name == name)
    return FormAndInputs(*found.make())


def triangles() -> Any:
    return mesh_of_cells("triangle")


def tetrahedra() -> Any:
    return mesh_of_cells("tetrahedron")


def some(V: Any, seed: int = 0, scale: float = 1.0) -> Function:
    f = random_function(V, seed)
    for part in f.subfunctions:
        part.dat.data[...] *= scale
    return f


@case
def poisson():
    V, F = FunctionSpace(triangles(), "CG", 2), FunctionSpace(triangles(), "DG", 0)
    u, f, v = some(V), some(F, 1), TestFunction(V)
    return inner(grad(u), grad(v)) * dx - f * v * dx, [u, f]


@case
def helmholtz_real():
    V = FunctionSpace(triangles(), "CG", 3)
    u, v, k = some(V), TestFunction(V), Constant(2.5)
    x = SpatialCoordinate(triangles())
    source = cos(2 * pi * x[0]) * v * dx(degree=6)
    return inner(grad(u), grad(v)) * dx - k**2 * u * v * dx - source, [u, k]


@case
def advection_diffusion_supg():
    V, B = FunctionSpace(triangles(), "CG", 1), VectorFunctionSpace(triangles(), "CG", 1)
    u, b, v, h = some(V), some(B, 1), TestFunction(V), CellDiameter(triangles())
    measure = dx(degree=4)
    strong = dot(b, grad(u)) - 1
    speed = sqrt(inner(b, b) + 1e-4)
    form = (0.01 * inner(grad(u), grad(v)) + strong * v) * measure
    return form + h / (2 * speed) * strong * dot(b, grad(v)) * measure, [u, b]


@case
def p_laplace():
    V = FunctionSpace(triangles(), "CG", 2)
    u, v = some(V), TestFunction(V)
    size = inner(grad(u), grad(u)) + 1e-2
    return size ** (1.5 / 2 - 1) * inner(grad(u), grad(v)) * dx(degree=6), [u]


@case
def navier_stokes():
    mesh = triangles()
    W = VectorFunctionSpace(mesh, "CG", 2) * FunctionSpace(mesh, "CG", 1)
    w, nu = some(W), Constant(0.1)
    u, p = split(w)
    v, q = TestFunctions(W)
    return (
        nu * inner(grad(u), grad(v)) + inner(dot(u, nabla_grad(u)), v) - p * div(v) - q * div(u)
    ) * dx, [w, nu]


def neo_hookean(mesh: Any, degree: int) -> tuple[Any, Function]:
    V = VectorFunctionSpace(mesh, "CG", degree)
    u = some(V, scale=0.02)
    d = mesh.geometric_dimension
    F = Identity(d) + grad(u)
    J = det(F)
    energy = 0.5 * 3.0 * (tr(F.T * F) - d - 2 * ln(J)) + 0.5 * 10.0 * ln(J) ** 2
    return energy * dx(degree=4), u


@case
def neo_hookean_energy_2d():
    energy, u = neo_hookean(triangles(), 2)
    return energy, [u]


@case
def neo_hookean_energy_3d():
    energy, u = neo_hookean(tetrahedra(), 1)
    return energy, [u]


def first_piola(mesh: Any, degree: int) -> FormAndInputs:
    V = VectorFunctionSpace(mesh, "CG", degree)
    u, v = some(V, scale=0.02), TestFunction(V)
    F = Identity(mesh.geometric_dimension) + grad(u)
    P = 3.0 * (F - inv(F).T) + 10.0 * ln(det(F)) * inv(F).T
    return FormAndInputs(inner(P, grad(v)) * dx(degree=4), [u])


@case
def neo_hookean_residual_2d():
    return first_piola(triangles(), 2)


@case
def neo_hookean_residual_3d():
    return first_piola(tetrahedra(), 1)


def plane_strain() -> tuple[Any, Any, Any, Any]:
    V = VectorFunctionSpace(triangles(), "CG", 2)
    u, v = some(V, scale=0.01), TestFunction(V)
    e = sym(grad(u))
    deviator = e - tr(e) / 3 * Identity(2)
    return u, e, deviator, sym(grad(v))


@case
def glass():
    u, e, deviator, test = plane_strain()
    K, G = Constant(43452.381), Constant(29918.0328)
    return inner(K * tr(e) * Identity(2) + 2 * G * deviator, test) * dx, [u, K, G]


def size_of_deviator(e: Any, deviator: Any) -> Any:
    """|e_D| with its part out of the plane."""
    return sqrt(inner(deviator, deviator) + tr(e) ** 2 / 9 + 1e-16)


@case
def saturating_law():
    u, e, deviator, test = plane_strain()
    K, a1, a2 = Constant(4780.0), Constant(50.0), Constant(0.06)
    f = a1 / (a2 + size_of_deviator(e, deviator))
    stress = K * tr(e) * Identity(2) + f * deviator
    return inner(stress, test) * dx(degree=4), [u, K, a1, a2]


@case
def saturating_energy():
    u, e, deviator, _ = plane_strain()
    n = size_of_deviator(e, deviator)
    a1, a2 = 50.0, Constant(0.06)
    return (4780.0 / 2 * tr(e) ** 2 + a1 * (n - a2 * ln(1 + n / a2))) * dx(degree=4), [u, a2]


@case
def robin_and_neumann():
    V = FunctionSpace(triangles(), "CG", 2)
    u, g, v = some(V), some(FunctionSpace(triangles(), "CG", 1), 1), TestFunction(V)
    n, alpha = FacetNormal(triangles()), Constant(0.7)
    x = SpatialCoordinate(triangles())
    flux = dot(as_vector([x[1], u**2]), n)
    return (inner(grad(u), grad(v)) * dx + alpha * (u - g) * v * ds((1, 3)) - flux * v * ds(2)), [
        u,
        g,
        alpha,
    ]


@case
def curl_curl_3d():
    V = FunctionSpace(tetrahedra(), "N1curl", 2)
    e, v, k = some(V), TestFunction(V), Constant(1.5)
    return inner(curl(e), curl(v)) * dx - k**2 * inner(e, v) * dx, [e, k]


@case
def curl_curl_2d():
    V = FunctionSpace(triangles(), "N1curl", 2)
    e, v = some(V), TestFunction(V)
    return inner(curl(e), curl(v)) * dx + (1 + inner(e, e)) * inner(e, v) * dx, [e]


@case
def mixed_darcy():
    W = FunctionSpace(triangles(), "RT", 2) * FunctionSpace(triangles(), "DG", 1)
    w, k = some(W), some(FunctionSpace(triangles(), "DG", 0), 1, 0.3)
    s, p = split(w)
    t, q = TestFunctions(W)
    return (exp(-k) * inner(s, t) - p * div(t) - q * div(s) - q) * dx(degree=4), [w, k]


@case
def dg_interior_penalty():
    mesh = triangles()
    V = FunctionSpace(mesh, "DG", 2)
    u, v, n, h = some(V), TestFunction(V), FacetNormal(mesh), Circumradius(mesh)
    k = some(FunctionSpace(mesh, "CG", 1), 1)
    inside = 10 / avg(h) * jump(u) * jump(v) * interior(degree=5)
    inside -= (inner(avg((1 + k**2) * grad(u)), jump(v, n))) * interior(degree=5)
    inside -= (inner(jump(u, n), avg((1 + k**2) * grad(v)))) * interior(degree=5)
    return (1 + k**2) * inner(grad(u), grad(v)) * dx + inside + 10 / h * u * v * ds(degree=4), [
        u,
        k,
    ]


@case
def upwind_flux():
    mesh = triangles()
    V, B = FunctionSpace(mesh, "DG", 1), VectorFunctionSpace(mesh, "CG", 1)
    u, b, v, n = some(V), some(B, 1), TestFunction(V), FacetNormal(mesh)
    out = 0.5 * (dot(b, n) + abs(dot(b, n)))
    flux = jump(v) * (out("+") * u("+") - out("-") * u("-")) * interior(degree=4)
    return -u * dot(b, grad(v)) * dx + flux + conditional(
        gt(dot(b, n), 0), dot(b, n) * u, 0.0
    ) * v * ds(degree=4), [u, b]


@case
def facets_of_elements_with_normal_traces():
    V = FunctionSpace(triangles(), "BDM", 1)
    s, v, n = some(V), TestFunction(V), FacetNormal(triangles())
    p = some(FunctionSpace(triangles(), "DG", 1), 3)
    inside = avg(p) * inner(v("+"), n("+")) * interior + FacetArea(triangles())("+") * inner(
        s("+"), v("-")
    ) * interior(degree=3)
    return (1 + sqrt(inner(s, s) + 1e-2)) * inner(s, v) * dx(degree=5) + inside, [s, p]


@case(smooth=False)
def conditionals_and_extrema():
    V = FunctionSpace(triangles(), "CG", 1)
    u, v, w = some(V), TestFunction(V), some(V, 1)
    law = conditional(gt(u, 0.1), u, 0.1 * u) + max_value(u, w) * min_value(u, 0.5) + abs(w) * u
    return law * v * dx(degree=5), [u, w]


@case
def heat_step():
    V = FunctionSpace(triangles(), "CG", 1)
    u, old, v, dt = some(V), some(V, 1), TestFunction(V), Constant(0.05)
    form = (u - old) / dt * v * dx(degree=4)
    return form + (1 + u**2) * inner(grad(u), grad(v)) * dx(degree=4), [u, old, dt]


@case
def p_laplace_on_quadrilaterals():
    V = FunctionSpace(mesh_of_cells("quadrilateral"), "Q", 3)
    u, v = some(V), TestFunction(V)
    return (1e-2 + inner(grad(u), grad(u))) * inner(grad(u), grad(v)) * dx(degree=8), [u]


@case
def penalty_on_quadrilaterals():
    mesh = mesh_of_cells("quadrilateral")
    V = FunctionSpace(mesh, "DQ", 2)
    u, v, n = some(V), TestFunction(V), FacetNormal(mesh)
    inside = jump(u) * jump(v) + u("+") * inner(avg(grad(v)), n("+"))
    return inside * interior(degree=4) + u**2 * v * ds(degree=5), [u]


@case
def darcy_on_quadrilaterals():
    mesh = mesh_of_cells("quadrilateral")
    W = FunctionSpace(mesh, "RTCF", 2) * FunctionSpace(mesh, "DQ", 1)
    w = some(W)
    s, p = split(w)
    t, q = TestFunctions(W)
    return (inner(s, t) - p * div(t) - q * div(s) + p**3 * q) * dx(degree=6), [w]


@case
def estimated_degrees_on_bent_quadrilaterals():
    V = FunctionSpace(mesh_of_cells("quadrilateral"), "RTCF", 1)
    s, v = some(V), TestFunction(V)
    return (1 + inner(s, s)) * inner(s, v) * dx + div(s) * div(v) * dx, [s]


@case
def elasticity_on_hexahedra():
    mesh = mesh_of_cells("hexahedron")
    V = VectorFunctionSpace(mesh, "Q", 2)
    u, v, mu = some(V, scale=0.1), TestFunction(V), some(FunctionSpace(mesh, "DQ", 0), 1)
    e = sym(grad(u))
    stress = 2 * exp(mu) * e + tr(e) * Identity(3)
    return inner(stress, sym(grad(v))) * dx(degree=4), [u, mu]


@case
def tensors():
    mesh = triangles()
    S, T = TensorFunctionSpace(mesh, "DG", 1, symmetry=True), TensorFunctionSpace(mesh, "CG", 1)
    s, t, v = some(S), some(T, 1), TestFunction(T)
    return inner(dot(s, t) + dev(s) * tr(t), v) * dx + det(s) * inner(dot(t, t), v) * dx, [s, t]


@case
def quadrature_space():
    mesh = triangles()
    V, Q = FunctionSpace(mesh, "CG", 2), VectorFunctionSpace(mesh, "Quadrature", 3)
    u, stress, v = some(V), some(Q, 1), TestFunction(V)
    return inner((1 + u**2) * stress, grad(v)) * dx(degree=3), [u, stress]


@case
def biharmonic():
    mesh = triangles()
    V = FunctionSpace(mesh, "CG", 3)
    u, v, n, h = some(V), TestFunction(V), FacetNormal(mesh), CellVolume(mesh)
    second = inner(grad(grad(u)), grad(grad(v))) * dx(degree=2)
    edge = 1 / avg(h) * inner(jump(grad(u), n), jump(grad(v), n)) * interior(degree=4)
    return second + edge, [u]


@case
def laplace_beltrami():
    mesh = UnitIcosahedralSphereMesh(0)
    mesh.init_cell_orientations(SpatialCoordinate(mesh))
    W = FunctionSpace(mesh, "RT", 1) * FunctionSpace(mesh, "DG", 0)
    w = some(W)
    s, p = split(w)
    t, q = TestFunctions(W)
    return (inner(s, t) - p * div(t) + div(s) * q + p**3 * q) * dx(degree=4), [w]


@case
def real_multiplier():
    mesh = triangles()
    W = FunctionSpace(mesh, "CG", 1) * FunctionSpace(mesh, "R", 0)
    w = some(W)
    u, c = split(w)
    v, d = TestFunctions(W)
    return (inner(grad(u), grad(v)) + c * v + u * d + c * u**2 * v) * dx, [w]


@case
def curved_cells():
    disk = UnitDiskMesh(1)
    X = Function(VectorFunctionSpace(disk, "CG", 2)).interpolate(SpatialCoordinate(disk))
    x = SpatialCoordinate(disk)
    X.interpolate(x * (1 + 0.1 * sin(3 * x[0])))
    mesh = Mesh(X)
    V = FunctionSpace(mesh, "CG", 2)
    u, v = some(V), TestFunction(V)
    return (inner(grad(u), grad(v)) + u**3 * v) * dx(degree=6) + u * v * ds(degree=5), [u]


@case
def functions_of_all_kinds():
    V = FunctionSpace(triangles(), "CG", 1)
    u, v, w = some(V), TestFunction(V), some(V, 1)
    law = tanh(u) + atan2(u, 2 + w**2) + sin(w) * exp(-(u**2)) + (2 + sin(u)) ** 1.7
    return (law + ln(3 + w * w)) * v * dx(degree=5) + u / (4 + cos(w)) * v * ds(degree=4), [u, w]


@case
def parts_of_the_domain():
    mesh = Mesh(str(MESHES / "plate.msh"))
    V = FunctionSpace(mesh, "CG", 1)
    u, v = some(V), TestFunction(V)
    tags = [int(t) for t in mesh.exterior_facets.unique_markers]
    x = SpatialCoordinate(mesh)
    edges = u**2 * v * ds + sum(
        (i + 1.5) * cos(x[0] * u) * v * ds(tag, degree=3) for i, tag in enumerate(tags[:2])
    )
    return inner(grad(u), grad(v)) * dx + edges, [u]


@case
def broken_space():
    mesh = triangles()
    element = BrokenElement(FunctionSpace(mesh, "RT", 1).ufl_element())
    V = FunctionSpace(mesh, element)
    s, v = some(V), TestFunction(V)
    return inner(s, v) * dx + div(s) * div(v) * dx + inner(s, s) * div(v) * dx, [s]


def vector(f: Any) -> np.ndarray:
    """Coefficients of a function or a constant."""
    if isinstance(f, Constant):
        return np.array(f.dat.data_ro, dtype=float).reshape(-1)
    return np.concatenate([p.dat.data_ro.reshape(-1) for p in f.subfunctions]).copy()
