"""`check`: holds a trace's replay, or a recording, to assertions and to a kept digest; for CI pipelines."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyserve_viz.cli.arguments import add_trace_arguments, load_trace
from tinyserve_viz.cli.replay import add_settings_arguments, refuse_settings, settings_of

if TYPE_CHECKING:
    from tinyserve_viz.analysis.digest_file import Entry
    from tinyserve_viz.recording.timeline import Timeline
    from tinyserve_viz.report.junit import Case

FINDING = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `check`."""
    parser.epilog = (
        "examples:\n"
        "  tinyserve-viz check traces/quickstart.json --assert 'requests.rejected == 0'\n"
        "  tinyserve-viz check azure.csv --num-blocks 4096 --assert 'prefix.token_hit_rate >= 0.3' \\\n"
        "      --assert 'requests.preemptions <= 10 and blocks.leaked == 0' --junit check.xml\n"
        "  tinyserve-viz check traces/prefix.json --digest digests.json --update    # keep what it decides\n"
        "  tinyserve-viz check traces/prefix.json --digest digests.json             # 1 when it decides otherwise\n"
        "Names are those of `replay --headless --json`, joined by dots; docs/check.md has the grammar.\n"
        "Exit codes: 0 all holds, 1 a finding, 2 usage or bad input. Violated invariants are always a finding."
    )
    add_trace_arguments(parser)
    parser.add_argument(
        "--assert", dest="assertions", action="append", default=[], metavar="EXPR", help="what must hold; repeatable"
    )
    parser.add_argument("--digest", type=Path, metavar="FILE", help="file of kept digests to hold the decisions to")
    parser.add_argument("--update", action="store_true", help="write this replay's digest to FILE instead")
    parser.add_argument("--name", metavar="NAME", help="name of the entry in FILE (default: the trace's name)")
    parser.add_argument("--junit", metavar="FILE", help="write the verdicts as JUnit XML too (replaces FILE)")
    parser.add_argument("--json", action="store_true", help="print the verdicts as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="print findings only, no progress bar")
    add_settings_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Judge everything, print every verdict; 1 when one is a finding."""
    from tinyserve_viz.analysis.assertions import expect_assertion
    from tinyserve_viz.analysis.digest_file import read
    from tinyserve_viz.cli.main import UsageError
    from tinyserve_viz.cli.outputs import check_output
    from tinyserve_viz.core.errors import TraceError
    from tinyserve_viz.recording.timeline import Timeline, is_recording
    from tinyserve_viz.report.junit import as_junit
    from tinyserve_viz.trace.write import write_bytes

    if args.update and args.digest is None:
        raise UsageError("tinyserve-viz check: --update writes to --digest FILE, which is missing; see --help")
    if args.name is not None and not (args.digest or args.junit or args.json):
        raise UsageError("tinyserve-viz check: --name names an entry of --digest FILE, which is missing; see --help")
    for text in args.assertions:
        expect_assertion(text)
    check_output(args.digest if args.update else None, True, "a digest file", (".json",))
    check_output(args.junit, True, "JUnit XML", (".xml",))
    if args.digest is not None and (args.digest.exists() or not args.update):
        read(args.digest)
    path = Path(args.trace)
    try:
        recording = path.is_file() and is_recording(path)
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from None
    if recording:
        refuse_settings(args, "check")
    with tempfile.TemporaryDirectory() as scratch:
        if not recording:
            path = _replayed(args, Path(scratch, "check.rec"))
        with Timeline(path) as timeline:
            summary = _summary(timeline, args)
            cases, values = _judged(args, summary, timeline)
    name = args.name or summary["trace"]["name"]
    if args.junit:
        write_bytes(args.junit, as_junit(name, cases, summary["wall_s"]).encode(), force=True)
    passed = all(case.passed for case in cases)
    if args.json:
        checks = [
            {
                "check": case.name,
                "passed": case.passed,
                "message": "" if case.passed else case.message,
                "values": values.get(case.name, {}),
            }
            for case in cases
        ]
        found = {"schema": 1, "name": name, "passed": passed, "digest": summary["digest"], "checks": checks}
        print(json.dumps(found))
    else:
        _print(cases, args.quiet)
    return 0 if passed else FINDING


def _replayed(args: argparse.Namespace, record: Path) -> Path:
    from tinyserve_viz.cli.progress import progress_bar
    from tinyserve_viz.cli.session import prepare_as_told, run_replay

    trace, settings = load_trace(args), settings_of(args, "check")
    header = prepare_as_told(trace, settings)
    if args.digest is not None and not args.update:
        _kept(args, trace.name)
    with progress_bar(f"check {trace.name}", args.quiet) as progress:
        run_replay(header, record, False, settings.check_every_step, progress=progress)
    return record


def _summary(timeline: Timeline, args: argparse.Namespace) -> dict[str, Any]:
    """The recorded summary of the replay just made; a recording that was given is applied and checked again."""
    from tinyserve_viz.cli.progress import busy
    from tinyserve_viz.cli.session import summarize_recording
    from tinyserve_viz.recording.timeline import is_recording

    if timeline.summary is not None and not is_recording(Path(args.trace)):
        found: dict[str, Any] = json.loads(timeline.summary)
        return found
    with busy(f"check {args.trace}", args.quiet):
        return summarize_recording(timeline, args.check == "every")


def _judged(
    args: argparse.Namespace, summary: dict[str, Any], timeline: Timeline
) -> tuple[list[Case], dict[str, dict[str, Any]]]:
    from tinyserve_viz.analysis.assertions import judge
    from tinyserve_viz.analysis.tables import flattened
    from tinyserve_viz.report.junit import Case

    violated = summary["invariants"]["first_violations"]
    told = "; ".join(f"{v['invariant']} at step {v['step']}: {v['message']}" for v in violated)
    cases = [Case("invariants hold", not summary["invariants"]["violations"], told)]
    if "complete" in summary:
        cases.append(Case("recording is complete", summary["complete"], "it was interrupted"))
        if summary["complete"]:
            same = summary["digest_matches"]
            cases.append(Case("events have the recorded digest", same, "the file was changed after the replay"))
    names = {name: value for name, value in flattened(summary) if not isinstance(value, list)}
    values = {}
    for text in args.assertions:
        verdict = judge(text, names)
        values[text] = verdict.values
        lines = [verdict.why] if verdict.why else []
        lines += [f"{name} is {_shown(value)}" for name, value in verdict.values.items()]
        cases.append(Case(text, verdict.passed, "" if verdict.passed else "\n".join(lines) or "it is false"))
    if args.digest is not None:
        cases.append(_digest(args, summary, timeline))
    return cases, values


def _digest(args: argparse.Namespace, summary: dict[str, Any], timeline: Timeline) -> Case:
    from tinyserve_viz.analysis import digest_file
    from tinyserve_viz.report.junit import Case
    from tinyserve_viz.trace.write import write_bytes

    name = args.name or summary["trace"]["name"]
    if summary["digest"] is None:
        raise digest_file.DigestFileError(f"{name}: has no digest to keep or to compare: {summary['digest_note']}")
    decisions = digest_file.decisions_of(timeline)
    now = digest_file.entry_of(timeline, summary["digest"], summary["steps"], decisions)
    if args.update:
        kept = digest_file.read(args.digest) if args.digest.exists() else digest_file.DigestFile()
        before = kept.replays.get(name)
        kept.replays[name] = now
        write_bytes(str(args.digest), digest_file.encode(kept), force=True)
        was = "" if before is None or before.digest == now.digest else f", was {before.digest}"
        if not args.quiet:
            print(f"tinyserve-viz check: {args.digest}: {name} is {now.digest}{was}", file=sys.stderr)
        return Case(f"digest kept in {args.digest}", True)
    told = digest_file.difference(_kept(args, name), now, timeline, decisions)
    return Case(f"digest is that in {args.digest}", not told, "\n".join(told))


def _kept(args: argparse.Namespace, name: str) -> Entry:
    """The entry of --digest FILE to hold this replay to; `name` where the user names none."""
    from tinyserve_viz.analysis import digest_file

    kept = digest_file.read(args.digest)
    if (args.name or name) not in kept.replays:
        known = ", ".join(kept.replays) or "nothing"
        raise digest_file.DigestFileError(f"{args.digest}: has {known}, no {args.name or name!r}; --update adds it")
    return kept.replays[args.name or name]


def _print(cases: list[Case], quiet: bool) -> None:
    for case in cases:
        if case.passed and not quiet:
            print(f"ok    {case.name}")
        elif not case.passed:
            print(f"FAIL  {case.name}")
            for line in case.message.splitlines():
                print(f"      {line}")


def _shown(value: Any) -> str:
    return "null" if value is None else json.dumps(value, ensure_ascii=False)
