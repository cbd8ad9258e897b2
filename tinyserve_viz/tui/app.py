"""The application: keys change the position and the way of looking; panels draw the frame of that position.

The replay, if one runs, runs in a thread of its own and writes the recording that is read here; nothing on this side
waits for it.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar, TypeVar

from rich.text import Text
from textual import events as ui
from textual.app import App, ComposeResult, SystemCommand
from textual.binding import BindingType
from textual.geometry import Size
from textual.screen import Screen
from textual.widgets import Static

from tinyserve_viz.analysis.breaks import Break, search
from tinyserve_viz.analysis.framing import Wanted
from tinyserve_viz.analysis.history import History, life_of_block
from tinyserve_viz.analysis.inspection import Exporter, Inspector
from tinyserve_viz.core.errors import TinyserveError
from tinyserve_viz.recording.timeline import Timeline
from tinyserve_viz.tui import keys, look
from tinyserve_viz.tui.arrange import MIN_HEIGHT, MIN_WIDTH, SIDE_PANELS, arrange
from tinyserve_viz.tui.balance import BalancePanel
from tinyserve_viz.tui.block_map import MODES, MODES_WITHOUT_KERNELS, BlockMap
from tinyserve_viz.tui.block_table import BlockTable
from tinyserve_viz.tui.course import Course
from tinyserve_viz.tui.dialogs import Prompt, TextScreen
from tinyserve_viz.tui.kernels import Kernels
from tinyserve_viz.tui.memory import Memory
from tinyserve_viz.tui.panel import BlockChosen, Panel, PanelChosen, PositionChosen, SequenceChosen, View
from tinyserve_viz.tui.places import BREAKS_HINT, NoSuchPlace, find_request, parse_breaks, parse_place
from tinyserve_viz.tui.player import Player
from tinyserve_viz.tui.selection import SelectionPanel
from tinyserve_viz.tui.sequences import Sequences
from tinyserve_viz.tui.strips import FooterLine, HeaderLine, TimelineStrip
from tinyserve_viz.tui.upkeep import UpkeepPanel
from tinyserve_viz.tui.why import Why

PANELS: tuple[type[Panel], ...] = (
    BlockMap, Why, Sequences, BlockTable, Memory, Kernels, Course, SelectionPanel, BalancePanel, UpkeepPanel,
)  # fmt: skip
LINES: tuple[type[Panel], ...] = (HeaderLine, TimelineStrip, FooterLine)

_Made = TypeVar("_Made")
_TICK_S = 0.1  # at most ten frames a second
_HISTORY_S = 0.015  # of a tick for reading the history, so that a key never waits long behind it
_HISTORY_EVENTS = 200

# (label, ticks between frames, events a frame or 0, steps a frame)
SPEEDS = (
    ("1 event/s", 10, 1, 0),
    ("2 events/s", 5, 1, 0),
    ("5 events/s", 2, 1, 0),
    ("10 events/s", 1, 1, 0),
    ("10 steps/s", 1, 0, 1),
    ("100 steps/s", 1, 0, 10),
    ("1,000 steps/s", 1, 0, 100),
)


class Debugger(App[None]):
    """Time travel through one recording. `replaying` says whether it still grows.

    `failure` is what ended the application early, if anything did; whoever ran it reports it.
    """

    TITLE = "tinyserve-viz"
    AUTO_FOCUS = None
    CSS = """
    Screen { background: #121212; color: #d0d0d0; overflow: hidden; }
    Panel { position: absolute; border: round #585858; border-title-color: #afafaf; }
    Panel.active { border: round #ffd75f; border-title-color: #ffd75f; }
    .ascii Panel { border: ascii #585858; }
    .ascii Panel.active { border: ascii #ffd75f; }
    HeaderLine, TimelineStrip, FooterLine, .ascii HeaderLine, .ascii TimelineStrip, .ascii FooterLine { border: none; }
    FooterLine { background: #262626; }
    #small { position: absolute; width: 100%; height: 1; display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*keys.BINDINGS]

    def __init__(
        self,
        timeline: Timeline,
        replaying: Callable[[], bool] = lambda: False,
        ascii_only: bool = False,
        start: int = 0,
        inspector: Inspector | None = None,
        panel: str = "blocks",
        exporter: Exporter | None = None,
    ) -> None:
        super().__init__()
        self._player, self._replaying = Player(timeline, inspector), replaying
        ran = timeline.header.origin.get("kernels_run", "none") != "none"
        self._history = History(state=timeline.header.empty_state() if ran else None)
        self._ascii, self.position = ascii_only, start
        self._cursor, self._mode, self._zoomed = -1, 0, False
        self._playing, self._speed, self._ticks = False, 2, 0
        self._panel, self._enlarged, self._notice = panel, False, ""
        self._chosen: int | None = None
        self._breaks: tuple[Break, ...] = ()
        self._exporter = exporter
        self._layer = 0
        self._shown_size: Size | None = None  # the terminal's, which `size` tells a moment too late
        self.failure: TinyserveError | None = None

    def compose(self) -> ComposeResult:
        """All panels; `arrange` says which are shown and where."""
        for kind in (*PANELS, *LINES):
            yield kind()
        yield Static(id="small", markup=False)

    def on_mount(self) -> None:
        """Draw the first frame, then look for new events and play by a timer."""
        self.screen.set_class(self._ascii, "ascii")
        if sys.platform != "win32":
            for number in (signal.SIGTERM, signal.SIGHUP):  # leave as with q, with nothing left behind
                asyncio.get_running_loop().add_signal_handler(number, self.exit)
        self._read_history(0.2)
        self._lay_out()
        self.set_interval(_TICK_S, self._tick)

    # ── drawing ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _draw(self) -> None:
        player = self._player
        self.position = max(0, min(self.position, player.num_events))
        try:
            frame = player.frame(self.position, self._wanted())
        except TinyserveError as error:
            self._fail(error)
            return
        self.view = View(
            frame=frame,
            history=self._history,
            cursor=self._cursor,
            mode=MODES[self._mode],
            zoomed=self._zoomed,
            playing=self._playing,
            speed=SPEEDS[self._speed][0],
            replaying=self._replaying(),
            ascii=self._ascii,
            notice=self._notice,
            breaks=tuple(at.words(frame.header.workload) for at in self._breaks),
        )
        for panel in self.screen_stack[0].query(Panel):
            if panel.display:
                panel.show(self.view)

    def _wanted(self) -> Wanted:
        """What the panels on the screen need of a frame."""
        shown = {panel.NAME for panel in self.screen_stack[0].query(Panel) if panel.display}
        return Wanted(
            seq=self._chosen,
            block=self._cursor,
            layer=self._layer,
            scores=bool(shown & {"table", "selection"}),
            work="balance" in shown,
            upkeep="upkeep" in shown,
        )

    def _fail(self, error: TinyserveError) -> None:
        """A damaged recording ends the application; its caller says why in one line."""
        self.failure = error
        self.exit()

    def _lay_out(self) -> None:
        width, height = self._shown_size or self.size
        screen = self.screen_stack[0]
        header = self._player.timeline.header
        kernels_ran = header.origin.get("kernels_run", "none") != "none"
        blocks = header.engine.num_blocks
        places = arrange(width, height, blocks, self._panel, self._zoomed, kernels_ran, self._enlarged)
        before = {panel.NAME for panel in screen.query(Panel) if panel.display}
        for panel in screen.query(Panel):
            panel.display = panel.NAME in places
        if before != set(places) or not hasattr(self, "view"):
            self._draw()  # what is shown now may need more of the frame
        if not hasattr(self, "view"):
            return  # the recording is damaged: the application ends
        for panel in screen.query(Panel):
            place = places.get(panel.NAME)
            if place is not None:
                panel.styles.offset = place[:2]
                panel.styles.width, panel.styles.height = place[2:]
                panel.set_class(self._panel == panel.NAME, "active")
                panel.show(self.view)
        small = screen.query_one("#small", Static)
        small.display = not places
        needs = f"{width}×{height} is too small: it needs {MIN_WIDTH}×{MIN_HEIGHT}, q quits"
        needs = look.clip(needs, max(1, width))
        small.update(look.to_ascii(needs) if self._ascii else needs)

    def on_resize(self, event: ui.Resize) -> None:
        """Choose the layout that fits."""
        self._shown_size = event.size
        if hasattr(self, "view"):
            self._lay_out()

    def _read_history(self, budget_s: float) -> None:
        timeline, history = self._player.timeline, self._history
        until = time.perf_counter() + budget_s
        while history.num_events < timeline.num_events and time.perf_counter() < until:
            stop = min(timeline.num_events, history.num_events + _HISTORY_EVENTS)
            for _, event in timeline.events(history.num_events, stop):
                history.add(event)

    def read_all(self) -> None:
        """Read the history to its end, for a picture that is drawn once."""
        self._read_history(float("inf"))
        self._draw()

    def _tick(self) -> None:
        """Ten times a second: new events, more history, the next frame when playing."""
        timeline, history = self._player.timeline, self._history
        before = (timeline.num_events, history.num_events)
        try:
            if not timeline.complete:
                timeline.refresh()
            self._read_history(_HISTORY_S)
        except TinyserveError as error:
            self._fail(error)
            return
        self._ticks += 1
        _, every, events, steps = SPEEDS[self._speed]
        if self._playing and self._ticks % every == 0:
            self._play_on(self.position + events if events else self._player.steps_after(self.position, steps))
        elif before != (timeline.num_events, history.num_events):
            self._draw()

    def _play_on(self, position: int) -> None:
        """Play up to `position`, or to the first breakpoint before it."""
        timeline = self._player.timeline
        met = None
        if self._breaks:
            found = search(timeline, self._breaks, self.position, min(position, timeline.num_events))
            met = next((place for place in found if place is not None), None)
        if met is not None:
            self._go(met[0], self._stopped_at(met[1]))
            return
        self.position = position
        self._playing = self.position < timeline.num_events or self._replaying()
        self._draw()

    def _stopped_at(self, at: Break) -> str:
        return f"stopped at breakpoint: {at.words(self._player.timeline.header.workload)}"

    # ── position ────────────────────────────────────────────────────────────────────────────────────────────────

    def _go(self, position: int, notice: str = "") -> None:
        self.workers.cancel_group(self, "search")
        self._playing, self._notice, self.position = False, notice, position
        self._draw()

    def _say(self, notice: str) -> None:
        self._notice = notice
        self._draw()

    def _answer(self, text: str) -> None:
        """Say why not: in the footer, and over the screen where that is too short for it."""
        self._say(text)
        if len(text) + len(self.view.frame.header.content.describe()) + 12 > self.size.width:
            rows = look.wrap(text, min(80, max(20, self.size.width - 8)))
            self.push_screen(TextScreen("not done", [Text(row) for row in rows], self._ascii))

    def action_play(self) -> None:
        """Play or pause; at the end, nothing."""
        self._playing = not self._playing and (self.position < self._player.num_events or self._replaying())
        self._say("")

    def action_event(self, by: int) -> None:
        """One event on or back."""
        self._go(self.position + by)

    def action_step(self, by: int) -> None:
        """To where the next step begins, or where this or the previous one did."""
        player = self._player
        self._go(player.steps_after(self.position, 1) if by > 0 else player.step_before(self.position))

    def action_first(self) -> None:
        """Before the first event."""
        self._go(0)

    def action_last(self) -> None:
        """After the last event."""
        self._go(self._player.num_events)

    def action_speed(self, by: int) -> None:
        """Play faster or slower."""
        self._speed = max(0, min(len(SPEEDS) - 1, self._speed + by))
        self._say(f"plays {SPEEDS[self._speed][0]}")

    def action_go_to(self) -> None:
        """Ask where to go."""
        self.push_screen(Prompt("go to: 57 a step, e412 an event, t1.5 a simulated second"), self._go_to)

    def _go_to(self, text: str | None) -> None:
        if text:
            try:
                self._go(parse_place(text, self._player.timeline, self._history))
            except NoSuchPlace as error:
                self._answer(str(error))

    def action_breaks(self) -> None:
        """Ask where to stop; what is set, or else the chosen block, is offered for a change."""
        text = "".join(f"{words} " for words in self.view.breaks)
        if not text and self._cursor >= 0:
            text = f"block {self._cursor}"
        self.push_screen(Prompt(BREAKS_HINT, text), self._set_breaks)

    def _set_breaks(self, text: str | None) -> None:
        if text is None:
            return
        header = self._player.timeline.header
        try:
            self._breaks = parse_breaks(text, header.workload, header.engine.num_blocks)
        except NoSuchPlace as error:
            self._answer(str(error))
            return
        words = ", ".join(at.words(header.workload) for at in self._breaks)
        self._say(f"stops at {words}; B runs on to the next, R back to the last" if words else "stops nowhere")

    def action_run_on(self, by: int) -> None:
        """Go to the next event that meets a breakpoint, or back to the last one."""
        if not self._breaks:
            self._say("no breakpoint is set: b sets some, for example evict or block 12")
            return
        self._playing = False
        self.run_worker(self._run_on(by < 0), group="search", exclusive=True, exit_on_error=False)

    async def _run_on(self, backwards: bool) -> None:
        timeline = self._player.timeline
        bounds = (0, self.position - 1) if backwards else (self.position, timeline.num_events)
        self._say("looking for the next breakpoint …")
        try:
            for met in search(timeline, self._breaks, *bounds, backwards):
                if met is not None:
                    self._notice, self.position = self._stopped_at(met[1]), met[0]
                    self._draw()
                    return
                await asyncio.sleep(0)  # keys and the clock come first
        except TinyserveError as error:
            self._fail(error)
            return
        self._say(f"no event {'before' if backwards else 'after'} this one meets {', '.join(self.view.breaks)}")

    def action_find(self) -> None:
        """Ask for a request."""
        self.push_screen(Prompt("find a request by its name, or by the beginning of it"), self._find)

    def _find(self, text: str | None) -> None:
        if text:
            try:
                self._chosen, notice = find_request(text, self._player.timeline.header.workload)
                self._say(notice)
            except NoSuchPlace as error:
                self._answer(str(error))

    # ── what is looked at ───────────────────────────────────────────────────────────────────────────────────────

    def action_move(self, dx: int, dy: int) -> None:
        """Choose the neighbouring block; up and down follow the active list where that is one."""
        frame = self.view.frame
        if dy and self._panel == "sequences":
            self.action_sequence(dy)
            return
        if dy and self._panel == "table" and len(frame.table):
            logical = frame.table.logical_of(self._cursor) + dy
            self._cursor = int(frame.table.physical[max(0, min(len(frame.table) - 1, logical))])
        else:
            grid = self.screen.query_one(BlockMap).grid
            if grid is None:
                return
            cursor = self._cursor + (dx + dy * grid.per_row) * grid.blocks if self._cursor >= 0 else grid.first
            if 0 <= cursor < frame.num_blocks:
                self._cursor = cursor
        self._say("")

    def action_sequence(self, by: int) -> None:
        """Choose the next or previous sequence of the list."""
        rows = [row.seq for row in self.view.frame.sequences]
        if rows:
            at = rows.index(self.view.frame.chosen) + by if self.view.frame.chosen in rows else 0
            self._chosen = rows[max(0, min(len(rows) - 1, at))]
            self._say("")

    def action_release(self) -> None:
        """Choose no block, and leave the choice of the sequence to the frame."""
        self._cursor, self._chosen, self._enlarged = -1, None, False
        self._say("")
        self._lay_out()

    def action_colours(self) -> None:
        """Colour the map by the next property; what kernels count only where some ran."""
        ran = self._player.timeline.header.origin.get("kernels_run", "none") != "none"
        self._mode = (self._mode + 1) % len(MODES if ran else MODES_WITHOUT_KERNELS)
        self._say("")

    def action_zoom(self) -> None:
        """One block a place around the cursor, or the whole pool."""
        self._zoomed = not self._zoomed
        self._say("")
        self._lay_out()

    def action_panel(self, number: int) -> None:
        """Make a panel the active one, or enlarge the one that is; 0: the next of those that small screens show one at
        a time."""
        if len(self.screen_stack) > 1:
            return
        if number:
            name = PANELS[number - 1].NAME
            self._enlarged = name == self._panel and not self._enlarged
            self._panel = name
        else:
            order = ("blocks", *SIDE_PANELS)
            self._panel = order[(order.index(self._panel) + 1) % len(order)] if self._panel in order else order[0]
        self._lay_out()

    def action_layer(self) -> None:
        """Look at the next layer's selection."""
        layers = self._player.timeline.header.model.num_layers
        self._layer = (self._layer + 1) % layers
        self._say(f"layer {self._layer} of {layers}" if layers > 1 else "this model has one layer")

    def action_inspect(self) -> None:
        """All about the chosen block, and its holder's block table."""
        frame, block = self.view.frame, self._cursor
        if block < 0:
            self._say("choose a block first: arrow keys or mouse")
            return
        if frame.owner[block] >= 0 and frame.table.logical_of(block) < 0:
            self._chosen = int(frame.owner[block])
            self._draw()
            frame = self.view.frame
        life = life_of_block(self._player.timeline, block, self.position)
        rows = [frame.describe_block(block), ""]
        rows += [f"{name:<22} {value}" for name, value in frame.facts_of_block(block)]
        rows += ["", "what happened to it, newest first", *(life or ["nothing in the last events"])]
        self.push_screen(TextScreen(f"block {block}", [Text(row) for row in rows], self._ascii))

    def action_save(self) -> None:
        """Write the screen as SVG into the working directory."""
        try:
            saved = self.save_screenshot(f"tinyserve-viz-event-{self.position}.svg", path=str(Path.cwd()))
            self._say(f"screenshot: {saved}")
        except OSError as error:
            self._say(f"screenshot: {error.strerror}")

    def action_export(self) -> None:
        """Ask which file to write."""
        hint = "write: steps.csv sequences.json events.jsonl chrome.json timeline.png all.html"
        self.push_screen(Prompt(hint), self._export)

    def _export(self, name: str | None) -> None:
        exporter, step = self._exporter, self.view.frame.step
        if name and exporter is not None:
            self._beside(lambda: exporter.save(name, step), self._say)

    def action_plot(self) -> None:
        """Ask which chart to show."""
        hint = "plot: timeline memory fragmentation queue pressure hit-rate misses latency selection"
        self.push_screen(Prompt(hint), self._plot)

    def _plot(self, kind: str | None) -> None:
        def show(draw: Callable[[int, int], list[str]]) -> None:
            width, height = self.size
            rows = draw(max(40, width * 96 // 100 - 8), max(8, height // 2 - 6))
            self._say("")
            self.push_screen(TextScreen(f"plot {kind}", [Text(row) for row in rows], self._ascii, width))

        exporter = self._exporter
        if kind and exporter is not None:
            self._beside(lambda: exporter.chart(kind), show)

    def _beside(self, work: Callable[[], _Made], then: Callable[[_Made], None]) -> None:
        """Work in a thread of its own, which may take seconds, then go on here; a mistake is said in the footer."""

        def run() -> None:
            try:
                made = work()
            except TinyserveError as error:
                self.call_from_thread(self._answer, str(error))
            else:
                self.call_from_thread(then, made)

        self._say("reading the recording …")
        self.run_worker(run, thread=True, group="export")

    def action_help(self) -> None:
        """All keys."""
        self.push_screen(TextScreen("keys", [Text(row) for row in keys.help_lines()], self._ascii))

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:  # noqa: ARG002 - Textual's signature
        """The palette: every key's action by its words."""
        for binding in keys.BINDINGS:
            if binding.action != "command_palette":
                yield SystemCommand(binding.description, keys.signs(binding), self._runner(binding.action))

    def _runner(self, action: str) -> Callable[[], None]:
        def run() -> None:
            self.call_later(self.run_action, action)

        return run

    # ── the mouse ───────────────────────────────────────────────────────────────────────────────────────────────

    def on_block_chosen(self, message: BlockChosen) -> None:
        """A block was clicked."""
        self._cursor = message.block
        self._say("")

    def on_sequence_chosen(self, message: SequenceChosen) -> None:
        """A sequence was clicked."""
        self._chosen = message.seq
        self._say("")

    def on_position_chosen(self, message: PositionChosen) -> None:
        """The timeline was clicked."""
        self._go(message.position)

    def on_panel_chosen(self, message: PanelChosen) -> None:
        """A panel was clicked: it is the active one now."""
        if message.name != self._panel:
            self._panel = message.name
            self._lay_out()
