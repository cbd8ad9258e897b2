"""The sequences that are alive: what each does, how far it is, and how many blocks it holds and shares."""

from __future__ import annotations

from rich.text import Text
from textual import events as ui

from tinyserve_viz.analysis.frame import SeqRow
from tinyserve_viz.tui import look
from tinyserve_viz.tui.panel import Panel, SequenceChosen, View
from tinyserve_viz.tui.stream import told_lines

_PHASE_STYLES = {"prefill": look.WARN, "decode": look.GOOD, "preempted": look.BAD}


class Sequences(Panel):
    """One row a sequence; the arrow marks the one whose block table is shown."""

    NAME = "sequences"
    TITLE = "3 sequences"
    _first, _shown = 0, 0

    def title(self, view: View) -> str:
        if view.frame.stream is not None:
            return "3 sequences · unknown"
        rows = view.frame.sequences
        running = sum(row.status == "running" for row in rows)
        return f"3 sequences · {running} running, {view.frame.num_waiting} waiting"

    def lines(self, view: View, width: int, height: int) -> list[Text]:
        if view.frame.stream is not None:
            return told_lines(view.frame.stream, width)
        rows = view.frame.sequences
        if not rows:
            return [look.line(("no sequence is alive", look.DIM))]
        tokens_width = max(6, *(len(_tokens(row)) for row in rows))
        longest = max(len(row.name) for row in rows)
        name_width = max(4, min(longest, width - tokens_width - 36))
        head = f"   {'name':<{name_width}} {'does':<9} {'tokens':>{tokens_width}} blocks shared hit %"
        if width >= len(head) + 8:
            head += "  done"
        chosen = next((i for i, row in enumerate(rows) if row.seq == view.frame.chosen), 0)
        room = height - 1 - (len(rows) > height - 1)
        self._first = 0 if len(rows) <= room else max(0, min(chosen - room // 2, len(rows) - room))
        self._shown = min(room, len(rows))
        found = [look.line((look.clip(head, width), look.DIM))]
        found += [
            _row(row, name_width, tokens_width, width, row.seq == view.frame.chosen)
            for row in rows[self._first : self._first + room]
        ]
        if len(rows) > room:
            found.append(look.line((f"   … {len(rows) - room:,} more; w next, W previous", look.DIM)))
        return found

    def on_click(self, event: ui.Click) -> None:
        """Choose the sequence under the mouse."""
        place = event.get_content_offset(self)
        if self.view is not None and place is not None:
            index = self._first + place.y - 1
            if 1 <= place.y <= self._shown and index < len(self.view.frame.sequences):
                self.post_message(SequenceChosen(self.view.frame.sequences[index].seq))


def _tokens(row: SeqRow) -> str:
    return f"{row.context:,}/{row.total:,}"


def _row(row: SeqRow, name_width: int, tokens_width: int, width: int, chosen: bool) -> Text:
    hit = f"{100 * row.hit_tokens / row.prompt_len:.0f}" if row.hit_tokens and row.prompt_len else "–"
    holds = row.num_blocks > 0
    text = look.line(
        ("▸" if chosen else " ", look.KEY),
        (look.owner_letter(row.seq) if holds else " ", look.owner_style(row.seq)),
        " ",
        (f"{look.clip(row.name, name_width):<{name_width}} ", look.BOLD if chosen else look.PLAIN),
        (f"{row.phase:<9} ", _PHASE_STYLES.get(row.phase, look.DIM)),
        f"{_tokens(row):>{tokens_width}} {row.num_blocks if holds else '–':>6} {row.shared or '–':>6} {hit:>5}",
    )
    room = width - text.cell_len - 2
    if room >= 6 and row.total:
        text.append("  ")
        text.append(
            look.bar(row.context / row.total, min(20, room)), look.owner_style(row.seq) if holds else look.FAINT
        )
    return text
