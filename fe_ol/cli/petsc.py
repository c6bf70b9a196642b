"""PETSc reads every command line; this one is not for it."""

from __future__ import annotations

import sys

from petsc4py import PETSc

__all__ = ["keep_command_line_from_petsc"]


def keep_command_line_from_petsc() -> None:
    """Take the words of the command line out of PETSc's options.

    It would act on those that it happens to know, and warn of the others at the end.
    """
    options = PETSc.Options()
    for word in sys.argv[1:]:
        if word.startswith("-") and options.hasName(word):
            options.delValue(word)
