"""Attention over chosen blocks in float64: the plain mathematics under the three attention references.

A block is reduced to its maximum, its sum and its weighted values, and blocks are merged by rescaling to the common
maximum (Milakov & Gimelshein, arXiv 1805.02867), so that one pass, two passes and any split give the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.definition import Status
from tinyserve_viz.kernels.layout import F16, blocks_of
from tinyserve_viz.kernels.paging import blocks_in, mapped

F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class PagedBatch:
    """One call's cache and tables; `lens` are cut to what the table can hold."""

    query: F16
    key_cache: F16
    value_cache: F16
    block_table: NDArray[np.int32]
    lens: NDArray[np.int64]
    num_seq_blocks: NDArray[np.int64]
    scale: np.float64
    status: Status

    @classmethod
    def of(
        cls, query: F16, key_cache: F16, value_cache: F16, block_table: Any, seq_lens: Any, scale: Any
    ) -> PagedBatch:
        """Check the lengths against the table. RANGE: a length is negative or beyond the table."""
        lens, needed, status = blocks_in(seq_lens, key_cache.shape[1], block_table.shape[1])
        return cls(query, key_cache, value_cache, block_table, lens, needed, np.float64(scale), status)

    @property
    def num_kv_heads(self) -> int:
        """KV heads of the cache."""
        return int(self.key_cache.shape[2])

    def attend(self, seq: int, logical: NDArray[Any], kv_heads: slice, out: Any, lse: Any) -> tuple[int, int, Status]:
        """Attend row `seq` over its `logical` blocks for the query heads of `kv_heads`, into `out` [heads][head_dim].

        Returns the blocks and tokens read. Unmapped blocks contribute nothing and are flagged; without any token the
        output is 0 and the log-sum-exp -inf.
        """
        block = self.block_table[seq, logical].astype(np.int64)
        held, status = mapped(block, self.key_cache.shape[0])
        block, logical = block[held], logical[held]
        heads, head_dim = out.shape
        if not len(block):
            out[:] = 0
            lse[:] = -np.inf
            return 0, 0, status
        num_kv = len(range(*kv_heads.indices(self.num_kv_heads)))
        q = self.query[seq].reshape(self.num_kv_heads, -1, head_dim)[kv_heads].astype(np.float64)
        keys = blocks_of(self.key_cache, block)[:, :, kv_heads].astype(np.float64)
        values = blocks_of(self.value_cache, block)[:, :, kv_heads].astype(np.float64)
        size = keys.shape[1]
        tokens = np.minimum(self.lens[seq] - logical * size, size)
        valid = np.arange(size) < tokens[:, None]
        values[~valid] = 0  # what lies behind the end may be anything, NaN included
        logits = np.matmul(q, keys.transpose(0, 2, 3, 1)) * self.scale  # [blocks][kv][group][slot]
        logits = np.where(valid[:, None, None], logits, -np.inf)
        high = logits.max(axis=3)
        weights = np.exp(logits - np.where(high == -np.inf, 0, high)[..., None])
        part_sum = weights.sum(axis=3)
        part = np.matmul(weights, values.transpose(0, 2, 1, 3))
        top = high.max(axis=0)
        rescale = np.exp(high - np.where(top == -np.inf, 0, top))
        total = (part_sum * rescale).sum(axis=0)
        merged = (part * rescale[..., None]).sum(axis=0)
        out[:] = (merged / np.where(total == 0, 1, total)[..., None]).reshape(heads, head_dim)
        lse[:] = (top + np.log(total)).reshape(num_kv * (heads // num_kv))
        return len(block), int(tokens.sum()), status
