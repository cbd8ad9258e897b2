"""`compare`: where two servers, or two configurations, first decided differently."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

FINDING = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `compare`."""
    parser.epilog = (
        "example:\n"
        "  tinyserve-viz replay sharegpt.jsonl --profile vllm --arrivals burst --record run.rec --headless\n"
        "  tinyserve-viz compare run.rec --decisions vllm.decisions.jsonl\n"
        "exit code 1 when they differ"
    )
    parser.add_argument("recording", metavar="RECORDING", type=Path, help="a recording made by replay --record")
    parser.add_argument(
        "--decisions", metavar="FILE", type=Path, required=True, help="decision lines of another server or run"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Find the first step that differs and say what each side did; 1 when there is one."""
    from tinyserve_viz.analysis.decision_diff import first_difference, read_lines
    from tinyserve_viz.analysis.decisions import DecisionLines
    from tinyserve_viz.core.errors import TraceError
    from tinyserve_viz.recording.timeline import Timeline

    try:
        theirs = read_lines(args.decisions.read_bytes(), str(args.decisions))
    except OSError as error:
        raise TraceError(f"{args.decisions}: {error.strerror}") from None
    written: list[bytes] = []
    with Timeline(args.recording) as timeline:
        lines = DecisionLines(timeline.header.workload, timeline.header.engine.block_size, written.append)
        for step, event in timeline.events():
            lines.add(step, event)
    ours = read_lines(b"".join(written), str(args.recording)) if written else []
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
