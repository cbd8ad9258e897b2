"""`query_aware_paged_attention`: attention over the selected blocks only; with boxes it selects them itself (fused)."""

from __future__ import annotations

from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, Requirement, Scalar
from tinyserve_viz.kernels.defs.block_scoring import REDUCTION
from tinyserve_viz.kernels.defs.flash_paged_attention import WHOLE_WORK_LIST, WORK_LIST
from tinyserve_viz.kernels.defs.paged_attention import GROUPED
from tinyserve_viz.kernels.layout import BOX, POOL
from tinyserve_viz.kernels.parameters import default

SELECTING_HEADS = Requirement(
    "num_select_heads must be 1 (one choice for all heads) or num_kv_heads",
    lambda axes, _scalars: axes["num_select_heads"] in (1, axes["num_kv_heads"]),
)
FUSED_PER_HEAD = Requirement(
    "the fused form (box given) selects per KV head: num_select_heads must equal num_kv_heads",
    lambda axes, scalars: not scalars["has_box"] or axes["num_select_heads"] == axes["num_kv_heads"],
)

KERNEL = KernelDef(
    name="query_aware_paged_attention",
    summary="Attention over the selected blocks; given boxes, scoring, choice and attention are one launch.",
    source="TinyServe S:391-521 and arXiv 2509.12211; Quest, arXiv 2406.10774",
    decision=False,
    args=(
        Arg("query", "float16", ("num_seqs", "num_heads", "head_dim")),
        Arg("key_cache", "float16", POOL),
        Arg("value_cache", "float16", POOL),
        Arg("block_table", "int32", ("num_seqs", "max_blocks_per_seq"), doc="-1 = no block"),
        Arg("seq_lens", "int32", ("num_seqs",), doc="tokens of the whole sequence"),
        Arg(
            "selected",
            "int32",
            ("num_seqs", "num_select_heads", "max_selected"),
            "inout",
            "logical blocks kept, ascending, then -1; read, or written when fused",
        ),
        Arg("count", "int32", ("num_seqs", "num_select_heads"), "inout", "blocks kept; read, or written when fused"),
        Arg("output", "float16", ("num_seqs", "num_heads", "head_dim"), "out"),
        Arg("lse", "float32", ("num_seqs", "num_heads"), "out", doc="over the kept tokens, -inf for none"),
        Arg("blocks_read", "int32", ("num_seqs", "num_heads"), "out", doc="blocks that were attended"),
        Arg("tokens_read", "int32", ("num_seqs", "num_heads"), "out", doc="tokens that were attended"),
        Arg(
            "box",
            "float16",
            BOX,
            optional=True,
            doc="given: the fused form, budget and choice as in cache_selection's paper mode",
        ),
        Arg(
            "score",
            "float32",
            ("num_seqs", "num_kv_heads", "max_blocks_per_seq"),
            "scratch",
            optional=True,
            doc="block scores of the fused form",
        ),
        *WORK_LIST,
    ),
    scalars=(
        Scalar("scale", "float32", "factor of q·k, usually 1/sqrt(head_dim)"),
        Scalar("reduction", "int32", "score of a KV head from its query heads (fused form)", 0, REDUCTION),
        Scalar("ratio_permille", "int32", "blocks kept, of the sequence's (fused form)", default("selection.ratio")),
        Scalar("sinks", "int32", "first blocks always kept (fused form)", default("selection.sinks")),
        Scalar("recent", "int32", "last blocks always kept (fused form)", default("selection.recent")),
    ),
    launch=Launch(
        layout="one thread block per (worker or sequence, kv head) over the kept blocks, gathered by logical id",
        grid=lambda a: (max(1, a["num_workers"] or a["num_seqs"]), max(1, a["num_kv_heads"]), 1),
        threads=128,
    ),
    requires=(GROUPED, SELECTING_HEADS, FUSED_PER_HEAD, WHOLE_WORK_LIST),
)
