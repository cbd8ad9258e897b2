"""Recordings that were cut, killed, foreign or in the way: one line each, exit code 2, and nothing old is lost."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tinyserve_viz.cli.main import main
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.recording.header import SCHEMA
from tinyserve_viz.recording.timeline import Timeline

QUICKSTART = str(data_folder("traces") / "quickstart.json")
COMMAND = [sys.executable, "-m", "tinyserve_viz", "replay", QUICKSTART, "--kernels", "none", "--headless"]


@pytest.fixture
def recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / "run.rec"
    assert main(["replay", QUICKSTART, "--kernels", "none", "--headless", "--record", str(path)]) == 0
    capsys.readouterr()
    return path


def complaint(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a call which must fail with exit code 2 prints."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err.strip()


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.97])
def test_a_recording_that_was_cut_is_said_to_be_damaged(
    keep: float, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = recording.read_bytes()
    recording.write_bytes(data[: int(len(data) * keep)])
    assert "run.rec: damaged recording: " in complaint(["replay", str(recording), "--headless"], capsys)


@pytest.mark.parametrize(("schema", "advice"), [(7, ""), (1, "; record the trace again")])
def test_another_schema_is_named(
    schema: int, advice: str, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sqlite3.connect(recording) as db:
        db.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (str(schema).encode(),))
    db.close()
    line = complaint(["replay", str(recording)], capsys)
    assert line == (
        f"tinyserve-viz: {recording}: recording has schema {schema}, this version reads schema {SCHEMA}{advice}"
    )


def test_another_sqlite_file_is_no_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    db = sqlite3.connect(tmp_path / "other.db")
    db.execute("CREATE TABLE t(x)")
    db.commit()
    db.close()
    line = complaint(["replay", str(tmp_path / "other.db")], capsys)
    assert line.endswith("is a SQLite file of something else (application id 0x0)")


def test_a_damaged_header_is_one_line(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sqlite3.connect(recording) as db:
        db.execute("UPDATE meta SET value = ? WHERE key = 'settings'", (b"{",))
    db.close()
    assert "damaged recording: header: " in complaint(["replay", str(recording)], capsys)


def test_an_existing_file_is_refused_and_untouched(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = recording.read_bytes()
    line = complaint(["replay", QUICKSTART, "--headless", "--record", str(recording)], capsys)
    assert line.endswith("exists already, expected a new name (--force replaces it)")
    assert recording.read_bytes() == before


def test_a_directory_or_a_device_is_no_place_for_a_recording(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = complaint(["replay", QUICKSTART, "--headless", "--record", str(tmp_path)], capsys)
    assert line.endswith("is a directory, expected a file name")
    line = complaint(["replay", QUICKSTART, "--headless", "--force", "--record", "/dev/null"], capsys)
    assert line.endswith("is no regular file, expected a file name for the recording")
    line = complaint(["replay", QUICKSTART, "--headless", "--record", str(tmp_path / "no" / "run.rec")], capsys)
    assert line.endswith(f"there is no folder {tmp_path}/no; make it first, or choose another place")


def test_a_full_disk_is_one_line_and_the_old_recording_stays(recording: Path) -> None:
    before = recording.read_bytes()

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    answer = subprocess.run(
        [*COMMAND, "--record", str(recording), "--force"],
        capture_output=True,
        text=True,
        preexec_fn=small_files,
        check=False,
    )
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr.count("\n") == 1
    assert "run.rec: cannot be written: " in answer.stderr
    assert recording.read_bytes() == before


def long_trace(path: Path) -> str:
    """A trace whose replay takes many times as long as any test waits."""
    lines = ["num_prefill_tokens,num_decode_tokens"] + ["300,400"] * 40_000
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize("after_s", [0.7, 1.1, 1.6])
def test_a_killed_replay_leaves_a_recording_of_whole_steps(after_s: float, tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    command = [sys.executable, "-m", "tinyserve_viz", "replay", long_trace(tmp_path / "l.csv"), "--headless"]
    process = subprocess.Popen([*command, "--record", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(after_s)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    with Timeline(path) as timeline:
        assert not timeline.complete
        if timeline.num_events:
            _, last = timeline.event(timeline.num_events - 1)
            assert type(last).__name__ in ("StepEnded", "ClockJumped")
        state = timeline.seek(timeline.num_events)
        assert state.step == timeline.step_of(timeline.num_events)


def test_ctrl_c_exits_with_130_and_keeps_the_recording(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    command = [sys.executable, "-m", "tinyserve_viz", "replay", long_trace(tmp_path / "l.csv"), "--headless"]
    process = subprocess.Popen(
        [*command, "--record", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(1.0)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "tinyserve-viz: interrupted\n")
    assert [file.name for file in tmp_path.iterdir() if "run.rec" in file.name] == ["run.rec"]
    with Timeline(path) as timeline:
        assert timeline.num_events > 0
        assert not timeline.complete
