"""The whole recording on one line: where we are, and where something notable happened."""

from __future__ import annotations

from rich.text import Text
from textual import events as ui

from tinyserve_viz.analysis.history import MARK_WORDS, strip_of_marks
from tinyserve_viz.tui import look
from tinyserve_viz.tui.panel import Panel, PositionChosen, View


class TimelineStrip(Panel):
    """Marks over a line, the position on it, and the words for the marks."""

    NAME = "strip"
    BORDERED = False

    def lines(self, view: View, width: int, height: int) -> list[Text]:
        frame = view.frame
        room = max(8, width - 2)
        marks = strip_of_marks(view.history.marks, frame.num_events, room)
        at = min(room - 1, frame.position * room // max(1, frame.num_events))
        text = look.line((" ", look.PLAIN))
        for place, mark in enumerate(marks):
            if place == at:
                text.append("●", look.KEY)
            elif mark == " ":
                text.append("─", look.FAINT)
            else:
                text.append(mark, look.MARK_STYLES[mark])
        words = "  ".join(f"{mark} {word}" for mark, word in MARK_WORDS.items())
        keys = "space play  n/p event  N/P step  : go to  ? help  q quit"
        second = look.line((look.clip(f" {keys}  │  {words}", width), look.DIM))
        return [text, second][:height]

    def on_click(self, event: ui.Click) -> None:
        """Go where the mouse points."""
        if self.view is not None:
            room = max(8, self.size.width - 2)
            self.post_message(PositionChosen(max(0, event.x - 1) * self.view.frame.num_events // room))
