"""`intelligent_memory_compaction`: plan a compaction: which blocks are light enough to move, and where to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core.compaction import VERDICTS, CompactionRule, plan
from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, Scalar, Stage, Status, ceil_div
from tinyserve_viz.kernels.defs.block_allocation import CLUSTER
from tinyserve_viz.kernels.parameters import default

METRICS = (
    "live", "free", "movable", "pinned", "max_live_before", "max_live_after",
    "frag_permille_before", "frag_permille_after", "planned", "verdict",
)  # fmt: skip
STRETCH = 1024  # blocks of the pool of one thread block, a thread each


def reference(
    *,
    ref: NDArray[np.int32],
    cached: NDArray[np.uint8],
    uses: NDArray[np.int32],
    level: NDArray[np.int32],
    moves: NDArray[np.int32],
    num_moves: NDArray[np.int32],
    old_to_new: NDArray[np.int32],
    weight: NDArray[np.float32],
    metrics: NDArray[np.int64],
    threshold_permille: int,
    weight_uses: int,
    weight_level: int,
    weight_shared: int,
    trigger_permille: int,
    min_moves: int,
    min_gain: int,
    payback_permille: int,
) -> Status:
    """`core.compaction.plan`, with its moves written out when the verdict is that they pay.

    `planned` counts the moves of a plan that was dropped, too.
    """
    rule = CompactionRule(
        threshold=threshold_permille,
        weight_uses=weight_uses,
        weight_level=weight_level,
        weight_shared=weight_shared,
        trigger=trigger_permille,
        min_moves=min_moves,
        min_gain=min_gain,
        payback=payback_permille,
    )
    found = plan(ref, cached, uses, level, rule, len(moves))
    dropped = VERDICTS[found.verdict] != "moved"
    done = 0 if dropped else len(found.src)
    weight[:] = found.weight.astype(np.float32) / np.float32(1000)
    moves[:] = -1
    moves[:done, 0], moves[:done, 1] = found.src[:done], found.dst[:done]
    num_moves[0] = done
    old_to_new[:] = np.arange(len(ref))
    old_to_new[found.src[:done]] = found.dst[:done]
    metrics[:] = (
        found.live,
        found.free,
        found.movable,
        found.pinned,
        found.top_before,
        found.top_before if dropped else found.top_after,
        found.frag_permille_before,
        found.frag_permille_before if dropped else found.frag_permille_after,
        len(found.src),
        found.verdict,
    )
    return Status.OK


KERNEL = KernelDef(
    name="intelligent_memory_compaction",
    summary="Pair the lowest free slots with the highest light blocks; heavy blocks are pinned. Moves nothing itself.",
    source="TinyServe S:571-580 (a sketch); trigger: vllm-gaudi's defragmenter",
    reference=reference,
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
            doc="holes, movers and highest blocks of each stretch",
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
        layout="ranks of holes from below and of movers from above by scans over the pool; how many pay, by counting",
        grid=lambda _a: (CLUSTER, 1, 1),
        threads=STRETCH,
        before=tuple(
            Stage(
                suffix,
                lambda a: (max(1, ceil_div(a["num_blocks"], STRETCH)), 1, 1),
                STRETCH,
                lambda facts: facts["num_blocks"] > CLUSTER * STRETCH,
            )
            for suffix in ("tally", "rank")
        ),
        after=(
            Stage(
                "settle",
                lambda a: (ceil_div(a["max_moves"], STRETCH), 1, 1),
                STRETCH,
                lambda facts: facts["max_moves"] > 0 and facts["num_blocks"] > CLUSTER * STRETCH,
            ),
        ),
        scratch_axes=lambda a: {
            "workspace_words": 5 * ceil_div(a["num_blocks"], STRETCH) + 2 if a["num_blocks"] > CLUSTER * STRETCH else 0
        },
        overlap=True,
    ),
)
