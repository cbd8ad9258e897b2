"""Hit rates of a prefix cache by capacity and eviction policy, from a stream of block references alone.

One pool for the whole trace. References are taken one at a time: a block that is in the pool is a hit, any other is
inserted, after evicting one if the pool is full (nothing bypasses the cache). Time, pinning and generated tokens play
no part. LRU and Belady are stack algorithms (a pool holds all that a smaller one holds), so one pass answers for all
capacities: Mattson et al. 1970, https://doi.org/10.1147/sj.92.0078.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush, heappushpop, heapreplace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class References:
    """A stream of block references.

    Attributes:
        blocks: int32 [num_references] in 0..num_blocks-1
        tokens: int64 [num_references] prompt tokens in the block at that reference
        prompt_tokens: all prompt tokens of the trace, in blocks that can be referenced or not
    """

    blocks: NDArray[np.int32]
    tokens: NDArray[np.int64]
    num_blocks: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One point of a curve; `capacity` in blocks, None for a pool that never fills."""

    policy: str
    capacity: int | None
    hits: int
    hit_tokens: int
    block_hit_rate: float
    token_hit_rate: float


Counts = list[tuple[int, int]]  # (hits, tokens in them), one entry per capacity


def hit_curve(references: References, policy: str, capacities: Sequence[int | None]) -> list[CurvePoint]:
    """Points of `policy` (a key of POLICIES) at `capacities`, in their order."""
    num_references = len(references.blocks)
    enough = max(1, references.num_blocks)  # a pool that holds every block never evicts
    asked = [enough if capacity is None else min(capacity, enough) for capacity in capacities]
    ascending = sorted(set(asked))
    counts = dict(zip(ascending, POLICIES[policy](references, ascending), strict=True))
    return [
        CurvePoint(
            policy,
            capacity,
            hits,
            hit_tokens,
            hits / num_references if num_references else 0.0,
            hit_tokens / references.prompt_tokens if references.prompt_tokens else 0.0,
        )
        for capacity, (hits, hit_tokens) in zip(capacities, (counts[size] for size in asked), strict=True)
    ]


def lru(references: References, capacities: Sequence[int]) -> Counts:
    """Least recently used: hits where fewer than `capacity` other blocks were referenced since the last time."""
    before = previous_reference(references.blocks)
    repeats = np.flatnonzero(before >= 0)
    distances = _stack_distances(before, repeats)
    order = np.argsort(distances, kind="stable")
    tokens_upto = np.concatenate([[0], np.cumsum(references.tokens[repeats][order])])
    hits = np.searchsorted(distances[order], capacities, side="left")
    return [(int(count), int(tokens_upto[count])) for count in hits]


def fifo(references: References, capacities: Sequence[int]) -> Counts:
    """First in, first out: a block is still there while fewer than `capacity` were inserted after it."""
    blocks, tokens = references.blocks.tolist(), references.tokens.tolist()
    counts = []
    for capacity in capacities:
        gone = -capacity - 1  # the insertion that was evicted last
        inserted_at = [gone] * references.num_blocks
        inserted = hit_tokens = 0
        for block, weight in zip(blocks, tokens, strict=True):
            if inserted_at[block] > gone:
                hit_tokens += weight
            else:
                inserted_at[block] = inserted
                inserted += 1
                gone += 1
        counts.append((len(blocks) - inserted, hit_tokens))
    return counts


def clock(references: References, capacities: Sequence[int]) -> Counts:
    """FIFO with reinsertion: the hand passes a block that was hit since it last came by, and clears its bit."""
    blocks, tokens = references.blocks.tolist(), references.tokens.tolist()
    counts = []
    for capacity in capacities:
        bits = [-1] * references.num_blocks  # -1: not in the pool
        ring: deque[int] = deque()
        hits = hit_tokens = 0
        for block, weight in zip(blocks, tokens, strict=True):
            if bits[block] >= 0:
                bits[block] = 1
                hits += 1
                hit_tokens += weight
                continue
            if len(ring) == capacity:
                while bits[victim := ring.popleft()]:
                    bits[victim] = 0
                    ring.append(victim)
                bits[victim] = -1
            bits[block] = 0
            ring.append(block)
        counts.append((hits, hit_tokens))
    return counts


def lfu(references: References, capacities: Sequence[int]) -> Counts:
    """Least frequently used, counted since insertion; of equals the one inserted earliest goes."""
    blocks, tokens = references.blocks.tolist(), references.tokens.tolist()
    one_use, insertion_mask = 1 << 32, (1 << 32) - 1
    counts = []
    for capacity in capacities:
        # A block's key is uses << 32 | insertion, 0 when absent. Keys only grow while it stays, so an entry of the
        # queue is never above its block's key; one that is below is put right when it comes to the front.
        keys = [0] * references.num_blocks
        inserted: list[int] = []
        queue: list[int] = []
        hits = hit_tokens = 0
        for block, weight in zip(blocks, tokens, strict=True):
            if keys[block]:
                keys[block] += one_use
                hits += 1
                hit_tokens += weight
                continue
            if len(queue) == capacity:
                while (key := keys[victim := inserted[queue[0] & insertion_mask]]) != queue[0]:
                    heapreplace(queue, key)
                heappop(queue)
                keys[victim] = 0
            keys[block] = key = one_use | len(inserted)
            inserted.append(block)
            heappush(queue, key)
        counts.append((hits, hit_tokens))
    return counts


def belady(references: References, capacities: Sequence[int]) -> Counts:
    """The optimum: the block whose next reference is farthest goes first (Belady 1966), for all capacities in one pass.

    The pool of each capacity holds that of the next smaller one, so the state is one layer per capacity: the blocks
    that it adds. A miss in a full layer passes the farthest block of the layer on to the next; the layer that held the
    referenced block, or has room, ends the chain. Blocks without a next reference can go at any time: they are never
    put into a layer, which then has room in their place.
    """
    before = previous_reference(references.blocks)
    num_references = len(before)
    # A block in a layer is named by minus the time of its next reference: Python's heaps have the farthest in front,
    # and layer_of takes the name as an index from its end. 0: no next reference.
    names = np.zeros(num_references, dtype=np.int64)
    repeats = np.flatnonzero(before >= 0)
    names[before[repeats]] = -repeats

    num_layers = len(capacities)
    room = np.diff([0, *capacities]).tolist()
    layers: list[list[int]] = [[] for _ in capacities]  # heaps; names of past references stay, behind all others
    layer_of = [num_layers] * (num_references + 1)
    hits, hit_tokens = [0] * num_layers, [0] * num_layers
    for time, (name, weight) in enumerate(zip(names.tolist(), references.tokens.tolist(), strict=True)):
        found = layer_of[-time]
        if found < num_layers:
            room[found] += 1
            hits[found] += 1
            hit_tokens[found] += weight
        if room[0]:
            if name:
                heappush(layers[0], name)
                layer_of[name] = 0
                room[0] -= 1
            continue
        if name:
            moved = heapreplace(layers[0], name)
            layer_of[name] = 0
        else:
            moved = heappop(layers[0])
            room[0] += 1
        for layer in range(1, num_layers):
            if room[layer]:
                heappush(layers[layer], moved)
                layer_of[moved] = layer
                room[layer] -= 1
                break
            farthest = heappushpop(layers[layer], moved)
            layer_of[moved] = layer
            moved = farthest
        else:
            layer_of[moved] = num_layers
    return list(zip(np.cumsum(hits).tolist(), np.cumsum(hit_tokens).tolist(), strict=True))


POLICIES: dict[str, Callable[[References, Sequence[int]], Counts]] = {
    "lru": lru,
    "fifo": fifo,
    "lfu": lfu,
    "clock": clock,
    "belady": belady,
}


def previous_reference(blocks: NDArray[np.int32]) -> NDArray[np.int64]:
    """int64 like `blocks`: the index of the reference before that named the same block, or -1."""
    order = np.argsort(blocks, kind="stable")
    same = blocks[order[1:]] == blocks[order[:-1]]
    before = np.full(len(blocks), -1, dtype=np.int64)
    before[order[1:][same]] = order[:-1][same]
    return before


def _stack_distances(before: NDArray[np.int64], repeats: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 [len(repeats)]: how many other blocks were referenced between each repeat and the reference before.

    Between p and t these are the references s whose own reference before is earlier than p; all s ≤ p are such, so it
    is enough to count those before t: first references, and repeats with an earlier p.
    """
    earlier = before[repeats]
    firsts = repeats - np.arange(len(repeats))
    return firsts + _count_smaller_before(earlier) - (earlier + 1)


def _count_smaller_before(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 like `values` (which differ): for each the number of smaller ones that stand before it.

    A wavelet tree over the ranks: from the highest bit down, the array is split into groups of equal higher bits, in
    their old order; a rank with the bit set counts the ranks of its group that come before it and have it clear.
    O(n log n) in whole-array steps.
    """
    size = len(values)
    ranks = np.empty(size, dtype=np.int64)
    ranks[np.argsort(values)] = np.arange(size)
    counts = np.zeros(size, dtype=np.int64)
    here, place = ranks, np.arange(size)
    clear_before = np.zeros(size + 1, dtype=np.int64)
    for bit in reversed(range(max(size - 1, 0).bit_length())):
        is_set = (here >> bit) & 1
        np.cumsum(1 - is_set, out=clear_before[1:])
        group = here >> (bit + 1) << (bit + 1)  # ranks are 0..size-1, so a group starts at its smallest rank
        clear = clear_before[:-1] - clear_before[group]
        counts += is_set * clear
        target = np.where(is_set, group + (1 << bit) + (place - group - clear), group + clear)
        moved, moved_counts = np.empty_like(here), np.empty_like(counts)
        moved[target], moved_counts[target] = here, counts
        here, counts = moved, moved_counts
    return counts[ranks]
