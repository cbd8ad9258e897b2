"""Least recently used: the block whose last reference went longest ago goes first, within a sequence tail first."""

from __future__ import annotations

import numpy as np

from tinyserve_viz.core.events import BlocksEvicted
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.memory.policies.eviction.victims import victims


def choose(state: CacheState, count: int) -> BlocksEvicted:
    """Keys are the steps of the last use. A block is in use while referenced, so the order of release is the order."""
    ranked = state.cached.front(count + 1)
    return victims(state, "lru", ranked, state.last_use[ranked].astype(np.int64), count)
