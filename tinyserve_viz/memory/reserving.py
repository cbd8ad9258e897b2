"""Baseline allocators: one range of token slots per sequence, reserved before its first token and freed at its end.

This is how servers kept the KV cache before paging (Kwon et al., PagedAttention, SOSP 2023, §3). The pool is one
linear range of num_blocks · block_size slots; the first hole that is long enough is taken; nothing moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinyserve_viz.core.events import RangeReserved
from tinyserve_viz.core.state import CacheState


@dataclass(frozen=True, slots=True)
class ReservingManager:
    """`kind` is `contiguous` (max_model_len slots), `pow2` (prompt + 2^⌈log2 output⌉) or `exact` (prompt + output)."""

    kind: str
    max_model_len: int

    def slots_for(self, prompt_len: int, output_len: int) -> int:
        """Token slots that a sequence reserves; not rounded to blocks."""
        if self.kind == "contiguous":
            return self.max_model_len
        if self.kind == "pow2":
            return prompt_len + (1 << (output_len - 1).bit_length() if output_len > 1 else output_len)
        return prompt_len + output_len

    def reserve(self, state: CacheState, request: int, seqs: Sequence[int], length: int) -> list[RangeReserved] | None:
        """For each of `seqs` the first hole of at least `length` slots; None when they do not all fit now."""
        live = np.flatnonzero(state.reserved_len)
        starts = state.reserved_start[live]
        order = np.argsort(starts)
        begins = np.concatenate([[0], (starts + state.reserved_len[live])[order]])
        sizes = np.concatenate([starts[order], [state.num_blocks * state.block_size]]) - begins
        ranges = []
        for seq in seqs:
            fits = sizes >= length
            first = int(fits.argmax())
            if not fits[first]:
                return None
            ranges.append(RangeReserved(request, seq, int(begins[first]), length, int((sizes[:first] > 0).sum())))
            begins[first] += length
            sizes[first] -= length
        return ranges
