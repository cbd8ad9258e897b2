"""The block table of the chosen sequence: which physical block holds each of its logical blocks, and why."""

from __future__ import annotations

from rich.text import Text
from textual import events as ui

from tinyserve_viz.analysis.frame import Table, TableRow
from tinyserve_viz.tui import look
from tinyserve_viz.tui.panel import BlockChosen, Panel, View
from tinyserve_viz.tui.stream import chain_lines


class BlockTable(Panel):
    """Logical to physical, references, tokens, content id, what the prefix cache said, whether selection reads it."""

    NAME = "table"
    TITLE = "4 block table"
    _shown: tuple[int, ...] = ()

    def title(self, view: View) -> str:
        stream = view.frame.stream
        if stream is not None:
            number = view.frame.looked_at
            return f"4 prefix that ends in our number {number}" if stream.chain else "4 prefix"
        return f"4 block table · {view.frame.chosen_line}"

    def lines(self, view: View, width: int, height: int) -> list[Text]:
        frame = view.frame
        table = frame.table
        self._shown = ()
        if frame.stream is not None:
            return chain_lines(frame.stream.chain, width, height)
        if not len(table):
            return [look.line((frame.chosen_line, look.DIM))]
        found = []
        chosen = frame.selection
        if chosen is not None and height > 4:
            text = f"{chosen.policy} reads none of these blocks in step {chosen.step:,}"
            if chosen.at >= 0:
                choice = chosen.choice(chosen.at)
                text = f"{chosen.policy} reads {choice.kept} of {choice.num_blocks} blocks"
                if choice.retained is not None:
                    text += f", {choice.retained[0]:.2f} of the attention"
            found.append(look.line((look.clip(text, width), look.DIM)))
        columns = _columns(table, width)
        head = " ".join(f"{name:<{size}}" if name == "prefix" else f"{name:>{size}}" for name, size in columns)
        found.append(look.line((look.clip(head, width), look.DIM)))
        self._shown = shown_rows(table, height - len(found), table.logical_of(view.cursor) if view.cursor >= 0 else -1)
        self._top = len(found)
        top = float(table.scores.score.max()) if table.scores is not None else 0.0
        for logical in self._shown:
            if logical < 0:
                hidden = len(table) - len(self._shown) + 1
                found.append(look.line((f"      … {hidden:,} more", look.DIM)))
            else:
                marked = int(table.physical[logical]) == view.cursor
                found.append(_row(table.row(logical), frame.block_size, marked, columns, top))
        return found

    _top = 1

    def on_click(self, event: ui.Click) -> None:
        """Choose the block of the row under the mouse."""
        place = event.get_content_offset(self)
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


# name, places, how dear: what is wanted least is left out first where there is no room for all
_COLUMNS = (
    ("logical", 7, 0), ("physical", 8, 0), ("ref", 3, 0), ("tokens", 9, 0), ("content", 7, 5), ("prefix", 9, 1),
    ("score", 7, 4), ("mass", 5, 3), ("read", 4, 2),
)  # fmt: skip


def _columns(table: Table, width: int) -> list[tuple[str, int]]:
    """Names and places of the columns that fit and have something to show."""
    absent = {"read"} if table.kept is None else set()
    absent |= {"score", "mass"} if table.scores is None else set()
    shown = [column for column in _COLUMNS if column[0] not in absent]
    while sum(places + 1 for _, places, _ in shown) - 1 > width:
        least = max(shown, key=lambda column: column[2])
        if not least[2]:
            break
        shown.remove(least)
    return [(name, places) for name, places, _ in shown]


def _row(row: TableRow, size: int, chosen: bool, columns: list[tuple[str, int]], top: float) -> Text:
    """One line; `top` is the highest score, up to which the bars go."""
    full = look.GOOD if row.fill >= size else look.WARN
    mass = "–" if row.mass is None else f"{row.mass:.3f}"
    cells: dict[str, tuple[tuple[str, look.Style], ...]] = {
        "logical": (("▸" if chosen else " ", look.KEY), (f"{row.logical:>6}", look.PLAIN)),
        "physical": ((f"{row.physical:>8}", look.BOLD),),
        "ref": ((f"{row.ref:>3}", look.WARN if row.ref > 1 else look.PLAIN),),
        "tokens": ((look.level(row.fill, size), full), (f"{f'{row.fill}/{size}':>8}", look.PLAIN)),
        "content": ((f"{f'#{row.content}' if row.content >= 0 else '–':>7}", look.DIM),),
        "prefix": ((f"{row.cause:<9}", look.GOOD if row.cause == "hit" else look.DIM),),
        "score": _score(row.score, top),
        "mass": ((f"{mass:>5}", look.PLAIN if row.mass is None or row.mass < _HEAVY else look.WARN),),
        "read": (_READ[row.kept],),
    }
    text = look.line()
    for place, (name, _) in enumerate(columns):
        text.append_text(look.line(" " if place else "", *cells[name]))
    return text


_READ = {True: ("   ■", look.GOOD), False: ("   □", look.FAINT), None: ("   –", look.FAINT)}
_HEAVY = 0.1  # a block with a tenth of the attention stands out


def _score(score: float | None, top: float) -> tuple[tuple[str, look.Style], ...]:
    if score is None:
        return ((f"{'–':>7}", look.DIM),)
    return (look.level(max(0.0, score), top), look.GOOD), (f"{score:>6.1f}", look.PLAIN)
