"""Callbacks of PETSc objects, kept alive."""

from __future__ import annotations

from typing import Any

__all__ = ["attributes_of"]


def attributes_of(petsc: Any) -> dict[str, Any]:
    """The dictionary in which petsc4py stores the callbacks of a PETSc object.

    Whoever sets callbacks should hold it for as long as the object is used. petsc4py tells Python's
    cyclic garbage collector that every Python object which stands for one PETSc object owns this
    dictionary. A callback is given such an object of its own. If that becomes garbage in a cycle,
    as in the traceback of an exception which a local variable refers to, the collector may take the
    dictionary for garbage too and empty it; the next call follows a pointer to freed memory. It
    does not so if somebody else holds the dictionary.

    Parameters
    ----------
    petsc : PETSc.Object
        After its first callback is set.

    Returns
    -------
    dict
    """
    attributes: dict[str, Any] = petsc.getDict()
    return attributes
