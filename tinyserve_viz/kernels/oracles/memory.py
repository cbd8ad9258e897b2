"""The block table as dictionaries and lists, changed one request, one token, one entry at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyserve_viz.kernels.definition import Status


def _askers(a: Any) -> tuple[list[int], Status]:
    """Requests that name an empty entry nobody earlier in the batch named."""
    asking, claimed, status = [], set(), Status.OK
    for i, (seq, logical) in enumerate(a.reqs.tolist()):
        if not (0 <= seq < a.block_table.shape[0] and 0 <= logical < a.block_table.shape[1]):
            status |= Status.RANGE
        elif a.block_table[seq, logical] != -1 or (seq, logical) in claimed:
            status |= Status.ALREADY_MAPPED
        else:
            claimed.add((seq, logical))
            asking.append(i)
    return asking, status


def _hand_out(a: Any, request: int, block: int, counters: tuple[Any, ...]) -> None:
    seq, logical = a.reqs[request]
    a.allocated[request] = block
    a.block_table[seq, logical] = block
    a.ref[block] = 1
    a.gen[block] += 1
    for counter in counters:
        if counter is not None:
            counter[block] = 0
    if a.history is not None:
        a.history[seq, logical] = 0
    if a.box is not None:
        for layer in a.box:
            layer[block, :, 0], layer[block, :, 1] = np.inf, -np.inf


def block_allocation(a: Any) -> Status:
    """Walk the requests with the free order (scan) or the ascending free ids (cas) in hand."""
    a.allocated[:], a.cas_failures[:], a.num_allocated[:] = -1, 0, 0
    asking, status = _askers(a)
    queue = [b for b in range(len(a.ref)) if a.ref[b] == 0] if a.mode == 1 else a.free_order.tolist()
    if len(asking) > len(queue):
        status |= Status.OOM
        if a.mode == 1:
            a.cas_failures[asking[len(queue) :]] = len(a.ref)
        asking = [] if a.all_or_nothing else asking
    for i, block in zip(asking, queue, strict=False):
        if not 0 <= block < len(a.ref):
            status |= Status.RANGE
        elif a.ref[block] != 0:
            status |= Status.CONFLICT
        else:
            _hand_out(a, i, block, (a.uses, a.freq, a.level, a.hits, a.lookups))
            a.cas_failures[i] = block if a.mode == 1 else 0
            a.num_allocated[0] += 1
    return status


def advanced_block_allocation(a: Any) -> Status:
    """Search the whole pool for the least key, for every request anew."""
    for out in (a.allocated, a.region, a.reason, a.runner_up):
        out[:] = -1
    a.num_allocated[0] = 0
    asking, status = _askers(a)
    if len(asking) > int((a.ref == 0).sum()):
        status |= Status.OOM
        asking = [] if a.all_or_nothing else asking
    for i in asking:
        hot = a.request_freq[i] > a.hot_frequency
        free = np.flatnonzero(a.ref == 0)
        if not len(free):
            break
        elsewhere = hot != (free < a.cache_size)
        keys = (free, a.last_use[free], a.level[free], a.cached[free] != 0, elsewhere)  # the last one counts first
        first, *others = np.lexsort(keys)[:2]
        block = int(free[first])
        a.region[i] = 0 if block < a.cache_size else 1
        a.reason[i] = 2 * int(elsewhere[first]) + int(a.cached[block] != 0)
        a.runner_up[i] = free[others[0]] if others else -1
        _hand_out(a, i, block, (a.level, a.freq, a.hits, a.lookups))
        a.cached[block] = 0
        a.num_allocated[0] += 1
        a.uses[block], a.last_use[block] = 1, a.clock + int(a.num_allocated[0])
    return status


def block_deallocation(a: Any) -> Status:
    """Walk the requests; a block whose count comes down to 0 joins the freed list there."""
    a.released[:], a.freed[:] = -1, -1
    status, freed = Status.OK, []
    for i, (seq, logical) in enumerate(a.reqs.tolist()):
        if not (0 <= seq < a.block_table.shape[0] and 0 <= logical < a.block_table.shape[1]):
            status |= Status.RANGE
            continue
        block = int(a.block_table[seq, logical])
        a.block_table[seq, logical] = -1
        if not 0 <= block < len(a.ref):
            status |= Status.UNMAPPED if block == -1 else Status.RANGE
        elif a.ref[block] < 1:
            status |= Status.DOUBLE_FREE
        else:
            a.ref[block] -= 1
            a.released[i] = block
            if a.ref[block] == 0:
                freed.append(block)
    a.freed[: len(freed)] = freed
    a.num_freed[0] = len(freed)
    return status


def block_fork(a: Any) -> Status:
    """Copy entry by entry; refuse a batch whose outcome would depend on its order."""
    rows, width = a.block_table.shape
    status, forks = Status.OK, []
    for parent, child, shared in a.forks.tolist():
        if 0 <= parent < rows and 0 <= child < rows and 0 <= shared <= width:
            forks.append((parent, child, shared))
        else:
            status |= Status.RANGE
    children = [child for _, child, _ in forks]
    if len(set(children)) != len(children) or set(children) & {parent for parent, _, _ in forks}:
        return status | Status.CONFLICT
    for parent, child, shared in forks:
        for logical in range(shared):
            block, there = int(a.block_table[parent, logical]), int(a.block_table[child, logical])
            in_pool = 0 <= block < len(a.ref)
            alive = in_pool and bool(a.ref[block] > 0)
            if not alive:
                status |= Status.UNMAPPED if block == -1 or in_pool else Status.RANGE
            if there != -1:
                status |= Status.ALREADY_MAPPED
            if alive and there == -1:
                a.block_table[child, logical] = block
                a.ref[block] += 1
                if a.history is not None:
                    a.history[child, logical] = a.history[parent, logical]
    return status


def _box_of(keys: Any) -> tuple[Any, Any]:
    """Per channel the least and the greatest of the keys [tokens][heads][channels] that are numbers, zeros positive."""
    keys = keys.astype(np.float32)
    low = np.min(np.where(np.isnan(keys), np.inf, keys), axis=0, initial=np.inf) + 0.0
    high = np.max(np.where(np.isnan(keys), -np.inf, keys), axis=0, initial=-np.inf) + 0.0
    return low, high


def fused_block_copy(a: Any) -> Status:
    """Check the batch as sets, then copy slot by slot."""
    size = a.key_cache.shape[2]
    ops = a.ops.tolist()
    for source, target, tokens in ops:
        if not (0 <= source < len(a.ref) and 0 <= target < len(a.ref) and 1 <= tokens <= size):
            return Status.RANGE
    ops = [op for op in ops if op[0] != op[1]]
    targets = [target for _, target, _ in ops]
    if len(set(targets)) != len(targets) or set(targets) & {source for source, _, _ in ops}:
        return Status.CONFLICT
    if any(a.ref[target] != 1 for target in targets):
        return Status.CONFLICT
    for layer in range(len(a.key_cache)):
        for source, target, tokens in ops:
            for slot in range(tokens):
                a.key_cache[layer, target, slot] = a.key_cache[layer, source, slot]
                a.value_cache[layer, target, slot] = a.value_cache[layer, source, slot]
            if a.box is None:
                continue
            if tokens == size:
                a.box[layer, target] = a.box[layer, source]
            else:
                low, high = _box_of(a.key_cache[layer, source, :tokens])
                a.box[layer, target, :, 0], a.box[layer, target, :, 1] = low, high
    return Status.OK


def fused_reshape_and_block_write(a: Any) -> Status:
    """Store token by token; a box is the extremes of what it held and of the new key."""
    status = Status.OK
    num_blocks, size = a.key_cache.shape[:2]
    for row in range(len(a.seq_lens)):
        start, end, first = int(a.start_pos[row]), int(a.seq_lens[row]), int(a.token_start[row])
        if not (0 <= start <= end <= a.block_table.shape[1] * size and 0 <= first <= len(a.kv) - (end - start)):
            status |= Status.RANGE
            continue
        for position in range(start, end):
            block, slot = int(a.block_table[row, position // size]), position % size
            if not 0 <= block < num_blocks:
                status |= Status.UNMAPPED if block == -1 else Status.RANGE
            elif a.ref[block] != 1:
                status |= Status.UNMAPPED if a.ref[block] < 1 else Status.SHARED_WRITE
            else:
                key, value = a.kv[first + position - start]
                a.key_cache[block, slot], a.value_cache[block, slot] = key, value
                low, high = _box_of(key[None])
                if slot:
                    low = np.minimum(low, a.box[block, :, 0])
                    high = np.maximum(high, a.box[block, :, 1])
                a.box[block, :, 0], a.box[block, :, 1] = low + 0.0, high + 0.0
    return status


def memory_compaction(a: Any) -> Status:
    """Check the plan as sets, then move block by block and rewrite the tables entry by entry."""
    count, num_blocks = int(a.num_moves[0]), len(a.ref)
    if not 0 <= count <= len(a.moves):
        return Status.RANGE
    moves = a.moves[:count].tolist()
    if any(not 0 <= block < num_blocks for move in moves for block in move):
        return Status.RANGE
    ids = [block for move in moves for block in move]
    goes = dict(moves)
    if len(set(ids)) != len(ids) or [goes.get(b, b) for b in range(num_blocks)] != a.old_to_new.tolist():
        return Status.CONFLICT
    for source, target in moves:
        if (a.ref[source] < 1 and not a.cached[source]) or a.ref[target] != 0 or a.cached[target]:
            return Status.CONFLICT
    for source, target in moves:
        for layer in range(len(a.key_cache)):
            a.key_cache[layer, target] = a.key_cache[layer, source]
            a.value_cache[layer, target] = a.value_cache[layer, source]
            if a.box is not None:
                a.box[layer, target] = a.box[layer, source]
                a.box[layer, source, :, 0], a.box[layer, source, :, 1] = np.inf, -np.inf
        for state in (a.ref, a.cached, a.level, a.last_use, a.uses, a.freq, a.hits, a.lookups):
            if state is not None:
                state[target], state[source] = state[source], 0
        a.gen[source] += 1
        a.gen[target] += 1
    for row in a.block_table:
        for logical, block in enumerate(row.tolist()):
            row[logical] = goes.get(block, block)
    return Status.OK


def block_bookkeeping(a: Any) -> Status:
    """One edit after the other."""
    arrays = (a.block_table, a.history, a.ref, a.gen, a.level, a.freq, a.hits, a.lookups, a.cached)
    status = Status.OK
    for which, index, value in a.edits.tolist():
        if not 0 <= which < 2 * len(arrays) or which == 17:
            status |= Status.RANGE
            continue
        target = arrays[which // 2]
        if not 0 <= index < target.size:
            status |= Status.RANGE
            continue
        at = np.unravel_index(index, target.shape)
        target[at] = value + (int(target[at]) if which % 2 else 0)
    return status
