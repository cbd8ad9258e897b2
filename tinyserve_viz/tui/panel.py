"""What all panels are: widgets that draw the lines of one immutable `View` and keep nothing but a cache of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual import events as ui
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from tinyserve_viz.analysis.frame import Frame
from tinyserve_viz.analysis.history import History
from tinyserve_viz.tui.look import to_ascii

_CONSOLE = Console(color_system="truecolor", force_terminal=True, width=400)  # only turns Text into Segments


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A frame and how it is looked at. `cursor` is a block, −1 for none; `mode` names the colouring of the map."""

    frame: Frame
    history: History
    cursor: int = -1
    mode: str = "owner"
    zoomed: bool = False
    playing: bool = False
    speed: str = ""
    replaying: bool = False
    ascii: bool = False
    notice: str = ""
    breaks: tuple[str, ...] = ()  # breakpoints in words


def _segments(text: Text) -> list[Segment]:
    """The pieces of a line. Lines are appended piece by piece, so their spans stand in order and need no sorting."""
    if text.style:
        return list(text.render(_CONSOLE))
    plain, found, at = text.plain, [], 0
    for start, end, style in text.spans:
        if start < at or not isinstance(style, Style):
            return list(text.render(_CONSOLE))
        if start > at:
            found.append(Segment(plain[at:start]))
        if end > start:
            found.append(Segment(plain[start:end], style))
        at = max(at, end)
    if at < len(plain):
        found.append(Segment(plain[at:]))
    return found


class BlockChosen(Message):
    """The user pointed at `block`."""

    def __init__(self, block: int) -> None:
        self.block = block
        super().__init__()


class SequenceChosen(Message):
    """The user pointed at `seq`."""

    def __init__(self, seq: int) -> None:
        self.seq = seq
        super().__init__()


class PositionChosen(Message):
    """The user pointed at a place of the timeline."""

    def __init__(self, position: int) -> None:
        self.position = position
        super().__init__()


class PanelChosen(Message):
    """The user pointed into the panel called `name`."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__()


class Panel(Widget):
    """Base of all panels. A panel says what its lines are; `show` gives it something new to draw."""

    NAME: ClassVar[str] = ""  # key of the panel in layouts
    TITLE: ClassVar[str] = ""
    BORDERED: ClassVar[bool] = True

    can_focus = False
    view: View | None = None
    _lines: list[Text] | None = None
    _drawn_for: tuple[int, int] = (0, 0)

    def on_click(self, event: ui.Click) -> None:  # noqa: ARG002 - panels look at it
        """A click makes a panel the active one; what else it means the panels say in theirs, which run before this."""
        if self.BORDERED:
            self.post_message(PanelChosen(self.NAME))

    def show(self, view: View) -> None:
        """Draw `view` from now on."""
        self.view = view
        self._lines = None
        if self.BORDERED:
            title = self.title(view)
            self.border_title = to_ascii(title) if view.ascii else title
        self.refresh()

    def title(self, view: View) -> str:  # noqa: ARG002 - panels say more
        """The words in the border."""
        return self.TITLE

    def lines(self, view: View, width: int, height: int) -> list[Text]:
        """What to draw in `height` lines of `width` places."""
        raise NotImplementedError

    def render_line(self, y: int) -> Strip:
        """The Line API of Textual: one line, ready."""
        width, height = self.size
        if self.view is None or width <= 0:
            return Strip.blank(width)
        if self._lines is None or self._drawn_for != (width, height):
            self._lines = self.lines(self.view, width, height)
            self._drawn_for = (width, height)
        if y >= len(self._lines):
            return Strip.blank(width, self.rich_style)
        segments = _segments(self._lines[y])
        if self.view.ascii:
            segments = [Segment(to_ascii(segment.text), segment.style) for segment in segments]
        return Strip(segments).adjust_cell_length(width).apply_style(self.rich_style)

    def plain(self, view: View, width: int, height: int) -> list[str]:
        """The lines as plain text, for tests and for the reader of a test's failure."""
        lines = [text.plain for text in self.lines(view, width, height)]
        return [to_ascii(text) for text in lines] if view.ascii else lines


def with_view(view: View, **changes: object) -> View:
    """`view` with some fields changed."""
    return replace(view, **changes)  # type: ignore[arg-type]
