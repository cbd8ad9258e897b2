"""Times of the NumPy references, where no GPU was timed: what a step of work costs on this CPU, and no kernel's time.

The order of two such times says how much is read and how often it is gone through, not what a GPU would need.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.analysis.claim import Number, counted
from tinyserve_viz.cli.claims.counting import Ask
from tinyserve_viz.kernels.backend import kernel_named
from tinyserve_viz.kernels.defs.cache_selection import paper_budget
from tinyserve_viz.kernels.numpy_backend import NumpyBackend

PAGES = (4, 8, 16, 32, 64)
_RUNS = 3
_HOW = "wall time of the NumPy reference on this CPU, median of 3: no kernel time"
_HEADS, _KV_HEADS, _DIM = 8, 2, 64


def _run(kernel: str, arrays: dict[str, Any], **scalars: Any) -> dict[str, NDArray[Any]]:
    return NumpyBackend().run(kernel_named(kernel), arrays, scalars)


def _median_ms(work: Callable[[], object]) -> float:
    """Median of three runs after one that is not counted."""
    spent = []
    work()
    for _ in range(_RUNS):
        started = time.perf_counter()
        work()
        spent.append(1e3 * (time.perf_counter() - started))
    return float(np.median(spent))


def pages(ask: Ask, length: int = 8192) -> list[Number]:
    """Scores, choice and attention of one sequence at 30 % of its blocks, by block size."""
    ask.say("timing the NumPy references at five block sizes")
    rng = np.random.default_rng(length)
    keys, values = (rng.standard_normal((length, _KV_HEADS, _DIM), np.float32).astype(np.float16) for _ in range(2))
    query = rng.standard_normal((1, _HEADS, _DIM)).astype(np.float16)
    on = f"B = 1, {length:,} tokens, {_HEADS} / {_KV_HEADS} heads of {_DIM}, iid"
    numbers = []
    for size in PAGES:
        blocks = length // size
        pool = (blocks, size, _KV_HEADS, _DIM)
        key_cache = keys.reshape(pool)
        box = np.stack([key_cache.min(axis=1), key_cache.max(axis=1)], axis=2)
        table = np.arange(blocks, dtype=np.int32)[None]
        count = np.array([blocks], np.int32)
        kept = int(paper_budget(np.array([blocks]), 300, 0, 0)[0])
        shared = {"query": query, "block_table": table}
        cache = {"key_cache": key_cache, "value_cache": values.reshape(pool), "seq_lens": np.array([length], np.int32)}

        def attend(
            shared: dict[str, Any] = shared, cache: dict[str, Any] = cache, box: NDArray[Any] = box,
            count: NDArray[Any] = count, kept: int = kept,
        ) -> None:  # fmt: skip
            scored = _run("block_scoring", {**shared, "box": box, "num_seq_blocks": count}, num_score_heads=_KV_HEADS)
            choice = _run(
                "cache_selection",
                {
                    "complexity": np.zeros(1, np.float32), "requirement": np.zeros(1, np.int32),
                    "block_score": scored["block_score"], "num_seq_blocks": count,
                    "history": np.zeros_like(shared["block_table"]),
                },
                num_select_heads=_KV_HEADS, max_selected=kept, ratio_permille=300, sinks=0, recent=0,
            )  # fmt: skip
            chosen = {name: choice[name] for name in ("selected", "count")}
            _run("query_aware_paged_attention", {**shared, **cache, **chosen}, scale=_DIM**-0.5)

        what = f"scores, choice and attention at 30 % of the blocks; {_HOW}"
        numbers.append(counted(f"NumPy reference, page {size}", _median_ms(attend), "ms", what, on))
    return numbers


def writes(ask: Ask) -> list[Number]:
    """New rows written at once, and copied first, as a reshape of its own would."""
    ask.say("timing the NumPy references of a write")
    size, numbers = 16, []
    for rows, new in ((64, 1), (1, 2048)):
        per_seq = -(-new // size)
        blocks = rows * per_seq
        kv = np.random.default_rng(rows).standard_normal((rows * new, 2, _KV_HEADS, _DIM), np.float32)
        arrays: dict[str, Any] = {
            "kv": kv.astype(np.float16),
            "key_cache": np.zeros((blocks, size, _KV_HEADS, _DIM), np.float16),
            "value_cache": np.zeros((blocks, size, _KV_HEADS, _DIM), np.float16),
            "box": np.zeros((blocks, _KV_HEADS, 2, _DIM), np.float16),
            "block_table": np.arange(blocks, dtype=np.int32).reshape(rows, per_seq),
            "ref": np.ones(blocks, np.int32),
            "token_start": np.arange(rows, dtype=np.int64) * new,
            "start_pos": np.zeros(rows, np.int32),
            "seq_lens": np.full(rows, new, np.int32),
        }

        def write(kv: NDArray[Any], arrays: dict[str, Any] = arrays) -> None:
            _run("fused_reshape_and_block_write", {**arrays, "kv": kv})

        def fused(write: Callable[..., None] = write, kv: NDArray[Any] = arrays["kv"]) -> None:
            write(kv)

        def apart(write: Callable[..., None] = write, kv: NDArray[Any] = arrays["kv"]) -> None:
            write(kv.copy())

        on = f"{rows} sequences of {new:,} new tokens, {_KV_HEADS} KV heads of {_DIM}"
        for name, work in (("one call", fused), ("copy, then write", apart)):
            numbers.append(counted(f"NumPy reference, {name}", _median_ms(work), "ms", _HOW, on))
    return numbers
