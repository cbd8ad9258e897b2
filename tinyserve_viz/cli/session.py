"""One replay from trace to summary: builds the parts and wires them together, for the command line and for the TUI."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz import __version__
from tinyserve_viz.analysis.metrics import Metrics
from tinyserve_viz.cli.backend import choose_backend, misfit, open_session
from tinyserve_viz.cli.import_stream import applied_again, summarize_stream_recording
from tinyserve_viz.core.check import FULL_EVERY, StepChecker
from tinyserve_viz.core.config import ORACLE_EVICTIONS, ContentConfig, EngineConfig, ModelConfig, with_overrides
from tinyserve_viz.core.errors import ConfigError, DeviceLost, OutOfDeviceMemory
from tinyserve_viz.core.events import Event
from tinyserve_viz.core.rules import EngineRules
from tinyserve_viz.core.rules import profile as rules_of_profile
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.core.workload import Workload
from tinyserve_viz.engine.captured import check_lengths, model_of, read_capture
from tinyserve_viz.engine.cas_allocation import CasBlockManager
from tinyserve_viz.engine.choosing import checked_selection
from tinyserve_viz.engine.pipeline import QUALITIES, KernelPipeline, PipelineConfig, Stopwatch
from tinyserve_viz.engine.replay import Engine
from tinyserve_viz.engine.seed_allocation import SeedBlockManager
from tinyserve_viz.engine.workload import ARRIVALS, workload_of
from tinyserve_viz.kernels.backend import Backend
from tinyserve_viz.kernels.copy_bandwidth import host_copy_bandwidth
from tinyserve_viz.kernels.numpy_backend import NumpyBackend
from tinyserve_viz.kernels.parameters import PARAMETERS
from tinyserve_viz.kernels.session import Session
from tinyserve_viz.kernels.shared_session import SharedResults, SharedSession
from tinyserve_viz.kernels.verified_session import VerifiedSession
from tinyserve_viz.recording.header import Header
from tinyserve_viz.recording.prefix_ids import encode_prefix_ids
from tinyserve_viz.recording.recorder import Digest, Recorder
from tinyserve_viz.recording.timeline import Timeline
from tinyserve_viz.report.summary import Outcome, summarize
from tinyserve_viz.trace.request import Trace

Sink = Callable[[int, Event], Any]
Progress = Callable[[int, int], None]
"""Called now and then with (requests over, requests in all)."""

_PROGRESS_EVERY_S = 0.1
ALL_KERNELS_UP_TO_TOKENS = 200_000
_KERNEL_SETTINGS = ("attention", "verify", "quality")
# What steers kernels alone, by the name of the setting.
_KERNEL_OPTIONS = {
    "selection": "--selection",
    "ratio_permille": "--ratio",
    "budget_blocks": "--budget-blocks",
    "sinks": "--sinks",
    "recent": "--recent",
    "selection_heads": "--selection-heads",
    "reduction": "--reduction",
    "kind": "--content",
    "path": "--content",
    "seed": "--seed",
    "attention": "--attention",
    "verify": "--verify",
    "quality": "--quality",
    "alloc": "--alloc cas",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What a user may set for a replay; the overrides win over what the trace file sets, that over the defaults."""

    engine: dict[str, Any] = field(default_factory=dict)
    content: dict[str, Any] = field(default_factory=dict)
    profile: str = "tinyserve"
    rules: dict[str, Any] = field(default_factory=dict)
    arrivals: str = "trace"
    check_every_step: bool = False
    kernels: str | None = None  # all, decisions, none; None: by the size of the trace
    attention: str | None = None  # exact, flash, query-aware, query-aware-fused, all; None: all
    oracles: bool = False  # whether policies that know the whole trace may be had
    quality: str | None = None  # full, sample, off; None: by the size of the trace
    backend: str = "numpy"  # auto, numpy, cuda
    verify: str | None = None  # every, sample, off; None: by the size of the trace
    alloc: str = "scan"  # scan, cas
    time_repeat: int = 1


def prepare(trace: Trace, settings: Settings) -> Header:
    """Everything that is known before the first event.

    Raises:
        ConfigError: a setting is out of range, or two contradict each other.
    """
    rules = rules_of_profile(settings.profile, **settings.rules)
    if settings.arrivals not in ARRIVALS:
        raise ConfigError(f"unknown arrivals {settings.arrivals!r}; known: {', '.join(ARRIVALS)}")
    engine = with_overrides(EngineConfig(), {**trace.engine, **_given(settings.engine)})
    if engine.eviction in ORACLE_EVICTIONS and not settings.oracles:
        raise ConfigError(
            f"eviction {engine.eviction!r} knows the rest of the trace, which no server does: "
            "it can be had in compare and curve only"
        )
    if settings.arrivals == "timed":
        engine = replace(engine, clock_base_us=10_000, clock_prefill_us=15, clock_decode_us=15)
    if engine.allocator != "paged":
        engine = replace(engine, prefix_caching=False)
    if rules.free_order == "queue" and engine.eviction != "lru":
        raise ConfigError(
            f"free_order queue evicts by its own order, eviction {engine.eviction!r} cannot be had with it"
        )
    if rules.null_block and engine.num_blocks < 2:
        raise ConfigError("num_blocks is 1, expected 2 or more: block 0 is the null block")
    declared = {**trace.content, **_given(settings.content)}
    if settings.content.get("path") is not None and "sha256" not in _given(settings.content):
        declared.pop("sha256", None)  # it pinned the trace's own file
    content = with_overrides(ContentConfig(seed=trace.seed), declared)
    workload = workload_of(trace, engine.block_size, rules.cache_outputs, settings.arrivals)
    captured: dict[str, Any] | None = None
    if content.kind == "npz":
        capture = read_capture(str(content.path), content.sha256)
        check_lengths(capture, workload)
        model, content = model_of(capture, dict(trace.model)), replace(content, sha256=capture.sha256)
        captured = capture.about()
    else:
        model = with_overrides(ModelConfig(), dict(trace.model))
    asked = settings.kernels
    chosen = choose_backend(settings.backend if asked != "none" or settings.backend != "auto" else "numpy")
    plain = Header(engine, rules, model, content, workload, {})
    if problem := misfit(plain, chosen):
        if settings.backend == "cuda":
            raise OutOfDeviceMemory(problem)
        chosen = replace(choose_backend("numpy"), why=problem)
    kernels = asked or _kernels_by_size(engine, workload, chosen.name)
    why_none = _why_none(asked, engine, workload) if kernels == "none" else ""
    if kernels != "none" and engine.allocator != "paged":
        raise ConfigError(f"kernels {kernels!r} need the paged allocator, not {engine.allocator!r}")
    if settings.alloc == "cas":
        _check_cas(engine, rules)
    if settings.time_repeat > 1 and (chosen.name != "cuda" or kernels == "none"):
        raise ConfigError("time-repeat times kernels on a GPU: it needs --backend cuda and kernels")
    if engine.clock == "measured" and (chosen.name != "cuda" or kernels == "none"):
        raise ConfigError("clock 'measured' takes its time from kernels on a GPU: it needs --backend cuda and kernels")
    if "compaction" not in {**trace.engine, **_given(settings.engine)}:
        # vLLM's one queue of free blocks comes with vLLM's rules, and vLLM compacts nothing.
        unasked = kernels != "none" and rules.free_order != "queue"
        engine = replace(engine, compaction="intelligent" if unasked else "off")
    if engine.compaction != "off" and engine.allocator != "paged":
        raise ConfigError(f"compaction {engine.compaction!r} needs the paged allocator, not {engine.allocator!r}")
    quality = settings.quality or ("full" if _is_small(workload) else "sample")
    if quality not in QUALITIES:
        raise ConfigError(f"unknown quality {quality!r}; known: {', '.join(QUALITIES)}")
    selection = None if kernels == "none" else checked_selection(engine, model, workload).describe()
    origin = {
        "trace": {"name": trace.name, "format": trace.format, "num_requests": workload.num_requests},
        "profile": settings.profile,
        "arrivals": settings.arrivals,
        "backend": chosen.name,
        "device": chosen.device,
        "fallback": chosen.why,
        "kernels_run": kernels,
        "kernels_why": why_none,
        "attention": settings.attention or "all",
        "verify": settings.verify or ("every" if chosen.name == "numpy" or _is_small(workload) else "sample"),
        "alloc": settings.alloc,
        "time_repeat": settings.time_repeat,
        # On a GPU the session measures the device's copy when it opens.
        "copy_bandwidth": host_copy_bandwidth() if engine.compaction != "off" and chosen.name == "numpy" else None,
        "quality": quality,
        "captured": captured,
        "selection": selection,
        "parameters": {parameter.name: parameter.default for parameter in PARAMETERS},
        "tool": __version__,
    }
    ids = encode_prefix_ids(trace.hash_block or engine.block_size, (r.prefix_hash_ids for r in trace.requests))
    return Header(engine, rules, model, content, workload, origin, ids)


def prepare_as_told(trace: Trace, settings: Settings) -> Header:
    """`prepare` for a user's settings: one of something that does not take place here would be lost without a word.

    Raises:
        ConfigError: as `prepare`, or because there is such a setting.
    """
    header = prepare(trace, settings)
    engine, kernels = header.engine, header.origin["kernels_run"]
    told = {**settings.engine, **settings.content, **{name: getattr(settings, name) for name in _KERNEL_SETTINGS}}
    told["alloc"] = None if settings.alloc == "scan" else settings.alloc
    if kernels == "none":
        options = dict.fromkeys(option for name, option in _KERNEL_OPTIONS.items() if told.get(name) is not None)
        if options:
            why = header.origin["kernels_why"]
            raise ConfigError(f"{', '.join(options)} would do nothing, no kernel runs: {why}")
    elif kernels == "decisions" and settings.attention is not None:
        raise ConfigError("--attention would do nothing: kernels 'decisions' leaves attention out")
    for name, option, happens, otherwise in (
        ("hot_blocks", "--hot-blocks", engine.eviction == "seed", "only eviction seed has a hot region"),
        ("max_model_len", "--max-model-len", engine.allocator == "contiguous", "only contiguous reserves by it"),
        ("clock_layers", "--clock-layers", engine.clock == "measured", "only --clock measured counts layers"),
    ):
        if told.get(name) is not None and not happens:
            raise ConfigError(f"{option} would do nothing: {otherwise}")
    if engine.allocator != "paged" and told.get("prefix_caching"):
        raise ConfigError(f"prefix caching needs the paged allocator, not {engine.allocator!r}")
    return header


def _kernels_by_size(engine: EngineConfig, workload: Workload, backend: str) -> str:
    """All kernels on a GPU and where the NumPy reference takes seconds, none where it would take hours."""
    return "all" if engine.allocator == "paged" and (backend == "cuda" or _is_small(workload)) else "none"


def _why_none(asked: str | None, engine: EngineConfig, workload: Workload) -> str:
    """Why no kernel runs, in words."""
    if asked == "none":
        return "kernels none was asked for"
    if engine.allocator != "paged":
        return f"allocator {engine.allocator!r} has none"
    tokens = f"{num_tokens(workload):,} tokens are more than {ALL_KERNELS_UP_TO_TOKENS:,}"
    return f"{tokens}; --kernels decisions runs those that decide"


def _is_small(workload: Workload) -> bool:
    return num_tokens(workload) <= ALL_KERNELS_UP_TO_TOKENS


def _check_cas(engine: EngineConfig, rules: EngineRules) -> None:
    if engine.allocator != "paged" or engine.eviction == "seed" or rules.free_order == "queue":
        raise ConfigError(
            "alloc 'cas' hands out the paged allocator's free blocks; it cannot be had with eviction seed, "
            "free_order queue or a baseline allocator"
        )


def num_tokens(workload: Workload) -> int:
    """Tokens of all prompts and outputs."""
    return int((workload.prompt_len.astype(np.int64) + workload.output_len * workload.num_samples).sum())


def _given(overrides: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in overrides.items() if value is not None}


def run_replay(
    header: Header,
    record: Path | None = None,
    force: bool = False,
    check_every_step: bool = False,
    extra_sinks: tuple[Sink, ...] = (),
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    shared: SharedResults | None = None,
) -> dict[str, Any]:
    """Replay the workload of `header` from start to end; returns the summary, which the recording then holds too.

    `shared` is what replays of the same trace and content, in blocks of the same size, have in common.

    Raises:
        RecordingError: `record` exists or cannot be written.
    """
    started = time.perf_counter()
    metrics, watch = Metrics(header.workload, header.engine), Stopwatch()

    def emit(step: int, event: Event) -> None:
        before = time.perf_counter()
        take(step, event)
        taken = time.perf_counter()
        metrics.add(step, event)
        checker.add(step, event)
        for sink in extra_sinks:
            sink(step, event)
        watch.record_s += taken - before
        watch.check_s += time.perf_counter() - taken

    engine = Engine(header.workload, header.engine, header.rules, emit, header.origin["arrivals"] == "sequential")
    origin = header.origin
    session: Session | None = None
    with ExitStack() as stack:
        if origin["kernels_run"] != "none":
            session = open_session(header) if shared is None else _sharing(header, engine.state, shared)
            stack.callback(session.close)
            found: dict[str, Any] = {"num_workers": session.num_workers}
            if session.copy_gb_per_s is not None:
                copy = {"gb_per_s": session.copy_gb_per_s, "of": f"device-to-device copy on {session.device}"}
                found["copy_bandwidth"] = copy
            header = replace(header, origin={**origin, **found})
            chosen = PipelineConfig(origin["kernels_run"], origin["attention"], origin["verify"], origin["quality"])
            engine.kernels = KernelPipeline(
                engine.state, header.engine, header.model, header.content, session, chosen, watch
            )
        backend: Backend = engine.kernels or NumpyBackend()
        if origin["alloc"] == "cas":
            engine.manager = CasBlockManager.of(engine.manager, backend)
        elif isinstance(engine.manager, SeedBlockManager):
            engine.manager = replace(engine.manager, backend=backend)
        checker = _checker(header, engine.state, check_every_step)
        if record is None:
            recorder, digest = None, Digest()
            take: Sink = digest.add
        else:
            recorder = stack.enter_context(Recorder(record, header, engine.state, force))
            digest = recorder.digest
            take = recorder.add
        steps, stopped, next_look = 0, False, 0.0
        while _stepped(engine, record):
            steps += 1
            if progress is not None and time.perf_counter() >= next_look:
                next_look = time.perf_counter() + _PROGRESS_EVERY_S
                progress(metrics.completed + metrics.rejected + metrics.cancelled, header.workload.num_requests)
            if should_stop is not None and should_stop():
                stopped = True  # the recording stays as one that was interrupted, open to its last step
                break
        checker.check_now()
        outcome = Outcome(
            header=header,
            metrics=metrics,
            state=engine.state,
            num_checked=checker.num_checked + (engine.kernels.num_checked if engine.kernels else 0),
            violations=checker.violations + (engine.kernels.violations if engine.kernels else []),
            digest=None if no_digest(header) else digest.hexdigest(),
            wall_s=time.perf_counter() - started,
            num_events=digest.num_events,
            no_digest=no_digest(header),
        )
        summary = {**summarize(outcome), "verify": _verification(engine.kernels, session)}
        if recorder is not None and not stopped:
            recorder.finish(json.dumps(summary).encode())
    return summary


def _sharing(header: Header, state: CacheState, shared: SharedResults) -> Session:
    """A session on NumPy that takes from `shared` what an earlier replay worked out."""

    def batch(lengths: NDArray[np.int32]) -> bytes:
        """The sequences in the rows with a length."""
        placed = np.flatnonzero(state.slot >= 0)
        in_row = np.full(len(lengths), -1, dtype=np.int64)
        in_row[state.slot[placed]] = placed
        return in_row[lengths > 0].tobytes()

    return SharedSession(NumpyBackend(), header.origin["device"], shared, batch)


def _stepped(engine: Engine, record: Path | None) -> bool:
    """One step; a lost device is told with the step that it broke off in."""
    try:
        return engine.step()
    except DeviceLost as error:
        kept = f"; {record} holds the steps before" if record is not None else ""
        raise DeviceLost(f"{error}, in step {engine.state.step}{kept}") from error


def _verification(kernels: KernelPipeline | None, session: Session | None) -> dict[str, Any] | None:
    """The section `verify`: what was repeated on the host; None when no kernels ran."""
    if kernels is None:
        return None
    found = {"mode": kernels.verify, "steps": kernels.num_verified, "calls": 0, "mismatches": 0}
    if isinstance(session, VerifiedSession):
        found |= {"calls": session.num_repeated, "mismatches": session.num_mismatches}
    return found


def no_digest(header: Header) -> str:
    """Why a replay with this header has no digest; nothing when it has one."""
    origin = header.origin
    if header.engine.clock == "measured":
        return "the clock is measured, so no two replays agree"
    if origin.get("alloc") == "cas" and origin["backend"] == "cuda":
        return "who gets which block under --alloc cas is a race"
    return ""


def _checker(header: Header, state: CacheState, check_every_step: bool) -> StepChecker:
    return StepChecker(state, 1 if check_every_step else FULL_EVERY, header.rules.cache_at == "scheduled")


def summarize_recording(timeline: Timeline, check_every_step: bool = False) -> dict[str, Any]:
    """Apply every event of a recording again, check it, and summarize it like the replay that it records.

    `wall_s` is that of the recorded replay when it is known, else the time of reading.
    """
    if timeline.header.stream is not None:
        return summarize_stream_recording(timeline)
    started = time.perf_counter()
    header = timeline.header
    state: CacheState = header.empty_state()
    metrics, checker = Metrics(header.workload, header.engine), _checker(header, state, check_every_step)
    digest, recorded = applied_again(timeline, state, metrics, checker)
    outcome = Outcome(
        header=header,
        metrics=metrics,
        state=state,
        num_checked=checker.num_checked,
        violations=checker.violations,
        digest=None if no_digest(header) else digest.hexdigest(),
        wall_s=recorded.get("wall_s", time.perf_counter() - started),
        num_events=digest.num_events,
        no_digest=no_digest(header),
    )
    return {
        **summarize(outcome),
        "verify": recorded.get("verify"),
        "complete": timeline.complete,
        "digest_matches": digest.hexdigest() == timeline.digest,
    }
