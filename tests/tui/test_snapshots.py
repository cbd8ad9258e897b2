"""Pictures of the debugger on a fixed recording at fixed positions, compared cell for cell.

After a change that is meant: `pytest tests/tui/test_snapshots.py --snapshot-update`, then look at every new picture.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot

from tinyserve_viz.cli.inspector import ContentInspector
from tinyserve_viz.cli.main import main
from tinyserve_viz.core.events import BlocksSelected
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.recording.timeline import Timeline
from tinyserve_viz.tui.app import Debugger

Compare = Callable[..., bool]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart without kernels: their times are measured and never the same twice."""
    path = tmp_path_factory.mktemp("snapshots") / "run.rec"
    quickstart = str(data_folder("traces") / "quickstart.json")
    assert main(["replay", quickstart, "--kernels", "none", "--headless", "--record", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def recording_with_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("snapshots") / "kernels.rec"
    quickstart = str(data_folder("traces") / "quickstart.json")
    assert main(["replay", quickstart, "--headless", "--record", str(path)]) == 0
    return path


@pytest.mark.parametrize(
    ("size", "keys", "ascii_only"),
    [
        pytest.param((120, 40), ["right", "right"], False, id="all_panels"),
        pytest.param((80, 24), ["4", "c"], False, id="small_screen_block_table_by_references"),
        pytest.param((80, 24), ["7"], True, id="small_screen_history_in_ascii"),
    ],
)
def test_the_screen_looks_as_it_did(
    size: tuple[int, int],
    keys: list[str],
    ascii_only: bool,
    recording: Path,
    snap_compare: Compare,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "20")  # a picture does not depend on the terminal that the tests run in
    with Timeline(recording) as timeline:
        app = Debugger(timeline, ascii_only=ascii_only, start=timeline.first_event_of_step(58))
        assert snap_compare(app, press=keys, terminal_size=size, run_before=read_all)


@pytest.mark.parametrize(
    ("size", "keys"),
    [
        pytest.param((110, 30), ["8", "8"], id="selection"),
        pytest.param((110, 30), ["9", "9"], id="balance"),
    ],
)
def test_what_kernels_chose_looks_as_it_did(
    size: tuple[int, int],
    keys: list[str],
    recording_with_kernels: Path,
    snap_compare: Compare,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    with Timeline(recording_with_kernels) as timeline:
        start = next(index + 1 for index, step, _ in timeline.events_of_kind(BlocksSelected) if step == 79)
        app = Debugger(timeline, start=start, inspector=ContentInspector(timeline.header))
        assert snap_compare(app, press=keys, terminal_size=size, run_before=read_all)


def read_all(pilot: Pilot[None]) -> None:
    """The history is read beside the screen: here before the picture."""
    assert isinstance(pilot.app, Debugger)
    pilot.app.read_all()
