"""`--alloc cas`: the published search with compare-and-swap decides who gets which free block.

Every request scans the reference counts from block 0 and takes the first that it can turn from 0 to 1. On a GPU that is
a race: two replays differ, so there is no digest; the NumPy reference lets the threads come in turn. Which blocks are
evicted, and when, stays with the eviction policy.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from tinyserve_viz.core import events as ev
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.kernels.backend import Backend, kernel_named
from tinyserve_viz.kernels.numpy_backend import NumpyBackend
from tinyserve_viz.memory.block_manager import BlockManager


@dataclass(frozen=True, slots=True)
class CasBlockManager(BlockManager):
    """The paged allocator whose free blocks are handed out by the race."""

    backend: Backend = NumpyBackend()  # noqa: RUF009 - holds no state

    @classmethod
    def of(cls, manager: BlockManager, backend: Backend) -> CasBlockManager:
        """`manager` with the race run on `backend`."""
        return cls(**{field.name: getattr(manager, field.name) for field in fields(BlockManager)}, backend=backend)

    def choose_blocks(
        self, state: CacheState, count: int, seqs: ev.I32 = ev.EMPTY, counts: ev.I32 = ev.EMPTY
    ) -> tuple[list[ev.Event], ev.I32, tuple[int, int, int, int]]:
        """As `BlockManager.choose_blocks`; a race has no runner-up."""
        events, _, (unused, freed, num_evicted, _) = BlockManager.choose_blocks(self, state, count, seqs, counts)
        evicted = [event.blocks for event in events if isinstance(event, ev.BlocksEvicted)]
        wanted = unused + freed
        # Cached blocks are nobody's either, but a search that took them would evict without a policy.
        taken = ((state.ref > 0) | (state.hash >= 0)).astype(np.int32)
        outputs = self.backend.run(
            kernel_named("block_allocation"),
            {
                "reqs": np.stack([np.arange(wanted), np.zeros(wanted)], axis=1).astype(np.int32),
                "free_order": ev.EMPTY,
                "block_table": np.full((wanted, 1), -1, dtype=np.int32),
                "ref": taken,
                "gen": np.zeros(state.num_blocks, dtype=np.int32),
            },
            {"mode": "cas"},
        )
        found = outputs["allocated"]
        num_unused = int((state.gen[found] == 0).sum())
        blocks = np.concatenate([found, *evicted])
        return events, blocks, (num_unused, wanted - num_unused, num_evicted, -1)
