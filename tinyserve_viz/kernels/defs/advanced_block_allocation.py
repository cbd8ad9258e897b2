"""`advanced_block_allocation`: least-recently-used allocation with a hot region, evicting at need."""

from __future__ import annotations

from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, Scalar
from tinyserve_viz.kernels.defs.fused_block_copy import STRIDE_HOLDS_POOL
from tinyserve_viz.kernels.layout import LAYERED_BOX
from tinyserve_viz.kernels.parameters import default

KERNEL = KernelDef(
    name="advanced_block_allocation",
    summary="Each request in turn takes the first block by (wrong region, cached, level, last use, id).",
    source="TinyServe S:557-567 (a sketch) and its published code",
    args=(
        Arg("reqs", "int32", ("num_requests", "2"), doc="(sequence, logical block)"),
        Arg(
            "request_freq", "int32", ("num_requests",), doc="accesses expected; above hot_frequency the request is hot"
        ),
        Arg("block_table", "int32", ("num_seqs", "max_blocks_per_seq"), "inout"),
        Arg("ref", "int32", ("num_blocks",), "inout"),
        Arg("gen", "int32", ("num_blocks",), "inout", "times allocated"),
        Arg("cached", "uint8", ("num_blocks",), "inout", "1: free but still in the prefix index"),
        Arg("level", "int32", ("num_blocks",), "inout", "protection level, 0 to 4"),
        Arg("last_use", "int64", ("num_blocks",), "inout", "logical clock of the last use"),
        Arg("uses", "int32", ("num_blocks",), "inout", "uses since allocation"),
        Arg("allocated", "int32", ("num_requests",), "out", "block of each request, -1 = none"),
        Arg("region", "int32", ("num_requests",), "out", "region that the block lies in: 0 hot, 1 cold, -1 = none"),
        Arg(
            "reason",
            "int32",
            ("num_requests",),
            "out",
            "0 own region, free · 1 own, evicted · 2 other, free · 3 other, evicted · -1 none",
        ),
        Arg(
            "runner_up",
            "int32",
            ("num_requests",),
            "out",
            "the next block that the request would have taken, -1 = none",
        ),
        Arg("num_allocated", "int32", ("1",), "out", "what the caller adds to its clock"),
        Arg("freq", "int32", ("num_blocks",), "inout", "accesses in this window", optional=True),
        Arg("hits", "int32", ("num_blocks",), "inout", "prefix hits in the window", optional=True),
        Arg("lookups", "int32", ("num_blocks",), "inout", "prefix lookups in the window", optional=True),
        Arg(
            "history", "int32", ("num_seqs", "max_blocks_per_seq"), "inout", "accesses per logical block", optional=True
        ),
        Arg("box", "float16", LAYERED_BOX, "inout", "emptied for the new owner, in every layer", optional=True),
        Arg("workspace", "int32", ("workspace_words",), "scratch", optional=True, doc="candidates in victim order"),
    ),
    scalars=(
        Scalar("cache_size", "int64", "blocks [0, cache_size) are the hot region"),
        Scalar("clock", "int64", "logical clock before this call; the i-th block served is stamped clock + 1 + i"),
        Scalar("hot_frequency", "int32", "a request with more accesses is hot", default("hot.frequency")),
        Scalar(
            "all_or_nothing",
            "int32",
            "1: on a shortage nothing is allocated; 0: requests are served until blocks run out",
            1,
        ),
    ),
    launch=Launch(
        layout="candidates sorted per region, then ranks by scan over the requests; commit order is request order",
        grid=lambda _a: (1, 1, 1),
        threads=1024,
    ),
    requires=(STRIDE_HOLDS_POOL,),
)
