"""`flash_paged_attention`: the same attention in one pass over K and V, split over a work list when one is given."""

from __future__ import annotations

from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, Requirement, Scalar
from tinyserve_viz.kernels.defs.paged_attention import GROUPED
from tinyserve_viz.kernels.layout import POOL

# The work list of `dynamic_workload_balancing`, and the workspace in which its parts meet; all given or all absent.
WORK_LIST = (
    Arg(
        "segments",
        "int32",
        ("max_segments", "3"),
        optional=True,
        doc="(sequence, first block, end block), -1 in unused rows",
    ),
    Arg("segment_range", "int64", ("num_workers", "2"), optional=True, doc="segments [first, end) of each worker"),
    Arg(
        "seq_segments",
        "int32",
        ("num_seqs", "2"),
        optional=True,
        doc="first segment and number of segments of each sequence",
    ),
    Arg("partial_output", "float32", ("max_segments", "num_heads", "head_dim"), "scratch", optional=True),
    Arg(
        "partial_ml",
        "float32",
        ("max_segments", "num_heads", "2"),
        "scratch",
        optional=True,
        doc="maximum and sum of a segment",
    ),
    Arg(
        "tickets", "int32", ("num_seqs", "num_kv_heads"), "scratch", optional=True, doc="arrivals; the last one merges"
    ),
)
WHOLE_WORK_LIST = Requirement(
    "segments, segment_range and seq_segments are given together or not at all",
    lambda _axes, scalars: len({scalars["has_" + name] for name in ("segments", "segment_range", "seq_segments")}) == 1,
)

KERNEL = KernelDef(
    name="flash_paged_attention",
    summary="Attention over a paged cache in one pass with a running maximum and sum; split over workers on request.",
    source="TinyServe S:541-553; online softmax: Milakov & Gimelshein, arXiv 1805.02867; split KV: Flash-Decoding",
    decision=False,
    args=(
        Arg("query", "float16", ("num_seqs", "num_heads", "head_dim")),
        Arg("key_cache", "float16", POOL),
        Arg("value_cache", "float16", POOL),
        Arg("block_table", "int32", ("num_seqs", "max_blocks_per_seq"), doc="-1 = no block"),
        Arg("seq_lens", "int32", ("num_seqs",), doc="tokens attended"),
        Arg("output", "float16", ("num_seqs", "num_heads", "head_dim"), "out"),
        Arg("lse", "float32", ("num_seqs", "num_heads"), "out", doc="log of the summed exp(scores), -inf for no token"),
        *WORK_LIST,
    ),
    scalars=(Scalar("scale", "float32", "factor of q·k, usually 1/sqrt(head_dim)"),),
    launch=Launch(
        layout="one thread block per (worker or sequence, kv head); the query heads of a group share its K and V reads",
        grid=lambda a: (max(1, a["num_workers"] or a["num_seqs"]), max(1, a["num_kv_heads"]), 1),
        threads=128,
    ),
    requires=(GROUPED, WHOLE_WORK_LIST),
)
