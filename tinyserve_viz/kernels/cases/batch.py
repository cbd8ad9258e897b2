"""A paged batch to make cases from: scattered blocks, true boxes, NaN wherever no kernel may look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.layout import empty_boxes, pool_shape

Arrays = dict[str, NDArray[Any]]


def paged_batch(
    rng: np.random.Generator,
    lens: Sequence[int],
    *,
    block_size: int = 16,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 64,
    spare_blocks: int = 3,
    spare_entries: int = 1,
    spread: float = 1.0,
) -> Arrays:
    """query, key_cache, value_cache, box, block_table, seq_lens, ref of sequences with `lens` tokens.

    Blocks are permuted over the pool. Free blocks and slots behind a sequence's end hold NaN, so reading one shows in
    the result; the boxes hold the valid keys only. Keys of block i are scaled by (1 + i·(spread - 1)): with a spread
    above 1 the running maximum grows along a sequence.
    """
    needed = [-(-length // block_size) for length in lens]
    num_blocks = sum(needed) + spare_blocks
    width = max(needed, default=0) + spare_entries
    ids = rng.permutation(num_blocks).astype(np.int32)
    shape = pool_shape(num_blocks, block_size, num_kv_heads, head_dim)
    key_cache, value_cache = np.full(shape, np.nan, np.float16), np.full(shape, np.nan, np.float16)
    box = empty_boxes(num_blocks, num_kv_heads, head_dim)
    block_table = np.full((len(lens), width), -1, np.int32)
    ref = np.zeros(num_blocks, np.int32)
    taken = 0
    for seq, length in enumerate(lens):
        for logical in range(needed[seq]):
            block, tokens = ids[taken], min(block_size, length - logical * block_size)
            taken += 1
            keys = rng.standard_normal((tokens, num_kv_heads, head_dim)) * (1 + logical * (spread - 1))
            key_cache[block, :tokens] = keys
            value_cache[block, :tokens] = rng.standard_normal((tokens, num_kv_heads, head_dim))
            box[block, :, 0] = key_cache[block, :tokens].min(axis=0)
            box[block, :, 1] = key_cache[block, :tokens].max(axis=0)
            block_table[seq, logical] = block
            ref[block] = 1
    query = rng.standard_normal((len(lens), num_heads, head_dim)).astype(np.float16)
    seq_lens = np.array(lens, np.int32)
    return {
        "query": query, "key_cache": key_cache, "value_cache": value_cache, "box": box,
        "block_table": block_table, "seq_lens": seq_lens, "ref": ref,
    }  # fmt: skip


def only(arrays: Arrays, *names: str) -> Arrays:
    """The named arrays."""
    return {name: arrays[name] for name in names}


def layered(
    rng: np.random.Generator, num_layers: int, layer_stride: int, block_size: int, num_kv_heads: int, head_dim: int
) -> Arrays:
    """key_cache, value_cache and box of several layers, all slots random; `layer_stride` blocks per layer."""
    shape = (num_layers, layer_stride, block_size, num_kv_heads, head_dim)
    key_cache = rng.standard_normal(shape).astype(np.float16)
    box = np.stack([key_cache.min(axis=2), key_cache.max(axis=2)], axis=3)
    return {"key_cache": key_cache, "value_cache": rng.standard_normal(shape).astype(np.float16), "box": box}
