"""The paged allocator: prefix lookup, allocation in free order, eviction, release. Reads a state, returns events.

Free order (rule `free_order`):

    classes:  never used, ids ascending │ freed and uncached, in order of freeing │ cached, in the policy's order
    queue:    one queue; what is freed goes to its back when it carries a hash and to its front when not (vLLM)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinyserve_viz.core import workload as wl
from tinyserve_viz.core.events import EMPTY, I32, U8, BlocksAllocated, BlocksCached, BlocksEvicted, BlocksFreed, Event
from tinyserve_viz.core.rules import DEFAULT_RULES, EngineRules
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.memory.policies.eviction import EVICTION
from tinyserve_viz.memory.policies.eviction.victims import EvictionPolicy, victims

_FEW = 4  # a Python loop over so few scalars costs less than one call of NumPy


def _count_zeros(array: I32, blocks: I32) -> int:
    """How many of `blocks` have a 0 in `array`."""
    if len(blocks) <= _FEW:
        return [array[block] for block in blocks.tolist()].count(0)
    return int((array[blocks] == 0).sum())


@dataclass(frozen=True, slots=True)
class BlockManager:
    """Parameters of the paged allocator; all state is in the `CacheState`.

    `eviction` names a policy of `EVICTION`, unless `oracle` is given: one that knows the trace. With `prefix_caching`
    off nothing enters the index and nothing is found.
    """

    eviction: str = "lru"
    prefix_caching: bool = True
    rules: EngineRules = DEFAULT_RULES
    oracle: EvictionPolicy | None = None

    def _evict(self, state: CacheState, count: int) -> BlocksEvicted:
        return (self.oracle or EVICTION[self.eviction])(state, count)

    def lookup(self, state: CacheState, hashes: I32, max_blocks: int) -> I32:
        """The longest run of cached blocks from the head of `hashes`, at most `max_blocks`; int32 [h]."""
        if not self.prefix_caching:
            return EMPTY
        blocks = state.block_of_hash[hashes[:max_blocks]]
        missing = blocks < 0
        return blocks[: int(missing.argmax())] if missing.any() else blocks

    def choose_blocks(
        self,
        state: CacheState,
        count: int,
        seqs: I32 = EMPTY,  # noqa: ARG002 - these two are for managers that place by who asks
        counts: I32 = EMPTY,  # noqa: ARG002
    ) -> tuple[list[Event], I32, tuple[int, int, int, int]]:
        """The next `count` ids of the free order: events that evict first, the ids, and where they came from.

        `count` must not exceed `state.num_available`; of them `counts[i]` are for `seqs[i]`.
        The last value is (never used, freed, evicted, runner-up id).
        """
        if state.single_queue:
            return self._choose_from_queue(state, count)
        front = state.free.front(count + 1)
        blocks = front[:count]
        events: list[Event] = []
        runner_up = int(front[count]) if len(front) > count else -1
        num_unused = _count_zeros(state.gen, blocks)
        num_evicted = count - len(blocks)
        num_freed = len(blocks) - num_unused
        if num_evicted:
            evicted = self._evict(state, num_evicted)
            events.append(evicted)
            blocks = np.concatenate([blocks, evicted.blocks])
            runner_up = evicted.runner_up
        elif runner_up < 0 and state.cached.size:
            runner_up = self._evict(state, 1).blocks.item()
        return events, blocks, (num_unused, num_freed, num_evicted, runner_up)

    def _choose_from_queue(self, state: CacheState, count: int) -> tuple[list[Event], I32, tuple[int, int, int, int]]:
        front = state.free.front(count + 1)
        blocks = front[:count]
        hashed = state.hash[blocks] >= 0
        runner_up = int(front[count]) if len(front) > count else -1
        num_evicted = int(hashed.sum())
        num_unused = int((state.gen[blocks] == 0).sum())
        events: list[Event] = []
        if num_evicted:
            given_up = blocks[hashed]
            events.append(victims(state, "queue", given_up, state.last_use[given_up].astype(np.int64), num_evicted))
        return events, blocks, (num_unused, count - num_unused - num_evicted, num_evicted, runner_up)

    def allocate(self, state: CacheState, seqs: I32, first_logical: I32, counts: I32) -> list[Event]:
        """Blocks for the logical blocks `first_logical[i] …` of each sequence, in request order."""
        total = sum(counts.tolist()) if len(counts) <= _FEW else int(counts.sum())
        events, blocks, (unused, freed, evicted, runner_up) = self.choose_blocks(state, total, seqs, counts)
        events.append(BlocksAllocated(seqs, first_logical, counts, blocks, unused, freed, evicted, runner_up))
        return events

    def free(self, state: CacheState, seqs: I32) -> BlocksFreed:
        """All blocks of `seqs` (int32 [k], each holding a row), each sequence tail first (rule `free_from`)."""
        step = -1 if self.rules.free_from == "tail" else 1
        tables = [state.table(seq)[::step] for seq in seqs.tolist()]
        return BlocksFreed(seqs, state.num_held[seqs], np.concatenate(tables))

    def index(self, state: CacheState, blocks: I32, hashes: I32) -> BlocksCached | None:
        """Enter full `blocks` under `hashes`; without the rule `duplicate_hashes` only new contents."""
        if not self.prefix_caching or not len(blocks):
            return None
        if not self.rules.duplicate_hashes:
            fresh = state.block_of_hash[hashes] < 0
            first = np.zeros(len(hashes), dtype=np.bool_)
            first[np.unique(hashes, return_index=True)[1]] = True
            fresh &= first
            if not fresh.all():
                blocks, hashes = blocks[fresh], hashes[fresh]
        return BlocksCached(blocks, hashes) if len(blocks) else None


def explain_prompt(
    state: CacheState, hashes: I32, prompt_len: int, num_hits: int, max_blocks: int, held_before: int, old: U8 | None
) -> U8:
    """Why each prompt block is a hit or has to be computed: uint8 [ceil(prompt_len / block_size)] of `MISS_CAUSES`.

    The first rule that fits: `capped` (the last prompt token is always computed, and with it a last full block that was
    cached), `tail` (not full, or its content has no known hash), `cold` (never cached before), `orphaned` (cached, an
    ancestor is not), `preempted` (this sequence held it before it was preempted), `evicted`.
    At a re-admission `old` are the causes so far and `held_before` the blocks held when preempted: only blocks that
    were held and must be computed again get a new cause.
    """
    bs = state.block_size
    num_blocks = -(-prompt_len // bs)
    causes = np.full(num_blocks, wl.TAIL, dtype=np.uint8)
    known = min(len(hashes), prompt_len // bs)
    missed = hashes[num_hits:known]
    causes[:num_hits] = wl.HIT
    lost = np.where(np.arange(num_hits, known) < held_before, wl.PREEMPTED_AWAY, wl.EVICTED)
    cached_now = state.block_of_hash[missed] >= 0
    causes[num_hits:known] = np.where(~state.ever_cached[missed], wl.COLD, np.where(cached_now, wl.ORPHANED, lost))
    if num_hits == max_blocks < known and cached_now[0]:
        causes[max_blocks] = wl.CAPPED
    if old is not None:
        again = np.arange(num_blocks)
        keep = (again < num_hits) | (again >= held_before)
        causes[keep] = old[:num_blocks][keep]
    return causes


def tokens_per_class(causes: U8, prompt_len: int, block_size: int) -> wl.I64:
    """Prompt tokens of each class, int64 [7]; sums to `prompt_len`. The last prompt token is always `capped`."""
    tokens = np.bincount(causes, minlength=len(wl.MISS_CAUSES)).astype(np.int64) * block_size
    last = causes[-1]
    tokens[last] -= len(causes) * block_size - prompt_len + 1
    tokens[wl.CAPPED] += 1
    return tokens


__all__ = ["BlockManager", "BlocksEvicted", "explain_prompt", "tokens_per_class"]
