"""Snapshots: RVE solutions for sampled macroscopic strains, the material modes are made of."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor
from tqdm import tqdm

from fe_ol.identity import STRETCHES, compare_identities, identity, joined_identities, varied
from fe_ol.sampling import sample_strains, sample_stretches
from fe_ol.voigt import rest_strain
from spon.fem.problem import SOLVE_FAILURES
from spon.history import replaced
from spon.parts import Parts, RunMismatchError

__all__ = ["Snapshots", "sample_strains"]

_log = logging.getLogger("fe_ol")
_FORMAT, _VERSION = "fe_ol snapshots", 1
_ARRAYS = ("strain", "fluctuation", "stress", "macro_stress")


@dataclass
class Snapshots:
    """RVE solutions.

    Attributes
    ----------
    strain : Tensor, shape (n, components)
        Macroscopic strains; deformation gradients at finite strain.
    fluctuation : Tensor, shape (n, dofs)
        Coefficients of the RVE's space.
    stress : Tensor, shape (n, points, components)
        At the quadrature points.
    macro_stress : Tensor, shape (n, components)
    radius : float
        Half the edge of the box of strains.
    method : str
    seed : int
    indices : list of int
        Which sample of the run each one is.
    failures : list of (int, str)
        The samples that could not be solved, with the solver's message.
    rve : dict
        What the RVE was: see `fe_ol.identity.identity`, and `joined_identities` for `joined` ones.
        Marked where the deformation gradients are right stretch tensors, as surrogates of them are.
    """

    strain: Tensor
    fluctuation: Tensor
    stress: Tensor
    macro_stress: Tensor
    radius: float
    method: str = "lhs"
    seed: int = 0
    indices: list[int] = field(default_factory=list)
    failures: list[tuple[int, str]] = field(default_factory=list)
    rve: dict[str, Any] = field(default_factory=dict)

    @property
    def stretches(self) -> bool:
        """Whether the deformation gradients are right stretch tensors, for `Objective`."""
        return bool(self.rve.get(STRETCHES, False))

    def __len__(self) -> int:
        return len(self.strain)

    def __getitem__(self, chosen: slice | Sequence[int] | Tensor) -> Snapshots:
        """The chosen samples, as snapshots of the same run."""
        rows = torch.arange(len(self))[chosen].tolist()
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values |= {name: values[name][rows] for name in _ARRAYS}
        return Snapshots(**(values | {"indices": [self.indices[i] for i in rows]}))

    def extended(
        self, strain: Tensor, fluctuation: Tensor, stress: Tensor, macro_stress: Tensor
    ) -> Snapshots:
        """These snapshots and further ones; the box grows to hold all of them.

        Parameters
        ----------
        strain : Tensor, shape (k, c)
        fluctuation : Tensor, shape (k, V.dim())
        stress : Tensor, shape (k, p, c)
        macro_stress : Tensor, shape (k, c)

        Returns
        -------
        Snapshots
        """
        added = (strain, fluctuation, stress, macro_stress)
        arrays = {
            name: torch.cat([getattr(self, name), x])
            for name, x in zip(_ARRAYS, added, strict=True)
        }
        finite = bool(self.rve.get("finite", False))
        reference = rest_strain(int(self.rve.get("dim", 2)), finite)
        reach = float((strain - reference).abs().max()) if len(strain) else 0.0
        first = max(self.indices, default=-1) + 1
        return Snapshots(
            **arrays,
            radius=max(self.radius, reach),
            method=self.method,
            seed=self.seed,
            indices=[*self.indices, *range(first, first + len(strain))],
            failures=self.failures,
            rve=self.rve,
        )

    def draw(self, n: int, seed: int) -> Tensor:
        """Further strains of the same box, stretches where these are.

        Parameters
        ----------
        n : int
        seed : int

        Returns
        -------
        Tensor, shape (n, c)
        """
        dim, finite = int(self.rve["dim"]), bool(self.rve["finite"])
        reference = rest_strain(dim, finite)
        return reference + _samples(n, dim, reference, self.radius, seed, "lhs", self.stretches)

    @classmethod
    def joined(cls, parts: Sequence[Snapshots]) -> Snapshots:
        """Snapshots of one RVE with several values of its laws' parameters.

        Fluctuations of all of them are periodic and their stresses in equilibrium, whatever the
        laws: modes of them serve for a range of the parameters.

        Parameters
        ----------
        parts : sequence of Snapshots
            In the same box, of RVEs that differ in numbers among the parameters of their laws.

        Returns
        -------
        Snapshots
            They remember the range of each parameter that varies. Surrogates that evaluate the laws
            (`ReducedSolve`, `EquiNO`) can be made of them, for an RVE whose parameters lie in it.

        Raises
        ------
        ValueError
            If the RVEs differ in something else, or the boxes.
        """
        rve = joined_identities([part.rve for part in parts])
        first, radii = parts[0], sorted({part.radius for part in parts})
        if len(radii) > 1:
            raise ValueError(f"Joined snapshots need one box of strains, got the radii {radii}.")
        if len({part.stretches for part in parts}) > 1:
            raise ValueError("Snapshots of stretches and of deformation gradients do not join.")
        arrays = {name: torch.cat([getattr(p, name) for p in parts]) for name in _ARRAYS}
        return cls(
            **arrays,
            radius=first.radius,
            method=first.method,
            seed=first.seed,
            indices=list(range(len(arrays["strain"]))),
            failures=[failure for part in parts for failure in part.failures],
            rve=rve,
        )

    @classmethod
    def sample(
        cls,
        rve: Any,
        n: int = 100,
        radius: float = 0.04,
        seed: int = 0,
        method: str = "lhs",
        path: str | os.PathLike[str] | None = None,
        progress: bool = True,
        comm: Any | None = None,
        stretches: bool = False,
    ) -> Snapshots:
        """Sample strains and solve the RVE for each of them.

        With a `path`, finished solutions lie in the folder ``path + ".parts"`` until all are done;
        starting again with the same arguments goes on from there, and a finished file is returned
        as it is. Every solve starts from zero, so that a sample does not depend on which others
        were solved before it.

        Parameters
        ----------
        rve : RVE
        n, radius, seed, method
            As `sample_strains` takes them; at finite strain the box is around the identity.
        path : path, optional
            The HDF5 file to make.
        progress : bool, optional
            Whether the first process shows a progress bar.
        comm : mpi4py communicator, optional
            Its processes share the solves; the RVE's mesh must live on ``COMM_SELF`` of each.
            Needs a `path`. One process by default.
        stretches : bool, optional
            At finite strain: sample right stretch tensors, symmetric ones, for a surrogate that
            `Objective` turns with the body.

        Returns
        -------
        Snapshots

        Raises
        ------
        ValueError
            If an argument is out of its range, or no sample could be solved.
        NotImplementedError
            If a law of the RVE has a history.
        spon.parts.RunMismatchError
            If the file or the folder belongs to another run.
        """
        if getattr(rve, "history", False):
            raise NotImplementedError(
                "This RVE has a law with history: its stress depends on the path, which snapshots "
                "of single strains do not know. Use the RVE itself as the material."
            )
        comm = MPI.COMM_SELF if comm is None else comm
        if comm.size > 1 and path is None:
            raise ValueError("Several processes share their solves through files: give a path.")
        reference = rest_strain(rve.dim, rve.finite)
        if stretches and not rve.finite:
            raise ValueError(
                "Stretches are of finite strain, the laws of this RVE are of small strains, which "
                "know no rotations: leave out stretches."
            )
        strain = reference + _samples(n, rve.dim, reference, radius, seed, method, stretches)
        known = identity(rve) | ({STRETCHES: True} if stretches else {})
        run = {"n": n, "radius": radius, "seed": seed, "method": method, "rve": known}
        if path is None:
            solved = {
                i: _solve(rve, strain[i]) for i in tqdm(range(n), "rve", disable=not progress)
            }
            return cls._assembled(solved, strain, run)
        path = Path(path)
        if path.exists():
            return cls._known(path, run)
        parts = Parts(path, run)
        _on_first(comm, parts.open)
        mine = range(comm.rank, n, comm.size)
        for i in tqdm(mine, "rve", disable=not progress or comm.rank > 0):
            if not parts.has(i):
                result = _solve(rve, strain[i])
                parts.write(i, {"failure": np.array(result)} if isinstance(result, str) else result)
        comm.Barrier()

        def collect() -> None:
            cls._assembled({i: parts.read(i) for i in range(n)}, strain, run).save(path)
            parts.remove()

        _on_first(comm, collect)
        return cls.load(path)

    @classmethod
    def _assembled(
        cls, solved: dict[int, dict[str, np.ndarray] | str], strain: Tensor, run: dict[str, Any]
    ) -> Snapshots:
        failures = [(i, r) for i, r in solved.items() if isinstance(r, str)]
        good = {i: r for i, r in solved.items() if not isinstance(r, str)}
        if not good:
            raise ValueError(
                f"None of the {len(solved)} RVE solves converged. The first one: {failures[0][1]}"
            )
        arrays = {
            name: torch.from_numpy(np.stack([r[name] for r in good.values()]))
            for name in _ARRAYS[1:]
        }
        return cls(
            strain=strain[list(good)],
            **arrays,
            radius=run["radius"],
            method=run["method"],
            seed=run["seed"],
            indices=list(good),
            failures=failures,
            rve=run["rve"],
        )

    @classmethod
    def _known(cls, path: Path, run: dict[str, Any]) -> Snapshots:
        found = cls.load(path)
        lines = [
            f"{key} is {getattr(found, key)}, not {run[key]}"
            for key in ("radius", "seed", "method")
            if getattr(found, key) != run[key]
        ]
        if found.stretches != run["rve"].get(STRETCHES, False):
            lines.append(f"stretches is {found.stretches}, not {not found.stretches}")
        if len(found) + len(found.failures) != run["n"]:
            lines.append(f"n is {len(found) + len(found.failures)}, not {run['n']}")
        lines += compare_identities(found.rve, run["rve"])
        if lines:
            raise RunMismatchError(
                f"{str(path)!r} holds other snapshots: {'; '.join(lines)}. Choose another path, or "
                "remove the file."
            )
        return found

    def require(self, rve: Any, joined: bool = False) -> None:
        """Check that these are snapshots of an RVE.

        Parameters
        ----------
        rve : RVE
        joined : bool, optional
            Whether `joined` ones will do; its parameters must lie in their range.

        Raises
        ------
        ValueError
            If they are not; the message names the differences.
        """
        lines = compare_identities(self.rve, identity(rve))
        if lines:
            raise ValueError(f"The snapshots are of another RVE: {'; '.join(lines)}.")
        ranges = varied(self.rve)
        if ranges and not joined:
            raise ValueError(
                f"These are joined snapshots of several RVEs ({', '.join(ranges)}), and one was "
                "expected: sample the RVE itself, or take ReducedSolve or EquiNO, which evaluate "
                "its laws."
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one HDF5 file, under a temporary name that is then renamed.

        Parameters
        ----------
        path : path
            Its folder is made if need be.
        """
        facts = {
            "radius": self.radius,
            "method": self.method,
            "seed": self.seed,
            "indices": self.indices,
            "failures": self.failures,
            "rve": self.rve,
        }
        with replaced(path) as temporary, h5py.File(temporary, "w") as file:
            file.attrs["format"], file.attrs["version"] = _FORMAT, _VERSION
            for name in _ARRAYS:
                file.create_dataset(name, data=getattr(self, name).numpy(), track_times=False)
            file.create_dataset("facts", data=np.bytes_(json.dumps(facts).encode()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Snapshots:
        """Read what `save` wrote.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it does not hold snapshots, or those of a version unknown here.
        """
        if not os.path.isfile(path):
            raise FileNotFoundError(f"There is no file of snapshots at {os.fspath(path)!r}.")
        try:
            with h5py.File(path, "r") as file:
                if file.attrs.get("format") != _FORMAT:
                    raise KeyError("format")
                if file.attrs["version"] != _VERSION:
                    raise ValueError(
                        f"{os.fspath(path)!r} has format version {file.attrs['version']}, this "
                        f"fe_ol reads version {_VERSION}: sample the snapshots again."
                    )
                arrays = {name: torch.from_numpy(file[name][()]) for name in _ARRAYS}
                facts = json.loads(file["facts"][()])
        except (OSError, KeyError) as error:
            raise ValueError(
                f"{os.fspath(path)!r} does not hold snapshots: expected what Snapshots.save wrote."
            ) from error
        facts["failures"] = [(i, message) for i, message in facts["failures"]]
        values: dict[str, Any] = {**arrays, **facts}
        return cls(**values)


def _samples(
    n: int, dim: int, reference: Tensor, radius: float, seed: int, method: str, stretches: bool
) -> Tensor:
    if stretches:
        return sample_stretches(n, dim, radius, seed, method)
    return sample_strains(n, len(reference), radius, seed, method)


def _solve(rve: Any, strain: Tensor) -> dict[str, np.ndarray] | str:
    try:
        with torch.no_grad():  # laws may have parameters that require a gradient
            solutions = rve.solve(strain[None], tangent=False)
    except SOLVE_FAILURES as error:
        _log.warning("The RVE solve for strain %s failed: %s", strain.tolist(), error)
        return f"{type(error).__name__}: {error}"
    return {name: getattr(solutions, name)[0].numpy() for name in _ARRAYS[1:]}


def _on_first(comm: Any, action: Any) -> None:
    """Let the first process act; what it raises, all raise."""
    error = None
    if comm.rank == 0:
        try:
            action()
        except Exception as caught:
            error = caught
    error = comm.bcast(error)
    if error is not None:
        raise error
