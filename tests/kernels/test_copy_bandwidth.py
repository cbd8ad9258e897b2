"""The copy that a compaction's predicted time rests on: bytes read and written, over the median of the timed copies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from tinyserve_viz.kernels.copy_bandwidth import device_copy_bandwidth, host_copy_bandwidth


def test_the_hosts_copy_is_measured_once_and_named() -> None:
    found = host_copy_bandwidth()
    assert found["of"] == "host memory copy"
    assert 0.1 < found["gb_per_s"] < 10_000
    assert host_copy_bandwidth() is found


def test_a_devices_copy_counts_both_directions_and_leaves_no_memory_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[int] = []
    now = [0.0]

    class Event:
        def record(self) -> None:
            self.at = now[0]

        def synchronize(self) -> None:
            pass

        def time_till(self, later: Event) -> float:
            return later.at - self.at  # ms

    def copy(_target: object, _source: object, size: int) -> None:
        now[0] += size / 1.5e9  # ms at 1,500 GB/s copied, which is 3,000 read and written

    def allocate(size: int) -> SimpleNamespace:
        return SimpleNamespace(free=lambda: freed.append(size))

    @contextmanager
    def current() -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(mem_alloc=allocate, Event=Event, memcpy_dtod_async=copy)

    device = SimpleNamespace(name="a GPU", current=current)
    monkeypatch.setattr("tinyserve_viz.kernels.cuda_backend.gpu", lambda: device)
    device_copy_bandwidth.cache_clear()
    found = device_copy_bandwidth()
    device_copy_bandwidth.cache_clear()
    assert found["of"] == "a GPU memory copy"
    assert found["gb_per_s"] == pytest.approx(3000)
    assert len(freed) == 2
