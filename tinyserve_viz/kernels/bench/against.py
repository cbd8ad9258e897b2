"""Lay a bench table beside others': for each of our rows the rows of the same operation and shape, with ratios."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tinyserve_viz.kernels.bench.row import Row

# Operations that compute the same thing under several names; the first is ours.
_FAMILIES = (
    ("decode", "decode-paged", "decode-contig"),
    ("sparse-decode",),
    ("kv-write",),
    ("block-copy",),
    ("page-score",),
    ("top-k",),
    ("query-analysis",),
    ("adaptive",),
    ("allocation", "find-free"),
)


@dataclass(frozen=True, slots=True)
class Ratio:
    """`ratio` = their time / ours: above 1, ours is faster."""

    op: str
    shape: str
    ours: str
    us: float
    theirs: str
    their_us: float
    ratio: float
    source: str


def ratios(rows: Sequence[Row], others: Sequence[tuple[str, dict[str, Any]]]) -> list[Ratio]:
    """Every pair of rows with the same operation and shape; `others` are (name, bench file)."""
    found = []
    for row in rows:
        if "error" in row:
            continue
        key = _key(row)
        for name, file in others:
            for other in file["rows"]:
                if "error" not in other and _key(other) == key:
                    ratio = other["us"] / row["us"] if row["us"] else float("nan")
                    found.append(
                        Ratio(row["op"], row["shape"], row["impl"], row["us"], other["impl"], other["us"], ratio, name)
                    )
    return found


def _key(row: Row) -> tuple[str, str]:
    """Operation and shape under one name; a write is known by its model and number of new tokens."""
    op = next((family[0] for family in _FAMILIES if row["op"] in family), row["op"])
    shape = " ".join(row["shape"].split())
    if op == "kv-write":
        each = re.fullmatch(r"(\S+) B=(\d+) new=(\d+) ctx=\d+", shape)
        if each:
            shape = f"{each[1]} tokens={int(each[2]) * int(each[3])}"
    return op, shape


def table(found: Sequence[Ratio], ours: dict[str, Any], others: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    """The ratios as text: theirs / ours, above 1 where ours is faster; then every operation that nobody else has."""
    yield f"ours: {ours['device']}, copy {ours['peaks'].get('copy', float('nan')):.0f} GB/s"
    for name, file in others:
        copy = file.get("peaks", {}).get("copy")
        yield f"{name}: {file['device']}" + (f", copy {copy:.0f} GB/s" if copy else "")
        if file["device"] != ours["device"]:
            yield f"{name}: another device, so these ratios compare machines too"
    yield f"{'op':<16}{'shape':<44}{'ours':<36}{'µs':>10}  {'theirs':<26}{'µs':>10}{'theirs/ours':>13}"
    for one in found:
        yield (
            f"{one.op:<16}{one.shape:<44}{one.ours:<36}{one.us:>10.2f}  {one.theirs:<26}{one.their_us:>10.2f}"
            f"{one.ratio:>12.2f}×"
        )
    paired = {(one.op, one.shape) for one in found}
    alone = {row["op"] for row in ours["rows"] if (row["op"], row["shape"]) not in paired and "error" not in row}
    alone -= {one.op for one in found}
    if alone:
        yield f"without a row to lay beside: {', '.join(sorted(alone))}"
