"""`memcheck` with a compute-sanitizer of our own: what it finds, what it prints, how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tinyserve_viz.cli import memcheck, on_gpu
from tinyserve_viz.cli.main import main
from tinyserve_viz.core import toolkit
from tinyserve_viz.kernels import cuda_backend

# From an H100, sanitizer 13.0, of a kernel launched over one thread block more than its arrays hold.
ADDRESSES = """========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at warp_sums+0x190
=========     by thread (0,0,0) in block (4,0,0)
=========     Access to 0x7f26fc800400 is out of bounds
=========     and is 1 bytes after the nearest allocation at 0x7f26fc800200 of size 512 bytes
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame: pycuda::function::launch_kernel(object) [0x1d24f9] in _driver.so
=========         Host Frame: _start [0x257a04] in python3
=========
========= Uninitialized __global__ memory read of size 4 bytes
=========     at warp_sums+0xc0
=========     by thread (1,0,0) in block (2,0,0)
=========
========= ERROR SUMMARY: 2 errors
"""
RACES = """========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at block_exclusive_scan(long, long *)+0x70 in common.cuh:74
=========     and Read access at block_fork+0x90 [16 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
CLEAN = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"


def test_a_log_is_read_as_findings_with_their_kernel() -> None:
    errors, findings = memcheck.read_log(ADDRESSES)
    assert errors == 2
    assert [(one.what, one.kernel) for one in findings] == [
        ("Invalid __global__ write of size 4 bytes", "warp_sums"),
        ("Uninitialized __global__ memory read of size 4 bytes", "warp_sums"),
    ]
    assert findings[0].details == (
        "at warp_sums+0x190",
        "by thread (0,0,0) in block (4,0,0)",
        "Access to 0x7f26fc800400 is out of bounds",
        "and is 1 bytes after the nearest allocation at 0x7f26fc800200 of size 512 bytes",
    )
    assert memcheck.read_log(RACES)[0] == 1
    assert memcheck.read_log(RACES)[1][0].kernel == "block_exclusive_scan"
    assert memcheck.read_log(CLEAN) == (0, ())
    assert memcheck.read_log("========= COMPUTE-SANITIZER\n") == (None, ())


class Gpu:
    name, arch = "NVIDIA H100", "sm_90"


@pytest.fixture
def sanitizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sanitizer that notes how it was called and writes log.txt and out.json where they belong."""
    path = tmp_path / "compute-sanitizer"
    path.write_text(
        f"""#!/bin/sh
echo "$@" >> {tmp_path}/calls
while [ "$1" != --log-file ]; do shift; done
cat {tmp_path}/log.txt > "$2"
cat {tmp_path}/out.json
""",
        encoding="utf-8",
    )
    path.chmod(0o755)
    monkeypatch.setattr(cuda_backend, "gpu", Gpu)
    monkeypatch.setattr(on_gpu, "compiled", lambda *_: None)
    monkeypatch.setattr(toolkit, "find_program", lambda name: path if name == "compute-sanitizer" else None)
    answer(tmp_path, CLEAN)
    return path


def answer(folder: Path, log: str, counts: dict[str, int] | None = None) -> None:
    (folder / "log.txt").write_text(log, encoding="utf-8")
    out = json.dumps({"counts": counts or {"OK": 5, "FAIL": 0, "NOT SUPPORTED": 1}})
    (folder / "out.json").write_text(out, encoding="utf-8")


def test_all_four_tools_run_over_the_cases(sanitizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memcheck", "--kernel", "block_fork", "--nvcc", "/opt/nvcc"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("(")[0] for line in lines] == [f"{tool:<10} 5 cases, nothing found " for tool in memcheck.TOOLS]
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[1] for call in calls] == list(memcheck.TOOLS)
    assert all(
        call.endswith("-m tinyserve_viz kernels verify --backend cuda --json --kernel block_fork --nvcc /opt/nvcc")
        for call in calls
    )


def test_a_finding_makes_exit_code_1_and_names_the_kernel(
    sanitizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(tmp_path, ADDRESSES)
    assert main(["memcheck", "--tool", "memcheck"]) == 1
    said = capsys.readouterr().out
    assert "memcheck   5 cases, 2 errors" in said
    assert "  warp_sums: Invalid __global__ write of size 4 bytes\n      at warp_sums+0x190\n" in said
    assert main(["memcheck", "--tool", "racecheck", "--json"]) == 1
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["device"], len(found["runs"])) == (1, "NVIDIA H100", 1)
    assert found["runs"][0]["findings"][1]["what"].startswith("Uninitialized")


def test_a_case_that_fails_under_the_tool_is_a_finding_too(
    sanitizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(tmp_path, CLEAN, {"OK": 4, "FAIL": 1, "NOT SUPPORTED": 0})
    assert main(["memcheck", "--tool", "initcheck"]) == 1
    assert "initcheck  5 cases, 1 FAILED, nothing found" in capsys.readouterr().out


def test_a_tool_that_does_not_run_to_its_end_is_an_error_and_no_clean_result(
    sanitizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(tmp_path, "========= COMPUTE-SANITIZER\n========= Error: Device not supported.\n")
    assert main(["memcheck"]) == 2
    assert capsys.readouterr().err == (
        "tinyserve-viz: compute-sanitizer memcheck did not run to its end: Error: Device not supported.\n"
    )
    answer(tmp_path, CLEAN)
    (tmp_path / "out.json").write_text("", encoding="utf-8")
    assert main(["memcheck"]) == 2


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["memcheck"], "memcheck needs compute-sanitizer, which is not beside nvcc, in PATH or in NVIDIA's wheels: "
                       "pip install 'nvidia-cuda-sanitizer-api==13.0.*'"),
        (["profile", "--kernel", "block_fork"], "profile needs ncu, which is not beside nvcc, in PATH or in NVIDIA's "
                                                "wheels: apt-get install cuda-nsight-compute-13-0, from NVIDIA's "
                                                "repository"),
    ],
)  # fmt: skip
def test_a_program_that_is_not_installed_is_named_with_what_installs_it(
    command: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda_backend, "gpu", Gpu)
    monkeypatch.setattr(toolkit, "find_program", lambda _name: None)
    assert main(command) == 2
    assert capsys.readouterr().err == f"tinyserve-viz: {message}\n"
