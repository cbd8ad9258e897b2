"""Every kernel a second time, written to be believed: one element at a time, in the words of its contract.

An oracle takes the call's arguments as attributes, writes its outputs in place and returns the status word. It shares
no code with the references but the layout and the polynomials' coefficients; `kernels verify` holds the references to
it. Slow on purpose: plain loops, dictionaries, sorts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tinyserve_viz.kernels.definition import Status
from tinyserve_viz.kernels.oracles import attention, decisions, memory, upkeep

ORACLES: dict[str, Callable[[Any], Status]] = {
    "block_allocation": memory.block_allocation,
    "advanced_block_allocation": memory.advanced_block_allocation,
    "block_deallocation": memory.block_deallocation,
    "block_fork": memory.block_fork,
    "block_bookkeeping": memory.block_bookkeeping,
    "fused_block_copy": memory.fused_block_copy,
    "content_generation": decisions.content_generation,
    "fused_reshape_and_block_write": memory.fused_reshape_and_block_write,
    "block_scoring": decisions.block_scoring,
    "block_mass": decisions.block_mass,
    "query_analysis": decisions.query_analysis,
    "cache_selection": decisions.cache_selection,
    "dynamic_workload_balancing": upkeep.dynamic_workload_balancing,
    "paged_attention": attention.paged_attention,
    "flash_paged_attention": attention.flash_paged_attention,
    "query_aware_paged_attention": attention.query_aware_paged_attention,
    "adaptive_cache_management": upkeep.adaptive_cache_management,
    "intelligent_memory_compaction": upkeep.intelligent_memory_compaction,
    "memory_compaction": memory.memory_compaction,
    "fragmentation_analysis": upkeep.fragmentation_analysis,
}
