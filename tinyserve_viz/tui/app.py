"""The application: keys change the position and the way of looking; panels draw the frame of that position.

The replay, if one runs, runs in a thread of its own and writes the recording that is read here; nothing on this side
waits for it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from textual import events as ui
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from tinyserve_viz.analysis.history import History
from tinyserve_viz.recording.timeline import Timeline
from tinyserve_viz.tui.block_map import BlockMap
from tinyserve_viz.tui.block_table import BlockTable
from tinyserve_viz.tui.header import Header
from tinyserve_viz.tui.kernels import Kernels
from tinyserve_viz.tui.memory import Memory
from tinyserve_viz.tui.panel import BlockChosen, Panel, PanelChosen, PositionChosen, SequenceChosen, View
from tinyserve_viz.tui.player import Player
from tinyserve_viz.tui.sequences import Sequences
from tinyserve_viz.tui.strip import TimelineStrip
from tinyserve_viz.tui.why import Why

PANELS: tuple[type[Panel], ...] = (BlockMap, Why, Sequences, BlockTable, Memory, Kernels)
SMALLEST = (60, 16)
WIDE = (110, 32)  # from here on all panels have room at once
MODES = ("owner", "ref", "age")
SPEEDS = ((1, "1 event/s"), (2, "2 events/s"), (5, "5 events/s"), (10, "10 events/s"), (100, "10 steps/s"))
_HISTORY_PER_LOOK = 3000  # events: about 15 ms, so that a key never waits long behind it

HELP = """\
[b]position[/b]   n . ]  next event        p , [  previous event      N  next step      P  previous step
           g  first           G  last            space  play, pause    + -  speed
           :  go to: 57 step, e412 event, t1.5 second of simulated time     click on the line below
[b]blocks[/b]     arrows or h j k l, mouse  choose a block    c  colours: owner, references, age    z  zoom
           enter  show the sequence that holds the chosen block
[b]sequences[/b]  w W  next, previous sequence      /  find a request by its name      mouse  choose
[b]panels[/b]     1 … 6 or tab  choose the panel that small screens show
[b]other[/b]      s  screenshot (SVG)   ctrl+p  palette   ? f1  this help   q  quit

[b]Block map[/b]  a letter: the sequence that holds the block · a figure: shared by so many · ░ cached, nobody holds it
           · free.   Below it: the chosen block in words.
[b]Marks[/b]      P preemption  E eviction  C copy-on-write  F fork  K compaction  X rejection"""


class Help(ModalScreen[None]):
    """All keys on one page; any key closes it."""

    DEFAULT_CSS = """
    Help { align: center middle; }
    Help Static { width: auto; height: auto; border: round; padding: 1 2; }
    """

    def compose(self) -> ComposeResult:
        """The page."""
        yield Static(HELP)

    def on_key(self, event: ui.Key) -> None:
        """Close it."""
        event.stop()
        self.dismiss()


class Debugger(App[None]):
    """Time travel through one recording. `replaying` says whether it still grows."""

    TITLE = "tinyserve-viz"
    AUTO_FOCUS = None  # the line that asks takes keys only while it is shown
    CSS = """
    Screen { layout: vertical; }
    Header { height: 2; } TimelineStrip { height: 2; } #small { display: none; } #ask { display: none; height: 3; }
    BlockMap, Why, Sequences, BlockTable, Memory, Kernels { border: round #585858; height: 1fr; }
    #top { height: 3fr; } #bottom { height: 2fr; } BlockMap { width: 3fr; } #right { width: 2fr; }
    Why { width: 3fr; } Memory { width: 2fr; } Kernels { width: 3fr; }
    .compact #right, .compact Memory, .compact Kernels { display: none; }
    .compact #top { height: 1fr; } .compact #bottom { height: 6; } .compact BlockMap { width: 1fr; }
    .compact.other BlockMap { display: none; } .compact.other #right { display: block; width: 1fr; }
    .compact.lower #top { display: none; } .compact.lower #bottom { height: 1fr; } .compact.lower Why { display: none; }
    .tiny #top, .tiny #bottom, .tiny Header, .tiny TimelineStrip { display: none; } .tiny #small { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "play", "play, pause"),
        Binding("n,full_stop,right_square_bracket", "event(1)", "next event"),
        Binding("p,comma,left_square_bracket", "event(-1)", "previous event"),
        Binding("N", "step(1)", "next step"),
        Binding("P", "step(-1)", "previous step"),
        Binding("g", "first", "first"),
        Binding("G", "last", "last"),
        Binding("plus", "speed(1)", "faster"),
        Binding("minus", "speed(-1)", "slower"),
        Binding("colon", "ask(':')", "go to"),
        Binding("slash", "ask('/')", "find request"),
        Binding("left,h", "move(-1, 0)", "block left"),
        Binding("right,l", "move(1, 0)", "block right"),
        Binding("up,k", "move(0, -1)", "block up"),
        Binding("down,j", "move(0, 1)", "block down"),
        Binding("enter", "inspect", "holder of the block"),
        Binding("w", "sequence(1)", "next sequence"),
        Binding("W", "sequence(-1)", "previous sequence"),
        Binding("c", "colours", "colours"),
        Binding("z", "zoom", "zoom"),
        Binding("tab", "panel(0)", "next panel", priority=True),
        *(Binding(str(i + 1), f"panel({i + 1})", f"panel {i + 1}") for i in range(len(PANELS))),
        Binding("s", "save", "screenshot"),
        Binding("question_mark,f1", "help", "help"),
        Binding("q", "quit", "quit"),
    ]

    def __init__(
        self,
        timeline: Timeline,
        replaying: Callable[[], bool] = lambda: False,
        ascii_only: bool = False,
        start: int = 0,
    ) -> None:
        super().__init__()
        self._player, self._history, self._replaying = Player(timeline), History(), replaying
        self._ascii, self.position = ascii_only, start
        self._cursor, self._mode, self._zoomed = -1, 0, False
        self._playing, self._speed, self._ticks = False, 2, 0
        self._panel, self._notice = 1, ""
        self._chosen: int | None = None

    def compose(self) -> ComposeResult:
        """All panels, in the places that they have on a wide screen."""
        yield Header()
        with Horizontal(id="top"):
            yield BlockMap()
            with Vertical(id="right"):
                yield Sequences()
                yield BlockTable()
        with Horizontal(id="bottom"):
            yield Why()
            yield Memory()
            yield Kernels()
        yield TimelineStrip()
        yield Input(id="ask")
        yield Static(id="small")

    def on_mount(self) -> None:
        """Draw the first frame, then look for new events and play by timers."""
        self._lay_out()
        self._read_history()
        self._draw()
        self.set_interval(0.1, self._look)

    # ── drawing ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _draw(self) -> None:
        player = self._player
        self.position = max(0, min(self.position, player.num_events))
        frame = player.frame(self.position, self._chosen)
        view = View(
            frame=frame,
            history=self._history,
            cursor=self._cursor,
            mode=MODES[self._mode],
            zoomed=self._zoomed,
            playing=self._playing,
            speed=SPEEDS[self._speed][1],
            replaying=self._replaying(),
            ascii=self._ascii,
            notice=self._notice,
        )
        self.view = view
        for panel in self.query(Panel):
            panel.show(view)

    def _read_history(self) -> None:
        timeline, history = self._player.timeline, self._history
        stop = min(timeline.num_events, history.num_events + _HISTORY_PER_LOOK)
        for _, event in timeline.events(history.num_events, stop):
            history.add(event)

    def _look(self) -> None:
        """Ten times a second: new events, more history, the next frame when playing."""
        timeline = self._player.timeline
        before = (timeline.num_events, self._history.num_events)
        if not timeline.complete or self._replaying():
            timeline.refresh()
        if self._history.num_events < timeline.num_events:
            self._read_history()
        self._ticks += 1
        if self._playing:
            pace = SPEEDS[self._speed][0]
            if pace > 10:
                self.position = self._player.step_after(self.position)
            elif self._ticks % (10 // pace) == 0:
                self.position += 1
            else:
                return
            self._playing = self.position < timeline.num_events or self._replaying()
            self._draw()
        elif before != (timeline.num_events, self._history.num_events):
            self._draw()

    def _lay_out(self) -> None:
        width, height = self.size
        screen = self.screen
        tiny = width < SMALLEST[0] or height < SMALLEST[1]
        compact = width < WIDE[0] or height < WIDE[1]
        screen.set_class(tiny, "tiny")
        screen.set_class(compact, "compact")
        screen.set_class(compact and self._panel in (3, 4), "other")
        screen.set_class(compact and self._panel in (5, 6), "lower")
        for number, kind in enumerate(PANELS, 1):
            hidden = compact and ((self._panel == 3 and number == 4) or (self._panel == 4 and number == 3))
            hidden = hidden or (compact and self._panel in (5, 6) and number in (5, 6) and number != self._panel)
            shown = compact and number == self._panel and number in (5, 6)
            widget = self.query_one(kind)
            widget.styles.display = "none" if hidden else "block" if shown or not compact else None
        needs = f"{SMALLEST[0]}×{SMALLEST[1]}"
        text = f"{width}×{height} is too small: it needs {needs}, q quits"
        self.query_one("#small", Static).update(text)

    def on_resize(self) -> None:
        """Choose the layout that fits, once the new size is known."""
        self.call_after_refresh(self._lay_out)

    # ── actions ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _go(self, position: int) -> None:
        self._playing, self._notice, self.position = False, "", position
        self._draw()

    def action_play(self) -> None:
        """Play or pause."""
        self._playing, self._notice = not self._playing, ""
        self._draw()

    def action_event(self, by: int) -> None:
        """One event on or back."""
        self._go(self.position + by)

    def action_step(self, by: int) -> None:
        """To where the next step begins, or where this or the previous one did."""
        self._go(self._player.step_after(self.position) if by > 0 else self._player.step_before(self.position))

    def action_first(self) -> None:
        """Before the first event."""
        self._go(0)

    def action_last(self) -> None:
        """After the last event."""
        self._go(self._player.num_events)

    def action_speed(self, by: int) -> None:
        """Play faster or slower."""
        self._speed = max(0, min(len(SPEEDS) - 1, self._speed + by))
        self._notice = f"plays {SPEEDS[self._speed][1]}"
        self._draw()

    def action_move(self, dx: int, dy: int) -> None:
        """Choose the neighbouring block of the map."""
        grid = self.query_one(BlockMap).grid
        if grid is None:
            return
        if self._cursor < 0:
            self._cursor = grid.first
        else:
            cursor = self._cursor + (dx + dy * grid.per_row) * grid.blocks
            if 0 <= cursor < self.view.frame.num_blocks:
                self._cursor = cursor
        self._draw()

    def action_inspect(self) -> None:
        """Show the block table of the sequence that holds the chosen block."""
        if self._cursor >= 0 and int(self.view.frame.owner[self._cursor]) >= 0:
            self._chosen = int(self.view.frame.owner[self._cursor])
            self._draw()

    def action_sequence(self, by: int) -> None:
        """Choose the next or previous sequence of the list."""
        rows = [row.seq for row in self.view.frame.sequences]
        if rows:
            at = rows.index(self.view.frame.chosen) if self.view.frame.chosen in rows else -1
            self._chosen = rows[(at + by) % len(rows)]
            self._draw()

    def action_colours(self) -> None:
        """Colour the map by owner, references or age."""
        self._mode = (self._mode + 1) % len(MODES)
        self._draw()

    def action_zoom(self) -> None:
        """One block a place around the cursor, or the whole pool."""
        self._zoomed = not self._zoomed
        self._draw()

    def action_panel(self, number: int) -> None:
        """Choose the panel that a small screen shows beside the sentence; 0: the next one."""
        order = [1, 3, 4, 5, 6]
        if not number:
            number = order[(order.index(self._panel) + 1) % len(order)] if self._panel in order else 1
        self._panel = 1 if number == 2 else number
        self._lay_out()
        self._draw()

    def action_save(self) -> None:
        """Write the screen as SVG into the working directory."""
        name = f"tinyserve-viz-event-{self.position}.svg"
        self._notice = f"screenshot: {self.save_screenshot(name, path=str(Path.cwd()))}"
        self._draw()

    def action_help(self) -> None:
        """All keys."""
        self.push_screen(Help())

    def action_ask(self, what: str) -> None:
        """Ask where to go, or which request to find."""
        ask = self.query_one("#ask", Input)
        ask.placeholder = "go to: 57 (step), e412 (event), t1.5 (seconds)" if what == ":" else "name of a request"
        ask.value, ask.border_title = "", what
        ask.styles.display = "block"
        ask.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Go there."""
        ask = self.query_one("#ask", Input)
        ask.styles.display = "none"
        self.set_focus(None)
        if ask.border_title == "/":
            self._find(event.value.strip())
        else:
            self._go_to(event.value.strip())

    def on_key(self, event: ui.Key) -> None:
        """Escape leaves the question."""
        ask = self.query_one("#ask", Input)
        if event.key == "escape" and ask.has_focus:
            ask.styles.display = "none"
            self.set_focus(None)

    def _go_to(self, text: str) -> None:
        timeline = self._player.timeline
        try:
            if text.startswith("e"):
                return self._go(int(text[1:]))
            if text.startswith("t"):
                wanted = float(text[1:]) * 1e6
                ends = [end for end, at in zip(self._history.ends, self._history.time_us, strict=True) if at <= wanted]
                return self._go(ends[-1] if ends else 0)
            return self._go(timeline.first_event_of_step(int(text)))
        except (ValueError, OverflowError):
            self._notice = f"{text!r}: expected 57 (step), e412 (event) or t1.5 (seconds)"
            self._draw()

    def _find(self, name: str) -> None:
        w = self._player.timeline.header.workload
        found = next((i for i, request in enumerate(w.request_ids) if request == name), None)
        if found is None:
            self._notice = f"no request is called {name!r}"
        else:
            self._chosen = int(w.first_seq[found])
            self._notice = f"request {name} is sequence {self._chosen}"
        self._draw()

    def on_block_chosen(self, message: BlockChosen) -> None:
        """A panel's block was clicked."""
        self._cursor = message.block
        self._draw()

    def on_sequence_chosen(self, message: SequenceChosen) -> None:
        """A panel's sequence was clicked."""
        self._chosen = message.seq
        self._draw()

    def on_position_chosen(self, message: PositionChosen) -> None:
        """The strip was clicked."""
        self._go(message.position)

    def on_panel_chosen(self, message: PanelChosen) -> None:
        """A panel was clicked: nothing else to do, a click chooses what is under it."""
