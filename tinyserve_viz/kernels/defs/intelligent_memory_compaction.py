"""`intelligent_memory_compaction`: plan a compaction: which blocks are light enough to move, and where to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, Scalar, Status
from tinyserve_viz.kernels.parameters import default

METRICS = (
    "live", "free", "movable", "pinned", "max_live_before", "max_live_after",
    "frag_permille_before", "frag_permille_after", "planned", "verdict",
)  # fmt: skip
VERDICTS = ("moved", "not triggered", "too few moves", "does not pay back", "nothing to move")


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
    """Pair the k-th lowest hole with the k-th highest movable block while the move comes down by min_gain ids or more.

    Live is ref > 0; movable is live and lighter than the threshold; a hole is neither referenced nor cached. So sources
    and destinations are disjoint, and no pinned or cached block is overwritten. weight per mille = weight_uses·uses +
    weight_level·level + weight_shared·[ref > 1]. The verdict (`VERDICTS`) says why a plan was dropped; `planned` still
    counts its moves.
    """
    live = ref > 0
    heavy = np.int64(weight_uses) * uses + np.int64(weight_level) * level + np.int64(weight_shared) * (ref > 1)
    weight[:] = np.where(live, heavy.astype(np.float32) / np.float32(1000), np.float32(0))
    movable = live & (heavy < threshold_permille)
    holes = np.flatnonzero(~live & (cached == 0))
    movers = np.flatnonzero(movable)[::-1]
    pairs = min(len(holes), len(movers), len(moves))
    planned = int(np.sum(movers[:pairs] - holes[:pairs] >= min_gain))
    num_live = int(live.sum())
    top = int(np.flatnonzero(live)[-1]) if num_live else -1
    moved = live.copy()
    moved[movers[:planned]] = False
    moved[holes[:planned]] = True
    new_top = int(np.flatnonzero(moved)[-1]) if num_live else -1
    frag = (top + 1) * 1000 // num_live if num_live else 0
    if trigger_permille and frag <= trigger_permille:
        verdict = 1
    elif not planned:
        verdict = 4
    elif planned < min_moves:
        verdict = 2
    elif (top - new_top) * 1000 < payback_permille * planned:
        verdict = 3
    else:
        verdict = 0
    done = 0 if verdict else planned
    moves[:] = -1
    moves[:done, 0], moves[:done, 1] = movers[:done], holes[:done]
    num_moves[0] = done
    old_to_new[:] = np.arange(len(ref))
    old_to_new[movers[:done]] = holes[:done]
    top_after = top if verdict else new_top
    frag_after = (top_after + 1) * 1000 // num_live if num_live else 0
    num_movable = int(movable.sum())
    metrics[:] = (
        num_live,
        len(holes),
        num_movable,
        num_live - num_movable,
        top,
        top_after,
        frag,
        frag_after,
        planned,
        verdict,
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
