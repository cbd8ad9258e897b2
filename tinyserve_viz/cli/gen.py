"""`gen`: make a seeded synthetic trace; the same arguments give the same bytes."""

from __future__ import annotations

import argparse
import json

from tinyserve_viz.cli.arguments import whole_number
from tinyserve_viz.core.config import MAX_LENGTH

KIND_NAMES = ("poisson", "bursty", "prefix", "samples", "forks", "long", "fragmentation")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `gen`."""
    parser.epilog = (
        "examples:\n"
        "  tinyserve-viz gen poisson --requests 1000 --rate 5 -o poisson.json\n"
        "  tinyserve-viz gen prefix --seed 1 --num-blocks 320 -o prefix.json\n"
        "  tinyserve-viz gen forks --seed 2 -o - | gzip > forks.json.gz\n"
        "The same arguments give the same bytes."
    )
    parser.add_argument("kind", metavar="KIND", choices=KIND_NAMES, help=f"one of {', '.join(KIND_NAMES)}")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="file to write; - for stdout")
    parser.add_argument("--seed", type=whole_number(0, (1 << 63) - 1), default=0, metavar="N", help="default 0")
    parser.add_argument("--requests", type=whole_number(1, 10_000_000), metavar="N", help="how many requests")
    parser.add_argument("--rate", type=_rate, metavar="R", help="requests per second on average")
    parser.add_argument("--prompt-len", type=whole_number(1, MAX_LENGTH), metavar="TOKENS", help="mean of new prompts")
    parser.add_argument("--output-len", type=whole_number(1, MAX_LENGTH), metavar="TOKENS", help="mean of outputs")
    parser.add_argument("--block-size", type=_block_size, metavar="N", help="tokens in a block, a power of two")
    parser.add_argument("--num-blocks", type=whole_number(1, 1 << 26), metavar="N", help="blocks of the pool")
    parser.add_argument("--max-num-seqs", type=whole_number(1, 1 << 20), metavar="N", help="sequences at a time")
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("--json", action="store_true", help="print what was written as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Generate the trace and write it."""
    from tinyserve_viz.cli.main import UsageError
    from tinyserve_viz.cli.outputs import TRACE, check_output
    from tinyserve_viz.cli.progress import busy
    from tinyserve_viz.core.config import with_overrides
    from tinyserve_viz.trace.generate import KINDS, generate
    from tinyserve_viz.trace.native import encode
    from tinyserve_viz.trace.write import write_bytes

    if args.json and args.output == "-":
        raise UsageError("tinyserve-viz gen: --json and -o - both want stdout; see --help")
    check_output(args.output, args.force, "a trace", TRACE)
    shape = KINDS[args.kind].shape
    chosen = {name: getattr(args, name) for name in shape.__dataclass_fields__}
    with busy(f"gen {args.kind}", args.quiet):
        trace = generate(args.kind, args.seed, with_overrides(shape, chosen))
        data = encode(trace)
    write_bytes(args.output, data, force=args.force)
    if args.json:
        facts = {"name": trace.name, "format": trace.format, "num_requests": len(trace.requests)}
        print(json.dumps({"schema": 1, "trace": facts, "output": args.output, "bytes": len(data)}))
    return 0


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 1e-6 <= rate <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} given, expected requests per second, 1e-6 to 1e6")
    return rate


def _block_size(text: str) -> int:
    size = whole_number(1, 1024)(text)
    if size & (size - 1):
        raise argparse.ArgumentTypeError(f"{text!r} given, expected a power of two, 1 to 1024")
    return size
