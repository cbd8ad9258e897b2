"""First in, first out: the block that entered the prefix index first goes first, however often it was hit."""

from __future__ import annotations

from tinyserve_viz.core.events import BlocksEvicted
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.memory.policies.eviction.victims import by_smallest_key


def choose(state: CacheState, count: int) -> BlocksEvicted:
    """Keys are the order of entering the index."""
    blocks = state.cached.order()
    return by_smallest_key(state, "fifo", blocks, state.inserted[blocks], count)
