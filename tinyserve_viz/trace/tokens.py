"""JSON lines with real token ids of prompts and outputs (ShareGPT as LLMServingSim prepares it).

Traces: https://github.com/casys-kaist/LLMServingSim `workloads/`.
"""

from __future__ import annotations

import msgspec

from tinyserve_viz.trace.decode import decode_lines
from tinyserve_viz.trace.request import Request, Trace
from tinyserve_viz.trace.rows import MAX_TIME_MS, check_length, check_sorted, require_rows, token_array
from tinyserve_viz.trace.source import Source, show

NAME = "tokens"


class TokensRow(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One line; the two counts must agree with the two lists of ids."""

    input_toks: int
    output_toks: int
    arrival_time_ns: int
    input_tok_ids: list[int]
    output_tok_ids: list[int] | None = None


def sniff(head: bytes, name: str) -> bool:  # noqa: ARG001
    """Whether the first line has the field names of this format."""
    line = head.lstrip().split(b"\n", 1)[0]
    return line.startswith(b"{") and (b'"input_toks"' in line or b'"input_tok_ids"' in line)


def read(source: Source, limit: int | None, max_len: int) -> Trace:
    """Read the first `limit` rows; arrival times are cut to whole µs."""
    requests: list[Request] = []
    above = 0
    for line, row in decode_lines(source, TokensRow, limit):
        if not 0 <= row.arrival_time_ns <= MAX_TIME_MS * 1_000_000:
            found = show(row.arrival_time_ns)
            raise source.error(f"arrival_time_ns is {found}, expected 0 to {MAX_TIME_MS * 1_000_000:g}", line)
        check_sorted(source, line, "arrival_time_ns", above, row.arrival_time_ns)
        above = row.arrival_time_ns
        arrival = row.arrival_time_ns // 1000
        check_length(source, line, "input_toks", row.input_toks, 1, max_len)
        check_length(source, line, "output_toks", row.output_toks, 0, max_len)
        prompt = token_array(source, line, "input_tok_ids", row.input_tok_ids, row.input_toks)
        output = None
        if row.output_tok_ids is not None:
            output = token_array(source, line, "output_tok_ids", row.output_tok_ids, row.output_toks)
        requests.append(
            Request(
                f"r{len(requests)}",
                arrival,
                row.input_toks,
                row.output_toks,
                prompt_tokens=prompt,
                output_tokens=output,
            )
        )
    return Trace(source.name, NAME, require_rows(source, requests))
