"""`snapkv`: the blocks that the last queries before this one attended to most.

SnapKV (arXiv 2404.14469) lets a window of the prompt's last queries vote once and keeps that choice, with pooled votes
per token. Here the window moves on with the context, votes are summed per block, and the choice is made at every step.
"""

from __future__ import annotations

from tinyserve_viz.memory.policies.selection.policy import SelectionPolicy

POLICY = SelectionPolicy(
    name="snapkv",
    summary="the largest attention mass over the window of queries before this one",
    source="SnapKV, arXiv 2404.14469, per block and at every step",
    ranks_by="window",
    sinks=1,
    recent=1,
    reduction="mean",
)
