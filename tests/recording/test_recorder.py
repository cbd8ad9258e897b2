"""What a recorder leaves behind when it is interrupted at a bad moment, and what garbled bytes lead to."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from tinyserve_viz.cli.main import main
from tinyserve_viz.cli.session import Settings, prepare, run_replay, summarize_recording
from tinyserve_viz.core.errors import RecordingError
from tinyserve_viz.core.events import StepEnded
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.engine.replay import Engine
from tinyserve_viz.recording.recorder import Recorder
from tinyserve_viz.recording.timeline import Timeline
from tinyserve_viz.trace import read_trace

QUICKSTART = data_folder("traces") / "quickstart.json"
PLAIN = Settings(kernels="none")


class InterruptedWhileWriting(Recorder):
    """Ctrl-C arrives between the events of a transaction and its end, at the second snapshot."""

    def _write_snapshot(self) -> None:
        super()._write_snapshot()
        if self.digest.num_events:
            raise KeyboardInterrupt


def record_until_interrupted(path: Path, force: bool) -> int:
    """Returns the number of events up to the last whole step."""
    header = prepare(read_trace(QUICKSTART), PLAIN)
    last_step = 0

    def sink(step: int, event: object) -> None:
        nonlocal last_step
        if isinstance(event, StepEnded):
            last_step = recorder.digest.num_events + 1
        recorder.add(step, event)  # type: ignore[arg-type]

    engine = Engine(header.workload, header.engine, header.rules, sink)
    try:
        with InterruptedWhileWriting(path, header, engine.state, force, snapshot_every=50) as recorder:
            while engine.step():
                pass
    except KeyboardInterrupt:
        return last_step
    raise AssertionError("the replay was not interrupted")


def test_an_interrupt_in_the_middle_of_a_transaction_loses_no_whole_step(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    num_events = record_until_interrupted(path, force=False)
    assert num_events >= 50
    assert [file.name for file in tmp_path.iterdir()] == ["run.rec"]
    with Timeline(path) as timeline:
        assert timeline.num_events == num_events
        assert timeline.seek(num_events).step == timeline.step_of(num_events)


def test_an_interrupted_forced_replay_leaves_the_old_recording_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    run_replay(prepare(read_trace(QUICKSTART), PLAIN), path)
    before = path.read_bytes()
    record_until_interrupted(path, force=True)
    assert [file.name for file in tmp_path.iterdir()] == ["run.rec"]
    assert path.read_bytes() == before


def test_a_forced_replay_replaces_the_old_recording_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    path.write_text("something else")
    summary = run_replay(prepare(read_trace(QUICKSTART), PLAIN), path, force=True)
    assert [file.name for file in tmp_path.iterdir()] == ["run.rec"]
    with Timeline(path) as timeline:
        assert timeline.digest == summary["digest"]


def damage(path: Path, table: str, index: int, rng: random.Random) -> None:
    """Change one byte of a payload."""
    db = sqlite3.connect(path)
    (payload,) = db.execute(f"SELECT payload FROM {table} WHERE idx = ?", (index,)).fetchone()
    garbled = bytearray(payload)
    garbled[rng.randrange(len(garbled))] ^= 1 << rng.randrange(8)
    db.execute(f"UPDATE {table} SET payload = ? WHERE idx = ?", (bytes(garbled), index))
    db.commit()
    db.close()


def test_a_garbled_event_is_a_finding_or_one_line_and_never_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, rng = tmp_path / "run.rec", random.Random(1)
    run_replay(prepare(read_trace(QUICKSTART), PLAIN), path)
    whole = path.read_bytes()
    with Timeline(path) as timeline:
        num_events, digest = timeline.num_events, timeline.digest
    codes = []
    for _ in range(60):
        path.write_bytes(whole)
        damage(path, "events", rng.randrange(num_events), rng)
        codes.append(main(["replay", str(path), "--headless"]))
        printed = capsys.readouterr()
        if codes[-1] == 0:  # the changed bit says the same, as that of a dtype of the same width
            assert f"digest         {digest}\n" in printed.out
        elif codes[-1] == 1:
            assert "the digest of the events is not the recorded one" in printed.err or "VIOLATED" in printed.out
        else:
            assert printed.err.count("\n") == 1
            assert printed.err.startswith(f"tinyserve-viz: {path}: damaged recording: ")
    assert codes.count(1) > 5
    assert codes.count(2) > 5


def test_a_garbled_snapshot_is_said_to_be_damaged(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    run_replay(prepare(read_trace(QUICKSTART), PLAIN), path)
    damage(path, "snapshots", 0, random.Random(2))
    with Timeline(path) as timeline:
        with pytest.raises(RecordingError, match=r"run\.rec: damaged recording: "):
            timeline.seek(10)
        assert summarize_recording(timeline)["digest_matches"]  # the events are all there
