"""The requests of a replay as columns: what every state and every view needs to know of a trace.

A request with `n` samples has `n` sequences with neighbouring ids; sequences are scheduled and hold blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

MISS_CAUSES = ("hit", "capped", "tail", "cold", "orphaned", "preempted", "evicted")
HIT, CAPPED, TAIL, COLD, ORPHANED, PREEMPTED_AWAY, EVICTED = range(7)


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """Columns over requests [R] and over sequences [S]; times in µs, lengths in tokens, -1 for `none`.

    `hash_flat[hash_offsets[r] : hash_offsets[r + 1]]` are the dense content ids of the full blocks of request r, as
    far as they are known; equal ids mean equal tokens *and* equal prefix. A workload read from a recording has them
    where kernels ran, whose content depends on them; what was cached stands in the events.
    """

    request_ids: tuple[str, ...]
    arrival_us: I64
    prompt_len: I32
    output_len: I32
    num_samples: I32
    parent: I32
    fork_at: I32
    cancel_at_us: I64
    priority: I32
    num_hashes: int
    hash_flat: I32
    hash_offsets: I64
    first_seq: I32  # [R]
    request_of_seq: I32  # [S]

    @property
    def num_requests(self) -> int:
        """R."""
        return len(self.request_ids)

    @property
    def num_seqs(self) -> int:
        """S, the samples of all requests together."""
        return len(self.request_of_seq)

    @property
    def max_tokens(self) -> int:
        """The longest context that a sequence can reach."""
        return int((self.prompt_len.astype(np.int64) + self.output_len).max(initial=1))

    def hashes_of(self, request: int) -> I32:
        """Content ids of the full blocks of `request`, head first."""
        return self.hash_flat[self.hash_offsets[request] : self.hash_offsets[request + 1]]

    def seq_name(self, seq: int) -> str:
        """`r4`, or `r4.2` for the third sample of r4."""
        request = int(self.request_of_seq[seq])
        name = self.request_ids[request]
        return name if self.num_samples[request] == 1 else f"{name}.{seq - int(self.first_seq[request])}"


def sequences_of(num_samples: I32) -> tuple[I32, I32]:
    """`first_seq` [R] and `request_of_seq` [S] for requests with so many samples each."""
    ends = np.cumsum(num_samples, dtype=np.int64)
    first = (ends - num_samples).astype(np.int32)
    return first, np.repeat(np.arange(len(num_samples), dtype=np.int32), num_samples)
