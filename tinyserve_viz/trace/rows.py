"""Checks that every importer makes on a row: lengths in range, finite arrival times, rows in order of arrival."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.trace.request import Request
from tinyserve_viz.trace.source import Source, show

MAX_HASH_ID = (1 << 63) - 1
MAX_TOKEN_ID = (1 << 31) - 1
MAX_TIME_MS = 1e12  # 31 years; µs up to here are exact in a float64, so a written trace reads back equal


def check_length(source: Source, line: int, name: str, value: int, low: int, high: int) -> None:
    """Refuse a length in tokens that is not in low..high."""
    if not low <= value <= high:
        raise source.error(f"{name} is {show(value)}, expected {low} to {high}", line)


def arrival_from_ms(source: Source, line: int, name: str, value: float) -> int:
    """µs of a time in ms, rounded to the nearest."""
    if not 0 <= value <= MAX_TIME_MS:
        raise source.error(f"{name} is {show(value)}, expected 0 to {MAX_TIME_MS:g} ms", line)
    return round(value * 1000)


def check_sorted(source: Source, line: int, name: str, above: float, value: float) -> None:
    """Refuse a time earlier than that of the row above, both in the file's own unit."""
    if value < above:
        raise source.error(f"{name} is {show(value)}, expected order of arrival: at least {show(above)}", line)


def require_rows(source: Source, requests: list[Request]) -> tuple[Request, ...]:
    """`requests` as a tuple; a trace has at least one."""
    if not requests:
        raise source.error("no requests, expected at least one")
    return tuple(requests)


def token_array(source: Source, line: int, name: str, tokens: list[int], length: int) -> NDArray[np.int32]:
    """int32 [length] token ids of one row."""
    if len(tokens) != length:
        raise source.error(f"{name} has length {len(tokens)}, expected {length}", line)
    if tokens and not (min(tokens) >= 0 and max(tokens) <= MAX_TOKEN_ID):
        bad = next(token for token in tokens if not 0 <= token <= MAX_TOKEN_ID)
        raise source.error(f"{name} has {bad}, expected 0 to {MAX_TOKEN_ID}", line)
    return np.array(tokens, dtype=np.int32)


def whole_cell(source: Source, line: int, name: str, cell: str, low: int, high: int) -> int:
    """The whole number in a CSV cell."""
    text = cell.strip()
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()):
        raise source.error(f"{name} is {show(text)}, expected a whole number", line)
    value = int(text) if len(digits) < 20 else 10**20 * (-1 if text[0] == "-" else 1)
    if not low <= value <= high:
        raise source.error(f"{name} is {text if len(digits) < 20 else show(text)}, expected {low} to {high}", line)
    return value


def seconds_cell(source: Source, line: int, name: str, cell: str) -> float:
    """The seconds in a CSV cell."""
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not 0 <= value <= MAX_TIME_MS / 1000:
        raise source.error(f"{name} is {show(cell)}, expected 0 or more seconds", line)
    return value
