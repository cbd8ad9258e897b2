"""The kernels of this step with their times, and the time of all kernels over the last steps."""

from __future__ import annotations

from collections.abc import Sequence

import plotext
from rich.text import Text

from tinyserve_viz.analysis.sentences import duration
from tinyserve_viz.tui import look
from tinyserve_viz.tui.panel import Panel, View

_PLOT_STEPS = 120
_PLOT_WIDTH, _PLOT_HEIGHT = 36, 7  # the least that plotext draws legibly


class Kernels(Panel):
    """A row a kernel, the longest first; a plot or a line of bars beside or below says how it was before."""

    NAME = "kernels"
    TITLE = "6 kernels"

    def title(self, view: View) -> str:
        frame = view.frame
        if not frame.kernel_title:
            return "6 kernels"
        wall = ", wall time" if frame.kernel_title == "NumPy reference" else ""
        return f"6 kernels of step {frame.kernel_step} · {frame.kernel_title}{wall}"

    def lines(self, view: View, width: int, height: int) -> list[Text]:
        frame = view.frame
        if not frame.kernels:
            ran = view.frame.header.origin.get("kernels_run", "none") != "none"
            why = "no kernel has run yet" if ran else "this replay ran no kernels: blocks are counted, no K and V kept"
            return [look.line((text, look.DIM)) for text in look.wrap(why, width)]
        past = view.history.steps_before(frame.kernel_step + 1, _PLOT_STEPS)
        times = view.history.kernel_us[past]
        beside = width >= 64 + _PLOT_WIDTH and height >= _PLOT_HEIGHT and len(times) > 1
        table = self._table(view, width - (_PLOT_WIDTH + 2 if beside else 0), height - (not beside and height > 4))
        if beside:
            plot_width = min(width - 66, 80)
            plot = plotted(times, past.start, plot_width, height)
            table += [look.line()] * (len(plot) - len(table))
            for text, drawn in zip(table, plot, strict=False):
                text.append(" " * max(1, width - plot_width - text.cell_len))
                text.append(drawn, look.DIM)
        elif height > 4 and times:
            label = f"all kernels, last {len(times[-(width - 30) :])} steps "
            table.append(look.line((label, look.DIM), (look.sparkline(times[-(width - 30) :]), look.WARN)))
        return table[:height]

    def _table(self, view: View, width: int, height: int) -> list[Text]:
        rows = view.frame.kernels
        bars = 8 if width >= 72 else 0
        name_width = max(16, min(32, width - 34 - bars))
        found = [look.line((f"{'kernel':<{name_width}} {'calls':>5} {'total':>8} {'share':>6} {'MiB':>6}", look.DIM))]
        room = height - 1
        shown = rows if len(rows) <= room else rows[: max(0, room - 1)]
        for row in shown:
            text = look.line(
                f"{look.clip(row.name, name_width):<{name_width}} {row.calls:>5} {duration(row.total_us):>8} ",
                f"{100 * row.share:>4.0f} % {row.num_bytes / 2**20:>6.2f}",
            )
            if bars:
                text.append(" ")
                text.append(look.bar(row.share, bars), look.WARN)
            found.append(text)
        if len(rows) > len(shown):
            rest = sum(row.total_us for row in rows[len(shown) :])
            found.append(look.line((f"and {len(rows) - len(shown)} more, {duration(rest)} together", look.DIM)))
        return found


def plotted(times_us: Sequence[float], first_step: int, width: int, height: int) -> list[str]:
    """A line plot of the time of all kernels a step, by plotext, without colours."""
    figure = plotext.figure
    figure.clear()
    figure.theme("clear")
    figure.plot_size(width, height)
    figure.title("all kernels, ms a step")
    steps = list(range(first_step, first_step + len(times_us)))
    signal = figure.signal(steps, [time / 1e3 for time in times_us], marker="braille")
    signal.lines()
    figure.draw(signal)
    return [text.rstrip() for text in plotext.uncolorize(str(figure.build())).splitlines()]
