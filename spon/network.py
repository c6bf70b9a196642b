"""The operator network: encoder, processor, decoder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from spon import fem
from spon.calibration import calibrate_together, fit_linear_together
from spon.compatibility import check_parts, check_samples, compared, mismatch
from spon.decoders import Decoder
from spon.encoders import Encoder
from spon.fem.geometry import build_geometry
from spon.normalisation import Normaliser
from spon.processors import Field, Geometry, Processor
from spon.processors.weights import are_fresh, create_weights

__all__ = ["OperatorNetwork"]


class OperatorNetwork(nn.Module):
    """A learned operator between finite element spaces.

    The encoders and the decoder follow from the spaces, the geometry from the mesh; only the
    processor is learned. Called with functions it returns a function, with tensors of coefficients
    a tensor.

    Parameters
    ----------
    encoder : Encoder or sequence of Encoder
        One for each input function.
    processor : Processor
        The learned part, see `spon.processors`. Its weights are created here if it has none yet.
    decoder : Decoder
    dtype : torch.dtype, optional
        float32 or float64; the default dtype of torch if it is not given.

    Raises
    ------
    TypeError
        If a part is not what it should be.
    ValueError
        If there is no encoder, or a processor with weights does not fit the spaces.

    Notes
    -----
    Encoder, processor, decoder as in Bouziani and Boullé (2024), *Structure-Preserving Operator
    Learning*, section 3.
    """

    processor: Processor
    decoder: Decoder
    geometry: Geometry
    output_norm: Normaliser

    def __init__(
        self,
        encoder: Encoder | Sequence[Encoder],
        processor: Processor,
        decoder: Decoder,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        encoders = list(encoder) if isinstance(encoder, Sequence) else [encoder]
        check_parts(encoders, processor, decoder)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"A network is float32 or float64, not {dtype}.")
        self.encoders = nn.ModuleList(encoders)
        self.processor = processor
        self.decoder = decoder
        inputs = [_field(e.space) for e in encoders]
        output = _field(decoder.latent)
        create_weights(processor, inputs, output)
        self.geometry = build_geometry(
            processor.request(), [e.space for e in encoders], decoder.latent, decoder.latent_bcs
        )
        self.input_norms = nn.ModuleList([Normaliser(*_blocks(e.space)) for e in encoders])
        # With essential conditions a mean would have to be unlearned at the boundary; a potential
        # has none.
        sizes, centred = _blocks(decoder.latent)
        free = not decoder.bcs and decoder.latent is decoder.space
        self.output_norm = Normaliser(sizes, [c and free for c in centred])
        self.to(dtype)

    @property
    def _encoders(self) -> list[Encoder]:
        return cast("list[Encoder]", list(self.encoders))

    @property
    def _norms(self) -> list[Normaliser]:
        return cast("list[Normaliser]", list(self.input_norms))

    @property
    def dtype(self) -> torch.dtype:
        """Scalar type of the weights."""
        return next(p.dtype for p in self.parameters())

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(p.device for p in self.parameters())

    @property
    def calibrated(self) -> bool:
        """Whether the scales of inputs and output are known."""
        return bool(self.output_norm.fitted)

    @property
    def fresh(self) -> bool:
        """Whether the processor has the weights that it was created with, in whatever precision.

        Not after training or loading, also where another network did it that shares the processor.
        """
        return are_fresh(self.processor)

    def calibrate(self, inputs: Sequence[Tensor], output: Tensor | None) -> None:
        """Take the scales of inputs and output from data. `spon.fit` calls this once.

        Parameters
        ----------
        inputs : sequence of Tensor, shapes (n, ...)
            What each encoder takes.
        output : Tensor, shape (m, U.dim()), or None
            Outputs, not necessarily of these inputs; None leaves the scale at one.

        Raises
        ------
        ValueError
            If the data hold NaN or infinity, or have the wrong shape.
        """
        calibrate_together([self], [inputs], [output])

    def fit_linear(self, inputs: Sequence[Tensor], output: Tensor) -> None:
        """Fit the linear path of the processor to data in closed form, if it has one.

        For a network with fresh weights, which starts from there: its nonlinear part says nothing
        at first. Outputs that are zero do not count. Where the best linear map leaves more than a
        tenth of the outputs, or has more than 600 weights, the network stays as it is. `spon.fit`
        calls this once, after `calibrate`, if the weights are `fresh`. Decoders with promises take
        none of it, nor do processors of which any weight is frozen (``requires_grad_(False)``).

        Parameters
        ----------
        inputs : sequence of Tensor, shapes (n, ...)
            What each encoder takes.
        output : Tensor, shape (n, U.dim())
            The outputs of these inputs.

        Raises
        ------
        ValueError
            If the numbers of samples differ, if there is none, if a tensor has another shape, or
            if one holds NaN or infinity.
        """
        self._check_count(inputs)
        names = [f"input {i}" for i in range(len(inputs))]
        shapes = [encoder.input_shape for encoder in self._encoders]
        for name, x, shape in zip(names, inputs, shapes, strict=True):
            check_samples(name, x, shape)
        check_samples("the output", output, (int(self.decoder.space.dim()),))
        if any(len(x) != len(output) for x in inputs):
            raise ValueError(
                f"Got {[len(x) for x in inputs]} samples of the inputs for {len(output)} outputs."
            )
        fit_linear_together([self], [inputs], [output])

    def forward(self, *inputs: Any, boundary: Any = None, **given: Any) -> Any:
        """Apply the operator.

        Parameters
        ----------
        *inputs : Function, sequence of Function, or Tensor of shape (batch, ...)
            One for each encoder: all functions, or all tensors. Tensors as the encoders take them.
        boundary : Function, sequence of Function or Tensor of shape (batch, U.dim()), optional
            Boundary values for each sample, as functions of the output space; only the dofs that
            the decoder's conditions constrain count.
        **given : optional
            Values of the decoder's promises for each sample, as its `forward` takes them.

        Returns
        -------
        Function for functions, list of Function for sequences, Tensor (batch, U.dim()) for tensors
            The way through functions cuts the gradient; use tensors to differentiate.

        Raises
        ------
        TypeError
            If functions and tensors are mixed, or a tensor has another dtype than the network.
        ValueError
            If the number of inputs or a shape is wrong, or there are no samples.
        """
        self._check_count(inputs)
        self.follow_weights()
        if all(isinstance(x, Tensor) for x in inputs):
            if boundary is not None and not isinstance(boundary, Tensor):
                boundary = self._functions_to_boundary(boundary).to(self.device, self.dtype)
            processed = self.processor(self.processor_inputs(inputs), self.geometry)
            return self.decode(processed, boundary, **given)
        if any(isinstance(x, Tensor) for x in inputs):
            raise TypeError("Give all inputs as functions or all as tensors, not some of each.")
        with torch.no_grad():
            encoded = [
                e.encode(x, self.dtype).to(self.device)
                for e, x in zip(self._encoders, inputs, strict=True)
            ]
            values = None if boundary is None else self._functions_to_boundary(boundary)
            single = fem.is_function(inputs[0])
            samples = len(encoded[0])
            if values is not None and values.ndim == 2 and len(values) != samples:
                raise ValueError(
                    f"Got boundary data for {len(values)} samples and {samples} samples of input."
                )
            out = self.decoder.function(self._run(encoded).cpu(), values, **given)
        return out[0] if single else out

    def processor_inputs(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """What the processor is given: encoded and scaled, dofs first.

        Parameters
        ----------
        inputs : sequence of Tensor, shapes (batch, ...)
            As `forward` takes them.

        Returns
        -------
        list of Tensor, shapes (dim_i, batch)

        Raises
        ------
        TypeError, ValueError
            As `forward`.
        """
        self._check_count(inputs)
        self.follow_weights()
        for x in inputs:
            if x.dtype != self.dtype:
                raise TypeError(
                    f"Got a {x.dtype} tensor for a {self.dtype} network: convert the data or the "
                    "network with .to(dtype)."
                )
            if x.ndim and not len(x):
                raise ValueError(
                    f"Got an empty batch, a tensor of shape {tuple(x.shape)}: a network needs at "
                    "least one sample."
                )
        return self._scaled([e(x) for e, x in zip(self._encoders, inputs, strict=True)])

    def decode(self, values: Tensor, boundary: Tensor | None = None, **given: Any) -> Tensor:
        """Make an output of what the processor returned.

        Parameters
        ----------
        values : Tensor, shape (latent dim, batch)
        boundary, **given : optional
            As in `forward`.

        Returns
        -------
        Tensor, shape (batch, U.dim())
        """
        decoded: Tensor = self.decoder(self._scaled_back(values), boundary, **given)
        return decoded

    def _run(self, encoded: Sequence[Tensor]) -> Tensor:
        return self._scaled_back(self.processor(self._scaled(encoded), self.geometry))

    def _scaled(self, encoded: Sequence[Tensor]) -> list[Tensor]:
        batches = {len(x) for x in encoded}
        if len(batches) > 1:
            raise ValueError(f"The inputs have different batch sizes: {sorted(batches)}.")
        return [n(x).T for n, x in zip(self._norms, encoded, strict=True)]

    def _scaled_back(self, values: Tensor) -> Tensor:
        return self.output_norm.inverse(values.T)

    def _functions_to_boundary(self, boundary: Any) -> Tensor:
        if isinstance(boundary, Tensor):
            return boundary
        batch = [boundary] if fem.is_function(boundary) else list(boundary)
        if not batch:
            raise ValueError("Got an empty sequence of boundary functions.")
        space = batch[0].function_space()
        if space != self.decoder.space:
            raise ValueError(
                f"Boundary data are functions of the output space "
                f"{self.decoder.signature.describe()}, got {fem.signature(space).describe()}."
            )
        return fem.to_tensor(batch)

    def _check_count(self, inputs: Sequence[Any]) -> None:
        if len(inputs) != len(self.encoders):
            raise ValueError(
                f"The network takes {len(self.encoders)} inputs, one for each encoder, got "
                f"{len(inputs)}."
            )

    def check_data(self, data: Any) -> None:
        """Refuse a dataset whose spaces are not those of the network.

        Parameters
        ----------
        data : Dataset
            With ``input_signatures`` and ``output_signatures``, in the order of the encoders.

        Raises
        ------
        ValueError
            Naming both signatures.
        """
        for what, found, wanted in compared(self._encoders, self.decoder, data):
            if found != wanted:
                raise ValueError(mismatch(what, found, wanted))

    def check_elements(self, data: Any) -> None:
        """Refuse a dataset with other elements than the network's, on whatever mesh.

        Parameters
        ----------
        data : Dataset

        Raises
        ------
        ValueError
            Naming both signatures.
        """
        for what, found, wanted in compared(self._encoders, self.decoder, data):
            if not found.same_element(wanted):
                raise ValueError(mismatch(what, found, wanted))

    def on(self, mesh: Any, bcs: Any = None) -> OperatorNetwork:
        """The same network on another mesh. Weights and scales are shared, not copied.

        They stay shared: training, `calibrate`, loading weights and `.to` on one of the networks
        hold for all of them. The maps of each mesh follow the precision and the device of the
        weights at the next call.

        Parameters
        ----------
        mesh : firedrake.MeshGeometry
        bcs : optional
            Boundary conditions there, as `Decoder` takes them; by default the decoder's own are
            carried over.

        Returns
        -------
        OperatorNetwork

        Raises
        ------
        ValueError
            If the processor is tied to its mesh, the cells are of another kind, or the mesh lacks
            a boundary tag.
        """
        if not self.processor.mesh_independent:
            raise ValueError(
                f"The weights of a {type(self.processor).__name__} belong to the dofs of one mesh "
                f"({self.decoder.signature.describe()}) and mean nothing on another: train a "
                "Spectral, Multigrid or another processor whose weights are mesh_independent."
            )
        encoders = [e.on(mesh) for e in self._encoders]
        return self._moved(encoders, self.decoder.on(mesh, bcs))

    def _moved(self, encoders: Sequence[Encoder], decoder: Decoder) -> OperatorNetwork:
        other = OperatorNetwork(encoders, self.processor, decoder, self.dtype)
        other.to(self.device)
        other.share_scales(self)
        # The processor belongs to both, and is in one mode.
        return other.train(self.training)

    def share_scales(self, other: OperatorNetwork) -> None:
        """Use the scales of another network: those of `on` belong to the weights, as these do."""
        for mine, theirs in zip(self._norms, other._norms, strict=True):
            mine.share(theirs)
        self.output_norm.share(other.output_norm)
        self.decoder.share_margin(other.decoder)

    def follow_weights(self) -> None:
        """Bring everything to the precision and the device of the weights.

        A network that shares them may have taken them along in its `.to`.
        """
        weight, here = next(self.parameters()), self.geometry.positions
        if (weight.dtype, weight.device) == (here.dtype, here.device):
            return
        for name, part in self.named_children():
            if name != "processor":
                part.to(weight.device, weight.dtype)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the network to one file: weights, architecture, spaces and conditions.

        Parameters
        ----------
        path : path
            Written under a temporary name and renamed.
        """
        from spon.checkpoint import save

        save(self, path)


def _field(space: Any) -> Field:
    mesh = fem.mesh_of(space)
    return Field(
        dim=int(space.dim()), channels=int(space.value_size), gdim=int(mesh.geometric_dimension)
    )


def _blocks(space: Any) -> tuple[list[int], list[bool]]:
    parts = list(space.subspaces)
    return [int(p.dim()) for p in parts], [p.value_size == 1 for p in parts]
