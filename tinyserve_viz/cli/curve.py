"""`curve`: how often a prefix cache of a given size would hit on a trace, policy by policy."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from tinyserve_viz.cli.arguments import add_trace_arguments, different, load_trace, whole_number

if TYPE_CHECKING:
    from tinyserve_viz.analysis.curve import CurvePoint
    from tinyserve_viz.trace import Trace

POLICY_NAMES = ("lru", "fifo", "lfu", "clock", "belady")
DEFAULT_BLOCK_SIZE = 16
MAX_CAPACITY = 1 << 40


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `curve`."""
    parser.epilog = (
        "examples:\n"
        "  tinyserve-viz curve traces/prefix.json --capacity 20,50,100,200,inf\n"
        "  tinyserve-viz curve mooncake.jsonl --block-size 512 --policy lru,fifo,belady --capacity 1000,10000,inf\n"
        "  tinyserve-viz curve mooncake.jsonl --json | jq '.results[] | [.policy, .capacity_blocks]'\n"
    )
    add_trace_arguments(parser)
    parser.add_argument(
        "--block-size",
        type=whole_number(1, 1 << 20),
        metavar="N",
        help="tokens in a block (default: what the trace names, else 16)",
    )
    parser.add_argument(
        "--policy",
        type=_policies,
        default=POLICY_NAMES,
        metavar="P,…",
        help=f"eviction policies, of {', '.join(POLICY_NAMES)} (default: all)",
    )
    parser.add_argument(
        "--capacity",
        type=_capacities,
        default=(1000, 10_000, None),
        metavar="N,…",
        help="sizes of the pool in blocks; inf for one that never fills (default: 1000,10000,inf)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the curve of every policy at every capacity."""
    from tinyserve_viz.analysis.curve import References, hit_curve
    from tinyserve_viz.cli.progress import progress_bar
    from tinyserve_viz.trace import prefix_references

    trace = load_trace(args)
    block_size = args.block_size or trace.engine.get("block_size") or trace.hash_block or DEFAULT_BLOCK_SIZE
    hashes, tokens = prefix_references(trace, block_size)
    prompt_tokens = sum(request.prompt_len for request in trace.requests)
    references = References(hashes.flat, tokens, hashes.num_hashes, prompt_tokens)
    points = []
    with progress_bar(f"curve {trace.name}", args.quiet) as progress:
        for done, policy in enumerate(args.policy):
            if progress is not None:
                progress(done, len(args.policy))
            points += hit_curve(references, policy, args.capacity)
    if not len(references.blocks):
        why = "it has no prefix hash ids and no token ids" if not _tells_content(trace) else "no prompt fills a block"
        print(f"tinyserve-viz curve: {args.trace}: no block can be referenced: {why}", file=sys.stderr)
    facts = {
        "name": trace.name,
        "format": trace.format,
        "num_requests": len(trace.requests),
        "prompt_tokens": prompt_tokens,
        "references": len(references.blocks),
        "distinct_blocks": references.num_blocks,
    }
    print(_json(facts, block_size, points) if args.json else _table(facts, block_size, points, args.capacity))
    return 0


def _json(facts: dict[str, Any], block_size: int, points: list[CurvePoint]) -> str:
    results = [
        {
            "policy": point.policy,
            "capacity": point.capacity,
            "hits": point.hits,
            "hit_tokens": point.hit_tokens,
            "block_hit_rate": point.block_hit_rate,
            "token_hit_rate": point.token_hit_rate,
        }
        for point in points
    ]
    return json.dumps({"schema": 1, "trace": facts, "block_size": block_size, "results": results})


def _table(facts: dict[str, Any], block_size: int, points: list[CurvePoint], capacities: tuple[int | None, ...]) -> str:
    lines = [
        f"{facts['name']} ({facts['format']}): {facts['num_requests']} requests, {facts['references']} references "
        f"to {facts['distinct_blocks']} blocks of {block_size} tokens"
    ]
    heads = ["inf" if capacity is None else str(capacity) for capacity in capacities]
    for title, rate in (("block hit rate", "block_hit_rate"), ("token hit rate", "token_hit_rate")):
        lines += ["", f"{title:<16}" + "".join(f"{head:>10}" for head in heads)]
        for start in range(0, len(points), len(heads)):
            row = points[start : start + len(heads)]
            lines.append(f"{row[0].policy:<16}" + "".join(f"{getattr(point, rate):>10.6f}" for point in row))
    return "\n".join(lines)


def _tells_content(trace: Trace) -> bool:
    return any(r.prefix_hash_ids is not None or r.prompt_tokens is not None for r in trace.requests)


def _policies(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in POLICY_NAMES:
            raise argparse.ArgumentTypeError(f"unknown policy {name!r}; known: {', '.join(sorted(POLICY_NAMES))}")
    return different(names, text)


def _capacities(text: str) -> tuple[int | None, ...]:
    parse = whole_number(1, MAX_CAPACITY)
    sizes = tuple(None if size.strip() == "inf" else parse(size.strip()) for size in text.split(","))
    return different(sizes, text)
