"""`fused_block_copy`: copy blocks for copy-on-write, K, V and box, all layers and all operations in one launch."""

from __future__ import annotations

from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, Requirement
from tinyserve_viz.kernels.layout import LAYERED_BOX, LAYERED_POOL

STRIDE_HOLDS_POOL = Requirement(
    "layer_stride must be at least num_blocks",
    lambda axes, _scalars: axes["num_layers"] == 0 or axes["layer_stride"] >= axes["num_blocks"],
)

KERNEL = KernelDef(
    name="fused_block_copy",
    summary="Copy the first tokens of blocks into fresh blocks of every layer, or refuse the whole batch.",
    source="TinyServe S:172-196",
    args=(
        Arg("ops", "int32", ("num_ops", "3"), doc="(source, destination, tokens); source = destination does nothing"),
        Arg("ref", "int32", ("num_blocks",), doc="references per block; a destination has exactly one"),
        Arg("key_cache", "float16", LAYERED_POOL, "inout"),
        Arg("value_cache", "float16", LAYERED_POOL, "inout"),
        Arg("box", "float16", LAYERED_BOX, "inout", "copied with a full block, made again from a part", optional=True),
        Arg("workspace", "int32", ("workspace_words",), "scratch", optional=True, doc="marks per block for the check"),
    ),
    scalars=(),
    launch=Launch(
        layout="one thread block per (operation, layer); the batch is checked before anything is written",
        grid=lambda a: (max(1, a["num_ops"]), max(1, a["num_layers"]), 1),
        threads=256,
    ),
    requires=(STRIDE_HOLDS_POOL,),
)
