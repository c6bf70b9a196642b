"""Pairs of coefficient vectors, the spaces they belong to, and how they were made.

A data set is one HDF5 file. Its arrays can be read without building a mesh; the mesh is rebuilt
when it is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spon.arrays import coefficient_rows, coefficients, integers, named
from spon.datafile import (
    Contents,
    DatasetFileError,
    MeshLink,
    read_contents,
    write_contents,
)
from spon.fem.spaces import mesh_of, signature, to_tensor
from spon.fem.spacestore import SpaceStore
from spon.signature import SpaceSignature

__all__ = ["Dataset", "DatasetFileError", "Failure"]


# The arguments of Dataset, which are its attributes, too.
_PARTS = (
    *("inputs", "outputs", "input_signatures", "output_signatures", "boundary", "boundary_of"),
    *("runs", "run", "keys", "failures"),
)


@dataclass(frozen=True)
class Failure:
    """A sample that could not be computed.

    Attributes
    ----------
    index : int
        Number of the sample in its run.
    message : str
        What the solver said.
    run : int
        Position of the run in `Dataset.runs`.
    """

    index: int
    message: str
    run: int = 0


class Dataset:
    """Samples of an operator as coefficient vectors.

    Make one by `from_functions`, `from_arrays`, `load`, or `spon.generate`.

    Attributes
    ----------
    inputs : dict of str to Tensor, each of shape (n, dim_i), float64
        Ordered as the inputs of the network. Values at points and images, which are in no space,
        have the shape (n, ...) that their encoder takes.
    outputs : dict of str to Tensor, each of shape (n, dim), float64
        Empty for training without solutions.
    boundary : Tensor, shape (n, dim), float64, or None
        Essential boundary values, sample by sample.
    boundary_of : str or None
        The output whose boundary values those are; None without them, or if several outputs could
        be meant and nobody said which. It may be set.
    input_signatures : dict of str to SpaceSignature or None
        None for values at points and images.
    output_signatures : dict of str to SpaceSignature
    runs : tuple of dict
        How the samples were made: sampler, seed, versions.
    run : array, shape (n,), int64
        For each sample, the position of its run in `runs`.
    keys : array, shape (n, 2), int64
        For each sample ``[seed, index]``, the key of its random numbers; -1 where unknown.
    failures : tuple of Failure
        Samples of the runs that are missing here because they could not be computed.
    """

    def __init__(
        self,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
        input_signatures: Mapping[str, SpaceSignature | None],
        output_signatures: Mapping[str, SpaceSignature],
        boundary: Any | None = None,
        runs: Sequence[dict[str, Any]] = ({"made_by": "user"},),
        run: Any | None = None,
        keys: Any | None = None,
        failures: Sequence[Failure] = (),
        boundary_of: str | None = None,
    ) -> None:
        self.input_signatures = dict(input_signatures)
        self.output_signatures = dict(output_signatures)
        self.inputs = _inputs(inputs, self.input_signatures)
        self.outputs = coefficients(outputs, self.output_signatures, "outputs") if outputs else {}
        shared = self.inputs.keys() & self.outputs.keys()
        if shared:
            raise ValueError(f"The names {sorted(shared)} are used for an input and an output.")
        self.boundary = None if boundary is None else coefficient_rows("boundary", boundary)
        self.boundary_of = self._boundary_owner(boundary_of)
        arrays = {**self.inputs, **self.outputs}
        if self.boundary is not None:
            arrays["boundary"] = self.boundary
        lengths = {name: len(x) for name, x in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"All arrays need the same number of samples, got {lengths}.")
        n = next(iter(lengths.values()))
        self.runs = tuple(runs)
        self.run = integers("run", run, (n,), 0)
        self.keys = integers("keys", keys, (n, 2), -1)
        self.failures = tuple(failures)
        self._spaces = SpaceStore()
        self._links: dict[str, MeshLink] = {}

    def _boundary_owner(self, given: str | None) -> str | None:
        if self.boundary is None:
            return None
        if given is not None and given not in self.outputs:
            raise ValueError(
                f"boundary_of={given!r} is no output, the outputs are {list(self.outputs)}."
            )
        dims = {name: s.dim for name, s in self.output_signatures.items()}
        width = self.boundary.shape[1]
        fitting = [name for name in self._boundary_candidates() if given in (None, name)]
        if not fitting:
            raise ValueError(
                f"boundary has shape {tuple(self.boundary.shape)}; its rows must be coefficient "
                f"vectors of an output: {dims if given is None else {given: dims[given]}}, "
                f"not of {width} dofs."
            )
        return fitting[0] if len(fitting) == 1 else None

    def _boundary_candidates(self) -> list[str]:
        """Outputs that the boundary data have the size of."""
        if self.boundary is None:
            return []
        width = self.boundary.shape[1]
        return [k for k in self.outputs if self.output_signatures[k].dim == width]

    # ---- making

    @classmethod
    def from_functions(
        cls,
        inputs: Mapping[str, Sequence[Any]],
        outputs: Mapping[str, Sequence[Any]],
        boundary: Sequence[Any] | None = None,
        boundary_of: str | None = None,
    ) -> Dataset:
        """Collect the coefficients of Firedrake Functions.

        Parameters
        ----------
        inputs, outputs : mapping of str to sequence of Function
            All sequences equally long; the functions of a sequence live in one space.
        boundary : sequence of Function, optional
            Essential boundary values in the space of an output.
        boundary_of : str, optional
            The output that `boundary` belongs to, where several outputs have its space.

        Raises
        ------
        TypeError, ValueError
            If something is no Function, lengths or spaces differ, or the boundary functions are
            not in the space of an output.
        """
        fields = {**named(inputs, "inputs"), **named(outputs, "outputs")}
        arrays, spaces = {}, {}
        for name, functions in fields.items():
            functions = list(functions) if isinstance(functions, Sequence) else functions
            try:
                arrays[name] = to_tensor(functions)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{name!r}: {error}") from error
            if arrays[name].ndim != 2:
                raise TypeError(f"{name!r}: expected a list of Functions, got one Function.")
            spaces[name] = functions[0].function_space()
        values = None
        if boundary is not None:
            functions = list(boundary)
            try:
                values = to_tensor(functions)
            except (TypeError, ValueError) as error:
                raise type(error)(f"boundary: {error}") from error
            V = functions[0].function_space()
            boundary_of = _owner(V, {k: spaces[k] for k in outputs}, boundary_of)
        return cls.from_arrays(
            {k: arrays[k] for k in inputs},
            {k: arrays[k] for k in outputs},
            spaces,
            values,
            boundary_of=boundary_of,
        )

    @classmethod
    def from_arrays(
        cls,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
        spaces: Mapping[str, Any],
        boundary: Any | None = None,
        **made: Any,
    ) -> Dataset:
        """Collect coefficient vectors.

        Parameters
        ----------
        inputs, outputs : mapping of str to array, each of shape (n, dim)
            Rows are coefficient vectors in the dof order of the space. `outputs` may be empty, for
            training without solutions. An input that is in no space
            has the shape (n, ...): one array of values at points, or one image, for each sample.
        spaces : mapping of str to FunctionSpace, SpaceSignature or None
            For every input and output. Only FunctionSpaces bring a mesh along. None for an input
            that is in no space, to be read by ``Encoder(V, points=...)`` or
            ``Encoder(V, grid=..., box=...)``.
        boundary : array, shape (n, dim), optional
            Essential boundary values as coefficients in the space of an output.
        **made
            `runs`, `run`, `keys`, `failures`, `boundary_of` of the constructor.

        Raises
        ------
        TypeError, ValueError
            If shapes, lengths or names do not fit, or a coefficient is not finite.
        """
        names = [*named(inputs, "inputs"), *(named(outputs, "outputs") if outputs else ())]
        missing = [name for name in names if name not in spaces]
        if missing:
            raise ValueError(f"spaces lacks {missing}: give the function space of each array.")
        live = {k: spaces[k] for k in names if not isinstance(spaces[k], SpaceSignature | None)}
        known = {k: signature(live[k]) if k in live else spaces[k] for k in names}
        for name in outputs:
            if known[name] is None:
                raise ValueError(
                    f"The output {name!r} needs a function space, got None: the network's values "
                    "are coefficients in it. Only inputs may be in no space."
                )
        data = cls(
            inputs,
            outputs,
            {name: known[name] for name in inputs},
            {name: known[name] for name in outputs},
            boundary,
            **made,
        )
        data._spaces = SpaceStore(live)
        return data

    @staticmethod
    def concatenate(datasets: Sequence[Dataset]) -> Dataset:
        """Put data sets over the same spaces one after the other.

        Raises
        ------
        ValueError
            If there is none, or names, order or spaces differ, or only some have boundary data.
        """
        datasets = list(datasets)
        if not datasets:
            raise ValueError("There is no data set to concatenate.")
        first = datasets[0]
        for position, other in enumerate(datasets[1:], start=1):
            _require_alike(first, other, position)
        starts = np.cumsum([0] + [len(d.runs) for d in datasets])
        shifted = list(zip(datasets, starts.tolist(), strict=False))
        return first._with(
            inputs={k: torch.cat([d.inputs[k] for d in datasets]) for k in first.inputs},
            outputs={k: torch.cat([d.outputs[k] for d in datasets]) for k in first.outputs},
            boundary=None
            if first.boundary is None
            else torch.cat([d.boundary for d in datasets if d.boundary is not None]),
            runs=[run for d in datasets for run in d.runs],
            run=np.concatenate([d.run + start for d, start in shifted]),
            keys=np.concatenate([d.keys for d in datasets]),
            failures=[replace(f, run=f.run + start) for d, start in shifted for f in d.failures],
        )

    # ---- parts

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def __repr__(self) -> str:
        fields = [f"{k}: {self._describe(k)}" for k in self.signatures]
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return f"Dataset({len(self)} samples{failed}; " + "; ".join(fields) + ")"

    def __getitem__(self, indices: Any) -> Dataset:
        """Select samples: an integer, a slice, a list or array of integers, or a mask.

        Returns
        -------
        Dataset

        Raises
        ------
        IndexError
            If a sample does not exist.
        """
        if isinstance(indices, Tensor):
            indices = indices.cpu().numpy()
        chosen = np.atleast_1d(np.arange(len(self))[indices])
        return self._with(
            inputs={k: x[chosen] for k, x in self.inputs.items()},
            outputs={k: x[chosen] for k, x in self.outputs.items()},
            boundary=None if self.boundary is None else self.boundary[chosen],
            run=self.run[chosen],
            keys=self.keys[chosen],
        )

    def _with(self, **changes: Any) -> Dataset:
        same = {name: getattr(self, name) for name in _PARTS}
        changed = Dataset(**(same | changes))
        # The store itself: a space that was built once serves all parts.
        changed._spaces = self._spaces
        changed._links = self._links
        return changed

    def _describe(self, name: str) -> str:
        found = self.signatures[name]
        if found is not None:
            return found.describe()
        return f"values of shape {tuple(self.inputs[name].shape[1:])}"

    def __iter__(self) -> Iterator[Dataset]:
        return (self[i] for i in range(len(self)))

    def split(self, fractions: Sequence[float], seed: int = 0) -> tuple[Dataset, ...]:
        """Divide the samples at random.

        Parameters
        ----------
        fractions : sequence of float
            Share of each part; together at most 1, for example ``(0.8, 0.1, 0.1)``.
        seed : int, optional
            The same seed gives the same parts.

        Returns
        -------
        tuple of Dataset, as many as `fractions`, without common samples

        Raises
        ------
        ValueError
            If a share is not positive, they exceed 1, or a part would have no sample.
        """
        shares = np.asarray(list(fractions), dtype=float)
        if shares.size == 0 or (shares <= 0).any() or shares.sum() > 1 + 1e-9:
            raise ValueError(
                f"fractions must be positive and sum to at most 1, got {list(fractions)}."
            )
        ends = np.rint(np.cumsum(shares) * len(self)).astype(int)
        sizes = np.diff(ends, prepend=0)
        if (sizes == 0).any():
            raise ValueError(
                f"{len(self)} samples cannot be divided by {list(fractions)}: the parts would have "
                f"{sizes.tolist()} samples."
            )
        order = np.random.default_rng(seed).permutation(len(self))
        return tuple(self[order[end - size : end]] for end, size in zip(ends, sizes, strict=True))

    # ---- use

    @property
    def signatures(self) -> dict[str, SpaceSignature | None]:
        """Signatures of all inputs and outputs by name; None for what is in no space."""
        return {**self.input_signatures, **self.output_signatures}

    def tensors(
        self, dtype: torch.dtype = torch.float64
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor | None]:
        """The arrays that training needs.

        Returns
        -------
        inputs : tuple of Tensor, each of shape (n, dim_i), or (n, ...) where it is in no space
        output : Tensor, shape (n, dim), or (n, 0) where there are no outputs
        boundary : Tensor, shape (n, dim), or None

        Raises
        ------
        ValueError
            If there is more than one output.
        """
        if len(self.outputs) > 1:
            raise ValueError(
                f"A network has one output, this data set has {list(self.outputs)}. Choose one "
                "with .select(outputs=[...]), or make the output a function of a mixed space."
            )
        output = next(iter(self.outputs.values()), torch.empty(len(self), 0))
        boundary = None if self.boundary is None else self.boundary.to(dtype)
        return tuple(x.to(dtype) for x in self.inputs.values()), output.to(dtype), boundary

    def select(
        self, inputs: Sequence[str] | None = None, outputs: Sequence[str] | None = None
    ) -> Dataset:
        """Keep some of the fields, in the order given; all of them where None is given.

        The boundary data stay with the output that they belong to.

        Raises
        ------
        KeyError
            If there is no such field.
        ValueError
            If it is not known whether the boundary data belong to an output that is kept or to one
            that is dropped.
        """
        ins = list(self.inputs if inputs is None else inputs)
        outs = list(self.outputs if outputs is None else outputs)
        for name, have in [(k, self.inputs) for k in ins] + [(k, self.outputs) for k in outs]:
            if name not in have:
                raise KeyError(f"There is no field {name!r} here, only {list(have)}.")
        owners = self._boundary_candidates() if self.boundary_of is None else [self.boundary_of]
        kept = [name in outs for name in owners]
        if any(kept) and not all(kept):
            raise ValueError(
                f"The boundary data may belong to any of the outputs {owners}, of which only some "
                f"are chosen: say which first, data.boundary_of = {owners[0]!r}."
            )
        return self._with(
            inputs={k: self.inputs[k] for k in ins},
            outputs={k: self.outputs[k] for k in outs},
            input_signatures={k: self.input_signatures[k] for k in ins},
            output_signatures={k: self.output_signatures[k] for k in outs},
            boundary=self.boundary if any(kept) else None,
        )

    # ---- meshes

    def space(self, name: str | None = None) -> Any:
        """The function space of an input or output, rebuilt from the file where needed.

        Parameters
        ----------
        name : str, optional
            The first output by default.

        Returns
        -------
        FunctionSpace
            Its dofs are numbered as the arrays are.

        Raises
        ------
        KeyError
            If there is no such field.
        FileNotFoundError, spon.fem.meshfile.MeshFileError
            If the mesh cannot be read, or would number the dofs differently.
        RuntimeError
            If the data set was made without a mesh, or the input is in no space.
        """
        name = next(iter(self.outputs)) if name is None else name
        expected = self.signatures[self._known(name)]
        if expected is None:
            raise RuntimeError(
                f"The input {name!r} is in no function space: it holds {self._describe(name)}."
            )
        return self._spaces.get(name, expected)

    def mesh(self, name: str | None = None) -> Any:
        """The mesh of an input or output (the first output by default); raises as `space`."""
        return mesh_of(self.space(name))

    def attach(self, spaces: Mapping[str, Any]) -> Dataset:
        """Use these function spaces, and their meshes, instead of those in the file.

        Parameters
        ----------
        spaces : mapping of str to FunctionSpace
            For some or all inputs and outputs.

        Returns
        -------
        Dataset
            This one.

        Raises
        ------
        KeyError
            If there is no such field.
        ValueError
            If a space is not the one that the data belong to.
        """
        for name, V in spaces.items():
            found = signature(V)
            if found != self.signatures[self._known(name)]:
                raise ValueError(
                    f"The space for {name!r} is {found.describe()}, the data belong to "
                    f"{self._describe(name)}."
                )
        self._spaces = self._spaces.with_live(spaces)
        return self

    def _known(self, name: str) -> str:
        if name not in self.signatures:
            raise KeyError(f"There is no field {name!r} here, only {list(self.signatures)}.")
        return name

    # ---- files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one HDF5 file, in one step: never a part of it.

        Raises
        ------
        FileNotFoundError
            If the file that the data set was loaded from, and so its mesh, is gone.
        spon.fem.meshfile.MeshFileError
            If Firedrake cannot store the mesh.
        """
        write_contents(
            path,
            Contents(
                inputs={k: x.numpy() for k, x in self.inputs.items()},
                outputs={k: x.numpy() for k, x in self.outputs.items()},
                boundary=None if self.boundary is None else self.boundary.numpy(),
                signatures=self.signatures,
                runs=list(self.runs),
                run=self.run,
                keys=self.keys,
                failures=[asdict(failure) for failure in self.failures],
                links={k: link for k, link in self._links.items() if k in self.signatures},
                boundary_of=self.boundary_of,
            ),
            self._spaces,
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Dataset:
        """Read a file that `save` or `spon.generate` wrote. No mesh is built.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        DatasetFileError
            If the file is no data set, is damaged, or comes from a version that this one cannot
            read.
        """
        contents = read_contents(path)
        known = {k: s for k, s in contents.signatures.items() if s is not None}
        try:
            data = cls(
                contents.inputs,
                contents.outputs,
                {k: contents.signatures[k] for k in contents.inputs},
                {k: known[k] for k in contents.outputs},
                contents.boundary,
                contents.runs,
                contents.run,
                contents.keys,
                [Failure(**failure) for failure in contents.failures],
                contents.boundary_of,
            )
        except (TypeError, ValueError, KeyError) as error:
            raise DatasetFileError(f"{os.fspath(path)!r} is damaged: {error}") from error
        data._spaces = SpaceStore({}, contents.links, Path(path).resolve())
        data._links = contents.links
        return data


def _require_alike(first: Dataset, other: Dataset, position: int) -> None:
    for what in ("inputs", "outputs"):
        a, b = list(getattr(first, what)), list(getattr(other, what))
        if a != b:
            raise ValueError(f"Data set {position} has the {what} {b}, the first one has {a}.")
    for name, sig in first.signatures.items():
        # What is in no space must have the same shape.
        if other.signatures[name] != sig or first._describe(name) != other._describe(name):
            raise ValueError(
                f"{name!r} of data set {position} belongs to {other._describe(name)}, "
                f"that of the first one to {first._describe(name)}."
            )
    if (first.boundary is None) != (other.boundary is None):
        raise ValueError("Some of the data sets have boundary data and some have not.")
    if first.boundary_of != other.boundary_of:
        raise ValueError(
            f"The boundary data of data set {position} belong to {other.boundary_of!r}, those of "
            f"the first one to {first.boundary_of!r}."
        )


def _inputs(
    fields: Mapping[str, Any], signatures: Mapping[str, SpaceSignature | None]
) -> dict[str, Tensor]:
    known = {k: s for k, s in signatures.items() if s is not None}
    tensors: dict[str, Tensor] = {}
    for name, values in named(fields, "inputs").items():
        if name in known or name not in signatures:
            tensors |= coefficients({name: values}, known, "inputs")
        else:
            tensors[name] = _values(name, values)
    return tensors


def _values(name: str, values: Any) -> Tensor:
    """Values at points or images, one for each sample: shape (n, ...), float64."""
    shape = np.shape(values)
    if len(shape) < 2:
        raise ValueError(
            f"{name!r} has shape {shape}, expected (n, ...): an array of values for each sample."
        )
    rows = coefficient_rows(name, torch.as_tensor(values).flatten(1))
    return rows.reshape(shape)


def _owner(V: Any, spaces: Mapping[str, Any], given: str | None) -> str | None:
    """The output whose space is `V`; None if there are several and none is named."""
    found = [name for name, U in spaces.items() if U == V]
    chosen = [name for name in found if given in (None, name)]
    if not chosen:
        here = {name: signature(U).describe() for name, U in spaces.items()}
        wanted = "of an output" if given is None else f"of the output {given!r}"
        raise ValueError(
            f"The boundary functions are in {signature(V).describe()}, but must be in the space "
            f"{wanted}: {here}."
        )
    return chosen[0] if len(chosen) == 1 else None
