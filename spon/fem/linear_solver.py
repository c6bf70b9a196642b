"""Linear variational problems as batched, differentiable torch functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import scipy.sparse as sp
import torch
import ufl
from firedrake import Constant, Function, TestFunction, TrialFunction, assemble
from torch import Tensor
from tsfc.ufl_utils import extract_firedrake_constants
from ufl.algorithms import expand_derivatives, extract_coefficients

from spon.fem.arguments import Call, Essential, Rows, checked_inputs, describe_input
from spon.fem.cg import ConjugateGradients
from spon.fem.factor import SingularMatrixError, SparseLU
from spon.fem.forms import torch_form
from spon.fem.implicit import Inverse, Linearisation, constant_solve, solution
from spon.fem.maps import sparse_map
from spon.fem.matrices import jacobian
from spon.fem.quadrature_degrees import with_fixed_quadrature
from spon.fem.share import Share
from spon.fem.spaces import mesh_of, require_serial
from spon.sparse import SparseMap

__all__ = ["LinearSolver"]

_MODES = ("factor", "cg")


class LinearSolver:
    """Solve ``a(u, v) = L(v)`` for a batch; differentiable in everything that is given, twice.

    What does not depend on the inputs is assembled and factorised once, when the solver is made;
    everything that is not an input keeps the value that it had then.

    Parameters
    ----------
    a : ufl.Form
        Bilinear form on one space V.
    bcs : DirichletBC or sequence of DirichletBC, optional
        Essential conditions. The solution has their values exactly; values that vary from sample
        to sample are given to the call.
    inputs : Function, Constant, mesh, or sequence of them, optional
        What varies from sample to sample, in `a` or in `L`, in the order of the call. A mesh
        stands for the coordinates of its nodes.
    L : ufl.Form, optional
        Linear form with a test function of V. Without it, the load is the first tensor of a call.
    mode : {"factor", "cg"}, optional
        For an `a` that contains inputs. ``"factor"``: each sample's matrix is assembled and
        factorised, and the factors are kept for the backward pass. ``"cg"``: conjugate gradients
        for the whole batch, preconditioned by one factorisation; `a` must be symmetric positive
        definite. It needs far less memory and gains where the coefficients vary moderately.
    reference : sequence of Tensor, shapes (dim of the input,), optional
        Inputs whose matrix preconditions ``"cg"``; the mean of each batch by default.
    rtol : float, optional
        Reduction of the preconditioned residual in ``"cg"``.
    max_iterations : int, optional
        Of ``"cg"``.
    ensemble : firedrake.Ensemble, optional
        Spreads the samples of an `a` that contains inputs over processes. Each process has its own
        mesh, on ``ensemble.comm``, and makes the same calls with the same tensors.

    Raises
    ------
    TypeError
        If `a` or `L` is no form, or an input of the wrong kind.
    ValueError
        If the forms do not fit each other, an input occurs in neither, or an option is unknown.
    spon.fem.SingularMatrixError
        If the matrix is singular.
    NotImplementedError
        If the mesh is distributed over several processes.

    Examples
    --------
    >>> solve = LinearSolver(inner(grad(u), grad(v)) * dx, bcs)             # doctest: +SKIP
    >>> x = solve(b)                                  # b: (batch, V.dim()) # doctest: +SKIP
    >>> solve = LinearSolver(k * inner(grad(u), grad(v)) * dx, bcs, inputs=[k, f], L=f * v * dx)
    ... # doctest: +SKIP
    >>> x = solve(kappa, y)                                                 # doctest: +SKIP
    """

    def __init__(
        self,
        a: Any,
        bcs: Any = None,
        inputs: Any = (),
        L: Any = None,
        mode: str = "factor",
        reference: Sequence[Tensor] | None = None,
        rtol: float = 1e-10,
        max_iterations: int = 500,
        ensemble: Any = None,
    ) -> None:
        V = _checked_space(a, L)
        require_serial(mesh_of(V), "LinearSolver")
        if mode not in _MODES:
            raise ValueError(f"Unknown mode {mode!r}: choose one of {', '.join(_MODES)}.")
        given = checked_inputs(inputs)
        where = [(_occurs(x, a), L is not None and _occurs(x, L)) for x in given]
        for x, (in_a, in_L) in zip(given, where, strict=True):
            if not (in_a or in_L):
                raise ValueError(
                    f"The input {describe_input(x)[0]} occurs neither in a nor in L: leave it out, "
                    "or pass the very object that the forms contain."
                )
        self.space = V
        self._essential = Essential(V, bcs, given)
        described = [describe_input(x) for x in given]
        self._loads = L is None
        names = ["the load"] * self._loads + [name for name, _ in described]
        sizes = [V.dim()] * self._loads + [size for _, size in described]
        self._rows = Rows("LinearSolver", names, sizes)
        self.constant = not any(in_a for in_a, _ in where)
        self._engine: _Constant | _Varying
        if self.constant:
            self._engine = _Constant(a, L, given, self._essential)
        else:
            share = None if ensemble is None else Share(ensemble)
            options = (mode, reference, rtol, max_iterations, share)
            self._engine = _Varying(a, L, V, given, self._essential, *options)

    def __call__(self, *xs: Tensor, boundary: Tensor | None = None) -> Tensor:
        """Solve for a batch.

        Parameters
        ----------
        *xs : Tensor, shape (batch, dim) or (dim,)
            The load, a dual vector of shape (batch, V.dim()), if the solver has no `L`; then the
            inputs in their order. One without a batch axis serves all samples.
        boundary : Tensor, shape (batch, V.dim()) or (V.dim(),), optional
            Values at the dofs of the essential conditions, instead of the values of these; entries
            at other dofs are ignored.

        Returns
        -------
        Tensor, shape (batch, V.dim())
            Coefficients in V, in the dtype and on the device of what was given (computed in float64
            on the CPU); without the batch axis if nothing had one. Differentiable to any order.

        Raises
        ------
        TypeError, ValueError
            If a tensor does not fit, or holds NaN or infinity.
        spon.fem.SingularMatrixError, firedrake.ConvergenceError
            Which samples failed.
        """
        self._essential.check(boundary)
        call = self._rows(xs, boundary=(boundary, self.space.dim()))
        rows = [call.rows(x) for x in xs]
        load = rows.pop(0) if self._loads else None
        return call.result(self._engine(call, load, rows, call.rows(boundary)))


class _Constant:
    """One matrix for all samples."""

    def __init__(self, a: Any, L: Any, inputs: Sequence[Any], essential: Essential) -> None:
        self._essential = essential
        matrix = assemble(a, mat_type="aij").petscmat
        p, c, values = matrix.getValuesCSR()
        self._lu = SparseLU(p, c, essential.free)
        self._factor = self._lu.factor(torch.from_numpy(values))
        whole = sp.csr_matrix((values, c, p), shape=matrix.getSize())
        columns = sp.diags(essential.prescribed.numpy().astype(float))
        coupling = (whole @ columns).tocsr()
        coupling.eliminate_zeros()
        # From the prescribed values to the load that they are on the free dofs.
        self._coupling = SparseMap(coupling)
        self._lifted = essential.values if bool(essential.values.any()) else None
        self._lifted_load = self._coupling(essential.values)
        self._load = None if L is None else _Load(L, inputs)

    def __call__(
        self, call: Call, load: Tensor | None, inputs: Sequence[Tensor], boundary: Tensor | None
    ) -> Tensor:
        if load is None:
            assert self._load is not None
            load = self._load(call.batch, inputs)
        if boundary is not None:
            lift = self._essential.lift(boundary, call.batch)
            return lift + constant_solve(load - self._coupling.batch(lift), self._factor)
        if self._lifted is not None:
            return self._lifted + constant_solve(load - self._lifted_load, self._factor)
        return constant_solve(load, self._factor)


class _Varying:
    """A matrix for each sample."""

    def __init__(
        self,
        a: Any,
        L: Any,
        V: Any,
        inputs: Sequence[Any],
        essential: Essential,
        mode: str,
        reference: Sequence[Tensor] | None,
        rtol: float,
        max_iterations: int,
        share: Share | None,
    ) -> None:
        self._essential, self._mode, self._share = essential, mode, share
        self._limits = (rtol, max_iterations)
        u = Function(V, name="the solution")
        # Each with its own quadrature, as where they are assembled one by one.
        form = with_fixed_quadrature(ufl.action(a, u))
        if L is not None:
            form = form - with_fixed_quadrature(L)
        self._residual = torch_form(form, [u, *inputs])
        self._matrices = jacobian(self._residual)
        self._lu = SparseLU(self._matrices.pointers, self._matrices.columns, essential.free)
        self._nothing = torch.zeros(1, V.dim(), dtype=torch.float64)
        self._reference = None
        if reference is not None:
            sizes = [describe_input(x) for x in inputs]
            check = Rows("reference", [n for n, _ in sizes], [s for _, s in sizes])
            call = check(list(reference))
            self._reference = self._prepare([call.rows(x).detach() for x in reference])

    def __call__(
        self, call: Call, load: Tensor | None, inputs: Sequence[Tensor], boundary: Tensor | None
    ) -> Tensor:
        with torch.no_grad():
            values = [x.detach() for x in inputs]
            lift = self._essential.lift(boundary, call.batch)
            b = -self._residual(lift, *values)
            b = b if load is None else b + load
            at = Linearisation(
                self._residual, self._essential.prescribed, self._invert, share=self._share
            )
            u = lift + at.solve(b, False, [lift, *values])
        return solution(at, u, inputs, boundary, load)

    def _invert(self, rows: Sequence[Tensor]) -> Inverse:
        inputs = rows[1:]
        values = self._matrices.values(rows, len(rows[0]))
        if self._mode == "factor":
            return self._lu.factor_each(values)
        reference = self._reference
        if reference is None:
            reference = self._prepare([x.mean(0, keepdim=True) for x in inputs])
        self._require_symmetric(values)
        return ConjugateGradients(self._lu, values, reference, *self._limits)

    def _prepare(self, inputs: Sequence[Tensor]) -> Any:
        values = self._matrices.values([self._nothing, *inputs], 1)[0]
        self._require_symmetric(values[None])
        try:
            factor = self._lu.factor(values, symmetric=True)
        except SingularMatrixError as error:
            raise ValueError(
                f"The reference of the conjugate gradients cannot be factorised. {error}"
            ) from error
        if not factor.positive:
            raise ValueError(
                'mode="cg" needs a positive definite operator, that of the reference (the mean of '
                'the batch by default) is not: give another reference=, or use mode="factor".'
            )
        return factor

    def _require_symmetric(self, values: Tensor) -> None:
        """Refuse matrices of a batch that are not symmetric on the unknowns."""
        if not self._lu.is_symmetric(values, 1e-10):
            raise ValueError(
                'mode="cg" needs a symmetric bilinear form, this one is not: use mode="factor".'
            )


class _Load:
    """The load vector as a function of the inputs: sparse maps if it is affine in them."""

    def __init__(self, L: Any, inputs: Sequence[Any]) -> None:
        self._used = [i for i, x in enumerate(inputs) if _occurs(x, L)]
        things = [inputs[i] for i in self._used]
        L = with_fixed_quadrature(L)  # of which the derivatives are parts
        form = torch_form(L, things)
        self._maps = _affine(L, things)
        self._form = None if self._maps is not None else form
        if self._maps is not None:
            zeros = [torch.zeros(describe_input(x)[1], dtype=torch.float64) for x in things]
            self._constant = form(*zeros)
            self._is_linear = not bool(self._constant.any())

    def __call__(self, batch: int, inputs: Sequence[Tensor]) -> Tensor:
        xs = [inputs[i] for i in self._used]
        if self._form is not None:
            return self._form(*xs)
        load = None if self._is_linear else self._constant.expand(batch, -1)
        for x, apply in zip(xs, self._maps or (), strict=True):
            part = apply.batch(x)
            load = part if load is None else load + part
        return self._constant.expand(batch, -1) if load is None else load


def _affine(L: Any, inputs: Sequence[Any]) -> list[SparseMap] | None:
    """The constant derivatives of a form that is affine in all its inputs, otherwise None."""
    maps = []
    for f in inputs:
        if not isinstance(f, Function) or f.ufl_element().family() == "Real":
            return None
        derivative = expand_derivatives(ufl.derivative(L, f, TrialFunction(f.function_space())))
        if any(_occurs(x, derivative) for x in inputs):
            return None
        maps.append(sparse_map(derivative))
    return maps


def _occurs(thing: Any, form: Any) -> bool:
    if isinstance(thing, Function):
        return thing in extract_coefficients(form)
    if isinstance(thing, Constant):
        return thing in extract_firedrake_constants(form)
    mesh = thing.ufl_domain() if isinstance(thing, ufl.SpatialCoordinate) else thing
    return mesh in tuple(form.ufl_domains())


def _checked_space(a: Any, L: Any) -> Any:
    if not isinstance(a, ufl.Form):
        raise TypeError(
            f"Expected a bilinear form for a, got {type(a).__name__}: write it in UFL, for example "
            "inner(grad(u), grad(v)) * dx with u = TrialFunction(V), v = TestFunction(V)."
        )
    arguments = a.arguments()
    if len(arguments) != 2:
        raise ValueError(
            f"Expected a bilinear form for a, this one has {len(arguments)} arguments: it needs "
            "TestFunction(V) and TrialFunction(V)."
        )
    V, trial = (argument.function_space() for argument in arguments)
    if trial != V:
        raise ValueError(
            f"The test functions of a are in {V.ufl_element()}, its trial functions in "
            f"{trial.ufl_element()}: both must be in one space."
        )
    if L is None:
        return V
    if not isinstance(L, ufl.Form):
        raise TypeError(
            f"Expected a linear form for L, got {type(L).__name__}; an assembled load is the first "
            "tensor of a call of a solver without L."
        )
    if len(L.arguments()) != 1 or L.arguments()[0] != TestFunction(V):
        spaces = [argument.function_space().ufl_element() for argument in L.arguments()]
        raise ValueError(
            f"Expected a linear form for L with one test function of {V.ufl_element()}, this one "
            f"has arguments in {spaces}."
        )
    return V
