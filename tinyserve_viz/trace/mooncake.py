"""Mooncake JSON lines: one request a line with a content hash id for every 512 tokens of its input.

Format and traces: https://github.com/kvcache-ai/Mooncake (FAST'25).
"""

from __future__ import annotations

import math

import msgspec
import numpy as np

from tinyserve_viz.trace.decode import decode_lines
from tinyserve_viz.trace.request import Request, Trace
from tinyserve_viz.trace.rows import MAX_HASH_ID, arrival_from_ms, check_length, check_sorted, require_rows
from tinyserve_viz.trace.source import Source

NAME = "mooncake"
HASH_BLOCK = 512  # tokens that one of its ids covers


class MooncakeRow(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One line; `timestamp` in ms, lengths in tokens."""

    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


def sniff(head: bytes, name: str) -> bool:  # noqa: ARG001
    """Whether the first line has Mooncake's field names."""
    line = head.lstrip().split(b"\n", 1)[0]
    return line.startswith(b"{") and (b'"hash_ids"' in line or b'"input_length"' in line)


def read(source: Source, limit: int | None, max_len: int) -> Trace:
    """Read the first `limit` rows; ids are kept as they are and cover 512 tokens each."""
    requests: list[Request] = []
    above = 0.0
    for line, row in decode_lines(source, MooncakeRow, limit):
        arrival = arrival_from_ms(source, line, "timestamp", row.timestamp)
        check_sorted(source, line, "timestamp", above, row.timestamp)
        above = row.timestamp
        check_length(source, line, "input_length", row.input_length, 1, max_len)
        check_length(source, line, "output_length", row.output_length, 0, max_len)
        ids = row.hash_ids
        if len(ids) != math.ceil(row.input_length / HASH_BLOCK):
            raise source.error(
                f"hash_ids has length {len(ids)}, expected ceil({row.input_length} / {HASH_BLOCK}) = "
                f"{math.ceil(row.input_length / HASH_BLOCK)}",
                line,
            )
        if len(set(ids)) != len(ids):
            repeated = next(id_ for index, id_ in enumerate(ids) if id_ in ids[:index])
            raise source.error(f"hash_ids names {repeated} twice, expected each id once in a row", line)
        if min(ids) < 0 or max(ids) > MAX_HASH_ID:
            bad = next(id_ for id_ in ids if not 0 <= id_ <= MAX_HASH_ID)
            raise source.error(f"hash_ids has {bad}, expected 0 to {MAX_HASH_ID}", line)
        hash_ids = np.array(ids, dtype=np.int64)
        requests.append(Request(f"r{len(requests)}", arrival, row.input_length, row.output_length, hash_ids))
    return Trace(source.name, NAME, require_rows(source, requests), hash_block=HASH_BLOCK)
