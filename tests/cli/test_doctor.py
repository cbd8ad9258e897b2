"""`doctor` where one thing after the other is missing: what it says, what mends it, and the exit code."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tinyserve_viz.cli import doctor
from tinyserve_viz.cli.main import main


def checks(capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, dict[str, Any]]:
    """The checks of `doctor --json` by name."""
    assert main(["doctor", "--json"]) == code
    printed = capsys.readouterr()
    assert printed.err == ""
    found = json.loads(printed.out)
    assert found["schema"] == 1
    return {check.pop("name"): check for check in found["checks"]}


def program(folder: Path, name: str, script: str) -> Path:
    """An executable shell script in a folder of its own."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any CUDA: an empty PATH, no CUDA_HOME, no wheels, a cache folder of its own."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda _name: None)
    return tmp_path


def test_a_machine_that_can_replay_is_ok_whatever_else_it_lacks(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = checks(capsys)
    needed = {name for name, check in found.items() if check["needed_for"] == "every replay"}
    assert {"Python", "numpy", "msgspec", "textual", "plotext", "matplotlib", "traces/", "cuda/"} <= needed
    assert all(found[name]["ok"] for name in needed)
    assert {name: found[name]["found"] for name in ("nvcc", "host compiler", "PyCUDA", "GPU")} == {
        "nvcc": "not found in $CUDA_HOME or PATH",
        "host compiler": "not found",
        "PyCUDA": "not installed",
        "GPU": "nvidia-smi not found",
    }


def test_what_is_missing_has_something_that_mends_it_and_what_is_there_has_not(
    bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, check in checks(capsys).items():
        assert bool(check["mend"]) != check["ok"], name
        assert check["needed_for"], name


def test_a_missing_package_is_a_finding(
    bare: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "msgspec":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert checks(capsys, code=1)["msgspec"] == {
        "ok": False,
        "found": "not installed",
        "needed_for": "every replay",
        "mend": "pip install -e . in the checkout",
    }


@pytest.mark.parametrize(
    ("release", "ok"), [("release 13.0, V13.0.48", True), ("release 12.8, V12.8.61", True), ("release 12.4, V", False)]
)
def test_a_compiler_is_ok_from_12_8_on(
    release: str, ok: bool, bare: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nvcc = program(bare, "nvcc", f"echo 'Cuda compilation tools, {release}'")
    monkeypatch.setenv("CUDA_HOME", str(bare))
    found = checks(capsys)["nvcc"]
    assert found["ok"] is ok
    assert found["found"].startswith(f"{nvcc} {release.split()[1].rstrip(',')} (a link or wrapper")
    assert ("nvidia-cuda-nvcc==13.0.*" in found["mend"]) is not ok


def test_a_compiler_that_says_nothing_is_of_unknown_version(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program(bare, "nvcc", "exit 1")
    found = checks(capsys)["nvcc"]
    assert (found["ok"], "unknown version" in found["found"]) == (False, True)


@pytest.mark.parametrize(
    ("script", "ok", "found"),
    [
        ("echo 'NVIDIA H100, 580.95, 81559 MiB, 9.0'", True, "NVIDIA H100, 580.95, 81559 MiB, 9.0"),
        ("echo 'NVIDIA-SMI has failed'; exit 9", False, "NVIDIA-SMI has failed"),
        ("exit 6", False, "no answer"),
    ],
)
def test_the_gpu_is_what_nvidia_smi_says(
    script: str, ok: bool, found: str, bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program(bare, "nvidia-smi", script)
    gpu = checks(capsys)["GPU"]
    assert (gpu["ok"], gpu["found"]) == (ok, found)


def test_a_gpu_that_does_not_answer_in_time_is_said_to_be_silent(
    bare: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program(bare, "nvidia-smi", "exit 0")

    def hang(*_args: Any, **_options: Any) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", 20)

    monkeypatch.setattr(subprocess, "run", hang)
    gpu = checks(capsys)["GPU"]
    assert (gpu["ok"], gpu["found"]) == (False, "nvidia-smi gave no answer in 20 s")


def test_the_text_has_a_line_for_each_check_and_one_below_for_what_mends_it(
    bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = checks(capsys)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if not line.startswith(" ")]
    assert [line.split()[0] for line in heads] == ["ok" if check["ok"] else "MISSING" for check in found.values()]
    assert len(lines) - len(heads) == sum(not check["ok"] for check in found.values())


def test_it_changes_nothing(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(bare.rglob("*"))
    checks(capsys)
    assert sorted(bare.rglob("*")) == before
    assert shutil.which("nvcc") is None
