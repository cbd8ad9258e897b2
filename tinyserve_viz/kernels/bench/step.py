"""The rows of a whole decode step: every kernel that a step runs in one CUDA graph, in turn and side by side.

A step allocates a block for every sixteenth sequence, writes a token of each, scores, analyses, chooses, balances,
attends once, adapts levels, and gives the blocks back, so that it can be replayed. Dense, the choice is not used.

    side by side:  allocate ─ write ─ score ─┬─ choose ─ attend over the choice ─┬─ free
                       └─ analyse ─ balance ─┴───────── adapt ───────────────────┘
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    work_list,
    worker_counts,
)
from tinyserve_viz.kernels.bench.branches import Side
from tinyserve_viz.kernels.bench.grid import BLOCK_SIZE, KEPT_TOKENS, LLAMA3_8B
from tinyserve_viz.kernels.bench.selection import best_blocks
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
    "block_allocation",
    "block_deallocation",
)


def step(bench: Bench) -> Iterator[Work]:
    """64 sequences of 4,096 tokens decode one token: dense, with 30 % of the blocks, and with 2,048 tokens of each."""
    if bench.wanted and not set(IN_A_STEP) <= bench.wanted:
        return
    model, batch, length = LLAMA3_8B, BATCH, LENGTH
    num_blocks = bench.num_blocks(model)
    if not bench.fits(f"step B={batch} L={length}", batch * length // BLOCK_SIZE, model):
        return
    rng = bench.rng(batch, length, 10)
    held = tables(rng, [length] * batch, num_blocks, 1)[0]
    table = np.concatenate([held, np.full((batch, 1), -1, np.int32)], axis=1)  # room for the block that comes next
    pool = (num_blocks, BLOCK_SIZE, model.num_kv_heads, model.head_dim)
    ref = np.zeros(num_blocks, np.int32)
    ref[held] = 1
    growing = np.arange(0, batch, BLOCK_SIZE, dtype=np.int32)  # whose last block is full
    asked_for = np.stack([growing, np.full_like(growing, held.shape[1])], axis=1)
    put = bench.device.put
    lens = np.full(batch, length, np.int32)
    shared: dict[str, Any] = {
        "query": put(rng.standard_normal((batch, model.num_heads, model.head_dim)).astype(np.float16)),
        "block_table": put(table), "seq_lens": put(lens), "ref": put(ref),
        "gen": put(np.zeros(num_blocks, np.int32)),
        "key_cache": bench.noise("keys").view(pool), "value_cache": bench.noise("values").view(pool),
        "box": bench.noise("boxes").view((num_blocks, model.num_kv_heads, 2, model.head_dim)),
    }  # fmt: skip

    def some(*names: str) -> dict[str, Any]:
        return {name: shared[name] for name in names}

    allocate = bench.call(
        "block_allocation",
        some("block_table", "ref", "gen")
        | {"reqs": asked_for, "free_order": np.flatnonzero(ref == 0)[: len(growing)].astype(np.int32)},
    )
    free = bench.call("block_deallocation", some("block_table", "ref") | {"reqs": asked_for})
    write = bench.call(
        "fused_reshape_and_block_write",
        some("block_table", "seq_lens", "ref", "key_cache", "value_cache", "box")
        | {
            "kv": _last_tokens(bench, held, length),
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
    cached = np.zeros(num_blocks, np.uint8)
    counters = {name: rng.integers(0, 20, num_blocks).astype(np.int32) for name in ("hits", "lookups", "freq")}
    level = rng.integers(0, 5, num_blocks).astype(np.int32)
    levels = bench.call(
        "adaptive_cache_management", some("ref") | counters | {"cached": cached, "level": level}, decay_permille=1000
    )
    workers, work = worker_counts(bench.device, model)[0], ("segments", "segment_range", "seq_segments")
    cache = some("query", "key_cache", "value_cache", "block_table", "seq_lens")

    def choosing(budget: int) -> Call:
        return bench.call(
            "cache_selection",
            {name: asked.arrays[name] for name in ("complexity", "requirement")}
            | {"block_score": score.arrays["block_score"], "num_seq_blocks": blocks, "history": np.zeros_like(table)},
            num_select_heads=model.num_kv_heads,
            max_selected=budget,
            budget_blocks=budget,
        )

    def attending(kernel: str, listed: Mapping[str, Any], given: Mapping[str, Any]) -> Call:
        arrays = {**cache, **{name: listed[name] for name in work}, **given}
        return bench.call(kernel, arrays, scale=model.head_dim**-0.5)

    boxes = batch * held.shape[1] * model.num_kv_heads * (4 * model.head_dim + 4)
    around = 8 * batch * model.num_kv_heads * model.head_dim + 22 * num_blocks
    label, side = f"{model.name} B={batch} L={length}", Side(bench.device)

    def row(impl: str, calls: Sequence[Call], num_bytes: int, budget: int = 0) -> Work:
        return Work(
            "step", impl, label, num_bytes, {"": [calls]}, partial(_check, bench, budget), baseline=alone,
            facts=facts(model, [length] * batch),
        )  # fmt: skip

    alone, whole = "dense attention alone", attention_bytes(model, [length] * batch)
    listed, choice = balance(bench, lens, workers), choosing(most := -(-3 * held.shape[1] // 10))
    dense = attending("flash_paged_attention", listed.arrays, {})
    yield row(alone, [attending("flash_paged_attention", work_list(lens, workers), {})], whole)
    in_turn = [allocate, write, score, asked, choice, listed, dense, levels, free]
    start = [allocate, side.fork(), side.on(asked), side.on(listed)]
    forms = {
        "choice beside attention": [
            *start, write, score, side.join(), side.fork(), side.on(choice), side.on(levels), dense, side.join(), free,
        ],
        "choice behind attention's start": [
            *start, write, score, side.join(), side.fork(), dense, side.on(choice), side.on(levels), side.join(), free,
        ],
        "score and choice behind attention's start": [
            *start, write, side.join(), side.fork(), dense, side.on(score), side.on(choice), side.on(levels),
            side.join(), free,
        ],
    }  # fmt: skip
    for name, calls in forms.items():
        yield row(f"dense, {len(in_turn)} kernels, {name}", calls, boxes + whole + around)
    for name, budget in (("30 % of the blocks", most), (f"{KEPT_TOKENS} tokens", KEPT_TOKENS // BLOCK_SIZE)):
        choice = choosing(budget)
        listed = balance(bench, lens, workers, kept=np.full(batch, budget, np.int32))
        given = {name: choice.arrays[name] for name in ("selected", "count")}
        sparse = attending("query_aware_paged_attention", listed.arrays, given)
        in_turn = [allocate, write, score, asked, choice, listed, sparse, levels, free]
        beside = [
            allocate, side.fork(), side.on(asked), side.on(listed), side.on(levels), write, score, side.join(),
            choice, sparse, free,
        ]  # fmt: skip
        num_bytes = boxes + around + batch * model.num_kv_heads * budget * BLOCK_SIZE * model.head_dim * 4
        yield row(f"select {name}, {len(in_turn)} kernels in turn", in_turn, num_bytes, budget)
        yield row(f"select {name}, {len(in_turn)} kernels side by side", beside, num_bytes, budget)


def _last_tokens(bench: Bench, table: NDArray[np.int32], length: int) -> NDArray[np.float16]:
    """K and V of each sequence's last token as they are in the pool, so that writing them changes no input."""
    model, slot = LLAMA3_8B, (length - 1) % BLOCK_SIZE
    width = model.num_kv_heads * model.head_dim
    starts = (table[:, (length - 1) // BLOCK_SIZE].astype(np.int64) * BLOCK_SIZE + slot) * width
    rows = [bench.noise(name).rows(starts, width) for name in ("keys", "values")]
    return np.stack(rows, axis=1).reshape(len(table), 2, model.num_kv_heads, model.head_dim)


def _check(bench: Bench, budget: int, calls: Sequence[Call]) -> float:
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
        heads = slice(head * group, (head + 1) * group)
        best = best_blocks(scores[seq, head, : LENGTH // BLOCK_SIZE], budget)
        same(f"selected of sequence {seq}, head {head}", selected[seq, head], best)
        args = (model, query[seq, heads], table[seq, best], budget * BLOCK_SIZE, head)
        found.append(output[seq, heads])
        expected.append(attend(bench.noise("keys"), bench.noise("values"), *args)[0])
    return close("output", np.concatenate(found), np.concatenate(expected))
