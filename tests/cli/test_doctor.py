"""`doctor` where one thing after the other is missing: what it says, what mends it, and the exit code."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tinyserve_viz.cli import doctor, doctor_cuda
from tinyserve_viz.cli.main import main
from tinyserve_viz.core import toolkit


def checks(capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, dict[str, Any]]:
    """The checks of `doctor --json` by name."""
    assert main(["doctor", "--json"]) == code
    printed = capsys.readouterr()
    assert printed.err == ""
    found = json.loads(printed.out)
    assert found["schema"] == 1
    needed = {check["needed_for"] for check in found["checks"]}
    assert set(found["able"]) == needed
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
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(doctor_cuda.importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(toolkit, "driver_release", lambda: None)
    toolkit.compiler_version.cache_clear()
    return tmp_path


@pytest.fixture
def with_pycuda(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyCUDA 2026.1 is installed; what it says when it is asked is up to the test."""
    spec = importlib.machinery.ModuleSpec("pycuda", None)
    monkeypatch.setattr(doctor_cuda.importlib.util, "find_spec", lambda name: spec if name == "pycuda" else None)
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2026.1" if name == "pycuda" else real(name))


def compiler(folder: Path, release: str = "13.0", compiles: str = "exit 0") -> Path:
    """A compiler of its own toolkit folder that tells its version and where it is, and compiles as told."""
    text = f"""case "$*" in
*--version*) echo 'Cuda compilation tools, release {release}, V{release}.88' ;;
*--dryrun*) echo '#$ _HERE_={folder}/bin' >&2 ;;
*) {compiles} ;;
esac"""
    return program(folder, "nvcc", text)


def test_a_machine_that_can_replay_is_ok_whatever_else_it_lacks(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = checks(capsys)
    needed = {name for name, check in found.items() if check["needed_for"] == "every replay"}
    assert {"Python", "numpy", "msgspec", "textual", "plotext", "matplotlib", "traces/", "cuda/"} <= needed
    assert all(found[name]["ok"] for name in needed)
    assert {name: found[name]["found"] for name in ("nvcc", "host compiler", "PyCUDA", "GPU")} == {
        "nvcc": "not found in --nvcc, $CUDA_HOME, PATH and the nvidia-cuda-nvcc wheels",
        "host compiler": "no g++ in PATH",
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
    assert found["found"] == f"{nvcc} {release.split()[1].rstrip(',')}"
    assert ("nvidia-cuda-nvcc==13.0.*" in found["mend"]) is not ok


def test_a_compiler_that_cannot_compile_says_why_and_what_mends_it(
    bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler(bare, compiles="echo 'gcc: No such file or directory' >&2; exit 1")
    found = checks(capsys)
    assert (found["host compiler"]["ok"], found["host compiler"]["mend"]) == (False, "apt-get install g++")
    assert found["a kernel compiles"]["found"] == "gcc: No such file or directory"
    assert found["a kernel compiles"]["mend"] == "apt-get install g++"
    program(bare, "g++", "echo 12.2.0")
    found = checks(capsys)
    assert found["host compiler"]["found"] == f"{bare}/bin/g++ 12.2.0"
    assert "nvidia-cuda-crt==13.0.*" in found["a kernel compiles"]["mend"]
    compiler(bare)
    assert checks(capsys)["a kernel compiles"]["ok"]


def test_what_building_pycuda_needs_is_looked_for_where_its_build_looks(
    bare: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler(bare)
    settings = bare / ".aksetup-defaults.py"
    found = checks(capsys)
    assert found["toolkit folder"]["found"] == f"{bare}; {bare}/bin/nvcc is a link or wrapper"
    assert found["toolkit folder"]["mend"] == f"""echo "CUDA_ROOT='{bare}'" >> ~/.aksetup-defaults.py"""
    assert (found["cudaProfiler.h"]["ok"], "profiler-api" in found["cudaProfiler.h"]["mend"]) == (False, True)
    assert found["curand.h"]["mend"] == "echo CUDA_ENABLE_CURAND=False >> ~/.aksetup-defaults.py"
    assert not found["libcuda.so"]["ok"]
    (bare / "include").mkdir()
    for name in ("cuda.h", "cudaProfiler.h"):
        (bare / "include" / name).touch()
    (bare / "lib64").mkdir()
    (bare / "lib64" / "libcuda.so").touch()
    settings.write_text(f"CUDA_ROOT='{bare}'\nCUDA_ENABLE_CURAND=False\n")
    found = checks(capsys)
    names = ("toolkit folder", "cuda.h", "cudaProfiler.h", "curand.h", "libcuda.so")
    assert [found[name]["ok"] for name in names] == [True] * 5
    assert found["curand.h"]["found"] == "absent, and switched off in ~/.aksetup-defaults.py"
    settings.unlink()
    (bare / "include" / "curand.h").touch()
    assert checks(capsys)["curand.h"]["found"] == "found"


def test_nothing_is_said_of_building_pycuda_where_it_is_installed(
    with_pycuda: None, bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler(bare)
    assert "building PyCUDA" not in {check["needed_for"] for check in checks(capsys).values()}


@pytest.mark.parametrize(
    ("said", "code", "ok", "found", "mend"),
    [
        ("1 NVIDIA H100", 0, True, "2026.1, sees NVIDIA H100", ""),
        ("0", 0, False, "2026.1, sees no GPU", "unset CUDA_VISIBLE_DEVICES"),
        (
            "ImportError: libcuda.so.1: cannot open shared object file: No such file or directory",
            1,
            False,
            "2026.1, but: ImportError: libcuda.so.1: cannot open shared object file: No such file or directory",
            "apt-get install nvidia-driver",
        ),
        ("pycuda._driver.LogicError: cuInit failed: no CUDA-capable device is detected", 1, False,
         "2026.1, but: pycuda._driver.LogicError: cuInit failed: no CUDA-capable device is detected",
         "apt-get install nvidia-driver"),
        ("ImportError: numpy.core.multiarray failed to import", 1, False,
         "2026.1, but: ImportError: numpy.core.multiarray failed to import", "pip install --force-reinstall"),
    ],
)  # fmt: skip
def test_pycuda_is_asked_in_a_process_of_its_own(
    said: str, code: int, ok: bool, found: str, mend: str, with_pycuda: None, bare: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    python = program(bare, "python", f"echo '{said}' {'>&2' if code else ''}; exit {code}")
    monkeypatch.setattr(doctor_cuda.sys, "executable", str(python))
    check = checks(capsys)["PyCUDA"]
    assert (check["ok"], check["found"]) == (ok, found)
    assert check["mend"].startswith(mend)
    assert bool(check["mend"]) != ok


@pytest.mark.parametrize(("driver", "nvcc", "ok"), [((13, 0), "13.0", True), ((13, 0), "13.2", True),
                                                    ((12, 8), "13.0", False), ((13, 0), "12.8", True)])  # fmt: skip
def test_a_driver_older_than_the_compilers_cuda_is_found(
    driver: tuple[int, int], nvcc: str, ok: bool, bare: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    compiler(bare, nvcc)
    monkeypatch.setattr(toolkit, "driver_release", lambda: driver)
    check = checks(capsys)["driver"]
    assert (check["ok"], check["found"]) == (ok, f"it runs CUDA {driver[0]}.{driver[1]}, nvcc is {nvcc}")
    assert ("or export CUDA_HOME=" in check["mend"]) != ok


def test_the_programs_of_memcheck_and_profile_are_looked_for(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = checks(capsys)
    assert found["compute-sanitizer"]["mend"] == "pip install 'nvidia-cuda-sanitizer-api==13.0.*'"
    assert found["compute-sanitizer"]["needed_for"] == "tinyserve-viz memcheck"
    sanitizer = program(bare, "compute-sanitizer", "")
    assert checks(capsys)["compute-sanitizer"]["found"] == str(sanitizer)


@pytest.mark.parametrize(
    ("environment", "size", "failing"),
    [
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, (120, 40), []),
        ({"TERM": "xterm", "NO_COLOR": "1"}, (59, 16), ["terminal size"]),
        ({"TERM": "dumb"}, (60, 15), ["terminal size", "TERM"]),
    ],
)
def test_a_terminal_is_told_what_it_lacks(
    environment: dict[str, str], size: tuple[int, int], failing: list[str], bare: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in ("TERM", "COLORTERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for stream in (doctor.sys.stdin, doctor.sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(doctor.shutil, "get_terminal_size", lambda: os.terminal_size(size))
    found = checks(capsys)
    assert [name for name in ("terminal", "terminal size", "TERM") if not found[name]["ok"]] == failing
    colours = {"truecolor": "16 million colours", None: "16 colours"}[environment.get("COLORTERM")]
    assert ("no colours (NO_COLOR)" if "NO_COLOR" in environment else colours) in found["terminal"]["found"]


def test_a_compiler_that_says_nothing_is_of_unknown_version(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program(bare, "nvcc", "exit 1")
    found = checks(capsys)["nvcc"]
    assert (found["ok"], "unknown version" in found["found"]) == (False, True)


@pytest.mark.parametrize(
    ("script", "ok", "found"),
    [
        ("echo 'NVIDIA H100, 580.95, 81559 MiB, 9.0'", True, "NVIDIA H100, 580.95, 81559 MiB, 9.0"),
        ("echo 'Tesla V100, 580.95, 16160 MiB, 7.0'", False, "Tesla V100, 580.95, 16160 MiB, 7.0: older than 7.5"),
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
    able = lines.pop()
    assert able.startswith("every replay: yes, compiling the CUDA kernels: no, ")
    heads = [line for line in lines if not line.startswith(" ")]
    assert [line.split()[0] for line in heads] == ["ok" if check["ok"] else "MISSING" for check in found.values()]
    assert len(lines) - len(heads) == sum(not check["ok"] for check in found.values())


def test_it_changes_nothing(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(bare.rglob("*"))
    checks(capsys)
    assert sorted(bare.rglob("*")) == before
    assert shutil.which("nvcc") is None
