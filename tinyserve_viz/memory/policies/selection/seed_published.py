"""`seed-published`: what the published attention kernel does: at low priority the newest half of the blocks is dropped.

`if (cache_priority == 0 && block_idx > num_blocks / 2) continue;` (S:442-445). The current token is among what is lost.
"""

from __future__ import annotations

import numpy as np

from tinyserve_viz.memory.policies.selection.policy import F32, Asked, SelectionPolicy


def first_blocks_first(asked: Asked) -> F32:
    """The lower the logical block, the larger the number."""
    numbers = np.arange(asked.width, 0, -1, dtype=np.float32)
    return np.broadcast_to(numbers, (len(asked.seqs), asked.num_heads, asked.width)).copy()


POLICY = SelectionPolicy(
    name="seed-published",
    summary="every block, but at low priority none after the middle",
    source="TinyServe S:442-445, kept as published",
    ranks_by="order",
    budget="seed-published",
    order=first_blocks_first,
    can_keep=False,
    warning="drops the newest half of the context, the current token with it, whenever the priority is low (S:442-445)",
)
