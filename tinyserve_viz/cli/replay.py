"""`replay`: run a trace through the engine, or open a recording; on a terminal as a TUI, else as a summary."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyserve_viz.cli.arguments import (
    add_content_argument,
    add_trace_arguments,
    columns_by_lines,
    content_of,
    load_trace,
    whole_number,
)
from tinyserve_viz.core.config import ALLOCATORS, REDUCTIONS, SELECTION_HEADS, SELECTIONS
from tinyserve_viz.core.rules import PROFILES, RULES_IN_WORDS

if TYPE_CHECKING:
    from tinyserve_viz.cli.session import Settings

FINDING = 1
# In the order of their keys 1 … 9, 0; written out so that --help needs no TUI, and compared with it by a test.
PANEL_NAMES = (
    "blocks", "why", "sequences", "table", "memory", "kernels", "history", "selection", "balance", "upkeep",
)  # fmt: skip

_ENGINE_OPTIONS = (
    ("block-size", "tokens in a block"),
    ("num-blocks", "blocks in the pool"),
    ("max-batch-tokens", "tokens that one step may compute"),
    ("max-num-seqs", "sequences that may run at once"),
    ("max-model-len", "tokens that the contiguous baseline reserves for a sequence"),
    ("hot-blocks", "first size of the hot region of eviction seed"),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `replay`."""
    parser.epilog = (
        "examples:\n"
        "  tinyserve-viz replay traces/quickstart.json\n"
        "  tinyserve-viz replay mooncake.jsonl --num-blocks 65536 --record run.rec\n"
        "  tinyserve-viz replay run.rec --headless --json\n"
        "  tinyserve-viz replay sharegpt.jsonl --profile vllm --arrivals burst --decisions out.jsonl"
    )
    add_trace_arguments(parser, optional=True)
    parser.add_argument("--headless", action="store_true", help="print the summary instead of opening the TUI")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object (headless)")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write every event to FILE")
    parser.add_argument(
        "--force", action="store_true", help="let --record, --decisions and --screenshot replace existing files"
    )
    parser.add_argument("--ascii", action="store_true", help="draw the TUI with ASCII signs only")
    parser.add_argument(
        "--screenshot", type=Path, metavar="FILE.svg", help="write a picture of the TUI, no terminal needed"
    )
    parser.add_argument(
        "--at", type=whole_number(0), metavar="STEP", help="step that the screenshot shows (default: the end)"
    )
    parser.add_argument(
        "--size", type=columns_by_lines, metavar="WxH", help="size of the screenshot (default 120x40)"
    )
    parser.add_argument(
        "--panel", choices=PANEL_NAMES, help="panel that the TUI or the screenshot begins with (default blocks)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--explain", action="store_true", help="list the profile's rules and stop")
    parser.add_argument("--decisions", type=Path, metavar="FILE", help="write one JSON line of decisions a step")
    add_settings_arguments(parser)


def add_settings_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `settings_of` reads: how the replayed server is set up, which kernels run, how it is checked."""
    for name, what in _ENGINE_OPTIONS:
        parser.add_argument(f"--{name}", type=whole_number(1), metavar="N", help=what)
    parser.add_argument("--allocator", choices=ALLOCATORS, help="paged, or a baseline that reserves one range")
    parser.add_argument("--eviction", metavar="POLICY", help="lru, fifo, lfu, clock or seed (LRU with a hot region)")
    parser.add_argument(
        "--prefix-caching", choices=("on", "off"), help="whether full prompt blocks stay to be found by later requests"
    )
    parser.add_argument("--profile", default="tinyserve", metavar="NAME", help="tinyserve (default) or vllm")
    parser.add_argument(
        "--rule",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change one rule of the profile (see replay --explain)",
    )
    parser.add_argument(
        "--arrivals", default="trace", metavar="WHEN", help="trace (default), burst, sequential or timed"
    )
    parser.add_argument("--seed", type=whole_number(0), metavar="N", help="seed of the content")
    parser.add_argument(
        "--kernels",
        choices=("all", "decisions", "none"),
        help="all, all but attention, or none "
        "(default: all on a GPU and for traces of up to 200,000 tokens, else none)",
    )
    parser.add_argument(
        "--backend",
        choices=("auto", "numpy", "cuda"),
        default="auto",
        help="auto (default): CUDA when it works, else the NumPy references",
    )
    parser.add_argument(
        "--verify",
        choices=("every", "sample", "off"),
        help="repeat the kernels on the host and compare: every step, every 32nd, or never "
        "(default: sample on a GPU for traces of more than 200,000 tokens, else every)",
    )
    parser.add_argument(
        "--alloc",
        choices=("scan", "cas"),
        default="scan",
        help="who gets which free block: the next in the free order, or who wins the published compare-and-swap",
    )
    parser.add_argument(
        "--time-repeat",
        type=whole_number(1),
        default=1,
        metavar="K",
        help="time every kernel K times, on copies of the arrays that it changes, and take the median (CUDA)",
    )
    parser.add_argument(
        "--clock",
        choices=("model", "measured"),
        help="simulated time of a step: the model's (default), or its kernels' own (CUDA; no digest)",
    )
    parser.add_argument(
        "--clock-layers",
        type=whole_number(1),
        metavar="N",
        help="layers of the model that the measured clock stands for (default 1)",
    )
    parser.add_argument(
        "--attention",
        choices=("exact", "flash", "query-aware", "query-aware-fused", "all"),
        help="form of attention (default all, side by side)",
    )
    parser.add_argument(
        "--compaction",
        metavar="HOW",
        help="intelligent (heavy blocks stay where they are), plain (all may move) or off "
        "(default: intelligent where kernels run)",
    )
    add_content_argument(parser)
    parser.add_argument(
        "--selection", metavar="POLICY", help=f"which blocks a query reads: {', '.join(SELECTIONS)} (docs/selection.md)"
    )
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--ratio", type=ratio, metavar="R", help="share of a sequence's blocks that is kept, 0.001 to 1"
    )
    budget.add_argument(
        "--budget-blocks", type=whole_number(1), metavar="N", help="keep N blocks of every sequence in place of a share"
    )
    for name, which in (("sinks", "first"), ("recent", "last")):
        parser.add_argument(
            f"--{name}",
            type=whole_number(0),
            metavar="N",
            help=f"{which} blocks always kept, inside the budget (default: the policy's)",
        )
    parser.add_argument(
        "--selection-heads", choices=SELECTION_HEADS, help="choose for each KV head (default), or once for all"
    )
    parser.add_argument(
        "--reduction", choices=REDUCTIONS[1:], help="score of a KV head from its query heads (default: the policy's)"
    )
    parser.add_argument(
        "--quality",
        choices=("full", "sample", "off"),
        help="compare choices with true attention: all, those of two steps in every 32, or none (default: full for "
        "traces of up to 200,000 tokens, else sample)",
    )
    parser.add_argument(
        "--check",
        choices=("every", "auto"),
        default="auto",
        help="check all invariants every step, or as described in docs",
    )


def run(args: argparse.Namespace) -> int:
    """Replay a trace or summarize a recording; 1 when an invariant was violated."""
    from tinyserve_viz.cli import session
    from tinyserve_viz.cli.main import UsageError
    from tinyserve_viz.cli.progress import busy
    from tinyserve_viz.core.errors import RecordingError, TraceError
    from tinyserve_viz.recording.timeline import Timeline, is_recording
    from tinyserve_viz.report.stream_summary import stream_as_text
    from tinyserve_viz.report.summary import as_text

    settings = settings_of(args)
    if args.explain:
        return _explain(args, settings)
    if args.trace is None:
        raise UsageError("tinyserve-viz replay: no TRACE, expected one; see --help")
    _check_screenshot(args)
    _check_outputs(args)
    path = Path(args.trace)
    try:
        recording = path.is_file() and is_recording(path)
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from None
    if recording:
        refuse_settings(args)
    if args.screenshot is not None:
        return _picture(args, settings, path if recording else None)
    terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stderr is not None and sys.stderr.isatty()
    live = terminal and not args.headless and not args.json and not args.decisions
    if live:
        return _watch(args, settings, path if recording else None)
    if recording:
        if args.record or args.decisions:
            raise RecordingError(f"{path}: is a recording already; --record and --decisions take a trace")
        with busy(f"read {path}", args.quiet), Timeline(path) as timeline:
            summary = session.summarize_recording(timeline, settings.check_every_step)
    else:
        summary = _replay(args, settings)
    in_words = stream_as_text if summary.get("kind") == "kv-events" else as_text
    print(json.dumps(summary) if args.json else in_words(summary))
    mismatch = summary.get("complete") and not summary["digest_matches"]
    if mismatch:
        print(f"tinyserve-viz: {path}: the digest of the events is not the recorded one", file=sys.stderr)
    return FINDING if summary["invariants"]["violations"] or mismatch else 0


def refuse_settings(args: argparse.Namespace, command: str = "replay") -> None:
    """A recording is a replay made already: nothing sets up its server or cuts its trace.

    Raises:
        UsageError: an option would do so.
    """
    from tinyserve_viz.cli.main import UsageError

    parser = argparse.ArgumentParser(add_help=False)
    add_trace_arguments(parser, optional=True)
    add_settings_arguments(parser)
    usual = {name: value for name, value in vars(parser.parse_args([])).items() if name not in ("trace", "check")}
    given = [f"--{name.replace('_', '-')}" for name, value in usual.items() if getattr(args, name) != value]
    if given:
        useless = f"{args.trace} is a recording, {', '.join(given)} can change nothing in it"
        raise UsageError(f"tinyserve-viz {command}: {useless}; see --help")


def _check_screenshot(args: argparse.Namespace) -> None:
    from tinyserve_viz.cli.main import UsageError

    if args.screenshot is None:
        given = [f"--{name}" for name in ("at", "size") if getattr(args, name) is not None]
        if given:
            raise UsageError(f"tinyserve-viz replay: {' and '.join(given)} without --screenshot FILE.svg; see --help")
        return
    if args.screenshot.suffix.lower() != ".svg":
        raise UsageError(f"tinyserve-viz replay: --screenshot {args.screenshot}, expected a name in .svg; see --help")
    given = [f"--{name}" for name in ("json", "record", "decisions") if getattr(args, name)]
    if given:
        raise UsageError(
            f"tinyserve-viz replay: --screenshot writes the picture alone, without {', '.join(given)}; see --help"
        )


def _check_outputs(args: argparse.Namespace) -> None:
    """What is to be written can be, and what is given has something to do.

    Raises:
        TinyserveError: something of it is not so.
    """
    from tinyserve_viz.cli.main import UsageError
    from tinyserve_viz.cli.outputs import LINES, RECORDING, check_output

    check_output(args.record, args.force, "a recording", RECORDING)
    check_output(args.decisions, args.force, "a file of decisions", LINES)
    check_output(args.screenshot, args.force)
    if args.force and not (args.record or args.decisions or args.screenshot):
        raise UsageError("tinyserve-viz replay: --force replaces what --record writes, which is not given; see --help")
    unseen = [f"--{name}" for name in ("panel", "ascii") if getattr(args, name)]
    if unseen and args.screenshot is None and (args.headless or args.json or args.decisions):
        raise UsageError(f"tinyserve-viz replay: {', '.join(unseen)} without the TUI; see --help")


def ratio(text: str) -> int:
    """A share as per mille."""
    try:
        permille = round(float(text) * 1000)
    except (ValueError, OverflowError):
        permille = 0
    if not 1 <= permille <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} given, expected a share from 0.001 to 1")
    return permille


def settings_of(args: argparse.Namespace, command: str = "replay") -> Settings:
    """The settings that the command line gives."""
    from tinyserve_viz.cli.session import Settings

    names = [name.replace("-", "_") for name, _ in _ENGINE_OPTIONS]
    engine: dict[str, Any] = {name: getattr(args, name) for name in [*names, "allocator", "eviction", "compaction"]}
    engine |= {"selection": args.selection, "ratio_permille": args.ratio, "budget_blocks": args.budget_blocks}
    engine |= {name: getattr(args, name) for name in ("selection_heads", "reduction", "sinks", "recent")}
    engine |= {"clock": args.clock, "clock_layers": args.clock_layers}
    engine["prefix_caching"] = None if args.prefix_caching is None else args.prefix_caching == "on"
    return Settings(
        engine=engine,
        content=content_of(args),
        profile=args.profile,
        rules=dict(_rule(text, command) for text in args.rule),
        arrivals=args.arrivals,
        check_every_step=args.check == "every",
        kernels=args.kernels,
        attention=args.attention,
        quality=args.quality,
        backend=args.backend,
        verify=args.verify,
        alloc=args.alloc,
        time_repeat=args.time_repeat,
    )


def _rule(text: str, command: str) -> tuple[str, Any]:
    from tinyserve_viz.cli.main import UsageError

    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"tinyserve-viz {command}: --rule {text!r}, expected NAME=VALUE; see --help")
    default = getattr(PROFILES["tinyserve"], name, None)
    if isinstance(default, bool):
        if value not in ("true", "false"):
            raise UsageError(f"tinyserve-viz {command}: --rule {name}={value}, expected true or false; see --help")
        return name, value == "true"
    return name, value


def _watch(args: argparse.Namespace, settings: Settings, recording: Path | None) -> int:
    """The TUI on a recording, or on a replay that runs beside it."""
    from tinyserve_viz.cli.live import watch_recording, watch_replay
    from tinyserve_viz.cli.session import prepare_as_told

    panel = args.panel or PANEL_NAMES[0]
    if recording is not None:
        watch_recording(recording, args.ascii, panel)
    else:
        watch_replay(prepare_as_told(load_trace(args), settings), args.record, args.force, args.ascii, panel)
    return 0


def _picture(args: argparse.Namespace, settings: Settings, recording: Path | None) -> int:
    """Replay if need be, then draw one screen into a file."""
    import tempfile

    from tinyserve_viz.cli.live import picture
    from tinyserve_viz.cli.progress import progress_bar
    from tinyserve_viz.cli.session import prepare_as_told, run_replay
    from tinyserve_viz.core.errors import ConfigError
    from tinyserve_viz.recording.timeline import Timeline
    from tinyserve_viz.trace.write import write_bytes

    with tempfile.TemporaryDirectory() as scratch:
        path = recording or Path(scratch, "replay.rec")
        if recording is None:
            trace = load_trace(args)
            with progress_bar(f"replay {trace.name}", args.quiet) as progress:
                run_replay(prepare_as_told(trace, settings), path, progress=progress)
        with Timeline(path) as timeline:
            num_steps = timeline.step_of(timeline.num_events)
        if args.at is not None and args.at >= num_steps:
            raise ConfigError(f"{args.trace}: has steps 0 to {num_steps - 1}, --at is {args.at}")
        shown = picture(path, args.size or (120, 40), args.at, args.panel or PANEL_NAMES[0], args.ascii)
    write_bytes(str(args.screenshot), shown.encode(), force=args.force)
    return 0


def _explain(args: argparse.Namespace, settings: Settings) -> int:
    from tinyserve_viz.cli.main import UsageError
    from tinyserve_viz.core.config import as_dict
    from tinyserve_viz.core.rules import profile

    useless = ("record", "decisions", "screenshot", "force", "panel", "ascii", "headless")
    if given := ", ".join(f"--{name}" for name in useless if getattr(args, name)):
        raise UsageError(f"tinyserve-viz replay: --explain lists rules and stops, without {given}; see --help")
    values = as_dict(profile(settings.profile, **settings.rules))
    if args.json:
        rules = [{"rule": name, "value": values[name], "meaning": text} for name, text in RULES_IN_WORDS.items()]
        print(json.dumps({"schema": 1, "profile": settings.profile, "rules": rules}))
        return 0
    width = max(map(len, RULES_IN_WORDS))
    for name, text in RULES_IN_WORDS.items():
        value = str(values[name]).lower() if isinstance(values[name], bool) else values[name]
        print(f"{name:<{width}}  {value!s:<15} {text}")
    return 0


def _replay(args: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    from contextlib import ExitStack

    from tinyserve_viz.analysis.decisions import DecisionLines
    from tinyserve_viz.cli.progress import progress_bar
    from tinyserve_viz.cli.session import prepare_as_told, run_replay

    trace = load_trace(args)
    header = prepare_as_told(trace, settings)
    with ExitStack() as stack:
        sinks: tuple[Any, ...] = ()
        if args.decisions is not None:
            file = stack.enter_context(args.decisions.open("wb"))
            sinks = (DecisionLines(header.workload, header.engine.block_size, file.write).add,)
        progress = None if args.quiet else stack.enter_context(progress_bar(f"replay {trace.name}"))
        summary = run_replay(header, args.record, args.force, settings.check_every_step, sinks, progress)
    if settings.backend == "auto" and header.origin["kernels_run"] != "none":
        why = f": {header.origin['fallback']}" if header.origin["fallback"] else f" on {header.origin['device']}"
        print(f"tinyserve-viz: backend {header.origin['backend']}{why}", file=sys.stderr)
    return summary
