"""Blocks of the pyadjoint tape for forms with external operators.

Their inputs are the coefficients of the form and of the operands, the weights of the operators, and
for a solve the boundary values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from firedrake import Cofunction, Function, MeshGeometry, action, derivative
from firedrake.adjoint_utils.checkpointing import maybe_disk_checkpoint
from pyadjoint import Block, stop_annotating
from torch import Tensor

from spon.fem.external_calculus import Calculus, Directions, directional, push_forward
from spon.fem.external_symbols import Symbol, tensor_of_weights
from spon.fem.external_workspace import Assembled, Workspace, copy_values

__all__ = ["AssembleBlock", "SolveBlock"]


class _Block(Block):
    """What both blocks share: the inputs and their order."""

    def __init__(self, workspace: Workspace) -> None:
        super().__init__()
        self.workspace = workspace
        self.weights = workspace.weight_functions()
        for c in workspace.coefficients:
            self.add_dependency(c, no_duplicates=True)
        for f in self.weights.values():
            self.add_dependency(f, no_duplicates=True)
        for mesh in workspace.forms[0].ufl_domains():
            if isinstance(mesh, MeshGeometry):
                self.add_dependency(mesh, no_duplicates=True)

    def _saved(self, things: Sequence[Any]) -> list[Any]:
        variables = {id(v.output): v for v in self.get_dependencies()}
        return [variables[id(thing)] for thing in things]

    def load(self) -> None:
        """Take the inputs from the tape."""
        coefficients = self.workspace.coefficients
        weights = self._saved(list(self.weights.values()))
        self.workspace.load(
            {
                c: v.saved_output
                for c, v in zip(coefficients, self._saved(coefficients), strict=True)
            },
            {s: v.saved_output for s, v in zip(self.weights, weights, strict=True)},
        )

    def directions(self) -> Directions:
        """The tangent linear values of the inputs."""
        coefficients = self.workspace.coefficients
        weights = self._saved(list(self.weights.values()))
        return Directions(
            {
                c: v.tlm_value
                for c, v in zip(coefficients, self._saved(coefficients), strict=True)
                if v.tlm_value is not None and self._moves(c)
            },
            {
                s: tensor_of_weights(v.tlm_value)
                for s, v in zip(self.weights, weights, strict=True)
                if v.tlm_value is not None
            },
        )

    def _moves(self, c: Any) -> bool:
        return True

    def operator_of(self, output: Any) -> Symbol | None:
        """The operator whose weights an input is."""
        return next((s for s, f in self.weights.items() if f is output), None)

    def as_weights(self, gradient: Tensor, output: Any) -> Cofunction:
        """A derivative by the weights as a Cofunction."""
        return Cofunction(output.function_space().dual(), val=gradient.numpy().copy())


def _refuse_mesh(output: Any) -> None:
    if isinstance(output, MeshGeometry):
        raise NotImplementedError(
            "Derivatives by the mesh coordinates do not go through external operators."
        )


class AssembleBlock(_Block):
    """Assembly of a number or a load vector.

    Parameters
    ----------
    workspace : Workspace
        Of the form.
    """

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(workspace)
        self.form = workspace.forms[0]
        arguments = self.form.arguments()
        self._assembled = Assembled(workspace, self.form)
        self._seed = Function(arguments[0].function_space()) if arguments else None
        scalar = action(self.form, self._seed) if arguments else self.form
        self._calculus = Calculus(workspace, scalar)

    def evaluate(self) -> Any:
        """The assembled form at what is loaded."""
        return self._assembled()

    def __str__(self) -> str:
        return "assemble(form with external operators)"

    def recompute_component(self, inputs: Any, block_variable: Any, idx: int, prepared: Any) -> Any:
        """Assemble again."""
        self.load()
        value = self.evaluate()
        return value if self._seed is None else maybe_disk_checkpoint(value)

    def _prepare(self, seed: Any) -> float:
        self.load()
        if self._seed is None:
            return float(seed)
        copy_values(seed, self._seed)
        return 1.0

    def prepare_evaluate_adj(self, inputs: Any, adj_inputs: Any, relevant: Any) -> Any:
        """Load the inputs and the seed."""
        return self._prepare(adj_inputs[0])

    def evaluate_adj_component(
        self, inputs: Any, adj_inputs: Any, block_variable: Any, idx: int, prepared: Any = None
    ) -> Any:
        """Derivative of ``seed . form`` by one input."""
        output = block_variable.output
        _refuse_mesh(output)
        return _times(prepared, self._gradient(output))

    def _gradient(self, output: Any) -> Any:
        operator = self.operator_of(output)
        if operator is None:
            return self._calculus.gradient(output)
        return self.as_weights(self._calculus.weight_gradient(operator), output)

    def prepare_evaluate_tlm(self, inputs: Any, tlm_inputs: Any, relevant: Any) -> Any:
        """Load the inputs."""
        self.load()

    def evaluate_tlm_component(
        self, inputs: Any, tlm_inputs: Any, block_variable: Any, idx: int, prepared: Any = None
    ) -> Any:
        """Derivative of the form along the directions of the inputs."""
        return _assembled_directional(self.workspace, self.form, self.directions())

    def prepare_evaluate_hessian(
        self, inputs: Any, hessian_inputs: Any, adj_inputs: Any, relevant: Any
    ) -> Any:
        """Load the inputs; the seeds follow for each component."""
        return self.directions()

    def evaluate_hessian_component(
        self,
        inputs: Any,
        hessian_inputs: Any,
        adj_inputs: Any,
        block_variable: Any,
        idx: int,
        relevant_dependencies: Any,
        prepared: Any = None,
    ) -> Any:
        """Second-order adjoint by one input."""
        output, to = block_variable.output, prepared
        _refuse_mesh(output)
        operator = self.operator_of(output)
        total = None
        if hessian_inputs[0] is not None:
            total = _times(self._prepare(hessian_inputs[0]), self._gradient(output))
        if adj_inputs[0] is None:
            return total
        factor = self._prepare(adj_inputs[0])
        if operator is None:
            second = self._calculus.second(output, to)
        else:
            second = self.as_weights(self._calculus.weight_second(operator, to), output)
        return _sum(total, _times(factor, second))


class SolveBlock(_Block):
    """A solve.

    Parameters
    ----------
    solver : ExternalSolver
    """

    def __init__(self, solver: Any) -> None:
        super().__init__(solver.workspace)
        self.solver = solver
        for bc in solver.bcs:
            self.add_dependency(bc, no_duplicates=True)

    def __str__(self) -> str:
        return "solve(form with external operators)"

    def load(self) -> None:
        """Take the inputs from the tape."""
        super().load()
        self.solver.load_conditions([v.saved_output for v in self._saved(self.solver.bcs)])

    def _load_solution(self) -> None:
        self.load()
        copy_values(self.get_outputs()[0].saved_output, self.solver.x)
        self.workspace.touch()

    def _moves(self, c: Any) -> bool:
        return c is not self.solver.u  # as an input it is the initial guess

    def recompute_component(self, inputs: Any, block_variable: Any, idx: int, prepared: Any) -> Any:
        """Solve again, from the same initial guess."""
        self.load()
        self.solver.run()
        return maybe_disk_checkpoint(self.solver.x.copy(deepcopy=True))

    def prepare_evaluate_adj(self, inputs: Any, adj_inputs: Any, relevant: Any) -> Any:
        """Solve the adjoint problem."""
        self._load_solution()
        solver = self.solver
        solver.solve_adjoint(adj_inputs[0], solver.adjoint_state)
        self.adj_state = solver.adjoint_state.copy(deepcopy=True)
        return adj_inputs[0]

    def evaluate_adj_component(
        self, inputs: Any, adj_inputs: Any, block_variable: Any, idx: int, prepared: Any = None
    ) -> Any:
        """Minus the derivative of F(lambda) by one input."""
        output = block_variable.output
        _refuse_mesh(output)
        if output is self.solver.u:
            return None
        if any(output is bc for bc in self.solver.bcs):
            return [self._boundary(output, prepared, self.solver.calculus)]
        operator = self.operator_of(output)
        if operator is None:
            return _times(-1.0, self.solver.calculus.gradient(output))
        return self.as_weights(-self.solver.calculus.weight_gradient(operator), output)

    def _boundary(self, bc: Any, load: Any, calculus: Calculus) -> Any:
        """What is left of a load by the boundary values of a condition."""
        rest = load.copy(deepcopy=True)
        through = calculus.gradient(self.solver.u)
        if through is not None:
            rest -= through
        values = rest.riesz_representation("l2")
        return bc.reconstruct(g=_part(values, bc.function_space()))

    def prepare_evaluate_tlm(self, inputs: Any, tlm_inputs: Any, relevant: Any) -> Any:
        """Load the solution."""
        self._load_solution()

    def evaluate_tlm_component(
        self, inputs: Any, tlm_inputs: Any, block_variable: Any, idx: int, prepared: Any = None
    ) -> Any:
        """Solve the linearised problem."""
        solver = self.solver
        load = _assembled_directional(self.workspace, solver.form, self.directions())
        if load is None:
            load = Cofunction(solver.u.function_space().dual())
        load *= -1.0
        result = Function(solver.u.function_space())
        solver.solve_tangent(load, result, [v.tlm_value for v in self._saved(solver.bcs)])
        return result

    def prepare_evaluate_hessian(
        self, inputs: Any, hessian_inputs: Any, adj_inputs: Any, relevant: Any
    ) -> Any:
        """Solve the second-order adjoint problem."""
        self._load_solution()
        solver, output = self.solver, self.get_outputs()[0]
        to = self.directions()
        if output.tlm_value is not None:
            to.coefficients[solver.u] = output.tlm_value
        load = hessian_inputs[0].copy(deepcopy=True)
        known = self.adj_state is not None  # nothing came from above in the adjoint run otherwise
        if known:
            copy_values(self.adj_state, solver.adjoint_state)
            through = solver.calculus.second(solver.u, to)
            if through is not None:
                load -= through
        solver.solve_adjoint(load, solver.second_state)
        return load, to, known

    def evaluate_hessian_component(
        self,
        inputs: Any,
        hessian_inputs: Any,
        adj_inputs: Any,
        block_variable: Any,
        idx: int,
        relevant_dependencies: Any,
        prepared: Any = None,
    ) -> Any:
        """Second-order adjoint by one input."""
        output = block_variable.output
        load, to, known = prepared
        _refuse_mesh(output)
        solver = self.solver
        if output is solver.u:
            return None
        if any(output is bc for bc in solver.bcs):
            return [self._boundary(output, load, solver.second_calculus)]
        operator = self.operator_of(output)
        if operator is None:
            total = solver.second_calculus.gradient(output)
            if known:
                total = _sum(total, solver.calculus.second(output, to))
            return _times(-1.0, total)
        gradient = solver.second_calculus.weight_gradient(operator)
        if known:
            gradient = gradient + solver.calculus.weight_second(operator, to)
        return self.as_weights(-gradient, output)


def _assembled_directional(workspace: Workspace, form: Any, to: Directions) -> Any:
    """Derivative of an assembled form along directions; None if it is zero."""
    total, moving = directional(workspace, form, to)
    for s in workspace.frozen:
        total = total + derivative(form, workspace.data(s), push_forward(workspace, s, to))
    assembled = Assembled(workspace, total)
    to.fill(workspace, moving)
    return assembled()


def _part(f: Any, space: Any) -> Any:
    """The component of a function that a (sub)space of its space refers to."""
    if space.index is not None:
        return f.sub(space.index)
    if space.component is not None:
        return _part(f, space.parent).sub(space.component)
    return f


def _times(factor: float, value: Any) -> Any:
    if value is not None and factor != 1.0:
        with stop_annotating():
            value *= factor
    return value


def _sum(a: Any, b: Any) -> Any:
    if a is None or b is None:
        return a if b is None else b
    with stop_annotating():
        a += b
    return a
