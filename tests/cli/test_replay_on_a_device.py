"""`replay --backend cuda` from the command line to the summary, on a device made of memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.kernels.memory_device import MemoryDevice
from tinyserve_viz.cli import session
from tinyserve_viz.cli.backend import Chosen
from tinyserve_viz.cli.main import main
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.kernels.cuda_session import CudaSession
from tinyserve_viz.kernels.verified_session import VerifiedSession
from tinyserve_viz.recording.timeline import Timeline

QUICKSTART = str(data_folder("traces") / "quickstart.json")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> MemoryDevice:
    """The device that every replay of the test runs on."""
    device = MemoryDevice()

    def opened(header: Any) -> Any:
        found = CudaSession(device, header.origin["time_repeat"])
        return found if header.origin["verify"] == "off" else VerifiedSession(found)

    monkeypatch.setattr(session, "choose_backend", lambda wanted: Chosen("cuda", "memory", 1 << 32))
    monkeypatch.setattr(session, "open_session", opened)
    return device


def replay(*options: str) -> list[str]:
    return ["replay", QUICKSTART, "--headless", "--backend", "cuda", "--quality", "off", *options]


@pytest.mark.usefixtures("device")
def test_the_summary_names_backend_device_and_what_was_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*replay("--limit", "3"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["backend"], found["device"], found["fallback"]) == ("cuda", "memory", None)
    assert found["copy_bandwidth"]["of"] == "device-to-device copy on memory"
    assert found["verify"]["mode"] == "every"
    assert found["verify"]["steps"] == found["steps"]
    assert found["verify"]["calls"] == sum(kernel["calls"] for kernel in found["kernels"])
    assert found["verify"]["mismatches"] == 0
    assert found["host"]["step_us"]["median"] > 0
    assert all(kernel["coarse"] and kernel["percent_of_copy"] > 0 for kernel in found["kernels"])


@pytest.mark.usefixtures("device")
def test_the_text_says_how_times_were_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(replay("--limit", "3", "--verify", "off")) == 0
    text = capsys.readouterr().out
    assert "cuda on memory, kernels all" in text
    assert "(measured on memory) " in text
    assert "not verified on the host" in text


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    ("options", "note"),
    [
        (["--alloc", "cas"], "who gets which block under --alloc cas is a race"),
        (["--clock", "measured", "--attention", "flash"], "the clock is measured, so no two replays agree"),
    ],
)
def test_what_no_two_replays_share_has_no_digest_and_says_why(
    options: list[str], note: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*replay("--limit", "3", *options), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["digest"], found["digest_note"]) == (None, note)
    assert found["invariants"]["violations"] == 0


def test_a_measured_clock_counts_the_kernels_once_a_layer(
    device: MemoryDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    times = {}
    for layers in ("1", "10"):
        options = replay("--limit", "1", "--clock", "measured", "--clock-layers", layers, "--verify", "off")
        assert main([*options, "--json"]) == 0
        times[layers] = json.loads(capsys.readouterr().out)["virtual_time_s"]
    assert times["10"] == pytest.approx(10 * times["1"], rel=0.1)


def test_a_lost_device_ends_in_one_line_and_the_recording_opens_to_the_step_before(
    device: MemoryDevice, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device.fail_at = "block_fork"
    path = tmp_path / "run.rec"
    assert main(replay("--record", str(path), "--verify", "off")) == 3
    said = capsys.readouterr()
    assert said.out == ""
    words, _, kept = said.err.strip().partition(", in step ")
    assert words == (
        "tinyserve-viz: memory failed to launch block_fork: an illegal memory access was encountered"
    )
    step, _, where = kept.partition("; ")
    assert where == f"{path} holds the steps before"
    with Timeline(path) as timeline:
        assert not timeline.complete
        assert max(step for step, _ in timeline.events()) == int(step) - 1


def test_alloc_cas_hands_out_the_lowest_free_blocks_on_numpy_and_keeps_its_digest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = []
    for _ in range(2):
        options = ["replay", QUICKSTART, "--headless", "--json", "--backend", "numpy", "--kernels", "decisions"]
        assert main([*options, "--alloc", "cas"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["digest"] == found[1]["digest"]
    assert found[0]["invariants"]["violations"] == 0
    assert found[0]["blocks"]["leaked"] == 0
