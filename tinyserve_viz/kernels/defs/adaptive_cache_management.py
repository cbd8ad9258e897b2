"""`adaptive_cache_management`: raise or lower each block's protection level from its hit rate and its accesses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, Scalar, Status, ceil_div
from tinyserve_viz.kernels.parameters import default

MAX_LEVEL = 4  # S:375


def reference(
    *,
    hits: NDArray[np.int32],
    lookups: NDArray[np.int32],
    ref: NDArray[np.int32],
    cached: NDArray[np.uint8],
    freq: NDArray[np.int32],
    level: NDArray[np.int32],
    decision: NDArray[np.int8],
    hit_threshold_permille: int,
    frequency_threshold: int,
    decay_permille: int,
) -> Status:
    """Raise when hits/lookups < θ and freq > φ; lower when hits/lookups > 1.5·θ and freq < φ/2; else hold.

    Compared as integers, strictly, so a block without lookups holds. A block that is free and not cached goes to level
    0 without a decision. Afterwards freq = freq·decay // 1000.
    """
    theta = np.int64(hit_threshold_permille)
    hit, looked, busy = hits.astype(np.int64), lookups.astype(np.int64), freq.astype(np.int64)
    kept = (ref > 0) | (cached != 0)
    up = kept & (hit * 1000 < theta * looked) & (busy > frequency_threshold)
    down = kept & ~up & (hit * 2000 > 3 * theta * looked) & (2 * busy < frequency_threshold)
    decision[:] = up.astype(np.int8) - down.astype(np.int8)
    level[:] = np.where(kept, np.clip(level + decision, 0, MAX_LEVEL), 0)
    freq[:] = busy * decay_permille // 1000
    return Status.OK


KERNEL = KernelDef(
    name="adaptive_cache_management",
    summary="Protect busy blocks that miss, release idle blocks that hit, then age the access counts.",
    source="TinyServe S:358-385",
    reference=reference,
    args=(
        Arg("hits", "int32", ("num_blocks",), doc="prefix hits in the window"),
        Arg("lookups", "int32", ("num_blocks",), doc="prefix lookups in the window"),
        Arg("ref", "int32", ("num_blocks",)),
        Arg("cached", "uint8", ("num_blocks",), doc="1: free but still in the prefix index"),
        Arg("freq", "int32", ("num_blocks",), "inout", "accesses in the window; decayed after the decision"),
        Arg(
            "level",
            "int32",
            ("num_blocks",),
            "inout",
            "protection level, 0 to 4: later eviction, heavier in a compaction",
        ),
        Arg(
            "decision",
            "int8",
            ("num_blocks",),
            "out",
            "+1 raise, -1 lower, 0 hold: the branch taken, also at the end of the scale",
        ),
    ),
    scalars=(
        Scalar(
            "hit_threshold_permille",
            "int32",
            "hit rate below it is low; above 1.5 times it, high",
            default("adaptive.hit_threshold"),
        ),
        Scalar(
            "frequency_threshold",
            "int32",
            "more accesses are many; fewer than half of it, few",
            default("adaptive.frequency_threshold"),
        ),
        Scalar(
            "decay_permille",
            "int32",
            "share of the accesses that the next window starts with",
            default("adaptive.decay"),
        ),
    ),
    launch=Launch(
        layout="one thread per four neighbouring blocks",
        grid=lambda a: (max(1, ceil_div(a["num_blocks"], 4 * 128)), 1, 1),
        threads=128,
    ),
)
