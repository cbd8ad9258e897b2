"""`claims`: what was published about TinyServe beside what is counted and measured here, each with its definition."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyserve_viz.cli.arguments import whole_number
from tinyserve_viz.core.config import MAX_LENGTH

if TYPE_CHECKING:
    from tinyserve_viz.analysis.claim import Answer
    from tinyserve_viz.cli.claims.timed import Timed


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `claims`."""
    parser.epilog = (
        "examples:\n"
        "  tinyserve-viz claims\n"
        "  tinyserve-viz claims azure.csv sharegpt.jsonl --only utilisation,throughput\n"
        "  tinyserve-viz kernels bench --json > h100.json    (on a GPU)\n"
        "  tinyserve-viz claims azure.csv --bench h100.json --json\n"
        "How each number is made: docs/claims.md"
    )
    parser.add_argument(
        "traces", nargs="*", metavar="TRACE", help="traces to count on (default: the shipped quickstart and prefix)"
    )
    parser.add_argument("--format", metavar="F", help="format of the traces instead of sniffing")
    parser.add_argument("--only", metavar="NAME,…", help="only these claims (see --list)")
    parser.add_argument("--list", action="store_true", help="list the claims and stop")
    parser.add_argument(
        "--requests",
        type=whole_number(1),
        default=1000,
        metavar="N",
        help="requests of each trace that are replayed; lengths are counted over all (default %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        type=whole_number(2, 10),
        default=5,
        metavar="N",
        help="seeds of the selection rows (default %(default)s)",
    )
    parser.add_argument("--captured", metavar="FILE.npz", help="captured Q, K and V: adds rows to hit-rate")
    parser.add_argument(
        "--bench",
        action="append",
        default=[],
        metavar="FILE",
        help="a bench file of a GPU: fills the ● rows; may be given again; `here` times this machine's GPU first",
    )
    parser.add_argument("--quiet", action="store_true", help="do not say what is being done")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Answer every claim that was asked for."""
    from tinyserve_viz.cli.claims.counting import Ask
    from tinyserve_viz.cli.claims.table import CLAIMS
    from tinyserve_viz.cli.main import UsageError
    from tinyserve_viz.core.errors import ConfigError
    from tinyserve_viz.core.resources import data_folder
    from tinyserve_viz.report.claims import as_text
    from tinyserve_viz.trace import read_trace

    known = [claim.name for claim, _ in CLAIMS]
    wanted = known if args.only is None else [name.strip() for name in args.only.split(",")]
    for name in wanted:
        if name not in known:
            raise ConfigError(f"unknown claim {name!r}; known: {', '.join(known)}")
    chosen = [(claim, measure) for claim, measure in CLAIMS if claim.name in wanted]
    if args.list:
        given = [*args.traces, *(f"--{name}" for name in ("bench", "captured") if getattr(args, name))]
        if given:
            raise UsageError(f"tinyserve-viz claims: --list counts nothing, without {', '.join(given)}; see --help")
        if args.json:
            entries = [{"name": c.name, "says": c.says, "source": c.source} for c, _ in chosen]
            print(json.dumps({"schema": 1, "claims": entries}))
        else:
            width = max(len(claim.name) for claim, _ in chosen)
            print("\n".join(f"{claim.name:<{width}}  {claim.says} [{claim.source}]" for claim, _ in chosen))
        return 0
    shipped = data_folder("traces")
    paths = args.traces or [str(shipped / "quickstart.json"), str(shipped / "prefix.json")]
    timed = _timed(args)
    traces = tuple(read_trace(path, args.format, None, MAX_LENGTH) for path in paths)
    ask = Ask(traces, args.requests, args.seeds, timed, args.captured, args.quiet)
    from tinyserve_viz.analysis.claim import Answer
    from tinyserve_viz.engine.captured import read_capture

    if ask.captured is not None:
        read_capture(ask.captured)  # what cannot be read is said before anything is counted

    answers = []
    for claim, measure in chosen:
        numbers, verdict = measure(ask)
        answers.append(Answer(claim, tuple(numbers), verdict))
    facts = _facts(ask, paths)
    print(_json(answers, facts) if args.json else as_text(answers, _header(facts)))
    return 0


def _timed(args: argparse.Namespace) -> Timed:
    """The rows of the bench files, after making one on this machine's GPU if that was asked for.

    Raises:
        GpuUnavailable: `--bench here` without a GPU.
    """
    import tempfile

    from tinyserve_viz.cli.claims.timed import Timed

    if "here" not in args.bench:
        return Timed([Path(name) for name in args.bench])
    from tinyserve_viz.kernels.bench.run import run_bench
    from tinyserve_viz.kernels.cuda_backend import gpu_for

    found = gpu_for("claims --bench here times kernels on a GPU")
    if not args.quiet:
        print("tinyserve-viz claims: timing the kernels on this machine's GPU", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="tinyserve-claims-") as folder:
        path = Path(folder, "here.json")
        path.write_text(json.dumps(run_bench(found, "quick")))
        return Timed([path if name == "here" else Path(name) for name in args.bench])


def _facts(ask: Any, paths: list[str]) -> dict[str, Any]:
    import os
    import platform

    import numpy as np

    from tinyserve_viz import __version__

    return {
        "tool": __version__,
        "machine": f"{platform.machine()} CPU, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"NumPy {np.__version__}",
        "devices": list(ask.timed.devices),
        "traces": [
            {"path": path, "name": trace.name, "format": trace.format, "num_requests": len(trace.requests)}
            for path, trace in zip(paths, ask.traces, strict=True)
        ],
        "replayed_requests": ask.requests,
        "seeds": ask.seeds,
    }


def _header(facts: dict[str, Any]) -> list[str]:
    traces = ", ".join(f"{trace['name']} ({trace['num_requests']:,} requests)" for trace in facts["traces"])
    device = ", ".join(facts["devices"]) or "no bench file, so times are not measured"
    return [
        f"tinyserve-viz {facts['tool']} on {facts['machine']}; GPU times: {device}",
        f"counted on {traces}; replays: the first {facts['replayed_requests']:,} requests; {facts['seeds']} seeds",
    ]


def _json(answers: list[Answer], facts: dict[str, Any]) -> str:
    return json.dumps({"schema": 1, **facts, "claims": [answer.as_dict() for answer in answers]})
