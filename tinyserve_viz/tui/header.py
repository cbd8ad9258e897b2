"""The two lines on top: what is replayed and how, and where we are in it."""

from __future__ import annotations

from rich.text import Text

from tinyserve_viz.tui import look
from tinyserve_viz.tui.panel import Panel, View


class Header(Panel):
    """Trace, allocator, content, backend; step, event, simulated time, free blocks."""

    NAME = "header"
    BORDERED = False

    def lines(self, view: View, width: int, height: int) -> list[Text]:
        frame = view.frame
        origin, engine = frame.header.origin, frame.header.engine
        kernels = origin["kernels_run"]
        ran = "no kernels" if kernels == "none" else f"NumPy reference, content {frame.header.content.describe()}"
        about = (
            f" {origin['trace']['name']}  {origin['profile']}, {engine.allocator}, {engine.eviction}, "
            f"{engine.num_blocks:,} blocks × {engine.block_size} tokens  {ran}"
        )
        state = "▶ PLAYING " + view.speed if view.playing else "‖ PAUSED"
        tail = " replaying…" if view.replaying else "" if frame.complete else " recording incomplete"
        where = (
            f" step {frame.step:,}  event {frame.position:,} of {frame.num_events:,}{tail}  "
            f"t {frame.time_us / 1e6:,.3f} s simulated  "
        )
        free = f"{frame.memory.free:,} blocks free, {frame.memory.cached:,} cached"
        second = look.line((where, look.BOLD), (f"{free}  ", look.GOOD), (state, look.KEY))
        if view.notice:
            second = look.line((f" {look.clip(view.notice, width - 1)}", look.WARN))
        return [look.line((look.clip(about, width), look.DIM)), second][:height]
