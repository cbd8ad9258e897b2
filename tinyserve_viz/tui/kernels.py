"""The kernels of this step with their times, and the time of all kernels over the last steps."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from tinyserve_viz.analysis.sentences import duration
from tinyserve_viz.tui import look
from tinyserve_viz.tui.panel import Panel, View
from tinyserve_viz.tui.plot import plotted

_PLOT_STEPS = 120
_PLOT_WIDTH, _PLOT_HEIGHT = 36, 7  # the least that is worth a plot
_TABLE_WIDTH = 76


class Kernels(Panel):
    """A row a kernel, the longest first; a plot or a line of bars beside or below says how it was before."""

    NAME = "kernels"
    TITLE = "6 kernels"

    def title(self, view: View) -> str:
        frame = view.frame
        if not frame.kernel_title:
            return "6 kernels"
        measured = frame.kernel_title == "measured"
        wall = f" on {frame.header.origin['device']}" if measured else ", wall time"
        return f"6 kernels of step {frame.kernel_step} · {frame.kernel_title}{wall}"

    def lines(self, view: View, width: int, height: int) -> list[Text]:
        frame = view.frame
        if not frame.kernels:
            if frame.stream is not None:
                why = "a KV-event stream: no kernels, no K and V, no times but those of the server's clock"
            elif frame.header.origin.get("kernels_run", "none") != "none":
                why = "no kernel has run yet"
            else:
                why = "this replay ran no kernels: blocks are counted, no K and V kept"
            return [look.line((text, look.DIM)) for text in look.wrap(why, width)]
        past = view.history.steps_before(frame.kernel_step + 1, _PLOT_STEPS)
        times = view.history.kernel_us[past]
        lines_of_table = len(frame.kernels) + 1
        if height >= lines_of_table + _PLOT_HEIGHT and len(times) > 1:
            plot = _history(times, past.start, width, min(16, height - lines_of_table))
            return [*self._table(view, width, lines_of_table), *plot]
        if height >= _PLOT_HEIGHT and width >= _TABLE_WIDTH + _PLOT_WIDTH and len(times) > 1:
            table = self._table(view, _TABLE_WIDTH, height)
            plot = _history(times, past.start, width - _TABLE_WIDTH - 2, height)
            table += [look.line()] * (len(plot) - len(table))
            for text, drawn in zip(table, plot, strict=False):
                text.append(" " * (_TABLE_WIDTH + 2 - text.cell_len))
                text.append_text(drawn)
            return table
        table = self._table(view, width, height - (height > 4))
        if height > 4 and times:
            spent = f"all kernels {duration(sum(row.total_us for row in frame.kernels))}"
            spent += f", host {duration(frame.host_us)}" if frame.host_us else ""
            recent = times[-max(1, width - len(spent) - 17) :]
            words = f"{spent}; last {len(recent)} steps "
            table.append(look.line((words, look.DIM), (look.sparkline(recent), look.WARN)))
        return table

    def _table(self, view: View, width: int, height: int) -> list[Text]:
        rows = view.frame.kernels
        measured = any(row.gb_per_s is not None for row in rows)
        bars = 8 if width >= 72 and not measured else 0
        name_width = max(16, min(32, width - 34 - (bars or 16 * measured)))
        head = f"{'kernel':<{name_width}} {'calls':>5} {'total':>8} {'share':>6} {'MiB':>6}"
        found = [look.line((f"{head} {'GB/s':>7} {'of copy':>7}" if measured else head, look.DIM))]
        room = height - 1
        shown = rows if len(rows) <= room else rows[: max(0, room - 1)]
        for row in shown:
            text = look.line(
                f"{look.clip(row.name, name_width):<{name_width}} {row.calls:>5} "
                f"{'~' * row.coarse + duration(row.total_us):>8} ",
                f"{100 * row.share:>4.0f} % {row.num_bytes / 2**20:>6.2f}",
            )
            if measured:
                rate = "–" if row.gb_per_s is None else f"{'~' * row.coarse}{row.gb_per_s:,.0f}"
                share = "–" if row.of_copy is None else f"{100 * row.of_copy:.0f} %"
                text.append(f" {rate:>7} {share:>7}", look.DIM if row.coarse else look.PLAIN)
            if bars:
                text.append(" ")
                text.append(look.bar(row.share, bars), look.WARN)
            found.append(text)
        if len(rows) > len(shown):
            rest = sum(row.total_us for row in rows[len(shown) :])
            found.append(look.line((f"and {len(rows) - len(shown)} more, {duration(rest)} together", look.DIM)))
        return found


def _history(times_us: Sequence[float], first_step: int, width: int, height: int) -> list[Text]:
    """A plot of the time of all kernels over the last steps, under a line that says so."""
    milliseconds = [time / 1e3 for time in times_us]
    steps = [float(first_step + place) for place in range(len(milliseconds))]
    ends = (first_step, first_step + len(milliseconds) - 1)
    head = look.line(("● ", look.WARN), f"all kernels, ms a step, last {len(steps)}")
    head.truncate(width)
    plot = plotted((steps, milliseconds), ends, max(milliseconds), width, height - 1, style=look.WARN)
    return [head, *plot]
