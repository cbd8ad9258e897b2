"""How the pool fared over the whole recording, and where in it we are: plots over the steps."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from tinyserve_viz.analysis.sentences import count
from tinyserve_viz.tui import look
from tinyserve_viz.tui.panel import Panel, View
from tinyserve_viz.tui.plot import SMALLEST, plotted, thinned

_ROOM = 40  # places that a plot should have; with more of them another plot stands beside it


Chart = tuple[str, str, Sequence[float], float, look.Style]
"""Name, what it says at the place where we are, its values, the top of its axis (0: the greatest value), its colour."""


class Course(Panel):
    """Blocks used, sequences waiting, slots unfilled: one plot each, side by side as far as there is room."""

    NAME = "history"
    TITLE = "7 history"

    def __init__(self) -> None:
        super().__init__()
        self._thinned: dict[tuple[str, int, int], tuple[list[float], list[float]]] = {}

    def title(self, view: View) -> str:
        steps = len(view.history.ends)
        reading = "" if view.history.num_events >= view.frame.num_events else ", reading on"
        return f"7 history · all {count(steps, 'step' if view.frame.stream is None else 'batch')}{reading}"

    def lines(self, view: View, width: int, height: int) -> list[Text]:
        history, frame = view.history, view.frame
        steps = len(history.ends)
        if steps < 2:
            return [look.line(("the plots begin with the second step", look.DIM))]
        # Position → step: `frame.step` is that of the last event, 0 before the first.
        at = min(frame.step, steps - 1)
        total = frame.num_blocks
        charts: tuple[Chart, ...]
        if frame.stream is not None:
            charts = (
                ("cached", f"{history.cached[at]:,} blocks cached", history.cached, float(total), look.GOOD),
                ("evicted", f"{history.removed[at]:,} blocks evicted", history.removed, 0.0, look.WARN),
                ("stored", f"{history.stored[at]:,} blocks stored", history.stored, 0.0, look.owner_style(0)),
            )
            return self._side_by_side(charts, at, width, height, "batch")
        charts = (
            ("used", f"{history.used[at]:,} of {total:,} blocks used", history.used, float(total), look.GOOD),
            ("waiting", f"{history.waiting[at]:,} sequences waiting", history.waiting, 0.0, look.BAD),
            ("running", f"{history.running[at]:,} sequences running", history.running, 0.0, look.owner_style(0)),
            ("waste", f"{100 * history.waste[at]:.1f} % of the used slots empty", history.waste, 0.0, look.WARN),
        )
        return self._side_by_side(charts, at, width, height, "step")

    def _side_by_side(self, charts: tuple[Chart, ...], at: int, width: int, height: int, step: str) -> list[Text]:
        number = max(1, min(len(charts), (width + 2) // (_ROOM + 2)))
        each = (width - 2 * (number - 1)) // number
        drawn = [self._chart(chart, at, each, height, step) for chart in charts[:number]]
        found = []
        for row in range(height):
            text = look.line()
            for place, chart_lines in enumerate(drawn):
                text.append(" " * (place * (each + 2) - text.cell_len))
                if row < len(chart_lines):
                    text.append_text(chart_lines[row])
            found.append(text)
        return found

    def _chart(self, chart: Chart, at: int, width: int, height: int, step: str) -> list[Text]:
        name, words, values, top, style = chart
        head = look.line(("● ", style), (look.clip(f"{step} {at:,}: {words}", width - 2), look.PLAIN))
        top = top or float(max(values))
        scale, unit = (100.0, " %") if name == "waste" else (1.0, "")
        if width < SMALLEST[0] or height - 1 < SMALLEST[1]:
            past = values[max(0, at - width + 1) : at + 1]
            return [head, look.line((look.sparkline(past, top), style))]
        key = (name, len(values), width)
        points = self._thinned.get(key)
        if points is None:
            if len(self._thinned) > 16:
                self._thinned.clear()
            points = self._thinned[key] = thinned(values, 2 * width)
        ys = [scale * y for y in points[1]] if scale != 1 else points[1]
        ends = (0, len(values) - 1)
        return [head, *plotted((points[0], ys), ends, scale * top, width, height - 1, at, style, unit)]
