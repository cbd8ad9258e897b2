"""The command `gen`: files, stdout and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tinyserve_viz.cli.main import main
from tinyserve_viz.trace import read_trace


def test_options_change_the_size_and_the_engine_that_the_trace_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "t.json"
    options = ["--requests", "7", "--rate", "100", "--prompt-len", "50", "--output-len", "5", "--num-blocks", "99"]
    assert main(["gen", "poisson", "-o", str(file), "--seed", "3", "--block-size", "8", *options, "--json"]) == 0
    trace = read_trace(file)
    assert (len(trace.requests), trace.seed) == (7, 3)
    assert trace.engine == {"block_size": 8, "num_blocks": 99, "max_num_seqs": 64}
    assert json.loads(capsys.readouterr().out) == {
        "schema": 1,
        "trace": {"name": "poisson", "format": "json", "num_requests": 7},
        "output": str(file),
        "bytes": file.stat().st_size,
    }


def test_stdout_gets_the_same_bytes_as_a_file(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    assert main(["gen", "forks", "-o", str(file)]) == 0
    command = [sys.executable, "-m", "tinyserve_viz", "gen", "forks", "-o", "-"]
    assert subprocess.run(command, capture_output=True, check=True).stdout == file.read_bytes()


def test_an_existing_file_is_kept_unless_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "t.json"
    file.write_text("precious")
    assert main(["gen", "forks", "-o", str(file)]) == 2
    assert (
        capsys.readouterr().err == f"tinyserve-viz: {file}: exists already, expected a new name (--force replaces it)\n"
    )
    assert file.read_text() == "precious"
    assert main(["gen", "forks", "-o", str(file), "--force"]) == 0
    assert read_trace(file).name == "forks"
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--rate", "0"], "argument --rate: '0' given, expected requests per second, 1e-6 to 1e6"),
        (["--rate", "nan"], "argument --rate: 'nan' given, expected requests per second, 1e-6 to 1e6"),
        (["--block-size", "12"], "argument --block-size: '12' given, expected a power of two, 1 to 1024"),
        (["--requests", "1.5"], "argument --requests: '1.5' given, expected a whole number, 1 to 10000000"),
        (["--json"], "--json and -o - both want stdout"),
    ],
)
def test_a_bad_option_is_one_line(options: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gen", "poisson", "-o", "-", *options]) == 2
    assert capsys.readouterr() == ("", f"tinyserve-viz gen: {expected}; see --help\n")


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gen", "poisson", "-o", str(tmp_path)]) == 2
    assert main(["gen", "poisson", "-o", str(tmp_path / "none" / "t.json")]) == 2
    missing = tmp_path / "none"
    assert capsys.readouterr().err.splitlines() == [
        f"tinyserve-viz: {tmp_path}: is a directory, expected a file name",
        f"tinyserve-viz: {missing}/t.json: there is no folder {missing}; make it first, or choose another place",
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gen", "poisson", "-o", "/dev/full"]) == 2
    assert capsys.readouterr().err == "tinyserve-viz: /dev/full: cannot be written (No space left on device)\n"
    command = [sys.executable, "-m", "tinyserve_viz", "gen", "poisson", "-o", "-"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (2, b"tinyserve-viz: No space left on device\n")
