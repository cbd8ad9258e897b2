"""CLOCK: a hand goes round the pool; a cached-free block with its bit set is spared once and loses the bit.

The bit is 0 when a block enters the index and is set by a hit (Corbató 1968, second chance). Blocks in use are passed
over with their bit untouched.
"""

from __future__ import annotations

import numpy as np

from tinyserve_viz.core.events import BlocksEvicted
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.memory.policies.eviction.victims import victims


def choose(state: CacheState, count: int) -> BlocksEvicted:
    """Keys are the order in which the hand reached the blocks; at most two rounds are needed."""
    ids = np.sort(state.cached.order())
    ids = np.concatenate([ids[ids >= state.clock_hand], ids[ids < state.clock_hand]])
    spared = state.clock_bit[ids] != 0
    reached = np.concatenate([ids[~spared], ids[spared]])  # first round, then those whose bit it cleared
    chosen = reached[:count]
    if count <= int((~spared).sum()):
        last = int(np.flatnonzero(ids == chosen[-1])[0])
        cleared = ids[:last][spared[:last]]
    else:
        cleared = ids[spared]
    hand = (int(chosen[-1]) + 1) % state.num_blocks
    return victims(state, "clock", reached, np.arange(len(reached), dtype=np.int64), count, cleared, hand)
