"""How much of the pool is used, cached and free, and how much of it is lost to fragmentation."""

from __future__ import annotations

from rich.style import Style
from rich.text import Text

from tinyserve_viz.tui import look
from tinyserve_viz.tui.panel import Panel, View
from tinyserve_viz.tui.stream import occupancy_lines


class Memory(Panel):
    """Blocks by state, internal and external fragmentation, and both over the last steps."""

    NAME = "memory"
    TITLE = "5 memory"

    def title(self, view: View) -> str:
        frame = view.frame
        if frame.stream is not None:
            return f"5 memory · {frame.memory.cached:,} blocks cached"
        return f"5 memory · {frame.memory.free:,} of {frame.num_blocks:,} blocks free"

    def lines(self, view: View, width: int, height: int) -> list[Text]:
        frame, memory = view.frame, view.frame.memory
        if frame.stream is not None:
            return occupancy_lines(view, frame.stream, width, height)
        total = frame.num_blocks
        room = max(4, min(30, width - 24))

        def share(name: str, number: int, style: Style) -> Text:
            part = f"{100 * number / total:.0f} %"
            return look.line(f"{name:<7}{number:>7,} ", (look.bar(number / total, room), style), f" {part:>5}")

        slots = memory.used * frame.block_size
        available = memory.free + memory.cached
        found = [
            share("used", memory.used, look.GOOD),
            share("cached", memory.cached, look.WARN),
            share("free", memory.free, look.DIM),
            look.line(
                "internal ", (look.percent(memory.internal), look.BOLD),
                look.clip(f" {slots - memory.resident_tokens:,} of {slots:,} slots empty", width - 16),
            ),
            look.line(
                "external ", (look.percent(memory.external), look.BOLD),
                (look.clip(f" longest run {memory.longest_free_run:,} of {available:,}", width - 16), look.DIM),
            ),
        ]  # fmt: skip
        history = view.history
        past = history.steps_before(frame.step + 1 if frame.said else 0, max(1, width - 20))
        used = history.used[past]
        if used:
            waste = history.waste[past]
            found.append(look.line("used  ", (look.sparkline(used, total), look.GOOD), f" {len(used)} steps"))
            found.append(look.line("waste ", (look.sparkline(waste), look.WARN), f" ≤ {look.percent(max(waste))}"))
        return found[:height]
