"""Import of a KV-event stream into a recording, and the summary of such a recording."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tinyserve_viz import __version__
from tinyserve_viz.analysis.stream_metrics import StreamMetrics
from tinyserve_viz.core.apply import apply
from tinyserve_viz.core.config import ContentConfig, EngineConfig, ModelConfig
from tinyserve_viz.core.errors import ConfigError
from tinyserve_viz.core.events import EMPTY, Event
from tinyserve_viz.core.rules import DEFAULT_RULES
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.core.stream import StreamChecker, StreamState
from tinyserve_viz.core.workload import Workload, sequences_of
from tinyserve_viz.engine.kv_stream import StreamReplay, Survey, first_of, survey
from tinyserve_viz.recording.header import Header
from tinyserve_viz.recording.recorder import Digest, Recorder
from tinyserve_viz.recording.timeline import Timeline
from tinyserve_viz.report.stream_summary import summarize_stream
from tinyserve_viz.trace import kv_events

_SNAPSHOT_EVERY = 2048  # events, about 15 µs each to apply; hashes do not compress, so snapshots are dear in space
_PROGRESS_BYTES = 1 << 18  # of the file between two looks at the progress bar

Progress = Callable[[int, int], None]


def import_stream(
    source: str, output: Path, force: bool = False, num_blocks: int | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Read the stream at `source` twice and record it to `output`; returns the summary, which the recording holds too.

    `num_blocks` is the size of the server's pool, where the user knows it; `progress` hears (bytes read, in all).

    Raises:
        TraceError: the stream cannot be read.
        ConfigError: more than `num_blocks` blocks are in the cache at once.
        RecordingError: `output` exists or cannot be written.
    """
    started = time.perf_counter()
    found = survey(source, kv_events.read_batches(source, _report(source, progress, 0)))
    if num_blocks is not None and num_blocks < found.peak:
        raise ConfigError(f"{source}: {found.peak:,} blocks are in the cache at once, expected at most {num_blocks:,}")
    header = _header(source, found, num_blocks)
    state = header.empty_state()
    assert isinstance(state, StreamState)
    metrics, checker = StreamMetrics(header), StreamChecker(state)
    spacing = max(_SNAPSHOT_EVERY, state.num_blocks // 64)
    with Recorder(output, header, state, force, snapshot_every=spacing) as recorder:

        def sink(step: int, event: Event) -> None:
            recorder.add(step, event)
            metrics.add(step, event)
            checker.add(step, event)

        replay = StreamReplay(state, found, sink)
        batches = kv_events.read_batches(source, _report(source, progress, 1))
        for batch in first_of(batches, found.num_batches):
            replay.add(batch)
        checker.check_now()
        digest = recorder.digest
        summary = summarize_stream(
            header,
            metrics,
            state,
            digest.num_events,
            time.perf_counter() - started,
            checker.num_checked,
            checker.violations,
            digest.hexdigest(),
        )
        recorder.finish(json.dumps(summary).encode())
    return summary


class Watching(Protocol):
    """What sees every event of a recording that is applied again."""

    def add(self, step: int, event: Event) -> None:
        """Take an event that was just applied."""
        ...


class Checking(Watching, Protocol):
    """A watcher that can also look at the state as it is."""

    def check_now(self) -> None:
        """Check everything."""
        ...


def applied_again(
    timeline: Timeline, state: CacheState | StreamState, metrics: Watching, checker: Checking
) -> tuple[Digest, dict[str, Any]]:
    """Apply every event of a recording to its first state; returns their digest, and the summary that was recorded."""
    digest = Digest()
    with timeline.reading():
        for step, event in timeline.events():
            apply(state, event)
            digest.add(step, event)
            metrics.add(step, event)
            checker.add(step, event)
        checker.check_now()
    return digest, json.loads(timeline.summary) if timeline.summary else {}


def summarize_stream_recording(timeline: Timeline) -> dict[str, Any]:
    """Apply every event of a recorded stream again, check it, and summarize it."""
    started = time.perf_counter()
    header = timeline.header
    state = header.empty_state()
    assert isinstance(state, StreamState)
    metrics, checker = StreamMetrics(header), StreamChecker(state)
    digest, recorded = applied_again(timeline, state, metrics, checker)
    wall_s = recorded.get("wall_s", time.perf_counter() - started)
    sha256 = digest.hexdigest()
    summary = summarize_stream(
        header, metrics, state, digest.num_events, wall_s, checker.num_checked, checker.violations, sha256
    )
    return {**summary, "complete": timeline.complete, "digest_matches": sha256 == timeline.digest}


def _report(source: str, progress: Progress | None, reading: int) -> Callable[[int], None] | None:
    """A function that tells `progress` the bytes of both readings, now and then."""
    if progress is None:
        return None
    size, told = Path(source).stat().st_size, -_PROGRESS_BYTES

    def report(position: int) -> None:
        nonlocal told
        if position - told >= _PROGRESS_BYTES:
            told = position
            progress(reading * size + position, 2 * size)

    return report


def _header(source: str, found: Survey, num_blocks: int | None) -> Header:
    nothing = np.zeros(0, dtype=np.int64)
    first_seq, request_of_seq = sequences_of(EMPTY)
    workload = Workload(
        request_ids=(),
        arrival_us=nothing,
        prompt_len=EMPTY,
        output_len=EMPTY,
        num_samples=EMPTY,
        parent=EMPTY,
        fork_at=EMPTY,
        cancel_at_us=nothing,
        priority=EMPTY,
        num_hashes=0,
        hash_flat=EMPTY,
        hash_offsets=np.zeros(1, dtype=np.int64),
        first_seq=first_seq,
        request_of_seq=request_of_seq,
    )
    name = Path(source).name.removesuffix(".gz")
    origin = {
        "trace": {"name": name.rsplit(".", 1)[0] or name, "format": kv_events.NAME, "num_requests": None},
        "profile": "unknown",
        "arrivals": "unknown",
        "backend": "none",
        "device": "unknown",
        "kernels_run": "none",
        "tool": __version__,
        "stream": {
            "places": [list(place) for place in found.places],
            "first_time_s": found.first_time_s,
            "rank": found.rank,
            "given": num_blocks is not None,
        },
    }
    engine = EngineConfig(block_size=found.block_size, num_blocks=max(1, num_blocks or found.peak))
    return Header(engine, DEFAULT_RULES, ModelConfig(), ContentConfig(), workload, origin)
