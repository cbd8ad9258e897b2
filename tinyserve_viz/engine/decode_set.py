"""The decoding sequences of a run of steps in which nobody joins or leaves: what each coming step needs, known ahead.

Every member grows by one token a step, so which of them cross a block border at step t depends on t modulo the block
size alone, and sums over the set advance by constants. A step without arrivals then costs the scheduler no pass over
the sequences. The set is made anew whenever its membership changes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core.events import EMPTY, I32
from tinyserve_viz.core.state import CacheState


class DecodeSet:
    """`seqs` int32 [k] in order of service; `age` steps were taken since the set was made."""

    __slots__ = (
        "_by_phase",
        "_phase_start",
        "_remaining",
        "_sum_slots",
        "_sum_tokens",
        "age",
        "block_size",
        "first_end",
        "seqs",
    )

    def __init__(self, state: CacheState, seqs: I32, total: I32) -> None:
        """`total` int32 [S] is the context length at which each sequence of the state is finished."""
        self.seqs, self.block_size, self.age = seqs, state.block_size, 0
        ctx = state.ctx[seqs]
        self._remaining: I32 = total[seqs] - ctx
        self.first_end = int(self._remaining.min()) if len(seqs) else 0
        phase = -ctx % self.block_size
        order = np.argsort(phase, kind="stable")
        self._by_phase: NDArray[np.intp] = order
        self._phase_start = np.searchsorted(phase[order], np.arange(self.block_size + 1)).tolist()
        self._sum_tokens = int(ctx.sum())
        self._sum_slots = int((-(-ctx // self.block_size)).sum()) * self.block_size

    def crossing(self, ahead: int = 0) -> I32:
        """Sequences whose next token (`ahead` = 1: the one after it) starts a new block, in order of service."""
        phase = (self.age + ahead) % self.block_size
        start, end = self._phase_start[phase], self._phase_start[phase + 1]
        return self.seqs[self._by_phase[start:end]] if end > start else EMPTY

    def advance(self) -> I32:
        """One step was taken: returns the sequences that it finished."""
        phase = self.age % self.block_size
        self._sum_slots += (self._phase_start[phase + 1] - self._phase_start[phase]) * self.block_size
        self.age += 1
        if self.age < self.first_end or not len(self.seqs):
            return EMPTY
        ended: I32 = self.seqs[self._remaining == self.age]
        return ended

    @property
    def num_tokens(self) -> int:
        """Σ context lengths, the tokens of the steps taken included."""
        return self._sum_tokens + self.age * len(self.seqs)

    @property
    def num_slots(self) -> int:
        """Σ block_size · ceil(context length / block_size)."""
        return self._sum_slots
