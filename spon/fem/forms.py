"""A UFL form as a batched, differentiable torch function.

A form is one mathematical object with two executions, *native* and *torch*. What they share is
here: the derivative of a form is again a form, by UFL, so that gradients, their gradients and
tangents are executed like the form itself and no values at quadrature points are kept for a
backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import ufl
from firedrake import (
    Cofunction,
    Constant,
    Function,
    FunctionSpace,
    MixedFunctionSpace,
    SpatialCoordinate,
    TestFunction,
    split,
)
from firedrake.mesh import MeshGeometry
from pyop2.types import DatView
from torch import Tensor
from tsfc.ufl_utils import extract_firedrake_constants
from ufl.algorithms import extract_coefficients, extract_type
from ufl.classes import ExternalOperator, Interpolate

from spon.fem.calculus import Differentiable
from spon.fem.native_forms import NativeEvaluator
from spon.fem.quadrature_degrees import with_fixed_quadrature
from spon.fem.quadrature_forms import QuadratureEvaluator
from spon.fem.snapshot import Snapshot
from spon.fem.spaces import mesh_of, name_of, require_serial

__all__ = ["BACKENDS", "TorchForm", "torch_form"]

BACKENDS = ("native", "torch")


def torch_form(form: Any, inputs: Any, backend: str = "native") -> TorchForm:
    """Make a batched, differentiable torch function of a UFL form.

    Parameters
    ----------
    form : ufl.Form
        A 0-form (a functional, an energy) or a 1-form (a residual, a load) over cells, exterior
        and interior facets and their subdomains.
    inputs : Function, Constant, mesh, or sequence of them
        What the form is a function of, in the order in which the tensors are given. A Function or
        a Constant must occur in the form; a mesh (or its coordinates) makes the positions of its
        nodes an input, so that shape derivatives come for free. Everything else in the form keeps
        the value that it has now.
    backend : {"native", "torch"}, optional
        ``"native"``: Firedrake's compiled kernels, called for one sample after the other, on the
        CPU in double precision. ``"torch"``: the same quadrature for the whole batch, in the dtype
        and on the device of the tensors: in torch operations, or on the CPU, where there is much to
        do and a compiler, in one compiled loop.

    Returns
    -------
    TorchForm

    Raises
    ------
    TypeError
        If `form` is no UFL form, or an input is of another kind.
    ValueError
        If the form has two arguments, an input does not occur in it, or the backend is unknown.
    NotImplementedError
        If the mesh is distributed over several processes, or the form contains what the backend
        cannot translate; it is named.

    Examples
    --------
    >>> residual = torch_form(inner(grad(u), grad(v)) * dx - f * v * dx, [u, f])  # doctest: +SKIP
    >>> r = residual(x, y)      # x: (batch, U.dim()), y: (batch, F.dim())       # doctest: +SKIP
    """
    if backend not in BACKENDS:
        raise ValueError(f"Unknown backend {backend!r}: choose one of {', '.join(BACKENDS)}.")
    _check_form(form)
    given = [inputs] if not isinstance(inputs, Sequence) else list(inputs)
    if len({id(thing) for thing in given}) < len(given):
        raise ValueError("An input is given twice: each one may occur once in inputs.")
    form, given = _without_views(form, given)
    slots: list[_Slot] = []
    for number, thing in enumerate(given):
        slot, form = _slot(thing, number, form, given)
        slots.append(slot)
    if len({id(slot.function) for slot in slots}) < len(slots):
        raise ValueError("An input is given twice: each one may occur once in inputs.")
    functions = [slot.function for slot in slots]
    for f in extract_coefficients(form):
        _refuse_shared_values(f, functions)
    snapshot = Snapshot(form, [slot.function for slot in slots])
    fixed = Differentiable.of(with_fixed_quadrature(form))
    arguments = form.arguments()
    return TorchForm(fixed, slots, backend, snapshot, arguments[0] if arguments else None)


class TorchForm:
    """A form as a function of tensors; made by `torch_form`.

    Attributes
    ----------
    backend : str
    arity : int
        0 or 1, the number of arguments of the form.
    """

    def __init__(
        self,
        form: Differentiable,
        slots: Sequence[_Slot],
        backend: str,
        snapshot: Snapshot,
        argument: Any,
    ) -> None:
        self._form, self._slots, self.backend = form, tuple(slots), backend
        self._snapshot, self._argument = snapshot, argument
        self.arity = 0 if argument is None else 1
        self._derived: dict[Any, TorchForm] = {}
        functions = [slot.function for slot in slots]
        whole = form.form()
        if whole.empty() or (argument is not None and not whole.arguments()):
            self._evaluator: Any = _Zero(self.output_size)
        else:
            kind = NativeEvaluator if backend == "native" else QuadratureEvaluator
            self._evaluator = kind(whole, functions, snapshot)

    @property
    def output_size(self) -> int:
        """Number of entries for each sample: V.dim() for a 1-form, 1 for a 0-form."""
        return 1 if self._argument is None else int(self._argument.function_space().dim())

    def __repr__(self) -> str:
        names = ", ".join(slot.name for slot in self._slots)
        return f"TorchForm({self.arity}-form of {names}; {self.backend})"

    def __call__(self, *xs: Tensor) -> Tensor:
        """Evaluate the form.

        Parameters
        ----------
        *xs : Tensor, shape (batch, dim) or (dim,)
            Coefficients for each input: the dofs of a Function or of the mesh's coordinates, the
            entries of a Constant. One without a batch axis, or with a batch of one, serves all
            samples.

        Returns
        -------
        Tensor
            Shape (batch, V.dim()) for a 1-form with a test function of V, (batch,) for a 0-form;
            without the batch axis if no input has one. Differentiable in every input, to any order.

        Raises
        ------
        TypeError
            If something is no tensor, or dtypes or devices differ.
        ValueError
            If the number of tensors or a shape is wrong.
        """
        batch = self._check(xs)
        rows = [x if x.ndim == 2 else x[None] for x in xs]
        count = 1 if batch is None else batch
        y = evaluate(self, [x.expand(count, -1) if len(x) != count else x for x in rows])
        return y if batch is not None else y[0]

    def _check(self, xs: Sequence[Tensor]) -> int | None:
        wanted = ", ".join(slot.name for slot in self._slots)
        if len(xs) != len(self._slots):
            raise ValueError(
                f"The form is a function of {len(self._slots)} inputs ({wanted}), got {len(xs)} "
                "tensors."
            )
        sizes = set()
        for x, slot in zip(xs, self._slots, strict=True):
            if not isinstance(x, Tensor):
                raise TypeError(
                    f"Expected a tensor for {slot.name}, got {type(x).__name__}: "
                    "spon.fem.to_tensor makes one of a Function."
                )
            if x.dtype not in (torch.float32, torch.float64):
                raise TypeError(f"Expected float32 or float64 for {slot.name}, got {x.dtype}.")
            if x.dtype != xs[0].dtype or x.device != xs[0].device:
                raise TypeError(
                    f"{slot.name} is {x.dtype} on {x.device} and {self._slots[0].name} is "
                    f"{xs[0].dtype} on {xs[0].device}: bring all inputs to one dtype and device."
                )
            if x.ndim not in (1, 2) or x.shape[-1] != slot.size:
                raise ValueError(
                    f"Got a tensor of shape {tuple(x.shape)} for {slot.name}: expected (batch, "
                    f"{slot.size}) or ({slot.size},)."
                )
            if x.ndim == 2:
                sizes.add(len(x))
        if len(sizes - {1}) > 1:
            raise ValueError(f"The inputs have different batch sizes: {sorted(sizes)}.")
        return next(iter(sizes - {1} or sizes), None)

    def values(self, xs: Sequence[Tensor]) -> Tensor:
        """Evaluate for rows, without a graph: (batch, V.dim()), or (batch,) for a 0-form."""
        y: Tensor = self._evaluator(xs, len(xs[0])) if xs else self._evaluator((), 1)
        y = y.to(xs[0]) if xs else y
        return y if self.arity else y[:, 0]

    def gradient(self, number: int) -> TorchForm:
        """The derivative with respect to an input, as a 1-form.

        Of a 0-form J(x) it is dJ/dx_i, a function of the same inputs. Of a 1-form F(x; v) it is
        the adjoint action (dF/dx_i)^T w, a function of the inputs and of w in the space of v.
        """
        key = ("gradient", number)
        if key not in self._derived:
            slots, form = list(self._slots), self._form
            if self._argument is not None:
                weight = Function(self._argument.function_space())
                form = form.replaced(self._argument, weight)
                slots.append(_Slot(weight, weight, "the cotangent"))
            slot = self._slots[number]
            test = TestFunction(slot.function.function_space())
            form = form.derivative(slot.variable, test)
            self._derived[key] = TorchForm(form, slots, self.backend, self._snapshot, test)
        return self._derived[key]

    def tangent(self, numbers: tuple[int, ...]) -> TorchForm:
        """The directional derivative with respect to some inputs, linear in the last of its inputs.

        A function of the inputs and of one direction for each of `numbers`.
        """
        key = ("tangent", numbers)
        if key not in self._derived:
            slots, form = list(self._slots), Differentiable(())
            for number in numbers:
                slot = self._slots[number]
                direction = Function(slot.function.function_space())
                form = form + self._form.derivative(slot.variable, direction)
                slots.append(_Slot(direction, direction, f"the tangent of {slot.name}"))
            self._derived[key] = TorchForm(
                form, slots, self.backend, self._snapshot, self._argument
            )
        return self._derived[key]


def evaluate(form: TorchForm, xs: Sequence[Tensor]) -> Tensor:
    """Differentiable values of a form for tensors that all have shape (batch, dim)."""
    y: Tensor = _Evaluate.apply(form, *xs)
    return y


class _Evaluate(torch.autograd.Function):
    """Values of a form; gradients and tangents are values of its derivatives."""

    @staticmethod
    def forward(form: TorchForm, *xs: Tensor) -> Tensor:
        return form.values(xs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.form = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        form, xs, (g,) = ctx.form, ctx.saved_tensors, gradients
        results: list[Tensor | None] = [None]
        for number in range(len(xs)):
            if not ctx.needs_input_grad[number + 1]:
                results.append(None)
            elif form.arity:
                results.append(_Evaluate.apply(form.gradient(number), *xs, g))
            else:
                results.append(_Evaluate.apply(form.gradient(number), *xs) * g[:, None])
        return tuple(results)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        xs, directions = ctx.saved_tensors, tangents[1:]
        numbers = tuple(i for i, t in enumerate(directions) if t is not None)
        moved = [directions[i] for i in numbers]
        result: Tensor = _Evaluate.apply(ctx.form.tangent(numbers), *xs, *moved)
        return result

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], form: TorchForm, *xs: Tensor
    ) -> tuple[Tensor, int]:
        # The mapped axis becomes a part of the batch.
        rows = []
        for x, dim in zip(xs, in_dims[1:], strict=True):
            x = x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            rows.append(x.reshape(-1, x.shape[-1]))
        y: Tensor = _Evaluate.apply(form, *rows)
        return y.reshape(info.batch_size, -1, *y.shape[1:]), 0


class _Zero:
    """What is left of a form whose integrand vanishes."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, xs: Sequence[Tensor], batch: int) -> Tensor:
        return torch.zeros(batch, self.size, dtype=torch.float64)


class _Slot:
    """One input: the function whose coefficients are given, and what UFL differentiates by."""

    __slots__ = ("function", "name", "variable")

    def __init__(self, function: Any, variable: Any, name: str) -> None:
        self.function, self.variable, self.name = function, variable, name

    @property
    def size(self) -> int:
        return int(self.function.function_space().dim())


def _check_form(form: Any) -> None:
    if not isinstance(form, ufl.Form):
        kind = type(form).__name__
        hint = ": assemble it, or write it as an integral" if isinstance(form, ufl.BaseForm) else ""
        raise TypeError(f"Expected a UFL form, got {kind}{hint}.")
    if form.empty():
        raise ValueError("The form has no integrals.")
    count = len(form.arguments())
    if count > 1:
        raise ValueError(
            f"Expected a form with no or one argument, this one has {count}: spon.fem.sparse_map "
            "takes bilinear forms, and action(a, u) makes a 1-form of one."
        )
    for operator in (ExternalOperator, Interpolate):
        found = extract_type(form, operator)
        if found:
            raise NotImplementedError(
                f"The form contains {type(next(iter(found))).__name__}, which torch_form does not "
                "evaluate: give its values as an input."
            )
    for domain in form.ufl_domains():
        require_serial(domain, "torch_form")


def _slot(thing: Any, number: int, form: Any, given: Sequence[Any]) -> tuple[_Slot, Any]:
    """The slot of one input, and the form with the input as something UFL differentiates by."""
    meshes = list(form.ufl_domains())
    if isinstance(thing, SpatialCoordinate):
        thing = ufl.domain.extract_unique_domain(thing)
    mesh = next((m for m in meshes if thing is m or thing is m.coordinates), None)
    if mesh is not None:
        form = ufl.replace(form, {mesh.coordinates: SpatialCoordinate(mesh)})
        return _Slot(mesh.coordinates, SpatialCoordinate(mesh), "the coordinates"), form
    if isinstance(thing, MeshGeometry):
        raise ValueError("An input is a mesh on which the form has no integral.")
    if isinstance(thing, Constant):
        if thing not in extract_firedrake_constants(form):
            raise ValueError(f"Input {number}, a Constant, does not occur in the form.")
        function, expression = _real_function(meshes[0], thing.ufl_shape)
        name = f"input {number} (Constant of shape {thing.ufl_shape})"
        return _Slot(function, function, name), ufl.replace(form, {thing: expression})
    if isinstance(thing, Cofunction) or not isinstance(thing, Function):
        raise TypeError(
            f"Input {number} is a {type(thing).__name__}: expected a Function, a Constant, or a "
            "mesh for its coordinates."
        )
    name = f"input {number} ({thing.name()!r} in {name_of(thing.function_space())})"
    coefficients = extract_coefficients(form)
    if thing not in coefficients:
        names = ", ".join(f"{c.name()!r} in {name_of(c.function_space())}" for c in coefficients)
        raise ValueError(
            f"{name[0].upper()}{name[1:]} does not occur in the form, whose coefficients are: "
            f"{names or 'none'}. Give the whole function, not a component or a copy."
        )
    require_serial(mesh_of(thing.function_space()), "torch_form")
    return _Slot(thing, thing, name), form


def _real_function(mesh: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """A function of constants, and the expression of that shape that they are."""
    real = FunctionSpace(mesh, "R", 0)
    if not shape:
        function = Function(real)
        return function, function
    # One space for each entry: test functions of vector-valued Real spaces are not supported.
    function = Function(MixedFunctionSpace([real] * math.prod(shape)))
    entries = split(function)
    return function, ufl.as_tensor(np.array(entries, dtype=object).reshape(shape).tolist())


def _without_views(form: Any, given: list[Any]) -> tuple[Any, list[Any]]:
    """Functions of their own in the place of components, ``g.sub(i)``, which only view a part."""
    changes = {}
    inputs = [thing for thing in given if isinstance(thing, Function)]
    for f in extract_coefficients(form):
        if any(isinstance(part.dat, DatView) for part in f.subfunctions):
            _refuse_shared_values(f, inputs)
            own = Function(f.function_space().collapse())
            changes[f] = own.assign(f)
    given = [next((own for f, own in changes.items() if f is thing), thing) for thing in given]
    return (ufl.replace(form, changes) if changes else form), given


def _refuse_shared_values(f: Any, inputs: Sequence[Any]) -> None:
    """Refuse a coefficient that is no input and shares its array with one."""
    if any(f is x for x in inputs):
        return
    arrays = [part.dat._data for x in inputs for part in x.subfunctions]
    if any(np.may_share_memory(part.dat._data, a) for part in f.subfunctions for a in arrays):
        raise ValueError(
            f"The coefficient {f.name()!r} shares its values with an input and is none itself: use "
            "the input in its place, with an index for a component."
        )
