"""Attention by gathering the keys into one contiguous array and applying the definition of softmax in float64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from tinyserve_viz.kernels.definition import Status
from tinyserve_viz.kernels.layout import pool_offset
from tinyserve_viz.kernels.oracles.decisions import block_scoring, pick


def usable(a: Any, row: int) -> tuple[int, dict[int, int], Status]:
    """Length of a row, its usable logical -> physical blocks, and what was wrong with the others."""
    size, width = a.key_cache.shape[1], a.block_table.shape[1]
    length = min(max(int(a.seq_lens[row]), 0), width * size)
    status = Status.OK if length == a.seq_lens[row] else Status.RANGE
    blocks = {}
    for logical in range(-(-length // size)):
        block = int(a.block_table[row, logical])
        if 0 <= block < a.key_cache.shape[0]:
            blocks[logical] = block
        else:
            status |= Status.UNMAPPED if block == -1 else Status.RANGE
    return length, blocks, status


def cut_length(a: Any, row: int) -> Status:
    """RANGE when the row's length does not fit its table."""
    return Status.OK if usable(a, row)[0] == a.seq_lens[row] else Status.RANGE


def unusable(a: Any, row: int, logical_blocks: list[int]) -> Status:
    """What is wrong with entries that cannot be read."""
    entries = [int(a.block_table[row, logical]) for logical in logical_blocks]
    flags = [Status.UNMAPPED if entry == -1 else Status.RANGE for entry in entries]
    return Status(sum(set(flags)))


def gathered(a: Any, cache: Any, row: int, logical_blocks: list[int], kv_head: int) -> Any:
    """Contiguous float64 [tokens][head_dim] of one KV head, by element offsets into the flat pool."""
    size, num_kv_heads, head_dim = cache.shape[1:]
    length, blocks, _ = usable(a, row)
    positions = [p for b in logical_blocks for p in range(b * size, min((b + 1) * size, length))]
    where = np.array([[blocks[p // size], p % size] for p in positions], np.int64).reshape(-1, 2)
    offsets = pool_offset(
        where[:, :1],
        where[:, 1:],
        kv_head,
        np.arange(head_dim),
        block_size=size,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
    )
    return cache.reshape(-1)[offsets].astype(np.float64)


def dense(query: Any, keys: Any, values: Any, scale: Any) -> tuple[Any, float]:
    """Softmax attention of one query row over contiguous keys: output [head_dim] and log-sum-exp."""
    if not len(keys):
        return np.zeros(len(query)), -np.inf
    logits = np.float64(scale) * (keys @ query.astype(np.float64))
    top = logits.max()
    weights = np.exp(logits - top)
    return weights @ values / weights.sum(), float(top + np.log(weights.sum()))


def _heads(a: Any, row: int, head: int, logical_blocks: list[int]) -> None:
    kv_head = head // (a.query.shape[1] // a.key_cache.shape[2])
    keys, values = (gathered(a, cache, row, logical_blocks, kv_head) for cache in (a.key_cache, a.value_cache))
    a.output[row, head], a.lse[row, head] = dense(a.query[row, head], keys, values, a.scale)


def paged_attention(a: Any) -> Status:
    """Every valid token of the sequence once."""
    status = Status.OK
    for row in range(len(a.query)):
        _, blocks, flags = usable(a, row)
        status |= flags
        for head in range(a.query.shape[1]):
            _heads(a, row, head, sorted(blocks))
    return status


def _listed(a: Any, units: list[int]) -> tuple[list[list[int]], Status]:
    """Units of each row as the workers' segments name them; all of them without a work list."""
    if a.segments is None:
        return [list(range(n)) for n in units], Status.OK
    status, todo = Status.OK, [[] for _ in units]  # type: tuple[Status, list[list[int]]]
    for first, end in a.segment_range:
        if not 0 <= first <= end <= len(a.segments):
            status |= Status.RANGE
            continue
        for row, low, high in a.segments[first:end]:
            if 0 <= row < len(units) and 0 <= low <= high <= units[row]:
                todo[row].extend(range(low, high))
            else:
                status |= Status.RANGE
    return todo, status


def flash_paged_attention(a: Any) -> Status:
    """The same attention over what the work list names."""
    rows = range(len(a.query))
    size = a.key_cache.shape[1]
    todo, status = _listed(a, [-(-usable(a, row)[0] // size) for row in rows])
    for row in rows:
        blocks = usable(a, row)[1]
        status |= cut_length(a, row) | unusable(a, row, [b for b in todo[row] if b not in blocks])
        for head in range(a.query.shape[1]):
            _heads(a, row, head, [b for b in todo[row] if b in blocks])
    return status


def query_aware_paged_attention(a: Any) -> Status:
    """Attention over the tokens of the kept blocks; the fused form first scores and picks them."""
    status = Status.OK
    size, num_kv_heads = a.key_cache.shape[1:3]
    needed = [-(-usable(a, row)[0] // size) for row in range(len(a.query))]
    if a.box is not None:
        scores = np.empty((len(a.query), num_kv_heads, a.block_table.shape[1]), np.float32)
        status |= block_scoring(
            SimpleNamespace(
                query=a.query,
                box=a.box,
                block_table=a.block_table,
                num_seq_blocks=needed,
                block_score=scores,
                reduction=a.reduction,
            )
        )
        for row, total in enumerate(needed):
            share = a.budget_blocks if a.budget_blocks else total * a.ratio_permille // 1000
            budget = min(total, max(min(total, a.sinks + a.recent), share, 1))
            for head in range(num_kv_heads):
                status |= pick(
                    scores[row, head, :total],
                    budget,
                    a.sinks,
                    a.recent,
                    a.selected[row, head],
                    a.count[row, head : head + 1],
                )
    select_heads, max_selected = a.selected.shape[1:]
    group = a.query.shape[1] // num_kv_heads
    kept = np.clip(a.count, 0, max_selected)
    if (kept != a.count).any():
        status |= Status.RANGE
    for select_head in range(select_heads):
        todo, flags = _listed(a, [int(n) for n in kept[:, select_head]])
        status |= flags
        for row in range(len(a.query)):
            blocks = usable(a, row)[1]
            if len(a.selected[row, select_head, : kept[row, select_head]]) == 0 and needed[row]:
                status |= Status.RANGE
            chosen: list[int] = []
            highest = -1
            for i, logical in enumerate(int(x) for x in a.selected[row, select_head, : kept[row, select_head]]):
                if not 0 <= logical < needed[row]:
                    status |= Status.RANGE
                elif logical <= highest:
                    status |= Status.CONFLICT
                else:
                    highest = logical
                    if i in todo[row] and logical in blocks:
                        chosen.append(logical)
                    elif i in todo[row]:
                        status |= unusable(a, row, [logical])
            status |= cut_length(a, row)
            heads = (
                range(a.query.shape[1]) if select_heads == 1 else range(select_head * group, (select_head + 1) * group)
            )
            for head in heads:
                _heads(a, row, head, chosen)
                a.blocks_read[row, head] = len(chosen)
                a.tokens_read[row, head] = sum(min(size, usable(a, row)[0] - b * size) for b in chosen)
    return status
