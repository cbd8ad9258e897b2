"""The debugger on a recorded KV-event stream: it shows what was told and says what was not."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.pilot import Pilot

from tests.trace.streams import cleared, frames, removed, stored
from tests.tui.test_debugger import drawn, drive
from tinyserve_viz.cli.import_stream import import_stream
from tinyserve_viz.tui.app import Debugger
from tinyserve_viz.tui.block_map import BlockMap
from tinyserve_viz.tui.block_table import BlockTable
from tinyserve_viz.tui.course import Course
from tinyserve_viz.tui.dialogs import TextScreen
from tinyserve_viz.tui.memory import Memory
from tinyserve_viz.tui.panel import Panel
from tinyserve_viz.tui.sequences import Sequences
from tinyserve_viz.tui.strips import HeaderLine, TimelineStrip
from tinyserve_viz.tui.why import Why


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stream")
    batches = [[stored(1, 2, 3)], [stored(3, after=2), removed(1)], [{"type": "Odd"}, cleared()], [stored(9)]]
    source = folder / "served.frames"
    source.write_bytes(frames(*batches, sequences=[0, 1, 5, 6]))
    import_stream(str(source), folder / "served.rec")
    return folder / "served.rec"


def text(app: Debugger, kind: type[Panel]) -> str:
    panel = app.query_one(kind)
    return "\n".join([str(panel.border_title or ""), *(line.rstrip() for line in panel.plain(app.view, *panel.size))])


def test_every_panel_says_what_is_known_and_that_requests_are_not(recording: Path) -> None:
    async def look(app: Debugger, pilot: Pilot[None]) -> None:
        app.read_all()
        app._go(5)  # batch 1 is complete: 2, 3 and the second 3 are cached
        await pilot.pause()
        header = text(app, HeaderLine).split("\n")[1]
        assert header.startswith("served · KV-event stream · requests unknown · blocks of 4")
        assert "batch 1 · event 5/11" in text(app, HeaderLine)
        assert text(app, Sequences).startswith("3 sequences · unknown\nKV-event stream: requests unknown.")
        assert "stored      4 blocks\nevicted     1 block" in text(app, Sequences)
        assert text(app, BlockMap).startswith("1 cached blocks · by state · numbers are ours")
        assert "     0 ·   ▒▒▒ ▒▒▒ ▒▒▒" in text(app, BlockMap)
        assert text(app, Memory).startswith("5 memory · 3 blocks cached\ncached       3 ")
        assert "at most 4 at once; pool size not told" in text(app, Memory)
        assert "batch 1: 3 blocks cached" in text(app, Course)
        why = text(app, Why)
        assert why.startswith("2 why · event 5 of batch 1: StreamBatchEnded\n5  batch 1 ended, 0.500 s after")
        assert "G gap" in text(app, TimelineStrip)
        assert "G" in text(app, TimelineStrip).split("\n")[1]

    drive(recording, look)


def test_a_chosen_block_shows_its_hash_its_copies_and_its_prefix(recording: Path) -> None:
    async def look(app: Debugger, pilot: Pilot[None]) -> None:
        app._cursor = 3
        app._go(5)
        await pilot.pause()
        assert text(app, BlockTable).split("\n")[:4] == [
            "4 prefix that ends in our number 3",
            "logical     our             hash copies  batch",
            "      1       1 0000000000000002      1      0",
            "      2       3 0000000000000003      2      1",
        ]
        told = "our number 3: hash 0000000000000003, logical block 2 of its prefix, 2 copies cached, stored in batch 1"
        assert told in text(app, BlockMap).replace("\n", " ")
        await pilot.press("enter")
        await pilot.pause()
        assert isinstance(app.screen, TextScreen)
        await pilot.press("escape")
        for mode in ("copies", "tokens", "age", "state"):
            await pilot.press("c")
            await pilot.pause()
            assert text(app, BlockMap).startswith(f"1 cached blocks · by {mode} ·")

    drive(recording, look)


def test_a_step_back_shows_what_was_there(recording: Path) -> None:
    async def wander(app: Debugger, pilot: Pilot[None]) -> None:
        for position in range(1, app._player.num_events + 1):
            app._go(position)
            before = drawn(app)
            await pilot.press("p", "n")
            await pilot.pause()
            assert drawn(app) == before
        await pilot.press("/", "x", "enter")
        await pilot.pause()
        assert app.view.notice == "no request is known: a KV-event stream names none"

    drive(recording, wander)


def test_it_draws_at_every_size_and_in_ascii(recording: Path) -> None:
    async def look(app: Debugger, pilot: Pilot[None]) -> None:
        app._go(9)
        await pilot.pause()
        assert all(line.isascii() for lines in drawn(app) for line in lines)

    for size in ((60, 16), (80, 24), (200, 60)):
        drive(recording, look, size, ascii_only=True)
