"""What opens over the panels: help, the inspection of a block, and the line in which a place or a name is typed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from tinyserve_viz.tui import look


class TextScreen(ModalScreen[None]):
    """Lines of text in a box; any of the closing keys, or a click beside it, closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape,q,enter,question_mark,f1", "dismiss_none", "close"),
        ("j", "scroll(1)", "down"),
        ("k", "scroll(-1)", "up"),
    ]
    CSS = """
    TextScreen { align: center middle; }
    TextScreen > VerticalScroll {
        width: 84; max-width: 96%; height: auto; max-height: 90%; padding: 0 1;
        border: round #5f87af; background: #1c1c1c;
    }
    TextScreen.plain-ascii > VerticalScroll { border: ascii #5f87af; }
    """

    def __init__(self, title: str, rows: Sequence[Text], ascii_only: bool, width: int = 84) -> None:
        super().__init__()
        self.heading, self.rows, self.ascii_only, self.width = title, list(rows), ascii_only, width
        self.set_class(ascii_only, "plain-ascii")

    def compose(self) -> ComposeResult:
        """The box and its text."""
        with VerticalScroll() as box:
            box.styles.width = self.width
            text = Text("\n").join(self.rows)
            if self.ascii_only:
                text = Text(look.to_ascii(text.plain))
            yield Static(text, markup=False)
        box.border_title = look.to_ascii(self.heading) if self.ascii_only else self.heading
        box.border_subtitle = "escape closes"

    def action_dismiss_none(self) -> None:
        """Close."""
        self.dismiss(None)

    def action_scroll(self, lines: int) -> None:
        """Scroll by so many lines."""
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)


class Prompt(ModalScreen[str | None]):
    """One line at the bottom of the screen; returns what was typed, or None."""

    AUTO_FOCUS = "Input"
    BINDINGS: ClassVar[list[BindingType]] = [("escape", "give_up", "close")]
    CSS = """
    Prompt { align: left bottom; background: transparent; }
    Prompt > Input { width: 100%; height: 1; border: none; padding: 0 1; background: #303030; }
    """

    def __init__(self, hint: str, text: str = "") -> None:
        super().__init__()
        self.hint, self.text = hint, text

    def compose(self) -> ComposeResult:
        """The input, with a text to be changed; its cursor does not blink."""
        line = Input(self.text, placeholder=self.hint, select_on_focus=False)
        line.cursor_blink = False
        yield line

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Return the line."""
        self.dismiss(event.value.strip())

    def action_give_up(self) -> None:
        """Return nothing."""
        self.dismiss(None)
