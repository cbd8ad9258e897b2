"""`import`: convert a trace of any known format to our JSON."""

from __future__ import annotations

import argparse
import json

from tinyserve_viz.cli.arguments import add_trace_arguments, load_trace


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `import`."""
    add_trace_arguments(parser, "source")
    parser.add_argument("-o", "--output", required=True, metavar="OUT.json", help="file to write; - for stdout")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    parser.add_argument("--json", action="store_true", help="print what was written as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Read the source and write it as our JSON."""
    from tinyserve_viz.cli.main import UsageError
    from tinyserve_viz.trace.native import encode
    from tinyserve_viz.trace.write import write_bytes

    if args.json and args.output == "-":
        raise UsageError("tinyserve-viz import: --json and -o - both want stdout; see --help")
    trace = load_trace(args, "source")
    data = encode(trace)
    write_bytes(args.output, data, force=args.force)
    if args.json:
        facts = {"name": trace.name, "format": trace.format, "num_requests": len(trace.requests)}
        print(json.dumps({"schema": 1, "trace": facts, "output": args.output, "bytes": len(data)}))
    return 0
