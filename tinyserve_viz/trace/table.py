"""CSV with a header: rows as the cells of named columns, with the line that each came from."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import islice

from tinyserve_viz.trace.source import Source, show


def header_of(head: bytes) -> tuple[str, ...]:
    """Column names in the first line of `head`."""
    line = head.lstrip().split(b"\n", 1)[0].decode("utf-8", "replace")
    return tuple(cell.strip().strip('"') for cell in line.split(","))


def read_columns(source: Source, columns: Sequence[str], limit: int | None) -> Iterator[tuple[int, list[str]]]:
    """(line from 1, cells of `columns`) of the first `limit` rows; other columns are left out, blank lines skipped."""
    reader = csv.reader(io.StringIO(source.data.decode(), newline=""), strict=True)
    try:
        header = next(([cell.strip() for cell in row] for row in reader if row), [])
        missing = [column for column in columns if column not in header]
        if missing:
            found = ", ".join(show(name) for name in header)
            raise source.error(f"no column {', '.join(missing)}, expected {', '.join(columns)}; found {found[:120]}", 1)
        places = [header.index(column) for column in columns]
        for row in islice((row for row in reader if row), limit):
            if len(row) != len(header):
                raise source.error(f"{len(row)} cells, expected {len(header)}", reader.line_num)
            yield reader.line_num, [row[place] for place in places]
    except csv.Error as error:
        raise source.error(f"not CSV ({error}), expected {', '.join(columns)}", reader.line_num) from None
