"""The debugger: a step back shows what was there, keys do what the help says, small terminals stay readable."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot

from tinyserve_viz.cli.main import main
from tinyserve_viz.cli.saving import RecordingExporter
from tinyserve_viz.core.errors import TinyserveError
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.recording.timeline import Timeline
from tinyserve_viz.tui import keys
from tinyserve_viz.tui.app import PANELS, Debugger
from tinyserve_viz.tui.arrange import MIN_HEIGHT, MIN_WIDTH
from tinyserve_viz.tui.block_map import BlockMap
from tinyserve_viz.tui.dialogs import TextScreen
from tinyserve_viz.tui.kernels import Kernels
from tinyserve_viz.tui.memory import Memory
from tinyserve_viz.tui.sequences import Sequences
from tinyserve_viz.tui.strips import FooterLine, TimelineStrip

QUICKSTART = str(data_folder("traces") / "quickstart.json")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tui") / "run.rec"
    assert main(["replay", QUICKSTART, "--kernels", "decisions", "--headless", "--record", str(path)]) == 0
    return path


def drive(
    recording: Path,
    actions: Callable[[Debugger, Pilot[None]], Awaitable[None]],
    size: tuple[int, int] = (120, 40),
    ascii_only: bool = False,
) -> None:
    async def play() -> None:
        with Timeline(recording) as timeline:
            app = Debugger(timeline, ascii_only=ascii_only, exporter=RecordingExporter(recording))
            async with app.run_test(size=size) as pilot:
                await pilot.pause()
                await actions(app, pilot)

    asyncio.run(play())


KEY_NAMES = {".": "full_stop", " ": "space", "-": "minus"}


ASKED_FOR = ["history", "selection", "balance", "upkeep"]  # their place is the kernels' until they are chosen


def drawn(app: Debugger) -> list[list[str]]:
    """Every panel's lines at its size, as text."""
    return [panel.plain(app.view, *panel.size) for panel in (app.query_one(kind) for kind in PANELS)]


def test_forward_and_back_gives_the_same_cells_at_random_places(recording: Path) -> None:
    async def wander(app: Debugger, pilot: Pilot[None]) -> None:
        rng = random.Random(3)
        for _ in range(12):
            app._go(rng.randrange(2, app._player.num_events - 2))
            before, position = drawn(app), app.position
            for on, back in (("n", "p"), ("N", "P"), ("full_stop", "comma")):
                await pilot.press(on)
                assert app.position > position
                await pilot.press(back)
                app._go(position)
                assert drawn(app) == before
            await pilot.press("G", "g")
            assert app.position == 0
            app._go(position)
            assert drawn(app) == before

    drive(recording, wander)


async def type_place(pilot: Pilot[None], text: str, key: str = "colon") -> None:
    await pilot.press(key)
    await pilot.pause()
    await pilot.press(*(KEY_NAMES.get(sign, sign) for sign in text), "enter")
    await pilot.pause()


def test_steps_events_and_times_can_be_gone_to(recording: Path) -> None:
    async def go(app: Debugger, pilot: Pilot[None]) -> None:
        await type_place(pilot, "79")
        assert app.position == app._player.timeline.first_event_of_step(79) + 1
        assert app.view.frame.step == 79
        await type_place(pilot, "e41")
        assert app.position == 41
        await type_place(pilot, "t1.5")
        assert app.view.frame.time_us >= 1_500_000
        assert app.view.frame.said[-1].kind == "StepEnded"
        for long, short in (("step 57", "57"), ("event 412", "e412"), ("time 1.5", "t1.5")):
            await type_place(pilot, short)
            reached = app.position
            await type_place(pilot, "79")
            await type_place(pilot, long)
            assert app.position == reached != app._player.timeline.first_event_of_step(79) + 1
        await type_place(pilot, "step x")
        assert app.view.notice == "'step x': expected 57 (a step), e412 (an event) or t1.5 (seconds)"
        await type_place(pilot, "x")
        assert app.view.notice == "'x': expected 57 (a step), e412 (an event) or t1.5 (seconds)"
        await type_place(pilot, "e9999")
        assert app.view.notice == f"there is no event 9,999; they go from 0 to {app._player.num_events}"

    drive(recording, go)


def test_a_request_is_found_by_its_name(recording: Path) -> None:
    async def find(app: Debugger, pilot: Pilot[None]) -> None:
        await pilot.press("slash")
        await pilot.pause()
        await pilot.press(*"chat", "enter")
        await pilot.pause()
        assert app.view.notice == "block table of chat-1, first of 4 that begin so"
        assert app.view.frame.name(app.view.frame.chosen) == "chat-1"

    drive(recording, find)


def test_a_block_is_chosen_by_keys_and_its_holder_shown(recording: Path) -> None:
    async def choose(app: Debugger, pilot: Pilot[None]) -> None:
        await type_place(pilot, "79")
        await pilot.press("right", "right", "enter")
        await pilot.pause()
        assert isinstance(app.screen, TextScreen)
        await pilot.press("escape")
        await pilot.pause()
        assert app._cursor == 1
        assert app.view.frame.chosen == int(app.view.frame.owner[1])
        assert any("block 1: " in line for line in drawn(app)[0])
        await pilot.press("c")
        assert app.view.mode == "references"

    drive(recording, choose)


def test_every_key_of_the_bindings_stands_in_the_help(recording: Path) -> None:
    page = "\n".join(keys.help_lines())
    for binding in Debugger.BINDINGS:
        assert f"  {keys.signs(binding):<10} {binding.description}" in page  # type: ignore[arg-type, union-attr]

    async def open_help(app: Debugger, pilot: Pilot[None]) -> None:
        await pilot.press("question_mark")
        await pilot.pause()
        assert isinstance(app.screen, TextScreen)
        await pilot.press("escape")
        await pilot.pause()
        assert not isinstance(app.screen, TextScreen)

    drive(recording, open_help)


@pytest.mark.parametrize("size", [(80, 24), (60, 16), (200, 60)])
def test_every_size_shows_the_map_and_the_sentence(size: tuple[int, int], recording: Path) -> None:
    async def look(app: Debugger, pilot: Pilot[None]) -> None:
        await pilot.press("G", "P")
        shown = {type(panel).NAME for panel in (app.query_one(kind) for kind in PANELS) if panel.size.height > 2}
        assert {"blocks", "why"} <= shown
        assert (len(shown) == 8) == (size == (200, 60))  # the others of ten when they are asked for
        await pilot.press("5")
        assert app.query_one(PANELS[4]).size.height > 2

    drive(recording, look, size)


def test_a_terminal_that_is_too_small_says_so_in_one_line(recording: Path) -> None:
    async def look(app: Debugger, pilot: Pilot[None]) -> None:
        picture = app.export_screenshot().replace("&#160;", " ")
        assert f"58×14 is too small: it needs {MIN_WIDTH}×{MIN_HEIGHT}, q quits" in picture

    drive(recording, look, (58, 14))


def test_a_terminal_that_shrinks_and_grows_again_keeps_up(recording: Path) -> None:
    async def resize(app: Debugger, pilot: Pilot[None]) -> None:
        await pilot.press("G")
        await pilot.resize_terminal(50, 12)
        await pilot.pause(0.1)
        assert "50×12 is too small" in app.export_screenshot().replace("&#160;", " ")
        await pilot.resize_terminal(120, 40)
        await pilot.pause(0.1)
        hidden = [kind.NAME for kind in PANELS if app.query_one(kind).size.height <= 2]
        assert hidden == ASKED_FOR
        await pilot.press("7")
        assert app.query_one(PANELS[6]).size.height > 2

    drive(recording, resize)


def test_the_figure_of_the_active_panel_gives_it_the_screen_and_escape_takes_it_back(recording: Path) -> None:
    async def enlarge(app: Debugger, pilot: Pilot[None]) -> None:
        await pilot.press("G", "6", "6")
        assert [kind.NAME for kind in PANELS if app.query_one(kind).display] == ["kernels"]
        assert app.query_one(PANELS[5]).size.width == 118
        await pilot.press("escape")
        assert [kind.NAME for kind in PANELS if not app.query_one(kind).display] == ASKED_FOR

    drive(recording, enlarge)


def test_ascii_draws_nothing_beyond_ascii(recording: Path) -> None:
    async def look(app: Debugger, pilot: Pilot[None]) -> None:
        await type_place(pilot, "79")
        assert all(line.isascii() for lines in drawn(app) for line in lines)

    drive(recording, look, ascii_only=True)


def test_the_screenshot_command_needs_no_terminal(recording: Path, tmp_path: Path) -> None:
    output = tmp_path / "screen.svg"
    assert main(["replay", str(recording), "--screenshot", str(output), "--at", "79", "--size", "100x34"]) == 0
    text = output.read_text(encoding="utf-8")
    assert text.startswith("<svg")
    assert "step&#160;79" in text


def test_without_colour_the_same_signs_stand_at_the_same_places(
    recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[list[list[str]]] = []

    async def look(app: Debugger, pilot: Pilot[None]) -> None:
        await type_place(pilot, "70")
        shown.append(drawn(app))

    drive(recording, look)
    monkeypatch.setenv("NO_COLOR", "1")

    async def look_without(app: Debugger, pilot: Pilot[None]) -> None:
        assert app.no_color
        await look(app, pilot)

    drive(recording, look_without)
    assert shown[0] == shown[1]


def test_without_a_terminal_the_summary_is_printed(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(recording)]) == 0
    assert "invariants" in capsys.readouterr().out


def test_every_command_stands_in_the_palette(recording: Path) -> None:
    async def look(app: Debugger, pilot: Pilot[None]) -> None:
        commands = [command.title for command in app.get_system_commands(app.screen)]
        assert commands == [b.description for b in keys.BINDINGS if b.action != "command_palette"]

    drive(recording, look)


def test_playing_stops_at_a_breakpoint_and_says_which(recording: Path) -> None:
    async def play(app: Debugger, pilot: Pilot[None]) -> None:
        await type_place(pilot, "preempt step 30", "b")
        assert app.view.breaks == ("preempt", "step 30")
        for _ in range(3):
            app.action_speed(1)
        app.action_play()
        while app._playing:
            app._tick()
        assert app.view.frame.step == 30
        assert app.view.notice == "stopped at breakpoint: step 30"
        app.action_play()
        while app._playing:
            app._tick()
        assert app.view.frame.said[-1].kind == "SequencePreempted"
        assert app.view.notice == "stopped at breakpoint: preempt"

    drive(recording, play)


def test_runs_go_on_and_back_from_breakpoint_to_breakpoint(recording: Path) -> None:
    async def run(app: Debugger, pilot: Pilot[None]) -> None:
        await pilot.press("B")
        assert app.view.notice == "no breakpoint is set: b sets some, for example evict or block 12"
        await type_place(pilot, "evict", "b")
        stops = []
        for key in ("B", "B", "R"):
            await pilot.press(key)
            await app.workers.wait_for_complete()
            stops.append(app.position)
            assert app.view.frame.said[-1].kind == "BlocksEvicted"
        assert stops[0] == stops[2] < stops[1]
        await pilot.press("R")
        await app.workers.wait_for_complete()
        assert (app.position, app.view.notice) == (stops[0], "no event before this one meets evict")
        await type_place(pilot, "block 4000", "b")
        assert app.view.notice == "block 4000: expected a number from 0 to 39"
        assert app.view.breaks == ("evict",)

    drive(recording, run)


@pytest.mark.parametrize("size", [(120, 40), (80, 24), (60, 16)])
def test_the_content_model_is_on_every_screen(size: tuple[int, int], recording: Path) -> None:
    async def look(app: Debugger, pilot: Pilot[None]) -> None:
        for keys_pressed in (("G",), ("1", "1"), ("plus",)):
            await pilot.press(*keys_pressed)
            assert "topics(8, 0.9)" in app.query_one(FooterLine).plain(app.view, size[0], 1)[0]

    drive(recording, look, size)


def test_an_export_is_written_beside_the_screen_and_said(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    async def export(app: Debugger, pilot: Pilot[None]) -> None:
        for name, beginning in (("steps.csv", "step,"), ("steps.csv", "step,"), ("nothing.csv", "")):
            await type_place(pilot, name, "e")
            await app.workers.wait_for_complete()
            await pilot.pause()
            if isinstance(app.screen, TextScreen):  # too long for the footer
                await pilot.press("escape")
                await pilot.pause()
            if beginning:
                assert Path(name).read_text(encoding="utf-8").startswith(beginning)
            said.append(app.view.notice)

    said: list[str] = []
    drive(recording, export)
    assert said[0].startswith(f"wrote {tmp_path / 'steps.csv'} (")
    assert "exists" in said[1]
    assert said[2].startswith("nothing.csv: expected events.jsonl, mooncake.jsonl, chrome.json, KIND.png, or TABLE.csv")


def test_a_plot_opens_over_the_screen(recording: Path) -> None:
    async def plot(app: Debugger, pilot: Pilot[None]) -> None:
        await type_place(pilot, "memory", "v")
        await app.workers.wait_for_complete()
        await pilot.pause()
        assert isinstance(app.screen, TextScreen)
        assert any("pool (blocks)" in row.plain for row in app.screen.rows)
        await pilot.press("escape")
        await pilot.pause()
        await type_place(pilot, "nothing", "v")
        await app.workers.wait_for_complete()
        assert app.view.notice.startswith("unknown kind 'nothing' of plot; known: timeline, memory")

    drive(recording, plot)


def test_a_recording_whose_first_snapshot_is_damaged_ends_with_its_reason(recording: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.rec"
    shutil.copy(recording, damaged)
    with sqlite3.connect(damaged) as database:
        database.execute("UPDATE snapshots SET payload = x'00'")
    database.close()

    async def open_it() -> TinyserveError | None:
        with Timeline(damaged) as timeline:
            app = Debugger(timeline, start=5)
            async with app.run_test(size=(80, 24)) as pilot:
                await pilot.pause()
            return app.failure

    failure = asyncio.run(open_it())
    assert failure is not None
    assert str(failure).startswith(f"{damaged}: damaged recording")


def test_a_click_makes_any_panel_the_active_one(recording: Path) -> None:
    async def click(app: Debugger, pilot: Pilot[None]) -> None:
        await type_place(pilot, "79")
        for kind in (Memory, Kernels, Sequences, BlockMap):
            await pilot.click(kind, offset=(20, 2))
            await pilot.pause()
            assert app.query_one(kind).has_class("active")
        assert app._cursor >= 0
        await pilot.click(TimelineStrip, offset=(60, 0))
        await pilot.pause()
        assert app.query_one(BlockMap).has_class("active")

    drive(recording, click)
