"""What a training run is made with, in words and hashes that a checkpoint is compared by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

__all__ = ["described_losses", "described_spaces", "name_of"]


def described_spaces(networks: Sequence[nn.Module]) -> dict[str, Any]:
    """What the networks take and give: in words for one, as a hash for several."""
    encoders = [[_encoder(e) for e in getattr(net, "encoders", ())] for net in networks]
    decoders = [_decoder(getattr(net, "decoder", None)) for net in networks]
    if len(networks) == 1:
        return {"encoders": encoders[0], "decoder": decoders[0]}
    digests = [_digest(repr(described).encode()) for described in (encoders, decoders)]
    named = zip(("encoders", "decoder"), digests, strict=True)
    return {name: f"on {len(networks)} meshes [{digest}]" for name, digest in named}


def described_losses(losses: Sequence[Any]) -> str:
    """The name that all losses have, or a hash of several."""
    names = [name_of(loss) for loss in losses]
    if len(set(names)) == 1:
        return names[0]
    return f"{len(names)} losses [{_digest(repr(names).encode())}]"


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=4).hexdigest()


def _encoder(encoder: Any) -> str:
    """The input space, where its data come from, and a hash of how they are read."""
    space, data = getattr(encoder, "signature", None), getattr(encoder, "data_signature", None)
    if space is None:
        return type(encoder).__name__
    source = "values" if data is None else data.describe()
    options = [getattr(encoder, k, None) for k in ("method", "points", "grid", "box", "smoothing")]
    text = repr([None if x is None else np.asarray(x).tolist() for x in options])
    digest = _digest(text.encode())
    return space.describe() if data == space else f"{space.describe()} from {source} [{digest}]"


def _decoder(decoder: Any) -> str | None:
    """The output space, what is promised, and which dofs are prescribed to what."""
    if decoder is None:
        return None
    space = getattr(decoder, "signature", None)
    text = type(decoder).__name__ if space is None else space.describe()
    promised = getattr(decoder, "promised", "")
    text += f" with {promised}" if promised else ""
    parts = [getattr(decoder, name, None) for name in ("constrained", "values")]
    if not all(isinstance(part, Tensor) for part in parts):
        return text
    constrained, values = (part.detach().cpu().numpy() for part in parts if part is not None)
    # Values of free dofs mean nothing.
    prescribed = constrained.tobytes() + values[constrained].tobytes()
    digest = _digest(prescribed)
    return f"{text}, {int(constrained.sum())} prescribed dofs [{digest}]"


def name_of(thing: Any) -> str:
    """What a loss or a schedule is called."""
    if isinstance(thing, str | nn.Module):
        return str(thing)
    return getattr(thing, "__qualname__", type(thing).__name__)
