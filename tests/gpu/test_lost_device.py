"""A kernel that traps takes the device away in the middle of a replay: in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.recording.timeline import Timeline

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]


def test_a_lost_device_ends_in_one_line_and_the_recording_opens_to_the_step_before(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    trace = str(data_folder("traces") / "quickstart.json")
    options = ["--headless", "--backend", "cuda", "--verify", "off", "--record", str(path)]
    command = [sys.executable, "-m", "tests.gpu.replay_with_trap", "100", "replay", trace, *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 3
    assert ended.stdout == ""
    said = re.fullmatch(r"tinyserve-viz: (.*) failed (.*), in step (\d+); (.*)\n", ended.stderr)
    assert said, ended.stderr
    assert said[4] == f"{path} holds the steps before"
    with Timeline(path) as timeline:
        assert not timeline.complete
        assert max(step for step, _ in timeline.events()) == int(said[3]) - 1
