"""Tables as CSV and JSON, written so that pandas, polars and jq read them without being told anything."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

import msgspec

SCHEMA = 1


def as_csv(columns: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> bytes:
    """RFC 4180 with a header line, `\\n` ends, UTF-8; nothing to measure is an empty field, floats to the last bit."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return out.getvalue().encode()


def as_json(name: str, origin: dict[str, Any], columns: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> bytes:
    """One object: `schema`, the `table`'s name, where it comes from, its `columns`, and `rows` as objects."""
    objects = [dict(zip(columns, row, strict=True)) for row in rows]
    found = {"schema": SCHEMA, "table": name, **origin, "columns": columns, "rows": objects}
    return msgspec.json.encode(found) + b"\n"
