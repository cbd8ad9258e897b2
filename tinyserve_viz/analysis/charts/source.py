"""What charts of a recording read: columns over its steps and requests, each read once and only when asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import fields
from functools import cached_property
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.analysis.metrics import fragmentation
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.apply import apply
from tinyserve_viz.core.errors import TinyserveError
from tinyserve_viz.core.workload import MISS_CAUSES
from tinyserve_viz.recording.codec import array_of
from tinyserve_viz.recording.header import Header
from tinyserve_viz.recording.timeline import Timeline

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

STEP_COLUMNS = (
    "time_us",
    "num_prefill_tokens",
    "num_decoding",
    "decode_tokens",
    "decode_slots",
    "used_blocks",
    "cached_free_blocks",
    "free_blocks",
    "resident_tokens",
    "used_slots",
    "num_running",
    "num_waiting",
    "peak_blocks",
)
_PLACE = {field.name: place for place, field in enumerate(fields(ev.StepEnded))}
_PREFILLED = _PLACE["prefilled"]
_NAMES, _CALLS, _TOTAL_US, _BYTES, _PROVENANCE = (
    ev.KernelsTimed.OBSERVED.index(name) for name in ("names", "calls", "total_us", "bytes", "provenance")
)
_STAY = ("used_blocks", "cached_free_blocks", "free_blocks", "resident_tokens", "used_slots", "peak_blocks")
_SAMPLES = 96  # states looked at for fragmentation over time: a seek takes 5 to 20 ms
_FULL_READ = 20_000  # events; up to here every step's state is looked at
FRAGMENTATION_COLUMNS = ("internal", "external", "frag_ratio", "num_free_runs", "longest_free_run")


class NothingToPlot(TinyserveError):  # noqa: N818 - says what the recording lacks
    """The recording holds nothing of what the chart shows; the message says what would."""


class RunSource:
    """A recording as columns. Nothing is read before it is asked for, and only the kinds of events that it needs."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.header: Header = timeline.header
        self.name = timeline.path.name
        self._no_step = f"{self.name}: has no complete step, nothing to plot"

    @cached_property
    def steps(self) -> dict[str, I64]:
        """`STEP_COLUMNS` over the steps, int64 [steps]."""
        rows = self._ended
        return {name: _column(rows, _PLACE[name]) for name in STEP_COLUMNS}

    @cached_property
    def _ended(self) -> list[list[Any]]:
        return self.timeline.rows_of_kind(ev.StepEnded)[1]

    @property
    def num_steps(self) -> int:
        """Complete steps."""
        return len(self.steps["time_us"])

    @cached_property
    def course(self) -> tuple[F64, dict[str, I64]]:
        """Simulated seconds and `STEP_COLUMNS`: a row for every step and one for every pause before a jump of time.

        A row holds since the row before it. In a pause the blocks stay as they are; nothing runs, waits or is written.
        """
        steps = self.steps
        if not self.num_steps:
            raise NothingToPlot(self._no_step)
        jump_steps, jump_rows = self.timeline.rows_of_kind(ev.ClockJumped)
        at, idle = np.array(jump_steps, dtype=np.int64), _column(jump_rows, 0)
        between = (at > 0) & (at < self.num_steps)
        at, idle = at[between], idle[between]
        columns = {}
        for name, values in steps.items():
            pause = idle if name == "time_us" else values[at - 1] if name in _STAY else np.zeros_like(at)
            columns[name] = np.insert(values, at, pause)
        return columns["time_us"] / 1e6, columns

    @property
    def seconds(self) -> F64:
        """Simulated time at the end of every step, in s."""
        if not self.num_steps:
            raise NothingToPlot(self._no_step)
        return self.steps["time_us"] / 1e6

    def time_of(self, steps: Any) -> F64:
        """Simulated seconds at the ends of these steps (of the last complete one for those after it)."""
        numbers = np.minimum(np.asarray(steps, dtype=np.int64), self.num_steps - 1)
        return self.seconds[numbers]

    @cached_property
    def kernels(self) -> tuple[list[str], F64, F64, I64, str]:
        """Names, then per step and kernel (steps × kernels) µs, calls and bytes, and how the times were taken.

        Names are in the order in which kernels ran: one that a step ran first after another stands behind it.

        Raises:
            NothingToPlot: no kernels ran.
        """
        steps, rows = self.timeline.rows_of_kind(ev.KernelsTimed, observed=True)
        together = dict.fromkeys(row[_NAMES] for row in rows)  # most steps run the same kernels
        names = _merged(words.split() for words in together)
        places = {words: np.array([names.index(name) for name in words.split()], dtype=np.int64) for words in together}
        if not names:
            raise NothingToPlot(
                f"{self.name}: no kernels ran in it, so there are no kernel times; replay with --kernels all"
            )
        shape = (max(self.num_steps, steps[-1] + 1), len(names))
        own = [places[row[_NAMES]] for row in rows]
        cells = np.repeat(np.array(steps), [len(kernels) for kernels in own]) * len(names) + np.concatenate(own)

        def summed(place: int, dtype: str) -> F64:
            """Of one array of the events, by step and kernel; sums of whole numbers are exact up to 2^53."""
            values = np.frombuffer(b"".join(row[place].data for row in rows), dtype=dtype)
            sums = np.bincount(cells, weights=values, minlength=shape[0] * shape[1])
            return np.asarray(sums, dtype=np.float64).reshape(shape)

        total_us, num_calls, num_bytes = summed(_TOTAL_US, "<f8"), summed(_CALLS, "<i4"), summed(_BYTES, "<i8")
        return names, total_us, num_calls, num_bytes.astype(np.int64), str(rows[-1][_PROVENANCE])

    @property
    def has_kernels(self) -> bool:
        """Whether kernels ran."""
        return bool(self.header.origin["kernels_run"] != "none")

    def sizes_of(self, kind: type[ev.Event], array: str) -> list[tuple[int, int]]:
        """(step, length of the field `array`) of the events of one type."""
        place = [field.name for field in fields(kind)].index(array)
        steps, rows = self.timeline.rows_of_kind(kind)
        return [(step, len(array_of(row[place]))) for step, row in zip(steps, rows, strict=True)]

    def events(self, kind: type[ev.Event]) -> Iterator[tuple[int, int, Any]]:
        """(index, step, event) of the events of one type."""
        return self.timeline.events_of_kind(kind)

    @cached_property
    def admissions(self) -> tuple[I64, I64, I64]:
        """Step [k], sequence [k] and tokens by class [k × 7] (`MISS_CAUSES`) of every admission."""
        steps, rows = self.timeline.rows_of_kind(ev.SequenceAdmitted)
        places = {field.name: place for place, field in enumerate(fields(ev.SequenceAdmitted))}
        tokens = b"".join(row[places["class_tokens"]].data for row in rows)
        return (
            np.array(steps, dtype=np.int64),
            _column(rows, places["seq"]),
            np.frombuffer(tokens, dtype=np.int64).reshape(len(rows), len(MISS_CAUSES)),
        )

    @cached_property
    def first_token_us(self) -> I64:
        """Per sequence: end of the step that completed its prompt, −1 where none did; a fork's is its parent's."""
        times = self.steps["time_us"]
        found = np.full(self.header.workload.num_seqs, -1, dtype=np.int64)
        for index, row in enumerate(self._ended):
            if row[_PREFILLED].data:
                prefilled = array_of(row[_PREFILLED])
                found[prefilled[found[prefilled] < 0]] = times[index]
        return found

    @cached_property
    def prefills_us(self) -> dict[int, list[int]]:
        """Per sequence: ends of the steps that completed its prompt, once more after every preemption."""
        found: dict[int, list[int]] = {}
        for index, row in enumerate(self._ended):
            if row[_PREFILLED].data:
                for seq in array_of(row[_PREFILLED]).tolist():
                    found.setdefault(seq, []).append(int(self.steps["time_us"][index]))
        return found

    @cached_property
    def finished_us(self) -> I64:
        """Per sequence: end of the step that wrote its last token, −1 where none did."""
        times = self.steps["time_us"]
        found = np.full(self.header.workload.num_seqs, -1, dtype=np.int64)
        for _, step, event in self.events(ev.SequencesFinished):
            if step < len(times):
                found[event.seqs] = times[step]
        return found

    @cached_property
    def latencies_us(self) -> dict[str, F64]:
        """`ttft`, `tpot`, `e2e` per sequence in µs of simulated time, NaN where it did not come to that.

        `ttft`: arrival to the end of the step that completed the prompt · `e2e`: arrival to the end of the step that
        wrote the last token · `tpot`: (e2e − ttft) / decode steps, of sequences with at least one.
        """
        w = self.header.workload
        request = w.request_of_seq
        arrival, output = w.arrival_us[request], w.output_len[request]
        first, last = self.first_token_us, self.finished_us
        ttft = np.where(first >= 0, first - arrival, np.nan)
        e2e = np.where(last >= 0, last - arrival, np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            tpot = np.where(output > 0, (e2e - ttft) / output, np.nan)
        return {"ttft": ttft, "tpot": tpot, "e2e": e2e}

    @cached_property
    def fragmentation(self) -> tuple[I64, dict[str, F64]]:
        """Steps looked at, and `FRAGMENTATION_COLUMNS` at their ends (NaN where there is nothing to measure).

        A recording of up to 20,000 events is read in full; a longer one is looked at in 96 places.
        """
        timeline = self.timeline
        state = self.header.empty_state()
        steps: list[int] = []
        rows: list[dict[str, Any]] = []
        if timeline.num_events <= _FULL_READ:
            for step, event in timeline.events():
                apply(state, event)
                if isinstance(event, ev.StepEnded):
                    steps.append(step)
                    rows.append(fragmentation(state))
        else:
            for index in np.linspace(0, timeline.num_events, _SAMPLES + 1).astype(np.int64)[1:].tolist():
                state = timeline.seek(timeline.first_event_of_step(timeline.step_of(index)))
                steps.append(max(0, state.step - 1))
                rows.append(fragmentation(state))
        columns = {
            name: np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=np.float64)
            for name in FRAGMENTATION_COLUMNS
        }
        return np.array(steps, dtype=np.int64), columns

    def caption(self, provenance: str = "counted") -> tuple[str, ...]:
        """The parts of a caption: trace, configuration, content, backend and device, provenance, tool, digest."""
        header, origin = self.header, self.header.origin
        engine, trace = header.engine, origin["trace"]
        policy = f"{engine.allocator} allocator, {engine.num_blocks:,} blocks of {engine.block_size} tokens"
        if engine.allocator == "paged":
            policy += f", eviction {engine.eviction}"
        parts = [
            f"trace {trace['name']} ({trace['format']}, {trace['num_requests']:,} requests)",
            f"profile {origin['profile']}, {policy}",
        ]
        if self.has_kernels:
            ratio = f" ratio {engine.ratio_permille / 1000:g}" if engine.selection == "paper" else ""
            parts.append(f"selection {engine.selection}{ratio}, content {header.content.describe()}")
        else:
            parts.append(f"no kernels, content {header.content.describe()} unused")
        parts.append(f"backend {origin['backend']}, {origin['device']}")
        parts.append(PROVENANCE[provenance])
        if provenance == "counted":
            parts.append(self.clock)
        parts.append(f"tinyserve-viz {origin['tool']}")
        parts.append(self._digest)
        return tuple(parts)

    @property
    def clock(self) -> str:
        """What simulated time is."""
        engine = self.header.engine
        if engine.clock == "measured":
            layers = "" if engine.clock_layers == 1 else f" times {engine.clock_layers} layers"
            return f"● simulated time is that of the measured kernels{layers}"
        return (
            f"simulated time by a model: {engine.clock_base_us:,} µs a step + {engine.clock_prefill_us} a prefilled "
            f"token + {engine.clock_decode_us} a decoding sequence"
        )

    @property
    def _digest(self) -> str:
        if self.timeline.summary is None:
            return "recording not complete"
        digest = json.loads(self.timeline.summary).get("digest")
        return f"digest {digest[:16]}" if digest else "no digest"


def _merged(orders: Iterable[list[str]]) -> list[str]:
    """One order of all names: a new one goes behind the name before it, or before the next that is known."""
    merged: list[str] = []
    for order in orders:
        known = (merged.index(name) for name in order if name in merged)
        place = next(known, len(merged))
        for name in order:
            if name not in merged:
                merged.insert(place, name)
            place = merged.index(name) + 1
    return merged


def _column(rows: list[list[Any]], place: int) -> I64:
    return np.fromiter(map(itemgetter(place), rows), np.int64, len(rows))


PROVENANCE = {
    "measured": "● measured on the device",
    "counted": "◐ counted from the events",
    "reference": "◐ NumPy reference: wall time of the reference code, no kernel time",
    "observed": "◐ computed on declared content, not a model's",
    "claimed": "○ claimed by others",
}


def provenance_of(times: str) -> str:
    """The key of `PROVENANCE` for an event's `provenance`."""
    return times if times in PROVENANCE else "reference"
