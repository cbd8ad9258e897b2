"""The only code that changes a `CacheState`: one function per event type, the same live and in replay.

Events are trusted here: they were decided on this very state, or come from a recording of it. What a bug could break
is found by `core.check`, not by tests in these functions, which run 10^6 times in a long replay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tinyserve_viz.core import events as ev
from tinyserve_viz.core import state as st
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.core.stream import APPLY_STREAM

_NONE = np.zeros(0, dtype=np.int64)
_FEW = 4  # blocks; scalar assignments to so many cost less than NumPy's calls (measured: 0.1 against 1.5 µs each)


def apply(state: CacheState, event: ev.Event) -> None:
    """Change `state` by `event`."""
    _APPLY[type(event)](state, event)


def _clock_jumped(state: CacheState, event: ev.ClockJumped) -> None:
    state.time_us = event.time_us


def _requests_arrived(state: CacheState, event: ev.RequestsArrived) -> None:
    w = state.workload
    for request in event.requests.tolist():
        first = int(w.first_seq[request])
        state.status[first] = st.WAITING
        state.prefill_target[first] = w.prompt_len[request]


def _request_rejected(state: CacheState, event: ev.RequestRejected) -> None:
    w = state.workload
    first = int(w.first_seq[event.request])
    state.status[first : first + int(w.num_samples[event.request])] = st.REJECTED


def _request_cancelled(state: CacheState, event: ev.RequestCancelled) -> None:
    _retire(state, event.seqs, st.CANCELLED)


def _sequence_admitted(state: CacheState, event: ev.SequenceAdmitted) -> None:
    seq, slot, hits = event.seq, event.slot, event.hits.astype(np.intp)
    if slot >= len(state.slot_used):
        state.grow_slots(slot)
    state.slot[seq] = slot
    state.slot_used[slot] = True
    state.status[seq] = st.RUNNING
    state.prefill_target[seq] = event.prefill_target
    state.causes[slot, : len(event.causes)] = event.causes
    num_hits = len(hits)
    state.num_held[seq] = num_hits
    state.ctx[seq] = num_hits * state.block_size
    if not state.num_preemptions[seq]:
        state.hit_tokens[seq] = event.class_tokens[0]
    if num_hits:
        state.tables[slot, :num_hits] = hits
        revived = hits[state.ref[hits] == 0]
        if len(revived):
            state.cached.remove(revived)
            state.num_cached_free -= len(revived)
            state.num_used += len(revived)
            state.resident_tokens += int(state.fill[revived].sum())
        state.ref[hits] += 1
        state.uses[hits] += 1
        state.clock_bit[hits] = 1
        state.last_use[hits] = state.step
        state.window_hits[hits] += 1
        state.window_lookups[hits] += 1
    if len(event.orphans):
        state.window_lookups[event.orphans] += 1


def _sequence_preempted(state: CacheState, event: ev.SequencePreempted) -> None:
    seq = event.seq
    state.status[seq] = st.PREEMPTED
    state.held_at_preempt[seq] = state.num_held[seq]
    state.num_preemptions[seq] += 1
    state.prefill_target[seq] = event.prefill_target
    state.ctx[seq] = 0


def _blocks_evicted(state: CacheState, event: ev.BlocksEvicted) -> None:
    blocks = event.blocks
    if state.num_duplicates:
        _drop_hashes_with_copies(state, event)
    else:
        state.block_of_hash[event.hashes] = -1
        state.hash[blocks] = -1
    state.uses[blocks] = 0
    state.num_cached_free -= len(blocks)
    if not state.single_queue:
        state.cached.remove(blocks)
        state.free.push_back(blocks)
    if len(event.cleared):
        state.clock_bit[event.cleared] = 0
    state.clock_hand = event.hand


def _drop_hashes_with_copies(state: CacheState, event: ev.BlocksEvicted) -> None:
    """Evict where two blocks may carry one hash: the next oldest copy takes over the index entry."""
    for block, content in zip(event.blocks.tolist(), event.hashes.tolist(), strict=True):
        state.hash[block] = -1
        copies = np.flatnonzero(state.hash == content)
        if len(copies):
            state.num_duplicates -= 1
            if state.block_of_hash[content] == block:
                state.block_of_hash[content] = copies[state.inserted[copies].argmin()]
        else:
            state.block_of_hash[content] = -1


def _blocks_allocated(state: CacheState, event: ev.BlocksAllocated) -> None:
    blocks, seqs, counts = event.blocks, event.seqs, event.counts
    _take(state, blocks)
    if len(blocks) <= _FEW and len(blocks) == len(seqs):
        tables, num_held = state.tables, state.num_held
        triples = zip(seqs.tolist(), event.first_logical.tolist(), blocks.tolist(), strict=True)
        for seq, logical, block in triples:
            tables[state.slot[seq], logical] = block
            num_held[seq] += 1
            state.tail_block[seq] = block
        return
    if len(blocks) == len(seqs):
        state.tables[state.slot[seqs], event.first_logical] = blocks
    else:
        start = 0
        for seq, first, count in zip(seqs.tolist(), event.first_logical.tolist(), counts.tolist(), strict=True):
            state.tables[state.slot[seq], first : first + count] = blocks[start : start + count]
            start += count
    state.num_held[seqs] += counts
    state.tail_block[seqs] = blocks[np.cumsum(counts) - 1]


def _take(state: CacheState, blocks: ev.I32) -> None:
    """Blocks leave the free order with one reference, empty."""
    state.free.remove(blocks)
    state.num_used += len(blocks)
    if len(blocks) <= _FEW:
        for block in blocks.tolist():
            state.ref[block] = 1
            state.gen[block] += 1
            state.fill[block] = 0
            state.last_use[block] = state.step
            state.level[block] = 0
            state.freq[block] = 0
            state.window_hits[block] = 0
            state.window_lookups[block] = 0
        return
    index = blocks.astype(np.intp)
    state.ref[index] = 1
    state.gen[index] += 1
    state.fill[index] = 0
    state.last_use[index] = state.step
    state.level[index] = 0
    state.freq[index] = 0
    state.window_hits[index] = 0
    state.window_lookups[index] = 0


def _blocks_copied(state: CacheState, event: ev.BlocksCopied) -> None:
    _take(state, event.dst)
    state.fill[event.dst] = event.tokens
    state.resident_tokens += int(event.tokens.sum())
    state.tables[state.slot[event.seqs], event.logical] = event.dst
    last = event.logical == state.num_held[event.seqs] - 1
    state.tail_block[event.seqs[last]] = event.dst[last]
    np.subtract.at(state.ref, event.src, 1)  # one block may be left by several sharers in one step
    _release(state, np.unique(event.src[state.ref[event.src] == 0]))  # their last holder left an indexed block


def _tokens_written(state: CacheState, event: ev.TokensWritten) -> None:
    bs = state.block_size
    seqs = event.decode_seqs.astype(np.intp)  # once, not by NumPy in each of the lines below
    if state.num_used == state.null_blocks:  # ranges are reserved and no blocks exist to be filled
        state.ctx[seqs] += 1
        state.ctx[event.prefill_seqs] += event.prefill_counts
        return
    if len(seqs):
        blocks = state.tail_block[seqs]
        if state.has_forks:  # a block left by its other holders may be fuller than this sequence's part of it
            fill = state.ctx[seqs] % bs + 1
            state.resident_tokens += int(fill.sum() - state.fill[blocks].sum())
            state.fill[blocks] = fill
        else:
            state.resident_tokens += len(seqs)
            state.fill[blocks] += 1
        state.ctx[seqs] += 1
        state.last_written = blocks
    else:
        state.last_written = _NONE
    if len(event.prefill_seqs):
        written = [state.last_written]
        for seq, count in zip(event.prefill_seqs.tolist(), event.prefill_counts.tolist(), strict=True):
            start = int(state.ctx[seq])
            end = start + count
            blocks = state.tables[state.slot[seq], start // bs : (end + bs - 1) // bs].astype(np.intp)
            before = int(state.fill[blocks].sum())
            state.fill[blocks] = bs
            state.fill[blocks[-1]] = (end - 1) % bs + 1
            state.resident_tokens += (len(blocks) - 1) * bs + (end - 1) % bs + 1 - before
            state.ctx[seq] = end
            written.append(blocks)
        state.last_written = np.concatenate(written)


def _blocks_cached(state: CacheState, event: ev.BlocksCached) -> None:
    if len(event.blocks) == 1:
        _block_cached(state, int(event.blocks[0]), int(event.hashes[0]))
        return
    blocks, hashes = event.blocks.astype(np.intp), event.hashes.astype(np.intp)
    state.hash[blocks] = hashes
    fresh = state.block_of_hash[hashes] < 0
    state.block_of_hash[hashes[fresh][::-1]] = blocks[fresh][::-1]  # of equal hashes in one event the first is found
    state.num_duplicates += int((state.block_of_hash[hashes] != blocks).sum())
    state.ever_cached[hashes] = True
    state.uses[blocks] = 1
    state.clock_bit[blocks] = 0
    state.inserted[blocks] = np.arange(state.insert_stamp, state.insert_stamp + len(blocks))
    state.insert_stamp += len(blocks)


def _block_cached(state: CacheState, block: int, content: int) -> None:
    """One block, as under vLLM's rules in most steps, without NumPy's cost per call."""
    state.hash[block] = content
    if state.block_of_hash[content] < 0:
        state.block_of_hash[content] = block
    else:
        state.num_duplicates += 1
    state.ever_cached[content] = True
    state.uses[block] = 1
    state.clock_bit[block] = 0
    state.inserted[block] = state.insert_stamp
    state.insert_stamp += 1


def _sequences_forked(state: CacheState, event: ev.SequencesForked) -> None:
    parent, bs = event.parent, state.block_size
    held = min(-(-event.num_tokens // bs), int(state.num_held[parent]))  # 0 where ranges are reserved instead
    shared = state.table(parent)[:held].copy()
    state.has_forks = 1
    for child, slot, running in zip(event.children.tolist(), event.slots.tolist(), event.running.tolist(), strict=True):
        if slot >= len(state.slot_used):
            state.grow_slots(slot)
        state.slot[child] = slot
        state.slot_used[slot] = True
        state.tables[slot, :held] = shared
        state.tail_block[child] = shared[-1] if held else 0
        prompt_len = int(state.workload.prompt_len[state.workload.request_of_seq[child]])
        state.causes[slot, : -(-prompt_len // bs)] = state.causes[state.slot[parent], : -(-prompt_len // bs)]
        state.history[slot, :held] = state.history[state.slot[parent], :held]
        state.num_held[child] = held
        state.ctx[child] = event.num_tokens
        if state.workload.request_of_seq[child] == state.workload.request_of_seq[parent]:
            state.prefill_target[child] = event.num_tokens
        state.status[child] = st.RUNNING if running else st.FORKED
        state.ref[shared] += 1


def _sequence_seated(state: CacheState, event: ev.SequenceSeated) -> None:
    state.status[event.seq] = st.RUNNING


def _blocks_freed(state: CacheState, event: ev.BlocksFreed) -> None:
    """Drop references in the listed order; a block joins its free order where its last reference goes."""
    blocks = event.blocks.astype(np.intp)
    if (
        len(event.seqs) == 1 or state.single_queue
    ):  # in one queue each sequence's unhashed blocks go before the last one's
        start = 0
        for count in event.counts.tolist():
            of_seq = blocks[start : start + count]
            state.ref[of_seq] -= 1
            _release(state, of_seq[state.ref[of_seq] == 0])
            start += count
    elif len(blocks):
        shared = bool((state.ref[blocks] > 1).any())
        np.subtract.at(state.ref, blocks, 1)
        released = blocks[state.ref[blocks] == 0]
        if shared:  # a block that two sequences leave in one event goes with the last of them
            last = len(released) - 1 - np.unique(released[::-1], return_index=True)[1]
            released = released[np.sort(last)]
        _release(state, released)
    for seq, count in zip(event.seqs.tolist(), event.counts.tolist(), strict=True):
        state.tables[state.slot[seq], :count] = -1
        state.history[state.slot[seq], :count] = 0
    state.num_held[event.seqs] = 0


def _release(state: CacheState, released: ev.I32 | ev.I64) -> None:
    if not len(released):
        return
    state.num_used -= len(released)
    state.resident_tokens -= int(state.fill[released].sum())
    state.last_use[released] = state.step
    hashed = state.hash[released] >= 0
    cached, plain = released[hashed], released[~hashed]
    state.num_cached_free += len(cached)
    if state.single_queue:
        state.free.push_front(plain)
        state.free.push_back(cached)
    else:
        state.free.push_back(plain)
        state.cached.push_back(cached)


def _sequences_finished(state: CacheState, event: ev.SequencesFinished) -> None:
    _retire(state, event.seqs, st.FINISHED)


def _retire(state: CacheState, seqs: ev.I32, status: int) -> None:
    state.status[seqs] = status
    state.finished_us[seqs] = state.time_us
    slots = state.slot[seqs]
    slots = slots[slots >= 0]
    state.causes[slots] = 0
    state.slot_used[slots] = False
    state.slot[seqs] = -1


def _range_reserved(state: CacheState, event: ev.RangeReserved) -> None:
    state.reserved_start[event.seq] = event.start
    state.reserved_len[event.seq] = event.length


def _ranges_freed(state: CacheState, event: ev.RangesFreed) -> None:
    state.reserved_start[event.seqs] = -1
    state.reserved_len[event.seqs] = 0


def _step_ended(state: CacheState, event: ev.StepEnded) -> None:
    state.step += 1
    state.time_us = event.time_us
    if len(event.prefilled):
        fresh = event.prefilled[state.first_token_us[event.prefilled] < 0]
        state.first_token_us[fresh] = event.time_us


_SMALL_TABLES = 1 << 18  # entries; marking all of them takes less time than sorting those that are named


def _blocks_selected(state: CacheState, event: ev.BlocksSelected) -> None:
    """One access more for every block that a sequence keeps for any head."""
    first = state.slot[event.seqs].astype(np.int64) * state.tables.shape[1]
    entries = (np.repeat(np.repeat(first, event.num_heads), event.counts) + event.selected).astype(np.int64)
    if state.tables.size <= _SMALL_TABLES:
        kept = np.zeros(state.tables.size, dtype=np.bool_)
        kept[entries] = True
        entries = np.flatnonzero(kept).astype(np.int64)
    else:
        entries = np.unique(entries)
    state.history.reshape(-1)[entries] += 1
    np.add.at(state.freq, state.tables.reshape(-1)[entries], np.int32(1))  # sequences may share a block


def _levels_adapted(state: CacheState, event: ev.LevelsAdapted) -> None:
    state.level[event.blocks] = event.levels
    state.freq[:] = state.freq.astype(np.int64) * event.decay_permille // 1000
    state.window_hits[:] = 0
    state.window_lookups[:] = 0


_MOVED = (
    "ref",
    "hash",
    "fill",
    "last_use",
    "uses",
    "inserted",
    "clock_bit",
    "level",
    "freq",
    "window_hits",
    "window_lookups",
)
_EMPTY_BLOCK = {"hash": -1}


def _compaction_planned(state: CacheState, event: ev.CompactionPlanned) -> None:
    """Blocks change places: their arrays, the tables and the index follow; the places left are free."""
    src, dst = event.src, event.dst
    state.compacted_at = state.step
    if not len(src):
        return
    state.free.remove(dst)
    for name in _MOVED:
        array = getattr(state, name)
        array[dst] = array[src]
        array[src] = _EMPTY_BLOCK.get(name, 0)
    state.gen[src] += 1
    state.gen[dst] += 1
    new_id = np.arange(state.num_blocks, dtype=np.int32)
    new_id[src] = dst
    held = state.tables >= 0
    state.tables[held] = new_id[state.tables[held]]
    state.tail_block = new_id[state.tail_block].astype(np.int64)
    hashed = dst[state.hash[dst] >= 0]
    owners = state.block_of_hash[state.hash[hashed]]
    state.block_of_hash[state.hash[hashed]] = new_id[owners]
    state.last_written = new_id[state.last_written].astype(np.int64)
    state.free.push_back(src)


def _blocks_placed(state: CacheState, event: ev.BlocksPlaced) -> None:
    state.hot_size = event.hot_size
    state.hot_requests = event.hot_requests
    state.hot_misses = event.hot_misses


def _kernels_timed(_state: CacheState, _event: ev.KernelsTimed) -> None:
    """Times change nothing."""


_APPLY: dict[type[ev.Event], Callable[[CacheState, Any], None]] = {
    ev.ClockJumped: _clock_jumped,
    ev.RequestsArrived: _requests_arrived,
    ev.RequestRejected: _request_rejected,
    ev.RequestCancelled: _request_cancelled,
    ev.SequenceAdmitted: _sequence_admitted,
    ev.SequencePreempted: _sequence_preempted,
    ev.BlocksEvicted: _blocks_evicted,
    ev.BlocksAllocated: _blocks_allocated,
    ev.BlocksCopied: _blocks_copied,
    ev.TokensWritten: _tokens_written,
    ev.BlocksCached: _blocks_cached,
    ev.SequencesForked: _sequences_forked,
    ev.SequenceSeated: _sequence_seated,
    ev.BlocksFreed: _blocks_freed,
    ev.SequencesFinished: _sequences_finished,
    ev.RangeReserved: _range_reserved,
    ev.RangesFreed: _ranges_freed,
    ev.StepEnded: _step_ended,
    ev.BlocksSelected: _blocks_selected,
    ev.LevelsAdapted: _levels_adapted,
    ev.CompactionPlanned: _compaction_planned,
    ev.BlocksPlaced: _blocks_placed,
    ev.KernelsTimed: _kernels_timed,
    **APPLY_STREAM,
}
