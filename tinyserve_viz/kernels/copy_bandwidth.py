"""How fast this host copies memory, measured: what a compaction's predicted time rests on without a GPU.

A session on a GPU measures the device's own copy (`Session.copy_gb_per_s`).
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import numpy as np

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
