"""`streaming`: the first blocks (attention sinks) and a window of the newest ones."""

from __future__ import annotations

from tinyserve_viz.memory.policies.selection.policy import SelectionPolicy
from tinyserve_viz.memory.policies.selection.recency import newest_first

POLICY = SelectionPolicy(
    name="streaming",
    summary="the first blocks and the newest ones",
    source="StreamingLLM, arXiv 2309.17453",
    ranks_by="order",
    sinks=1,
    recent=1,
    order=newest_first,
)
