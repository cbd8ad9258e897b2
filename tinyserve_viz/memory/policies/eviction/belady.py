"""Belady's choice (1966): of the cached blocks, the one whose content is asked for again last goes first.

It knows the whole trace, so it is no policy that a server could have: `compare` and `curve` have it as the mark to
measure others by, `replay` refuses it. The future is the trace's order of requests, those that were not admitted yet;
what a preemption will ask for again is not in it.
"""

from __future__ import annotations

import numpy as np

from tinyserve_viz.core import state as st
from tinyserve_viz.core.events import I64, BlocksEvicted
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.core.workload import Workload
from tinyserve_viz.memory.policies.eviction.victims import EvictionPolicy, by_smallest_key

NAME = "belady"
NEXT_SHIFT = 40  # key = (requests − next request) · 2^40 + place in order of release; 0 above the shift: never again


class Future:
    """For a position in the trace, the next request that asks for each content; the last answer is carried forwards."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        num = workload.num_requests
        sizes = np.diff(workload.hash_offsets)
        request = np.repeat(np.arange(num, dtype=np.int32), sizes)
        order = np.argsort(workload.hash_flat, kind="stable")
        same = workload.hash_flat[order[1:]] == workload.hash_flat[order[:-1]]
        after = np.full(len(request), num, dtype=np.int32)  # per reference, the next request with the same content
        after[order[:-1][same]] = request[order[1:][same]]
        self._after = after
        self._first = np.full(workload.num_hashes, num, dtype=np.int32)
        self._first[workload.hash_flat[::-1]] = request[::-1]
        self._rewind()

    def _rewind(self) -> None:
        self._position, self._next = 0, self._first.copy()

    def next_request(self, position: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        """int32 [num_hashes]: the first request from `position` on that asks for it; num_requests: none does."""
        if position < self._position:
            self._rewind()
        offsets = self._workload.hash_offsets
        for request in range(self._position, position):
            own = slice(int(offsets[request]), int(offsets[request + 1]))
            self._next[self._workload.hash_flat[own]] = self._after[own]
        self._position = position
        return self._next

    def choose(self, state: CacheState, count: int) -> BlocksEvicted:
        """Keys: how soon the content is asked for again (0: never), then the order of release."""
        workload, blocks = state.workload, state.cached.order()
        status = state.status[workload.first_seq]
        ahead = np.flatnonzero((status == st.UNBORN) | (status == st.WAITING))
        position = int(ahead[0]) if len(ahead) else workload.num_requests
        soon: I64 = workload.num_requests - self.next_request(position)[state.hash[blocks]].astype(np.int64)
        return by_smallest_key(state, NAME, blocks, (soon << NEXT_SHIFT) + np.arange(len(blocks)), count)


def policy_for(workload: Workload) -> EvictionPolicy:
    """The policy for one trace."""
    return Future(workload).choose
