from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import Any

import pytest

from tinyserve_viz.kernels import cuda_launch
from tinyserve_viz.kernels.cuda_backend import Plan
from tinyserve_viz.kernels.cuda_launch import Followers, LaunchRefusedError, followers


class Library:
    """Stands for libcuda: `calls` names what was called, `launches` has what was launched and how."""

    def __init__(self, refuses: str = "") -> None:
        self.calls: list[str] = []
        self.launches: list[dict[str, Any]] = []
        self.refuses = refuses

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name == "cuLaunchKernelEx":
                self._launch(*arguments)
            if name == "cuGetErrorString":
                ctypes.cast(arguments[1], ctypes.POINTER(ctypes.c_char_p))[0] = b"invalid argument"
            return int(name == self.refuses)

        return call

    def _launch(self, config: Any, _function: Any, parameters: Any, extra: Any) -> None:
        words = ctypes.string_at(ctypes.addressof(config._obj), 56)  # CUlaunchConfig of cuda.h
        *shape, stream, attributes, count = struct.unpack("7IxxxxQQI", words[:52])
        size = ctypes.cast(extra[3], ctypes.POINTER(ctypes.c_size_t))[0]
        assert parameters is None
        assert (extra[0], extra[2], extra[4]) == (1, 2, None)  # CU_LAUNCH_PARAM_BUFFER_POINTER, _SIZE, _END
        self.launches.append({
            "shape": shape, "stream": stream, "count": count,
            "attribute": struct.unpack("iii", ctypes.string_at(attributes, 12))[::2],
            "packed": ctypes.string_at(extra[1], size),
        })  # fmt: skip


def test_a_follower_is_launched_with_its_shape_and_may_start_early() -> None:
    library = Library()
    follower = Followers(library).follower("a.cubin", "entry", "PPqi", (5, 2, 1), 96, 1024)
    follower.launch((0x1000, 0x2000, 1 << 40, -3), 77)
    (found,) = library.launches
    assert found["shape"] == [5, 2, 1, 96, 1, 1, 1024]
    assert found["stream"] == 77
    assert (found["count"], found["attribute"]) == (1, (6, 1))  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    assert found["packed"] == struct.pack("QQqi", 0x1000, 0x2000, 1 << 40, -3)


def test_a_cubin_is_loaded_once_and_much_shared_memory_is_asked_for() -> None:
    library = Library()
    here = Followers(library)
    for shared in (48 << 10, 49 << 10):
        here.follower("a.cubin", "entry", "P", (1, 1, 1), 32, shared)
    assert library.calls.count("cuModuleLoad") == 1
    assert library.calls.count("cuFuncSetAttribute") == 1


def test_what_the_driver_refuses_is_told_in_its_words() -> None:
    follower = Followers(Library(refuses="cuLaunchKernelEx")).follower("a.cubin", "entry", "P", (1, 1, 1), 32, 0)
    with pytest.raises(LaunchRefusedError, match=r"^cuLaunchKernelEx failed: invalid argument$"):
        follower.launch((0,), 0)


@pytest.mark.parametrize(("capability", "driver"), [(8, 13_000), (9, 12_020)])
def test_older_devices_and_drivers_launch_one_after_the_other(
    capability: int, driver: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_launch.ctypes, "CDLL", lambda _name: Library())
    assert followers(capability, driver) is None
    assert followers(9, 12_030) is not None


def test_so_does_a_driver_that_has_no_such_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_launch.ctypes, "CDLL", lambda _name: object())
    assert followers(9, 13_000) is None


def test_a_plan_launches_the_first_itself_and_the_others_behind_it() -> None:
    put: list[tuple[str, Any]] = []

    class Function:
        def __init__(self, name: str) -> None:
            self.name = name

        def prepared_async_call(self, _grid: Any, _block: Any, stream: Any, *arguments: Any, **_shared: int) -> None:
            put.append((self.name, (stream, arguments)))

    class Stream:
        handle = 9

    launches = tuple((name, Function(name), (1, 1, 1), 32, 0) for name in ("one", "two"))
    stream, library = Stream(), Library()
    Plan(launches).launch((1,), stream)
    assert put == [("one", (stream, (1,))), ("two", (stream, (1,)))]
    put.clear()
    second = Followers(library).follower("a.cubin", "two", "P", (1, 1, 1), 32, 0)
    Plan(launches, (second,)).launch((1,), stream)
    assert put == [("one", (stream, (1,)))]
    assert [found["stream"] for found in library.launches] == [9]
    Plan(launches, (second,)).launch((1,))
    assert [found["stream"] for found in library.launches] == [9, 0]


def test_a_call_that_starts_early_has_all_its_launches_behind_what_was_before() -> None:
    library = Library()
    both = tuple(Followers(library).follower("a.cubin", name, "P", (1, 1, 1), 32, 0) for name in ("one", "two"))
    untouched: Any = object()  # PyCUDA's function is not called
    Plan(tuple((name, untouched, (1, 1, 1), 32, 0) for name in ("one", "two")), both).launch((1,))
    assert [found["attribute"] for found in library.launches] == [(6, 1), (6, 1)]
