"""The samples of a batch spread over the processes of an ensemble."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import firedrake as fd
import torch
from torch import Tensor

from spon.fem.factor import SingularMatrixError

__all__ = ["Share"]


class Share:
    """Each process computes some of the rows, and all get all of them.

    All processes call with the same batch. What goes wrong on one process is raised on all, so
    that none waits for another.

    Parameters
    ----------
    ensemble : firedrake.Ensemble
        With one process a member: ``Ensemble(COMM_WORLD, 1)``.

    Raises
    ------
    TypeError
        If it is no ensemble.
    """

    def __init__(self, ensemble: Any) -> None:
        if not isinstance(ensemble, fd.Ensemble):
            raise TypeError(
                f"Expected a Firedrake Ensemble, got {type(ensemble).__name__}: "
                "Ensemble(COMM_WORLD, 1), with the mesh made on its comm."
            )
        self._comm = ensemble.ensemble_comm

    def rows(
        self, batch: int, compute: Callable[[slice], tuple[Tensor, Any]]
    ) -> tuple[Tensor, list[Any]]:
        """Compute rows together.

        Parameters
        ----------
        batch : int
            Number of rows.
        compute : callable
            From the rows of this process to their values, of shape (rows, dim), and something
            else that can be pickled.

        Returns
        -------
        values : Tensor, shape (batch, dim)
        others : list
            The something else of each process, in the order of the rows.
        """
        rank, size = self._comm.rank, self._comm.size
        part = slice(batch * rank // size, batch * (rank + 1) // size)
        values: Any = None
        other: Any = None
        error: Any = None
        try:
            tensor, other = compute(part)
            values = tensor.numpy()
        except SingularMatrixError as failure:
            error = "singular", failure.size, [part.start + i for i in failure.samples]
        except (fd.ConvergenceError, ArithmeticError, ValueError) as failure:
            error = "other", 0, f"In samples {part.start} to {part.stop - 1}: {failure}"
        everything = self._comm.allgather((values, other, error))
        _raise([failure for _, _, failure in everything if failure is not None], batch)
        return (
            torch.cat([torch.from_numpy(rows) for rows, _, _ in everything]),
            [other for _, other, _ in everything],
        )


def _raise(failures: list[Any], batch: int) -> None:
    if not failures:
        return
    kind, size, what = failures[0]
    if kind == "singular":
        samples = [i for name, _, found in failures if name == kind for i in found]
        raise SingularMatrixError(size, samples, batch)
    raise fd.ConvergenceError(what)
