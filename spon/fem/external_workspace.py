"""Forms with external operators, made ready for Firedrake.

A workspace holds a copy of every coefficient of some forms and a Function of data for every symbol
in them. Whoever wants values loads the coefficients, from the user's functions or from a tape, and
never touches these. Forms that Firedrake compiles refer to the copies and the data only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import ufl
from firedrake import Function, get_interpolator
from firedrake import interpolate as ufl_interpolate
from firedrake.assemble import get_assembler
from pyadjoint import stop_annotating
from torch import Tensor
from ufl.algorithms import expand_derivatives, extract_coefficients

from spon.fem.external_symbols import (
    NetworkSymbol,
    PointSymbol,
    Symbol,
    symbols_of,
    tensor_of_weights,
)
from spon.fem.quadrature_degrees import with_fixed_quadrature
from spon.fem.spaces import to_tensor

__all__ = ["Assembled", "Workspace", "copy_values", "is_zero", "read_values", "write_values"]


class Workspace:
    """Copies of coefficients and data of operators, for some forms.

    Parameters
    ----------
    *forms : ufl.Form
        With external operators.

    Attributes
    ----------
    forms : list of ufl.Form
        The forms with their quadrature degrees set, and with a Function in the place of each
        operator whose derivative is no UFL form.
    coefficients : list of Function
        The user's functions in the forms and in the operands.
    operators : list of Symbol
    weights : dict of Symbol to Tensor
        The weights that are loaded.
    """

    def __init__(self, *forms: Any) -> None:
        forms = tuple(_with_degrees(_expanded(form)) for form in forms)
        roots = {s.root: None for form in forms for s in symbols_of(form)}
        self.operators: list[Symbol] = list(roots)
        self.weights: dict[Symbol, Tensor] = {}
        self._data: dict[Symbol, Function] = {}
        self._dots: dict[Any, Function] = {}
        self._interpolations: dict[Any, tuple[Any, Function]] = {}
        self._operands: dict[Symbol, Tensor] = {}
        self._fresh: set[Symbol] = set()
        self.frozen = [s for s in self.operators if not _has_ufl_derivative(s)]
        places = {s: self.data(s) for s in self.frozen}
        self.forms = [ufl.replace(form, places) for form in forms]
        found: dict[Any, None] = {}
        for form in self.forms:
            found.update(dict.fromkeys(extract_coefficients(form)))
        for s in self.operators:
            found.update(dict.fromkeys(s.operand_coefficients()))
        ours = set(places.values())
        self.coefficients = [c for c in found if c not in ours and not isinstance(c, Symbol)]
        with stop_annotating():
            self.copies = {c: c.copy(deepcopy=True) for c in self.coefficients}

    def data(self, symbol: Symbol) -> Function:
        """The Function that holds the values of a symbol."""
        if symbol not in self._data:
            self._data[symbol] = Function(symbol.space)
        return self._data[symbol]

    def dot(self, thing: Any) -> Function:
        """A direction of a coefficient or of a symbol, to be filled."""
        if thing not in self._dots:
            space = thing.space if isinstance(thing, Symbol) else thing.function_space()
            self._dots[thing] = Function(space)
        return self._dots[thing]

    def load(self, values: Mapping[Any, Any], weights: Mapping[Symbol, Any]) -> None:
        """Take values of the coefficients, and Functions of weights for the operators."""
        with stop_annotating():
            for c, value in values.items():
                copy_values(value, self.copies[c])
        self.weights = {s: tensor_of_weights(f) for s, f in weights.items()}
        self.touch()

    def load_current(self) -> None:
        """Take the present values of the user's functions and modules."""
        for s in self.operators:
            if s.weights is not None:
                s.weights.synchronise()
        self.load({c: c for c in self.coefficients}, self.weight_functions())

    def touch(self) -> None:
        """Say that a copy was changed: all data of operators are out of date."""
        self._fresh.clear()
        self._operands.clear()

    def replaced(self, expression: Any) -> Any:
        """A form or expression with copies and data in place; its symbols must be refreshed."""
        mapping: dict[Any, Any] = dict(self.copies)
        mapping.update({s: self.data(s) for s in symbols_of(expression)})
        return ufl.replace(expression, mapping)

    def symbols(self, expression: Any) -> list[Symbol]:
        """What must be refreshed before an expression is used."""
        found = set(extract_coefficients(expression))
        return [*symbols_of(expression), *(s for s in self.frozen if self.data(s) in found)]

    def refresh(self, symbols: Iterable[Symbol]) -> None:
        """Evaluate the operators where their data are out of date."""
        for s in symbols:
            if s not in self._fresh:
                with _raised_by_all(s.space.mesh().unique().comm):
                    write_values(self._evaluated(s), self.data(s))
                self._fresh.add(s)

    def _evaluated(self, s: Symbol) -> Tensor:
        if isinstance(s, PointSymbol):
            return s.law.evaluate(s.order, self.weight(s), self.at_points(s))
        assert isinstance(s, NetworkSymbol)
        value: Tensor = s.law.evaluate(self.weight(s), self.inputs(s))
        return value

    def weight_functions(self) -> dict[Symbol, Any]:
        """The Functions that hold the weights of the operators which have some."""
        return {s: s.weights.function for s in self.operators if s.weights is not None}

    def weight(self, s: Symbol) -> Tensor:
        """The weights of a symbol, empty if it has none."""
        return self.weights.get(s.root, torch.zeros(0, dtype=torch.float64))

    def at_points(self, s: PointSymbol) -> Tensor:
        """The operand at all points of this process, shape (points, m)."""
        root = s.root
        if root not in self._operands:
            self._operands[root] = self.interpolated(root.operand, root)
        return self._operands[root]

    def interpolated(self, expression: Any, root: PointSymbol) -> Tensor:
        """An expression of the shape of the operand at the points, shape (points, m)."""
        if expression not in self._interpolations:
            replaced = self.replaced(expression)
            z = Function(root.points)
            interpolator = get_interpolator(ufl_interpolate(replaced, root.points))
            # The public `assemble` makes this callable each time: 0.9 ms instead of 0.05 ms.
            self._interpolations[expression] = interpolator._get_callable(tensor=z), z
        run, z = self._interpolations[expression]
        with stop_annotating():
            run()
        return read_values(z)

    def inputs(self, s: NetworkSymbol) -> list[Tensor]:
        """The dofs of the operands, shapes (n,)."""
        return [to_tensor(self.copies[f]) for f in s.operands]


class Assembled:
    """A form of a workspace that is assembled again and again.

    Parameters
    ----------
    workspace : Workspace
    form : ufl.Form
        In terms of the user's functions and of symbols.
    **options
        For Firedrake's assembler.

    Attributes
    ----------
    moving : list of Symbol
        Symbols whose directions the form refers to, see `spon.fem.external_calculus`.
    """

    def __init__(self, workspace: Workspace, form: Any, **options: Any) -> None:
        form = _expanded(form)
        self.moving: list[Symbol] = []
        self.zero = is_zero(form)
        if self.zero:
            return
        self.workspace = workspace
        self.symbols = workspace.symbols(form)
        self.form = workspace.replaced(form)
        self._assembler = get_assembler(self.form, **options)

    def __call__(self) -> Any:
        """The assembled form at what is loaded; None if the form is zero."""
        if self.zero:
            return None
        self.workspace.refresh(self.symbols)
        with stop_annotating():
            return self._assembler.assemble()


def read_values(f: Any) -> Tensor:
    """Values at the points or nodes of this process, shape (points, value_size)."""
    values = np.array(f.dat.data_ro, dtype=np.float64)
    return torch.from_numpy(values.reshape(len(values), -1))


def write_values(values: Tensor, f: Any) -> None:
    """The way back."""
    target = f.dat.data_wo
    target[...] = values.detach().cpu().numpy().reshape(target.shape)


def copy_values(source: Any, target: Any) -> None:
    """Copy the dofs of a function into another one of its space."""
    for a, b in zip(source.subfunctions, target.subfunctions, strict=True):
        b.dat.data_wo[...] = a.dat.data_ro


@contextmanager
def _raised_by_all(comm: Any) -> Iterator[None]:
    """What one process raises, all raise: the others would wait for it for ever."""
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    if comm.size > 1:
        texts = comm.allgather(None if error is None else f"{type(error).__name__}: {error}")
        failed = [i for i, text in enumerate(texts) if text is not None]
        if failed and error is None:
            raise RuntimeError(
                f"An external operator failed on process {failed[0]}: {texts[failed[0]]}"
            )
    if error is not None:
        raise error


def is_zero(form: Any) -> bool:
    """Whether nothing is left of a form."""
    if isinstance(form, ufl.Form):
        return bool(form.empty())
    return isinstance(form, ufl.ZeroBaseForm | int | float | ufl.constantvalue.Zero)


def _has_ufl_derivative(s: Symbol) -> bool:
    return isinstance(s, PointSymbol) and s.degree is not None


def _expanded(form: Any) -> Any:
    if isinstance(form, ufl.ZeroBaseForm | int | float):
        return form
    if not isinstance(form, ufl.Form):
        raise TypeError(
            "External operators are for forms that are integrals (ufl.Form), got a "
            f"{type(form).__name__}: write loads and residuals as integrals instead of cofunctions "
            "or interpolations."
        )
    return expand_derivatives(form)


def _with_degrees(form: Any) -> Any:
    """Integrate where the operators at quadrature points have their values.

    The other integrals keep the degree that Firedrake would choose without the operators: where
    functions on quadrature points occur, it takes their degree for all integrals over a domain.
    """
    if is_zero(form):
        return form
    integrals, others = [], []
    for integral in form.integrals():
        symbols = symbols_of(integral.integrand())
        degrees = {s.degree for s in symbols if isinstance(s, PointSymbol) and s.degree is not None}
        if not degrees:
            others.append(integral)
            continue
        metadata = dict(integral.metadata())
        given = metadata.get("quadrature_degree")
        if given is not None and given != -1:
            degrees.add(given)
        if len(degrees) > 1:
            raise ValueError(
                f"An integral has the quadrature degrees {sorted(degrees)} from its measure and "
                "its external operators: give all operators in it the same degree, and the "
                "measure none or that one."
            )
        if integral.integral_type() != "cell":
            raise NotImplementedError(
                f"An operator at quadrature points of cells stands in a {integral.integral_type()} "
                "integral: give external_operator a function_space, its values at the nodes are "
                "defined on facets too."
            )
        metadata["quadrature_degree"] = degrees.pop()
        integrals.append(integral.reconstruct(metadata=metadata))
    return ufl.Form(integrals) + with_fixed_quadrature(ufl.Form(others))
