"""A pyadjoint ReducedFunctional as a torch function, with right gradients under reuse.

The tape holds one set of values at a time. A torch graph may hold many calls of one operator whose
backward passes come later and in any order, so each call keeps its inputs, and the tape is run
again when it holds the values of another call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from firedrake import Cofunction, Constant, Function
from pyadjoint import ReducedFunctional, set_working_tape, stop_annotating
from torch import Tensor
from torch.autograd.function import once_differentiable

from spon.fem.spaces import mesh_of, require_serial
from spon.fem.tape_slots import Slot

__all__ = ["FEMOperator", "fem_operator"]


def fem_operator(reduced_functional: Any) -> FEMOperator:
    """Turn what pyadjoint recorded on a tape into a torch function.

    Takes the place of ``firedrake.ml.pytorch.fem_operator``, with a batch axis, right gradients
    when it is called several times before the backward pass, and second derivatives.

    Parameters
    ----------
    reduced_functional : pyadjoint.ReducedFunctional
        Its controls are Functions, Cofunctions, Constants or floats; its functional is a float, a
        Function or a Cofunction. The tape must not be recorded on a distributed mesh.

    Returns
    -------
    FEMOperator
        Called with one tensor for each control.

    Raises
    ------
    TypeError
        If `reduced_functional` is no ReducedFunctional, or a control or the functional is of
        another kind.
    ValueError
        If a control does not occur on the tape.
    NotImplementedError
        If a mesh is distributed over several processes.

    Examples
    --------
    >>> S = spon.fem.fem_operator(ReducedFunctional(u, Control(f)))  # doctest: +SKIP
    >>> u = S(sources)  # (batch, V.dim()) -> (batch, U.dim())  # doctest: +SKIP
    >>> ((u - data) ** 2).mean().backward()  # doctest: +SKIP
    """
    return FEMOperator(reduced_functional)


class FEMOperator:
    """What `fem_operator` returns: a torch function that runs a pyadjoint tape.

    Parameters
    ----------
    reduced_functional : pyadjoint.ReducedFunctional

    Attributes
    ----------
    reduced_functional : pyadjoint.ReducedFunctional
    """

    def __init__(self, reduced_functional: Any) -> None:
        if not isinstance(reduced_functional, ReducedFunctional):
            raise TypeError(
                "fem_operator takes a pyadjoint ReducedFunctional, got "
                f"{type(reduced_functional).__name__}: make one with "
                "ReducedFunctional(functional, [Control(f), ...])."
            )
        self.reduced_functional = reduced_functional
        self._controls = [Slot(c.control, f"control {i}") for i, c in enumerate(self._handles)]
        self._output = Slot(reduced_functional.functional, "the functional")
        _check_tape(reduced_functional, self._controls)
        # What the tape holds: the count of its runs, the inputs, the checkpoints of the controls.
        self._held: tuple[int, list[np.ndarray], list[Any]] | None = None

    @property
    def _handles(self) -> list[Any]:
        return list(self.reduced_functional.controls)

    def __repr__(self) -> str:
        inputs = ", ".join(slot.describe() for slot in self._controls)
        return f"FEMOperator({inputs} -> {self._output.describe()})"

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run the tape.

        Parameters
        ----------
        *inputs : Tensor, shapes (batch, n) or (n,)
            One for each control: ``n = V.dim()`` coefficients for a Function or Cofunction of a
            space V, the shape of the Constant for a Constant (no axis for a scalar one). Inputs
            without a batch axis are shared by all samples. float32 and other devices are converted
            on the way in and out; the tape runs in float64 on the CPU.

        Returns
        -------
        Tensor, shape (batch, m), or (batch,) for a scalar functional
            Without the batch axis if no input has one. In the dtype and on the device of the
            inputs. Differentiable twice; each backward pass costs one adjoint run for each sample,
            and a run of the tape where it holds the values of another call.

        Raises
        ------
        TypeError
            If the number of inputs is wrong, or one is not a real floating-point tensor.
        ValueError
            If a shape does not fit, the batch sizes differ, or an input holds NaN or infinity.
        """
        if len(inputs) != len(self._controls):
            raise TypeError(
                f"Got {len(inputs)} inputs for {len(self._controls)} controls: one tensor for each "
                f"of {[slot.describe() for slot in self._controls]}."
            )
        batched = [slot.batched(x) for slot, x in zip(self._controls, inputs, strict=True)]
        sizes = {len(x) for x, has in zip(inputs, batched, strict=True) if has}
        if len(sizes) > 1:
            raise ValueError(f"The inputs have different batch sizes: {sorted(sizes)}.")
        batch = sizes.pop() if sizes else 1
        rows = [
            x.to("cpu", torch.float64).reshape(-1, slot.size).expand(batch, slot.size)
            for slot, x in zip(self._controls, inputs, strict=True)
        ]
        dtype = inputs[0].dtype
        for x in inputs[1:]:
            dtype = torch.promote_types(dtype, x.dtype)
        y: Tensor = _Value.apply(self, *rows)
        y = y.reshape(batch, *self._output.shape).to(inputs[0].device, dtype)
        return y if any(batched) else y[0]

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Nothing is recorded, the tape is the working tape, and its own scale is off."""
        functional = self.reduced_functional
        # Solver blocks ask the working tape how often it ran; and pyadjoint scales the value in
        # place, in the checkpoint that the adjoint run reads afterwards. We scale outside.
        scale, functional.scale = functional.scale, 1.0
        try:
            with stop_annotating(), set_working_tape(functional.tape):
                yield
        finally:
            functional.scale = scale

    def _run(self, row: Sequence[np.ndarray]) -> Any:
        """The functional at one sample."""
        self._held = None  # should the run fail, the tape holds nothing that can be relied upon
        objects = [slot.make(x) for slot, x in zip(self._controls, row, strict=True)]
        functional, tape = self.reduced_functional, self.reduced_functional.tape
        if self._output.kind is Cofunction:
            functional.scale = _Unscaled()
        value = functional(objects)
        functional.scale = 1.0
        checkpoints = [c.block_variable.checkpoint for c in self._handles]
        self._held = (tape.recompute_count, [x.copy() for x in row], checkpoints)
        return value

    def _hold(self, row: Sequence[np.ndarray]) -> None:
        """Make the tape hold the values of a sample."""
        tape = self.reduced_functional.tape
        if self._held is not None and not getattr(tape, "_checkpoint_manager", None):
            count, held, checkpoints = self._held
            here = [c.block_variable.checkpoint for c in self._handles]
            if (
                count == tape.recompute_count
                and all(a is b for a, b in zip(here, checkpoints, strict=True))
                and all(np.array_equal(a, b) for a, b in zip(held, row, strict=True))
            ):
                return
        self._run(row)

    def _values(self, rows: Sequence[Tensor]) -> Tensor:
        result = torch.empty(len(rows[0]), self._output.size, dtype=torch.float64)
        scale = float(self.reduced_functional.scale)
        with self._quietly():
            for i, row in enumerate(_samples(rows)):
                result[i] = scale * self._output.read(self._run(row))
        return result

    def _derivatives(self, seed: Tensor, rows: Sequence[Tensor]) -> list[Tensor]:
        """The adjoint applied to `seed`, for each control."""
        results = [torch.empty(len(x), x.shape[1], dtype=torch.float64) for x in rows]
        scale = float(self.reduced_functional.scale)
        samples = list(_samples(rows))
        with self._quietly():
            # From the end: the tape holds the last sample, which saves one run.
            for i in reversed(range(len(samples))):
                if not seed[i].any():  # nothing asks for this sample
                    for result in results:
                        result[i] = 0.0
                    continue
                for slot, result, d in zip(
                    self._controls, results, self._adjoint(seed[i], samples[i]), strict=True
                ):
                    result[i] = 0.0 if d is None else scale * slot.read(d)
        return results

    def _adjoint(self, seed: Tensor, row: Sequence[np.ndarray]) -> list[Any]:
        self._hold(row)
        adjoint = self._output.make(seed.numpy(), dual=True)
        if any(slot.kind is Cofunction for slot in self._controls):
            return self._evaluate_adjoint(adjoint)
        try:
            return _listed(self.reduced_functional.derivative(adj_input=adjoint))
        except ValueError as error:
            constants = [slot for slot in self._controls if slot.kind is Constant]
            if not constants:
                raise
            raise NotImplementedError(
                f"Firedrake's tape could not differentiate by {constants[0].describe()} ({error}): "
                'use a Function of FunctionSpace(mesh, "R", 0) instead.'
            ) from error

    def _tangents(self, rows: Sequence[Tensor], directions: Sequence[Tensor]) -> Tensor:
        """The derivative applied to directions of all controls."""
        result = torch.empty(len(rows[0]), self._output.size, dtype=torch.float64)
        scale = float(self.reduced_functional.scale)
        with self._quietly():
            for i, (row, to) in enumerate(zip(_samples(rows), _samples(directions), strict=True)):
                self._hold(row)
                self.reduced_functional.tlm(self._directions(to))
                result[i] = scale * self._tangent()
        return result

    def _directions(self, row: Sequence[np.ndarray]) -> list[Any]:
        return [slot.make(x) for slot, x in zip(self._controls, row, strict=True)]

    def _tangent(self) -> Tensor:
        value = self.reduced_functional.functional.block_variable.tlm_value
        if value is None:
            return torch.zeros(self._output.size, dtype=torch.float64)
        return self._output.read(value)

    def _second(
        self, seed: Tensor, rows: Sequence[Tensor], directions: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Derivatives of ``seed . F'(x) direction`` by the seed and by each control."""
        by_seed = torch.empty_like(seed)
        results = [torch.empty_like(x) for x in rows]
        scale = float(self.reduced_functional.scale)
        with self._quietly():
            pairs = zip(_samples(rows), _samples(directions), strict=True)
            for i, (row, direction) in enumerate(pairs):
                self._adjoint(seed[i], row)
                self.reduced_functional.tlm(self._directions(direction))
                by_seed[i] = scale * self._tangent()
                self._evaluate_hessian()
                for slot, result, control in zip(
                    self._controls, results, self._handles, strict=True
                ):
                    value = control.block_variable.hessian_value
                    result[i] = 0.0 if value is None else scale * slot.read(value)
        return by_seed, results

    def _evaluate_adjoint(self, adjoint: Any) -> list[Any]:
        """Adjoint run; ReducedFunctional.derivative cannot return that by a Cofunction."""
        functional, tape = self.reduced_functional.functional, self.reduced_functional.tape
        tape.reset_variables()
        functional.block_variable.adj_value = adjoint
        with (
            tape.marked_control_dependents(self._handles),
            tape.marked_functional_dependencies(functional),
            self.reduced_functional.marked_controls(),
        ):
            tape.evaluate_adj(markings=True)
        return [c.block_variable.adj_value for c in self._handles]

    def _evaluate_hessian(self) -> None:
        """Second-order adjoint run, after the adjoint and the tangent linear one.

        ReducedFunctional.hessian cannot seed it for a Cofunction.
        """
        functional = self.reduced_functional.functional
        tape = self.reduced_functional.tape
        tape.reset_hessian_values()
        zero = self._output.make(np.zeros(self._output.size), dual=True)
        functional.block_variable.hessian_value = zero
        with (
            tape.marked_control_dependents(self._handles),
            tape.marked_functional_dependencies(functional),
        ):
            try:
                tape.evaluate_hessian(markings=True)
            except (AttributeError, NotImplementedError, TypeError) as error:
                raise NotImplementedError(
                    "The tape holds an operation for which Firedrake has no second derivative "
                    f"({error})."
                ) from error


class _Unscaled:
    """A factor that leaves a Cofunction alone.

    With a number pyop2 makes a kernel anew for each Cofunction, which costs more than to assemble
    it, and a part of which is never freed.
    """

    def __rmul__(self, other: Any) -> Any:
        return other


class _Value(torch.autograd.Function):
    """The functional, row by row."""

    @staticmethod
    def forward(operator: FEMOperator, *rows: Tensor) -> Tensor:
        return operator._values(rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.operator, *rows = inputs
        ctx.save_for_backward(*rows)
        ctx.save_for_forward(*rows)

    @staticmethod
    def backward(ctx: Any, *seeds: Tensor) -> tuple[Any, ...]:
        return (None, *_Derivative.apply(ctx.operator, seeds[0], *ctx.saved_tensors))

    @staticmethod
    def jvp(ctx: Any, *directions: Any) -> Tensor:
        rows = ctx.saved_tensors
        to = [
            torch.zeros_like(x) if t is None else t
            for x, t in zip(rows, directions[1:], strict=True)
        ]
        result: Tensor = _Tangent.apply(ctx.operator, *rows, *to)
        return result


class _Tangent(torch.autograd.Function):
    """The derivative applied to directions."""

    @staticmethod
    def forward(operator: FEMOperator, *tensors: Tensor) -> Tensor:
        half = len(tensors) // 2
        return operator._tangents(tensors[:half], tensors[half:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *seeds: Tensor) -> tuple[Any, ...]:
        raise NotImplementedError(
            "The forward-mode derivative of a FEMOperator cannot be differentiated again: take "
            "second derivatives by two backward passes (create_graph=True)."
        )


class _Derivative(torch.autograd.Function):
    """The adjoint of the derivative applied to a seed; its own backward is the Hessian action."""

    @staticmethod
    def forward(operator: FEMOperator, seed: Tensor, *rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(operator._derivatives(seed, rows))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.operator, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *directions: Tensor) -> tuple[Any, ...]:
        seed, *rows = ctx.saved_tensors
        by_seed, by_rows = ctx.operator._second(seed, rows, directions)
        return None, by_seed, *by_rows


def _samples(rows: Sequence[Tensor]) -> Iterator[list[np.ndarray]]:
    arrays = [x.detach().numpy() for x in rows]
    for i in range(len(arrays[0])):
        yield [a[i] for a in arrays]


def _listed(results: Any) -> list[Any]:
    return list(results) if isinstance(results, list | tuple) else [results]


def _check_tape(functional: Any, controls: Sequence[Slot]) -> None:
    """Every control is used on the tape, and no mesh on it is distributed."""
    used = {id(functional.functional.block_variable)}
    for block in functional.tape.get_blocks():
        for variable in block.get_dependencies():
            used.add(id(variable))
            if isinstance(variable.output, Function | Cofunction):
                require_serial(mesh_of(variable.output.function_space()), "fem_operator")
    for slot, control in zip(controls, functional.controls, strict=True):
        if id(control.block_variable) not in used:
            hint = (
                "Was annotation on, is it the object that the problem was written with, and was "
                "the ReducedFunctional made while its tape was the working tape?"
            )
            if slot.kind is Constant:
                hint = (
                    "Firedrake does not record Constants in forms: use a Function of "
                    'FunctionSpace(mesh, "R", 0) instead.'
                )
            raise ValueError(
                f"{slot.describe()} does not occur on the tape, so its gradient would be zero. "
                f"{hint}"
            )
