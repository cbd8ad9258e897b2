"""Useful bytes of a kernel call: every input that it must read and every output that it must write, once.

What a kernel reads twice, or reads around the useful part, is its own affair: GB/s from these bytes says how well it
does against a copy of the same data.
"""

from __future__ import annotations

from tinyserve_viz.core.config import ModelConfig

_FP16 = 2


def attention_bytes(model: ModelConfig, tokens: int, rows: int) -> int:
    """K and V of `tokens` (summed over KV heads and sequences), query and output of `rows` sequences, log-sum-exp."""
    per_row = model.num_heads * (2 * model.head_dim * _FP16 + 4)
    return 2 * tokens * model.head_dim * _FP16 + rows * per_row


def write_bytes(model: ModelConfig, tokens: int, blocks: int) -> int:
    """K and V read once and written once, and the boxes of the touched blocks read and written."""
    row = model.num_kv_heads * model.head_dim * _FP16
    return 2 * (2 * tokens * row) + 2 * (2 * blocks * row)


def scoring_bytes(model: ModelConfig, blocks: int, rows: int) -> int:
    """Boxes of all blocks, the query rows, one float32 score a block and KV head."""
    return (
        blocks * model.num_kv_heads * (2 * model.head_dim * _FP16 + 4) + rows * model.num_heads * model.head_dim * _FP16
    )


def mass_bytes(model: ModelConfig, tokens: int, blocks: int, queries: int) -> int:
    """K of `tokens` (summed over KV heads and sequences), `queries` query rows, one float32 a block and head."""
    return tokens * model.head_dim * _FP16 + queries * model.num_heads * model.head_dim * _FP16 + blocks * 4


def copy_bytes(model: ModelConfig, tokens: int, blocks: int, layers: int) -> int:
    """K and V of the copied tokens and the box of each copied block, read and written, in every layer."""
    row = model.num_kv_heads * model.head_dim * _FP16
    return layers * 2 * (2 * tokens * row + 2 * blocks * row)


def move_bytes(model: ModelConfig, tokens: int, blocks: int, layers: int) -> int:
    """The same for blocks that move, whose old boxes are emptied."""
    return copy_bytes(model, tokens, blocks, layers) + layers * 2 * blocks * model.num_kv_heads * model.head_dim * _FP16
