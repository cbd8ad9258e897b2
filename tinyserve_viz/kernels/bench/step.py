"""The row of a whole decode step: every kernel that a step runs, back to back in one CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.bench.attention import (
    attend,
    attention_bytes,
    balance,
    check_attention,
    facts,
    tables,
    worker_counts,
)
from tinyserve_viz.kernels.bench.grid import BLOCK_SIZE, KEPT_TOKENS, LLAMA3_8B
from tinyserve_viz.kernels.bench.selection import KEPT, best_blocks
from tinyserve_viz.kernels.bench.work import Bench, Call, Work, close, same

BATCH, LENGTH = 64, 4096
IN_A_STEP = (
    "fused_reshape_and_block_write",
    "block_scoring",
    "query_analysis",
    "cache_selection",
    "dynamic_workload_balancing",
    "query_aware_paged_attention",
    "flash_paged_attention",
    "adaptive_cache_management",
    "fragmentation_analysis",
)


def step(bench: Bench) -> Iterator[Work]:
    """64 sequences of 4,096 tokens decode one token: with selection of 2,048 tokens, and with exact attention."""
    if bench.wanted and not set(IN_A_STEP) <= bench.wanted:
        return
    model, batch, length = LLAMA3_8B, BATCH, LENGTH
    num_blocks = bench.num_blocks(model)
    if not bench.fits(f"step B={batch} L={length}", batch * length // BLOCK_SIZE, model):
        return
    rng = bench.rng(batch, length, 10)
    table = tables(rng, [length] * batch, num_blocks, 1)[0]
    pool = (num_blocks, BLOCK_SIZE, model.num_kv_heads, model.head_dim)
    ref = np.zeros(num_blocks, np.int32)
    ref[table] = 1
    put = bench.device.put
    lens = np.full(batch, length, np.int32)
    shared: dict[str, Any] = {
        "query": put(rng.standard_normal((batch, model.num_heads, model.head_dim)).astype(np.float16)),
        "block_table": put(table), "seq_lens": put(lens), "ref": put(ref),
        "key_cache": bench.noise("keys").view(pool), "value_cache": bench.noise("values").view(pool),
        "box": bench.noise("boxes").view((num_blocks, model.num_kv_heads, 2, model.head_dim)),
    }  # fmt: skip

    def some(*names: str) -> dict[str, Any]:
        return {name: shared[name] for name in names}

    write = bench.call(
        "fused_reshape_and_block_write",
        some("block_table", "seq_lens", "ref", "key_cache", "value_cache", "box")
        | {
            "kv": _last_tokens(bench, table, length),
            "token_start": np.arange(batch, dtype=np.int64), "start_pos": np.full(batch, length - 1, np.int32),
            "work_start": np.arange(batch, dtype=np.int64),
        },
        num_work=batch,
    )  # fmt: skip
    blocks = np.full(batch, length // BLOCK_SIZE, np.int32)
    score = bench.call(
        "block_scoring",
        some("query", "box", "block_table") | {"num_seq_blocks": blocks},
        num_score_heads=model.num_kv_heads,
    )
    asked = bench.call("query_analysis", some("query"), mode="energy")
    choice = bench.call(
        "cache_selection",
        {name: asked.arrays[name] for name in ("complexity", "requirement")}
        | {
            "block_score": score.arrays["block_score"],
            "num_seq_blocks": blocks,
            "history": np.zeros_like(table),
        },
        num_select_heads=model.num_kv_heads,
        max_selected=KEPT,
        budget_blocks=KEPT,
    )
    workers = worker_counts(bench.device, model)[0]
    sparse_list = balance(bench, lens, workers, kept=np.full(batch, KEPT, np.int32))
    exact_list = balance(bench, lens, workers)
    work = ("segments", "segment_range", "seq_segments")
    cache = some("query", "key_cache", "value_cache", "block_table", "seq_lens")
    scale = model.head_dim**-0.5
    sparse = bench.call(
        "query_aware_paged_attention",
        cache
        | {name: choice.arrays[name] for name in ("selected", "count")}
        | {name: sparse_list.arrays[name] for name in work},
        scale=scale,
    )
    exact = bench.call("flash_paged_attention", cache | {name: exact_list.arrays[name] for name in work}, scale=scale)
    cached = np.zeros(num_blocks, np.uint8)
    counters = {name: rng.integers(0, 20, num_blocks).astype(np.int32) for name in ("hits", "lookups", "freq")}
    level = rng.integers(0, 5, num_blocks).astype(np.int32)
    levels = bench.call(
        "adaptive_cache_management", some("ref") | counters | {"cached": cached, "level": level}, decay_permille=1000
    )
    fragments = bench.call(
        "fragmentation_analysis", some("ref", "block_table", "seq_lens") | {"cached": cached}, block_size=BLOCK_SIZE
    )
    boxes = batch * (length // BLOCK_SIZE) * model.num_kv_heads * (4 * model.head_dim + 4)
    around = 8 * batch * model.num_kv_heads * model.head_dim + 39 * num_blocks
    kept = batch * model.num_kv_heads * KEPT_TOKENS * model.head_dim * 4
    label = f"{model.name} B={batch} L={length}"
    with_selection = [write, score, asked, choice, sparse_list, sparse, levels, fragments]
    without = [write, exact_list, exact, levels, fragments]
    for impl, calls, num_bytes in (
        (f"select {KEPT_TOKENS} tokens, {len(with_selection)} kernels", with_selection, boxes + kept + around),
        (f"exact, {len(without)} kernels", without, attention_bytes(model, [length] * batch) + around),
    ):
        yield Work(
            "step", impl, label, num_bytes, {"": [calls]}, partial(_check, bench),
            baseline=f"exact, {len(without)} kernels", facts=facts(model, [length] * batch),
        )  # fmt: skip


def _last_tokens(bench: Bench, table: NDArray[np.int32], length: int) -> NDArray[np.float16]:
    """K and V of each sequence's last token as they are in the pool, so that writing them changes no input."""
    model, slot = LLAMA3_8B, (length - 1) % BLOCK_SIZE
    width = model.num_kv_heads * model.head_dim
    starts = (table[:, (length - 1) // BLOCK_SIZE].astype(np.int64) * BLOCK_SIZE + slot) * width
    rows = [bench.noise(name).rows(starts, width) for name in ("keys", "values")]
    return np.stack(rows, axis=1).reshape(len(table), 2, model.num_kv_heads, model.head_dim)


def _check(bench: Bench, calls: Sequence[Call]) -> float:
    """Attention against float64, over all blocks or over those kept, which must be the best by the scores found.

    Each kernel alone is held to its reference in its own row.
    """
    attending = next(call for call in calls if "lse" in call.arrays)
    read, model = bench.device.read, LLAMA3_8B
    if "selected" not in attending.arrays:
        return check_attention(bench, model, attending, read(attending.arrays["seq_lens"]))
    names = ("query", "block_table", "selected", "output")
    query, table, selected, output = (read(attending.arrays[name]) for name in names)
    scores = read(next(call for call in calls if call.kernel == "block_scoring").arrays["block_score"])
    group, found, expected = model.num_heads // model.num_kv_heads, [], []
    for seq, head in ((0, 0), (len(query) - 1, model.num_kv_heads - 1)):
        best, heads = best_blocks(scores[seq, head], KEPT), slice(head * group, (head + 1) * group)
        same(f"selected of sequence {seq}, head {head}", selected[seq, head], best)
        args = (model, query[seq, heads], table[seq, best], KEPT_TOKENS, head)
        found.append(output[seq, heads])
        expected.append(attend(bench.noise("keys"), bench.noise("values"), *args)[0])
    return close("output", np.concatenate(found), np.concatenate(expected))
