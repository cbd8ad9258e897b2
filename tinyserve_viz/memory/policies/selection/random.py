"""`random`: any blocks, drawn anew at every step from the seed; the control that a policy has to beat."""

from __future__ import annotations

import numpy as np

from tinyserve_viz.core.mixing import mix
from tinyserve_viz.memory.policies.selection.policy import F32, Asked, SelectionPolicy

_STREAM = 31
_BITS = 24  # whole numbers that float32 holds exactly


def drawn(asked: Asked) -> F32:
    """24 bits of a hash of (seed, sequence, context length, layer, head, block)."""
    head, block = np.arange(asked.num_heads)[:, None], np.arange(asked.width)
    hashes = mix(asked.seed, _STREAM, asked.seqs[:, None, None], asked.context[:, None, None], asked.layer, head, block)
    numbers: F32 = (hashes >> np.uint64(64 - _BITS)).astype(np.float32)
    return numbers


POLICY = SelectionPolicy(
    name="random",
    summary="blocks drawn by lot, anew at every step",
    source="the control",
    ranks_by="order",
    order=drawn,
)
