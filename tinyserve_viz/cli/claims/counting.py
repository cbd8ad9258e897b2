"""What the rows of `claims` are counted from: the lengths of a trace, and replays of its first requests."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.analysis.fragmentation import measure
from tinyserve_viz.analysis.metrics import Metrics
from tinyserve_viz.cli.claims.timed import Timed
from tinyserve_viz.cli.session import Settings, prepare
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.engine.replay import Engine
from tinyserve_viz.kernels.backend import kernel_named
from tinyserve_viz.kernels.numpy_backend import NumpyBackend
from tinyserve_viz.recording.header import Header
from tinyserve_viz.trace import Trace

SAMPLE_EVERY = 64  # steps between states that are looked at for fragmentation and balance
WORKERS = 132  # of the work list: the multiprocessors of an H100
BALANCE = ("per-seq", "even-blocks", "lpt")


@dataclass(slots=True)
class Counted:
    """Sums over one replay without kernels. `padded` slots: decoding sequences × the longest of them, every step."""

    header: Header
    totals: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    running: int = 0
    tokens: int = 0
    padded: int = 0
    paged: int = 0
    external: list[float] = field(default_factory=list)
    scatter: list[float] = field(default_factory=list)
    imbalance: dict[str, list[float]] = field(default_factory=lambda: {mode: [] for mode in BALANCE})
    worst: CacheState | None = None  # the sampled state in which the most live blocks could fill holes below them
    worst_moves: int = 0
    step_us: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Ask:
    """What `claims` was asked for; replays are kept, because several claims count on the same one."""

    traces: tuple[Trace, ...]
    requests: int  # of each trace that are replayed; lengths are counted over the whole trace
    seeds: int
    timed: Timed
    captured: str | None = None  # a file of captured Q, K and V
    quiet: bool = False
    replays: dict[tuple[Any, ...], Counted] = field(default_factory=dict)
    selections: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    def say(self, what: str) -> None:
        """Tell on stderr what is going on."""
        if not self.quiet:
            print(f"tinyserve-viz claims: {what}", file=sys.stderr)

    def lengths(self, trace: Trace) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Prompt and output length of every request, of each sample where it has several, int64."""
        samples = [(r.prompt_len, r.output_len) for r in trace.requests for _ in range(r.n)]
        pairs = np.array(samples, dtype=np.int64)
        return pairs[:, 0], pairs[:, 1]

    def replay(self, trace: Trace, arrivals: str = "trace", **engine: Any) -> Counted:
        """The first requests of a trace under these settings, without kernels."""
        key = (id(trace), arrivals, *sorted(engine.items()))
        if key not in self.replays:
            shown = ", ".join(f"{name} {value}" for name, value in engine.items())
            self.say(f"replaying the {self.first(trace)} ({shown or 'as the trace says'})")
            first = replace(trace, requests=trace.requests[: self.requests])
            self.replays[key] = count(first, engine, arrivals)
        return self.replays[key]

    def first(self, trace: Trace) -> str:
        """How the replayed part of a trace is called."""
        if len(trace.requests) <= self.requests:
            return f"{len(trace.requests):,} requests of {trace.name}"
        return f"first {self.requests:,} requests of {trace.name}"


def count(trace: Trace, engine: dict[str, Any], arrivals: str = "trace") -> Counted:
    """Replay a trace without kernels and sum up."""
    header = prepare(trace, Settings(engine=engine, kernels="none", oracles=True, arrivals=arrivals))
    found = Counted(header)
    metrics = Metrics(header.workload, header.engine)

    def take(step: int, event: ev.Event) -> None:
        metrics.add(step, event)
        if isinstance(event, ev.TokensWritten):
            _decoding(found, running.state, event.decode_seqs, step)
        elif isinstance(event, ev.StepEnded):
            found.steps += 1
            found.running += event.num_running
            found.tokens += event.decode_tokens
            found.paged += event.decode_slots
            if step % SAMPLE_EVERY == 0:
                _fragmentation(found, running.state)

    running = Engine(header.workload, header.engine, header.rules, take)
    time_us = 0
    while running.step():
        found.step_us.append(running.state.time_us - time_us)
        time_us = running.state.time_us
    found.totals = {**metrics.as_dict(running.state), "hot_region": metrics.hot_region.hit_rate}
    return found


def _decoding(found: Counted, state: CacheState, seqs: ev.I32, step: int) -> None:
    if not len(seqs):
        return
    lengths = state.ctx[seqs]
    found.padded += len(seqs) * int(lengths.max())
    if step % SAMPLE_EVERY == 0 and len(seqs) > 1:
        for mode, value in imbalance(lengths, state.block_size).items():
            found.imbalance[mode].append(value)


def imbalance(lengths: NDArray[Any], block_size: int) -> dict[str, float]:
    """Most tokens of a worker over the mean of all `WORKERS`, for each way to share the batch out."""
    loads = {}
    for mode in BALANCE:
        outputs = NumpyBackend().run(
            kernel_named("dynamic_workload_balancing"),
            {"seq_lens": lengths.astype(np.int32)},
            {
                "num_workers": WORKERS,
                "max_segments": WORKERS + len(lengths),
                "block_size": block_size,
                "mode": mode,
            },
        )
        load = outputs["load"]
        loads[mode] = float(load.max() / load.mean())
    return loads


def _fragmentation(found: Counted, state: CacheState) -> None:
    measured = measure(state)
    if measured.external is not None and (state.num_used > state.null_blocks or state.reserved_len.any()):
        found.external.append(measured.external)
    if measured.scatter is not None:
        found.scatter.append(measured.scatter)
    live = np.flatnonzero(state.ref > 0)
    moves = int((live >= len(live)).sum())
    if moves > found.worst_moves:
        found.worst, found.worst_moves = state.copy(), moves
