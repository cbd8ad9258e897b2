"""`dynamic_workload_balancing`: split the batch's blocks over workers; the list that split attention walks."""

from __future__ import annotations

from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, Requirement, Scalar

MODES = ("even-blocks", "per-seq", "lpt")

KERNEL = KernelDef(
    name="dynamic_workload_balancing",
    summary="Give every worker a run of blocks: even shares, whole sequences in turn, or longest sequence first.",
    source="TinyServe S:534 (named only); lpt: Graham 1969",
    args=(
        Arg("seq_lens", "int32", ("num_seqs",), doc="tokens"),
        Arg(
            "kept",
            "int32",
            ("num_seqs",),
            optional=True,
            doc="blocks kept of each sequence, its last among them; absent: all",
        ),
        Arg(
            "ranges",
            "int64",
            ("num_workers", "2"),
            "out",
            "blocks [first, end) of each worker, counted along `segments`",
        ),
        Arg("load", "int64", ("num_workers",), "out", "tokens of each worker"),
        Arg(
            "segments",
            "int32",
            ("max_segments", "3"),
            "out",
            "(sequence, first block, end block) in worker order, then -1",
        ),
        Arg("segment_range", "int64", ("num_workers", "2"), "out", "segments [first, end) of each worker"),
        Arg("seq_segments", "int32", ("num_seqs", "2"), "out", "first segment and number of segments of each sequence"),
        Arg("num_segments", "int32", ("1",), "out"),
        Arg(
            "imbalance_permille",
            "int64",
            ("2",),
            "out",
            "largest / mean load in tokens: one worker per sequence, and this plan",
        ),
        Arg("workspace", "int32", ("workspace_words",), "scratch", optional=True, doc="prefix sums, sorted sequences"),
    ),
    scalars=(
        Scalar("block_size", "int32", "tokens in a block"),
        Scalar(
            "mode",
            "int32",
            "even-blocks may cut a sequence; per-seq is the baseline; lpt keeps sequences whole",
            0,
            MODES,
        ),
    ),
    launch=Launch(
        layout="one thread block: prefix sums over the sequences, then one thread per worker",
        grid=lambda _a: (1, 1, 1),
        threads=1024,
    ),
    requires=(
        Requirement("num_workers must be at least 1", lambda axes, _scalars: axes["num_workers"] >= 1),
        Requirement("block_size must be at least 1", lambda _axes, scalars: scalars["block_size"] >= 1),
        Requirement(
            "max_segments must be at least num_seqs + num_workers",
            lambda axes, _scalars: axes["max_segments"] >= axes["num_seqs"] + axes["num_workers"],
        ),
    ),
)
