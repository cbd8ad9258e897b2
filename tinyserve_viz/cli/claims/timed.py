"""Numbers that a GPU took: read from a bench file, of this machine or another; without one, why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyserve_viz.analysis.charts.bench import BenchSource
from tinyserve_viz.analysis.claim import MEASURED, Number, not_measured

HOW = "a GPU times it: tinyserve-viz kernels bench --json > FILE there, then claims --bench FILE"


@dataclass(frozen=True, slots=True)
class Row:
    """A timed row with the device that took it and what a copy reached there, GB/s."""

    op: str
    impl: str
    shape: str
    us: float
    gbs: float | None
    num_bytes: float | None
    device: str
    copy: float | None


class Timed:
    """The rows of bench files; none without a file."""

    def __init__(self, paths: Sequence[Path] = ()) -> None:
        sources = [BenchSource(path) for path in paths]
        self.devices = tuple(dict.fromkeys(source.file.device for source in sources))
        self.rows: list[Row] = []
        for source in sources:
            copy = source.file.peaks.get("copy")
            for row in source.rows:
                self.rows.append(
                    Row(row.op, row.impl, row.shape, float(row.us or 0), row.gbs, row.bytes, source.file.device, copy)
                )

    def missing(self, name: str, what: str = "") -> list[Number]:
        """The entry that says why a time is not here."""
        why = HOW if not self.rows else "the bench files have no such row"
        return [not_measured(name, f"{what}{'; ' if what else ''}{why}")]

    def speed_ups(self, op: str, base: str, form: str, title: str) -> list[Number]:
        """One number a shape: how much faster `form` was than `base` on one device, and what the bytes allow."""
        found = []
        for device, shape in dict.fromkeys((row.device, row.shape) for row in self.rows if row.op == op):
            at = {row.impl: row for row in self.rows if (row.op, row.device, row.shape) == (op, device, shape)}
            if base not in at or form not in at or not at[form].us:
                continue
            slow, fast = at[base], at[form]
            faster = slow.us / fast.us
            words = f"time of {base} ({slow.us:,.1f} µs) / time of {form} ({fast.us:,.1f} µs), same inputs, medians"
            if slow.num_bytes and fast.num_bytes:
                ceiling = slow.num_bytes / fast.num_bytes
                beyond = ": BEYOND it, so not explained by bytes" if ceiling > 1 and faster > ceiling else ""
                words += f"; bytes allow {ceiling:.2f}×{beyond}" if ceiling > 1 else "; the bytes are the same"
            found.append(Number(f"{title}, {shape}", faster, "×", MEASURED, words, device))
        return found or self.missing(title)

    def rates(self, op: str, impl: str, title: str) -> list[Number]:
        """GB/s of useful bytes, and the share of what a copy reached in the same process."""
        found = []
        for row in self.rows:
            if row.op == op and row.impl == impl and row.gbs:
                share = f", {100 * row.gbs / row.copy:.0f} % of a copy" if row.copy else ""
                words = f"useful bytes / time, each input and output byte once{share}"
                found.append(Number(f"{title}, {row.shape}", row.gbs, "GB/s", MEASURED, words, row.device))
        return found or self.missing(title)

    def times(self, op: str, impl: str, title: str, shape_has: str = "") -> list[Number]:
        """µs a call; without `impl` those of every form, named."""
        found = [
            Number(f"{title}, {row.shape}", row.us, "µs", MEASURED, f"{row.impl}, median", row.device)
            for row in self.rows
            if row.op == op and impl in ("", row.impl) and row.us and shape_has in row.shape
        ]
        return found or self.missing(title)


def in_words(numbers: Sequence[Number], title: str) -> str:
    """The measured ratios of that title for a verdict, with the device; or that a GPU has to tell."""
    found = [n for n in numbers if n.mark == MEASURED and n.unit == "×" and n.name.startswith(f"{title},")]
    if not found:
        return "how much, a GPU has to tell"
    values = [float(n.value or 0) for n in found]
    low, high = min(values), max(values)
    span = f"{low:.2f}×" if len(values) == 1 else f"{low:.2f} to {high:.2f}×"
    slower = ", so it is slower" if high < 1 else ", so at some shapes it is slower" if low < 1 else ""
    return f"{title}: {span} on {', '.join(dict.fromkeys(n.on for n in found))}{slower}"
