"""The values that a form's coefficients have at one time."""

from __future__ import annotations

from typing import Any

import numpy as np
from tsfc.ufl_utils import extract_firedrake_constants
from ufl.algorithms import extract_coefficients

__all__ = ["Snapshot"]


class Snapshot:
    """Copies of the coefficients, constants and coordinates of a form.

    A form and its derivatives, which are built when they are first needed, must see the same
    values; a change of a coefficient between a forward and a backward pass must not be seen.

    Parameters
    ----------
    form : ufl.Form
    inputs : sequence of Function
        What varies; these are not copied.
    """

    def __init__(self, form: Any, inputs: Any) -> None:
        self._copies: dict[int, tuple[np.ndarray, Any]] = {}
        varying = set(inputs)
        meshes = [mesh for domain in form.ufl_domains() for mesh in domain.meshes]
        for f in (*extract_coefficients(form), *(mesh.coordinates for mesh in meshes)):
            if f not in varying:
                for part in f.subfunctions:
                    self.array(part.dat)
        for constant in extract_firedrake_constants(form):
            self.array(constant.dat)

    def array(self, data: Any) -> np.ndarray:
        """The copy of the values behind a PyOP2 object; one that is new is copied now."""
        address = data._data.ctypes.data
        if address not in self._copies:
            # The object is kept: its address must not be given to another one.
            self._copies[address] = data._data.copy(), data
        return self._copies[address][0]
