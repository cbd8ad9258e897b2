"""`oracle`: the blocks that the query's own attention gives the most mass; it reads all keys, so it saves nothing."""

from __future__ import annotations

from tinyserve_viz.memory.policies.selection.policy import SelectionPolicy

POLICY = SelectionPolicy(
    name="oracle",
    summary="the largest attention mass, which only full attention can tell",
    source="the upper bound: no other choice of as many blocks keeps more mass, averaged over a KV head's query heads",
    ranks_by="mass",
    reduction="mean",
)
