"""Eviction `seed`: the published "LRU with a hot region", as its `advanced_block_allocation` kernel decides it.

The kernel's choice *is* the decision. A request for a block is hot when its sequence has decoded for more than
`hot.frequency` steps (each step reads the sequence's blocks once); hot requests take blocks of the hot region, ids
below `hot_size`, others avoid them. Every `hot.resize_steps` the region grows or shrinks by what hot requests missed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinyserve_viz.core import events as ev
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.kernels.backend import Backend, kernel_named
from tinyserve_viz.kernels.defs.advanced_block_allocation import resized_hot_region
from tinyserve_viz.kernels.numpy_backend import NumpyBackend
from tinyserve_viz.kernels.parameters import default
from tinyserve_viz.memory.block_manager import BlockManager


@dataclass(frozen=True, slots=True)
class SeedBlockManager(BlockManager):
    """The paged allocator with the hot region; `hot_blocks` is its first size, 0 for the published share."""

    hot_blocks: int = 0
    backend: Backend = NumpyBackend()  # noqa: RUF009 - holds no state

    def hot_size(self, state: CacheState) -> int:
        """Ids below this form the hot region now."""
        return state.hot_size or self.hot_blocks or state.num_blocks // default("hot.start_divisor")

    def choose_blocks(
        self, state: CacheState, count: int, seqs: ev.I32 = ev.EMPTY, counts: ev.I32 = ev.EMPTY
    ) -> tuple[list[ev.Event], ev.I32, tuple[int, int, int, int]]:
        """As the kernel chooses; `counts[i]` blocks are for `seqs[i]`. `BlocksPlaced` has region, reason, runner-up."""
        seqs = np.repeat(seqs, counts)
        decoded = np.maximum(0, state.ctx[seqs] - state.workload.prompt_len[state.workload.request_of_seq[seqs]])
        size = self.hot_size(state)
        cached = ((state.ref == 0) & (state.hash >= 0)).astype(np.uint8)
        outputs = self.backend.run(
            kernel_named("advanced_block_allocation"),
            {
                "reqs": np.stack([np.arange(count), np.zeros(count)], axis=1).astype(np.int32),
                "request_freq": decoded.astype(np.int32),
                "block_table": np.full((count, 1), -1, dtype=np.int32),
                "ref": state.ref.copy(),
                "gen": state.gen.copy(),
                "cached": cached.copy(),
                "level": state.level.copy(),
                "last_use": state.last_use.astype(np.int64),
                "uses": state.uses.copy(),
            },
            {"cache_size": size, "clock": state.step},
        )
        blocks, reasons = outputs["allocated"], outputs["reason"]
        evicted = blocks[cached[blocks] != 0]
        runner_up = int(outputs["runner_up"][-1])
        events: list[ev.Event] = []
        if len(evicted):
            keys = state.last_use[evicted].astype(np.int64)
            next_key = int(state.last_use[runner_up]) if runner_up >= 0 else -1
            events.append(
                ev.BlocksEvicted(
                    "seed", evicted, state.hash[evicted], keys, runner_up, next_key, ev.EMPTY, state.clock_hand
                )
            )
        by_region, by_level = _spared(state, evicted, size)
        hot = decoded > default("hot.frequency")
        events.append(
            ev.BlocksPlaced(
                blocks=blocks,
                regions=outputs["region"].astype(np.int8),
                reasons=reasons.astype(np.int8),
                runner_ups=outputs["runner_up"],
                hot_size=size,
                hot_requests=state.hot_requests + int(hot.sum()),
                hot_misses=state.hot_misses + int((hot & (outputs["region"] == 1)).sum()),
                levels=state.level[blocks].astype(np.int8),
                spared_by_region=by_region,
                spared_by_level=by_level,
            )
        )
        num_unused = int((state.gen[blocks] == 0).sum())
        return events, blocks, (num_unused, count - num_unused - len(evicted), len(evicted), runner_up)

    def resize(self, state: CacheState) -> ev.BlocksPlaced | None:
        """At the end of a window of steps: the hot region's new size, and the window's counters at 0."""
        if (state.step + 1) % default("hot.resize_steps"):
            return None
        none = np.zeros(0, dtype=np.int8)
        size = resized_hot_region(self.hot_size(state), state.hot_requests, state.hot_misses, state.num_blocks)
        return ev.BlocksPlaced(ev.EMPTY, none, none, ev.EMPTY, max(1, size), 0, 0)


def _spared(state: CacheState, evicted: ev.I32, hot_size: int) -> tuple[int, int]:
    """Cached blocks that plain LRU would have given up in place of `evicted`: (spared by their region, by their level).

    By its level when it has one and its region lost other blocks, else by its region.
    """
    if not len(evicted):
        return 0, 0
    cached = np.flatnonzero((state.ref == 0) & (state.hash >= 0))
    oldest = cached[np.lexsort((cached, state.last_use[cached]))][: len(evicted)]
    spared = oldest[~np.isin(oldest, evicted)]
    lost = np.bincount(evicted >= hot_size, minlength=2) > 0
    by_level = lost[(spared >= hot_size).astype(np.int64)] & (state.level[spared] > 0)
    return int((~by_level).sum()), int(by_level.sum())
