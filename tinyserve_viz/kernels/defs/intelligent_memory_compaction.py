"""`intelligent_memory_compaction`: plan a compaction: which blocks are light enough to move, and where to."""

from __future__ import annotations

from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, Scalar
from tinyserve_viz.kernels.parameters import default

METRICS = (
    "live", "free", "movable", "pinned", "max_live_before", "max_live_after",
    "frag_permille_before", "frag_permille_after", "planned", "verdict",
)  # fmt: skip
VERDICTS = ("moved", "not triggered", "too few moves", "does not pay back", "nothing to move")

KERNEL = KernelDef(
    name="intelligent_memory_compaction",
    summary="Pair the lowest free slots with the highest light blocks; heavy blocks are pinned. Moves nothing itself.",
    source="TinyServe S:571-580 (a sketch); trigger: vllm-gaudi's defragmenter",
    args=(
        Arg("ref", "int32", ("num_blocks",)),
        Arg(
            "cached",
            "uint8",
            ("num_blocks",),
            doc="1: free but still in the prefix index; neither live nor a destination",
        ),
        Arg("uses", "int32", ("num_blocks",), doc="uses, decayed"),
        Arg("level", "int32", ("num_blocks",)),
        Arg("moves", "int32", ("max_moves", "2"), "out", "(source, destination), then -1"),
        Arg("num_moves", "int32", ("1",), "out"),
        Arg("old_to_new", "int32", ("num_blocks",), "out", "destination of each block, itself when it stays"),
        Arg("weight", "float32", ("num_blocks",), "out", "weight per mille / 1000, 0 for a block that is not live"),
        Arg("metrics", "int64", (str(len(METRICS)),), "out", ", ".join(METRICS)),
        Arg(
            "workspace",
            "int32",
            ("workspace_words",),
            "scratch",
            optional=True,
            doc="holes and movers, state of the scan",
        ),
    ),
    scalars=(
        Scalar(
            "threshold_permille",
            "int64",
            "lighter blocks may move; 2**62: all, the published unweighted kernel",
            default("compaction.threshold"),
        ),
        Scalar("weight_uses", "int32", "per mille per use", default("compaction.weight_uses")),
        Scalar("weight_level", "int32", "per mille per level", default("compaction.weight_level")),
        Scalar("weight_shared", "int32", "per mille for more than one reference", default("compaction.weight_shared")),
        Scalar(
            "trigger_permille",
            "int64",
            "plan only above this (highest live id + 1) / live; 0: always",
            default("compaction.trigger"),
        ),
        Scalar("min_moves", "int32", "a plan with fewer moves is dropped", default("compaction.min_moves")),
        Scalar("min_gain", "int32", "ids that each move must come down by", default("compaction.min_gain")),
        Scalar(
            "payback_permille",
            "int64",
            "ids released at the top per move, else the plan is dropped",
            default("compaction.payback"),
        ),
    ),
    launch=Launch(
        layout="two scans over the pool (holes ascending, movers descending), matched by rank",
        grid=lambda _a: (1, 1, 1),
        threads=1024,
    ),
)
