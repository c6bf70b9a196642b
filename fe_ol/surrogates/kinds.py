"""All kinds of surrogates, and the one that a file holds."""

from __future__ import annotations

import os
from typing import Any

from fe_ol.surrogates import store
from fe_ol.surrogates.base import Surrogate
from fe_ol.surrogates.blackbox import BlackBox
from fe_ol.surrogates.equino import EquiNO
from fe_ol.surrogates.field_network import FieldNetwork
from fe_ol.surrogates.interpolation import Interpolation
from fe_ol.surrogates.reduced_solve import ReducedSolve
from fe_ol.surrogates.vpionet import VPIONet

__all__ = ["KINDS", "load"]

KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (EquiNO, ReducedSolve, Interpolation, BlackBox, VPIONet, FieldNetwork)
}


def load(path: str | os.PathLike[str], rve: Any | None = None) -> Surrogate:
    """Read a surrogate of any kind.

    Parameters
    ----------
    path : path
        What the ``save`` of a surrogate wrote.
    rve : RVE, optional
        Checked to be the one of the file. Needed where a law is not one of fe_ol's.

    Returns
    -------
    Surrogate
        Of the class that was saved.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds something else, or was made for another RVE; the message says what differs.
    """
    name = store.kind_of(path)
    if name not in KINDS:
        raise ValueError(
            f"{os.fspath(path)!r} holds a surrogate of the kind {name!r}, this fe_ol knows "
            f"{sorted(KINDS)}: update fe_ol."
        )
    found: Surrogate = KINDS[name].load(path, rve)
    return found
