"""`fragmentation_analysis`: what is wasted inside blocks, between them, and by where they lie, as whole numbers."""

from __future__ import annotations

from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, Requirement, Scalar, ceil_div

METRICS = (
    "used", "cached_free", "free", "live", "tokens", "longest_free_run", "num_runs", "max_live_id",
    "super_held", "super_pinned", "adjacent", "pairs",
)  # fmt: skip
RUN_BINS = 32  # bin k counts free runs of 2**k to 2**(k+1) - 1 blocks; 2**31 blocks is beyond any int32 id

KERNEL = KernelDef(
    name="fragmentation_analysis",
    summary="Count waste inside blocks, free runs, the live prefix, stranded super-pages and scattered sequences.",
    source="ours: the published formula is utilisation; super-pages: kvcached",
    args=(
        Arg("ref", "int32", ("num_blocks",)),
        Arg("cached", "uint8", ("num_blocks",), doc="1: free but still in the prefix index"),
        Arg("block_table", "int32", ("num_seqs", "max_blocks_per_seq"), doc="-1 = no block"),
        Arg("seq_lens", "int32", ("num_seqs",)),
        Arg(
            "fill", "int32", ("num_blocks",), "out", "valid tokens of each block, the most that any sequence has in it"
        ),
        Arg(
            "scatter",
            "int32",
            ("num_seqs", "2"),
            "out",
            "(consecutive logical blocks that do not lie side by side, such pairs)",
        ),
        Arg("run_histogram", "int64", (str(RUN_BINS),), "out", "free runs by the power of two of their length"),
        Arg("metrics", "int64", (str(len(METRICS)),), "out", ", ".join(METRICS)),
        Arg("workspace", "int32", ("workspace_words",), "scratch", optional=True, doc="runs across thread blocks"),
    ),
    scalars=(
        Scalar("block_size", "int32", "tokens in a block"),
        Scalar("super_size", "int32", "blocks in a super-page", 128),
    ),
    launch=Launch(
        layout="one thread per block for runs and states, one per table entry for fill and scatter",
        grid=lambda a: (max(1, ceil_div(max(a["num_blocks"], a["num_seqs"] * a["max_blocks_per_seq"]), 256)), 1, 1),
        threads=256,
    ),
    requires=(
        Requirement("block_size must be at least 1", lambda _axes, scalars: scalars["block_size"] >= 1),
        Requirement("super_size must be at least 1", lambda _axes, scalars: scalars["super_size"] >= 1),
    ),
)
