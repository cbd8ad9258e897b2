"""`query_analysis`: how demanding a query row is, and the cache requirement that follows."""

from __future__ import annotations

from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, Requirement, Scalar
from tinyserve_viz.kernels.parameters import default

MODES = ("energy", "entropy", "mass_entropy")

KERNEL = KernelDef(
    name="query_analysis",
    summary="Mean square of the query, or the normalised entropy of its block scores or of its attention mass.",
    source="TinyServe S:261-300",
    args=(
        Arg(
            "query", "float16", ("num_rows", "num_heads", "head_dim"), doc="energy is the mean over heads and channels"
        ),
        Arg("complexity", "float32", ("num_rows",), "out"),
        Arg("requirement", "int32", ("num_rows",), "out", "2 high, 1 medium, 0 low"),
        Arg(
            "block_score",
            "float32",
            ("num_rows", "num_score_heads", "max_blocks_per_seq"),
            optional=True,
            doc="box scores (entropy) or block mass (mass_entropy)",
        ),
        Arg("num_scored", "int32", ("num_rows",), optional=True, doc="blocks of each row that count"),
    ),
    scalars=(
        Scalar(
            "mode",
            "int32",
            "energy is the published formula, entropy its words; mass_entropy takes block_mass",
            0,
            MODES,
        ),
        Scalar("scale", "float32", "factor of the scores before the softmax of mode entropy", 1.0),
        Scalar("high_permille", "int32", "complexity above it is high", default("requirement.high")),
        Scalar("medium_permille", "int32", "complexity above it is medium", default("requirement.medium")),
    ),
    launch=Launch(
        layout="one warp per row, four to a thread block; one lane writes",
        grid=lambda a: (max(1, -(-a["num_rows"] // 4)), 1, 1),
        threads=128,
    ),
    requires=(
        Requirement(
            "the entropy modes need block_score and num_scored",
            lambda _axes, scalars: (
                scalars["mode"] == 0 or bool(scalars["has_block_score"] and scalars["has_num_scored"])
            ),
        ),
    ),
)
