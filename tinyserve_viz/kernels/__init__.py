"""The kernel set: one definition per kernel, a NumPy reference, and backends that run and prove it."""

from __future__ import annotations

from tinyserve_viz.kernels.definition import KernelDef
from tinyserve_viz.kernels.defs import (
    adaptive_cache_management,
    advanced_block_allocation,
    block_allocation,
    block_bookkeeping,
    block_deallocation,
    block_fork,
    block_mass,
    block_scoring,
    cache_selection,
    content_generation,
    dynamic_workload_balancing,
    flash_paged_attention,
    fragmentation_analysis,
    fused_block_copy,
    fused_reshape_and_block_write,
    intelligent_memory_compaction,
    memory_compaction,
    paged_attention,
    query_analysis,
    query_aware_paged_attention,
)

# In the order of a step: memory first, then what decides, then attention, then what looks after the pool.
KERNELS: tuple[KernelDef, ...] = (
    block_allocation.KERNEL,
    advanced_block_allocation.KERNEL,
    block_deallocation.KERNEL,
    block_fork.KERNEL,
    block_bookkeeping.KERNEL,
    fused_block_copy.KERNEL,
    content_generation.KERNEL,
    fused_reshape_and_block_write.KERNEL,
    block_scoring.KERNEL,
    block_mass.KERNEL,
    query_analysis.KERNEL,
    cache_selection.KERNEL,
    dynamic_workload_balancing.KERNEL,
    paged_attention.KERNEL,
    flash_paged_attention.KERNEL,
    query_aware_paged_attention.KERNEL,
    adaptive_cache_management.KERNEL,
    intelligent_memory_compaction.KERNEL,
    memory_compaction.KERNEL,
    fragmentation_analysis.KERNEL,
)

# The interface for Python programs stands last: it needs KERNELS.
from tinyserve_viz.kernels.api import (  # noqa: E402
    AttentionMetadata,
    Benchmark,
    BlockTable,
    KernelConfig,
    benchmark,
    destroy_block_table,
    init_block_table,
    optimal_config,
    run,
)
from tinyserve_viz.kernels.definition import Status  # noqa: E402

__all__ = [
    "KERNELS",
    "AttentionMetadata",
    "Benchmark",
    "BlockTable",
    "KernelConfig",
    "KernelDef",
    "Status",
    "benchmark",
    "destroy_block_table",
    "init_block_table",
    "optimal_config",
    "run",
]
