from typing import Any

import numpy as np
import pytest

from tinyserve_viz.core.errors import KernelError
from tinyserve_viz.kernels.backend import kernel_named
from tinyserve_viz.kernels.binding import bind
from tinyserve_viz.kernels.layout import box_offset, empty_boxes, pool_offset


def attention(**changes: Any) -> dict[str, Any]:
    arrays = {
        "query": np.zeros((2, 4, 64), np.float16),
        "key_cache": np.zeros((5, 16, 2, 64), np.float16),
        "value_cache": np.zeros((5, 16, 2, 64), np.float16),
        "block_table": np.zeros((2, 3), np.int32),
        "seq_lens": np.zeros(2, np.int32),
    }
    return {name: array for name, array in (arrays | changes).items() if array is not None}


def test_axes_are_read_off_the_arrays_and_outputs_are_made() -> None:
    call = bind(kernel_named("paged_attention"), attention(), {"scale": 1})
    assert call.axes == {
        "num_seqs": 2, "num_heads": 4, "head_dim": 64, "num_blocks": 5, "block_size": 16, "num_kv_heads": 2,
        "max_blocks_per_seq": 3,
    }  # fmt: skip
    assert {name: (array.shape, array.dtype) for name, array in call.outputs().items()} == {
        "output": ((2, 4, 64), np.float16),
        "lse": ((2, 4), np.float32),
    }
    assert isinstance(call.scalars["scale"], np.float32)


@pytest.mark.parametrize(
    ("changes", "scalars", "message"),
    [
        (
            {"value_cache": np.zeros((5, 16, 2, 32), np.float16)},
            {},
            "paged_attention: value_cache has head_dim=32, earlier arguments have head_dim=64",
        ),
        ({"query": np.zeros((2, 4, 64), np.float32)}, {}, "paged_attention: query is float32, expected float16"),
        ({"query": [[1.0]]}, {}, "paged_attention: query is a list, expected a NumPy array of float16"),
        (
            {"seq_lens": np.zeros((2, 1), np.int32)},
            {},
            "paged_attention: seq_lens has 2 axes, expected [num_seqs]",
        ),
        (
            {"block_table": np.zeros((2, 6), np.int32)[:, ::2]},
            {},
            "paged_attention: block_table is not contiguous; pass np.ascontiguousarray(…)",
        ),
        ({"seq_lens": None}, {}, "paged_attention: seq_lens is missing, expected int32 [num_seqs]"),
        ({"keys": np.zeros(1)}, {}, "paged_attention has no argument 'keys'; it has query, key_cache, value_cache,"),
        ({}, {"scale": None}, "paged_attention: scale is missing (factor of q·k, usually 1/sqrt(head_dim))"),
        ({}, {"scale": "big"}, "paged_attention: scale is 'big', expected a number"),
        (
            {"query": np.zeros((2, 3, 64), np.float16)},
            {},
            "paged_attention: num_heads must be a multiple of num_kv_heads (num_heads=3, num_kv_heads=2)",
        ),
    ],
)
def test_a_call_that_does_not_fit_is_refused_in_words(changes: Any, scalars: Any, message: str) -> None:
    with pytest.raises(KernelError) as error:
        bind(kernel_named("paged_attention"), attention(**changes), {"scale": 0.125} | scalars)
    assert str(error.value).startswith(message)


def test_an_axis_that_only_outputs_have_must_be_given() -> None:
    inputs = {"seq_lens": np.array([3], np.int32)}
    kernel = kernel_named("dynamic_workload_balancing")
    with pytest.raises(KernelError, match=r"give ranges, or num_workers=… so that it can be made"):
        bind(kernel, inputs, {"block_size": 16})
    with pytest.raises(KernelError, match=r"max_segments must be at least num_seqs \+ num_workers"):
        bind(kernel, inputs, {"block_size": 16, "num_workers": 2, "max_segments": 2})
    with pytest.raises(KernelError, match=r"num_workers is -1, expected a whole number from 0"):
        bind(kernel, inputs, {"block_size": 16, "num_workers": -1, "max_segments": 2})


def test_choices_are_given_by_name_or_number_and_others_are_refused() -> None:
    kernel = kernel_named("query_analysis")
    query = {"query": np.zeros((1, 1, 32), np.float16)}
    assert bind(kernel, query, {"mode": "energy"}).scalars["mode"] == 0
    with pytest.raises(KernelError, match="unknown mode 'enrgy'; known: energy, entropy, mass_entropy"):
        bind(kernel, query, {"mode": "enrgy"})
    with pytest.raises(KernelError, match="mode is 7, expected a whole number from 0 to 2"):
        bind(kernel, query, {"mode": 7})
    with pytest.raises(KernelError, match="the entropy modes need block_score and num_scored"):
        bind(kernel, query, {"mode": "entropy"})
    with pytest.raises(KernelError, match="high_permille is True, expected a whole number"):
        bind(kernel, query, {"high_permille": True})


def test_a_literal_axis_is_checked_and_flags_may_be_booleans() -> None:
    kernel = kernel_named("fused_block_copy")
    pool = np.zeros((1, 3, 4, 1, 32), np.float16)
    inputs = {"ref": np.ones(3, np.int32), "key_cache": pool, "value_cache": pool.copy()}
    with pytest.raises(KernelError, match="ops has 2 in the place of 3"):
        bind(kernel, inputs | {"ops": np.zeros((1, 2), np.int32)}, {})
    with pytest.raises(KernelError, match=r"layer_stride must be at least num_blocks \(num_blocks=4, layer_stride=3\)"):
        bind(kernel, inputs | {"ops": np.zeros((1, 3), np.int32), "ref": np.ones(4, np.int32)}, {})
    plan = kernel_named("intelligent_memory_compaction")
    zeros = np.zeros(4, np.int32)
    call = bind(plan, {"ref": zeros, "cached": np.zeros(4, np.bool_), "uses": zeros, "level": zeros}, {"max_moves": 2})
    assert call.arrays["cached"] is not None
    assert call.arrays["cached"].dtype == np.uint8


def test_what_a_kernel_writes_must_be_writable() -> None:
    table = np.full((2, 3), -1, np.int32)
    table.setflags(write=False)
    forks = np.zeros((0, 3), np.int32)
    with pytest.raises(KernelError, match="block_table is written by the kernel, but the array is read-only"):
        bind(kernel_named("block_fork"), {"forks": forks, "block_table": table, "ref": np.zeros(4, np.int32)}, {})


def test_an_unknown_kernel_is_named_with_the_known_ones() -> None:
    with pytest.raises(KernelError, match="unknown kernel 'paged'; known: adaptive_cache_management, "):
        kernel_named("paged")


def test_offsets_into_pools_and_boxes_are_those_of_the_arrays_and_pass_2_to_the_31() -> None:
    pool = np.arange(5 * 8 * 3 * 32).reshape(5, 8, 3, 32)
    at = pool_offset(3, 5, 2, 7, block_size=8, num_kv_heads=3, head_dim=32)
    assert pool[3, 5, 2, 7] == at
    boxes = np.arange(empty_boxes(5, 3, 32).size).reshape(5, 3, 2, 32)
    assert boxes[4, 1, 1, 30] == box_offset(4, 1, 1, 30, num_kv_heads=3, head_dim=32)
    # Batch 4 at 131,072 tokens of 32 heads × 128 channels: where 32-bit index arithmetic of the published code wraps.
    far = pool_offset(np.int32(4 * 8192 - 1), np.int32(15), 31, 127, block_size=16, num_kv_heads=32, head_dim=128)
    assert int(far) == 2**31 - 1
    assert int(pool_offset(np.int32(4 * 8192), 0, 0, 0, block_size=16, num_kv_heads=32, head_dim=128)) == 2**31
