"""Numbers that a GPU took: read from a bench file, of this machine or another; without one, why there is none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tinyserve_viz.analysis.charts.bench import BenchRow, BenchSource
from tinyserve_viz.analysis.claim import MEASURED, Number, not_measured

HOW = "a GPU times it: tinyserve-viz kernels bench --json > FILE there, then claims --bench FILE"


class Timed:
    """Rows of a bench file, or none."""

    def __init__(self, path: Path | None) -> None:
        source = None if path is None else BenchSource(path)
        self.rows: Sequence[BenchRow] = () if source is None else source.rows
        self.device = "" if source is None else source.file.device
        self.copy = None if source is None else source.file.peaks.get("copy")

    def missing(self, name: str, what: str = "") -> list[Number]:
        """The entry that says why a time is not here."""
        why = HOW if not self.rows else f"{self.device}: the bench file has no such row"
        return [not_measured(name, f"{what}{'; ' if what else ''}{why}")]

    def pairs(self, op: str, base: str, form: str) -> Iterator[tuple[str, float, float | None]]:
        """(shape, base's time / form's time, base's bytes / form's bytes) wherever both were timed."""
        for shape in dict.fromkeys(row.shape for row in self.rows if row.op == op):
            at = {row.impl: row for row in self.rows if row.op == op and row.shape == shape}
            if base in at and form in at and at[base].us and at[form].us:
                a, b = at[base], at[form]
                yield shape, float(a.us or 0) / float(b.us or 1), a.bytes / b.bytes if a.bytes and b.bytes else None

    def speed_ups(self, op: str, base: str, form: str, title: str) -> list[Number]:
        """One number a shape: how much faster `form` was than `base`, and what the bytes allow."""
        found = []
        for shape, faster, ceiling in self.pairs(op, base, form):
            beyond = ceiling is not None and faster > ceiling
            words = f"time of {base} / time of {form}, same inputs, median of graph replays, cold L2"
            if ceiling is not None:
                words += f"; bytes allow {ceiling:.2f}×" + (": BEYOND it, so not explained by bytes" if beyond else "")
            found.append(Number(f"{title}, {shape}", faster, "×", MEASURED, words, self.device))
        return found or self.missing(title)

    def rates(self, op: str, impl: str, title: str) -> list[Number]:
        """GB/s of useful bytes, and the share of what a copy reached in the same process."""
        found = []
        for row in self.rows:
            if row.op == op and row.impl == impl and row.gbs:
                share = f", {100 * row.gbs / self.copy:.0f} % of a copy" if self.copy else ""
                words = f"useful bytes / time, each input and output byte once{share}"
                found.append(Number(f"{title}, {row.shape}", row.gbs, "GB/s", MEASURED, words, self.device))
        return found or self.missing(title)

    def times(self, op: str, impl: str, title: str, shape_has: str = "") -> list[Number]:
        """µs a call; without `impl` those of every form, named."""
        found = [
            Number(f"{title}, {row.shape}", float(row.us), "µs", MEASURED, f"{row.impl}, median", self.device)
            for row in self.rows
            if row.op == op and impl in ("", row.impl) and row.us and shape_has in row.shape
        ]
        return found or self.missing(title)


