"""Least frequently used: the block with the fewest uses since it entered the index goes first, ties to the older."""

from __future__ import annotations

import numpy as np

from tinyserve_viz.core.events import BlocksEvicted
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.memory.policies.eviction.victims import by_smallest_key

USES_SHIFT = 40  # key = uses · 2^40 + order of entering the index: both fit an int64 for 8 million uses


def choose(state: CacheState, count: int) -> BlocksEvicted:
    """Keys are (uses, order of entering the index) packed into one integer."""
    blocks = state.cached.order()
    keys = (state.uses[blocks].astype(np.int64) << USES_SHIFT) + state.inserted[blocks]
    return by_smallest_key(state, "lfu", blocks, keys, count)
