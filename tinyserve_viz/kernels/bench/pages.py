"""Rows of selection at several page sizes: scores, choice and attention over 30 % of the same contexts' blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from tinyserve_viz.kernels.bench.attention import attend, facts, work_list
from tinyserve_viz.kernels.bench.device import DeviceCall
from tinyserve_viz.kernels.bench.grid import LLAMA3_8B, Model
from tinyserve_viz.kernels.bench.timing import sets_for
from tinyserve_viz.kernels.bench.work import Bench, Call, Work, close
from tinyserve_viz.kernels.defs.cache_selection import paper_budget

SHAPES = ((1, 32_768), (16, 32_768))  # (batch, context)
SIZES = (4, 8, 16, 32, 64)  # tokens in a block, as published
PERMILLE = 300  # of the blocks that are kept, the published default


def page_sizes(bench: Bench) -> Iterator[Work]:
    """Three launches, one after another in a graph: score every block, choose, attend to the chosen ones."""
    if not bench.wants("query_aware_paged_attention"):
        return
    model = LLAMA3_8B
    for batch, length in SHAPES:
        for size in SIZES:
            label, blocks = f"{model.name} B={batch} L={length} page={size}", length // size
            num_blocks = _num_blocks(bench, model, size)
            if batch * blocks > num_blocks:
                bench.left_out.append(f"page-size {label}: takes {batch * blocks} blocks, {num_blocks} fit")
                continue
            kept = int(paper_budget(np.array([blocks]), PERMILLE, 0, 0)[0])
            num_bytes = batch * 4 * model.num_kv_heads * model.head_dim * (blocks + kept * size)  # boxes, then K and V
            yield Work(
                "page-size", "score, choose, attend", label, num_bytes,
                _variants(bench, model, batch, length, size, kept, num_bytes),
                partial(_check, bench, model, size),
                facts={**facts(model, [length] * batch), "page": size, "kept": kept},
            )  # fmt: skip


def _num_blocks(bench: Bench, model: Model, size: int) -> int:
    """Blocks of that size in the pools; at small sizes the boxes take the most."""
    row = model.num_kv_heads * model.head_dim
    return min(bench.elements // (size * row), bench.elements // 8 // (2 * row))


def _variants(
    bench: Bench, model: Model, batch: int, length: int, size: int, kept: int, num_bytes: int
) -> dict[str, list[list[DeviceCall]]]:
    """The launches for each rotating set, without a work list and with two lengths of it."""
    blocks, num_blocks, heads, dim = length // size, _num_blocks(bench, model, size), model.num_kv_heads, model.head_dim
    rng = bench.rng(batch, length, size)
    sets = sets_for(bench.device, num_bytes, num_blocks // (batch * blocks))
    ids = rng.permutation(num_blocks).astype(np.int32)[: sets * batch * blocks].reshape(sets, batch, blocks)
    counts, lens = np.full(batch, blocks, np.int32), np.full(batch, length, np.int32)
    pools = {
        name: bench.noise(noise).view((num_blocks, size, heads, dim))
        for name, noise in (("key_cache", "keys"), ("value_cache", "values"))
    }
    box = bench.noise("boxes").view((num_blocks, heads, 2, dim))
    workers = (2 * bench.device.num_sms // heads, 2 * bench.device.num_sms)
    lists: dict[str, dict[str, Any]] = {"no work list": {}} | {
        f"{n} workers": work_list(lens, n, np.full(batch, kept, np.int32), block_size=size) for n in workers if n
    }
    found: dict[str, list[list[DeviceCall]]] = {name: [] for name in lists}
    for table in ids:
        query = rng.standard_normal((batch, model.num_heads, dim)).astype(np.float16)
        given: dict[str, Any] = {"query": bench.device.put(query), "block_table": bench.device.put(table)}
        score = bench.call(
            "block_scoring", {**given, "box": box, "num_seq_blocks": counts}, num_score_heads=heads
        )  # fmt: skip
        choice = bench.call(
            "cache_selection",
            {
                "complexity": np.zeros(batch, np.float32), "requirement": np.zeros(batch, np.int32),
                "block_score": score.arrays["block_score"], "num_seq_blocks": counts,
                "history": np.zeros((batch, blocks), np.int32),
            },
            num_select_heads=heads, max_selected=kept, ratio_permille=PERMILLE, sinks=0, recent=0,
        )  # fmt: skip
        chosen = {name: choice.arrays[name] for name in ("selected", "count")}
        for name, work in lists.items():
            arrays = {**given, **pools, "seq_lens": lens, **chosen, **work}
            attention = bench.call("query_aware_paged_attention", arrays, scale=dim**-0.5)
            found[name].append([score, choice, attention])
    return found


def _check(bench: Bench, model: Model, size: int, calls: Sequence[Call]) -> float:
    """Attention of the first and last sequence, one KV head each, over the chosen blocks, against float64."""
    read, arrays = bench.device.read, calls[-1].arrays
    query, table, selected, output = (read(arrays[name]) for name in ("query", "block_table", "selected", "output"))
    group, found, expected = model.num_heads // model.num_kv_heads, [], []
    for seq, kv_head in ((0, 0), (len(query) - 1, model.num_kv_heads - 1)):
        heads = slice(kv_head * group, (kv_head + 1) * group)
        blocks = table[seq, selected[seq, kv_head]]
        pools = bench.noise("keys"), bench.noise("values")
        one, _ = attend(*pools, model, query[seq, heads], blocks, len(blocks) * size, kv_head, size)
        found.append(output[seq, heads])
        expected.append(one)
    return close("output", np.concatenate(found), np.concatenate(expected))
