import re
from pathlib import Path

import numpy as np
import pytest

from tinyserve_viz.core.errors import ConfigError, KernelError
from tinyserve_viz.kernels import (
    AttentionMetadata,
    KernelConfig,
    benchmark,
    destroy_block_table,
    init_block_table,
    optimal_config,
    run,
)
from tinyserve_viz.kernels.api import BACKENDS, backend_named
from tinyserve_viz.kernels.parameters import PARAMETERS, checked, default

DOCS = Path(__file__).parents[2] / "docs"


def test_the_examples_of_the_python_page_run_as_written() -> None:
    page = (DOCS / "python-api.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 4
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/python-api.md", "exec"), namespace)


def test_the_headers_fields_are_all_there() -> None:
    assert set(KernelConfig.__dataclass_fields__) == {
        "block_dim_x", "block_dim_y", "block_dim_z", "grid_dim_x", "grid_dim_y", "grid_dim_z", "shared_mem_bytes",
        "use_tensor_cores", "enable_kernel_fusion",
    }  # fmt: skip
    assert set(AttentionMetadata.__dataclass_fields__) == {
        "batch_size", "num_heads", "head_dim", "block_size", "max_seq_len", "scale", "use_flash_attention",
        "use_memory_optimization", "num_warps_per_block", "shared_mem_size", "num_kv_heads",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch_size", 0, "batch_size is 0, expected a whole number from 1 to 65535"),
        ("head_dim", 1.5, "head_dim is 1.5, expected a whole number from 1 to 1024"),
        ("num_kv_heads", 3, "num_heads is 8, expected a multiple of num_kv_heads 3"),
        ("scale", float("nan"), "scale is nan, expected a positive number, or 0 for 1/sqrt(head_dim)"),
        ("num_warps_per_block", 33, "num_warps_per_block is 33, expected a whole number from 0 to 32"),
    ],
)
def test_metadata_out_of_range_is_refused_in_words(field: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        AttentionMetadata(**({"batch_size": 1, "num_heads": 8, "head_dim": 64} | {field: value}))  # type: ignore[arg-type]
    assert str(error.value) == message


def test_a_launch_beyond_the_hardware_is_refused() -> None:
    with pytest.raises(ConfigError, match="block_dim is 2048 threads in all, expected at most 1024"):
        KernelConfig(block_dim_x=512, block_dim_y=4)
    with pytest.raises(ConfigError, match="grid_dim_y is 70000"):
        KernelConfig(grid_dim_y=70_000)


def test_the_flags_choose_the_kernel_and_the_launch_follows_its_definition() -> None:
    shape = {"batch_size": 8, "num_heads": 32, "head_dim": 128, "num_kv_heads": 8}
    exact = AttentionMetadata(**shape, use_flash_attention=False)
    assert exact.kernel == "paged_attention"
    assert optimal_config(exact) == KernelConfig(
        block_dim_x=128, grid_dim_x=8, grid_dim_y=32, shared_mem_bytes=4 * (128 + 128), use_tensor_cores=True
    )
    aware = optimal_config(AttentionMetadata(**shape, use_memory_optimization=True, num_warps_per_block=8))
    assert (aware.block_dim_x, aware.grid_dim_y, aware.enable_kernel_fusion) == (256, 8, True)
    assert not optimal_config(AttentionMetadata(batch_size=1, num_heads=8, head_dim=128)).use_tensor_cores


def test_a_refused_allocation_changes_nothing() -> None:
    table = init_block_table(4, 6, 16, num_seqs=3)
    table.allocate([(0, 0), (0, 1)])
    before = table.physical_block_ids.copy()
    for requests, why in (
        ([(1, 0), (0, 1)], "ALREADY_MAPPED"),
        ([(3, 0)], "RANGE"),
        ([(s, b) for s in (1, 2) for b in range(3)], "OOM: 6 asked, 4 free"),
    ):
        with pytest.raises(KernelError, match=why):
            table.allocate(requests)
        assert np.array_equal(table.physical_block_ids, before)
    assert table.free_order == [2, 3, 4, 5]


def test_a_fork_that_does_not_fit_changes_nothing() -> None:
    table = init_block_table(4, 6, 16, num_seqs=3)
    table.allocate([(0, 0), (0, 1), (1, 0)])
    before = table.physical_block_ids.copy()
    for parent, child, blocks, why in ((0, 1, 2, "ALREADY_MAPPED"), (0, 2, 3, "UNMAPPED"), (0, 0, 1, "CONFLICT")):
        with pytest.raises(KernelError, match=why):
            table.fork(parent, child, blocks)
        assert np.array_equal(table.physical_block_ids, before)


def test_shared_blocks_are_freed_by_their_last_holder_and_leaks_are_named() -> None:
    table = init_block_table(4, 6, 16, num_seqs=3)
    table.allocate([(0, 0), (0, 1)])
    table.fork(0, 1, 2)
    assert table.release(0).tolist() == []
    assert table.release(1).tolist() == [1, 0]  # tail first
    assert table.free_order == [2, 3, 4, 5, 1, 0]
    table.allocate([(2, 0)])
    table.block_ref_counts[5] = 1
    with pytest.raises(KernelError, match=r"blocks \[5\] still have references that no sequence holds"):
        destroy_block_table(table)


def test_a_block_table_of_no_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="total_physical_blocks is 0"):
        init_block_table(4, 0, 16)
    with pytest.raises(ConfigError, match="cache_size is 9, expected a whole number from 0 to 8"):
        init_block_table(4, 8, 16, cache_size=9)
    assert init_block_table(4, 8, 16).cache_size == 2


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("flash", [False, True])
def test_a_benchmark_names_what_it_timed_and_gives_no_bandwidth(flash: bool, memory: bool) -> None:
    metadata = AttentionMetadata(
        2, 4, 32, max_seq_len=40, num_kv_heads=2, use_flash_attention=flash, use_memory_optimization=memory
    )
    result = benchmark(metadata, num_iterations=3)
    assert (result.title, result.kernel, result.iterations) == ("NumPy reference", metadata.kernel, 3)
    assert 0 < result.fastest_us <= result.median_us <= result.slowest_us
    assert not any("gb" in name.lower() for name in result.__dataclass_fields__)
    with pytest.raises(ConfigError, match="num_iterations is 0"):
        benchmark(metadata, num_iterations=0)


def test_backends_are_found_by_name() -> None:
    assert [backend_named(name).name for name, _, _ in BACKENDS[:1]] == ["numpy"]
    with pytest.raises(KernelError, match="unknown backend 'tpu'; known: numpy"):
        backend_named("tpu")


def test_run_takes_choices_by_name_and_axes_of_outputs() -> None:
    plan = run(
        "dynamic_workload_balancing",
        seq_lens=np.array([40, 8], np.int32), block_size=16, num_workers=2, max_segments=4, mode="lpt",
    )  # fmt: skip
    assert plan["load"].tolist() == [40, 8]


def test_policy_parameters_have_their_published_defaults_and_refuse_what_is_out_of_range() -> None:
    assert {parameter.name: parameter.default for parameter in PARAMETERS} == {
        "selection.ratio": 300, "selection.threshold": 500, "selection.weight_complexity": 400,
        "selection.weight_requirement": 300, "selection.weight_history": 300, "selection.sinks": 1,
        "selection.recent": 1, "requirement.high": 500, "requirement.medium": 200, "adaptive.hit_threshold": 600,
        "adaptive.frequency_threshold": 8, "adaptive.decay": 500, "adaptive.window": 64, "hot.frequency": 5,
        "hot.start_divisor": 4, "hot.smallest_divisor": 16, "hot.largest_divisor": 2, "hot.step_divisor": 32,
        "hot.resize_steps": 64, "hot.grow_above": 500, "hot.shrink_below": 100, "compaction.trigger": 1500,
        "compaction.min_moves": 4, "compaction.min_gain": 1, "compaction.payback": 1000, "compaction.cooldown": 16,
        "compaction.weight_uses": 1000, "compaction.weight_level": 1000, "compaction.weight_shared": 4000,
        "compaction.threshold": 2000, "snapkv.window": 16,
    }  # fmt: skip
    assert all(parameter.low <= parameter.default <= parameter.high for parameter in PARAMETERS)
    assert all(parameter.unit and parameter.source for parameter in PARAMETERS)
    assert checked("selection.ratio", 1000) == 1000
    assert default("selection.ratio") == 300
    with pytest.raises(ConfigError, match=r"selection\.ratio is 1500, expected a whole number from 1 to 1000"):
        checked("selection.ratio", 1500)
    with pytest.raises(ConfigError, match=r"compaction\.cooldown is True"):
        checked("compaction.cooldown", True)
