"""Compiled kernels that several processes share: one of them decides which file is loaded."""

from __future__ import annotations

from typing import Any

from mpi4py import MPI
from pyop2 import compilation, mpi

__all__ = ["agree_on_kernels"]


def agree_on_kernels() -> None:
    """Let the first process of a communicator look for a compiled kernel for all of them.

    PyOP2 looks for the file of a kernel on every process, and where it is missing the first process
    compiles it and tells the others its name. A process that looks late finds the file that was
    compiled meanwhile (by the first one, or by another run with the same cache), and does not
    listen. What it hears at the next kernel is then the name of this one: two kernels that have the
    same name in their files, as most forms' have, are exchanged without a word
    (https://github.com/firedrakeproject/firedrake/issues/4039).
    """
    original = compilation.make_so
    if getattr(original, "__module__", "") == __name__:
        return

    def together(compiler: Any, code: str, extension: str, comm: Any) -> Any:
        if comm.size == 1:
            return original(compiler, code, extension, comm)
        return mpi.safe_noncollective(
            comm, lambda: original(compiler, code, extension, MPI.COMM_SELF), root=0
        )

    compilation.make_so = together
