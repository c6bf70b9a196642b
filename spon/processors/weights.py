"""Weights of a processor: when they are created, and whether they are as they were then."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from spon.processors.base import Field, Processor

__all__ = ["are_fresh", "create_weights", "mark_fresh"]


def create_weights(processor: Processor, inputs: Sequence[Field], output: Field) -> None:
    """Create the weights of a processor, or check that those which are there fit.

    Parameters
    ----------
    processor : Processor
    inputs : sequence of Field
    output : Field

    Raises
    ------
    ValueError
        If it has weights for other spaces.
    """
    fields = (*inputs, output)
    known: tuple[Field, ...] | None = getattr(processor, "fields", None)
    if known is None:
        processor.configure(inputs, output)
        processor.fields = fields  # type: ignore[assignment]
        mark_fresh(processor)
        return

    def essence(these: Sequence[Field]) -> list[Any]:
        movable = processor.mesh_independent
        return [(f.channels, f.gdim) if movable else (f.dim, f.channels) for f in these]

    if essence(known) != essence(fields):
        raise ValueError(
            f"This {type(processor).__name__} has weights for inputs and output {known}, the "
            f"spaces here need {fields}: make a new processor for them."
        )


def are_fresh(processor: Processor) -> bool:
    """Whether a processor has the weights that it was created with, in whatever precision."""
    created: str = processor.created  # type: ignore[assignment]
    return created == _digest(processor)


def mark_fresh(processor: Processor) -> None:
    """Take the weights that a processor has now for those that it was created with."""
    processor.created = _digest(processor)  # type: ignore[assignment]


def _digest(processor: Processor) -> str:
    """Digest of the weights, the same in single and in double precision and on every device."""
    digest = hashlib.blake2b(digest_size=16)
    for weight in processor.parameters():
        digest.update(weight.detach().to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()
