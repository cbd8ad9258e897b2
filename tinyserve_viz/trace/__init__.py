"""Request traces: `read_trace` finds the format and reads it; `IMPORTERS` lists the formats."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from tinyserve_viz.core.config import MAX_LENGTH
from tinyserve_viz.core.errors import TraceError
from tinyserve_viz.trace import azure, kv_events, lengths, mooncake, native, tokens
from tinyserve_viz.trace.columns import RequestColumns, request_columns
from tinyserve_viz.trace.hashing import BlockHashes, block_hashes, prefix_references
from tinyserve_viz.trace.request import Request, Trace
from tinyserve_viz.trace.source import open_source, show

__all__ = [
    "IMPORTERS",
    "BlockHashes",
    "Request",
    "RequestColumns",
    "Trace",
    "block_hashes",
    "prefix_references",
    "read_trace",
    "request_columns",
]

# Each module has NAME, sniff(head, file name) -> bool and read(source, limit, max_len) -> Trace.
# Sniffed in this order; the JSON lines come first because our own file may end in .json alone.
IMPORTERS: tuple[ModuleType, ...] = (mooncake, tokens, azure, lengths, native)

HEAD_BYTES = 4096  # what sniffing sees: the field names of every format come earlier


def read_trace(
    path: str | Path, format: str | None = None, limit: int | None = None, max_len: int = MAX_LENGTH
) -> Trace:
    """Read a trace file, plain or gzip; the format is sniffed from its first bytes unless `format` names one.

    `limit` keeps the first requests only; `max_len` is the largest prompt or output length, in tokens, to accept.

    Raises:
        TraceError: the file cannot be read or is no valid trace; the message says where and what was expected.
    """
    known = {importer.NAME: importer for importer in IMPORTERS}
    if format is not None and format not in known:
        raise TraceError(f"unknown trace format {show(format)}; known: {', '.join(sorted(known))}")
    if limit is not None and limit < 1:
        raise TraceError(f"limit is {limit}, expected 1 or more requests")
    if format is None and kv_events.is_stream(path):
        raise TraceError(
            f"{path}: is a KV-event stream, which names no requests to replay; "
            "make a recording of it: tinyserve-viz import STREAM -o FILE.rec"
        )
    source = open_source(path)
    if format is None:
        head, name = source.data[:HEAD_BYTES], Path(path).name
        format = next((importer.NAME for importer in IMPORTERS if importer.sniff(head, name)), None)
        if format is None:
            start = show(head.lstrip().split(b"\n", 1)[0].decode("utf-8", "replace").strip())
            raise source.error(
                f"unknown format, starts with {start}; expected one of {', '.join(sorted(known))} (--format names it)"
            )
    trace: Trace = known[format].read(source, limit, max_len)
    return trace
