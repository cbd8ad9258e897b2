"""How much of the reserved memory holds tokens, counted from lengths alone: no scheduler, no sharing, no preemption.

Everything is Σ over (request, decode step t = 1 … output) of (prompt + t), over the same sum of the slots that the
request has then. A replay in which nothing is shared or preempted gives the same in `utilization.decode`, whatever the
batching.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]


def decode_tokens(prompt: I64, output: I64) -> I64:
    """Σ over t of (prompt + t), int64 [requests]."""
    return output * prompt + output * (output + 1) // 2


def paged(prompt: I64, output: I64, block_size: int) -> float | None:
    """Share of the slots of `block_size`-token blocks that hold tokens; None when nobody decodes."""
    blocks = _blocks_upto(prompt + output, block_size) - _blocks_upto(prompt, block_size)
    return _share(prompt, output, block_size * blocks)


def reserved(prompt: I64, output: I64, slots: I64) -> float | None:
    """The same where a request has `slots` token slots from its first token to its end."""
    return _share(prompt, output, slots * output)


def pow2_slots(prompt: I64, output: I64) -> I64:
    """Prompt and the next power of two of the output."""
    powers = np.array([1 << (int(o) - 1).bit_length() if o > 1 else int(o) for o in output], dtype=np.int64)
    return prompt + powers


def mean_length(prompt: I64, output: I64) -> float | None:
    """Mean context length over (request, decode step)."""
    steps = int(output.sum())
    return int(decode_tokens(prompt, output).sum()) / steps if steps else None


def expected_paged(length: float, block_size: int) -> float:
    """Expected share for lengths around `length` whose last block is filled uniformly at random."""
    return length / (length + (block_size - 1) / 2)


def length_needed(share: float, block_size: int) -> float:
    """The mean length from which on `expected_paged` reaches `share`."""
    return share / (1 - share) * (block_size - 1) / 2


def _blocks_upto(tokens: I64, block_size: int) -> I64:
    """Σ over n = 1 … tokens of ⌈n / block_size⌉."""
    whole, rest = tokens // block_size, tokens % block_size
    return block_size * whole * (whole + 1) // 2 + rest * (whole + 1)


def _share(prompt: I64, output: I64, slots: I64) -> float | None:
    total = int(slots.sum())
    return int(decode_tokens(prompt, output).sum()) / total if total else None
