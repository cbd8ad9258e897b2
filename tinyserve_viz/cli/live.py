"""The debugger on a terminal: a replay in its own thread writes a recording, the screen reads it."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

from tinyserve_viz.cli.inspector import ContentInspector
from tinyserve_viz.cli.saving import RecordingExporter
from tinyserve_viz.cli.session import run_replay
from tinyserve_viz.core.errors import RecordingError, TinyserveError
from tinyserve_viz.recording.header import Header
from tinyserve_viz.recording.recorder import single_file
from tinyserve_viz.recording.timeline import Timeline
from tinyserve_viz.tui.app import Debugger

_SWITCH_S = 0.0005  # between the replay's and the screen's thread: at Python's 5 ms a frame waits for the replay
_PATIENCE_S = 20.0  # for the first rows of the recording


class _Replay(threading.Thread):
    """Replays `header` into `path`; `error` is what went wrong, `stop` ends it after the step under way."""

    def __init__(self, header: Header, path: Path, force: bool) -> None:
        super().__init__(name="replay", daemon=True)
        self._arguments = (header, path, force)
        self.stop = threading.Event()
        self.error: TinyserveError | None = None

    def run(self) -> None:
        """The replay, from start to end or until `stop`."""
        header, path, force = self._arguments
        try:
            run_replay(header, path, force, should_stop=self.stop.is_set)
        except TinyserveError as error:
            self.error = error


def watch_replay(header: Header, record: Path | None, force: bool, ascii_only: bool, panel: str) -> None:
    """Replay `header` and show it live; the recording stays when the user named one.

    Raises:
        TinyserveError: what ended the replay, once the terminal is restored.
    """
    if record is not None and record.exists() and force:
        raise RecordingError(
            f"{record}: exists; with the TUI choose another name, or replay it with --headless --force"
        )
    scratch = Path(tempfile.mkdtemp(prefix="tinyserve-viz-")) if record is None else None
    path = record if record is not None else Path(str(scratch), "replay.rec")
    replay = _Replay(header, path, force)
    sys.setswitchinterval(_SWITCH_S)
    replay.start()
    try:
        timeline = _first_sight(path, replay)
        try:
            inspector = ContentInspector(timeline.header)
            exporter = RecordingExporter(path)
            _show(Debugger(timeline, replay.is_alive, ascii_only, 0, inspector, panel, exporter))
        finally:
            timeline.close()
            replay.stop.set()
            replay.join()
        if record is not None:
            single_file(record)
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    if replay.error is not None:
        raise replay.error


def _first_sight(path: Path, replay: _Replay) -> Timeline:
    """The recording as soon as it can be opened."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            timeline = Timeline(path)
            timeline.seek(0)  # its first snapshot comes a moment after its header
            return timeline
        except RecordingError:
            if replay.error is not None:
                raise replay.error from None
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def watch_recording(path: Path, ascii_only: bool, panel: str) -> None:
    """Show a finished (or interrupted) recording."""
    with Timeline(path) as timeline:
        inspector = ContentInspector(timeline.header)
        exporter = RecordingExporter(path)
        _show(Debugger(timeline, ascii_only=ascii_only, inspector=inspector, panel=panel, exporter=exporter))


def _show(app: Debugger) -> None:
    """Run the application; what ended it early is raised once the terminal is restored."""
    app.run()
    if app.failure is not None:
        raise app.failure


def picture(
    path: Path, size: tuple[int, int], step: int | None, panel: str = "blocks", ascii_only: bool = False
) -> str:
    """The screen at `step` (the end: None) of a recording as SVG, `panel` being the active one, without a terminal."""
    import asyncio

    async def draw() -> str:
        with Timeline(path) as timeline:
            start = timeline.num_events if step is None else timeline.first_event_of_step(step + 1)
            inspector = ContentInspector(timeline.header)
            app = Debugger(timeline, ascii_only=ascii_only, start=start, inspector=inspector, panel=panel)
            async with app.run_test(size=size) as pilot:
                app.read_all()
                await pilot.pause()
                return app.export_screenshot(title=f"tinyserve-viz replay {timeline.header.origin['trace']['name']}")

    os.environ.pop("NO_COLOR", None)
    return asyncio.run(draw())
