"""How long a call takes on the device: CUDA graphs of calls over rotating inputs, replayed; the median over replays.

The method of the field's benchmarks (claims are only comparable where it is the same): inputs rotate over at least four
times the L2 cache or are twenty times as large, two calls on each set warm up, a graph of as many calls as fill 2 ms is
replayed for 40 ms, seven times at least. Calls that change what they work on get it restored before each call; a graph
of the restoring copies alone is replayed in turn, and the difference is the time.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyserve_viz.core.errors import KernelError
from tinyserve_viz.kernels.bench.device import Device
from tinyserve_viz.kernels.cuda_graph import GRAPH_CALLS, Graph

Launch = Callable[[Any], None]
_GRAPH_US = 2000.0
_ROW_US = 40_000.0
MAX_SETS = 64


@dataclass(frozen=True, slots=True)
class Timing:
    """µs of one call: median, distance of the quartiles, (p90 − p10) / median, from `replays` graphs of `calls`."""

    us: float
    iqr_us: float
    spread: float
    replays: int
    calls: int
    how: str


class TimedGraph:
    """What `launch(stream)` puts on the stream, replayed between two events."""

    def __init__(self, driver: Any, launch: Launch) -> None:
        """Capture.

        Raises:
            KernelError: the driver refuses what was launched.
        """
        library = ctypes.CDLL("libcuda.so.1")

        def do(name: str, *arguments: Any) -> None:
            function = getattr(library, name)
            function.argtypes = GRAPH_CALLS[name]
            if error := function(*arguments):
                raise KernelError(f"{name} failed: CUresult {error}")

        self._stream = driver.Stream()
        self._start, self._end = driver.Event(), driver.Event()
        self._graph = Graph(do, self._stream.handle, lambda: launch(self._stream))

    def replay_us(self) -> float:
        """Replay once and wait; the time between the events."""
        self._start.record(self._stream)
        self._graph.launch()
        self._end.record(self._stream)
        self._end.synchronize()
        return float(self._start.time_till(self._end)) * 1000

    def close(self) -> None:
        """Give the graph back."""
        self._graph.close()


def sets_for(device: Device, num_bytes: int, most: int = MAX_SETS) -> int:
    """How many sets of inputs rotate: four times the L2 cache together, one where a set is twenty times as large."""
    if num_bytes >= 20 * device.l2_bytes:
        return 1
    return max(1, min(max(2, -(-4 * device.l2_bytes // max(num_bytes, 1))), most))


def l2_state(device: Device, num_bytes: int, sets: int) -> str:
    """`cold` where the sets together are four times the L2 cache, `warm` where they fit in it, else `partly warm`."""
    together = num_bytes * sets
    return "cold" if together >= 4 * device.l2_bytes else "warm" if together <= device.l2_bytes else "partly warm"


def time_calls(
    device: Device, launches: Sequence[Launch], restores: Sequence[Launch] = (), row_us: float = _ROW_US
) -> Timing:
    """Time one call; `launches[i](stream)` is the call on the i-th set of inputs, `restores[i]` what goes before it."""
    estimate = _estimate(device, launches, restores)
    per_set = max(1, min(200, int(_GRAPH_US / max(estimate, 1.0)) + 1) // len(launches))
    calls = per_set * len(launches)

    def all_of(stream: Any, restoring: bool, calling: bool) -> None:
        for i in range(calls):
            if restoring and restores:
                restores[i % len(restores)](stream)
            if calling:
                launches[i % len(launches)](stream)

    graph = TimedGraph(device.driver, lambda stream: all_of(stream, True, True))
    without = TimedGraph(device.driver, lambda stream: all_of(stream, True, False)) if restores else None
    replays = int(max(7, min(40, row_us / max(estimate * calls, 1.0))))
    graph.replay_us()
    if without:
        without.replay_us()
    times = np.array([graph.replay_us() - (without.replay_us() if without else 0.0) for _ in range(replays)]) / calls
    graph.close()
    if without:
        without.close()
    low, lower, median, upper, high = np.percentile(times, [10, 25, 50, 75, 90])
    how = "graph" if without is None else "graph difference"
    spread = float((high - low) / median) if median > 0 else 0.0
    return Timing(float(median), float(upper - lower), spread, replays, calls, how)


def _estimate(device: Device, launches: Sequence[Launch], restores: Sequence[Launch]) -> float:
    """µs of one call, roughly, after two calls on each of the first sets."""
    start, end = device.driver.Event(), device.driver.Event()
    times = []
    for i in range(2 * min(len(launches), 8) + 3):
        if restores:
            restores[i % len(restores)](None)
        start.record()
        launches[i % len(launches)](None)
        end.record()
        end.synchronize()
        times.append(start.time_till(end) * 1000)
    return float(np.median(times[-5:]))


def peaks(device: Device) -> tuple[dict[str, float], dict[str, str]]:
    """GB/s of a device-to-device copy (read + written) and of a fill, and what nvidia-smi said while they ran.

    Each is the median of 20 runs over 2 GiB, or over an eighth of the free memory where that is less.
    """
    size = min(1 << 31, device.free_bytes() // 8) // 4096 * 4096
    source, target = (device.empty((size,), np.uint8, byte) for byte in (0x5A, 0xA5))
    driver = device.driver

    def median_us(run: Callable[[], None]) -> float:
        times = []
        for _ in range(22):
            start, end = driver.Event(), driver.Event()
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.time_till(end) * 1000)
        return float(np.median(times[2:]))

    def copy() -> None:
        driver.memcpy_dtod_async(target.pointer, source.pointer, size)

    found = {
        "copy": 2 * size / median_us(copy) / 1000,
        "write": size / median_us(lambda: driver.memset_d32(target.pointer, 0x12345678, size // 4)) / 1000,
    }
    return found, _told_by_driver(copy, driver.Context.synchronize)


def _told_by_driver(busy: Callable[[], None], wait: Callable[[], None]) -> dict[str, str]:
    """`clocks` of the GPU under load and the `driver`, from nvidia-smi; both empty where it does not tell."""
    fields = "driver_version,clocks.sm,clocks.mem,temperature.gpu"
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    nothing = {"clocks": "", "driver": ""}
    try:
        asked = subprocess.Popen(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return nothing
    for _ in range(2000):  # some 3 s of copies
        busy()
        wait()
        if asked.poll() is not None:
            break
    else:
        asked.kill()
    first = (asked.communicate()[0] or "").splitlines()
    found = [field.strip() for field in first[0].split(",")] if first else []
    if len(found) != 4 or not found[1].isdigit():
        return nothing
    driver, sm, memory, celsius = found
    return {"clocks": f"SM {sm} MHz, memory {memory} MHz, {celsius} °C under copies", "driver": driver}
