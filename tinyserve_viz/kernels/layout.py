"""Where a token's K and V and a block's box lie: the only address arithmetic of pools on the Python side.

The layout is NHD, as in the published writer (S:64) with the head term that its readers lack:
K and V `fp16 [num_blocks][block_size][num_kv_heads][head_dim]`, boxes `fp16 [num_blocks][num_kv_heads][2][head_dim]`
with the minimum and the maximum of a block's keys side by side, so that one read fetches both.
`common.cuh` holds the same two functions for the kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

POOL = ("num_blocks", "block_size", "num_kv_heads", "head_dim")
BOX = ("num_blocks", "num_kv_heads", "2", "head_dim")
# All layers in one launch: `layer_stride` blocks lie between the same block of two layers (at least num_blocks).
LAYERED_POOL = ("num_layers", "layer_stride", "block_size", "num_kv_heads", "head_dim")
LAYERED_BOX = ("num_layers", "layer_stride", "num_kv_heads", "2", "head_dim")

MIN, MAX = 0, 1  # rows of a box
F16 = NDArray[np.float16]


def pool_offset(
    block: Any, slot: Any, kv_head: Any, channel: Any, *, block_size: int, num_kv_heads: int, head_dim: int
) -> Any:
    """Element of a pool that holds `channel` of `kv_head` at `slot` of `block`; int64 arrays or integers."""
    return ((np.int64(1) * block * block_size + slot) * num_kv_heads + kv_head) * head_dim + channel


def box_offset(block: Any, kv_head: Any, bound: Any, channel: Any, *, num_kv_heads: int, head_dim: int) -> Any:
    """Element of the boxes that holds `bound` (0 minimum, 1 maximum) of `channel` of `kv_head` of `block`."""
    return ((np.int64(1) * block * num_kv_heads + kv_head) * 2 + bound) * head_dim + channel


def pool_shape(num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int) -> tuple[int, int, int, int]:
    """Shape of one layer's K or V pool."""
    return (num_blocks, block_size, num_kv_heads, head_dim)


def empty_pool(num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int) -> F16:
    """A K or V pool of zeros."""
    return np.zeros(pool_shape(num_blocks, block_size, num_kv_heads, head_dim), np.float16)


def empty_boxes(num_blocks: int, num_kv_heads: int, head_dim: int) -> F16:
    """Boxes that hold nothing: minimum +inf, maximum -inf, so that the first key makes them."""
    boxes = np.empty((num_blocks, num_kv_heads, 2, head_dim), np.float16)
    boxes[..., MIN, :] = np.inf
    boxes[..., MAX, :] = -np.inf
    return boxes


def blocks_of(pool: F16, blocks: NDArray[Any]) -> F16:
    """K or V [n][block_size][num_kv_heads][head_dim] of whole blocks, a copy."""
    found: F16 = pool[blocks]
    return found


def tokens_of(pool: F16, blocks: NDArray[Any], slots: NDArray[Any]) -> F16:
    """K or V [n][num_kv_heads][head_dim] of the tokens at (blocks[i], slots[i])."""
    found: F16 = pool[blocks, slots]
    return found


def put_tokens(pool: F16, blocks: NDArray[Any], slots: NDArray[Any], values: F16) -> None:
    """Store `values` [n][num_kv_heads][head_dim] at (blocks[i], slots[i]); changes `pool`."""
    pool[blocks, slots] = values


def put_blocks(pool: F16, blocks: NDArray[Any], values: F16) -> None:
    """Store whole blocks [n][block_size][num_kv_heads][head_dim]; changes `pool`."""
    pool[blocks] = values


def box_bounds(boxes: F16, blocks: NDArray[Any]) -> tuple[F16, F16]:
    """Minimum and maximum [n][num_kv_heads][head_dim] of the boxes of `blocks`."""
    found = boxes[blocks]
    return found[..., MIN, :], found[..., MAX, :]


def put_bounds(boxes: F16, blocks: NDArray[Any], low: F16, high: F16) -> None:
    """Set the boxes of `blocks`; changes `boxes`."""
    boxes[blocks, :, MIN] = low
    boxes[blocks, :, MAX] = high


def reset_boxes(boxes: F16, blocks: NDArray[Any]) -> None:
    """Empty the boxes of `blocks` in every layer of `boxes` [num_layers][layer_stride]…; changes `boxes`."""
    boxes[:, blocks, :, MIN] = np.inf
    boxes[:, blocks, :, MAX] = -np.inf
