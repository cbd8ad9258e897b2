"""Events in words: what happened and why, with the rule, the keys it compared and what would have been next.

Every sentence is made from the event and the state *before* it; nothing is decided or guessed here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinyserve_viz.analysis.reasons import (
    first_reasons,
    newest_half_lost,
    what_a_choice_was_worth,
    what_the_regions_did,
)
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.core.stream import StreamState
from tinyserve_viz.core.workload import MISS_CAUSES, Workload

_NAMED = 3  # sequences or block ranges that a sentence names before it says how many more there are

BELADY_SHIFT = 40  # of the keys of memory.policies.eviction.belady; a test compares them
VICTIM_RULES = {
    "latest_arrived": "latest arrived",
    "last_running": "last in running order",
    "least_computed": "fewest tokens to lose",
}
_PLACE_REASONS = (
    "free in its own region",
    "evicted in its own region",
    "free in the other region",
    "evicted in the other region",
)


def sentence(event: ev.Event, state: CacheState) -> str:
    """`event` in words; `state` is the one that it was decided on and is not changed."""
    return _SENTENCES[type(event)](event, state)


def seconds(time_us: int) -> str:
    """Simulated time, e.g. `1.184 s`."""
    return f"{time_us / 1e6:.3f} s"


def duration(time_us: float) -> str:
    """A measured time with three figures, e.g. `812 µs`, `4.57 ms`, `1.20 s`."""
    for limit, scale, unit in ((1e3, 1.0, "µs"), (1e6, 1e3, "ms")):
        if time_us < limit:
            value = time_us / scale
            return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"
    return f"{time_us / 1e6:.2f} s"


def block_list(blocks: ev.I32 | Sequence[int]) -> str:
    """Block ids in the order given, neighbours joined: `block 7`, `blocks 0–6, 9 and 12 more`."""
    ids = [int(block) for block in blocks]
    runs: list[list[int]] = []
    for block in ids:
        if runs and block == runs[-1][1] + 1:
            runs[-1][1] = block
        else:
            runs.append([block, block])
    parts = [f"{first}" if first == last else f"{first}–{last}" for first, last in runs[:_NAMED]]
    rest = sum(last - first + 1 for first, last in runs[_NAMED:])
    more = f" and {rest} more" if rest else ""
    return f"block{'s' if len(ids) != 1 else ''} {', '.join(parts)}{more}"


def seq_list(workload: Workload, seqs: ev.I32 | Sequence[int]) -> str:
    """Names of sequences, in full for a few: `r1, r2, r3 and 4 more`."""
    return _listed([workload.seq_name(int(seq)) for seq in seqs])


def _listed(names: list[str]) -> str:
    if len(names) <= _NAMED:
        return ", ".join(names)
    return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"


def count(number: int, what: str) -> str:
    """`1 block`, `1,204 blocks`, `3 batches`, `2 copies`."""
    plural = what + ("es" if what.endswith("ch") else "s")
    if what.endswith("copy"):
        plural = what[:-1] + "ies"
    return f"{number:,} {what if number == 1 else plural}"


def _clock_jumped(event: ev.ClockJumped, _state: CacheState) -> str:
    return f"nothing to run: simulated time jumps to the next arrival, {seconds(event.time_us)}"


def _requests_arrived(event: ev.RequestsArrived, state: CacheState) -> str:
    w = state.workload
    ids = event.requests.tolist()
    if len(ids) == 1:
        request = ids[0]
        samples = int(w.num_samples[request])
        wanted = f"{count(int(w.output_len[request]), 'token')} to generate"
        each = f", {samples} samples" if samples > 1 else ""
        prompt = count(int(w.prompt_len[request]), "prompt token")
        return f"{w.request_ids[request]} arrived: {prompt}, {wanted}{each}; it waits"
    return f"{len(ids)} requests arrived and wait: {_listed([w.request_ids[request] for request in ids])}"


def _request_rejected(event: ev.RequestRejected, state: CacheState) -> str:
    name = state.workload.request_ids[event.request]
    if event.rule == "parent_rejected":
        return f"{name} rejected: it forks from a request that was rejected"
    unit = {"num_blocks": "blocks", "token_slots": "token slots"}.get(event.rule, event.rule)
    return f"{name} rejected: it can never run, it needs {event.needed:,} {unit} and the pool has {event.available:,}"


def _request_cancelled(event: ev.RequestCancelled, state: CacheState) -> str:
    w = state.workload
    why = "its cancel time was reached" if event.rule == "deadline" else "its parent ended before it could start"
    alive = f"; its sequences end: {seq_list(w, event.seqs)}" if len(event.seqs) > 1 else ""
    return f"{w.request_ids[event.request]} cancelled: {why}{alive}"


def _sequence_admitted(event: ev.SequenceAdmitted, state: CacheState) -> str:
    name = state.workload.seq_name(event.seq)
    hit = len(event.hits) * state.block_size
    tokens = event.class_tokens.tolist()
    again = "re-admitted" if state.num_preemptions[event.seq] else "admitted"
    what = "prompt tokens" if again == "admitted" else "tokens to recompute"
    parts = [f"{name} {again}: {hit:,} of {event.prefill_target:,} {what} hit"]
    missed = [f"{number:,} {cause}" for cause, number in zip(MISS_CAUSES[1:], tokens[1:], strict=True) if number > 0]
    if missed:
        parts[0] += f" (missed: {', '.join(missed)})"
    kept = f", {event.reserve} of them kept back by the watermark" if event.reserve else ""
    parts.append(f"needs {count(event.needed, 'block')} of {event.available:,} available{kept}")
    if event.num_waiting:
        parts.append(f"{event.num_waiting} still waiting")
    return "; ".join(parts)


def _sequence_preempted(event: ev.SequencePreempted, state: CacheState) -> str:
    w = state.workload
    rule = VICTIM_RULES.get(event.rule, event.rule)
    other = "it" if event.for_seq == event.seq else w.seq_name(event.for_seq)
    next_one = f"; next would be {w.seq_name(event.runner_up)}" if event.runner_up >= 0 else "; no other could be"
    return (
        f"preempted {w.seq_name(event.seq)} ({rule}): {other} needed {count(event.needed, 'block')}, "
        f"{event.available} left; {event.lost_tokens:,} computed tokens lost{next_one}"
    )


def _blocks_evicted(event: ev.BlocksEvicted, state: CacheState) -> str:
    rule, first = event.rule, int(event.blocks[0])
    order = {
        "lru": "least recently used first",
        "fifo": "longest in the prefix index first",
        "lfu": "least often used first",
        "clock": "first that the clock hand found without its bit",
        "seed": "where seed placed the new blocks",
        "unwritten": "indexed when scheduled, never written",
        "belady": "what the rest of the trace asks for last first",
    }.get(rule, f"policy {rule}")

    def key(block: int) -> str:
        if rule == "belady":
            ahead = int(event.keys[0] if block == first else event.runner_up_key) >> BELADY_SHIFT
            ids = state.workload.request_ids
            return f"next asked for by {ids[len(ids) - ahead]}" if ahead else "never asked for again"
        if rule == "lfu":
            return f"used {count(int(state.uses[block]), 'time')}"
        if rule == "fifo":
            return f"entered the index as number {int(state.inserted[block]) + 1:,}"
        if rule == "clock":
            return f"bit {int(state.clock_bit[block])}"
        return f"last used at step {int(state.last_use[block])}"

    text = f"evicted {count(len(event.blocks), 'cached block')}, {order} (block {first}, {key(first)})"
    if event.runner_up >= 0:
        text += f"; next would be block {event.runner_up} ({key(event.runner_up)})"
    else:
        text += "; no cached block is left"
    if rule == "clock":
        text += f"; {count(len(event.cleared), 'bit')} cleared on the way, hand at block {event.hand}"
    return text


def _blocks_allocated(event: ev.BlocksAllocated, state: CacheState) -> str:
    w = state.workload
    if len(event.seqs) == 1:
        first, number = int(event.first_logical[0]), int(event.counts[0])
        span = f"{first}" if number == 1 else f"{first}–{first + number - 1}"
        text = f"{w.seq_name(int(event.seqs[0]))} got {block_list(event.blocks)} for its logical {span}"
    else:
        text = f"{seq_list(w, event.seqs)} got {block_list(event.blocks)}"
    kinds = ((event.num_unused, "never used"), (event.num_freed, "freed before"), (event.num_evicted, "just evicted"))
    source = ", ".join(f"{number:,} {kind}" for number, kind in kinds if number)
    last = f"block {event.runner_up} is next" if event.runner_up >= 0 else "none is left"
    headed = "it headed" if len(event.blocks) == 1 else "they headed"
    return f"{text}: {headed} the free order ({source}); {last}" if source else f"{text}; {last}"


def _blocks_copied(event: ev.BlocksCopied, state: CacheState) -> str:
    w = state.workload
    rows = []
    columns = (event.seqs.tolist(), event.logical.tolist(), event.src.tolist(), event.dst.tolist(), event.tokens)
    for seq, logical, src, dst, tokens in list(zip(*columns, strict=True))[:_NAMED]:
        token = logical * state.block_size + int(tokens)
        rows.append(
            f"{w.seq_name(seq)} writes token {token} into block {src}, which others hold too "
            f"(ref {int(state.ref[src])}) → copied {count(int(tokens), 'token')} to block {dst}"
        )
    more = f"; and {len(event.seqs) - _NAMED} more" if len(event.seqs) > _NAMED else ""
    return f"copy-on-write: {'; '.join(rows)}{more}"


def _tokens_written(event: ev.TokensWritten, state: CacheState) -> str:
    w, parts = state.workload, []
    if len(event.prefill_seqs):
        total = int(event.prefill_counts.sum())
        parts.append(f"{count(total, 'prefill token')} of {seq_list(w, event.prefill_seqs)}")
    if len(event.decode_seqs):
        each = "1 new token" + (" each" if len(event.decode_seqs) > 1 else "")
        parts.append(f"{each} of {seq_list(w, event.decode_seqs)}")
    return f"wrote K and V: {' and '.join(parts)}" if parts else "wrote nothing"


def _blocks_cached(event: ev.BlocksCached, _state: CacheState) -> str:
    verb = "is full and enters" if len(event.blocks) == 1 else "are full and enter"
    return f"{block_list(event.blocks)} {verb} the prefix index: later prompts can share them"


def _sequences_forked(event: ev.SequencesForked, state: CacheState) -> str:
    w = state.workload
    held = min(-(-event.num_tokens // state.block_size), int(state.num_held[event.parent]))
    waiting = len(event.children) - int(event.running.sum())
    wait = f"; {waiting} {'waits' if waiting == 1 else 'wait'} for a seat" if waiting else ""
    return (
        f"{seq_list(w, event.children)} forked from {w.seq_name(event.parent)}: "
        f"{'they share' if len(event.children) > 1 else 'it shares'} its first {count(event.num_tokens, 'token')} "
        f"in {count(held, 'block')}, ref +{len(event.children)} each{wait}"
    )


def _sequence_seated(event: ev.SequenceSeated, state: CacheState) -> str:
    return f"{state.workload.seq_name(event.seq)} runs now: a seat among the running sequences came free"


def _blocks_freed(event: ev.BlocksFreed, state: CacheState) -> str:
    drops = np.bincount(event.blocks, minlength=state.num_blocks) if len(event.blocks) else np.zeros(0, dtype=np.int64)
    last = np.flatnonzero((drops > 0) & (state.ref[: len(drops)] == drops))
    cached = int((state.hash[last] >= 0).sum())
    shared = int((drops > 0).sum()) - len(last)
    parts = [
        f"{cached:,} {'stays' if cached == 1 else 'stay'} cached" if cached else "",
        f"{len(last) - cached:,} free" if len(last) > cached else "",
    ]
    parts.append(f"{shared:,} still held by others" if shared else "")
    outcome = ", ".join(part for part in parts if part) or "none"
    return f"{seq_list(state.workload, event.seqs)} dropped {count(len(event.blocks), 'block')}, tail first: {outcome}"


def _sequences_finished(event: ev.SequencesFinished, state: CacheState) -> str:
    w = state.workload
    text = f"{seq_list(w, event.seqs)} finished: all tokens written"
    if len(event.requests) and len(event.requests) < len(event.seqs):
        text += f"; that completes {_listed([w.request_ids[request] for request in event.requests.tolist()])}"
    elif not len(event.requests):
        text += "; other samples of the request still run"
    return text


def _range_reserved(event: ev.RangeReserved, state: CacheState) -> str:
    name, end = state.workload.seq_name(event.seq), event.start + event.length - 1
    passed = f"; {count(event.holes_passed, 'hole')} before it too short" if event.holes_passed else ""
    return f"{name} reserved {event.length:,} token slots, {event.start:,}–{end:,}: the first hole that fits{passed}"


def _ranges_freed(event: ev.RangesFreed, state: CacheState) -> str:
    slots = int(state.reserved_len[event.seqs].sum())
    return f"{seq_list(state.workload, event.seqs)} gave back {slots:,} token slots"


def _step_ended(event: ev.StepEnded, state: CacheState) -> str:
    work = f"{count(event.num_prefill_tokens, 'prefill token')} and {count(event.num_decoding, 'decode token')}"
    return (
        f"step {state.step} ended at {seconds(event.time_us)}: computed {work}; "
        f"{event.used_blocks:,} blocks used, {event.cached_free_blocks:,} cached, {event.free_blocks:,} free; "
        f"{event.num_running} running, {event.num_waiting} waiting"
    )


def _blocks_selected(event: ev.BlocksSelected, state: CacheState) -> str:
    held = int(state.num_held[event.seqs].sum()) * event.num_heads
    heads = "" if event.num_heads == 1 else f" over {event.num_heads} KV heads"
    text = (
        f"layer {event.layer}: {seq_list(state.workload, event.seqs)} "
        f"{'read' if len(event.seqs) > 1 else 'reads'} {len(event.selected):,} of {held:,} blocks{heads}, "
        f"chosen by {event.policy}"
    )
    if event.tokens_held:
        text += f"; {100 * event.tokens_read / event.tokens_held:.0f} % of the K/V read"
    worth = what_a_choice_was_worth(event)
    lost = newest_half_lost(event)
    if lost:
        text += f"; {count(lost, 'sequence')} of low priority lost every block after the middle (S:442-445)"
    return f"{text}, {worth}" if worth else text


def _levels_adapted(event: ev.LevelsAdapted, state: CacheState) -> str:
    raised, lowered = int((event.decisions > 0).sum()), int((event.decisions < 0).sum())
    change = f"{raised} raised, {lowered} lowered" if raised or lowered else "no block changes its level"
    reasons = "".join(f"; {reason}" for reason in first_reasons(event, state))
    return (
        f"window of {event.window} steps ended: protection levels: {change}{reasons}; "
        f"access counts decay to {event.decay_permille / 10:g} %"
    )


def _compaction_planned(event: ev.CompactionPlanned, _state: CacheState) -> str:
    before, after = event.frag_permille_before / 1000, event.frag_permille_after / 1000
    stand = f"{event.live} live blocks stand up to id {event.top_before} (span {before:.2f} × live)"
    if not len(event.src):
        return f"no compaction ({event.verdict}): {stand}; {event.movable} movable, {event.pinned} too heavy to move"
    return (
        f"compaction moves {count(len(event.src), 'block')} (block {int(event.src[0])} → {int(event.dst[0])} first): "
        f"{stand} → up to {event.top_after} ({after:.2f}); {event.pinned} too heavy to move"
    )


def _blocks_placed(event: ev.BlocksPlaced, state: CacheState) -> str:
    hot = f"the hot region is the first {count(event.hot_size, 'block')}"
    if not len(event.blocks):
        if not state.hot_requests:
            return f"no hot request in this window: {hot}, as before"
        share = f"{state.hot_misses:,} of {count(state.hot_requests, 'hot request')} missed it"
        change = ("shrinks", "stays", "grows")[1 + int(np.sign(event.hot_size - state.hot_size))]
        return f"the hot region {change}, {share} in this window: {hot}"
    first = int(event.blocks[0])
    region = ("hot", "cold")[int(event.regions[0])]
    runner_up = int(event.runner_ups[0])
    text = f"seed places {count(len(event.blocks), 'block')}: block {first} {region}"
    text += f", {_PLACE_REASONS[int(event.reasons[0])]}"
    text += f", next would be block {runner_up}" if runner_up >= 0 else ""
    return f"{text}; {what_the_regions_did(event)}; {hot}"


def provenance_title(provenance: str) -> str:
    """How times were taken, for titles: the reference's wall time is never called a kernel time."""
    return "NumPy reference" if provenance == "reference" else provenance


def _kernels_timed(event: ev.KernelsTimed, _state: CacheState) -> str:
    names = event.names.split()
    if not names:
        return "no kernel ran in this step"
    longest = int(event.total_us.argmax())
    return (
        f"{count(len(names), 'kernel')} ran in {count(int(event.calls.sum()), 'call')}, "
        f"{duration(float(event.total_us.sum()))} in all; most in {names[longest]}, "
        f"{duration(float(event.total_us[longest]))} ({provenance_title(event.provenance)})"
    )


def hash_name(content: int) -> str:
    """The 64 bits of a stream's block hash, in hexadecimal."""
    return f"{content & (1 << 64) - 1:016x}"


def _stream_stored(event: ev.StreamStored, state: StreamState) -> str:
    number = len(event.blocks)
    first = hash_name(int(event.hashes[0]))
    what = f"stored {count(number, 'block')} as our {block_list(event.blocks)} (hash {first}{' first' * (number > 1)})"
    if event.has_parent:
        where = "" if event.depth < 0 else f", logical block {event.depth:,} of a prefix"
        what += f" behind {hash_name(event.parent)}{where}"
        what += ", which the stream has not shown" if event.depth < 0 else ""
    else:
        what += ", the start of a prefix"
    cached = state.content[state.place == event.place]
    copies = int(np.isin(event.hashes, cached).sum())
    again = f"; {count(copies, 'content')} of them now in one copy more" if copies else ""
    return f"{what}{again}; for which request is not told"


def _stream_removed(event: ev.StreamRemoved, state: StreamState) -> str:
    known = event.blocks[event.blocks >= 0]
    parts = []
    if len(known):
        first = int(known[0])
        left = len(state.copies_of(first)) - 1
        copies = f", {count(left, 'copy')} left" if left else ""
        age = state.step - int(state.last_use[first])
        parts.append(
            f"evicted {count(len(known), 'cached block')}, our {block_list(known)} "
            f"(hash {hash_name(int(event.hashes[event.blocks >= 0][0]))}, stored {count(age, 'batch')} ago{copies})"
        )
    missing = len(event.blocks) - len(known)
    if missing:
        parts.append(f"removed {count(missing, 'block')} that this stream never showed being stored")
    return "; ".join(parts)


def _stream_cleared(event: ev.StreamCleared, _state: StreamState) -> str:
    return f"the server cleared its whole prefix cache: {count(len(event.blocks), 'block')} gone"


def _stream_gap(event: ev.StreamGap, _state: StreamState) -> str:
    last = event.first + event.missing - 1
    span = f"{event.first:,}" if event.missing == 1 else f"{event.first:,} to {last:,}"
    return (
        f"gap: {count(event.missing, 'batch')} missing (sequence {span}); "
        f"what {'it' if event.missing == 1 else 'they'} stored and removed is unknown, "
        "so counts from here on are of what is seen"
    )


def _stream_unknown(event: ev.StreamUnknown, _state: StreamState) -> str:
    return f"an event of unknown type {event.name!r}: not applied, what it did is unknown"


def _stream_batch_ended(event: ev.StreamBatchEnded, _state: StreamState) -> str:
    parts = [f"{event.stored:,} stored", f"{event.removed:,} evicted"]
    parts += [f"{event.cleared:,} cleared"] if event.cleared else []
    parts += [f"{event.unmatched:,} removed unseen"] if event.unmatched else []
    return (
        f"batch {event.sequence:,} ended, {seconds(event.time_us)} after the first: {', '.join(parts)}; "
        f"{count(event.cached, 'block')} cached"
    )


_SENTENCES: dict[type[ev.Event], Callable[[Any, Any], str]] = {
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
    ev.StreamStored: _stream_stored,
    ev.StreamRemoved: _stream_removed,
    ev.StreamCleared: _stream_cleared,
    ev.StreamGap: _stream_gap,
    ev.StreamUnknown: _stream_unknown,
    ev.StreamBatchEnded: _stream_batch_ended,
}
