"""Gradients through a converged load step, for pyadjoint's tape and for torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import firedrake as fd
import numpy as np
import torch
from firedrake.adjoint_utils.checkpointing import maybe_disk_checkpoint
from pyadjoint import Block, get_working_tape, stop_annotating
from torch import Tensor

from fe_ol.macro.result import Step
from fe_ol.macro.steps import LoadControl
from spon.fem import mesh_of
from spon.fem.external_symbols import tensor_of_weights

__all__ = ["record", "torch_solution"]


def record(problem: Any, steps: list[Step]) -> None:
    """Put the displacements of steps on the tape.

    Parameters
    ----------
    problem : MacroProblem
        The functions in its loads, its conditions and ``parameters.function`` are the inputs.
    steps : list of Step
        Their displacements are the outputs, each a function of the inputs alone: in a body without
        history equilibrium does not depend on how it was reached.
    """
    for step in steps:
        block = _StepBlock(problem, step.factor)
        get_working_tape().add_block(block)
        block.add_output(step.displacement.create_block_variable())


class _StepBlock(Block):
    """Equilibrium at a load factor."""

    def __init__(self, problem: Any, factor: float) -> None:
        super().__init__()
        self.problem, self.factor = problem, factor
        self.coefficients = problem.system.forces.coefficients
        self.bcs = problem.system.conditions.bcs
        self.parameters = problem.parameters.function if len(problem.parameters) else None
        others = [] if self.parameters is None else [self.parameters]
        for thing in (*self.coefficients, *others, *self.bcs, mesh_of(problem.space)):
            self.add_dependency(thing, no_duplicates=True)

    def __str__(self) -> str:
        return f"MacroProblem.solve at the load factor {self.factor:g}"

    def _saved(self, thing: Any) -> Any:
        variables = {id(v.output): v for v in self.get_dependencies()}
        return variables[id(thing)].saved_output

    @contextmanager
    def _loaded(self) -> Iterator[Any]:
        """The problem with the inputs of the tape; the materials are put back afterwards."""
        problem = self.problem
        kept = problem.parameters.weights()
        with stop_annotating(), problem.elsewhere():
            problem.system.conditions.load([self._saved(bc) for bc in self.bcs])
            problem.system.forces.load({f: self._saved(f) for f in self.coefficients})
            if self.parameters is not None:
                weights = tensor_of_weights(self._saved(self.parameters))
                problem.parameters.set_weights(weights)
            problem.reset()
            problem.system.set(self._solution())
            try:
                yield problem
            finally:
                if self.parameters is not None:
                    problem.parameters.set_weights(kept)

    def _solution(self) -> np.ndarray:
        saved = self.get_outputs()[0].saved_output
        return np.array(saved.dat.data_ro).reshape(-1)

    def recompute_component(self, inputs: Any, block_variable: Any, idx: int, prepared: Any) -> Any:
        """Equilibrium again: from the last one, or from rest where that is too far."""
        with self._loaded() as problem:
            _equilibrium(problem, self.factor)
            return maybe_disk_checkpoint(problem.system.function(problem.system.values()))

    def prepare_evaluate_adj(self, inputs: Any, adj_inputs: Any, relevant: Any) -> Any:
        """Solve the adjoint problem."""
        seed = np.array(adj_inputs[0].dat.data_ro).reshape(-1)
        wanted = any(v.output is self.parameters for _, v in relevant)
        with self._loaded() as problem:
            return _Adjoint(problem, self.factor, seed, self.parameters is not None and wanted)

    def evaluate_adj_component(
        self, inputs: Any, adj_inputs: Any, block_variable: Any, idx: int, prepared: Any = None
    ) -> Any:
        """Derivative by one input."""
        output, problem = block_variable.output, self.problem
        if isinstance(output, fd.MeshGeometry):
            raise NotImplementedError(
                "Derivatives by the mesh coordinates do not go through MacroProblem."
            )
        if self.parameters is not None and output is self.parameters:
            gradient = prepared.parameters.numpy().copy()
            return fd.Cofunction(self.parameters.function_space().dual(), val=gradient)
        for k, bc in enumerate(self.bcs):
            if output is bc:
                with stop_annotating():
                    values = problem.system.function(prepared.boundary[k])
                    return [bc.reconstruct(g=_part(values, bc.function_space()))]
        with self._loaded():
            adjoint = problem.system.function(prepared.state)
            return problem.system.forces.gradient(adjoint, output, self.factor)


class _Adjoint:
    """What is left of a derivative by the displacement, by everything that it depends on.

    Attributes
    ----------
    state : array, shape (dofs of this process,)
        Adjoint displacement: the derivative by the external forces.
    boundary : list of array
        Derivative by the values of each condition.
    parameters : Tensor, shape (count,)
    """

    def __init__(
        self, problem: Any, factor: float, seed: np.ndarray, with_parameters: bool
    ) -> None:
        system = problem.system
        system.evaluate(problem.points)
        while not problem.points.review(system.read_strains()):
            system.outdated()
            system.evaluate(problem.points)
        self.state = system.solve(seed, transposed=True)
        rest = seed - system.along(self.state, transposed=True)
        conditions = system.conditions
        self.boundary = [
            np.where(conditions.owner == k, conditions.weight(k, factor) * rest, 0.0)
            for k in range(len(conditions.bcs))
        ]
        self.parameters = torch.zeros(0, dtype=torch.float64)
        if with_parameters:
            slopes = system.slopes(system.function(self.state))
            force = -system.weights[:, None] * slopes
            strain = system.strains()
            self.parameters = problem.parameters.pull_back(problem.points, strain, force)


def _equilibrium(problem: Any, factor: float) -> None:
    """Solve from the present displacement, or step by step from rest."""
    if problem.newton.solve(factor).converged:
        return
    problem.reset()
    control = LoadControl(
        problem.system, problem.points, problem.newton, problem.course.max_cutbacks
    )
    control.advance(factor, [])


def torch_solution(problem: Any, displacement: Any, factor: float) -> Tensor:
    """The displacement as a tensor that remembers the parameters it depends on.

    Parameters
    ----------
    problem : MacroProblem
        On one process.
    displacement : Function
        Equilibrium at `factor`, for the present loads and conditions.
    factor : float

    Returns
    -------
    Tensor, shape (V.dim(),)
    """
    values = torch.from_numpy(np.array(displacement.dat.data_ro).reshape(-1))
    result: Tensor = _Solution.apply(problem, factor, values, *problem.parameters.tensors)
    return result


class _Solution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: Any, factor: float, values: Tensor, *tensors: Tensor) -> Tensor:
        ctx.problem, ctx.factor = problem, factor
        ctx.given = (problem.system.conditions.snapshot(), problem.system.forces.snapshot())
        ctx.save_for_backward(values, *tensors)
        return values.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, seed: Tensor) -> tuple[Any, ...]:
        # torch refuses here if a parameter was changed since: nothing has to be put back.
        values, *tensors = ctx.saved_tensors
        problem = ctx.problem
        system = problem.system
        with stop_annotating(), problem.elsewhere():
            system.conditions.restore(ctx.given[0])
            system.forces.restore(ctx.given[1])
            problem.reset()
            system.set(values.numpy())
            adjoint = _Adjoint(problem, ctx.factor, seed.double().numpy().copy(), bool(tensors))
        return None, None, None, *problem.parameters.split(adjoint.parameters)


def _part(f: Any, space: Any) -> Any:
    """The component of a function that a (sub)space of its space refers to."""
    if space.component is not None:
        return f.sub(space.component)
    return f
