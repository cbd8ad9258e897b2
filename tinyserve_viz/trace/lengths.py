"""CSV of prompt and output lengths alone (as Vidur's processed traces); without `arrived_at` all arrive at 0.

Traces: https://github.com/microsoft/vidur `data/processed_traces/`.
"""

from __future__ import annotations

from tinyserve_viz.trace.request import Request, Trace
from tinyserve_viz.trace.rows import check_sorted, require_rows, seconds_cell, whole_cell
from tinyserve_viz.trace.source import Source
from tinyserve_viz.trace.table import header_of, read_columns

NAME = "lengths"
COLUMNS = ("num_prefill_tokens", "num_decode_tokens")
ARRIVAL = "arrived_at"  # seconds; only some of these files have it


def sniff(head: bytes, name: str) -> bool:  # noqa: ARG001
    """Whether the header has one of the two column names."""
    return not set(COLUMNS).isdisjoint(header_of(head))


def read(source: Source, limit: int | None, max_len: int) -> Trace:
    """Read the first `limit` rows."""
    timed = ARRIVAL in header_of(source.data)
    requests: list[Request] = []
    above = 0.0
    for line, cells in read_columns(source, (*COLUMNS, ARRIVAL) if timed else COLUMNS, limit):
        seconds = seconds_cell(source, line, ARRIVAL, cells[2]) if timed else 0.0
        check_sorted(source, line, ARRIVAL, above, seconds)
        above = seconds
        prompt_len = whole_cell(source, line, COLUMNS[0], cells[0], 1, max_len)
        output_len = whole_cell(source, line, COLUMNS[1], cells[1], 0, max_len)
        requests.append(Request(f"r{len(requests)}", round(seconds * 1_000_000), prompt_len, output_len))
    return Trace(source.name, NAME, require_rows(source, requests))
