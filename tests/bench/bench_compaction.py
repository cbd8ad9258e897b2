"""Compaction of a large pool at 50 % random occupancy: plan, preview, move and proof, measured.

    PYTHONPATH=. python tests/bench/bench_compaction.py [--blocks 65536]

Blocks of 16 tokens × 2 KV heads × 64, fp16, K and V, one layer; wall times of the NumPy reference, medians.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.engine.fragmented_pool import fragmented_pool
from tinyserve_viz.analysis.compaction import predicted_us, preview
from tinyserve_viz.core.compaction import RULES
from tinyserve_viz.engine.compaction import plan_on_state
from tinyserve_viz.kernels.backend import kernel_named
from tinyserve_viz.kernels.copy_bandwidth import host_copy_bandwidth
from tinyserve_viz.kernels.numpy_backend import NumpyBackend

SHAPE = (16, 2, 64)


def median_ms(call: Callable[[], Any], repeats: int = 7) -> float:
    spent = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        spent.append(time.perf_counter() - started)
    return 1e3 * float(np.median(spent))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--blocks", type=int, default=65_536)
    blocks = parser.parse_args().blocks
    pool = fragmented_pool(blocks, compaction="plain")
    state = pool.state
    for rule in RULES:
        shown = preview(pool.header, state, rule)
        spent = median_ms(lambda chosen=RULES[rule]: plan_on_state(state, chosen, NumpyBackend()))
        print(f"{rule:<12} plan {spent:.1f} ms")
        print(f"{'':<12} {shown.line()}")
    print(f"preview      {median_ms(lambda: preview(pool.header, state)):.1f} ms (plan, state after, measures of both)")
    event = plan_on_state(state, RULES["plain"], NumpyBackend())
    assert event is not None
    caches = [np.ones((1, blocks, *SHAPE), dtype=np.float16) for _ in range(2)]
    old_to_new = np.arange(blocks, dtype=np.int32)
    old_to_new[event.src] = event.dst
    tables = [state.table(seq) for seq in np.flatnonzero(state.slot >= 0).tolist()]
    arrays: dict[str, Any] = {
        "moves": np.stack([event.src, event.dst], axis=1),
        "num_moves": np.array([len(event.src)], dtype=np.int32),
        "old_to_new": old_to_new,
        "key_cache": caches[0],
        "value_cache": caches[1],
        "block_table": state.tables.copy(),
        "ref": state.ref.copy(),
        "gen": state.gen.copy(),
        "cached": ((state.ref == 0) & (state.hash >= 0)).astype(np.uint8),
    }

    def gather() -> None:
        for table in tables:
            for cache in caches:
                np.array_equal(cache[:, table], cache[:, table])

    copy = host_copy_bandwidth()
    num_bytes = 2 * len(event.src) * 2 * int(np.prod(SHAPE)) * 2
    proof = median_ms(gather, 3)
    started = time.perf_counter()
    NumpyBackend().run(kernel_named("memory_compaction"), arrays, {})
    print(
        f"move         {1e3 * (time.perf_counter() - started):.1f} ms for {num_bytes / 1e6:.0f} MB read and written; "
        f"predicted {predicted_us(num_bytes, copy['gb_per_s']) / 1e3:.1f} ms by {copy['of']} "
        f"at {copy['gb_per_s']:.1f} GB/s"
    )
    print(f"proof        {proof:.0f} ms to gather and compare K and V of {len(tables)} sequences")


if __name__ == "__main__":
    main()
