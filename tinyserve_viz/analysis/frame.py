"""One immutable picture of a replay after a number of events: everything that a screen shows, ready to be drawn."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.analysis.closeups import Compaction, Levels, Selection, Work
from tinyserve_viz.analysis.inspection import Scores
from tinyserve_viz.analysis.sentences import count, hash_name
from tinyserve_viz.core.workload import MISS_CAUSES
from tinyserve_viz.recording.header import Header

FREE, CACHED, NULL = -1, -2, -3  # owners of blocks that no sequence holds
UNTOLD = -4  # owner of a cached block of a KV-event stream, which does not tell who holds it
_NAMED = 3  # holders of a block that are named


@dataclass(frozen=True, slots=True)
class Said:
    """An event that happened: its number, its step, its type and its sentence."""

    index: int
    step: int
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class SeqRow:
    """A live sequence: `done` of `target` tokens of its phase, blocks held, blocks of them that others hold too."""

    seq: int
    name: str
    status: str
    context: int
    total: int
    phase: str
    num_blocks: int
    shared: int
    hit_tokens: int
    prompt_len: int


@dataclass(frozen=True, slots=True)
class TableRow:
    """One logical block of the chosen sequence. `kept` None: the step selected nothing for it; `score` (highest of the
    heads) and `mass` (mean over them) None: not worked out."""

    logical: int
    physical: int
    ref: int
    fill: int
    content: int
    cause: str
    kept: bool | None
    score: float | None
    mass: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """The block table of the chosen sequence as arrays over its logical blocks; `row` gives one of them.

    `kept` bool [blocks] and `scores` are those of the last selection, which may have seen a block less.
    """

    physical: NDArray[np.int32]
    ref: NDArray[np.int32]
    content: NDArray[np.int32]
    cause: NDArray[np.uint8]
    block_size: int
    context: int
    prompt_len: int
    kept: NDArray[np.bool_] | None
    scores: Scores | None = None

    def __len__(self) -> int:
        return len(self.physical)

    def row(self, logical: int) -> TableRow:
        """The row of one logical block."""
        start = logical * self.block_size
        seen = self.kept is not None and logical < len(self.kept)
        scored = self.scores is not None and logical < self.scores.score.shape[1]
        return TableRow(
            logical=logical,
            physical=int(self.physical[logical]),
            ref=int(self.ref[logical]),
            fill=max(0, min(self.block_size, self.context - start)),
            content=int(self.content[logical]),
            cause="generated" if start >= self.prompt_len else MISS_CAUSES[int(self.cause[logical])],
            kept=bool(self.kept[logical]) if self.kept is not None and seen else None,
            score=float(self.scores.score[:, logical].max()) if self.scores is not None and scored else None,
            mass=float(self.scores.mass[:, logical].mean()) if self.scores is not None and scored else None,
        )

    def logical_of(self, block: int) -> int:
        """Where `block` stands in the table, or −1."""
        found = np.flatnonzero(self.physical == block)
        return int(found[0]) if len(found) else -1


@dataclass(frozen=True, slots=True)
class KernelRow:
    """One kernel in one step; `coarse` times are too short for the events around them. `gb_per_s` and its share
    `of_copy` of a copy's bandwidth are known where a device was measured."""

    name: str
    calls: int
    total_us: float
    share: float
    num_bytes: int
    coarse: bool = False
    gb_per_s: float | None = None
    of_copy: float | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """The pool in numbers; ratios None where nothing is there to measure."""

    used: int
    cached: int
    free: int
    internal: float | None
    external: float | None
    waste: float | None
    free_runs: int
    longest_free_run: int
    resident_tokens: int


@dataclass(frozen=True, slots=True)
class ChainRow:
    """One block of a stream's prefix: its logical place (−1: not told), our number, its hash, in how many copies the
    cache has that, and the batch that stored it."""

    depth: int
    block: int
    content: int
    copies: int
    batch: int


@dataclass(frozen=True, slots=True, eq=False)
class StreamFacts:
    """What a KV-event stream told so far: sums of blocks, `gaps` with `missing` batches, events of `unknown` types,
    removals that match nothing stored; cached blocks by place; per block `hashes` int64 and `depths` int32; `chain` the
    prefix that ends in the block looked at."""

    sequence: int
    batches: int
    stored: int
    removed: int
    cleared: int
    unmatched: int
    gaps: int
    missing: int
    unknown: int
    pool_given: bool
    places: tuple[tuple[str, int], ...]
    hashes: NDArray[np.int64]
    depths: NDArray[np.int32]
    chain: tuple[ChainRow, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """The picture after `position` events.

    Per block int32 [num_blocks]: `owner` the lowest sequence that holds it, or FREE, CACHED (no reference, content in
    the prefix index) or NULL; `ref`, `fill` tokens, `age` steps since the last use, `content` id in the index or −1.
    `last_use` the step of its last allocation, hit or release. `looked_at` is one block (−1: none) whose every place
    in a block table is in `held_as`, as (sequence, logical block), the chosen sequence first.
    `touched` are the blocks that the last event names. `step` is that of the last event; `kernel_step` the step whose
    kernels are listed (the last one that was timed), `host_us` the rest of its wall time. Per block too: `level`
    protection, `freq` accesses by selections, `weight` against moving it in a compaction, in whole units. `work`,
    `levels`, `compaction` and the scores of `selection` are there where they were asked for.
    """

    header: Header
    position: int
    num_events: int
    complete: bool
    step: int
    time_us: int
    owner: NDArray[np.int32]
    ref: NDArray[np.int32]
    fill: NDArray[np.int32]
    age: NDArray[np.int32]
    content: NDArray[np.int32]
    gen: NDArray[np.int32]
    last_use: NDArray[np.int32]
    touched: NDArray[np.int32]
    looked_at: int
    held_as: tuple[tuple[int, int], ...]
    sequences: tuple[SeqRow, ...]
    num_waiting: int
    chosen: int
    chosen_line: str
    table: Table
    memory: Memory
    kernels: tuple[KernelRow, ...]
    kernel_title: str
    host_us: float
    kernel_step: int
    selection: Selection | None
    said: tuple[Said, ...]
    level: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    freq: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    weight: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    work: Work | None = None
    levels: Levels | None = None
    compaction: Compaction | None = None
    stream: StreamFacts | None = None

    @property
    def num_blocks(self) -> int:
        """Blocks in the pool."""
        return len(self.ref)

    @property
    def block_size(self) -> int:
        """Tokens that a block holds."""
        return self.header.engine.block_size

    def name(self, seq: int) -> str:
        """How `seq` is called."""
        return self.header.workload.seq_name(seq)

    def describe_block(self, block: int) -> str:
        """A sentence about a block, for the place under the map: who holds it as what, and what is in it."""
        owner = int(self.owner[block])
        if self.stream is not None:
            return self._describe_untold(block, self.stream)
        if owner == NULL:
            return f"block {block}: the null block, never handed out"
        if owner == FREE:
            taken = f"allocated {count(int(self.gen[block]), 'time')} before" if self.gen[block] else "never used"
            return f"block {block}: free, {taken}{self._idle(block) if self.gen[block] else ''}"
        if owner == CACHED:
            return f"block {block}: cached, nobody holds it, hash #{self.content[block]}{self._idle(block)}"
        index = f", hash #{self.content[block]}" if self.content[block] >= 0 else ""
        return (
            f"block {block}: {self.holders(block)}; ref {self.ref[block]}, "
            f"{self.fill[block]}/{self.block_size} tokens, gen {self.gen[block]}{index}{self._idle(block)}"
        )

    def _describe_untold(self, block: int, stream: StreamFacts) -> str:
        if self.owner[block] == FREE:
            return f"our number {block}: not in use, taken {count(int(self.gen[block]), 'time')} before"
        depth = int(stream.depths[block])
        place = f"logical block {depth:,} of its prefix" if depth >= 0 else "of a prefix that the stream does not show"
        return (
            f"our number {block}: hash {hash_name(int(stream.hashes[block]))}, {place}, "
            f"{count(int(self.ref[block]), 'copy')} cached, stored in batch {self.last_use[block]}; holders unknown"
        )

    def holders(self, block: int) -> str:
        """Who holds a block, and as which of its logical blocks where that is known: `r4 logical 9, r5 logical 9`."""
        if block == self.looked_at and self.held_as:
            named = [f"{self.name(seq)} logical {logical}" for seq, logical in self.held_as[:_NAMED]]
            more = len(self.held_as) - len(named)
            return ", ".join(named) + (f" and {more} more" if more else "")
        others = int(self.ref[block]) - 1
        return self.name(int(self.owner[block])) + (f" and {others} more" if others > 0 else "")

    def _idle(self, block: int) -> str:
        return f", last used in step {self.last_use[block]}" if self.last_use[block] else ""  # 0: never, or moved away

    def facts_of_block(self, block: int) -> tuple[tuple[str, str], ...]:
        """All that is known of a block, as (name, value)."""
        owner = int(self.owner[block])
        if self.stream is not None:
            return self._told_of_block(block, self.stream)
        states = {FREE: "free", CACHED: "cached, no holder", NULL: "null block, never handed out"}
        logical = self.table.logical_of(block)
        return (
            ("state", states.get(owner, "used")),
            ("held by", self.holders(block) if owner >= 0 else "–"),
            ("references", f"{self.ref[block]}"),
            ("in the shown table", f"logical {logical} of {self.name(self.chosen)}" if logical >= 0 else "–"),
            ("tokens", f"{self.fill[block]} of {self.block_size}"),
            ("content id", f"#{self.content[block]}" if self.content[block] >= 0 else "not in the prefix index"),
            ("steps since last use", f"{self.age[block]}"),
            ("times taken", f"{self.gen[block]}"),
        )

    def _told_of_block(self, block: int, stream: StreamFacts) -> tuple[tuple[str, str], ...]:
        cached = self.owner[block] != FREE
        content, depth = int(stream.hashes[block]), int(stream.depths[block])
        return (
            ("state", "cached" if cached else "not in use"),
            ("block id, references", "the stream does not tell"),
            ("requests that hold it", "the stream does not tell"),
            ("hash", f"{hash_name(content)} = {content & (1 << 64) - 1}" if cached else "–"),
            ("copies of that hash", f"{self.ref[block]}" if cached else "–"),
            ("logical block", "–" if not cached else f"{depth}" if depth >= 0 else "not told"),
            ("tokens", f"{self.fill[block]}" if cached else "–"),
            ("stored in batch", f"{self.last_use[block]}" if cached else "–"),
            ("our number taken", count(int(self.gen[block]), "time")),
        )
