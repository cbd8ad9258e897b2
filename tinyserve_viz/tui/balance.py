"""Who attends over how much in the last step: one worker a sequence, and the even shares of the work list."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from tinyserve_viz.analysis.inspection import Shares
from tinyserve_viz.tui import look
from tinyserve_viz.tui.panel import Panel, View

_GAP = 3


class BalancePanel(Panel):
    """Two charts on one scale, a column a worker: before balancing (a sequence each) and after it."""

    NAME = "balance"
    TITLE = "9 balance"

    def title(self, view: View) -> str:
        work = view.frame.work
        if work is None:
            return self.TITLE
        return f"9 balance of step {work.step:,} · tokens that each worker attends over"

    def lines(self, view: View, width: int, height: int) -> list[Text]:
        work = view.frame.work
        if work is None:
            ran = view.frame.header.origin.get("kernels_run", "none") != "none"
            why = "no sequence decoded in the last step" if ran else "no kernels ran here: there was no work to share"
            return [look.line((text, look.DIM)) for text in look.wrap(why, width)]
        styles = [look.owner_style(seq) for seq in work.seqs.tolist()]
        letters = "".join(look.owner_letter(seq) for seq in work.seqs.tolist())
        if height >= 15:
            half = height // 2
            kept = _pair("over the blocks read", work.kept, styles, letters, width, half)
            return [*kept, *_pair("over all blocks", work.dense, styles, letters, width, height - half)]
        return _pair("over the blocks read", work.kept, styles, letters, width, height)


def _pair(what: str, shares: Shares, styles: list[look.Style], letters: str, width: int, height: int) -> list[Text]:
    """Before and after side by side under a line that compares them."""
    number = len(shares.after)
    after_width = max(10, min((width - _GAP) * 2 // 3, 2 * number))
    before_width = width - _GAP - after_width
    top = int(max(shares.before.max(initial=0), shares.after.max(initial=0), 1))
    head = look.line(
        (f"{what}: ", look.DIM),
        f"longest {int(shares.before.max(initial=0)):,}",
        (" → ", look.FAINT),
        (f"{int(shares.after.max(initial=0)):,} tokens", look.BOLD),
        (f", {shares.imbalance_before / 1000:.2f} → {shares.imbalance_after / 1000:.2f} times the mean", look.DIM),
    )
    head.truncate(width, overflow="ellipsis")
    bars = max(1, height - 2)
    before = _columns(shares.before, styles, top, before_width, bars)
    after = _columns(shares.after, [look.GOOD], top, after_width, bars)
    found = [head]
    for left, right in zip(before, after, strict=True):
        left.append(" " * (before_width + _GAP - left.cell_len))
        left.append_text(right)
        found.append(left)
    each = max(1, min(2, before_width // max(1, len(letters))))
    names = "".join(f"{letter:<{each}}" for letter in letters)
    names = f"{names} a worker each" if len(names) + 15 <= before_width else f"{len(letters)}, a worker each"
    foot = look.line((look.clip(names, before_width), look.DIM))
    foot.append(" " * (before_width + _GAP - foot.cell_len))
    foot.append(look.clip(f"{number} workers, even shares", after_width), look.DIM)
    found.append(foot)
    return found[:height]


def _columns(values: NDArray[np.int64], styles: list[look.Style], top: int, width: int, height: int) -> list[Text]:
    """A column a value, 1 or 2 places wide, from the bottom up; where there are more values than places, the highest
    of neighbours."""
    run = -(-len(values) // width) if len(values) else 1
    if run > 1:
        values = np.maximum.reduceat(values, np.arange(0, len(values), run))
        styles = styles[::run]
    each = max(1, min(2, width // max(1, len(values))))
    eighths = np.ceil(values * (8 * height) / top).astype(int).tolist()
    rows = [look.line() for _ in range(height)]
    for place, filled in enumerate(eighths):
        style = styles[place % len(styles)] if styles else look.GOOD
        for row in range(height):
            part = max(0, min(8, filled - 8 * (height - 1 - row)))
            sign = look.LEVELS[part - 1] if part else " "
            rows[row].append(sign + " " * (each - 1), style)
    return rows
