"""`--backend cuda` where one thing after the other is missing: a message of its own for each, and exit code 3."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinyserve_viz.cli.main import main
from tinyserve_viz.cli.session import Settings, prepare
from tinyserve_viz.core import toolkit
from tinyserve_viz.core.errors import KernelError
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.kernels import build, cuda_backend
from tinyserve_viz.trace import read_trace

# Enough of PyCUDA's driver to get as far as the compiler; what fails is put in its place.
DRIVER = """
class Error(Exception): pass
class MemoryError(Error): pass
def init(): {init}
def get_driver_version(): return 13000
class device_attribute:
    MULTIPROCESSOR_COUNT = 132
    MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 232448
class Device:
    def __init__(self, number): pass
    @staticmethod
    def count(): return {count}
    def name(self): return "NVIDIA H100"
    def compute_capability(self): return 9, 0
    def get_attribute(self, attribute): return attribute
    def retain_primary_context(self): return Context()
class Context:
    def push(self): pass
    def pop(self): pass
def mem_get_info(): return 1 << 30, 1 << 36
"""
QUICKSTART = str(data_folder("traces") / "quickstart.json")
COMMANDS = (
    ["kernels", "verify", "--backend", "cuda", "--kernel", "block_fork"],
    ["replay", QUICKSTART, "--headless", "--backend", "cuda"],
)
BENCH = ["kernels", "bench", "--kernel", "block_fork"]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No GPU is remembered from another test, and none from these."""
    cuda_backend.gpu.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "pycuda"]:
        monkeypatch.delitem(sys.modules, name)
    yield
    cuda_backend.gpu.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "pycuda"]:
        del sys.modules[name]


@pytest.fixture
def pycuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for a PyCUDA of our own; returns its driver module, still to be written."""
    package = tmp_path / "pycuda"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return package / "driver.py"


def complaint(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a command that must end with exit code 3."""
    assert main(command) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("tinyserve-viz: ")
    assert said.err.count("\n") == 1
    return said.err.removeprefix("tinyserve-viz: ").strip()


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_without_pycuda(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    assert complaint(command, capsys) == (
        "PyCUDA is not installed; pip install 'pycuda>=2025.1.2' (README: Install with a GPU), or use --backend numpy"
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_with_pycuda_and_no_driver(command: list[str], pycuda: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pycuda.write_text("raise ImportError('libcuda.so.1: cannot open shared object file')", encoding="utf-8")
    assert complaint(command, capsys) == (
        "PyCUDA cannot load the NVIDIA driver (libcuda.so.1: cannot open shared object file); "
        "install the driver, or use --backend numpy"
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_with_a_driver_that_finds_no_gpu(command: list[str], pycuda: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failing = "raise Error('cuInit failed: no CUDA-capable device is detected')"
    pycuda.write_text(DRIVER.format(init=failing, count=0), encoding="utf-8")
    assert complaint(command, capsys) == (
        "the NVIDIA driver finds no GPU (cuInit failed: no CUDA-capable device is detected); use --backend numpy"
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_with_every_gpu_hidden(command: list[str], pycuda: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pycuda.write_text(DRIVER.format(init="pass", count=0), encoding="utf-8")
    assert complaint(command, capsys) == "no GPU is visible (CUDA_VISIBLE_DEVICES?); use --backend numpy"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_with_a_gpu_and_no_compiler(
    command: list[str], pycuda: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def nowhere(_option: str | None = None) -> Path:
        raise KernelError(f"nvcc not found in {toolkit.SEARCHED}; tinyserve-viz doctor says how to get it")

    pycuda.write_text(DRIVER.format(init="pass", count=1), encoding="utf-8")
    monkeypatch.setattr(build, "cache_folder", lambda: tmp_path / "cache")
    for module in (toolkit, cuda_backend):
        monkeypatch.setattr(module, "find_nvcc", nowhere)
    assert complaint(command, capsys) == (
        "nvcc not found in --nvcc, $CUDA_HOME, PATH and the nvidia-cuda-nvcc wheels; tinyserve-viz doctor says how to "
        "get it; or use --backend numpy"
    )


@pytest.mark.parametrize("json", [[], ["--json"]])
def test_a_bench_is_refused_because_a_reference_is_none(
    json: list[str], pycuda: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    never = "bench times kernels on a GPU, never the NumPy reference: "
    pycuda.write_text("raise ImportError('libcuda.so.1: cannot open shared object file')", encoding="utf-8")
    assert complaint([*BENCH, *json], capsys) == (
        never
        + "PyCUDA cannot load the NVIDIA driver (libcuda.so.1: cannot open shared object file); install the driver"
    )
    pycuda.write_text(DRIVER.format(init="pass", count=0), encoding="utf-8")
    sys.modules.pop("pycuda.driver", None)
    importlib.invalidate_caches()
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    assert complaint([*BENCH, *json], capsys) == (
        never + "PyCUDA is not installed; pip install 'pycuda>=2025.1.2' (README: Install with a GPU)"
    )


def test_the_backend_compiles_with_the_compiler_that_was_asked_for(
    pycuda: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pycuda.write_text(DRIVER.format(init="pass", count=1), encoding="utf-8")
    monkeypatch.setattr(build, "cache_folder", lambda: tmp_path / "cache")
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\n[ $1 = --version ] && exit 0\necho \"error: $0 was asked\"; exit 1\n", encoding="utf-8")
    nvcc.chmod(0o755)
    assert main(["kernels", "verify", "--backend", "cuda", "--kernel", "block_fork", "--nvcc", str(nvcc)]) == 1
    assert f"error: {nvcc} was asked" in capsys.readouterr().out


def test_auto_takes_numpy_and_says_why(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    assert main(["replay", QUICKSTART, "--headless", "--json", "--kernels", "decisions", "--limit", "2"]) == 0
    said = capsys.readouterr()
    summary = json.loads(said.out)
    assert (summary["backend"], summary["fallback"]) == ("numpy", "PyCUDA is not installed")
    assert said.err == "tinyserve-viz: backend numpy: PyCUDA is not installed\n"
    assert main(["replay", QUICKSTART, "--headless", "--kernels", "none", "--limit", "2"]) == 0
    assert capsys.readouterr().err == ""  # no kernel would have run anywhere


@pytest.fixture
def small_gpu(pycuda: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU with 1 GiB of free memory, and a compiler."""
    pycuda.write_text(DRIVER.format(init="pass", count=1))
    monkeypatch.setattr(toolkit, "find_nvcc", lambda option=None: Path("nvcc"))


@pytest.mark.usefixtures("small_gpu")
def test_a_pool_that_does_not_fit_is_refused_and_auto_goes_to_numpy(capsys: pytest.CaptureFixture[str]) -> None:
    pool = ["--limit", "1", "--num-blocks", "200000"]
    assert main(["replay", QUICKSTART, "--headless", "--backend", "cuda", *pool]) == 2
    words = (
        "the pool of 200,000 blocks needs 1,920 MiB of GPU memory, 1,024 MiB are free on NVIDIA H100; "
        "--num-blocks 92256 would fit"
    )
    assert capsys.readouterr().err == f"tinyserve-viz: {words}\n"
    settings = Settings(backend="auto", engine={"num_blocks": 200_000})
    origin = prepare(read_trace(QUICKSTART), settings).origin
    assert (origin["backend"], origin["fallback"]) == ("numpy", words)


@pytest.mark.parametrize("option", [["--clock", "measured"], ["--time-repeat", "3"]], ids=" ".join)
def test_what_times_kernels_needs_a_gpu(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", QUICKSTART, "--headless", "--backend", "numpy", *option]) == 2
    assert capsys.readouterr().err.endswith("it needs --backend cuda and kernels\n")
