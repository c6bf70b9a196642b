"""From what a user promises of a decoder to the modules that keep it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from firedrake import (
    Constant,
    TestFunction,
    TrialFunction,
    assemble,
    dx,
    inner,
)
from torch import Tensor

from spon.fem.bernstein import bernstein_maps, scalar_version
from spon.fem.complexes import measure_of
from spon.fem.constraints import constant_value, frozen_value, moved_value
from spon.fem.factor import solve_definite
from spon.fem.fields import Kernel
from spon.fem.functionals import Functionals, is_recipe
from spon.fem.maps import sparse_map
from spon.fem.spaces import is_function, mesh_of, name_of, space_on, to_tensor
from spon.fem.symmetry import group_average, require_invariant_box
from spon.promises import Bounds, GroupAverage, Integrals, Pipeline, Symmetric, require_finite
from spon.promises.specification import Specification
from spon.sparse import SparseMap

__all__ = ["KeptPromises", "frozen_divergence", "moved_promises", "source_coefficients"]

# What is left of a functional when others are taken out, relative to it, is zero below this.
_DEPENDENT = 1e-11


class KeptPromises:
    """The modules of a decoder with promises, and its latent space.

    Parameters
    ----------
    U : FunctionSpace
    bcs : sequence of DirichletBC on `U`
    trace : array of bool, shape (U.dim(),)
    values : array, shape (U.dim(),)
        What the conditions prescribe.
    given : Specification

    Raises
    ------
    ValueError
        If the promises contradict each other, or `U` is no space for them.
    """

    def __init__(
        self,
        U: Any,
        bcs: Sequence[Any],
        trace: np.ndarray,
        values: np.ndarray,
        given: Specification,
    ) -> None:
        self.space, self.latent, self.latent_bcs = U, U, list(bcs)
        self.kernel: Kernel | None = None
        self.source: Tensor | None = None
        self.given = given
        fixed, prescribed = torch.from_numpy(trace), torch.from_numpy(values)
        potential = particular = bounds = integrals = None
        symmetric: Symmetric | GroupAverage | None = None
        if given.has_field:
            self.kernel = Kernel(U, bcs, not given.curl_free, given.through)
            self.latent, self.latent_bcs = self.kernel.latent, self.kernel.bcs
            potential, particular = self.kernel.potential, self.kernel.particular
            self.source = torch.zeros(self.kernel.complex.last.dim(), dtype=torch.float64)
            if given.divergence is not None:
                self.source = source_coefficients(given.divergence, self.kernel.complex.last)
            if particular is not None:
                particular.set_default(prescribed, self.source)
        if given.symmetric:
            symmetric = _symmetric(U, trace, values)
        if given.symmetry:
            symmetric = _group_average(U, given, trace, values)
        if given.bounds is not None:
            bounds = _bounds(U, given, fixed)
        self.pipeline = Pipeline(fixed, potential, particular, symmetric, bounds)
        self.functionals = Functionals(U, given, means=bounds is None)
        if self.functionals.names:
            integrals = self._integrals(symmetric)
        zero = torch.zeros(1, self.latent.dim(), dtype=torch.float64)
        # A first call with all defaults: what contradicts each other shows here.
        u = self.pipeline(zero, prescribed)
        if integrals is not None:
            integrals(u)
            self.pipeline.integrals = integrals

    @property
    def divergence_space(self) -> Any:
        """The space of divergences, None where they are not promised."""
        divergence = self.kernel is not None and self.kernel.divergence
        return self.kernel.complex.last if self.kernel and divergence else None

    def collect(self, count: int, given: dict[str, Any]) -> tuple[tuple[Tensor | None, ...], bool]:
        """Divergence, means of bounded functions and functionals for each of `count` samples.

        With them, whether means or functionals came in single precision.

        Raises
        ------
        TypeError, ValueError
            If a name is unknown, or the values are not for what is promised.
        """
        given = dict(given)
        source = given.pop("divergence", None)
        unknown = set(given) - {"mean", "flux", "integrals"}
        if unknown:
            raise TypeError(
                f"Unknown values for each sample: {', '.join(sorted(unknown))}; a decoder takes "
                "boundary, divergence, mean, flux and integrals."
            )
        if source is not None:
            W = self.divergence_space
            if W is None or self.given.divergence is None:
                raise ValueError(
                    "Got a divergence for each sample, and the decoder promises none: build it "
                    "with divergence=0.0 to say that it will be given."
                )
            if not isinstance(source, Tensor):
                _check_space(source, W)
                source = to_tensor(source)
            if source.shape not in ((count, W.dim()), (W.dim(),)):
                raise ValueError(
                    f"Got a divergence of shape {tuple(source.shape)}: expected ({count}, "
                    f"{W.dim()}), coefficients in {name_of(W)}."
                )
            require_finite(source, "the divergence")
        integrals, mean, single = self.functionals.collect(count, **given)
        return (source, mean, integrals), single

    def _integrals(self, symmetric: Symmetric | GroupAverage | None) -> Integrals:
        """The corrections that keep all linear promises."""
        U, rows = self.space, self.functionals.rows
        mass = sparse_map(inner(TrialFunction(U), TestFunction(U)) * dx).to_scipy()
        free = np.flatnonzero(~self.pipeline.constrained.numpy())
        # How large a functional is where nothing is promised: what is small against it is zero.
        whole = solve_definite(mass, rows.T)
        size = np.sqrt(np.einsum("mi,im->m", rows, whole))
        if (size == 0).any():
            name = self.functionals.names[int(np.argmin(size))]
            raise ValueError(
                f"{name} is zero for all functions of {name_of(U)}: leave it out, or check "
                "the tag and the functional."
            )
        if symmetric is not None:
            rows = symmetric(torch.from_numpy(rows)).numpy()
        if self.kernel is not None:
            fields = self.kernel.smallest(np.ascontiguousarray(rows.T))
        else:
            fields = np.zeros((U.dim(), len(rows)))
            if len(free):
                fields[free] = solve_definite(mass[free][:, free], rows[:, free].T)
        basis = _independent(fields / size, mass)
        # What two nearly equal fields differ by carries their rounding, magnified.
        if self.kernel is not None and basis.shape[1]:
            basis = self.kernel.smallest(mass @ basis)
        if symmetric is not None:
            basis = symmetric(torch.from_numpy(basis.T)).numpy().T
        left, values, right = np.linalg.svd((rows @ basis) / size[:, None])
        rank = len(values)
        amounts = (right.T / values) @ (left[:, :rank] / size[:, None]).T
        stuck = left[:, rank:] / size[:, None]
        stuck = stuck / np.linalg.norm(stuck, axis=0)
        return Integrals(
            torch.from_numpy(self.functionals.rows),
            torch.from_numpy(np.ascontiguousarray(basis)),
            torch.from_numpy(amounts),
            torch.from_numpy(stuck),
            torch.from_numpy(self.functionals.values),
            self.functionals.names,
        )


def frozen_divergence(divergence: Any) -> Any:
    """A divergence as it is now, whatever is assigned later; a callable stays a rule."""
    if divergence is None or is_recipe(divergence):
        return divergence
    if isinstance(divergence, Tensor):
        return divergence.detach().clone()
    return divergence.copy() if isinstance(divergence, np.ndarray) else frozen_value(divergence)


def _independent(fields: np.ndarray, mass: sp.csr_matrix) -> np.ndarray:
    """Orthonormal basis of the span of some fields, by Gram and Schmidt with pivots.

    A Gram matrix would square the angle between two of them, and lose those that are nearly
    parallel: the integral and the first moment of a domain far from the origin.

    Parameters
    ----------
    fields : array, shape (dim, m)
        Of norm one at the most.
    mass : scipy sparse matrix, shape (dim, dim)

    Returns
    -------
    array, shape (dim, r)
    """
    rest, basis = fields, np.zeros((len(fields), 0))
    for _ in range(fields.shape[1]):
        norms = np.sqrt(np.maximum(np.einsum("ij,ij->j", rest, mass @ rest), 0.0))
        pivot = int(norms.argmax())
        if norms[pivot] < _DEPENDENT:
            break
        basis = np.column_stack([basis, rest[:, pivot] / norms[pivot]])
        for _ in range(2):  # twice is enough (Kahan, in Parlett, 1980, section 6.9)
            rest = rest - basis @ (basis.T @ (mass @ rest))
    return basis


def moved_promises(given: Specification, W: Any, mesh: Any) -> dict[str, Any]:
    """The keywords of the same promises on another mesh.

    Parameters
    ----------
    given : Specification
    W : FunctionSpace or None
        Of divergences, on the mesh that is left.
    mesh : firedrake.MeshGeometry

    Raises
    ------
    ValueError
        If a divergence or a functional belongs to one mesh.
    """
    for functional, _ in given.integrals:
        if not is_recipe(functional):
            raise ValueError(
                "An integral was given as a form or an array, which belongs to one mesh: give it "
                "as a function of the test function, lambda v: inner(v, w) * dx."
            )
    divergence = given.divergence
    if isinstance(divergence, Tensor | np.ndarray):
        raise ValueError(
            "The divergence was given as coefficients of one mesh: give it as a function of the "
            "space of divergences, lambda W: ..."
        )
    if divergence is not None and not is_recipe(divergence):
        new = space_on(W, mesh)
        constant = constant_value(divergence)
        divergence = moved_value(divergence, W, new) if constant is None else constant
    moved = {f.name: getattr(given, f.name) for f in dataclasses.fields(given)}
    return moved | {"divergence": divergence}


def source_coefficients(source: Any, W: Any) -> Tensor:
    """Coefficients of a divergence in the space of divergences, shape (W.dim(),).

    Parameters
    ----------
    source : number, UFL expression, Function, callable of `W`, or Tensor of shape (W.dim(),)
        What does not lie in `W` is projected onto it in L2.
    W : FunctionSpace

    Raises
    ------
    ValueError
        If coefficients have the wrong shape, or the divergence is NaN or infinite somewhere.
    """
    return require_finite(_source_coefficients(source, W), "the divergence")


def _source_coefficients(source: Any, W: Any) -> Tensor:
    if is_recipe(source):
        source = source(W)
    if isinstance(source, Tensor | np.ndarray):
        coefficients = torch.as_tensor(source).double()
        if coefficients.shape != (W.dim(),):
            raise ValueError(
                f"Got a divergence of shape {tuple(coefficients.shape)}: expected ({W.dim()},), "
                f"coefficients in {name_of(W)}."
            )
        return coefficients
    if is_function(source) and source.function_space() == W:
        return to_tensor(source)
    w = TestFunction(W)
    mass = sparse_map(inner(TrialFunction(W), w) * dx).to_scipy()
    expression = Constant(float(source)) if isinstance(source, int | float) else source
    values = to_tensor(assemble(inner(expression, w) * dx(domain=mesh_of(W)))).numpy()
    return torch.from_numpy(solve_definite(mass, values))


def _check_space(source: Any, W: Any) -> None:
    """Refuse functions whose coefficients mean nothing in the space of divergences."""
    for f in source if isinstance(source, Sequence) else [source]:
        space = f.function_space() if is_function(f) else W
        if space != W:
            where = "" if mesh_of(space) is mesh_of(W) else " on another mesh"
            raise ValueError(
                f"Got a divergence in {name_of(space)} with {space.dim()} dofs{where}: expected "
                f"functions of the decoder's own space of divergences, {name_of(W)} with "
                f"{W.dim()} dofs (divergence_space): interpolate it there."
            )


def _symmetric(U: Any, trace: np.ndarray, values: np.ndarray) -> Symmetric:
    shape = U.value_shape
    square = len(shape) == 2 and shape[0] == shape[1] and len(U) == 1
    if not square or U.block_size != U.value_size:
        raise ValueError(
            f"symmetric=True needs square tensors with all components at each node, like "
            f"TensorFunctionSpace(mesh, 'CG', 1), got {name_of(U)} of value shape {shape}."
        )
    keep = Symmetric(shape[0])
    for what in (trace.astype(float), values):
        given = torch.from_numpy(what)[None]
        if not torch.allclose(keep(given), given, rtol=1e-12, atol=0):
            raise ValueError(
                "The boundary conditions are not symmetric, symmetric=True cannot hold with them: "
                "prescribe both off-diagonal components, to the same values."
            )
    return keep


def _group_average(
    U: Any, given: Specification, trace: np.ndarray, values: np.ndarray
) -> GroupAverage:
    average = group_average(U, given.symmetry)
    if given.bounds is not None and U.value_shape:
        require_invariant_box(given.symmetry, given.bounds)
    keep = GroupAverage(SparseMap(average))
    held = torch.from_numpy(values)[None]
    same = torch.allclose(keep(held), held, rtol=0, atol=1e-12 * (1 + float(held.abs().max())))
    if not same or average[trace][:, ~trace].nnz:
        raise ValueError(
            "The boundary conditions are not invariant under the maps of symmetry=: prescribe the "
            "same on parts of the boundary that are mapped onto each other."
        )
    return keep


def _bounds(U: Any, given: Specification, fixed: Tensor) -> Bounds:
    assert given.bounds is not None  # for mypy: the caller looked
    lower, upper = given.bounds
    V = scalar_version(U)
    to_bernstein, from_bernstein = bernstein_maps(V)
    weights = assemble(TestFunction(V) * dx).dat.data_ro / measure_of(mesh_of(V))
    mean = None
    if given.mean is not None:
        mean = torch.tensor(np.asarray(given.mean, np.float64).reshape(-1))
        if len(mean) != U.value_size:
            raise ValueError(f"Got {len(mean)} means for {U.value_size} components.")
        require_finite(mean, "the mean")
    return Bounds(
        SparseMap(to_bernstein),
        SparseMap(from_bernstein),
        lower,
        upper,
        given.margin,
        fixed,
        torch.from_numpy(from_bernstein.T @ weights),
        mean,
    )
