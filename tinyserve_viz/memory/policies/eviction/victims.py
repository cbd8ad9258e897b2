"""What an eviction policy answers: the victims in order, their keys, and the first block that it would keep."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tinyserve_viz.core.events import EMPTY, I32, I64, BlocksEvicted
from tinyserve_viz.core.state import CacheState

EvictionPolicy = Callable[[CacheState, int], BlocksEvicted]
"""(state, count) → the event that gives up `count` cached-free blocks; `count` ≤ number of them."""


def by_smallest_key(state: CacheState, rule: str, blocks: I32, keys: I64, count: int) -> BlocksEvicted:
    """The `count` blocks with the smallest keys, smallest first; keys are distinct. O(len(blocks)) time."""
    if len(blocks) > count + 1:
        nearest = np.argpartition(keys, count)[: count + 1]
        blocks, keys = blocks[nearest], keys[nearest]
    order = np.argsort(keys, kind="stable")
    return victims(state, rule, blocks[order], keys[order], count)


def victims(
    state: CacheState, rule: str, ranked: I32, keys: I64, count: int, cleared: I32 = EMPTY, hand: int | None = None
) -> BlocksEvicted:
    """The event that evicts the first `count` of the `ranked` blocks; the next one, if listed, is the runner-up."""
    kept = len(ranked) > count
    chosen = ranked[:count]
    return BlocksEvicted(
        rule=rule,
        blocks=chosen,
        hashes=state.hash[chosen],
        keys=keys[:count],
        runner_up=int(ranked[count]) if kept else -1,
        runner_up_key=int(keys[count]) if kept else -1,
        cleared=cleared,
        hand=state.clock_hand if hand is None else hand,
    )
