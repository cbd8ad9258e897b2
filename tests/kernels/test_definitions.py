from pathlib import Path

import pytest

from tinyserve_viz.kernels import KERNELS
from tinyserve_viz.kernels import defs as defs_package
from tinyserve_viz.kernels.definition import KernelDef

PUBLISHED = [
    "fused_reshape_and_block_write", "paged_attention", "flash_paged_attention", "query_aware_paged_attention",
    "fused_block_copy", "block_allocation", "block_deallocation", "block_fork", "advanced_block_allocation",
    "memory_compaction", "intelligent_memory_compaction", "query_analysis", "block_scoring", "block_mass",
    "cache_selection", "adaptive_cache_management", "dynamic_workload_balancing", "fragmentation_analysis",
    "block_bookkeeping", "content_generation",
]  # fmt: skip

every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)


def test_the_tuple_of_kernels_is_the_folder_of_definitions() -> None:
    folder = Path(next(iter(defs_package.__path__)))
    assert sorted(kernel.name for kernel in KERNELS) == sorted(path.stem for path in folder.glob("[a-z]*.py"))


def test_the_kernel_set_is_the_published_one_and_what_it_lacked() -> None:
    assert sorted(kernel.name for kernel in KERNELS) == sorted(PUBLISHED)


def test_the_c_parameter_list_is_pointers_then_axes_then_scalars_then_status() -> None:
    paged_attention = next(kernel for kernel in KERNELS if kernel.name == "paged_attention")
    assert paged_attention.c_parameters() == [
        "const half* query",
        "const half* key_cache",
        "const half* value_cache",
        "const int* block_table",
        "const int* seq_lens",
        "half* output",
        "float* lse",
        "int64_t num_seqs",
        "int64_t num_heads",
        "int64_t head_dim",
        "int64_t num_blocks",
        "int64_t block_size",
        "int64_t num_kv_heads",
        "int64_t max_blocks_per_seq",
        "float scale",
        "int* status",
    ]


@every_kernel
def test_names_within_a_kernel_are_distinct_and_outputs_are_required(kernel: KernelDef) -> None:
    names = [parameter.split()[-1] for parameter in kernel.c_parameters()]
    assert len(names) == len(set(names))
    optional = {arg.name for arg in kernel.args if arg.role == "out" and arg.optional}
    assert optional <= {"block_peak"}  # only looked at, never decided by
    assert all(arg.optional for arg in kernel.args if arg.role == "scratch")


@every_kernel
def test_a_launch_of_empty_axes_is_still_a_legal_launch(kernel: KernelDef) -> None:
    nothing = dict.fromkeys(kernel.axes, 0)
    assert all(1 <= size <= 65_535 for size in kernel.launch.grid(nothing))
    assert 32 <= kernel.launch.threads <= 1024
    assert kernel.launch.threads % 32 == 0
    assert 0 <= kernel.launch.shared_bytes(nothing) <= 48 * 1024
