"""`seed`: as many blocks as complexity, requirement and history of the query earn it, the best box scores first."""

from __future__ import annotations

from tinyserve_viz.memory.policies.selection.policy import SelectionPolicy

POLICY = SelectionPolicy(
    name="seed",
    summary="0, 1 or up to 4 blocks beyond the always-kept ones, by the published priority; which ones, by box score",
    source="TinyServe S:306-352; the published code has no score at all, it takes blocks by position",
    ranks_by="box",
    budget="seed",
    sinks=1,
    recent=1,
)
