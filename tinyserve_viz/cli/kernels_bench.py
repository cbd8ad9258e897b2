"""`kernels bench`: time the kernels on a GPU as the field does, and lay the table beside others'."""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyserve_viz.kernels.bench.row import Facts, Row

FINDING = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kernels bench`."""
    parser.add_argument(
        "--grid", choices=("quick", "full"), help="shapes to time (default quick)"
    )
    parser.add_argument(
        "--against", action="append", default=[], type=Path, metavar="FILE",
        help="bench file, ours or of other implementations, to print ratios to; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="take the rows of a bench file; no GPU"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the bench file here too")
    parser.add_argument(
        "--budget-s", type=_seconds, metavar="S", help="start no row after S seconds"
    )
    parser.add_argument(
        "--no-overlap", action="store_true", help="no call starts before the one before it has ended"
    )
    parser.add_argument("--markdown", action="store_true", help="print tables for a document")
    parser.add_argument("--force", action="store_true", help="replace the file of -o if it exists")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.epilog = (
        "examples:\n"
        "  tinyserve-viz kernels bench --grid quick -o bench.json\n"
        "  tinyserve-viz kernels bench --kernel block_scoring --json\n"
        "  tinyserve-viz kernels bench --from bench.json --against peers.json\n"
        "Exit code 1 when a kernel computed something wrong (it is then not timed); 3 without a GPU."
    )


def run(args: argparse.Namespace) -> int:
    """Measure or read, print, compare; 1 when a row failed its check."""
    from tinyserve_viz.cli.main import UsageError
    from tinyserve_viz.cli.outputs import BENCH, check_output
    from tinyserve_viz.kernels.backend import kernel_named
    from tinyserve_viz.kernels.bench.against import ratios, table
    from tinyserve_viz.kernels.bench.row import HEAD, line, markdown, read_bench

    if args.json and args.markdown:
        raise UsageError("tinyserve-viz kernels: --json and --markdown both want stdout; see --help")
    names = ("grid", "kernel", "nvcc", "budget_s", "no_overlap")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name)]
    if args.source and given:
        raise UsageError(f"tinyserve-viz kernels: --from times nothing, without {', '.join(given)}; see --help")
    check_output(args.output, args.force, "a bench file", BENCH)
    kernels = [kernel_named(name).name for name in args.kernel]
    others = [(path.name, read_bench(path)) for path in args.against]
    if args.source:
        found = read_bench(args.source)
        if not (args.json or args.markdown):
            print("\n".join([_title(found), HEAD, *(line(row) for row in found["rows"])]))
    else:
        found = _measure(args, kernels)
    pairs = ratios(found["rows"], others)
    if others:
        found["against"] = [asdict(pair) for pair in pairs]
    text = json.dumps(found, ensure_ascii=False)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")
    if args.json:
        print(text)
    elif args.markdown:
        print("\n".join([_title(found), "", *markdown(found["rows"], pairs, [name for name, _ in others])]))
    elif others:
        print("\n" + "\n".join(table(pairs, found, others)))
    failed = [row for row in found["rows"] if "error" in row]
    for row in failed:
        print(f"{row['op']}, {row['impl']}, {row['shape']}: {row['error']}", file=sys.stderr)
    for left_out in found.get("left_out", ()):
        print(f"left out: {left_out}", file=sys.stderr)
    return FINDING if failed else 0


def _measure(args: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    from tinyserve_viz.cli.progress import busy
    from tinyserve_viz.core.toolkit import find_nvcc
    from tinyserve_viz.kernels.bench.row import HEAD, line
    from tinyserve_viz.kernels.bench.run import run_bench
    from tinyserve_viz.kernels.cuda_backend import gpu_for

    gpu = gpu_for("bench times kernels on a GPU, never the NumPy reference")
    if args.nvcc:
        gpu.nvcc = find_nvcc(args.nvcc)
    gpu.early = not args.no_overlap
    started = False

    def report(row: Row, facts: Facts) -> None:
        nonlocal started
        if not started:
            print(_title({"device": facts.device, "clocks": facts.clocks, "peaks": facts.peaks}) + "\n" + HEAD)
        started = True
        print(line(row), flush=True)

    silent = args.json or args.markdown
    with busy("bench", args.quiet or not silent):
        budget_s = math.inf if args.budget_s is None else args.budget_s
        return run_bench(gpu, args.grid or "quick", names, budget_s, report=None if silent else report)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} given, expected seconds, more than 0")
    return seconds


def _title(found: dict[str, Any]) -> str:
    copy = found.get("peaks", {}).get("copy")
    parts = [found["device"], f"copy {copy:.0f} GB/s (read + written)" if copy else "", found.get("clocks", "")]
    return ", ".join(part for part in parts if part)
