"""`cache_selection`: choose the blocks that a query will read, by the paper's budget or by the seed's priorities."""

from __future__ import annotations

from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, Requirement, Scalar
from tinyserve_viz.kernels.parameters import default

MODES = ("paper", "seed")
PRIORITIES = ("low", "medium", "high")

KERNEL = KernelDef(
    name="cache_selection",
    summary="Keep first and last blocks and the best-scored others, within the row's budget; count the accesses.",
    source="TinyServe S:306-352 (seed) and arXiv 2509.12211 (paper)",
    args=(
        Arg("complexity", "float32", ("num_seqs",)),
        Arg("requirement", "int32", ("num_seqs",), doc="0, 1 or 2, from query_analysis"),
        Arg("block_score", "float32", ("num_seqs", "num_score_heads", "max_blocks_per_seq")),
        Arg("num_seq_blocks", "int32", ("num_seqs",), doc="blocks that hold tokens, ceil(len / block_size)"),
        Arg(
            "history",
            "int32",
            ("num_seqs", "max_blocks_per_seq"),
            "inout",
            "accesses; one more for each block kept by any head",
        ),
        Arg(
            "selected",
            "int32",
            ("num_seqs", "num_select_heads", "max_selected"),
            "out",
            "logical blocks, ascending, then -1",
        ),
        Arg("count", "int32", ("num_seqs", "num_select_heads"), "out", "blocks kept"),
        Arg("priority", "int8", ("num_seqs",), "out", "2 high, 1 medium, 0 low"),
        Arg("row_score", "float32", ("num_seqs",), "out", "weighted complexity, requirement and history"),
        Arg(
            "block_table",
            "int32",
            ("num_seqs", "max_blocks_per_seq"),
            optional=True,
            doc="given: accesses are counted per block too",
        ),
        Arg("uses", "int32", ("num_blocks",), "inout", "uses since allocation", optional=True),
        Arg("freq", "int32", ("num_blocks",), "inout", "accesses in this window", optional=True),
        Arg("last_use", "int64", ("num_blocks",), "inout", "set to clock", optional=True),
        Arg(
            "workspace",
            "int32",
            ("workspace_words",),
            "scratch",
            optional=True,
            doc="ranks of rows too long for shared memory",
        ),
    ),
    scalars=(
        Scalar("mode", "int32", "paper: a share of the blocks; seed: by priority", 0, MODES),
        Scalar("ratio_permille", "int32", "blocks kept, of the sequence's (paper)", default("selection.ratio")),
        Scalar(
            "threshold_permille",
            "int32",
            "priority is high above it, medium above half of it",
            default("selection.threshold"),
        ),
        Scalar("weight_complexity", "int32", "per mille", default("selection.weight_complexity")),
        Scalar("weight_requirement", "int32", "per mille", default("selection.weight_requirement")),
        Scalar("weight_history", "int32", "per mille", default("selection.weight_history")),
        Scalar("sinks", "int32", "first blocks always kept", default("selection.sinks")),
        Scalar("recent", "int32", "last blocks always kept", default("selection.recent")),
        Scalar("clock", "int64", "logical clock that last_use takes", 0),
    ),
    launch=Launch(
        layout="one thread block per sequence; keys in shared memory, ties to the lower logical block",
        grid=lambda a: (max(1, a["num_seqs"]), 1, 1),
        threads=256,
        shared_bytes=lambda a: 8 * min(a["max_blocks_per_seq"], 4096),
    ),
    requires=(
        Requirement(
            "num_select_heads must be num_score_heads, or 1 for one choice by the summed scores",
            lambda axes, _scalars: axes["num_select_heads"] in (1, axes["num_score_heads"]),
        ),
    ),
)
