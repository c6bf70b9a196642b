"""Whether the parts of a network fit together, and data fit the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from spon.decoders import Decoder
from spon.encoders import Encoder
from spon.processors import Processor
from spon.signature import SpaceSignature

__all__ = ["check_parts", "check_samples", "compared", "mismatch"]


def check_parts(encoders: Sequence[Any], processor: Any, decoder: Any) -> None:
    """Refuse what is no encoder, no processor or no decoder.

    Raises
    ------
    TypeError, ValueError
    """
    if not encoders:
        raise ValueError("An OperatorNetwork needs at least one encoder.")
    expected = [(e, Encoder) for e in encoders] + [(processor, Processor), (decoder, Decoder)]
    for part, kind in expected:
        if not isinstance(part, kind):
            raise TypeError(
                f"OperatorNetwork(encoder, processor, decoder) expected a {kind.__name__}, got "
                f"{type(part).__name__}."
            )


def check_samples(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse samples of another shape than (n, *shape), none at all, and NaN.

    Raises
    ------
    ValueError
    """
    if x.shape[1:] != shape or len(x) == 0:
        wanted = ", ".join(map(str, ("n", *shape)))
        raise ValueError(
            f"Expected {name} of shape ({wanted}) with n >= 1, got {tuple(x.shape)}: one row for "
            "each sample."
        )
    bad = (~x.isfinite()).flatten(1).any(dim=1).nonzero().ravel()
    if len(bad):
        raise ValueError(
            f"There is NaN or infinity in {name}, in {len(bad)} of {len(x)} samples, the first is "
            f"number {int(bad[0])}: leave these samples out."
        )


def mismatch(what: str, found: Any, wanted: Any) -> str:
    """Message for data in another space than the network's."""
    text = (
        f"The dataset's {what} is {found.describe()}, the network was built for "
        f"{wanted.describe()}."
    )
    if found.same_element(wanted):
        text += " The elements agree: move the network with net.on(dataset.mesh())."
    return text


def compared(
    encoders: Sequence[Encoder], decoder: Decoder, data: Any
) -> list[tuple[str, SpaceSignature, SpaceSignature]]:
    """What a dataset has in a space, with its signature there and that of the network.

    Raises
    ------
    ValueError
        If there are more or fewer inputs than encoders, or several outputs.
    """
    given = list(data.input_signatures.items())
    if len(given) != len(encoders):
        raise ValueError(
            f"The network has {len(encoders)} inputs, the dataset {len(given)}: "
            f"{[name for name, _ in given]}."
        )
    pairs = []
    for (name, found), encoder in zip(given, encoders, strict=True):
        wanted = encoder.data_signature
        if wanted is not None and found is not None:
            pairs.append((f"input {name!r}", found, wanted))
    outputs = list(data.output_signatures.items())
    if len(outputs) > 1:
        raise ValueError(
            f"A network has one output, the dataset has {len(outputs)}: use a mixed space."
        )
    pairs += [(f"output {name!r}", found, decoder.signature) for name, found in outputs]
    return pairs
