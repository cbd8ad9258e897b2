"""`adaptive_cache_management`: raise or lower each block's protection level from its hit rate and its accesses."""

from __future__ import annotations

from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, Scalar, ceil_div
from tinyserve_viz.kernels.parameters import default

MAX_LEVEL = 4  # S:375

KERNEL = KernelDef(
    name="adaptive_cache_management",
    summary="Protect busy blocks that miss, release idle blocks that hit, then age the access counts.",
    source="TinyServe S:358-385",
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
        layout="one thread per block",
        grid=lambda a: (max(1, ceil_div(a["num_blocks"], 256)), 1, 1),
        threads=256,
    ),
)
