"""Balancing, levels, compaction plans and fragmentation by counting."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from tinyserve_viz.kernels.definition import Status


def adaptive_cache_management(a: Any) -> Status:
    """The truth table, with exact fractions."""
    theta = Fraction(a.hit_threshold_permille, 1000)
    for b in range(len(a.ref)):
        hits, lookups, freq = int(a.hits[b]), int(a.lookups[b]), int(a.freq[b])
        a.freq[b] = freq * a.decay_permille // 1000
        a.decision[b] = 0
        if a.ref[b] <= 0 and not a.cached[b]:
            a.level[b] = 0
            continue
        if lookups and Fraction(hits, lookups) < theta and freq > a.frequency_threshold:
            a.decision[b] = 1
        elif lookups and Fraction(hits, lookups) > theta * Fraction(3, 2) and freq < Fraction(a.frequency_threshold, 2):
            a.decision[b] = -1
        a.level[b] = min(max(int(a.level[b]) + int(a.decision[b]), 0), 4)
    return Status.OK


def intelligent_memory_compaction(a: Any) -> Status:
    """Two pointers: the lowest hole against the highest movable block, until they come too close."""
    size = len(a.ref)
    heavy = [
        a.weight_uses * int(a.uses[b]) + a.weight_level * int(a.level[b]) + a.weight_shared * int(a.ref[b] > 1)
        for b in range(size)
    ]
    live = {b for b in range(size) if a.ref[b] > 0}
    movable = {b for b in live if heavy[b] < a.threshold_permille}
    holes = {b for b in range(size) if b not in live and not a.cached[b]}
    for b in range(size):
        a.weight[b] = np.float32(heavy[b]) / np.float32(1000) if b in live else 0
    planned: list[tuple[int, int]] = []
    low, high = 0, size - 1
    while len(planned) < len(a.moves):
        while low < size and low not in holes:
            low += 1
        while high >= 0 and high not in movable:
            high -= 1
        if low >= size or high < 0 or high - low < a.min_gain:
            break
        planned.append((high, low))
        low, high = low + 1, high - 1
    top = max(live, default=-1)
    after = (live - {source for source, _ in planned}) | {target for _, target in planned}
    new_top = max(after, default=-1)
    frag = (top + 1) * 1000 // len(live) if live else 0
    if a.trigger_permille > 0 and frag <= a.trigger_permille:
        verdict = 1
    elif not planned:
        verdict = 4
    elif len(planned) < a.min_moves:
        verdict = 2
    elif Fraction(top - new_top, len(planned)) < Fraction(a.payback_permille, 1000):
        verdict = 3
    else:
        verdict = 0
    done = [] if verdict else planned
    new_top = top if verdict else new_top
    a.moves[:] = -1
    a.old_to_new[:] = range(size)
    for k, (source, target) in enumerate(done):
        a.moves[k] = source, target
        a.old_to_new[source] = target
    a.num_moves[0] = len(done)
    frag_after = (new_top + 1) * 1000 // len(live) if live else 0
    a.metrics[:] = [
        len(live), len(holes), len(movable), len(live) - len(movable),
        top, new_top, frag, frag_after, len(planned), verdict,
    ]  # fmt: skip
    return Status.OK


def dynamic_workload_balancing(a: Any) -> Status:
    """Hand out one unit after the other, then read the segments off the units."""
    status = Status.OK
    num_workers, size = len(a.load), a.block_size
    tokens: list[list[int]] = []  # of each unit of each sequence
    for row, given in enumerate(a.seq_lens.tolist()):
        length = max(given, 0)
        blocks = [min(size, length - at) for at in range(0, length, size)]
        kept = len(blocks) if a.kept is None else min(max(int(a.kept[row]), 0), len(blocks))
        if length != given or (a.kept is not None and kept != a.kept[row]):
            status |= Status.RANGE
        tokens.append(blocks[len(blocks) - kept :])  # all but the last are full: any kept ones weigh that
    units = [(row, i) for row, parts in enumerate(tokens) for i in range(len(parts))]
    hands: list[list[tuple[int, int]]] = [[] for _ in range(num_workers)]
    if a.mode == 0:
        for w in range(num_workers):
            hands[w] = units[w * len(units) // num_workers : (w + 1) * len(units) // num_workers]
    else:
        rows = [row for row in range(len(tokens)) if tokens[row]]
        rows = sorted(rows, key=lambda row: (-sum(tokens[row]), row)) if a.mode == 2 else rows
        for row in rows:
            loads = [sum(tokens[r][i] for r, i in hand) for hand in hands]
            w = row % num_workers if a.mode == 1 else loads.index(min(loads))
            hands[w].extend((row, i) for i in range(len(tokens[row])))
    a.segments[:], a.seq_segments[:] = -1, 0
    segments: list[list[int]] = []
    done = 0
    for w, hand in enumerate(hands):
        a.ranges[w] = done, done + len(hand)
        done += len(hand)
        a.load[w] = sum(tokens[row][i] for row, i in hand)
        first = len(segments)
        for row, i in hand:
            if len(segments) > first and segments[-1][0] == row and segments[-1][2] == i:
                segments[-1][2] = i + 1
            else:
                segments.append([row, i, i + 1])
        a.segment_range[w] = first, len(segments)
    for k, (row, low, high) in enumerate(segments):
        a.segments[k] = row, low, high
        if a.seq_segments[row, 1] == 0:
            a.seq_segments[row, 0] = k
        a.seq_segments[row, 1] += 1
    a.num_segments[0] = len(segments)
    sums = [sum(parts) for parts in tokens]
    total = sum(sums)
    a.imbalance_permille[:] = 0
    if total:
        a.imbalance_permille[:] = max(sums) * len(sums) * 1000 // total, int(max(a.load)) * num_workers * 1000 // total
    return status


def fragmentation_analysis(a: Any) -> Status:
    """Count states, runs, super-pages and neighbours one by one."""
    status, size = Status.OK, len(a.ref)
    a.fill[:], a.scatter[:], a.run_histogram[:] = 0, 0, 0
    for row, given in enumerate(a.seq_lens.tolist()):
        length = min(max(given, 0), a.block_table.shape[1] * a.block_size)
        status |= Status.OK if length == given else Status.RANGE
        before = None
        for logical in range(-(-length // a.block_size)):
            block = int(a.block_table[row, logical])
            if not 0 <= block < size:
                status |= Status.UNMAPPED if block == -1 else Status.RANGE
                before = None
                continue
            a.fill[block] = max(int(a.fill[block]), min(a.block_size, length - logical * a.block_size))
            if before is not None:
                a.scatter[row, 1] += 1
                a.scatter[row, 0] += block != before + 1
            before = block
    states = ["used" if a.ref[b] > 0 else "cached" if a.cached[b] else "free" for b in range(size)]
    runs = [len(run) for run in "".join("." if s == "free" else " " for s in states).split()]
    for run in runs:
        a.run_histogram[run.bit_length() - 1] += 1
    held = pinned = 0
    for at in range(0, size, a.super_size):
        part = states[at : at + a.super_size]
        held += len(part) if set(part) != {"free"} else 0
        pinned += len(part) - part.count("used") if "used" in part else 0
    breaks, pairs = a.scatter.sum(axis=0).tolist()
    a.metrics[:] = [
        states.count("used"), states.count("cached"), states.count("free"), int((a.fill > 0).sum()), int(a.fill.sum()),
        max(runs, default=0), len(runs), max((b for b in range(size) if a.ref[b] > 0), default=-1), held, pinned,
        pairs - breaks, pairs,
    ]  # fmt: skip
    return status
