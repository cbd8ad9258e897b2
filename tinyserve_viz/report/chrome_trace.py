"""A recording in Chrome's trace-event JSON, which Perfetto and chrome://tracing open.

Format: "Trace Event Format", https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU. The two
clocks never share a track: the processes `server` and `rows` are in simulated time, `kernels` lays the measured times
end to end, step after step. Slices of a track are nested or apart: times are whole nanoseconds, written in µs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from tinyserve_viz.analysis.charts.source import FRAGMENTATION_COLUMNS, PROVENANCE, RunSource, provenance_of
from tinyserve_viz.core import events as ev

SERVER, ROWS, KERNELS = 1, 2, 3
STEPS, HAPPENED = 1, 2  # threads of the server
STREAM = 1  # the pipeline launches everything on one stream

_encode = msgspec.json.Encoder().encode


def chrome_trace(source: RunSource) -> Iterator[bytes]:
    """The file in pieces: one event a line."""
    yield b'{"displayTimeUnit":"ms","otherData":' + _encode(_other(source)) + b',"traceEvents":[\n'
    first = True
    for event in _events(source):
        yield (b"" if first else b",\n") + _encode(event)
        first = False
    yield b"\n]}\n"


def _other(source: RunSource) -> dict[str, Any]:
    caption = list(source.caption())
    if source.has_kernels:
        caption.append(f"kernel times: {PROVENANCE[provenance_of(source.kernels[4])]}")
    return {
        "schema": 1,
        "clock of server and rows": "simulated time, µs",
        "clock of kernels": "measured time of the kernels laid end to end, µs",
        "caption": caption,
    }


def _events(source: RunSource) -> Iterator[dict[str, Any]]:
    yield from _named(SERVER, "server, simulated time", {STEPS: "engine steps", HAPPENED: "what happened"})
    yield from _steps(source)
    yield from _counters(source)
    yield from _happened(source)
    rows, slices = _rows(source)
    yield from _named(ROWS, "rows of running sequences, simulated time", {row + 1: f"row {row}" for row in rows})
    yield from slices
    if source.has_kernels:
        provenance = source.kernels[4]
        title = "kernels" if provenance == "measured" else "NumPy reference, wall time"
        yield from _named(KERNELS, f"{title}, laid end to end", {STREAM: "stream 0"})
        yield from _kernels(source)


def _named(pid: int, process: str, threads: dict[int, str]) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": process}}
    yield {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": pid}}
    for tid, name in threads.items():
        yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}}
        yield {"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid}}


def _starts(source: RunSource) -> list[int]:
    """Simulated µs at the start of every step: the end of the one before, or where a jump of the clock led."""
    ends = source.steps["time_us"].tolist()
    starts = [0, *ends[:-1]]
    for step, row in zip(*source.timeline.rows_of_kind(ev.ClockJumped), strict=True):
        if step < len(starts):
            starts[step] = row[0]
    return starts


def _steps(source: RunSource) -> Iterator[dict[str, Any]]:
    columns = [source.steps[name].tolist() for name in ("time_us", "num_prefill_tokens", "num_decoding")]
    for step, (start, end, prefill, decoding) in enumerate(zip(_starts(source), *columns, strict=True)):
        yield {
            "ph": "X", "name": f"step {step}", "cat": "step", "pid": SERVER, "tid": STEPS, "ts": start,
            "dur": end - start, "args": {"step": step, "prefill_tokens": prefill, "decoding_sequences": decoding},
        }  # fmt: skip


def _counters(source: RunSource) -> Iterator[dict[str, Any]]:
    """Values since their time; one that stays as it is, is not written again."""
    _, columns = source.course
    times = [0, *columns["time_us"].tolist()]  # a row holds since the one before
    for name, series in (
        ("memory (blocks)", {"used": "used_blocks", "cached": "cached_free_blocks", "free": "free_blocks"}),
        ("queue (sequences)", {"running": "num_running", "waiting": "num_waiting"}),
    ):
        rows = list(zip(*(columns[column].tolist() for column in series.values()), strict=True))
        yield from _counter(name, list(series), times[:-1], rows)
    steps, measures = source.fragmentation
    ends = source.steps["time_us"][np.minimum(steps, source.num_steps - 1)].tolist()
    for name in ("internal", "external", "frag_ratio"):
        assert name in FRAGMENTATION_COLUMNS
        unit = "used blocks" if name == "frag_ratio" else "%"
        scale = 1 if name == "frag_ratio" else 100
        title = {"frag_ratio": "span"}.get(name, f"{name} fragmentation")
        known = [(time, (scale * v,)) for time, v in zip(ends, measures[name].tolist(), strict=True) if v == v]
        yield from _counter(f"{title} ({unit})", [title], [time for time, _ in known], [row for _, row in known])


def _counter(
    name: str, series: list[str], times: list[int], rows: list[tuple[float, ...]]
) -> Iterator[dict[str, Any]]:
    last = None
    for time, row in zip(times, rows, strict=True):
        if row != last:
            args = dict(zip(series, row, strict=True))
            yield {"ph": "C", "name": name, "pid": SERVER, "tid": 0, "ts": time, "args": args}
        last = row


def _happened(source: RunSource) -> Iterator[dict[str, Any]]:
    """Instants: what the scheduler and the allocator had to do under pressure."""
    w = source.header.workload
    starts = _starts(source)
    found: list[tuple[int, str, dict[str, Any]]] = []
    for _, step, event in source.events(ev.SequencePreempted):
        args = {"rule": event.rule, "needed_blocks": event.needed, "available_blocks": event.available}
        args |= {"for": w.seq_name(event.for_seq), "lost_tokens": event.lost_tokens}
        found.append((step, f"preempt {w.seq_name(event.seq)}", args))
    for _, step, event in source.events(ev.BlocksEvicted):
        found.append((step, f"evict {len(event.blocks)}", {"rule": event.rule, "first_block": int(event.blocks[0])}))
    for _, step, event in source.events(ev.BlocksCopied):
        pairs = {"blocks": [f"{a} → {b}" for a, b in zip(event.src.tolist(), event.dst.tolist(), strict=True)]}
        found.append((step, f"copy on write {len(event.src)}", pairs))
    for _, step, event in source.events(ev.CompactionPlanned):
        if len(event.src):
            found.append((step, f"compact {len(event.src)}", {"verdict": event.verdict}))
    for _, step, event in source.events(ev.RequestRejected):
        args = {"rule": event.rule, "needed": event.needed, "available": event.available}
        found.append((step, f"reject {w.request_ids[event.request]}", args))
    for step, name, args in sorted(found, key=lambda item: item[0]):
        time = starts[step] if step < len(starts) else int(source.steps["time_us"][-1])
        yield {
            "ph": "i", "s": "t", "name": name, "cat": name.split()[0], "pid": SERVER, "tid": HAPPENED, "ts": time,
            "args": {"step": step, **args},
        }  # fmt: skip


def _rows(source: RunSource) -> tuple[list[int], list[dict[str, Any]]]:
    """A slice for every stay of a sequence in its row of the batch, with its prefill and its decoding inside."""
    w = source.header.workload
    starts, ends = _starts(source), source.steps["time_us"].tolist()
    open_: dict[int, tuple[int, int, int]] = {}  # sequence → row, start, earliest time at which its prompt can be done
    slices: list[dict[str, Any]] = []
    rows: set[int] = set()

    def begin(seq: int, row: int, time: int, forked: bool = False) -> None:
        rows.add(row)
        open_[seq] = (row, time, time if forked else time + 1)

    def end(seq: int, time: int, how: str) -> None:
        if seq not in open_:
            return
        row, start, earliest = open_.pop(seq)
        request = int(w.request_of_seq[seq])
        common = {"pid": ROWS, "tid": row + 1}
        args = {"seq": seq, "prompt_tokens": int(w.prompt_len[request]), "output_tokens": int(w.output_len[request])}
        slices.append({"ph": "X", "name": w.seq_name(seq), "cat": "sequence", **common, "ts": start,
                       "dur": time - start, "args": {**args, "ended": how}})  # fmt: skip
        turn = min(time, next((done for done in source.prefills_us.get(seq, ()) if done >= earliest), time))
        for name, low, high in (("prefill", start, turn), ("decode", turn, time)):
            if high > low:
                slices.append({"ph": "X", "name": name, "cat": name, **common, "ts": low, "dur": high - low})

    for step, event in _of_lives(source):
        if step >= len(ends):
            break
        match event:
            case ev.SequenceAdmitted():
                begin(event.seq, event.slot, starts[step])
            case ev.SequencesForked():
                for child, slot in zip(event.children.tolist(), event.slots.tolist(), strict=True):
                    begin(child, slot, ends[step], forked=True)
            case ev.SequencePreempted():
                end(event.seq, starts[step], "preempted")
            case ev.SequencesFinished():
                for seq in event.seqs.tolist():
                    end(seq, ends[step], "finished")
            case ev.RequestCancelled():
                for seq in event.seqs.tolist():
                    end(seq, starts[step], "cancelled")
            case _:
                pass
    for seq in list(open_):
        end(seq, max(ends[-1], open_[seq][1]), "not ended in the recording")
    return sorted(rows), slices


def _of_lives(source: RunSource) -> list[tuple[int, ev.Event]]:
    kinds = (ev.SequenceAdmitted, ev.SequencesForked, ev.SequencePreempted, ev.SequencesFinished, ev.RequestCancelled)
    found = [row for kind in kinds for row in source.events(kind)]
    return [(step, event) for _, step, event in sorted(found, key=lambda row: row[0])]


def _kernels(source: RunSource) -> Iterator[dict[str, Any]]:
    """A slice a step, and inside it one for all calls of each kernel, in the order in which they first ran."""
    names, spent, calls, moved, _ = source.kernels
    now = 0  # ns
    common = {"ph": "X", "pid": KERNELS, "tid": STREAM}
    for step in np.flatnonzero(calls.any(axis=1)).tolist():
        start, inside = now, []
        for kernel in np.flatnonzero(calls[step]).tolist():
            length = round(1000 * float(spent[step, kernel]))
            args = {"calls": int(calls[step, kernel]), "useful_bytes": int(moved[step, kernel])}
            inside.append({**common, "name": names[kernel], "cat": "kernel", "ts": now / 1000, "dur": length / 1000,
                           "args": args})  # fmt: skip
            now += length
        yield {**common, "name": f"step {step}", "cat": "step", "ts": start / 1000, "dur": (now - start) / 1000,
               "args": {"step": step}}  # fmt: skip
        yield from inside
