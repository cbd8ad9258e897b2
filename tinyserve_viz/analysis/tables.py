"""A recording as tables: columns of plain numbers and names, the unit at the end of every column's name."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyserve_viz.analysis.charts.source import FRAGMENTATION_COLUMNS, STEP_COLUMNS, RunSource
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.errors import RecordingError
from tinyserve_viz.core.state import STATUS_NAMES, CacheState
from tinyserve_viz.core.workload import MISS_CAUSES

Rows = list[tuple[Any, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Rows under named columns. A value is an int, a float, a str or None (nothing to measure there)."""

    name: str
    summary: str
    columns: tuple[str, ...]
    rows: Callable[[RunSource, CacheState], Rows]
    of_state: bool = False  # whether it shows one moment (`--at`) and not the whole recording


def _plain(values: Sequence[Any] | np.ndarray[Any, Any]) -> list[Any]:
    """Python values; NaN and the -1 of `none` are told apart by the caller."""
    found = values.tolist() if isinstance(values, np.ndarray) else list(values)
    return [None if isinstance(value, float) and value != value else value for value in found]


def _positive(values: Any) -> list[Any]:
    return [None if value < 0 else value for value in np.asarray(values).tolist()]


def _steps(source: RunSource, _state: CacheState) -> Rows:
    columns = [_plain(source.steps[name]) for name in STEP_COLUMNS]
    if source.has_kernels:
        kernel_us: list[float | None] = source.kernels[1].sum(axis=1)[: source.num_steps].tolist()
    else:
        kernel_us = [None] * source.num_steps
    return list(zip(range(source.num_steps), *columns, kernel_us, strict=True))


def _requests(source: RunSource, state: CacheState) -> Rows:
    w = source.header.workload
    outcome = {int(request): "rejected" for request in _requests_of(source, ev.RequestRejected)}
    outcome |= {int(request): "cancelled" for request in _requests_of(source, ev.RequestCancelled)}
    for _, _, event in source.events(ev.SequencesFinished):
        outcome |= dict.fromkeys(event.requests.tolist(), "completed")
    preempted = np.bincount(w.request_of_seq, weights=state.num_preemptions, minlength=w.num_requests).astype(int)
    tokens = np.zeros((w.num_requests, len(MISS_CAUSES)), dtype=np.int64)
    _, seqs, classes = source.admissions
    np.add.at(tokens, w.request_of_seq[seqs], classes)
    return list(
        zip(
            range(w.num_requests), w.request_ids, w.arrival_us.tolist(), w.prompt_len.tolist(), w.output_len.tolist(),
            w.num_samples.tolist(), [w.request_ids[p] if p >= 0 else None for p in w.parent.tolist()],
            _positive(w.fork_at), _positive(w.cancel_at_us), w.priority.tolist(),
            [outcome.get(request, "unfinished") for request in range(w.num_requests)], preempted.tolist(),
            *tokens.T.tolist(), strict=True,
        )
    )  # fmt: skip


def _requests_of(source: RunSource, kind: type[ev.Event]) -> list[int]:
    return [row[0] for row in source.timeline.rows_of_kind(kind)[1]]


def _sequences(source: RunSource, state: CacheState) -> Rows:
    w = source.header.workload
    latencies = source.latencies_us
    return list(
        zip(
            range(w.num_seqs), [w.seq_name(seq) for seq in range(w.num_seqs)], w.request_of_seq.tolist(),
            [STATUS_NAMES[status] for status in state.status.tolist()], state.ctx.tolist(),
            state.num_preemptions.tolist(), state.hit_tokens.tolist(), _positive(source.first_token_us),
            _positive(source.finished_us), *(_plain(latencies[name]) for name in ("ttft", "tpot", "e2e")), strict=True,
        )
    )  # fmt: skip


def _admissions(source: RunSource, _state: CacheState) -> Rows:
    name = source.header.workload.seq_name
    return [
        (step, event.seq, name(event.seq), event.prefill_target, event.needed, event.available, event.reserve,
         event.num_waiting, *event.class_tokens.tolist())
        for _, step, event in source.events(ev.SequenceAdmitted)
    ]  # fmt: skip


def _preemptions(source: RunSource, _state: CacheState) -> Rows:
    name = source.header.workload.seq_name
    return [
        (step, event.seq, name(event.seq), event.rule, event.lost_tokens, name(event.for_seq), event.needed,
         event.available, name(event.runner_up) if event.runner_up >= 0 else None)
        for _, step, event in source.events(ev.SequencePreempted)
    ]  # fmt: skip


def _evictions(source: RunSource, _state: CacheState) -> Rows:
    return [
        (step, event.rule, place, block, content, key, event.runner_up if event.runner_up >= 0 else None)
        for _, step, event in source.events(ev.BlocksEvicted)
        for place, (block, content, key) in enumerate(
            zip(event.blocks.tolist(), event.hashes.tolist(), event.keys.tolist(), strict=True)
        )
    ]


def _allocations(source: RunSource, _state: CacheState) -> Rows:
    rows: Rows = []
    for _, step, event in source.events(ev.BlocksAllocated):
        blocks = iter(event.blocks.tolist())
        columns = (event.seqs.tolist(), event.first_logical.tolist(), event.counts.tolist())
        for seq, first, count in zip(*columns, strict=True):
            rows += [(step, seq, logical, next(blocks)) for logical in range(first, first + count)]
    return rows


def _copies(source: RunSource, _state: CacheState) -> Rows:
    return [
        (step, *row)
        for _, step, event in source.events(ev.BlocksCopied)
        for row in zip(*(getattr(event, name).tolist() for name in ("seqs", "logical", "src", "dst", "tokens")),
                       strict=True)
    ]  # fmt: skip


def _selections(source: RunSource, _state: CacheState) -> Rows:
    rows: Rows = []
    for _, step, event in source.events(ev.BlocksSelected):
        ran = len(event.retained) > 0
        rows.append(
            (step, event.layer, event.policy, len(event.seqs), event.num_heads, len(event.selected),
             event.tokens_read, event.tokens_held, float(event.retained.mean()) if ran else None,
             float(event.retained.min()) if ran else None, float(event.output_errors.max()) if ran else None)
        )  # fmt: skip
    return rows


def _compactions(source: RunSource, _state: CacheState) -> Rows:
    return [
        (step, event.verdict, len(event.src), event.live, event.movable, event.pinned, event.top_before,
         event.top_after, event.frag_permille_before / 1000, event.frag_permille_after / 1000)
        for _, step, event in source.events(ev.CompactionPlanned)
    ]  # fmt: skip


def _fragmentation(source: RunSource, _state: CacheState) -> Rows:
    steps, columns = source.fragmentation
    times = source.steps["time_us"][np.minimum(steps, source.num_steps - 1)].tolist()
    ratios = [_plain(columns[name]) for name in FRAGMENTATION_COLUMNS[:3]]
    counts = [columns[name].astype(np.int64).tolist() for name in FRAGMENTATION_COLUMNS[3:]]
    return list(zip(steps.tolist(), times, *ratios, *counts, strict=True))


def _kernel_steps(source: RunSource, _state: CacheState) -> Rows:
    if not source.has_kernels:
        return []
    names, spent, calls, moved, provenance = source.kernels
    places = zip(*np.nonzero(calls), strict=True)
    return [
        (int(step), names[kernel], int(calls[step, kernel]), float(spent[step, kernel]), int(moved[step, kernel]),
         provenance)
        for step, kernel in places
    ]  # fmt: skip


def _kernels(source: RunSource, _state: CacheState) -> Rows:
    if not source.has_kernels:
        return []
    names, spent, calls, moved, provenance = source.kernels
    rows: Rows = []
    for place in np.argsort(-spent.sum(axis=0), kind="stable").tolist():
        number, total, size = int(calls[:, place].sum()), float(spent[:, place].sum()), int(moved[:, place].sum())
        rate = size / total / 1e3 if provenance == "measured" and total else None
        rows.append((names[place], number, total, total / max(1, number), size, rate, provenance))
    return rows


def _blocks(_source: RunSource, state: CacheState) -> Rows:
    kinds = np.where(state.ref > 0, "used", np.where(state.hash >= 0, "cached_free", "free")).tolist()
    columns = (state.ref, state.fill, state.hash, state.last_use, state.uses, state.level, state.gen)
    rows = list(zip(range(state.num_blocks), kinds, *(column.tolist() for column in columns), strict=True))
    return [(*row[:4], row[4] if row[4] >= 0 else None, *row[5:]) for row in rows]


def _block_tables(source: RunSource, state: CacheState) -> Rows:
    name = source.header.workload.seq_name
    rows: Rows = []
    for seq in np.flatnonzero(state.slot >= 0).tolist():
        table = state.table(seq)
        slot = int(state.slot[seq])
        reasons = [MISS_CAUSES[cause] for cause in state.causes[slot, : len(table)].tolist()]
        prompt = -(-int(source.header.workload.prompt_len[source.header.workload.request_of_seq[seq]])
                   // state.block_size)  # fmt: skip
        for logical, block in enumerate(table.tolist()):
            found = reasons[logical] if logical < prompt else None
            rows.append((seq, name(seq), logical, block, int(state.ref[block]), int(state.fill[block]), found))
    return rows


def _summary(source: RunSource, _state: CacheState) -> Rows:
    if source.timeline.summary is None:
        raise RecordingError(f"{source.name}: is not complete and has no summary; `replay {source.name}` makes one")
    return flattened(json.loads(source.timeline.summary))


def flattened(value: Any, path: str = "") -> Rows:
    """(dotted name, value) for every number and text in nested objects; lists by index, or by their entries' names."""
    if isinstance(value, dict):
        return [row for key, entry in value.items() for row in flattened(entry, f"{path}.{key}" if path else key)]
    if isinstance(value, list):
        names = [entry.get("name", str(i)) if isinstance(entry, dict) else str(i) for i, entry in enumerate(value)]
        return [row for key, entry in zip(names, value, strict=True) for row in flattened(entry, f"{path}.{key}")]
    return [(path, value)]


_CAUSE_COLUMNS = tuple(f"{cause}_tokens" for cause in MISS_CAUSES)
_STEP_NAMES = (
    "time_us", "prefill_tokens", "decoding_sequences", "decode_context_tokens", "decode_reserved_tokens", "used_blocks",
    "cached_free_blocks", "free_blocks", "resident_tokens", "used_slots_tokens", "running_sequences",
    "waiting_sequences", "peak_blocks",
)  # fmt: skip
assert len(_STEP_NAMES) == len(STEP_COLUMNS)

TABLES: tuple[Table, ...] = (
    Table("steps", "every engine step: what it computed, and the pool after it",
          ("step", *_STEP_NAMES, "kernels_us"), _steps),
    Table("requests", "every request: its trace row, what became of it, its prompt tokens by hit or cause of the miss",
          ("request", "id", "arrival_us", "prompt_tokens", "output_tokens", "samples", "parent", "fork_at_tokens",
           "cancel_at_us", "priority", "outcome", "preemptions", *_CAUSE_COLUMNS), _requests),
    Table("sequences", "every sequence at the end: context, preemptions, hits, latencies in simulated time",
          ("seq", "name", "request", "status", "context_tokens", "preemptions", "hit_tokens", "first_token_us",
           "finished_us", "ttft_us", "tpot_us", "e2e_us"), _sequences),
    Table("admissions", "every admission: blocks asked for and there, prompt tokens by hit or cause of the miss",
          ("step", "seq", "name", "prefill_tokens", "needed_blocks", "available_blocks", "reserve_blocks",
           "waiting_sequences", *_CAUSE_COLUMNS), _admissions),
    Table("preemptions", "every preemption: the rule, whom it was for, who would have been next",
          ("step", "seq", "name", "rule", "lost_tokens", "for_name", "needed_blocks", "available_blocks",
           "runner_up_name"), _preemptions),
    Table("evictions", "every evicted block with its key, and the first block that was kept",
          ("step", "rule", "place", "block", "content_id", "key", "runner_up_block"), _evictions),
    Table("allocations", "every allocated block", ("step", "seq", "logical_block", "block"), _allocations),
    Table("copies", "every copy-on-write",
          ("step", "seq", "logical_block", "src_block", "dst_block", "tokens"), _copies),
    Table("selections", "every selection by step and layer: what was read, what was kept of the attention mass",
          ("step", "layer", "policy", "sequences", "choices_per_sequence", "kept_blocks", "read_tokens", "held_tokens",
           "retained_mean_ratio", "retained_min_ratio", "output_error_max_ratio"), _selections),
    Table("compactions", "every compaction that was planned, and why not where nothing moved",
          ("step", "verdict", "moved_blocks", "live_blocks", "movable_blocks", "pinned_blocks", "top_before_block",
           "top_after_block", "span_before_ratio", "span_after_ratio"), _compactions),
    Table("fragmentation", "fragmentation after steps (all of them up to 20,000 events, else 96)",
          ("step", "time_us", "internal_ratio", "external_ratio", "span_ratio", "free_runs", "longest_free_run_blocks"),
          _fragmentation),
    Table("kernels", "every kernel: calls, time, useful bytes; GB/s only where a device was timed",
          ("kernel", "calls", "total_us", "mean_us", "useful_bytes", "useful_gb_per_s", "provenance"), _kernels),
    Table("kernel_steps", "every kernel in every step",
          ("step", "kernel", "calls", "total_us", "useful_bytes", "provenance"), _kernel_steps),
    Table("blocks", "the pool at one moment, block by block",
          ("block", "state", "references", "filled_tokens", "content_id", "last_use_step", "uses", "level",
           "generation"), _blocks, of_state=True),
    Table("block_tables", "the block tables at one moment: logical to physical",
          ("seq", "name", "logical_block", "block", "references", "filled_tokens", "prefix_cache"), _block_tables,
          of_state=True),
    Table("summary", "the summary of the replay, one name and value a row", ("name", "value"), _summary),
)  # fmt: skip
