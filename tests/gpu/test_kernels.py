"""The kernels on a GPU: every case of the conformance table, long contexts, and offsets beyond 2**31."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinyserve_viz.kernels import KERNELS
from tinyserve_viz.kernels.backend import kernel_named
from tinyserve_viz.kernels.bench.device import Device, prepare, status_of
from tinyserve_viz.kernels.cases import CASES
from tinyserve_viz.kernels.conformance import Case, run_case
from tinyserve_viz.kernels.cuda_backend import CudaBackend
from tinyserve_viz.kernels.numpy_backend import NumpyBackend

pytestmark = pytest.mark.gpu

NUMPY = NumpyBackend()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kernel}-{case.name}")
def test_the_device_gives_what_the_oracle_gives(cuda: CudaBackend, case: Case) -> None:
    result = run_case(cuda, case)
    assert result.outcome == "OK", result.detail


def test_every_kernel_has_a_cuda_form(cuda: CudaBackend) -> None:
    assert [kernel.name for kernel in KERNELS if not cuda.supports(kernel)] == []


def _both(cuda: CudaBackend, name: str, arrays: dict[str, Any], scalars: dict[str, Any]) -> tuple[Any, Any]:
    copies = {key: array.copy() for key, array in arrays.items()}
    return cuda.run(kernel_named(name), arrays, scalars), NUMPY.run(kernel_named(name), copies, scalars)


def _long_context(num_tokens: int, block_size: int = 16, num_kv_heads: int = 2, head_dim: int = 128) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    blocks = num_tokens // block_size
    shape = (blocks, block_size, num_kv_heads, head_dim)
    key_cache = rng.standard_normal(shape, np.float32).astype(np.float16)
    return {
        "query": rng.standard_normal((1, 4 * num_kv_heads, head_dim)).astype(np.float16),
        "key_cache": key_cache,
        "value_cache": rng.standard_normal(shape, np.float32).astype(np.float16),
        "block_table": rng.permutation(blocks).astype(np.int32)[None],
        "seq_lens": np.array([num_tokens - 3], np.int32),
        "box": np.stack([key_cache.min(axis=1), key_cache.max(axis=1)], axis=2),
    }


def test_131072_tokens_at_batch_1(cuda: CudaBackend) -> None:
    arrays = _long_context(131_072)
    scale = {"scale": 128**-0.5}
    attention = {name: arrays[name] for name in ("query", "key_cache", "value_cache", "block_table", "seq_lens")}
    plan = cuda.run(
        kernel_named("dynamic_workload_balancing"),
        {"seq_lens": arrays["seq_lens"]},
        {"num_workers": 200, "max_segments": 201, "block_size": 16},
    )
    work = {name: plan[name] for name in ("segments", "segment_range", "seq_segments")}
    _, expected = _both(cuda, "paged_attention", attention, scale)
    for name, extra in (("paged_attention", {}), ("flash_paged_attention", {}), ("flash_paged_attention", work)):
        found = cuda.run(kernel_named(name), {**attention, **extra}, scale)
        assert found["status"][0] == 0
        for key in ("output", "lse"):
            np.testing.assert_allclose(found[key], expected[key], rtol=1e-2, atol=2e-3)

    score = {"query": arrays["query"], "box": arrays["box"], "block_table": arrays["block_table"]}
    score["num_seq_blocks"] = np.array([8192], np.int32)
    found, expected = _both(cuda, "block_scoring", score, {"num_score_heads": 2})
    np.testing.assert_array_equal(found["block_score"], expected["block_score"])
    choice = {
        "complexity": np.zeros(1, np.float32),
        "requirement": np.zeros(1, np.int32),
        "block_score": expected["block_score"],
        "num_seq_blocks": score["num_seq_blocks"],
        "history": np.zeros((1, 8192), np.int32),
    }
    found, expected = _both(cuda, "cache_selection", choice, {"num_select_heads": 2, "max_selected": 2458})
    np.testing.assert_array_equal(found["selected"], expected["selected"])
    mass = {name: arrays[name] for name in ("query", "key_cache", "block_table", "seq_lens")}
    found, expected = _both(cuda, "block_mass", mass, {**scale, "num_score_heads": 2})
    np.testing.assert_array_equal(found["block_mass"], expected["block_mass"])


def test_a_launch_that_starts_early_sees_what_the_one_before_wrote(cuda: CudaBackend) -> None:
    rng = np.random.default_rng(2)
    query = rng.standard_normal((1, 32, 128)).astype(np.float16)
    host = _long_context(4096, num_kv_heads=8)
    host = {name: host[name] for name in ("key_cache", "value_cache", "block_table", "seq_lens")}
    sizes = {"num_workers": 16, "max_segments": 17, "block_size": 16}
    plan = NUMPY.run(kernel_named("dynamic_workload_balancing"), {"seq_lens": host["seq_lens"]}, sizes)
    host |= {name: plan[name] for name in ("segments", "segment_range", "seq_segments")}
    with cuda.gpu.current() as driver:
        device = Device(cuda.gpu)
        one, other = (device.empty(query.shape, np.float16) for _ in range(2))
        given = {name: device.put(array) for name, array in host.items()}
        calls = [
            prepare(device, "flash_paged_attention", {**given, "query": source, "output": target}, scale=4.0)
            for source, target in ((one, other), (other, one))
        ]

        def chained(between: Any) -> Any:
            driver.memcpy_htod(one.pointer, query)
            for call in calls * 20:
                call.launch()
                between()
            return device.read(one)

        waiting = chained(driver.Context.synchronize)
        assert np.isfinite(waiting).all()
        assert not np.array_equal(waiting, query)
        for _ in range(5):
            np.testing.assert_array_equal(chained(lambda: None), waiting)
        assert [int(status_of(device, call.status)) for call in calls] == [0, 0]


def test_offsets_beyond_2_to_31_elements(cuda: CudaBackend) -> None:
    """A pool of 2**31 + 2**16 elements whose last blocks are written, copied and read."""
    rng = np.random.default_rng(2)
    size, kv_heads, head_dim = 16, 8, 128
    blocks = (1 << 31) // (size * kv_heads * head_dim) + 4
    key_cache = np.zeros((blocks, size, kv_heads, head_dim), np.float16)
    value_cache = np.zeros_like(key_cache)
    box = np.zeros((blocks, kv_heads, 2, head_dim), np.float16)
    last = np.array([[blocks - 1, blocks - 2]], np.int32)
    ref = np.zeros(blocks, np.int32)
    ref[-4:] = 1
    kv = rng.standard_normal((20, 2, kv_heads, head_dim)).astype(np.float16)
    write = {
        "kv": kv, "token_start": np.zeros(1, np.int64), "start_pos": np.zeros(1, np.int32),
        "seq_lens": np.array([20], np.int32), "block_table": last, "ref": ref,
        "key_cache": key_cache, "value_cache": value_cache, "box": box,
    }  # fmt: skip
    assert cuda.run(kernel_named("fused_reshape_and_block_write"), write, {})["status"][0] == 0
    np.testing.assert_array_equal(key_cache[-1], kv[:16, 0])
    np.testing.assert_array_equal(value_cache[-2, :4], kv[16:, 1])
    assert not key_cache[: blocks - 2].any()
    copy = {
        "ops": np.array([[blocks - 1, blocks - 3, 16]], np.int32), "ref": ref,
        "key_cache": key_cache[None], "value_cache": value_cache[None], "box": box[None],
    }  # fmt: skip
    assert cuda.run(kernel_named("fused_block_copy"), copy, {})["status"][0] == 0
    np.testing.assert_array_equal(key_cache[-3], kv[:16, 0])
    attention = {
        "query": rng.standard_normal((1, 32, head_dim)).astype(np.float16), "key_cache": key_cache,
        "value_cache": value_cache, "block_table": last, "seq_lens": np.array([20], np.int32),
    }  # fmt: skip
    expected = NUMPY.run(kernel_named("paged_attention"), attention, {"scale": 0.1})
    for name in ("paged_attention", "flash_paged_attention"):
        found = cuda.run(kernel_named(name), attention, {"scale": 0.1})
        np.testing.assert_allclose(found["output"], expected["output"], rtol=1e-2, atol=2e-3)


def test_the_times_of_a_call_name_its_launches(cuda: CudaBackend) -> None:
    case = next(case for case in CASES if case.kernel == "memory_compaction" and case.name == "one_move")
    cuda.run(kernel_named("memory_compaction"), *case.make())
    assert [time.entry for time in cuda.times] == ["memory_compaction_mark", "memory_compaction"]
    assert all(time.microseconds > 0 for time in cuda.times)
