"""The block table of the chosen sequence: which physical block holds each of its logical blocks, and why."""

from __future__ import annotations

from rich.text import Text
from textual import events as ui

from tinyserve_viz.analysis.frame import Table, TableRow
from tinyserve_viz.tui import look
from tinyserve_viz.tui.panel import BlockChosen, Panel, PanelChosen, View


class BlockTable(Panel):
    """Logical to physical, references, tokens, content id, what the prefix cache said, whether selection reads it."""

    NAME = "table"
    TITLE = "4 block table"
    _shown: tuple[int, ...] = ()

    def title(self, view: View) -> str:
        return f"4 block table · {view.frame.chosen_line}"

    def lines(self, view: View, width: int, height: int) -> list[Text]:
        frame = view.frame
        table = frame.table
        self._shown = ()
        if not len(table):
            return [look.line((frame.chosen_line, look.DIM))]
        found = []
        chosen = frame.selection
        if chosen is not None and height > 4:
            text = f"{chosen.policy} reads {len(chosen.kept)} of {len(table)} blocks"
            if chosen.retained is not None:
                text += f", {chosen.retained[0]:.2f} of the attention"
            found.append(look.line((look.clip(text, width), look.DIM)))
        head = "logical physical ref  tokens content prefix   "
        found.append(look.line((look.clip(head + (" read" if chosen is not None else ""), width), look.DIM)))
        self._shown = shown_rows(table, height - len(found), table.logical_of(view.cursor) if view.cursor >= 0 else -1)
        self._top = len(found)
        for logical in self._shown:
            if logical < 0:
                hidden = len(table) - len(self._shown) + 1
                found.append(look.line((f"      … {hidden:,} more", look.DIM)))
            else:
                found.append(_row(table.row(logical), frame.block_size, table.physical[logical] == view.cursor))
        return found

    _top = 1

    def on_click(self, event: ui.Click) -> None:
        """Choose the block of the row under the mouse."""
        place = event.get_content_offset(self)
        self.post_message(PanelChosen(self.NAME))
        if self.view is not None and place is not None:
            index = place.y - self._top
            if 0 <= index < len(self._shown) and self._shown[index] >= 0:
                self.post_message(BlockChosen(int(self.view.frame.table.physical[self._shown[index]])))


def shown_rows(table: Table, room: int, around: int) -> tuple[int, ...]:
    """Logical blocks for `room` lines: all, those around one, or head and tail with −1 for what is left out."""
    total = len(table)
    if total <= room:
        return tuple(range(total))
    if around >= 0:
        first = max(0, min(around - room // 2, total - room))
        return tuple(range(first, first + room))
    head = max(0, (room - 1) // 2)
    tail = max(0, room - 1 - head)
    return (*range(head), -1, *range(total - tail, total))


def _row(row: TableRow, size: int, chosen: bool) -> Text:
    shared = look.WARN if row.ref > 1 else look.PLAIN
    style = look.GOOD if row.cause == "hit" else look.DIM
    content = f"#{row.content}" if row.content >= 0 else "–"
    text = look.line(
        ("▸" if chosen else " ", look.KEY),
        f"{row.logical:>6} ",
        (f"{row.physical:>8} ", look.BOLD),
        (f"{row.ref:>3} ", shared),
        (look.level(row.fill, size), look.GOOD if row.fill >= size else look.WARN),
        f"{row.fill:>3}/{size:<3}",
        (f"{content:>7} ", look.DIM),
        (f"{row.cause:<9}", style),
    )
    if row.kept is not None:
        text.append("    ■" if row.kept else "    □", look.GOOD if row.kept else look.FAINT)
    return text
