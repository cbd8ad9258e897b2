"""Rows of a bench file and the file itself; docs/bench-format.md says what each field means."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyserve_viz import __version__
from tinyserve_viz.core.errors import TinyserveError

if TYPE_CHECKING:
    from tinyserve_viz.kernels.bench.against import Ratio

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a bench file says about the run beside its rows."""

    device: str
    arch: str
    driver: str
    cuda: str
    clocks: str
    l2_bytes: int
    grid: str
    seed: int
    peaks: Mapping[str, float]


def bench_file(facts: Facts, rows: Sequence[Row], left_out: Sequence[str]) -> dict[str, Any]:
    """The object that `kernels bench --json` prints."""
    return {
        "schema": 1,
        "kind": "bench",
        "tool": __version__,
        "device": facts.device,
        "arch": facts.arch,
        "driver": facts.driver,
        "cuda": facts.cuda,
        "clocks": facts.clocks,
        "l2": f"{facts.l2_bytes >> 20} MiB; inputs rotate over four times as much unless a row says otherwise",
        "dtype": "float16",
        "provenance": "measured",
        "grid": facts.grid,
        "seed": facts.seed,
        "peaks": dict(facts.peaks),
        "rows": list(rows),
        "left_out": list(left_out),
    }


def read_bench(path: Path) -> dict[str, Any]:
    """A bench file of ours or of the peers' scripts: an object with `device` and `rows`.

    Raises:
        TinyserveError: it is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TinyserveError(f"{path}: {error.strerror}, expected a bench file") from error
    except ValueError as error:
        raise TinyserveError(f"{path}: no JSON ({error}), expected a bench file") from error
    if not isinstance(found, dict) or not isinstance(found.get("rows"), list) or "device" not in found:
        raise TinyserveError(f"{path}: no bench file, expected an object with `device` and `rows`")
    for i, row in enumerate(found["rows"]):
        names = ("op", "impl", "shape")
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in names):
            raise TinyserveError(f"{path}: rows[{i}] has no op, impl and shape")
        if "error" not in row and not isinstance(row.get("us"), int | float):
            raise TinyserveError(f"{path}: rows[{i}] ({row['op']}, {row['shape']}) has neither us nor error")
    return found


def markdown(rows: Sequence[Row], pairs: Sequence[Ratio], sources: Sequence[str] = ()) -> Iterator[str]:
    """A table of the rows; beside each, from each of the `sources` of pairs, the fastest row and the ratio to it."""
    beside = "".join(f" fastest of {source} | µs | theirs / ours |" for source in sources)
    yield f"| operation | by | shape | µs | GB/s | % of copy |{beside}"
    yield "| --- | --- | --- | --- | --- | --- |" + " --- | --- | --- |" * len(sources)
    for row in rows:
        start = f"| {row['op']} | {row['impl']} | {row['shape']} |"
        if "error" in row:
            yield f"{start} not timed: {row['error']} | | |" + " | | |" * len(sources)
            continue
        rate = f"{row['gbs']:.0f} | {row['pct_copy']:.0f}" if row.get("gbs") is not None else "|"
        theirs = ""
        for source in sources:
            key = (row["op"], row["shape"], row["impl"], source)
            same = [pair for pair in pairs if (pair.op, pair.shape, pair.ours, pair.source) == key]
            best = min(same, key=lambda pair: pair.their_us, default=None)
            theirs += f" {best.theirs} | {best.their_us:.1f} | {best.ratio:.2f} |" if best else " | | |"
        yield f"{start} {row['us']:.1f} | {rate} |{theirs}"


HEAD = f"{'op':<16}{'impl':<36}{'shape':<44}{'µs':>10}{'GB/s':>8}{'%copy':>7}{'spread':>8}  note"


def line(row: Row) -> str:
    """A row of the table."""
    start = f"{row['op']:<16}{row['impl']:<36}{row['shape']:<44}"
    if "error" in row:
        return f"{start}NOT TIMED: {row['error']}"
    rate = f"{row['gbs']:>8.0f}{row['pct_copy']:>7.1f}" if row.get("gbs") is not None else f"{'':>15}"
    return f"{start}{row['us']:>10.2f}{rate}{100 * row['spread']:>7.1f}%  {row['note']}"
