"""A problem that Firedrake solves: which functions go in, which come out, and what to call."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import firedrake as fd
import numpy as np
from firedrake.petsc import PETSc

from spon.fem.spaces import mesh_of, require_serial, signature, to_tensor
from spon.signature import SpaceSignature

__all__ = ["SOLVE_FAILURES", "Problem", "fill"]

# What a solver raises when this sample, and not the script, is at fault.
SOLVE_FAILURES = (fd.ConvergenceError, PETSc.Error, ArithmeticError)


class Problem:
    """A map from input functions to output functions, evaluated by a Firedrake solver.

    Parameters
    ----------
    inputs : mapping of str to Function
        The functions that vary from sample to sample, in the order of the network's inputs.
    outputs : mapping of str to Function
        The functions that `solve` overwrites.
    solve : callable
        Called without arguments, for example ``NonlinearVariationalSolver(...).solve``. Make the
        solver once; it is used for every sample. It may use the outputs as a first guess (see
        `initial`), but nothing else that an earlier sample left behind.
    boundary : Function, optional
        Values of essential boundary conditions that vary from sample to sample, in the space of an
        output. It may be one of the inputs.
    initial : mapping of str to Function, optional
        Outputs from which the solver starts, copied here and set before each solve; zero by
        default, whatever the Functions hold: a solver that starts from the last solution would
        give results that depend on which samples came before.
    description : dict, optional
        JSON-able facts about the equations (parameters, boundary tags). Kept in the data set, and
        part of what tells one run of `spon.generate` from another: Firedrake cannot be asked what
        `solve` does.

    Raises
    ------
    TypeError
        If something is not a Firedrake Function, `solve` cannot be called, or `description` is not
        JSON-able.
    ValueError
        If there is no input or no output, a name is used twice or is no Python identifier, one
        function is input and output, or `boundary` lives in another space than the outputs.

    NotImplementedError
        If a mesh lives on more than one process.

    Examples
    --------
    >>> problem = Problem({"f": f}, {"u": u}, solve=solver.solve)      # doctest: +SKIP
    """

    def __init__(
        self,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
        solve: Callable[[], Any],
        boundary: Any | None = None,
        initial: Mapping[str, Any] | None = None,
        description: Mapping[str, Any] | None = None,
    ) -> None:
        self.inputs = _functions(inputs, "inputs")
        self.outputs = _functions(outputs, "outputs")
        self.require_serial()
        if not callable(solve):
            raise TypeError(
                "solve must be callable without arguments, like LinearVariationalSolver(...).solve;"
                f" got {type(solve).__name__}."
            )
        self.solve = solve
        shared = self.inputs.keys() & self.outputs.keys()
        if shared:
            raise ValueError(f"The names {sorted(shared)} are used for an input and an output.")
        if boundary is not None and self.inputs.get("boundary", boundary) is not boundary:
            raise ValueError(
                "The input called 'boundary' is not the Function given as boundary: samplers could "
                "not tell them apart. Give the input another name."
            )
        for name, f in self.inputs.items():
            if any(f is u for u in self.outputs.values()):
                raise ValueError(
                    f"The input {name!r} is also an output: solving would overwrite it. Use two "
                    "Functions."
                )
        self.boundary = self._checked_boundary(boundary)
        self.description = dict(description or {})
        try:
            json.dumps(self.description)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"description must hold numbers, strings, lists and dicts only: {error}"
            ) from error
        self.initial = self._checked_initial(initial or {})

    def __repr__(self) -> str:
        return f"Problem({', '.join(self.inputs)} -> {', '.join(self.outputs)})"

    def _checked_boundary(self, boundary: Any | None) -> Any | None:
        if boundary is None:
            return None
        if not isinstance(boundary, fd.Function):
            raise TypeError(f"boundary must be a Function, got {type(boundary).__name__}.")
        spaces = [u.function_space() for u in self.outputs.values()]
        if boundary.function_space() not in spaces:
            raise ValueError(
                f"boundary lives in {signature(boundary.function_space()).describe()}, but must "
                "live in the space of an output: "
                + "; ".join(signature(V).describe() for V in spaces)
            )
        if any(boundary is u for u in self.outputs.values()):
            raise ValueError("boundary must be another Function than the outputs.")
        return boundary

    def _checked_initial(self, initial: Mapping[str, Any]) -> dict[str, np.ndarray]:
        for name, f in _functions(initial, "initial").items() if initial else ():
            if name not in self.outputs:
                raise ValueError(
                    f"initial names {name!r}, but the outputs are {list(self.outputs)}."
                )
            wanted, found = self.outputs[name].function_space(), f.function_space()
            if found != wanted:
                raise ValueError(
                    f"initial[{name!r}] lives in {signature(found).describe()}, the output in "
                    f"{signature(wanted).describe()}."
                )
        return {
            name: to_tensor(initial[name]).numpy() if name in initial else np.zeros(_dim(u))
            for name, u in self.outputs.items()
        }

    def describe(self) -> dict[str, Any]:
        """What is known of the problem, as JSON-able values."""
        started = {k: x for k, x in self.initial.items() if x.any()}
        hashes = {k: hashlib.sha256(x.tobytes()).hexdigest()[:16] for k, x in started.items()}
        signatures = self.signatures()
        return {
            "inputs": {k: signatures[k].describe() for k in self.inputs},
            "outputs": {k: signatures[k].describe() for k in self.outputs},
            "boundary": self.boundary is not None,
            "initial": hashes,
            "problem": self.description,
        }

    def require_serial(self) -> None:
        """Refuse distributed meshes.

        Raises
        ------
        NotImplementedError
            If a mesh of the problem lives on more than one process.
        """
        for f in (*self.inputs.values(), *self.outputs.values()):
            require_serial(mesh_of(f.function_space()), "spon.generate")

    def spaces(self) -> dict[str, Any]:
        """The function space of each input and output, by name."""
        return {k: f.function_space() for k, f in (self.inputs | self.outputs).items()}

    def boundary_of(self) -> str | None:
        """The output whose space the boundary data have; None if there is none or several."""
        if self.boundary is None:
            return None
        V = self.boundary.function_space()
        names = [name for name, u in self.outputs.items() if u.function_space() == V]
        return names[0] if len(names) == 1 else None

    def signatures(self) -> dict[str, SpaceSignature]:
        """The signature of each input's and output's space, by name."""
        return {name: signature(V) for name, V in self.spaces().items()}

    def reset(self) -> None:
        """Set the outputs to what the solver starts from."""
        for name, u in self.outputs.items():
            fill(u, self.initial[name])

    def run(self) -> dict[str, np.ndarray]:
        """Solve for the present inputs.

        Returns
        -------
        dict of str to array
            Coefficients, each of shape (dim,): ``inputs.NAME``, ``outputs.NAME`` and, if there is
            boundary data, ``boundary``.

        Raises
        ------
        ArithmeticError
            If an input or an output holds NaN or infinity.
        """
        self.reset()
        arrays = {f"inputs.{k}": to_tensor(f).numpy() for k, f in self.inputs.items()}
        if self.boundary is not None:
            arrays["boundary"] = to_tensor(self.boundary).numpy()
        _require_finite(arrays, "before the solve")
        self.solve()
        results = {f"outputs.{k}": to_tensor(u).numpy() for k, u in self.outputs.items()}
        _require_finite(results, "after the solve")
        return arrays | results


def fill(function: Any, values: np.ndarray) -> None:
    """Overwrite the coefficients of a function.

    Parameters
    ----------
    function : Function
        On a serial mesh.
    values : array, shape (dim,)
        In the dof order of the space.
    """
    start = 0
    for part in function.subfunctions:
        target = part.dat.data_wo
        target[...] = values[start : start + target.size].reshape(target.shape)
        start += target.size


def _dim(f: Any) -> int:
    return int(f.function_space().dim())


def _functions(functions: Mapping[str, Any], what: str) -> dict[str, Any]:
    if not isinstance(functions, Mapping):
        raise TypeError(
            f"{what} must map names to Functions, like {{'f': f}}; got {type(functions).__name__}."
        )
    if not functions:
        raise ValueError(f"{what} is empty: name at least one Function.")
    for name, f in functions.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"{what}: {name!r} is no name; use a Python identifier.")
        if not isinstance(f, fd.Function):
            raise TypeError(
                f"{what}[{name!r}] must be a Firedrake Function, got {type(f).__name__}."
            )
    return dict(functions)


def _require_finite(arrays: Mapping[str, np.ndarray], when: str) -> None:
    for name, values in arrays.items():
        bad = int((~np.isfinite(values)).sum())
        if bad:
            raise ArithmeticError(
                f"{bad} of {values.size} coefficients of {name} are NaN or infinite {when}"
            )
