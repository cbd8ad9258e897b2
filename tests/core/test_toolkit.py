"""Where the CUDA compiler is looked for, and what is asked of it."""

from __future__ import annotations

import os
import stat
import tomllib
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from tinyserve_viz.core import toolkit
from tinyserve_viz.core.errors import KernelError


def script(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No compiler anywhere; wheels would be below tmp/wheels."""
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", os.devnull)
    spec = ModuleSpec("nvidia", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "wheels" / "nvidia")]
    monkeypatch.setattr(toolkit.importlib.util, "find_spec", lambda name: spec if name == "nvidia" else None)
    return tmp_path


def test_the_option_goes_before_cuda_home_before_path_before_the_wheels(
    nothing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KernelError, match=r"nvcc not found in --nvcc, \$CUDA_HOME, PATH and the nvidia-cuda-nvcc w"):
        toolkit.find_nvcc()
    older = script(nothing / "wheels/nvidia/cu12/bin/nvcc")
    assert toolkit.find_nvcc() == older
    newer = script(nothing / "wheels/nvidia/cu13/bin/nvcc")
    assert toolkit.find_nvcc() == newer
    on_path = script(nothing / "path/nvcc")
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert toolkit.find_nvcc() == on_path
    monkeypatch.setenv("CUDA_HOME", str(nothing / "home"))
    assert toolkit.find_nvcc() == on_path  # the folder holds no compiler
    home = script(nothing / "home/bin/nvcc")
    assert toolkit.find_nvcc() == home
    option = script(nothing / "option/bin/nvcc")
    assert toolkit.find_nvcc(str(option)) == option
    assert toolkit.find_nvcc(str(nothing / "option")) == option
    assert toolkit.find_nvcc("nvcc") == on_path
    with pytest.raises(KernelError, match=r"^nvcc not found at /no/such$"):
        toolkit.find_nvcc("/no/such")


def test_the_extra_brings_the_wheels_that_doctor_names() -> None:
    project = Path(__file__).parents[2] / "pyproject.toml"
    extra = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["optional-dependencies"]["nvcc"]
    assert extra == [f"{wheel}=={toolkit.WHEELS_VERSION}" for wheel in toolkit.WHEELS]


def test_the_toolkit_behind_a_wrapper_is_what_the_compiler_says(nothing: Path) -> None:
    wrapper = script(nothing / "path/nvcc", "echo '#$ _SPACE_= ' >&2; echo '#$ _HERE_=/opt/cuda-13.0/bin' >&2")
    assert toolkit.is_wrapper(wrapper)
    assert toolkit.toolkit_root(wrapper) == Path("/opt/cuda-13.0")
    link = nothing / "link"
    link.symlink_to("/bin/true")
    assert toolkit.is_wrapper(link)
    assert not toolkit.is_wrapper(Path("/bin/true").resolve())
    silent = script(nothing / "root/bin/nvcc", "exit 1")
    assert toolkit.toolkit_root(silent) == nothing / "root"


def test_headers_are_found_in_both_places_that_toolkits_use(tmp_path: Path) -> None:
    for root, folder in (("a", "include"), ("b", "targets/x86_64-linux/include")):
        (tmp_path / root / folder).mkdir(parents=True)
        assert not toolkit.has_header(tmp_path / root, "curand.h")
        (tmp_path / root / folder / "curand.h").touch()
        assert toolkit.has_header(tmp_path / root, "curand.h")


def test_a_program_of_the_toolkit_is_found_beside_the_compiler_in_path_and_in_the_wheels(
    nothing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert toolkit.find_program("ncu") is None
    wheel = script(nothing / "wheels/nvidia/cu13/bin/ncu")
    assert toolkit.find_program("ncu") == wheel
    on_path = script(nothing / "path/ncu")
    monkeypatch.setenv("PATH", f"{on_path.parent}:/usr/bin:/bin")
    assert toolkit.find_program("ncu") == on_path
    script(nothing / "home/bin/nvcc", f"echo '#$ _HERE_={nothing}/home/bin'")
    monkeypatch.setenv("CUDA_HOME", str(nothing / "home"))
    assert toolkit.find_program("ncu") == on_path
    beside = script(nothing / "home/bin/ncu")
    assert toolkit.find_program("ncu") == beside


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Cuda compilation tools, release 13.0, V13.0.88", (13, 0)),
        ("| NVIDIA-SMI 580.95   Driver Version: 580.95   CUDA Version: 13.0 |", (13, 0)),
        ("nothing of the kind", None),
    ],
)
def test_a_release_is_read_from_what_compilers_and_drivers_say(said: str, expected: tuple[int, int] | None) -> None:
    assert toolkit.release(said) == expected


def test_a_compiler_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    broken = script(tmp_path / "nvcc", "exit 3")
    with pytest.raises(KernelError, match=f"^{broken} cannot be run: "):
        toolkit.compiler_version(broken)
