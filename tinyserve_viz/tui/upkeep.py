"""What keeps the cache in order: protection levels and the hot region at the left, compaction at the right."""

from __future__ import annotations

from rich.text import Text

from tinyserve_viz.analysis.closeups import NUM_LEVELS, Levels
from tinyserve_viz.tui import look
from tinyserve_viz.tui.panel import Panel, View

_GAP = 3


class UpkeepPanel(Panel):
    """Levels of the blocks, this window's counts, and what a compaction would do now."""

    NAME = "upkeep"
    TITLE = "0 upkeep"

    def title(self, view: View) -> str:
        blocks = view.frame.num_blocks
        return f"0 upkeep · protection levels of {blocks:,} blocks"

    def lines(self, view: View, width: int, height: int) -> list[Text]:
        levels = view.frame.levels
        if levels is None:
            return [look.line(("levels are not known here", look.DIM))]
        return _levels(levels, width)[:height]


def _levels(levels: Levels, width: int) -> list[Text]:
    most = max(1, *levels.spread)
    room = max(4, min(24, width - 26))
    found = [look.line((look.clip("level   blocks in use or cached; 4 is best protected", width), look.DIM))]
    for level in reversed(range(NUM_LEVELS)):
        number = levels.spread[level]
        bar = look.bar(number / most, room)
        found.append(look.line(f"{level:>5} {number:>8,} ", (bar, look.ramp_text(level / (NUM_LEVELS - 1)))))
    rate = f"{100 * levels.hits / levels.lookups:.0f} % hits of {levels.lookups:,} lookups" if levels.lookups else ""
    window = f"window: step {levels.done} of {levels.window}, {rate or 'no lookups'}, {levels.accesses:,} accesses"
    found.append(look.line((look.clip(window, width), look.DIM)))
    return found
