"""How fast this machine copies memory, measured: what a compaction's predicted time rests on."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import numpy as np

_DEVICE_BYTES = 256 << 20  # five times the largest L2 cache
_BYTES = 32 << 20  # far beyond a core's caches, and copied in about 10 ms
_REPEATS = 5


@cache
def host_copy_bandwidth() -> dict[str, Any]:
    """`gb_per_s` bytes read and written a second by NumPy's memory copy (median of 5 after one unmeasured), and `of`.

    Measured once a process.
    """
    source = np.ones(_BYTES, dtype=np.uint8)
    target = np.empty_like(source)
    np.copyto(target, source)  # touches the pages
    spent = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        np.copyto(target, source)
        spent.append(time.perf_counter() - started)
    return {"gb_per_s": 2 * _BYTES / float(np.median(spent)) / 1e9, "of": "host memory copy"}


@cache
def device_copy_bandwidth() -> dict[str, Any]:
    """The same of the GPU's memory, by the driver's copy between two buffers, timed with events.

    Raises:
        GpuUnavailable: there is no GPU.
    """
    from tinyserve_viz.kernels.cuda_backend import gpu

    found = gpu()
    with found.current() as driver:
        source, target = driver.mem_alloc(_DEVICE_BYTES), driver.mem_alloc(_DEVICE_BYTES)
        spent = []
        for _ in range(_REPEATS + 1):
            start, end = driver.Event(), driver.Event()
            start.record()
            driver.memcpy_dtod_async(target, source, _DEVICE_BYTES)
            end.record()
            end.synchronize()
            spent.append(start.time_till(end) / 1e3)
        source.free()
        target.free()
    return {"gb_per_s": 2 * _DEVICE_BYTES / float(np.median(spent[1:])) / 1e9, "of": f"{found.name} memory copy"}
