"""Arguments that several commands share: which trace to read and how, and numbers with a range."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyserve_viz.core.config import CONTENT_KINDS, MAX_LENGTH

if TYPE_CHECKING:
    from tinyserve_viz.trace import Trace


def whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argparse type: a whole number of at least `low` and at most `high`."""

    def parse(text: str) -> int:
        digits = text.removeprefix("-")
        value = int(text) if digits.isascii() and digits.isdigit() and len(digits) < 20 else None
        if value is None or value < low or (high is not None and value > high):
            wanted = f"{low} or more" if high is None else f"{low} to {high}"
            raise argparse.ArgumentTypeError(f"{text!r} given, expected a whole number, {wanted}")
        return value

    return parse


def different(values: tuple[Any, ...], text: str) -> tuple[Any, ...]:
    """The values of a list given as `text`, each of which may stand there once."""
    if len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"{text!r} names one value twice")
    return values


def add_trace_arguments(parser: argparse.ArgumentParser, positional: str = "trace", optional: bool = False) -> None:
    """Add the trace file, which a command may do without (`optional`), and `--format`, `--limit`, `--max-len`."""
    parser.add_argument(
        positional, nargs="?" if optional else None, metavar=positional.upper(), help="trace file, plain or .gz"
    )
    parser.add_argument(
        "--format",
        metavar="F",
        help="format instead of sniffing: azure, json, lengths, mooncake or tokens (import also: kv-events)",
    )
    parser.add_argument("--limit", type=whole_number(1), metavar="N", help="use the first N requests only")
    parser.add_argument(
        "--max-len",
        type=whole_number(1, 1 << 30),
        default=MAX_LENGTH,
        metavar="TOKENS",
        help="longest prompt or output to accept (default %(default)s)",
    )


def columns_by_lines(text: str) -> tuple[int, int]:
    """An argparse type: the size of a terminal, `120x40` as (120, 40)."""
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and 20 <= int(width) <= 400 and 8 <= int(height) <= 200):
        raise argparse.ArgumentTypeError(f"{text!r} given, expected columns x lines such as 120x40")
    return int(width), int(height)


def add_writing_arguments(parser: argparse.ArgumentParser, output: str, as_json: str) -> None:
    """Add `-o OUT` and `--json` with these words of help, `--force` and `--quiet`."""
    parser.add_argument("-o", "--output", metavar="OUT", help=output)
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    parser.add_argument("--quiet", action="store_true", help="no progress and no notes on stderr")
    parser.add_argument("--json", action="store_true", help=as_json)


def add_content_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--content`; `content_of` reads it together with `--seed`."""
    parser.add_argument(
        "--content",
        type=_content,
        metavar="KIND",
        help="what stands for K, V and queries: topics, iid (the control) or npz:FILE (captured, docs/selection.md)",
    )


def content_of(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that `--content` and `--seed` give."""
    return {"seed": args.seed, **(args.content or {})}


def _content(text: str) -> dict[str, Any]:
    kind, colon, path = text.partition(":")
    if kind not in CONTENT_KINDS or bool(colon) != (kind == "npz") or (colon and not path):
        raise argparse.ArgumentTypeError(f"{text!r} given, expected topics, iid or npz:FILE")
    return {"kind": kind, "path": path} if kind == "npz" else {"kind": kind}


def load_trace(args: argparse.Namespace, positional: str = "trace") -> Trace:
    """Read the trace that the arguments of `add_trace_arguments` name.

    Captured content that a trace names by a relative path is looked for beside the trace.
    """
    from tinyserve_viz.trace import read_trace

    place = getattr(args, positional)
    trace = read_trace(place, args.format, args.limit, args.max_len)
    path = trace.content.get("path")
    if path is not None and not Path(path).is_absolute():
        trace = replace(trace, content={**trace.content, "path": str(Path(place).parent / path)})
    return trace
