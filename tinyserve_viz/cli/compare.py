"""`compare`: one trace under several configurations, two recordings, or a recording and another server's decisions."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tinyserve_viz.cli.arguments import add_content_argument, add_trace_arguments, whole_number

FINDING = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `compare`."""
    from tinyserve_viz.cli.tournament import AXES

    parser.epilog = (
        "examples:\n"
        "  tinyserve-viz compare mooncake.jsonl --eviction lru,fifo,lfu,clock,seed,belady --num-blocks 50000\n"
        "  tinyserve-viz compare traces/quickstart.json --selection paper,seed --ratio 0.1,0.2,0.3,0.5\n"
        "  tinyserve-viz compare azure.csv --allocator paged,contiguous,pow2,exact\n"
        "  tinyserve-viz compare before.rec after.rec --fail-on-diff\n"
        "  tinyserve-viz compare run.rec --decisions vllm.decisions.jsonl\n"
        "A list after an option makes one replay for each value; several lists make all their combinations. With\n"
        "--decisions the exit code is 1 when they differ, otherwise only with --fail-on-diff."
    )
    add_trace_arguments(parser)
    parser.add_argument("other", nargs="?", type=Path, metavar="RECORDING", help="a second recording")
    parser.add_argument(
        "--decisions", metavar="FILE", type=Path, help="decision lines of another server or run, for a recording"
    )
    for axis in AXES:
        parser.add_argument(axis.option, type=axis.parse, metavar=axis.metavar, help=axis.help)
    _add_replay_arguments(parser)
    parser.add_argument(
        "--jobs",
        type=whole_number(1),
        metavar="N",
        help="processes for the replays (default: one a core, where the first replay shows that it pays)",
    )
    parser.add_argument("--fail-on-diff", action="store_true", help="exit code 1 when any decision differs")
    parser.add_argument(
        "--plot", metavar="OUT", help="where selections are compared: draw mass kept against bytes into OUT.png, .svg, "
        ".pdf, .html or .txt"
    )
    parser.add_argument("--force", action="store_true", help="let --plot replace an existing file")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def _add_replay_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is the same in all replays of a comparison."""
    parser.add_argument("--profile", default="tinyserve", metavar="NAME", help="tinyserve (default) or vllm")
    parser.add_argument(
        "--arrivals", default="trace", metavar="WHEN", help="trace (default), burst, sequential or timed"
    )
    add_content_argument(parser)
    parser.add_argument("--seed", type=whole_number(0), metavar="N", help="seed of the content")
    parser.add_argument(
        "--kernels",
        choices=("all", "decisions", "none"),
        help="all, all but attention, or none (default: all where selections are compared, else none)",
    )
    parser.add_argument(
        "--backend",
        choices=("auto", "numpy", "cuda"),
        default="auto",
        help="auto (default): CUDA when it works, else the NumPy references",
    )


def run(args: argparse.Namespace) -> int:
    """Do what the arguments ask for: 1 when there is a difference that was asked to count."""
    from tinyserve_viz.cli import tournament
    from tinyserve_viz.cli.main import UsageError
    from tinyserve_viz.core.errors import TraceError
    from tinyserve_viz.recording.timeline import is_recording

    path = Path(args.trace)
    try:
        recording = path.is_file() and is_recording(path)
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from None
    options = [*tournament.given(args), *_replaying(args)]
    if args.other is not None or args.decisions is not None:
        if options:
            raise UsageError(f"tinyserve-viz compare: {', '.join(options)}: for one trace alone; see --help")
        if args.other is not None:
            _expect_recordings(path if not recording else None, args.other)
        if args.other is not None and args.decisions is not None:
            raise UsageError("tinyserve-viz compare: a second recording and --decisions exclude each other; see --help")
        return _against_lines(args) if args.other is None else _two_recordings(args)
    if recording:
        raise UsageError(
            f"tinyserve-viz compare: {path} is a recording: name a second one, or --decisions FILE; see --help"
        )
    return tournament.run(args)


def _replaying(args: argparse.Namespace) -> list[str]:
    """The options given that say how a trace is read and replayed, or how selections are drawn."""
    parser = argparse.ArgumentParser(add_help=False)
    add_trace_arguments(parser, optional=True)
    _add_replay_arguments(parser)
    usual = {name: value for name, value in vars(parser.parse_args([])).items() if name != "trace"}
    given = [f"--{name.replace('_', '-')}" for name, value in usual.items() if getattr(args, name) != value]
    return given + [f"--{name}" for name in ("plot", "jobs") if getattr(args, name) is not None]


def _expect_recordings(first: Path | None, second: Path) -> None:
    """Two files are compared as recordings, so each has to be one.

    Raises:
        TinyserveError: one is not; the message says how to compare what a trace does.
    """
    from tinyserve_viz.core.errors import RecordingError
    from tinyserve_viz.recording.timeline import is_recording

    path = first
    if path is None:
        try:
            path = None if is_recording(second) else second
        except OSError as error:
            raise RecordingError(f"{second}: {error.strerror}") from None
    if path is not None and path.is_file():
        raise RecordingError(
            f"{path}: is no recording, and two files are compared as recordings: make one with `tinyserve-viz replay "
            f"{path} --record FILE.rec`, or compare one trace under several values of an option (--eviction lru,fifo)"
        )


def _two_recordings(args: argparse.Namespace) -> int:
    """Metrics side by side and the first decision that differs."""
    from tinyserve_viz.analysis.first_decision import compare_recordings
    from tinyserve_viz.analysis.side_by_side import as_dict, differences
    from tinyserve_viz.cli.progress import busy
    from tinyserve_viz.cli.session import summarize_recording
    from tinyserve_viz.recording.timeline import Timeline
    from tinyserve_viz.report.side_by_side import as_table, difference_lines

    paths = [Path(args.trace), args.other]
    with busy(f"compare {paths[0]} {paths[1]}", args.quiet), Timeline(paths[0]) as ours, Timeline(paths[1]) as theirs:
        for timeline in (ours, theirs):
            timeline.expect_replay()
        summaries = [summarize_recording(timeline) for timeline in (ours, theirs)]
        found = compare_recordings(ours, theirs)
    labels = [str(path) for path in paths]
    if args.json:
        recordings = [
            {"recording": label, "digest": summary["digest"], "metrics": as_dict(summary)}
            for label, summary in zip(labels, summaries, strict=True)
        ]
        difference = None if found is None else found.as_dict()
        told = {"recordings": recordings, "differences": differences(*summaries), "first_difference": difference}
        print(json.dumps({"schema": 1, **told}))
    else:
        print("\n".join([*as_table(labels, summaries, difference=True), "", *difference_lines(found, *labels)]))
    return FINDING if args.fail_on_diff and found is not None else 0


def _against_lines(args: argparse.Namespace) -> int:
    """Find the first step that differs from another server's lines and say what each side did; 1 when there is one."""
    from tinyserve_viz.analysis.decision_diff import first_difference, read_lines
    from tinyserve_viz.analysis.decisions import DecisionLines
    from tinyserve_viz.core.errors import TraceError
    from tinyserve_viz.recording.timeline import Timeline

    try:
        theirs = read_lines(args.decisions.read_bytes(), str(args.decisions))
    except OSError as error:
        raise TraceError(f"{args.decisions}: {error.strerror}") from None
    written: list[bytes] = []
    with Timeline(Path(args.trace)) as timeline:
        timeline.expect_replay()
        lines = DecisionLines(timeline.header.workload, timeline.header.engine.block_size, written.append)
        for step, event in timeline.events():
            lines.add(step, event)
    ours = read_lines(b"".join(written), args.trace) if written else []
    found = first_difference(ours, theirs, args.decisions.name)
    if args.json:
        difference = None if found is None else {"step": found.step, "sentences": list(found.sentences)}
        print(json.dumps({"schema": 1, "steps": [len(ours), len(theirs)], "first_difference": difference}))
    elif found is None:
        print(f"{len(ours):,} steps, every decision the same")
    else:
        print(f"the first {found.step:,} steps are the same; step {found.step}:")
        for sentence in found.sentences:
            print(f"  {sentence}")
    return 0 if found is None else FINDING
