"""Building a frame from a state and the events before it: everything that a panel would otherwise have to compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.analysis.closeups import Compaction, Selection, compaction_of, levels_of, selection_of, work_of
from tinyserve_viz.analysis.fragmentation import fragmentation
from tinyserve_viz.analysis.frame import CACHED, FREE, NULL, Frame, KernelRow, Memory, Said, SeqRow, Table
from tinyserve_viz.analysis.inspection import Inspector
from tinyserve_viz.analysis.sentences import count, provenance_title
from tinyserve_viz.analysis.stream_frame import build_stream_frame
from tinyserve_viz.core import events as ev
from tinyserve_viz.core import state as st
from tinyserve_viz.core.compaction import RULES
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.core.stream import StreamState
from tinyserve_viz.recording.header import Header

_LISTED = (st.RUNNING, st.FORKED, st.PREEMPTED, st.WAITING)
_MOST_WAITING = 50


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a frame is looked at: the sequence whose table is shown (None: the running one with the lowest number), the
    block looked at (−1: the first that the last event names), the layer, and which close-ups are to be made."""

    seq: int | None = None
    block: int = -1
    layer: int = 0
    scores: bool = True
    work: bool = False
    upkeep: bool = False



def build_frame(
    header: Header,
    state: CacheState,
    position: int,
    num_events: int,
    complete: bool,
    recent: Sequence[tuple[int, ev.Event]],
    said: Sequence[Said],
    wanted: Wanted,
    selected: tuple[int, ev.BlocksSelected, ev.I32] | None = None,
    inspector: Inspector | None = None,
    compacted: CacheState | None = None,
) -> Frame:
    """The frame of `state`, which stands at `position`; `recent` are (step, event) just before it, oldest first.

    `selected` is the last selection of the wanted layer: its step, the event and its sequences' tokens at that moment.
    `compacted` is the state before the last event where that is a compaction.
    """
    seq, block = _chosen(state, wanted.seq), wanted.block
    touched = touched_blocks(recent[-1][1]) if recent else ev.EMPTY
    if block < 0 and len(touched):
        block = int(touched[0])
    if isinstance(state, StreamState):
        return build_stream_frame(header, state, position, num_events, complete, recent, said, touched, block)
    step = recent[-1][0] if recent else 0
    selection = None
    if selected is not None:
        scorer = inspector if wanted.scores else None
        selection = selection_of(*selected, state, seq, header.model.num_layers, scorer)
    kernels, kernel_title, host_us, kernel_step = _kernels(recent, header)
    return Frame(
        header=header,
        position=position,
        num_events=num_events,
        complete=complete,
        step=step,
        time_us=state.time_us,
        owner=_owners(state),
        ref=state.ref.copy(),
        fill=np.where((state.ref > 0) | (state.hash >= 0), state.fill, 0).astype(np.int32),
        age=(state.step - state.last_use).astype(np.int32),
        content=state.hash.copy(),
        gen=state.gen.copy(),
        last_use=state.last_use.copy(),
        touched=touched,
        looked_at=block,
        held_as=_held_as(state, block, seq),
        sequences=_sequence_rows(state),
        num_waiting=int(((state.status == st.WAITING) | (state.status == st.PREEMPTED)).sum()),
        chosen=seq,
        chosen_line=_chosen_line(state, seq),
        table=_table(state, seq, selection),
        memory=_memory(state),
        kernels=kernels,
        kernel_title=kernel_title,
        host_us=host_us,
        kernel_step=kernel_step,
        selection=selection,
        said=tuple(said),
        level=state.level.copy(),
        freq=state.freq.copy(),
        weight=_weights(header, state),
        work=work_of(*selected, inspector) if selected is not None and inspector is not None and wanted.work else None,
        levels=levels_of(state, inspector.window) if inspector is not None and wanted.upkeep else None,
        compaction=_compaction(header, state, compacted) if wanted.upkeep else None,
    )


def _weights(header: Header, state: CacheState) -> NDArray[np.int32]:
    weight = RULES.get(header.engine.compaction, RULES["intelligent"]).weights(state.ref, state.freq, state.level)
    return (np.where(state.ref > 0, weight, 0) // 1000).astype(np.int32)


def _compaction(header: Header, state: CacheState, before: CacheState | None) -> Compaction | None:
    if header.engine.allocator != "paged":
        return None
    return compaction_of(header, state if before is None else before, before is not None)


def _chosen(state: CacheState, chosen: int | None) -> int:
    if chosen is not None:
        return chosen
    for status in _LISTED:
        found = np.flatnonzero(state.status == status)
        if len(found):
            return int(found[0])
    return -1


def _owners(state: CacheState) -> NDArray[np.int32]:
    owner = np.where(state.hash >= 0, CACHED, FREE).astype(np.int32)
    for seq in np.flatnonzero(state.slot >= 0)[::-1].tolist():  # the lowest number is written last
        owner[state.table(seq)] = seq
    if state.reserved_len.any():
        for seq in np.flatnonzero(state.reserved_len)[::-1].tolist():
            start, length = int(state.reserved_start[seq]), int(state.reserved_len[seq])
            owner[start // state.block_size : -(-(start + length) // state.block_size)] = seq
    owner[: state.null_blocks] = NULL
    return owner


def _held_as(state: CacheState, block: int, chosen: int) -> tuple[tuple[int, int], ...]:
    if block < 0 or not state.ref[block]:
        return ()
    found = []
    for seq in np.flatnonzero(state.slot >= 0).tolist():
        found += [(seq, logical) for logical in np.flatnonzero(state.table(seq) == block).tolist()]
    return tuple(sorted(found, key=lambda place: place[0] != chosen))


def _sequence_rows(state: CacheState) -> tuple[SeqRow, ...]:
    w, rows = state.workload, []
    for status in _LISTED:
        seqs = np.flatnonzero(state.status == status)
        if status == st.WAITING:
            seqs = seqs[:_MOST_WAITING]
        for seq in seqs.tolist():
            request = int(w.request_of_seq[seq])
            context, target = int(state.ctx[seq]), int(state.prefill_target[seq])
            total = int(w.prompt_len[request] + w.output_len[request])
            phase = st.STATUS_NAMES[status]
            if status == st.RUNNING:
                phase = "prefill" if context < target else "decode"
            rows.append(
                SeqRow(
                    seq=seq,
                    name=w.seq_name(seq),
                    status=st.STATUS_NAMES[status],
                    context=context,
                    total=total,
                    phase=phase,
                    num_blocks=int(state.num_held[seq]),
                    shared=int((state.ref[state.table(seq)] > 1).sum()),
                    hit_tokens=int(state.hit_tokens[seq]) * (status in (st.RUNNING, st.FORKED)),
                    prompt_len=int(w.prompt_len[request]),
                )
            )
    return tuple(rows)


def _chosen_line(state: CacheState, seq: int) -> str:
    if seq < 0:
        return "no sequence yet"
    w = state.workload
    name, status = w.seq_name(seq), int(state.status[seq])
    if status == st.UNBORN:
        return f"{name} has not arrived yet"
    if status == st.PREEMPTED:
        return f"{name} was preempted, gave up {count(int(state.held_at_preempt[seq]), 'block')} and waits"
    if status in (st.FINISHED, st.CANCELLED, st.REJECTED, st.WAITING):
        return f"{name} is {st.STATUS_NAMES[status]} and holds no blocks"
    if state.reserved_len[seq]:
        return (
            f"{name} reserves {int(state.reserved_len[seq]):,} token slots from {int(state.reserved_start[seq]):,} on"
        )
    return f"{name}: {count(int(state.ctx[seq]), 'token')}, {count(int(state.num_held[seq]), 'block')}"


def _table(state: CacheState, seq: int, selection: Selection | None) -> Table:
    if seq < 0 or state.slot[seq] < 0:
        return Table(ev.EMPTY, ev.EMPTY, ev.EMPTY, ev.EMPTY_U8, state.block_size, 0, 0, None)
    table = state.table(seq).copy()
    return Table(
        physical=table,
        ref=state.ref[table],
        content=state.hash[table],
        cause=state.causes[int(state.slot[seq]), : len(table)].copy(),
        block_size=state.block_size,
        context=int(state.ctx[seq]),
        prompt_len=int(state.workload.prompt_len[state.workload.request_of_seq[seq]]),
        kept=None if selection is None or selection.at < 0 else np.asarray(selection.chosen.any(axis=0)),
        scores=None if selection is None else selection.scores,
    )


def _memory(state: CacheState) -> Memory:
    measured = fragmentation(state)
    slots = (state.num_used - state.null_blocks) * state.block_size
    reserved = int(state.reserved_len.sum())
    used = -(-reserved // state.block_size) if reserved else state.num_used
    return Memory(
        used=used,
        cached=state.num_cached_free,
        free=state.num_blocks - used - state.num_cached_free,
        internal=measured["internal"],
        external=measured["external"],
        waste=measured["internal"] if reserved else 1 - state.resident_tokens / slots if slots else None,
        free_runs=measured["num_free_runs"],
        longest_free_run=measured["longest_free_run"],
        resident_tokens=state.resident_tokens,
    )


def _kernels(
    recent: Sequence[tuple[int, ev.Event]], header: Header
) -> tuple[tuple[KernelRow, ...], str, float, int]:
    copy = (header.origin.get("copy_bandwidth") or {}).get("gb_per_s")
    for step, event in reversed(recent):
        if isinstance(event, ev.KernelsTimed):
            total = float(event.total_us.sum()) or 1.0
            columns = (event.names.split(), event.calls.tolist(), event.total_us.tolist(), event.bytes.tolist())
            measured = event.provenance == "measured"
            limit = ev.COARSE_US if measured else 0.0
            rows = []
            for name, calls, us, num_bytes in zip(*columns, strict=True):
                rate = num_bytes / us / 1e3 if measured and us else None
                of_copy = rate / copy if rate is not None and copy else None
                rows.append(KernelRow(name, calls, us, us / total, num_bytes, us / calls < limit, rate, of_copy))
            rows.sort(key=lambda row: -row.total_us)
            title = f"measured on {header.origin.get('device', 'a device')}" if measured else ""
            return tuple(rows), title or provenance_title(event.provenance), event.host_us, step
    return (), "", 0.0, -1


def touched_blocks(event: ev.Event) -> NDArray[np.int32]:
    """The blocks that an event names, for a mark in the map."""
    if isinstance(event, ev.BlocksCopied | ev.CompactionPlanned):
        return np.concatenate([event.src, event.dst])
    if isinstance(event, ev.SequenceAdmitted):
        return event.hits
    if isinstance(event, ev.StreamRemoved):
        return event.blocks[event.blocks >= 0]
    if isinstance(event, ev.StreamStored | ev.StreamCleared):
        return event.blocks
    if isinstance(event, ev.BlocksEvicted | ev.BlocksAllocated | ev.BlocksCached | ev.BlocksFreed):
        return event.blocks
    return ev.EMPTY
