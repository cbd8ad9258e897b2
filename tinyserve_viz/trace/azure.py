"""Azure LLM inference CSV: `TIMESTAMP,ContextTokens,GeneratedTokens`, seven fractional digits, no prefix information.

Traces: https://github.com/Azure/AzurePublicDataset (Patel et al., Splitwise, ISCA 2024).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tinyserve_viz.trace.request import Request, Trace
from tinyserve_viz.trace.rows import require_rows, whole_cell
from tinyserve_viz.trace.source import Source, show
from tinyserve_viz.trace.table import header_of, read_columns

NAME = "azure"
COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_MICROSECOND = timedelta(microseconds=1)


def sniff(head: bytes, name: str) -> bool:  # noqa: ARG001
    """Whether the header has one of Azure's own column names."""
    return not {"ContextTokens", "GeneratedTokens"}.isdisjoint(header_of(head))


def read(source: Source, limit: int | None, max_len: int) -> Trace:
    """Read the first `limit` rows; arrival times count from the first row, cut to whole µs."""
    requests: list[Request] = []
    start = above = None
    for line, (stamp, context, generated) in read_columns(source, COLUMNS, limit):
        moment = _moment(source, line, stamp)
        if start is None or above is None:
            start = above = moment
        if moment < above:
            raise source.error(
                f"TIMESTAMP is {show(stamp)}, expected order of arrival: at least {above:%F %T.%f}", line
            )
        above = moment
        arrival = (moment - start) // _MICROSECOND
        prompt_len = whole_cell(source, line, "ContextTokens", context, 1, max_len)
        output_len = whole_cell(source, line, "GeneratedTokens", generated, 0, max_len)
        requests.append(Request(f"r{len(requests)}", arrival, prompt_len, output_len))
    return Trace(source.name, NAME, require_rows(source, requests))


def _moment(source: Source, line: int, stamp: str) -> datetime:
    """The time of a stamp such as `2023-11-16 18:15:46.6805900`; without a zone it is UTC."""
    try:
        moment = datetime.fromisoformat(stamp)
    except ValueError:
        raise source.error(
            f"TIMESTAMP is {show(stamp)}, expected a time such as 2023-11-16 18:15:46.6805900", line
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
