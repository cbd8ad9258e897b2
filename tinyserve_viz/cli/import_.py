"""`import`: convert a trace of any known format to our JSON, or a KV-event stream to a recording."""

from __future__ import annotations

import argparse
import json

from tinyserve_viz.cli.arguments import add_trace_arguments, load_trace, whole_number
from tinyserve_viz.core.config import MAX_LENGTH

FINDING = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `import`."""
    parser.epilog = (
        "examples:\n"
        "  tinyserve-viz import mooncake.jsonl -o trace.json\n"
        "  tinyserve-viz import vllm.frames -o vllm.rec     (KV events; then: tinyserve-viz replay vllm.rec)"
    )
    add_trace_arguments(parser, "source")
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="file to write; - for stdout (of a stream: a recording)"
    )
    parser.add_argument(
        "--num-blocks", type=whole_number(1), metavar="N", help="KV events: size of the server's pool, if you know it"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    parser.add_argument("--json", action="store_true", help="print what was written as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Read the source and write it as our JSON, or as a recording where it is a KV-event stream."""
    from tinyserve_viz.cli.main import UsageError
    from tinyserve_viz.cli.outputs import TRACE, check_output
    from tinyserve_viz.trace import kv_events
    from tinyserve_viz.trace.native import encode
    from tinyserve_viz.trace.write import write_bytes

    if args.json and args.output == "-":
        raise UsageError("tinyserve-viz import: --json and -o - both want stdout; see --help")
    if args.format == kv_events.NAME or (args.format is None and kv_events.is_stream(args.source)):
        return _stream(args)
    if args.num_blocks is not None:
        raise UsageError("tinyserve-viz import: --num-blocks is for KV events, a trace names no pool; see --help")
    check_output(args.output, args.force, "a trace", TRACE)
    trace = load_trace(args, "source")
    data = encode(trace)
    write_bytes(args.output, data, force=args.force)
    if args.json:
        facts = {"name": trace.name, "format": trace.format, "num_requests": len(trace.requests)}
        print(json.dumps({"schema": 1, "trace": facts, "output": args.output, "bytes": len(data)}))
    return 0


def _stream(args: argparse.Namespace) -> int:
    """Record a KV-event stream and print its summary."""
    from contextlib import ExitStack
    from pathlib import Path

    from tinyserve_viz.cli.import_stream import import_stream
    from tinyserve_viz.cli.main import UsageError
    from tinyserve_viz.cli.outputs import RECORDING, check_output
    from tinyserve_viz.cli.progress import progress_bar
    from tinyserve_viz.report.stream_summary import stream_as_text

    if args.output == "-":
        raise UsageError("tinyserve-viz import: KV events become a recording, -o needs a file name; see --help")
    if args.limit is not None or args.max_len != MAX_LENGTH:
        option = "--max-len measures" if args.limit is None else "--limit counts"
        raise UsageError(f"tinyserve-viz import: {option} requests, KV events name none; see --help")
    check_output(args.output, args.force, "a recording", RECORDING)
    with ExitStack() as stack:
        progress = None if args.quiet else stack.enter_context(progress_bar(f"import {Path(args.source).name}"))
        summary = import_stream(args.source, Path(args.output), args.force, args.num_blocks, progress)
    print(json.dumps({**summary, "output": args.output}) if args.json else stream_as_text(summary))
    return FINDING if summary["invariants"]["violations"] else 0
