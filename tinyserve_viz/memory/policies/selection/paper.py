"""`paper`: the blocks whose key box allows the largest q·k, a share of the sequence's blocks (TinyServe, Quest)."""

from __future__ import annotations

from tinyserve_viz.memory.policies.selection.policy import SelectionPolicy

POLICY = SelectionPolicy(
    name="paper",
    summary="the largest q·k that a block's key box allows",
    source="TinyServe, arXiv 2509.12211 eq. 2; Quest, arXiv 2406.10774 (which keeps the last page)",
    ranks_by="box",
    sinks=1,
    recent=1,
)
