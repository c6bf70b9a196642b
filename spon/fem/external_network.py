"""Operators whose derivative is no UFL form: networks between spaces, and laws at nodes.

Their Jacobian is the product of a sparse matrix, the derivative of the residual by the values of
the operator, and of the operator's own derivative, which is dense for a network. Neither the
product nor the dense factor is ever made: Newton's method is matrix-free, with torch's forward and
backward mode as the dense factor and its transpose, preconditioned by the sparse rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import petsctools
import torch
from firedrake import (
    Cofunction,
    ConvergenceError,
    Function,
    TrialFunction,
    derivative,
)
from firedrake.petsc import PETSc
from pyadjoint import stop_annotating
from torch import Tensor, nn
from torch.func import functional_call

from spon.fem.callbacks import attributes_of
from spon.fem.external_calculus import Directions, pull_back, push_forward
from spon.fem.external_torch import pullback, tangent, trainable
from spon.fem.external_workspace import Assembled, Workspace, copy_values
from spon.fem.spaces import name_of, to_function, to_tensor

__all__ = ["NetworkLaw", "NewtonKrylov"]


class NetworkLaw:
    """A torch operator between coefficient vectors, with its derivatives.

    Parameters
    ----------
    function : callable or torch.nn.Module
        Takes one tensor (batch, V.dim()) for each operand and returns (batch, U.dim()), float64.
    space : FunctionSpace
        The U of the result.
    """

    def __init__(self, function: Callable[..., Tensor], space: Any) -> None:
        self.function, self.space = function, space
        self.parameters = trainable(function)

    @property
    def weight_count(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.parameters.values())

    def weights(self) -> Tensor:
        """A copy of the weights, shape (n_weights,)."""
        return torch.cat([p.detach().reshape(-1) for p in self.parameters.values()]).cpu().clone()

    def set_weights(self, weights: Tensor) -> None:
        """Write weights into the parameters of the module."""
        with torch.no_grad():
            for name, part in self._named(weights).items():
                self.parameters[name].copy_(part)

    def evaluate(self, weights: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """The dofs of the result, shape (U.dim(),)."""
        with torch.no_grad():
            y = self._call(weights, *inputs)
        if not torch.isfinite(y).all():
            bad = int((~torch.isfinite(y)).sum())
            raise ValueError(
                f"The network returned NaN or infinity in {bad} of {len(y)} dofs of "
                f"{name_of(self.space)}."
            )
        return y

    def jvp(
        self,
        weights: Tensor,
        inputs: Sequence[Tensor],
        weights_dot: Tensor,
        dots: Sequence[Any],
    ) -> Tensor:
        """Derivative along a direction of weights and inputs (Functions, or None for zero)."""
        directions = [
            torch.zeros_like(x) if dot is None else to_tensor(dot)
            for x, dot in zip(inputs, dots, strict=True)
        ]
        return tangent(self._call, (weights, *inputs), (weights_dot, *directions)).detach()

    def weight_vjp(self, weights: Tensor, inputs: Sequence[Tensor], seed: Tensor) -> Tensor:
        """Derivative of ``seed . result`` by the weights, shape (n_weights,)."""
        _, pull = pullback(lambda w: self._call(w, *inputs), weights)
        gradient: Tensor = pull(seed)[0].detach()
        return gradient

    def pull_back(
        self,
        weights: Tensor,
        inputs: Sequence[Tensor],
        seed: Cofunction,
        operands: Sequence[Function],
        c: Function,
    ) -> Cofunction:
        """Derivative of ``seed . result`` by one operand, as a Cofunction."""
        _, pull = pullback(partial(self._call, weights), *inputs)
        total = torch.zeros(int(c.function_space().dim()), dtype=torch.float64)
        for f, gradient in zip(operands, pull(to_tensor(seed)), strict=True):
            if f == c:
                total += gradient.detach()
        return to_function(total, c.function_space().dual())

    def _named(self, weights: Tensor) -> dict[str, Tensor]:
        parts = weights.split([p.numel() for p in self.parameters.values()])
        return {
            name: part.reshape(p.shape).to(p.device)
            for (name, p), part in zip(self.parameters.items(), parts, strict=True)
        }

    def _call(self, weights: Tensor, *inputs: Tensor) -> Tensor:
        rows = tuple(x[None] for x in inputs)
        if isinstance(self.function, nn.Module):
            device = next((p.device for p in self.function.parameters()), torch.device("cpu"))
            rows = tuple(x.to(device) for x in rows)
            named = self._named(weights) if self.parameters else {}
            y = functional_call(self.function, named, rows)
        else:
            y = self.function(*rows)
        dim = int(self.space.dim())
        if not isinstance(y, Tensor) or tuple(y.shape) != (1, dim) or y.dtype != torch.float64:
            found = (
                f"a {y.dtype} tensor of shape {tuple(y.shape)}"
                if isinstance(y, Tensor)
                else f"a {type(y).__name__}"
            )
            raise ValueError(
                f"The operator returned {found} for inputs of shapes "
                f"{[tuple(x.shape) for x in rows]}, expected a float64 tensor of shape (1, {dim}): "
                f"one row of coefficients of {name_of(self.space)} for each sample."
            )
        return y[0].to(inputs[0].device)


class NewtonKrylov:
    """Newton's method with a Jacobian of which a part is applied by torch.

    Parameters
    ----------
    workspace : Workspace
    form : ufl.Form
        The residual, with Functions for the operators.
    u : Function
        The user's unknown.
    bcs : sequence of DirichletBC
    jacobian : ufl.Form
        The sparse part of the Jacobian.
    Jp : ufl.Form or None
        What the preconditioner is made of; the sparse part by default.
    parameters : dict
        PETSc options. GMRES, preconditioned by a factorisation of the sparse part, by default.
    guarded : callable
        Wraps what PETSc calls, to keep what is raised there.
    """

    def __init__(
        self,
        workspace: Workspace,
        form: Any,
        u: Function,
        bcs: Sequence[Any],
        jacobian: Any,
        Jp: Any,
        parameters: dict[str, Any],
        guarded: Callable[[Callable[..., None]], Callable[..., None]],
    ) -> None:
        self.workspace, self.u, self.bcs = workspace, u, list(bcs)
        self.x = workspace.copies[u]
        space = u.function_space()
        self._residual = Assembled(workspace, form)
        self._sparse = Assembled(workspace, jacobian, bcs=self.bcs, mat_type="aij")
        self._preconditioner = self._sparse
        if Jp is not None:
            self._preconditioner = Assembled(workspace, Jp, bcs=self.bcs, mat_type="aij")
        if self._preconditioner.zero:
            raise ValueError(
                "Without its operator networks the residual does not depend on the unknown, so "
                "there is nothing to precondition with: give a form Jp."
            )
        self._by_values = [
            Assembled(
                workspace,
                derivative(form, workspace.data(s), TrialFunction(s.space)),
                mat_type="aij",
            )
            for s in workspace.frozen
        ]
        self._in, self._out = Function(space), Cofunction(space.dual())
        self._load = Cofunction(space.dual())
        options = {
            "ksp_type": "gmres",
            "ksp_rtol": 1e-10,
            "pc_type": "lu",
            "pc_factor_mat_solver_type": "mumps",
            **parameters,
        }
        self._options = petsctools.OptionsManager(options, None)
        with self.x.dat.vec_ro as v:
            sizes, comm = v.getSizes(), v.comm
            self._solution, self._vector = v.duplicate(), v.duplicate()
        self._shell = PETSc.Mat().createPython((sizes, sizes), self, comm=comm)
        self._shell.setUp()
        self._update()
        self.snes = PETSc.SNES().create(comm)
        self.snes.setFunction(guarded(self._function), self._vector)
        self.snes.setJacobian(guarded(self._jacobian), self._shell, self._matrix)
        self._callbacks = attributes_of(self.snes)
        self._options.set_from_options(self.snes)

    def solve(self) -> None:
        """Solve from the present value of the unknown."""
        for bc in self.bcs:
            bc.apply(self.x)
        with self.x.dat.vec_ro as v:
            v.copy(self._solution)
        with self._options.inserted_options():
            self.snes.solve(None, self._solution)
        reason = self.snes.getConvergedReason()
        if reason < 0:
            raise ConvergenceError(
                f"Newton's method with the operator network did not converge after "
                f"{self.snes.getIterationNumber()} iterations (SNES reason {reason})."
            )
        self._take(self._solution)

    def solve_linear(self, load: Any, result: Function, moving: Sequence[bool]) -> None:
        """Solve with the Jacobian."""
        if any(moving):
            raise NotImplementedError(
                "Tangents by boundary values do not go through operator networks."
            )
        self._linear(load, result, transposed=False)

    def solve_transposed(self, load: Any, result: Function) -> None:
        """Solve with the transposed Jacobian."""
        self._linear(load, result, transposed=True)

    def _linear(self, load: Any, result: Function, transposed: bool) -> None:
        self._update()
        with stop_annotating():
            copy_values(load, self._load)
            for bc in self.bcs:
                bc.zero(self._load)
        ksp = self.snes.getKSP()
        ksp.setOperators(self._shell, self._matrix)
        with self._load.dat.vec_ro as b, self._options.inserted_options():
            (ksp.solveTranspose if transposed else ksp.solve)(b, self._solution)
        if ksp.getConvergedReason() < 0:
            raise ConvergenceError(
                "The linear solve with the operator network did not converge (KSP reason "
                f"{ksp.getConvergedReason()})."
            )
        with result.dat.vec_wo as v:
            self._solution.copy(v)

    def _take(self, x: Any) -> None:
        with self.x.dat.vec_wo as v:
            x.copy(v)
        self.workspace.touch()

    def _update(self) -> None:
        """Assemble the sparse factors at what is loaded."""
        sparse = self._sparse()
        self._sparse_matrix = None if sparse is None else sparse.petscmat
        same = self._preconditioner is self._sparse
        self._matrix = self._sparse_matrix if same else self._preconditioner().petscmat
        found = [(s, f()) for s, f in zip(self.workspace.frozen, self._by_values, strict=True)]
        self._factors = [(s, m.petscmat) for s, m in found if m is not None]

    def _function(self, snes: Any, x: Any, f: Any) -> None:
        self._take(x)
        residual = self._residual()
        for bc in self.bcs:
            bc.zero(residual)
        with residual.dat.vec_ro as v:
            v.copy(f)

    def _jacobian(self, snes: Any, x: Any, J: Any, P: Any) -> None:
        self._take(x)
        self._update()
        snes.getKSP().setOperators(J, self._matrix)

    # What PETSc asks of the shell.

    def mult(self, mat: Any, x: Any, y: Any) -> None:
        """``y = J x``."""
        if self._sparse_matrix is None:
            x.copy(y)
        else:
            self._sparse_matrix.mult(x, y)
        with self._in.dat.vec_wo as v:
            x.copy(v)
        for bc in self.bcs:
            bc.zero(self._in)
        for s, matrix in self._factors:
            if self.u not in s.operand_coefficients():
                continue
            values = push_forward(self.workspace, s, Directions({self.u: self._in}, {}))
            with values.dat.vec_ro as v, self._out.dat.vec_wo as w:
                matrix.mult(v, w)
            self._add(y)

    def multTranspose(self, mat: Any, x: Any, y: Any) -> None:
        """``y = J^T x``."""
        if self._sparse_matrix is None:
            x.copy(y)
        else:
            self._sparse_matrix.multTranspose(x, y)
        with self._in.dat.vec_wo as v:
            x.copy(v)
        for bc in self.bcs:
            bc.zero(self._in)
        for s, matrix in self._factors:
            if self.u not in s.operand_coefficients():
                continue
            seed = Cofunction(s.space.dual())
            with self._in.dat.vec_ro as v, seed.dat.vec_wo as w:
                matrix.multTranspose(v, w)
            copy_values(pull_back(self.workspace, s, seed, self.u), self._out)
            self._add(y)

    def _add(self, y: Any) -> None:
        for bc in self.bcs:
            bc.zero(self._out)
        with self._out.dat.vec_ro as w:
            y.axpy(1.0, w)
