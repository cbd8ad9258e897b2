"""Everything that can happen in a replay, as past-tense events whose fields are integers, strings and arrays.

An event holds what was *decided*, so that applying it needs no policy, clock or GPU. Events of many sequences or
blocks carry arrays. Fields named in `OBSERVED` were measured or derived by looking; they are recorded and not hashed
into the digest; those with a default may be missing in a recording of an older version. `docs/events.md` is written
from this file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

I8 = NDArray[np.int8]
U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

EMPTY = np.zeros(0, dtype=np.int32)
COARSE_US = 20.0  # a time between two events on a device that is shorter is blurred by the events themselves
EMPTY_U8 = np.zeros(0, dtype=np.uint8)
EMPTY_I8 = np.zeros(0, dtype=np.int8)
EMPTY_F32 = np.zeros(0, dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """Base of all events. One that is about a single request has it in a field `request`."""

    OBSERVED: ClassVar[tuple[str, ...]] = ()
    WHOLE: ClassVar[bool] = False  # after it the recording may end: nothing of a step is under way


@dataclass(frozen=True, slots=True, eq=False)
class ClockJumped(Event):
    """Nothing ran, so simulated time went straight to `time_us`, the next arrival."""

    WHOLE: ClassVar[bool] = True

    time_us: int


@dataclass(frozen=True, slots=True, eq=False)
class RequestsArrived(Event):
    """`requests` int32 [k] joined the waiting queue."""

    requests: I32


@dataclass(frozen=True, slots=True, eq=False)
class RequestRejected(Event):
    """`request` can never run: it needs `needed` of what `rule` counts and there are `available`."""

    request: int
    rule: str
    needed: int
    available: int


@dataclass(frozen=True, slots=True, eq=False)
class RequestCancelled(Event):
    """`request` was withdrawn: its own `cancel_at_ms` was reached (`rule` "deadline") or its parent's fate took it."""

    request: int
    rule: str
    seqs: I32  # those of its sequences that were alive


@dataclass(frozen=True, slots=True, eq=False)
class SequenceAdmitted(Event):
    """A waiting sequence got a row and its cached prefix, and joined the running ones.

    `hits` int32 [h] are the cached blocks that it shares, head first. `causes` uint8 [ceil(prompt_len/block_size)] says
    for every prompt block why it is a hit or a miss (`MISS_CAUSES`); `class_tokens` int64 [7] adds to the token counts
    of these classes: at the first admission it sums to prompt_len, at a re-admission to 0.
    `needed` blocks were asked for where `available` could be had, `reserve` of them being the watermark. `orphans`
    int32 are cached blocks of its prompt that it could not use, because an ancestor is not cached.
    """

    request: int
    seq: int
    slot: int
    prefill_target: int
    hits: I32
    causes: U8
    class_tokens: I64
    needed: int
    available: int
    reserve: int
    num_waiting: int
    orphans: I32


@dataclass(frozen=True, slots=True, eq=False)
class SequencePreempted(Event):
    """A running sequence gave up its blocks and waits to be recomputed.

    `rule` says how it was chosen, `key` its place in that order (arrival or admission), `runner_up` the sequence that
    would have been next (-1: none) with its key; `for_seq` needed `needed` blocks where `available` were left.
    """

    request: int
    seq: int
    rule: str
    key: int
    runner_up: int
    runner_up_key: int
    lost_tokens: int
    prefill_target: int
    for_seq: int
    needed: int
    available: int


@dataclass(frozen=True, slots=True, eq=False)
class BlocksEvicted(Event):
    """Cached, unreferenced `blocks` int32 [k] lost their content, lowest `keys` int64 [k] first, under policy `rule`.

    `runner_up` is the first block that was kept (-1: none) with its key. `cleared` int32 are blocks whose clock bit was
    cleared on the way and `hand` is where the clock's hand stands now (policy `clock` only).
    """

    rule: str
    blocks: I32
    hashes: I32
    keys: I64
    runner_up: int
    runner_up_key: int
    cleared: I32
    hand: int


@dataclass(frozen=True, slots=True, eq=False)
class BlocksAllocated(Event):
    """Sequence `seqs[i]` got `counts[i]` blocks for its logical blocks from `first_logical[i]` on; `blocks` in order.

    The blocks headed the free order: `num_unused` never used before, then `num_freed` freed and uncached, then
    `num_evicted` just evicted; `runner_up` (-1: none) would have been next.
    """

    seqs: I32
    first_logical: I32
    counts: I32
    blocks: I32
    num_unused: int
    num_freed: int
    num_evicted: int
    runner_up: int


@dataclass(frozen=True, slots=True, eq=False)
class BlocksCopied(Event):
    """Copy-on-write: `seqs[i]` writes into logical block `logical[i]`, which it shares, so the first `tokens[i]` tokens
    of `src[i]` were copied to `dst[i]` and its table entry now names that. Arrays int32 [k]."""

    seqs: I32
    logical: I32
    src: I32
    dst: I32
    tokens: I32


@dataclass(frozen=True, slots=True, eq=False)
class TokensWritten(Event):
    """K/V of one token of each of `decode_seqs` int32 and of `prefill_counts[i]` tokens of `prefill_seqs[i]`."""

    decode_seqs: I32
    prefill_seqs: I32
    prefill_counts: I32


@dataclass(frozen=True, slots=True, eq=False)
class BlocksCached(Event):
    """Full `blocks` int32 [k] entered the prefix index under the content ids `hashes` int32 [k]."""

    blocks: I32
    hashes: I32


@dataclass(frozen=True, slots=True, eq=False)
class SequencesForked(Event):
    """Each of `children` int32 [k] now shares the first `num_tokens` tokens of the context of `parent`.

    `slots` int32 [k] are the rows they got; `running` 1 where a child runs at once, 0 where it waits for a seat.
    """

    parent: int
    children: I32
    slots: I32
    num_tokens: int
    running: U8


@dataclass(frozen=True, slots=True, eq=False)
class SequenceSeated(Event):
    """A forked child that waited with its shared blocks now runs."""

    request: int
    seq: int


@dataclass(frozen=True, slots=True, eq=False)
class BlocksFreed(Event):
    """`seqs[i]` dropped its `counts[i]` table entries; `blocks` int32 lists them as freed, tail first."""

    seqs: I32
    counts: I32
    blocks: I32


@dataclass(frozen=True, slots=True, eq=False)
class SequencesFinished(Event):
    """`seqs` int32 [k] wrote all their tokens; `requests` int32 are the requests that this completed."""

    seqs: I32
    requests: I32


@dataclass(frozen=True, slots=True, eq=False)
class RangeReserved(Event):
    """Baseline allocators: `seq` reserved `length` token slots from `start` on, the first hole that was long enough.

    `holes_passed` holes before it were too short.
    """

    request: int
    seq: int
    start: int
    length: int
    holes_passed: int


@dataclass(frozen=True, slots=True, eq=False)
class RangesFreed(Event):
    """Baseline allocators: `seqs` int32 [k] gave their ranges back."""

    seqs: I32


@dataclass(frozen=True, slots=True, eq=False)
class StepEnded(Event):
    """One engine step is complete; simulated time is now `time_us`.

    `prefilled` int32 are sequences whose prompt is complete since this step. Sums over the step's decoding sequences,
    each after its write: `decode_tokens` = Σ context length, `decode_slots` = Σ token slots reserved for it.
    `resident_tokens` counts the distinct tokens in the `used_blocks` blocks (baselines: `used_slots` reserved slots);
    `peak_blocks` were used before the step's frees (baselines: the reserved slots in blocks, rounded up).
    """

    WHOLE: ClassVar[bool] = True

    time_us: int
    num_prefill_tokens: int
    num_decoding: int
    decode_tokens: int
    decode_slots: int
    used_blocks: int
    cached_free_blocks: int
    free_blocks: int
    resident_tokens: int
    used_slots: int
    num_running: int
    num_waiting: int
    peak_blocks: int
    prefilled: I32


@dataclass(frozen=True, slots=True, eq=False)
class BlocksSelected(Event):
    """In `layer`, `seqs` int32 [k] attend over chosen blocks only, under selection `policy`.

    `num_heads` choices a sequence (KV heads, or 1 for all); `counts` int32 [k · num_heads] blocks kept by each and
    `selected` int32 their logical blocks, ascending, one choice after the other. `requirements` int32 [k] (2 high … 0
    low) and `priorities` int8 [k] led there. Observed: `complexity` and `row_scores` float32 [k]; per sequence and
    query head [k · num_query_heads] the attention mass `retained` = exp(lse_selected − lse_full) and the relative error
    of the output `output_errors` (empty where attention did not run; `retained` is then the summed block mass);
    `tokens_read` of `tokens_held` tokens, summed over sequences and KV heads.

    Observed where the replay watches quality (docs/selection.md), float32:
    per choice [k · num_heads]: `recalls` of the oracle's choice of as many blocks; `chances`, what a draw by lot would
    find of it; `reuses`, the share of the choice that the step before chose too; `next_recalls`, the share of this
    step's oracle choice that the step before chose (both −1 where the sequence was not asked in the step before).
    Per query head: `oracle_retained`, the mass that the oracle's choice keeps.
    Per KV head [k · num_kv_heads], over its blocks: `slack_least` and `slack_mean`, scaled box score less largest logit
    (below 0 the bound would be broken). Bytes of this layer: `bytes_read` K and V of the choice, `bytes_to_choose` what
    had to be read to choose, `bytes_dense` K and V of full attention, `bytes_resident` used blocks with their boxes.
    """

    OBSERVED: ClassVar[tuple[str, ...]] = (
        "complexity",
        "row_scores",
        "retained",
        "output_errors",
        "tokens_read",
        "tokens_held",
        "recalls",
        "chances",
        "reuses",
        "next_recalls",
        "oracle_retained",
        "slack_least",
        "slack_mean",
        "bytes_read",
        "bytes_to_choose",
        "bytes_dense",
        "bytes_resident",
    )

    layer: int
    policy: str
    seqs: I32
    num_heads: int
    counts: I32
    selected: I32
    requirements: I32
    priorities: I8
    complexity: F32
    row_scores: F32
    retained: F32
    output_errors: F32
    tokens_read: int
    tokens_held: int
    recalls: F32 = field(default_factory=lambda: EMPTY_F32)
    chances: F32 = field(default_factory=lambda: EMPTY_F32)
    reuses: F32 = field(default_factory=lambda: EMPTY_F32)
    next_recalls: F32 = field(default_factory=lambda: EMPTY_F32)
    oracle_retained: F32 = field(default_factory=lambda: EMPTY_F32)
    slack_least: F32 = field(default_factory=lambda: EMPTY_F32)
    slack_mean: F32 = field(default_factory=lambda: EMPTY_F32)
    bytes_read: int = 0
    bytes_to_choose: int = 0
    bytes_dense: int = 0
    bytes_resident: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class LevelsAdapted(Event):
    """A window of `window` steps ended: `blocks` int32 [k] got protection `levels` int32, by `decisions` int8 (±1, 0).

    Blocks that are not named keep their level. Access counts are then decayed to `decay_permille`, the window's hits
    and lookups start again from 0. Observed: the thresholds that were compared, a hit rate below
    `hit_threshold_permille` with more than `frequency_threshold` accesses raises, one above 1.5 times it with fewer
    than half of those lowers.
    """

    OBSERVED: ClassVar[tuple[str, ...]] = ("hit_threshold_permille", "frequency_threshold")

    window: int
    blocks: I32
    levels: I32
    decisions: I8
    decay_permille: int
    hit_threshold_permille: int = 0
    frequency_threshold: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class CompactionPlanned(Event):
    """Fragmentation passed the trigger: `src` int32 [k] move to `dst`, or nothing moves and `verdict` says why not.

    `live` blocks stand up to id `top_before`; (top + 1) / live in per mille before and after; `planned` moves, of
    `movable` blocks; `pinned` ones are too heavy to move.
    """

    verdict: str
    src: I32
    dst: I32
    live: int
    movable: int
    pinned: int
    planned: int
    top_before: int
    top_after: int
    frag_permille_before: int
    frag_permille_after: int


@dataclass(frozen=True, slots=True, eq=False)
class BlocksPlaced(Event):
    """Eviction `seed`: why the blocks of the allocation or copy that follows go where they do.

    Per block: `regions` int8 (0 hot, 1 cold), `reasons` int8 (0 own region, free · 1 own, evicted · 2 other, free ·
    3 other, evicted), `runner_ups` int32 (-1: none). `hot_size` is the size of the hot region from now on. Observed:
    `levels` int8 protection of each block before it was taken; of the cached blocks that plain LRU would have given up
    in their place, `spared_by_region` were spared by their region and `spared_by_level` by their level.
    """

    OBSERVED: ClassVar[tuple[str, ...]] = ("levels", "spared_by_region", "spared_by_level")

    blocks: I32
    regions: I8
    reasons: I8
    runner_ups: I32
    hot_size: int
    hot_requests: int
    hot_misses: int
    levels: I8 = field(default_factory=lambda: EMPTY_I8)
    spared_by_region: int = 0
    spared_by_level: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class KernelsTimed(Event):
    """The kernels of this step. All observed: `names` (joined by spaces), `calls` int32, `total_us` float64, `bytes`
    int64 useful bytes moved, one entry a kernel; `provenance` says how the times were taken (`reference`: wall time of
    the NumPy reference, which is no kernel time). Of the step up to here, µs of wall time: `host_us` what was neither
    kernels nor one of the following; `verify_us` repeating kernels on the host and comparing; `record_us` digest and
    recording; `check_us` invariants and metrics (0 in recordings that are older than these fields)."""

    OBSERVED: ClassVar[tuple[str, ...]] = (
        "names",
        "calls",
        "total_us",
        "bytes",
        "provenance",
        "host_us",
        "verify_us",
        "record_us",
        "check_us",
    )

    names: str
    calls: I32
    total_us: F64
    bytes: I64
    provenance: str
    host_us: float = 0.0
    verify_us: float = 0.0
    record_us: float = 0.0
    check_us: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class StreamStored(Event):
    """KV-event stream: the server keeps blocks with these contents from now on, one prefix after the other.

    `hashes` int64 [k] are the low 64 bits of the server's own hashes. The stream names no block ids: `blocks` int32 [k]
    are numbers of ours, the longest unused first. `place` counts the header's list of (medium, group). The first
    follows the block `parent` (0 where `has_parent` is 0: it begins a prompt) as logical block `depth` (-1: its
    prefix is not in the stream); each holds `tokens`.
    """

    place: int
    blocks: I32
    hashes: I64
    parent: int
    has_parent: int
    depth: int
    tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class StreamRemoved(Event):
    """KV-event stream: one copy of each of `hashes` int64 [k] is gone; `blocks` int32 [k] says which of ours.

    The oldest copy goes where there are several. -1: the stream has not shown it being stored. `told` events in a row
    of the stream said so.
    """

    place: int
    blocks: I32
    hashes: I64
    told: int


@dataclass(frozen=True, slots=True, eq=False)
class StreamCleared(Event):
    """KV-event stream: the server gave up its whole prefix cache; `blocks` int32 [k] were in it."""

    blocks: I32


@dataclass(frozen=True, slots=True, eq=False)
class StreamGap(Event):
    """KV-event stream: `missing` batches from sequence number `first` on are not in it; what they told is unknown."""

    first: int
    missing: int


@dataclass(frozen=True, slots=True, eq=False)
class StreamUnknown(Event):
    """KV-event stream: an event of a type `name` that this version does not know; what it did is not applied."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class StreamBatchEnded(Event):
    """KV-event stream: batch `sequence` is complete, `time_us` after the first one by the server's clock.

    It stored, removed and cleared so many blocks; `unmatched` removals are of blocks never shown being stored. `cached`
    blocks are known to be in the cache now.
    """

    WHOLE: ClassVar[bool] = True

    sequence: int
    time_us: int
    stored: int
    removed: int
    unmatched: int
    cleared: int
    cached: int


EVENT_TYPES: tuple[type[Event], ...] = (
    ClockJumped,
    RequestsArrived,
    RequestRejected,
    RequestCancelled,
    SequenceAdmitted,
    SequencePreempted,
    BlocksEvicted,
    BlocksAllocated,
    BlocksCopied,
    TokensWritten,
    BlocksCached,
    SequencesForked,
    SequenceSeated,
    BlocksFreed,
    SequencesFinished,
    RangeReserved,
    RangesFreed,
    StepEnded,
    BlocksSelected,
    LevelsAdapted,
    CompactionPlanned,
    BlocksPlaced,
    KernelsTimed,
    StreamStored,
    StreamRemoved,
    StreamCleared,
    StreamGap,
    StreamUnknown,
    StreamBatchEnded,
)
"""Position = the kind's number in a recording; new kinds go to the end."""

KIND_OF: dict[type[Event], int] = {event_type: kind for kind, event_type in enumerate(EVENT_TYPES)}

COUNTS_STEPS: frozenset[int] = frozenset((KIND_OF[StepEnded], KIND_OF[StreamBatchEnded]))
"""Kinds after which the state stands one step further: a step of the engine, or a batch of a stream."""
