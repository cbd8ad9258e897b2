"""`recency`: the newest blocks and nothing else; what sliding-window attention reads."""

from __future__ import annotations

import numpy as np

from tinyserve_viz.memory.policies.selection.policy import F32, Asked, SelectionPolicy


def newest_first(asked: Asked) -> F32:
    """The higher the logical block, the larger the number."""
    numbers = np.arange(asked.width, dtype=np.float32)
    return np.broadcast_to(numbers, (len(asked.seqs), asked.num_heads, asked.width)).copy()


POLICY = SelectionPolicy(
    name="recency",
    summary="the newest blocks",
    source="sliding-window attention, Longformer, arXiv 2004.05150",
    ranks_by="order",
    order=newest_first,
)
